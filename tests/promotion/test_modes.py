"""Environments that observe or warn: judged and recorded as if they were enforced, and no answer is changed."""

from __future__ import annotations

import pytest

from tests.client import Client
from tests.promotion.flow import ask, register, simple

FLOOR = "[{name: floor, require: 'candidate.metrics.accuracy >= 0.9', because: too low}]"


@pytest.mark.parametrize("mode", ["observe", "warn"])
async def test_our_own_route_promotes_and_says_what_would_be(running, tmp_path, mode):
    async with running(environments=simple(tmp_path, f"mode: {mode}", FLOOR)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=0.5)
        answer = await ask(client, "promotions", version)
        assert (answer.status, answer.json["state"]) == (200, "succeeded")
        verdict = answer.json["verdict"]
        assert (verdict["allowed"], verdict["mode"], verdict["would_refuse"]) == (False, mode, True)
        assert answer.headers.get("registry-gateway-would-refuse") == ("floor" if mode == "warn" else None)
        recorded = (await it.events(action="environment:promote", phase="outcome"))[-1]["data"]["verdict"]
        assert recorded["would_refuse"] is True


@pytest.mark.parametrize("mode", ["observe", "warn"])
async def test_a_dialect_write_goes_through_as_without_a_gate(running, tmp_path, mode):
    more = f"mode: {mode}"
    text = simple(tmp_path, more, FLOOR).replace("x", "x")
    async with running(environments=text) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=0.5)
        scientist = client.be("user:scientist")  # may set aliases, may not promote to production
        answer = await scientist.rpc("POST", "registered-models/alias", name="iris", alias="champion", version=version)
        assert (answer.status, answer.json) == (200, {})
        assert answer.headers.get("registry-gateway-would-refuse") == ("floor" if mode == "warn" else None)
        data = (await it.events(action="alias:set", phase="outcome"))[-1]["data"]
        assert (data["verdict"]["would_refuse"], data["environment"]) == (True, "production")
        assert any(note.startswith("would_refuse: no policy allows environment:promote") for note in data["notes"])
        periods = await it.application.journal.periods("main", "iris")
        assert [(item.version, item.until) for item in periods] == [(version, None)]
        taken = await scientist.rpc("DELETE", "registered-models/alias", name="iris", alias="champion")
        assert taken.status == 200
        assert [item.until is None for item in await it.application.journal.periods("main", "iris")] == [False]


async def test_an_older_version_beside_a_newer_one_in_a_stage_is_not_recorded_as_live(running, tmp_path):
    text = simple(tmp_path, "mode: observe")
    (tmp_path / "environments.yaml").write_text(
        (tmp_path / "environments.yaml").read_text().replace("{alias: champion}", "{stage: Production}")
    )
    async with running(environments=text) as it:
        client = Client(it.application.asgi)
        old, new = await register(it, client), await register(it, client)
        for version in (new, old):
            move = {"name": "iris", "version": version, "stage": "Production", "archive_existing_versions": False}
            assert (await client.rpc("POST", "model-versions/transition-stage", **move)).status == 200
        periods = await it.application.journal.periods("main", "iris")
        assert [(item.version, item.until) for item in periods] == [(new, None)]
        notes = (await it.events(action="stage:set", phase="outcome"))[-1]["data"]["notes"]
        assert any(note.startswith("would_refuse: no archive_existing_versions") for note in notes)


async def test_what_cannot_be_judged_changes_no_answer(running, tmp_path):
    async with running(environments=simple(tmp_path, "mode: observe", FLOOR)) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        missing = await client.rpc("POST", "registered-models/alias", name="iris", alias="champion", version="99")
        plain = await client.rpc("POST", "registered-models/alias", name="iris", alias="blue", version="99")
        assert (missing.status, missing.json["error_code"]) == (plain.status, plain.json["error_code"])


async def test_nothing_is_sealed_where_nothing_is_enforced(running, tmp_path):
    async with running(environments=simple(tmp_path, "mode: observe", FLOOR)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await ask(client, "promotions", version)
        run = it.memory.models["iris"]["versions"][version]["run_id"]
        answer = await client.rpc("POST", "runs/log-metric", run_id=run, key="accuracy", value=0.1, timestamp=2)
        assert answer.status == 200


async def test_a_warning_is_said_and_closes_nothing(running, tmp_path):
    rules = FLOOR.replace("because: too low", "because: too low, severity: warn")
    async with running(environments=simple(tmp_path, "", rules)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=0.5)
        verdict = (await ask(client, "promotions", version)).json["verdict"]
        floor = verdict["findings"][-1]
        assert (verdict["allowed"], floor["passed"], floor["severity"]) == (True, False, "warn")
        assert floor["self_reported"] == ["candidate.metrics.accuracy"]
