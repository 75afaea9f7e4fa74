"""A real MLflow server with its basic-auth app, and calls to it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import free_port

ADMIN = "admin"


class AuthServer:
    """Its address, its users' passwords, and where they are written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"http://127.0.0.1:{free_port()}"
        self.passwords = {ADMIN: secrets.token_hex(12)}

    def call(self, user: str, method: str, path: str, **fields: Any) -> tuple[int, Any]:
        """Call the server as *user*; return status and document."""
        login = base64.b64encode(f"{user}:{self.passwords[user]}".encode()).decode()
        headers = {"authorization": f"Basic {login}", "content-type": "application/json"}
        request = urllib.request.Request(  # a loopback address of our own
            f"{self.url}/api/{path}", json.dumps(fields).encode() if fields else None, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                raw = answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        return 200, json.loads(raw or b"{}")

    def done(self, path: str, **fields: Any) -> Any:
        """Do something as the administrator."""
        status, found = self.call(ADMIN, "POST", path, **fields)
        assert status == 200, (path, found)
        return found

    def add_user(self, name: str) -> None:
        self.passwords[name] = secrets.token_hex(12)
        self.done("2.0/mlflow/users/create", username=name, password=self.passwords[name])


@contextlib.contextmanager
def serving(directory: Path, default: str) -> Iterator[AuthServer]:
    """Run a server whose default_permission is *default*."""
    server = AuthServer(directory)
    (directory / "auth.ini").write_text(
        "[mlflow]\n"
        f"default_permission = {default}\n"
        f"database_uri = sqlite:///{directory}/auth.db\n"
        f"admin_username = {ADMIN}\nadmin_password = {server.passwords[ADMIN]}\n"
        "auth_cache_ttl_seconds = 600\n"  # hashing a password takes half a second
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(directory / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--host", "127.0.0.1"]
    command += ["--default-artifact-root", str(directory / "artifacts"), "--port", server.url.rpartition(":")[2]]
    with (directory / "log").open("w") as log:
        child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not _answers(server):
            assert child.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.2)
        yield server
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait(timeout=30)


def _answers(server: AuthServer) -> bool:
    try:
        return server.call(ADMIN, "GET", "2.0/mlflow/users/list")[0] == 200
    except OSError:
        return False
