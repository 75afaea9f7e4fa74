"""MLflow's client meets the same answers through the gateway as directly: each flow runs twice and is compared."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import secrets
import sys
from collections import Counter

import pytest

from tests.conftest import ROOT, TOKENS, free_port, write_configuration
from tests.faults.proxy import proxied
from tests.faults.test_process import ready, start

DIFFERENCES = {
    ("experiments", "twice"): "the statement of the server's database is cut out of the message",
}
"""(flow, step) -> why its answer may differ."""
EXCHANGES = {
    (
        "run_search",
        "POST",
        "/api/2.0/mlflow/runs/search?",
    ): "a made-up page token is refused by the gateway, not by MLflow",
    ("experiments", "POST", "/api/2.0/mlflow/experiments/create?"): "as above",
    ("artifacts", "GET", "/api/3.0/mlflow/server-info?"): "presigned uploads and MLflow's own gateway are refused",
}
"""(flow, method, path) -> why its exchange may differ."""
RACING = {
    ("autolog", "/api/2.0/mlflow/runs/get?run_uuid=<id>&run_id=<id>"),
    ("prompts", "/api/2.0/mlflow/registered-models/get?name=prompts-<side>"),
    ("prompts", "/api/2.0/mlflow/registered-models/search?"),
    ("traces", "/api/3.0/mlflow/traces?"),
    ("traces", "/v1/traces?"),
    ("traces", "/api/2.0/mlflow-artifacts/artifacts/<experiment>/traces/tr-<id>/artifacts/traces.json?"),
}
"""Written, or read while it is written, by a thread of the client's own: how often and with what differs from run to
run. That it succeeded is compared."""


async def side(uri: str, token: str, owner: str) -> dict:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_TRACKING_TOKEN": TOKENS["user:admin"],
        "CONFORMANCE_OWNER": owner,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.conformance.side", token,
        env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()[-3000:]
    return json.loads(out.decode().splitlines()[-1])


@pytest.fixture(scope="module")
def both(mlflow_server, tmp_path_factory) -> tuple[dict, dict]:
    directory = tmp_path_factory.mktemp("conformance")
    config = write_configuration(directory, registries={"main": {"kind": "mlflow", "url": mlflow_server.url}})
    port = free_port()
    gateway = start(config, port)

    async def run() -> tuple[dict, dict]:
        async with proxied(mlflow_server.url) as proxy:
            direct = await side(proxy.url, secrets.token_hex(4), getpass.getuser())
        return direct, await side(f"http://127.0.0.1:{port}", secrets.token_hex(4), "user:admin")

    try:
        ready(port, gateway)
        return asyncio.run(run())
    finally:
        gateway.terminate()
        gateway.communicate(timeout=30)


def test_each_flow_answers_the_same(both):
    direct, through = both
    differ = {}
    for name, result in direct.items():
        assert result["failure"] is None, f"{name}, directly: {result['failure']}"
        differ[name, "to its end"] = through[name]["failure"]
        for (step, expected), (_, found) in zip(result["answers"], through[name]["answers"], strict=False):
            differ[name, step] = None if found == expected else f"directly {expected}, through the gateway {found}"
    found = {key: text for key, text in differ.items() if text is not None}
    assert {key: text for key, text in found.items() if key not in DIFFERENCES} == {}
    assert set(DIFFERENCES) <= set(found), "a difference that is none any more"


def _canonical(exchange):
    """Give one text to equal exchanges: the order of an object's keys says nothing."""
    return json.dumps(exchange, sort_keys=True)


def test_each_exchange_is_the_same(both):
    direct, through = both
    differ: dict[tuple[str, str, str], list[str]] = {}
    for name, result in direct.items():
        ours, theirs = (Counter(map(_canonical, given["exchanges"])) for given in (through[name], result))
        for sign, items in (("-", theirs - ours), ("+", ours - theirs)):
            for item in items:
                method, path, status, *_ = json.loads(item)
                if (name, path.partition("filter=")[0]) in RACING and status == 200:
                    continue
                differ.setdefault((name, method, path), []).append(f"{sign} {item}")
    unexpected = [line for key, lines in differ.items() if key not in EXCHANGES for line in lines]
    assert not unexpected, "\n".join([item["failure"] or "" for item in through.values()] + unexpected)
    assert set(EXCHANGES) <= set(differ), "a difference that is none any more"
