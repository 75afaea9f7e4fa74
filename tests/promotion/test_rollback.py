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


@pytest.mark.parametrize("way", ["copy", "copy of the copy", "same run", "another model"])
@pytest.mark.parametrize("emergency", [None, {"reason": "r", "ticket": "t"}])
async def test_what_is_made_from_the_same_is_in_quarantine_too(running, tmp_path, way, emergency):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, other = await register(it, client), await register(it, client)
        quarantine = f"{V1}/iris/versions/{first}/quarantine"
        assert (await client("POST", quarantine, {"reason": "leaks"})).status == 201
        model = "rose" if way == "another model" else "iris"
        if model == "rose":
            await client.rpc("POST", "registered-models/create", name=model)
        native = it.memory.models["iris"]["versions"][first]
        again = {"source": native["source"], "run_id": native["run_id"]}
        made = {"version": first}
        for _ in range(2 if way == "copy of the copy" else 1):
            fields = again if way == "same run" else {"source": f"models:/iris/{made['version']}"}
            answer = await client.rpc("POST", "model-versions/create", name=model, **fields)
            made = answer.json["model_version"]
        closed = await ask(client, "promotions", made["version"], model=model, emergency=emergency)
        (because,) = [item["because"] for item in closed.json["verdict"]["findings"] if not item["passed"]]
        assert (closed.status, "made from the same run or files" in because) == (409, True)
        assert ("leaks" in because) is (model == "iris")  # a reason is for the readers of the model
        assert (await client("GET", f"{V1}/{model}/versions/{made['version']}")).json["quarantine"] in because
        assert (await client("DELETE", f"{V1}/{model}/versions/{made['version']}/quarantine")).status == 404
        assert (await ask(client, "promotions", other)).status == 200
        assert (await client("DELETE", quarantine)).status == 204
        assert (await ask(client, "promotions", made["version"], model=model)).status == 200


async def test_files_outside_the_registry_are_in_quarantine_where_they_are(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        made = it.memory.models["iris"]["versions"]
        for source in ("models:/m-1", "models:/m-1", "models:/m-1"):
            number = str(len(made) + 1)
            made[number] = {
                "name": "iris", "version": number, "creation_timestamp": 1, "last_updated_timestamp": 1, "tags": {},
                "current_stage": "None", "description": "", "source": source, "run_id": "", "status": "READY",
                "storage": "s3://bucket/b" if number == "3" else "s3://bucket/a",
            }  # fmt: skip
        assert (await client("POST", f"{V1}/iris/versions/1/quarantine", {"reason": "leaks"})).status == 201
        assert [(await ask(client, "promotions", version)).status for version in "123"] == [409, 409, 200]


async def test_a_rollback_passes_over_a_copy_of_what_is_in_quarantine(running, tmp_path):
    async with running(environments=simple(tmp_path, "seal: live")) as it:
        client = Client(it.application.asgi)
        first, second = await live(it, client, 2)
        made = await client.rpc("POST", "model-versions/create", name="iris", source=f"models:/iris/{second}")
        copy = made.json["model_version"]["version"]
        third = await register(it, client)
        for version in (copy, third):
            assert (await ask(client, "promotions", version)).status == 200
        placed = await client("POST", f"{V1}/iris/versions/{second}/quarantine", {"reason": "leaks"})
        assert placed.status == 201
        assert (await ask(client, "rollbacks", reason="r")).json["after"] == first


async def test_a_quarantine_of_a_deleted_version_holds_for_copies_and_can_be_lifted(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        made = await client.rpc("POST", "model-versions/create", name="iris", source=f"models:/iris/{version}")
        copy = made.json["model_version"]["version"]
        quarantine = f"{V1}/iris/versions/{version}/quarantine"
        assert (await client("POST", quarantine, {"reason": "leaks"})).status == 201
        assert (await client.rpc("DELETE", "model-versions/delete", name="iris", version=version)).status == 200
        assert (await ask(client, "promotions", copy)).status == 409
        assert (await client("DELETE", quarantine)).status == 204
        assert (await ask(client, "promotions", copy)).status == 200


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
