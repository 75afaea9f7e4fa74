"""A change waits for a silent journal once, however many questions it has to ask: its whole deadline is one."""

from __future__ import annotations

import asyncio
import time

import pytest
from sqlalchemy import Connection, make_url

from service.changes import Changes
from service.errors import JournalUnavailable
from service.held import still_held
from service.journal import schema
from service.journal.database import PostgresDatabase
from service.journal.locks import PostgresLocks
from service.journal.replicas import PostgresReplicas
from service.journal.store import SqlJournal
from service.patience import Patience, begun, left, lift, patient, waiting
from service.replicas import Judging
from tests.faults.proxy import proxied

DEADLINE = 0.6
MODEL = ("main", ("iris",))


@pytest.fixture
async def silent(postgres):
    """A proxy before a journal on PostgreSQL, and the journal's address through it."""
    direct = await postgres.database()
    await asyncio.to_thread(schema.upgrade, direct)
    parts = make_url(direct)
    async with proxied(f"unix:{parts.query['host']}/.s.PGSQL.{parts.port or 5432}") as proxy:
        yield proxy, f"postgresql://{parts.username}@127.0.0.1:{proxy.port}/{parts.database}"


@pytest.fixture
async def changes(silent):
    locks = PostgresLocks(silent[1], DEADLINE)
    yield Changes(10.0, locks, DEADLINE)
    await locks.close()


async def refused(work) -> float:
    """Return how long it took to refuse."""
    begun = time.monotonic()
    with pytest.raises(JournalUnavailable):
        await work
    return time.monotonic() - begun


async def nothing() -> None:
    pass


async def test_questions_one_after_the_other_have_one_deadline():
    with patient(0.05):
        async with waiting(10):
            await asyncio.sleep(0.03)
        assert 0 < left(10) < 0.03
        await asyncio.sleep(0.06)  # what is not the journal does not count
        assert left(10) > 0
        with pytest.raises(TimeoutError):
            async with waiting(10):
                await asyncio.sleep(10)
        assert left(10) == 0
        with pytest.raises(TimeoutError):
            async with waiting(10):
                await asyncio.sleep(10)
        lift()
        assert left(10) == 10
    assert left(10) == 10
    assert begun() <= time.monotonic()


async def test_questions_at_the_same_time_count_once():
    patience = Patience(10)
    with patience.asking(), patience.asking():
        await asyncio.sleep(0.02)
    assert 9.97 < patience.left() < 9.985


async def test_the_first_change_of_a_request_goes_on_with_what_is_left():
    with patient(1.0):
        async with waiting(10):
            await asyncio.sleep(0.02)
        with patient(5.0, change=True):
            assert left(10) < 1
        with patient(5.0, change=True):
            assert left(10) == 5.0


async def test_a_change_that_holds_its_lock_is_refused_in_time(silent, changes):
    proxy, url = silent
    journal = SqlJournal(url, DEADLINE)
    await journal.start()

    async def change() -> None:
        async with changes.lock(*MODEL):
            proxy.black_hole = True
            await journal.append(())

    try:
        assert await refused(changes.run(change())) < DEADLINE + 0.4
    finally:
        proxy.heal()
        await journal.close()


async def test_a_change_that_gets_no_lock_is_refused_in_time_and_so_are_all_who_wait_for_it(silent, changes):
    proxy, _ = silent
    proxy.black_hole = True

    async def change(number: int) -> None:
        async with changes.lock("main", (f"m{number % 30}",)):  # more than there are connections
            pytest.fail("held")

    took = await asyncio.gather(*(refused(changes.run(change(number))) for number in range(60)))
    assert max(took) < DEADLINE + 0.5
    proxy.heal()
    async with asyncio.timeout(5):
        await changes.run(held(changes))


async def held(changes: Changes) -> None:
    async with changes.lock(*MODEL):
        await still_held()


async def test_who_waits_for_another_change_hears_that_the_server_went_silent(silent, changes):
    """It may wait for the other one for ten seconds, for the server for its deadline."""
    proxy, url = silent
    other = PostgresLocks(url, DEADLINE)
    async with other.hold(["main\niris"], 1.0):
        waiter = asyncio.create_task(refused(changes.run(held(changes))))
        await asyncio.sleep(0.7)  # past one slice of waiting: it is alive so far
        assert not waiter.done()
        proxy.black_hole = True
        silent_at = time.monotonic()
        await waiter
        assert time.monotonic() - silent_at < 2 * 0.25 + DEADLINE + 0.3
        proxy.heal()
    await other.close()


async def test_a_key_and_a_judging_are_asked_for_in_time(silent):
    proxy, url = silent
    replicas = PostgresReplicas(url, DEADLINE)

    async def judged(*_: object) -> None:
        pass

    await replicas.start("one", judged)
    try:
        proxy.black_hole = True
        judging = Judging("j", "o", "main", "iris", "production", "1", frozenset())
        for ask in (replicas.claim(["key"]), replicas.publish(judging)):
            begun = time.monotonic()
            with patient(0.2), pytest.raises(Exception, match="other replicas"):
                await ask
            assert time.monotonic() - begun < 0.5
    finally:
        proxy.heal()
        await replicas.close()


async def test_a_key_whose_claim_was_given_up_is_free_again(silent):
    proxy, url = silent
    one, two = (PostgresReplicas(url, 5.0) for _ in range(2))

    async def judged(*_: object) -> None:
        pass

    await asyncio.gather(one.start("one", judged), two.start("two", judged))
    try:
        for give_up in (asyncio.CancelledError, JournalUnavailable):
            proxy.hold.clear()
            with patient(0.2):
                claim = asyncio.create_task(one.claim(["key"]))
                await asyncio.sleep(0.05)
                if give_up is asyncio.CancelledError:
                    claim.cancel()
                with pytest.raises(give_up):
                    await claim
            proxy.hold.set()
            async with asyncio.timeout(3):
                while await two.claim(["key"]) is not None:
                    await asyncio.sleep(0.01)
            await two.release(["key"])
    finally:
        proxy.heal()
        await one.close()
        await two.close()


@pytest.mark.parametrize("given_up_by", ["its deadline", "the caller", "both"])
async def test_a_connection_that_is_given_up_is_not_waited_for(silent, given_up_by):
    """Its end in order is a ROLLBACK, which the server does not answer either."""
    proxy, url = silent
    database = PostgresDatabase(url, 0.3)
    try:
        for work in (database.read, database.write) * 3:  # more often than there are connections
            proxy.black_hole = False
            await work(_one)
            proxy.black_hole = True
            begun = time.monotonic()
            task = asyncio.create_task(work(_one))
            if given_up_by != "its deadline":
                await asyncio.sleep(0.1 if given_up_by == "the caller" else 0.299)
                task.cancel()
            done, _ = await asyncio.wait([task], timeout=1)
            assert done
            assert task.cancelled() or task.exception() is not None
            assert time.monotonic() - begun < 0.8
            proxy.heal()
    finally:
        await database.close()


def _one(connection: Connection) -> int:
    return int(connection.exec_driver_sql("SELECT 1").scalar_one())


async def test_a_server_that_is_silent_holds_up_no_stop(silent):
    proxy, url = silent
    database = PostgresDatabase(url, 0.3)
    await asyncio.gather(database.read(_one), database.write(_one))
    proxy.black_hole = True
    async with asyncio.timeout(2):
        await database.close()
    proxy.heal()
