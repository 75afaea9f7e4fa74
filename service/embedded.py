"""The embedded default: demo keys, and a real MLflow server as a guarded child."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import yaml

from service.authentication.api_keys import entry_for, new_key
from service.errors import BadConfiguration

DEMO_PRINCIPALS = {
    "user:admin": "group:platform",
    "user:scientist": "group:data-scientists",
    "user:lead": "group:ml-leads",
    "service:ci": "group:ci",
    "user:viewer": "group:readers",
}
START_SECONDS = 180
_MAX_SOCKET_PATH = 100  # sun_path holds 108 bytes


class Embedded:
    """Everything under one data directory, held by one process at a time."""

    def __init__(self, data: Path) -> None:
        """Take the directory *data*.

        Raises:
            BadConfiguration: it cannot be written, or another gateway holds it.
        """
        self.data = data
        self.directory = data / "mlflow"
        self.log = data / "mlflow.log"
        try:
            data.mkdir(parents=True, exist_ok=True)
            self.directory.mkdir(mode=0o700, exist_ok=True)
            self.directory.chmod(0o700)
            self._lock = (data / "lock").open("w")
        except OSError as error:
            message = f"{data}: the data directory cannot be written: {error.strerror}"
            raise BadConfiguration(message) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            message = f"{data}: another gateway uses this data directory (REGISTRY_GATEWAY_DATA_DIR chooses another)"
            raise BadConfiguration(message) from None
        self.socket = self._socket_path()
        self._guardian: subprocess.Popen[bytes] | None = None

    def _socket_path(self) -> Path:
        path = self.directory / "mlflow.sock"
        if len(str(path)) <= _MAX_SOCKET_PATH:
            return path
        return Path(tempfile.mkdtemp(prefix="rgw-")) / "mlflow.sock"  # made with mode 0700

    def write_keys(self) -> dict[str, str]:
        """Make fresh demo keys; write them and the key file of their hashes, both with mode 0600."""
        tokens = {principal: new_key() for principal in DEMO_PRINCIPALS}
        entries = [
            entry_for(tokens[principal], principal, (group,), identifier=f"demo-{principal.partition(':')[2]}")
            for principal, group in DEMO_PRINCIPALS.items()
        ]
        _write_private(self.data / "api-keys.yaml", yaml.safe_dump(entries, sort_keys=False))
        _write_private(self.data / "demo-tokens.json", json.dumps(tokens, indent=1) + "\n")
        if not (self.data / "secret").exists():
            _write_private(self.data / "secret", secrets.token_hex(32))
        return tokens

    def start_server(self, progress: Callable[[str], None]) -> None:
        """Start the MLflow server and wait until it answers.

        Raises:
            BadConfiguration: it does not come up; its log is named.
        """
        command = [sys.executable, "-m", "service.guardian", str(self.directory), str(self.socket), str(self.log)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        self._guardian = subprocess.Popen(  # noqa: S603  # our own command, no shell
            command, stdin=subprocess.PIPE, env=environment, start_new_session=True
        )
        begun = said = time.monotonic()
        while not answers(self.socket):
            now = time.monotonic()
            if self._guardian.poll() is not None or now - begun > START_SECONDS:
                self.stop()
                message = f"{self.log}: the MLflow server did not start; the end of this file says why"
                raise BadConfiguration(message)
            if now - said > 5:
                said = now
                progress(f"waiting for MLflow ({now - begun:.0f} s)")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the server and its guardian."""
        if self._guardian is not None and self._guardian.stdin is not None:
            pipe: IO[bytes] = self._guardian.stdin
            pipe.close()
            self._guardian.wait()


def answers(path: Path) -> bool:
    """Tell whether an HTTP server on the Unix socket *path* says it is healthy."""
    connection = http.client.HTTPConnection("localhost", timeout=2)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(2)
    try:
        connection.sock.connect(str(path))
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
