"""The guide's own script, curl and all, and an unmodified MLflow client that goes on after the CI token has ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from service.journal import schema
from tests.conftest import ROOT, TOKENS, free_port, write_configuration
from tests.faults.test_process import ready, start
from tests.identity.samples import GITHUB
from tests.identity.signer import key_set, signer
from tests.identity.test_exchange import pem

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not (shutil.which("curl") and shutil.which("jq")), reason="the guide's script needs curl and jq"
    ),
]
ISSUER_KEY = signer("RS256", "actions")
JOB = """
import mlflow
from mlflow.exceptions import RestException
mlflow.set_experiment("by-exchange")
with mlflow.start_run() as run:
    mlflow.log_metric("accuracy", 0.9)
    mlflow.set_tag("mlflow.user", "user:admin")
client = mlflow.MlflowClient()
client.create_registered_model("by-exchange")
client.create_model_version("by-exchange", f"runs:/{run.info.run_id}/model", run.info.run_id)
found = client.get_run(run.info.run_id)
print(found.info.user_id, found.data.tags["mlflow.user"])
try:
    client.delete_registered_model("by-exchange")
except RestException as error:
    print(error.error_code, "service:github-74" in str(error))
"""
ROWS = """\
p, group:github-74/environment/prod, main, experiments/*, *, allow
p, group:github-74/environment/prod, main, models/*, model:create, allow
p, group:github-74/environment/prod, main, models/*, model:read, allow
p, group:github-74/environment/prod, main, models/*, version:create, allow
"""


def actions(lifetime: int) -> HTTPServer:
    """Serve tokens as GitHub's runner does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            now = int(time.time())
            said = {**GITHUB, "aud": self.path.partition("audience=")[2], "iat": now, "nbf": now, "exp": now + lifetime}
            good = self.headers["authorization"] == "bearer of-the-runner"
            body = json.dumps({"value": ISSUER_KEY.by_hand(said)} if good else {}).encode()
            self.send_response(200 if good else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_job_of_github_trains_with_an_exchanged_token(mlflow_server, tmp_path):
    pem(tmp_path / "tokens.pem")
    (tmp_path / "issuer.json").write_bytes(key_set(ISSUER_KEY))
    (tmp_path / "rows.csv").write_text(ROWS)
    port = free_port()
    gateway_url = f"http://127.0.0.1:{port}"
    config = write_configuration(
        tmp_path,
        registries={"main": {"kind": "mlflow", "url": mlflow_server.url}},
        access={"model": str(ROOT / "policies/model.conf"), "rows": "rows.csv"},
        environments=None,
        authentication={
            "api_keys": "keys.yaml",
            "issuers": [
                {"preset": "github", "issuer": GITHUB["iss"], "audience": "registry-gateway",
                 "jwks_file": "issuer.json", "require": {"repository_owner_id": "65"}, "leeway_seconds": 0}
            ],
        },
        tokens={"issuer": gateway_url, "keys": [{"kid": "2026", "file": "tokens.pem", "sign": True}]},
    )  # fmt: skip
    schema.upgrade(f"sqlite:///{tmp_path / 'journal.db'}")
    script = re.search(r"```bash\n(.*?)```", (ROOT / "docs/identity/exchange.md").read_text(), re.DOTALL)[1]
    runner, gateway = actions(lifetime=3), start(config, port)
    try:
        ready(port, gateway)
        environment = {
            "PATH": os.environ["PATH"], "GATEWAY": gateway_url, "GITHUB_ENV": str(tmp_path / "github.env"),
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"http://127.0.0.1:{runner.server_port}/token?x=1",
        }  # fmt: skip
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        told = dict(line.split("=", 1) for line in (tmp_path / "github.env").read_text().splitlines())
        short = re.findall(r"::add-mask::(\S+)", done.stdout)[0]
        assert told["MLFLOW_TRACKING_TOKEN"] in re.findall(r"::add-mask::(\S+)", done.stdout)

        def client(token: str) -> subprocess.CompletedProcess[str]:
            variables = {**os.environ, **told, "MLFLOW_TRACKING_TOKEN": token, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
            return subprocess.run(
                [sys.executable, "-c", JOB], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
            )

        deadline = time.monotonic() + 20
        while _status(gateway_url, short) != 401:  # until the CI token has ended
            assert time.monotonic() < deadline
            time.sleep(0.2)
        worked = client(told["MLFLOW_TRACKING_TOKEN"])
        assert worked.returncode == 0, worked.stderr[-2000:]
        lines = [line for line in worked.stdout.splitlines() if not line.startswith("🏃") and "View" not in line]
        assert lines == ["service:github-74 service:github-74", "PERMISSION_DENIED True"]
        ended = client(short)
        assert ended.returncode != 0
        assert "The token is not accepted" in ended.stderr
    finally:
        gateway.terminate()
        gateway.communicate(timeout=30)
        runner.shutdown()
        runner.server_close()
    assert TOKENS["user:admin"] not in done.stdout


def _status(url: str, token: str) -> int:
    done = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "@-", f"{url}/v1/registries"],
        input=f"Authorization: Bearer {token}\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout)
