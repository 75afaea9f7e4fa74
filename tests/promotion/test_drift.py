"""Marks moved beside the gateway: shown, recorded once, not counted as promoted, reverted where that is configured."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from service.backends.memory import MemoryTransport
from tests.client import Client
from tests.promotion.flow import V1, ask, environments, register, simple

LIVE = f"{V1}/iris/environments/production"


async def check(client: Client, environment: str = "production"):
    answer = await client("POST", f"{V1}/iris/environments/{environment}/checks", {})
    assert answer.status == 200, answer.body
    return answer.json


async def test_a_mark_moved_beside_the_gateway_is_drift_and_recorded_once(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await ask(client, "promotions", first)
        assert (await check(client))["state"] == "agrees"
        it.memory.models["iris"]["aliases"]["champion"] = second
        live = (await client("GET", LIVE)).json
        assert (live["version"], live["drifted"], live["promotion"]) == (second, True, None)
        with capture_logs() as logs:
            states = [await check(client) for _ in range(2)]
        (line,) = [item for item in logs if item["event"] == "drift"]
        assert (line["recorded"], line["recorded_by"], line["live"]) == (first, "user:admin", second)
        assert line["principal"].startswith("service:")
        assert "moved beside the gateway" in line["reason"]
        assert [(item["state"], item["recorded"], item["live"]) for item in states] == [
            ("drifted", first, second),
            ("drifted", second, second),
        ]
        found = await it.events(action="environment:drift")
        assert [(event["data"]["before"], event["data"]["after"]) for event in found] == [
            ({"version": first}, {"version": second})
        ]
        history = (await client("GET", f"{LIVE}/history")).json["history"]
        assert [(item["version"], item["kind"]) for item in history] == [(second, "drift"), (first, "promotion")]
        assert (await client("GET", LIVE)).json["drifted"] is True
        assert (await ask(client, "promotions", first)).status == 200
        assert (await client("GET", LIVE)).json["drifted"] is False


async def test_the_paced_look_finds_every_model(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        for model in ("iris", "rose", "lily"):
            version = await register(it, client, model=model)
            await ask(client, "promotions", version, model=model)
        backend, drift = it.application.backends["main"], it.application.drift
        assert await drift.sweep(backend) == []
        del it.memory.models["iris"]["aliases"]["champion"]
        del it.memory.models["rose"]
        found = await drift.sweep(backend)
        assert sorted((item.state, item.recorded, item.live) for item in found) == [("drifted", "1", None)] * 2
        assert await drift.sweep(backend) == []


async def test_one_process_looks_at_a_pace_for_all(running, tmp_path):
    async with running(environments=simple(tmp_path), drift_seconds=0.01) as it:
        client, leads, asked = Client(it.application.asgi), False, asyncio.Event()

        def told() -> bool:
            asked.set()
            return leads

        version = await register(it, client)
        await ask(client, "promotions", version)
        it.application.drift._leads = told
        await asked.wait()
        del it.memory.models["iris"]["aliases"]["champion"]
        for _ in range(3):
            asked.clear()
            await asked.wait()
        assert await it.events(action="environment:drift") == []
        leads = True
        async with asyncio.timeout(5):
            while not await it.events(action="environment:drift"):
                await asyncio.sleep(0.01)


async def test_drift_is_not_promoted_for_after(running, tmp_path):
    text = (
        "environments:\n  staging: {marks: [{alias: challenger}], rules: []}\n"
        "  production: {marks: [{alias: champion}], after: staging, rules: []}\n"
    )
    async with running(environments=environments(tmp_path, text)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        it.memory.models["iris"]["aliases"]["challenger"] = version
        assert (await check(client, "staging"))["state"] == "drifted"
        closed = await ask(client, "promotions", version)
        assert closed.status == 409
        assert closed.json["verdict"]["findings"][-1]["because"] == "was never live in staging by record"


@pytest.mark.parametrize("was_live", [True, False])
async def test_drift_is_reverted_where_that_is_configured(running, tmp_path, was_live):
    async with running(environments=simple(tmp_path, "on_drift: revert")) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        if was_live:
            await ask(client, "promotions", first)
        it.memory.models["iris"]["aliases"]["champion"] = second
        assert (await check(client))["state"] == "reverted"
        assert it.memory.models["iris"]["aliases"].get("champion") == (first if was_live else None)
        assert (await check(client))["state"] == "agrees"
        found = await it.events(action="environment:revert")
        assert [event["data"]["phase"] for event in found] == ["intent", "outcome"]
        assert found[1]["data"]["outcome"] == "succeeded"


async def test_a_check_needs_the_right_to_read_and_a_model(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        assert (await client("POST", f"{LIVE}/checks", {})).status == 404
        assert (await client.be(None)("POST", f"{LIVE}/checks", {})).status == 401


class Slow(MemoryTransport):
    """Reads take as long as a real server's, and are counted; written aliases are answered when `go` is set."""

    def __init__(self):
        super().__init__()
        self.reads = 0
        self.go = asyncio.Event()
        self.go.set()

    async def send(self, request, *, writes, trace=""):
        self.reads += not writes
        await asyncio.sleep(0.008)
        answer = await super().send(request, writes=writes, trace=trace)
        if writes:
            await self.go.wait()
        return answer


async def test_a_readers_checks_keep_nobody_from_a_turn(running, tmp_path):
    async with running(Slow(), environments=simple(tmp_path), lock_seconds=2) as it:
        client = Client(it.application.asgi)
        viewer = client.be("user:viewer")
        first, second = await register(it, client), await register(it, client)
        await ask(client, "promotions", first)
        before = it.memory.reads
        checks = [asyncio.create_task(viewer("POST", f"{LIVE}/checks", {})) for _ in range(500)]
        await asyncio.sleep(0.1)
        assert (await ask(client, "promotions", second)).status == 200
        answers = await asyncio.gather(*checks)
        assert {answer.status for answer in answers} == {200}
        assert {answer.json["state"] for answer in answers} <= {"agrees", "unsettled"}
        assert it.memory.reads - before < 100


async def test_a_check_during_a_change_waits_for_nothing(running, tmp_path):
    transport = Slow()
    async with running(transport, environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        transport.go.clear()
        promotion = asyncio.create_task(ask(client, "promotions", version))
        while "champion" not in it.memory.models["iris"]["aliases"]:
            await asyncio.sleep(0)
        assert (await check(client))["state"] == "unsettled"
        assert not promotion.done()
        transport.go.set()
        assert (await promotion).status == 200
        assert (await check(client))["state"] == "agrees"


async def test_a_check_sees_what_changed_before_it_was_asked_for(running, tmp_path):
    """It shares no comparison that began earlier."""
    async with running(Slow(), environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await ask(client, "promotions", first)
        earlier = asyncio.create_task(check(client))
        while not it.application.drift._checking:
            await asyncio.sleep(0)
        await asyncio.sleep(0.012)  # it has read the model
        it.memory.models["iris"]["aliases"]["champion"] = second
        later = [asyncio.create_task(check(client)) for _ in range(3)]
        assert {(await task)["state"] for task in later} == {"drifted"}
        assert (await earlier)["state"] in ("agrees", "drifted")
        assert len(await it.events(action="environment:drift")) == 1
        assert not it.application.drift._checking
        assert not it.application.drift._next


async def test_a_refusal_is_shared_too(running, tmp_path):
    async with running(Slow(), environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        answers = await asyncio.gather(*(client("POST", f"{LIVE}/checks", {}) for _ in range(20)))
        assert {answer.status for answer in answers} == {404}
        assert it.memory.reads < 10
