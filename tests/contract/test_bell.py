"""Whoever follows the journal hears of what is appended, by this process or by another replica."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.errors import JournalUnavailable
from service.journal.store import SqlJournal
from tests.conftest import new_journal
from tests.contract.test_journal import operation
from tests.postgres import execute

LONG = 20.0
KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'registry-gateway bell'"


def an_event():
    return operation().event("denied", "denied", "/test", time.time())


@pytest.fixture
async def postgres_journals(postgres):
    url = await postgres.database()
    await asyncio.to_thread(new_journal, url)
    journals = [SqlJournal(url), SqlJournal(url)]
    for journal in journals:
        await journal.start()
    yield url, *journals
    for journal in journals:
        await journal.close()


async def test_a_follower_hears_its_own_process(tmp_path):
    new_journal(f"sqlite:///{tmp_path / 'journal.db'}")
    journal = SqlJournal(f"sqlite:///{tmp_path / 'journal.db'}")
    await journal.start()
    before = journal.rings
    await journal.ping()
    assert journal.rings == before
    waiting = asyncio.create_task(journal.more(before, LONG))
    await journal.append([an_event()])
    await waiting
    assert journal.rings == before + 1
    await journal.more(before, LONG)  # rung before anybody waited
    began = time.monotonic()
    await journal.more(journal.rings, 0.05)
    assert time.monotonic() - began >= 0.05
    await journal.close()


async def test_a_follower_hears_another_replica_and_again_after_its_connection_was_lost(postgres_journals):
    url, one, two = postgres_journals
    for _ in range(2):
        async with asyncio.timeout(LONG):
            while not await heard(one, two):
                pass
        await execute(url, KILL)


async def heard(one, two) -> bool:
    """Append by *two*; tell whether *one* heard of it."""
    before = one.rings
    try:
        await two.append([an_event()])
    except JournalUnavailable:  # its connection was cut
        return False
    await one.more(before, 1.0)
    return one.rings > before
