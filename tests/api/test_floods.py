"""Floods of refusals: each call is in the journal once, as an event or in the count of a sum; none is dropped."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from service.floods import _MAX_SUMS, Refusals
from service.model import Call, Need, Principal
from tests.api.test_promotion import register
from tests.client import V1, Client
from tests.unit.test_limits import Sums

EACH = 5


async def told(it, **filters) -> tuple[int, int]:
    """Count what the journal tells of refusals: events of their own, and those in sums."""
    events = await it.events(**filters)
    sums = [event["data"]["count"] for event in events if event["type"].endswith(".summed")]
    return len(events) - len(sums), sum(sums)


async def denied_by_mlflows_api(client, number: int):
    return await client.be("user:viewer").rpc("POST", "registered-models/create", name=f"m{number}")


async def denied_on_v1(client, number: int):
    return await client.be("user:viewer")(
        "POST", f"{V1}/m{number}/environments/production/promotions", {"version": "1"}
    )


async def rejected_by_the_gate(client, number: int):
    return await client("POST", f"{V1}/iris/environments/production/promotions", {"version": "1"})


async def malformed(client, number: int):
    return await client.rpc("POST", "registered-models/create", name=f"m\n{number}")


async def denied_telemetry(client, number: int):
    return await client.be("user:viewer").rpc("POST", "runs/log-metric", run_id="r", key="k", value=1, timestamp=number)


@pytest.mark.parametrize(
    ("call", "status", "filters"),
    [
        (denied_by_mlflows_api, 403, {"phase": "denied", "action": "model:create"}),
        (denied_on_v1, 403, {"phase": "denied", "action": "environment:promote"}),
        (rejected_by_the_gate, 409, {"phase": "rejected", "action": "environment:promote"}),
        (malformed, 400, {"phase": "rejected", "action": "request:refuse"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_flood_of_one_kind_is_summed_and_each_is_counted_once(running, call, status, filters):
    async with running(audit={"refusals_per_minute": EACH, "sinks": []}) as it:
        client = Client(it.application.asgi)
        if call is rejected_by_the_gate:
            await register(it, client)
        answers = await asyncio.gather(*(call(client, number) for number in range(40)))
        assert {answer.status for answer in answers} == {status}
        assert await told(it, **filters) == (EACH, 0)
        await it.application.refusals.flush()
        assert await told(it, **filters) == (EACH, 40 - EACH)
        await it.application.refusals.flush()
        assert await told(it, **filters) == (EACH, 40 - EACH)


async def test_kinds_have_sums_of_their_own(running):
    async with running(audit={"refusals_per_minute": 1, "sinks": []}) as it:
        client = Client(it.application.asgi)
        for principal, times in (("user:viewer", 3), ("service:ci", 4)):
            for number in range(times):
                answer = await client.be(principal).rpc("DELETE", "registered-models/delete", name=f"m{number}")
                assert answer.status == 403
        await denied_by_mlflows_api(client, 1)
        await it.application.refusals.flush()
        sums = [event["data"] for event in await it.events(phase="denied") if event["type"].endswith("summed")]
        found = {(data["actor"]["subject"], data["action"], data["resource"], data["count"]) for data in sums}
        assert found == {
            ("user:viewer", "model:delete", "models/*", 2),
            ("service:ci", "model:delete", "models/*", 3),
        }


async def test_while_the_journal_is_down_refusals_are_counted_and_told_later(running):
    journal = {"url": "sqlite:///journal.db", "deadline_seconds": 0.2}
    async with running(journal=journal, audit={"refusals_per_minute": EACH, "sinks": []}) as it:
        client = Client(it.application.asgi)
        other = sqlite3.connect(it.application.configuration.path("journal.db"), isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        answers = await asyncio.gather(*(denied_by_mlflows_api(client, number) for number in range(200)))
        assert {answer.status for answer in answers} == {403}  # no stays no
        await it.application.refusals.flush()
        assert it.application.refusals.waiting == 200
        other.execute("ROLLBACK")
        other.close()
        while it.application.refusals.waiting:
            await it.application.refusals.flush()
        assert await told(it, phase="denied") == (0, 200)


async def test_a_stop_writes_the_sums(running):
    async with running(audit={"refusals_per_minute": EACH, "sinks": []}) as it:
        for number in range(20):
            await denied_telemetry(Client(it.application.asgi), number)
            await denied_by_mlflows_api(Client(it.application.asgi), number)
        path = it.application.configuration.path("journal.db")
    with sqlite3.connect(path) as connection:
        query = "SELECT count(*) FROM events WHERE action = 'model:create' AND type LIKE ?"
        assert connection.execute(query, ("%.denied",)).fetchone() == (EACH,)
        query = "SELECT json_extract(body, '$.data.count') FROM events WHERE action = 'model:create' AND type LIKE ?"
        assert connection.execute(query, ("%.summed",)).fetchall() == [(20 - EACH,)]


async def test_many_kinds_are_bounded_and_none_is_lost():
    trail, number = Sums(), 5_000
    refusals = Refusals(trail, 1, lambda: 0.0)
    admitted = 0
    for index in range(number):
        operation = _operation(f"user:{index % 2_500}")
        admitted += refusals.admits(operation, "denied")
    assert admitted == 20
    assert len(refusals._floods._over) <= _MAX_SUMS + 1
    await refusals.flush()
    assert sum(item["count"] for item in trail.documents) == number - admitted


def _operation(subject: str):
    from service.audit import Operation

    need = Need("model:delete", "models/iris")
    return Operation.opened(Call(principal=Principal(subject), registry="main", name="x", needs=(need,)), 0.0)
