"""The revision of the policy: in each answer that was decided, in /readyz and in the metrics; followed in seconds."""

from __future__ import annotations

import asyncio
import time

import pytest

from service import app
from tests.client import V1, Client
from tests.conftest import ROOT

HEADER = "registry-gateway-policy-revision"


@pytest.fixture
def own_rows(tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text((ROOT / "policies/policy.csv").read_text())
    return rows


def with_rows(rows):
    return {"access": {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}}


@pytest.mark.parametrize(
    ("method", "target", "body", "who", "status"),
    [
        ("POST", "/api/2.0/mlflow/registered-models/create", {"name": "new"}, "user:admin", 200),
        ("POST", "/api/2.0/mlflow/registered-models/create", {"name": "new"}, "user:viewer", 403),
        ("GET", "/api/2.0/mlflow/registered-models/get?name=iris", None, "user:viewer", 200),
        ("GET", "/api/2.0/mlflow/registered-models/search", None, "user:viewer", 200),
        ("GET", "/api/2.0/mlflow/registered-models/get?name=none", None, "user:admin", 404),
        ("GET", f"{V1}/iris/environments/production/history", None, "user:viewer", 200),
        ("POST", f"{V1}/iris/environments/production/promotions", {"version": "1"}, "user:viewer", 403),
        ("GET", "/v1/audit/events", None, "user:viewer", 403),
        ("GET", "/v1/audit/events", None, "user:admin", 200),
    ],
)
async def test_each_answer_that_was_decided_names_the_revision(running, method, target, body, who, status):
    async with running() as it:
        client = Client(it.application.asgi)
        assert (await client.rpc("POST", "registered-models/create", name="iris")).status == 200
        answer = await client.be(who)(method, target, body)
        assert answer.status == status, answer.body
        assert answer.headers[HEADER] == it.application.authorizer.revision


@pytest.mark.parametrize(
    ("target", "who", "status"),
    [
        ("/livez", None, 200),
        ("/readyz", None, 200),
        (f"{V1}/iris/aliases", None, 401),
        ("/v1/nowhere", "user:admin", 404),
    ],
)
async def test_an_answer_that_nobody_decided_names_none(running, target, who, status):
    async with running() as it:
        client = Client(it.application.asgi)
        assert HEADER in (await client.rpc("POST", "registered-models/create", name="iris")).headers
        answer = await client.be(who)("GET", target)
        assert answer.status == status
        assert HEADER not in answer.headers


async def metrics(client):
    lines = (await client.be(None)("GET", "/metrics")).body.decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if line.startswith("registry_gateway_policy"))


async def test_a_changed_file_is_in_force_and_a_bad_one_is_told(running, own_rows):
    async with running(**with_rows(own_rows)) as it:
        client = Client(it.application.asgi)
        before = await client.rpc("POST", "registered-models/create", name="iris")
        first = await metrics(client)
        assert first[f'registry_gateway_policy_info{{revision="{before.headers[HEADER]}"}}'] == "1.0"
        assert abs(float(first["registry_gateway_policy_loaded_timestamp_seconds"]) - time.time()) < 60
        assert first["registry_gateway_policy_bad"] == "0.0"

        fresh = own_rows.with_name("fresh.csv")
        fresh.write_text(own_rows.read_text() + "p, group:platform, *, *, *, deny\n")
        fresh.rename(own_rows)
        await it.application.follow_files()
        answer = await client.rpc("GET", "registered-models/get", name="iris")
        assert answer.status == 403
        assert answer.headers[HEADER] != before.headers[HEADER]
        second = await metrics(client)
        assert second[f'registry_gateway_policy_info{{revision="{answer.headers[HEADER]}"}}'] == "1.0"
        assert len(second) == len(first)
        loaded = "registry_gateway_policy_loaded_timestamp_seconds"
        assert float(second[loaded]) > float(first[loaded])

        own_rows.write_text("p, group:platform\n")
        await it.application.follow_files()
        assert (await metrics(client))["registry_gateway_policy_bad"] == "1.0"
        problems = (await client.be(None)("GET", "/readyz")).json
        assert problems["problems"] == {"policy": "rows.csv:1:18: the log says what is wrong"}
        assert "2 fields instead of 6" in it.application.health.problems["policy"]
        assert problems["policy"] == answer.headers[HEADER]
        assert (await metrics(client))[loaded] == second[loaded]


async def test_files_are_looked_at_again_whatever_happens(running, own_rows, monkeypatch):
    looked = asyncio.Semaphore(0)

    async def fail():
        looked.release()
        raise RecursionError

    assert app.RELOAD_SECONDS <= 5
    monkeypatch.setattr(app, "RELOAD_SECONDS", 0.001)
    async with running(**with_rows(own_rows)) as it:
        it.application.authorizer.follow = fail
        for _ in range(3):
            await looked.acquire()
        told = (await Client(it.application.asgi, None)("GET", "/readyz")).json
        assert "the log says" in told["problems"]["policy"]
        assert "RecursionError" in it.application.health.problems["policy"]
        it.application.configuration.path("keys.yaml").write_text("[]\n")
        await it.application.follow_files()
        assert (await Client(it.application.asgi)("GET", "/v1/registries")).status == 401
