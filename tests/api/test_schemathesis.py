"""Every operation of the OpenAPI document, with generated requests: no server error, every answer as described."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.routes import build_litestar, openapi_document
from tests.conftest import TOKENS, free_port

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    ignored_auth,
]
HEADERS = {"Authorization": f"Bearer {TOKENS['user:admin']}", "Content-Type": "application/json"}
schema = schemathesis.openapi.from_dict(json.loads(openapi_document(build_litestar())))


def post(base: str, path: str, message: dict) -> dict:
    request = urllib.request.Request(
        f"{base}/api/2.0/mlflow/{path}", method="POST", data=json.dumps(message).encode(), headers=HEADERS
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A server over a registry in memory that holds version 1 of the model ``0`` in the registry ``main``."""
    port = free_port()
    command = [sys.executable, "-m", "tests.api.memory_server", str(tmp_path_factory.mktemp("api")), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            urllib.request.urlopen(f"{url}/readyz").read()
        except OSError:
            time.sleep(0.05)
        else:
            break
    post(url, "registered-models/create", {"name": "0"})
    run_id = post(url, "runs/create", {"experiment_id": "0"})["run"]["info"]["run_id"]
    post(url, "model-versions/create", {"name": "0", "source": f"runs:/{run_id}/m", "run_id": run_id})
    yield url
    process.terminate()
    process.wait(timeout=30)


@schema.parametrize()
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_each_operation(case, base):
    if case.path_parameters.get("registry"):
        case.path_parameters["registry"] = "main"  # every other name is one answer: 404
    if case.path_parameters.get("environment") and len(case.path_parameters["environment"]) % 2:
        case.path_parameters["environment"] = "production"
    authorization = {"Authorization": HEADERS["Authorization"]}
    case.call_and_validate(base_url=base, headers=authorization, checks=CHECKS, timeout=60)  # a long poll takes 30
