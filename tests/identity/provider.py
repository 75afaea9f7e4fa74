"""A real OpenID provider, an unmodified MLflow client, and the gateway between it and a real server.

The provider (npm's oidc-provider, certified by the OpenID Foundation) issues a JWT access token by client credentials;
the client sends it as MLFLOW_TRACKING_TOKEN. Run by `.ci/run`; needs node and npm. Exit status 1 if a step failed.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from service.journal import schema
from tests.conftest import ROOT, free_port, start_mlflow, stop_mlflow, write_configuration
from tests.faults.test_process import ready, start

PROVIDER = "oidc-provider@9.13.3"
AUDIENCE = "https://registry-gateway.example"
CLIENT = """
import mlflow
from mlflow.exceptions import RestException
client = mlflow.MlflowClient()
client.create_registered_model("by-token")
run = client.create_run("0")
client.log_metric(run.info.run_id, "accuracy", 0.9)
version = client.create_model_version("by-token", f"runs:/{run.info.run_id}/model", run.info.run_id)
print("registered", version.version, [model.name for model in client.search_registered_models()])
try:
    client.delete_registered_model("by-token")
except RestException as error:
    print("denied", error.error_code, "service:robot" in str(error))
"""
REFUSED = """
import mlflow
from mlflow.exceptions import MlflowException
try:
    mlflow.MlflowClient().search_registered_models()
except MlflowException as error:
    print("refused", error.error_code, "not accepted" in str(error))
"""


def install(directory: Path) -> Path:
    """Install the provider into *directory*; return the script beside it."""
    directory.mkdir()
    (directory / "package.json").write_text("{}")
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", PROVIDER], cwd=directory, check=True
    )
    return Path(shutil.copy(ROOT / "tests/identity/provider.mjs", directory))


def token(issuer: str, secret: str, audience: str) -> str:
    """Ask for an access token as any client would (RFC 6749, section 4.4; RFC 8707)."""
    fields = {"grant_type": "client_credentials", "resource": audience, "scope": "models"}
    basic = base64.b64encode(f"robot:{secret}".encode()).decode()
    request = urllib.request.Request(
        f"{issuer}/token", urllib.parse.urlencode(fields).encode(), {"Authorization": f"Basic {basic}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)["access_token"]


def client(script: str, port: int, bearer: str) -> list[str]:
    """Run an MLflow client that knows the token and the gateway's address, and nothing else."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    own = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_TRACKING_TOKEN": bearer}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**clean, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    return done.stdout.splitlines()


def check(what: str, found: object, wanted: object) -> bool:
    """Print whether a step went as wanted."""
    good = found == wanted
    print(f"{what}: {'ok' if good else f'FAILED, {found!r} and not {wanted!r}'}")
    return good


def main() -> int:
    """Run the steps."""
    secret = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        script = install(directory / "provider")
        provider = subprocess.Popen(
            ["node", script, "robot", secret, AUDIENCE, "https://other.example"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        server = start_mlflow(directory / "m")
        issuer = provider.stdout.readline().strip()
        configured = {
            "issuer": issuer, "audience": AUDIENCE, "jwks_url": f"{issuer}/jwks", "typ": "at+jwt",
            "principal": "service:{sub}", "groups": "group:{groups}", "require": {"client_id": "robot"},
        }  # fmt: skip
        config = write_configuration(
            directory,
            registries={"main": {"kind": "mlflow", "url": server.url}},
            authentication={"issuers": [configured]},
        )
        schema.upgrade(f"sqlite:///{directory / 'journal.db'}")
        port = free_port()
        gateway = start(config, port)
        try:
            ready(port, gateway)
            steps = ["registered 1 ['by-token']", "denied PERMISSION_DENIED True"]
            good = check(
                "an unmodified client with a token", client(CLIENT, port, token(issuer, secret, AUDIENCE)), steps
            )
            other = client(REFUSED, port, token(issuer, secret, "https://other.example"))
            good &= check("a token for somebody else", other, ["refused UNAUTHENTICATED True"])
            late = token(issuer, secret, AUDIENCE)
            provider.stdin.close()
            provider.wait(timeout=10)
            search = "import mlflow; print(len(mlflow.MlflowClient().search_registered_models()))"
            good &= check("with the provider gone", client(search, port, late), ["1"])
        finally:
            gateway.terminate()
            gateway.communicate(timeout=40)
            stop_mlflow(server)
            provider.kill()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
