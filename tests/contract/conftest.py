"""Journals of each kind of database."""

from __future__ import annotations

import asyncio

import pytest

from service.journal import schema
from service.journal.store import SqlJournal


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request, tmp_path):
    """An upgraded, empty journal of each kind of database."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'journal.db'}"
    else:
        made = await request.getfixturevalue("postgres").database()
    await asyncio.to_thread(schema.upgrade, made)
    return made


@pytest.fixture
async def journal(url):
    made = SqlJournal(url, deadline_seconds=3.0)
    await made.start()
    made.url = url
    yield made
    await made.close()
