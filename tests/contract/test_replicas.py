"""Replicas know of each other: leases by the server's clock, claims, and judgings that each of them answers."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from service.errors import Busy, JournalUnavailable
from service.held import LockLost
from service.journal import replicas as leases
from service.journal import schema
from service.journal.replicas import PostgresReplicas
from service.replicas import Judging
from tests.postgres import execute

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'registry-gateway replica'"
JUDGING = Judging("j1", "o1", "main", "iris", "production", "1", frozenset({"r1", "m-1"}))


@pytest.fixture
async def url(postgres):
    made = await postgres.database()
    await asyncio.to_thread(schema.upgrade, made)
    return made


class One:
    """A replica that seals what it is told."""

    def __init__(self, url: str, name: str) -> None:
        self.replicas, self.name = PostgresReplicas(url, 2.0), name
        self.told: list[frozenset[str]] = []
        self.joining: list[bool] = []
        self.busy = self.silent = False

    async def judged(self, judgings, joining):
        self.told.append(frozenset(item.id for item in judgings))
        self.joining.append(joining)
        for item in judgings:
            if not self.silent:
                await self.replicas.answer(item, busy=self.busy)

    async def until_told(self, *judgings: str, seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not self.told or self.told[-1] != frozenset(judgings):
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def joined(url, *names):
    made = [One(url, name) for name in names]
    for one in made:
        await one.replicas.start(one.name, one.judged)
    try:
        yield made
    finally:
        for one in made:
            await one.replicas.close()


async def test_each_knows_who_lives_and_who_left(url):
    async with joined(url, "a", "b") as (a, b):
        assert await a.replicas.living() == await b.replicas.living() == {"a", "b"}
        await b.replicas.close()
        assert (await a.replicas.living(), b.replicas.lease()) == ({"a"}, 0)


async def test_who_is_not_heard_of_is_not_waited_for_and_knows_it_first(url):
    async with joined(url, "a", "b") as (a, b):
        b.replicas._started.cancel()  # it stands still; its connection stays open
        await asyncio.sleep(0)
        begun = time.monotonic()
        assert b.replicas.lease()
        while "b" in await a.replicas.living():
            await asyncio.sleep(0.001)
        assert not b.replicas.lease()
        assert time.monotonic() - begun < leases.LEASE_SECONDS + 20
        async with asyncio.timeout(20):  # and the server ends its connection
            while b.replicas._session.is_open:
                await asyncio.sleep(0.01)
        with pytest.raises(JournalUnavailable):
            await b.replicas.living()


async def test_a_judging_is_known_to_all_before_it_begins_and_until_it_ends(url):
    async with joined(url, "a", "b", "c") as (a, b, c):
        published = await a.replicas.publish(JUDGING)
        assert b.told[-1] == c.told[-1] == {"j1"}
        await published.check()
        async with joined(url, "d") as (d,):
            assert (d.told, d.joining) == ([{"j1"}], [True])
        published.end(settled=True)
        await b.until_told()
        await c.until_told()
        assert {"j1"} not in a.told


@pytest.mark.parametrize("how", ["busy", "silent"])
async def test_it_does_not_begin_where_one_writes_or_does_not_answer(url, how, monkeypatch):
    monkeypatch.setattr(leases, "_ANSWER_SECONDS", 1.5)
    async with joined(url, "a", "b") as (a, b):
        setattr(b, how, True)
        with pytest.raises(Busy, match="Another replica does not say" if how == "silent" else "in another replica"):
            await a.replicas.publish(JUDGING)
        await b.until_told()


async def test_who_has_no_lease_is_not_waited_for(url):
    async with joined(url, "a", "b") as (a, b):
        b.replicas._started.cancel()
        begun = time.monotonic()
        published = await a.replicas.publish(JUDGING)
        assert time.monotonic() - begun < leases.LEASE_SECONDS + 0.5
        await published.check()


async def test_a_judging_of_a_lease_that_ran_out_counts_no_more(url):
    async with joined(url, "a", "b") as (a, b):
        published = await a.replicas.publish(JUDGING)
        await execute(url, CUT)
        before = len(b.joining)
        async with asyncio.timeout(10):
            while a.replicas.joined < 2 or not any(b.joining[before:]):
                await asyncio.sleep(0.01)
        assert a.replicas.lease()
        with pytest.raises(LockLost):
            await published.check()


@pytest.mark.parametrize("state", ["open", "unknown", "succeeded", None])
async def test_a_judging_ends_with_its_judge_unless_its_operation_is_not_settled(url, state):
    if state is not None:
        await execute(
            url,
            "INSERT INTO operations (id, digest, registry, state, at, source) "
            f"VALUES ('o1', 'd', 'main', '{state}', 0, 'a')",
        )
    async with joined(url, "a", "b") as (a, b):
        await a.replicas.publish(JUDGING)
        await a.replicas.close()
        if state in ("open", "unknown"):
            told = len(b.told)
            while len(b.told) < told + 3:
                await asyncio.sleep(0.05)
            assert b.told[-1] == {"j1"}
            await execute(url, "UPDATE operations SET state = 'succeeded'")
        await b.until_told()


async def test_an_unsettled_judging_stays_while_its_judge_lives_on(url):
    insert = (
        "INSERT INTO operations (id, digest, registry, state, at, source) VALUES ('o1', 'd', 'main', 'unknown', 0, 'a')"
    )
    await execute(url, insert)
    async with joined(url, "a", "b") as (a, b):
        (await a.replicas.publish(JUDGING)).end(settled=False)
        await a.until_told("j1")  # it is nobody's now
        await execute(url, "UPDATE operations SET state = 'unproven'")
        await a.until_told()
        await b.until_told()


async def test_one_claims_a_name_at_a_time_also_after_a_lost_connection(url):
    async with joined(url, "a", "b") as (a, b):
        assert await a.replicas.claim(["request", "key"]) is None
        assert await b.replicas.claim(["other request", "key"]) == "key"
        assert await b.replicas.claim(["request", "key"]) == "request"
        assert await b.replicas.claim(["another"]) is None
        await execute(url, CUT)
        async with asyncio.timeout(10):
            while a.replicas.joined < 2 or b.replicas.joined < 2:
                await asyncio.sleep(0.01)
        assert await b.replicas.claim(["request", "key"]) == "request"
        await a.replicas.release(["request", "key"])
        assert await b.replicas.claim(["request", "key"]) is None


async def test_without_a_server_nobody_joins(tmp_path):
    one = PostgresReplicas(f"postgresql://nobody@/nothing?host={tmp_path}", 0.5)
    try:
        with pytest.raises(JournalUnavailable):
            await one.start("a", One("", "a").judged)
        with pytest.raises(JournalUnavailable):
            await one.claim(["key"])
        with pytest.raises(Busy):
            await one.publish(JUDGING)
        assert not one.lease()
    finally:
        await one.close()


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_of_the_server_that_is_set_ends_no_lease_and_keeps_none(url, hours):
    async with joined(url, "a", "b") as (a, b):
        await execute(url, f"UPDATE replicas SET seen_at = seen_at + {hours * 3600}")
        assert await a.replicas.living() == {"a", "b"}
        b.replicas._started.cancel()
        await execute(url, f"UPDATE replicas SET seen_at = seen_at + {hours * 3600} WHERE source = 'b'")
        async with asyncio.timeout(leases.LEASE_SECONDS + 2):
            while "b" in await a.replicas.living():
                await asyncio.sleep(0.05)
