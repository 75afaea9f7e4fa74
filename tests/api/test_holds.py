"""Legal holds and unsettled operations by their routes, and retention beside a running gateway."""

from __future__ import annotations

import asyncio

import pytest

from service.audit import Operation
from service.change import AliasSet
from service.journal.retention import DAY_SECONDS, Retention
from service.journal.verify import verify
from service.model import Call, Need, Principal
from tests.client import Client
from tests.contract.test_journal import beside

MLFLOW, HOLDS = "/api/2.0/mlflow", "/v1/audit/holds"


async def test_a_hold_is_placed_listed_recorded_and_lifted(running):
    async with running() as it:
        client = Client(it.application.asgi)
        body = {"registry": "main", "model": "iris", "reason": "case 4711"}
        placed = await client("POST", HOLDS, body)
        assert (placed.status, placed.json["model"], placed.json["by"]) == (201, "iris", "user:admin")
        assert (await client("GET", HOLDS)).json == {"holds": [placed.json]}
        whole = await client("POST", HOLDS, {"registry": "main", "reason": "all of it"})
        assert (whole.status, whole.json["model"]) == (201, None)
        assert (await client("DELETE", f"{HOLDS}/{placed.json['id']}")).status == 204
        assert (await client("DELETE", f"{HOLDS}/{placed.json['id']}")).status == 404
        assert [item["id"] for item in (await client("GET", HOLDS)).json["holds"]] == [whole.json["id"]]
        events = [event["data"] for event in await it.events(action="audit:hold")]
        assert [(item["call"], item["model"], item["outcome"]) for item in events] == [
            ("placeHold", "iris", "succeeded"),
            ("placeHold", None, "succeeded"),
            ("liftHold", "iris", "succeeded"),
        ]
        assert events[0]["after"] == events[2]["before"] == {"hold": placed.json["id"]}
        assert events[0]["reason"] == "case 4711"


@pytest.mark.parametrize("who", ["user:viewer", "service:ci", "user:lead"])
async def test_holds_need_their_right(running, who):
    async with running() as it:
        client = Client(it.application.asgi)
        placed = (await client("POST", HOLDS, {"registry": "main", "reason": "r"})).json["id"]
        other = client.be(who)
        assert (await other("POST", HOLDS, {"registry": "main", "reason": "r"})).status == 403
        assert (await other("GET", HOLDS)).status == 403
        assert (await other("DELETE", f"{HOLDS}/{placed}")).status == 404
        assert (await other("GET", "/v1/audit/unsettled")).status == 403
        assert len((await client("GET", HOLDS)).json["holds"]) == 1


@pytest.mark.parametrize("body", [{}, {"registry": "main"}, {"registry": "main", "reason": " "}, {"reason": "r"}])
async def test_a_hold_says_of_what_and_why(running, body):
    async with running() as it:
        assert (await Client(it.application.asgi)("POST", HOLDS, body)).status == 400


async def test_a_hold_of_an_unknown_registry_is_none(running):
    async with running() as it:
        client = Client(it.application.asgi)
        assert (await client("POST", HOLDS, {"registry": "nowhere", "reason": "r"})).status == 404
        assert (await client("GET", HOLDS)).json == {"holds": []}


async def test_a_running_gateway_is_archived_and_pruned_around_its_holds(running, tmp_path):
    async with running() as it:
        client = Client(it.application.asgi)
        for name in ("iris", "rose"):
            await client("POST", f"{MLFLOW}/registered-models/create", {"name": name})
            await client("POST", f"{MLFLOW}/registered-models/set-tag", {"name": name, "key": "k", "value": "v"})
        await client("POST", HOLDS, {"registry": "main", "model": "iris", "reason": "case 4711"})
        url = it.application.configuration.journal_url()
        before = len(await it.events())
        later = it.application.trail.now() + 2 * DAY_SECONDS
        done = await Retention(url, tmp_path / "a", keep_days=1, now=lambda: later, source="/test").run()
        assert done == (before, 3)  # of rose: the intent of its creation, and its tag
        left = await it.events()
        assert {event["data"]["model"] for event in left[:-1]} == {"iris", "rose"}
        assert left[-1]["type"] == "registry-gateway.audit.prune.outcome"
        assert (await client("POST", f"{MLFLOW}/registered-models/create", {"name": "lily"})).status == 200
        assert await asyncio.to_thread(verify, url, tmp_path / "a") == (before + 3, None)
        assert await asyncio.to_thread(verify, url) == (before + 3 - 3, None)


async def test_a_key_whose_operation_is_archived_is_refused(running, tmp_path):
    async with running() as it:
        client = Client(it.application.asgi)
        await client("POST", f"{MLFLOW}/registered-models/create", {"name": "iris"})
        call = ("POST", f"{MLFLOW}/registered-models/set-tag", {"name": "iris", "key": "k", "value": "v"})
        key = [("idempotency-key", "once")]
        assert (await client(*call, headers=key)).status == 200
        await client("POST", f"{MLFLOW}/registered-models/create", {"name": "the last event stays"})
        later = it.application.trail.now() + 2 * DAY_SECONDS
        url = it.application.configuration.journal_url()
        await Retention(url, tmp_path / "a", keep_days=1, now=lambda: later, source="/test").run()
        await beside(url, "DELETE FROM answers")  # they are kept for a day
        it.memory.models["iris"]["tags"] = {"k": "somebody else's"}
        again = await client(*call, headers=key)
        assert again.status == 422
        assert "which is archived; take a new one" in str(again.json)
        assert it.memory.models["iris"]["tags"] == {"k": "somebody else's"}


async def test_what_nobody_knows_is_listed_with_its_age(running):
    async with running() as it:
        client, trail = Client(it.application.asgi), it.application.trail
        made = []
        for outcome in (None, "unknown", "succeeded"):
            call = Call(
                principal=Principal("user:anna"),
                registry="main",
                name="setRegisteredModelAlias",
                needs=(Need("alias:set", f"models/iris-{outcome}/aliases/blue"),),
                change=AliasSet(f"iris-{outcome}", "blue", "1"),
            )
            operation = Operation.opened(call, trail.now() - 60)
            await trail.intent(operation)
            if outcome is not None:
                await trail.outcome(operation, outcome)
            made.append(operation.id)
        found = (await client("GET", "/v1/audit/unsettled")).json
        states = {item["operation"]: item["state"] for item in found["operations"]}
        assert states == {made[0]: "open", made[1]: "unknown"}
        assert found["next_cursor"] is None
        one = (await client("GET", "/v1/audit/unsettled?limit=1")).json
        rest = (await client("GET", f"/v1/audit/unsettled?limit=1&cursor={one['next_cursor']}")).json
        assert {item["operation"] for item in one["operations"] + rest["operations"]} == set(states)
        assert {(item["actor"], item["action"]) for item in found["operations"]} == {("user:anna", "alias:set")}
        assert all(0 <= item["age_seconds"] < 60 for item in found["operations"])
