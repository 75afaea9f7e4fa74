"""Rolling back, quarantine, and taking down."""

from __future__ import annotations

import pytest

from tests.client import Client
from tests.promotion.flow import V1, alias_of, ask, promote, register, satisfy, simple

LIVE = f"{V1}/iris/environments/production"


async def live(it, client, count=3):
    """Promote *count* versions one after the other; return them."""
    versions = [await register(it, client) for _ in range(count)]
    for version in versions:
        assert (await ask(client, "promotions", version)).status == 200
    return versions


async def test_back_to_what_was_live_before(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second, third = await live(it, client)
        answer = await ask(client.be("user:lead"), "rollbacks", reason="latency")
        assert (answer.status, answer.json["before"], answer.json["after"]) == (200, third, second)
        assert alias_of(it) == second
        event = (await it.events(action="environment:rollback", phase="outcome"))[-1]["data"]
        assert (event["reason"], event["after"]["version"]) == ("latency", second)
        assert "commit" in event["after"]
        named = await ask(client, "rollbacks", to=first, reason="older")
        assert (named.status, alias_of(it)) == (200, first)
        history = (await client("GET", f"{LIVE}/history")).json["history"]
        assert [(item["version"], item["kind"]) for item in history][:2] == [(first, "rollback"), (second, "rollback")]


async def test_its_own_rules_judge_and_the_promotions_rules_do_not(running):
    async with running() as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        for version in (first, second):
            await satisfy(client, version)
            assert (await promote(client, version)).status == 200
        lead = client.be("user:lead")
        never = await register(it, client)
        closed = await ask(lead, "rollbacks", to=never, reason="r")
        assert closed.status == 409
        unmet = [item["rule"] for item in closed.json["verdict"]["findings"] if not item["passed"]]
        assert unmet == ["was-live-before"]
        assert (await ask(lead, "rollbacks", to=first, reason="r")).status == 200  # its approval is stale by now


@pytest.mark.parametrize("fields", [{}, {"reason": ""}, {"reason": "  "}, {"reason": "r", "to": "01"}])
async def test_a_rollback_needs_a_reason(running, tmp_path, fields):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await live(it, client, 2)
        assert (await ask(client, "rollbacks", **fields)).status == 400
        assert alias_of(it) == "2"


async def test_the_right_to_roll_back_is_its_own(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await live(it, client, 2)
        denied = await ask(client.be("service:ci"), "rollbacks", reason="r")  # may promote
        assert (denied.status, "environment:rollback" in denied.json["detail"]) == (403, True)


async def test_nothing_to_roll_back_to(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await live(it, client, 1)
        answer = await ask(client, "rollbacks", reason="r")
        assert (answer.status, "No version that was live" in answer.json["detail"]) == (404, True)


async def test_a_version_in_quarantine_is_passed_over_and_cannot_become_live(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second, third = await live(it, client)
        lead = client.be("user:lead")
        quarantine = f"{V1}/iris/versions/{{}}/quarantine"
        placed = await lead("POST", quarantine.format(second), {"reason": "leaks"})
        assert (placed.status, placed.json["live_in"]) == (201, {})
        for verb, fields in (("promotions", {"version": second}), ("rollbacks", {"to": second, "reason": "r"})):
            closed = await client("POST", f"{LIVE}/{verb}", fields)
            unmet = [item["because"] for item in closed.json["verdict"]["findings"] if not item["passed"]]
            assert (closed.status, unmet) == (409, ["the version is in quarantine: leaks"])
        assert (await ask(client, "rollbacks", reason="r")).json["after"] == first
        twice = await lead("POST", quarantine.format(second), {"reason": "again"})
        assert twice.status == 409
        assert (await lead("DELETE", quarantine.format(second))).status == 204
        assert (await lead("DELETE", quarantine.format(second))).status == 404
        assert (await ask(client, "promotions", second)).status == 200
        assert third


async def test_quarantine_of_what_is_live_says_what_to_roll_back_to(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second = await live(it, client, 2)
        placed = await client("POST", f"{V1}/iris/versions/{second}/quarantine", {"reason": "leaks"})
        assert placed.json["live_in"] == {"production": first}
        assert alias_of(it) == second
        shown = (await client("GET", f"{V1}/iris/versions/{second}")).json
        assert shown["quarantine"] == "leaks"


async def test_taking_down_takes_every_mark(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        await promote(client, version)
        assert it.memory.models["iris"]["versions"][version]["current_stage"] == "Production"
        assert (await ask(client.be("service:ci"), "retirements", reason="r")).status == 403
        answer = await ask(client.be("user:lead"), "retirements", reason="model is withdrawn")
        assert (answer.status, answer.json["before"]) == (200, version)
        assert alias_of(it) is None
        assert it.memory.models["iris"]["versions"][version]["current_stage"] == "Archived"
        assert (await client("GET", LIVE)).status == 404
        assert [item.until is None for item in await it.application.journal.periods("main", "iris")] == [False]
        assert (await ask(client, "retirements", reason="r")).status == 404
        assert (await ask(client, "retirements")).status == 400
