"""One process leads at a time; another takes over when it stops, stands still or is cut off."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from service.journal import leader
from service.journal.leader import LEAD_SECONDS, Alone, PostgresLeader, leader_of
from tests.postgres import execute

KILL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'registry-gateway leader'"


@pytest.fixture
async def url(postgres):
    return await postgres.database()


@contextlib.asynccontextmanager
async def standing(url):
    made = PostgresLeader(url, 2.0)
    made.start()
    try:
        yield made
    finally:
        await made.close()


async def until(told, seconds: float = 60.0):
    deadline = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_on_a_file_there_is_only_one():
    assert isinstance(leader_of("sqlite:///journal.db", 2.0), Alone)
    assert leader_of("sqlite:///journal.db", 2.0).leads()


async def test_one_leads_and_another_takes_over_when_it_stops(url):
    async with contextlib.AsyncExitStack() as others:
        async with standing(url) as one:
            await until(one.leads)
            two = await others.enter_async_context(standing(url))
            begun = time.monotonic()
            while time.monotonic() - begun < 2.5:
                assert not (one.leads() and two.leads())
                await asyncio.sleep(0.02)
        assert not one.leads()
        await until(two.leads)


async def test_who_stands_still_stops_leading_before_another_begins(url):
    async with standing(url) as one, standing(url) as two:
        await until(lambda: one.leads() or two.leads())
        stopped, other = (one, two) if one.leads() else (two, one)
        stopped._pace = 3600  # it asks nothing any more, and its connection stays open
        both = False

        def leads() -> bool:
            nonlocal both
            both = both or (stopped.leads() and other.leads())
            return other.leads()

        await until(leads)
        assert not both
        assert not stopped.leads()


async def test_a_lost_connection_is_made_again(url):
    async with standing(url) as one:
        await until(one.leads)
        await execute(url, KILL)
        await until(lambda: not one.leads())
        await until(one.leads)


async def test_the_lead_ends_by_the_own_clock(url, monkeypatch):
    async with standing(url) as one:
        await until(one.leads)
        clock = time.monotonic
        monkeypatch.setattr(leader.time, "monotonic", lambda: clock() + LEAD_SECONDS)
        assert not one.leads()
