"""Locks that replicas share: one holder, lost with the connection, and known to be lost before anything is written."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import pytest

from service.changes import Changes
from service.errors import Busy, JournalUnavailable
from service.held import LockLost, still_held
from service.journal.locks import PostgresLocks
from tests.postgres import execute

KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'registry-gateway locks'"


@pytest.fixture
async def url(postgres):
    return await postgres.database()


@pytest.fixture
async def replicas(url):
    made = [PostgresLocks(url, 2.0) for _ in range(2)]
    yield made
    for locks in made:
        await locks.close()


async def test_one_replica_holds_what_another_waits_for(replicas):
    one, two = replicas
    order = []
    async with one.hold(["main\niris"], 1.0) as held:
        await held.check()
        with pytest.raises(TimeoutError):
            async with two.hold(["main\niris"], 0):
                order.append("both")
        with pytest.raises(TimeoutError):
            async with two.hold(["main\niris"], 0.1):
                order.append("both")
        async with two.hold(["main\nlily"], 0):
            order.append("another")

        async def waiter():
            async with two.hold(["main\niris"], 5.0):
                order.append("second")

        waiting = asyncio.create_task(waiter())
        async with two.hold(["main\nrose"], 5.0):
            order.append("first")
    await waiting
    assert order == ["another", "first", "second"]


async def test_after_many_changes_at_once_few_connections_stay(replicas, url):
    one, _ = replicas
    async with contextlib.AsyncExitStack() as stack:
        for number in range(8):
            await stack.enter_async_context(one.hold([f"main\nm{number}"], 1.0))
        assert await count(url) == 8
    async with asyncio.timeout(10):
        while await count(url) > 4:
            await asyncio.sleep(0.01)
    assert len(one._free) == 4


async def count(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'registry-gateway locks' "
            "AND datname = current_database()"
        )
    finally:
        await connection.close()


async def test_what_fails_while_it_is_held_gives_it_back(replicas):
    one, two = replicas
    for error in (TimeoutError, ValueError, asyncio.CancelledError):
        with pytest.raises(error):
            async with one.hold(["main\niris"], 1.0):
                raise error
        async with two.hold(["main\niris"], 0):
            pass


async def test_a_lost_connection_is_seen_before_the_write(replicas, url):
    changes = Changes(1.0, replicas[0])
    async with changes.lock("main", ("iris", "lily")):
        await still_held()
        await execute(url, KILL)
        with pytest.raises(Busy, match="was lost"):
            await still_held()
    await still_held()  # nothing is held, so nothing can be lost
    async with changes.lock("main", ("iris",)):  # and it goes on
        await still_held()


async def test_a_lock_given_to_somebody_else_is_lost(replicas, url):
    async with replicas[0].hold(["main\niris"], 1.0) as held:
        await held._connection.execute("SELECT pg_advisory_unlock_all()")
        with pytest.raises(LockLost):
            await held.check()


async def test_no_server_no_lock(tmp_path):
    changes = Changes(1.0, PostgresLocks(f"postgresql://nobody@/nothing?host={tmp_path}", 0.5))
    with pytest.raises(JournalUnavailable, match=r"cannot be had.*nothing was forwarded"):
        async with changes.lock("main", ("iris",)):
            pytest.fail("held")


async def test_who_comes_too_late_is_told_what_is_under_way(replicas):
    one, two = (Changes(0.2, locks) for locks in replicas)
    async with one.lock("main", ("iris",)):
        with pytest.raises(Busy, match="Another change of the model 'iris' is under way"):
            async with two.lock("main", ("iris",)):
                pytest.fail("both")
