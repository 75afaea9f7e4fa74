"""The journal's contract: durable when it returns, chained, one transaction, a deadline on everything."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from service.audit import Operation, Trail
from service.effects import Settled
from service.errors import JournalUnavailable
from service.journal import schema
from service.journal.store import SqlJournal
from service.journal.verify import verify
from service.model import Call, Need, Principal


@pytest.fixture
async def journal(tmp_path):
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    schema.upgrade(url)
    made = SqlJournal(url, deadline_seconds=1.0)
    await made.start()
    made.url, made.path = url, tmp_path / "journal.db"
    yield made
    await made.close()


def operation(name="x") -> Operation:
    need = Need("alias:set", "models/iris/aliases/blue")
    call = Call(principal=Principal("user:u"), registry="main", name=name, needs=(need,))
    return Operation.opened(call, 1000.0)


async def test_phases_share_the_operation_and_close_it(journal):
    trail = Trail(journal, [], "/test")
    made = operation()
    await trail.intent(made)
    assert [item.operation for item in await journal.unsettled()] == [made.id]
    await trail.outcome(made, "succeeded")
    assert await journal.unsettled() == []
    events = await journal.operation_events(made.id)
    assert [event["data"]["phase"] for event in events] == ["intent", "outcome"]
    assert [event["type"] for event in events] == [
        "registry-gateway.alias.set.intent",
        "registry-gateway.alias.set.outcome",
    ]


async def test_many_writers_one_chain(journal):
    trail = Trail(journal, [], "/test")
    await asyncio.gather(*(trail.intent(operation(str(index))) for index in range(200)))
    assert verify(journal.url) == (200, None)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE events SET body = replace(body, 'user:u', 'user:v') WHERE sequence = 2", "event 2 was edited"),
        ("DELETE FROM events WHERE sequence = 2", "event 2 is missing"),
        ("UPDATE events SET sequence = sequence + 100 WHERE sequence = 2", "event 2 is missing"),
    ],
)
async def test_verify_finds_damage(journal, damage, found):
    trail = Trail(journal, [], "/test")
    for _ in range(4):
        await trail.refused(operation(), "denied")
    assert verify(journal.url) == (4, None)
    with sqlite3.connect(journal.path) as connection:
        connection.execute(damage)
    connection.close()
    assert verify(journal.url)[1] == found


async def test_a_locked_database_is_unavailable_and_then_recovers(journal):
    trail = Trail(journal, [], "/test")
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(JournalUnavailable):
        await trail.intent(operation())
    other.execute("ROLLBACK")
    other.close()
    made = operation()
    await trail.intent(made)
    open_now = [item.operation for item in await journal.unsettled()]
    assert open_now == [made.id]  # the refused one is not there, or was undone


async def test_a_deleted_journal_is_unavailable_not_made_anew(journal):
    journal.path.rename(journal.path.with_suffix(".gone"))
    with pytest.raises(JournalUnavailable):
        await journal.append([], [Settled("x", "failed")])
    assert not journal.path.exists()
    journal.path.with_suffix(".gone").rename(journal.path)
    await journal.ping()


async def test_the_schema_is_what_the_tables_say(tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from service.journal.tables import metadata

    url = f"sqlite:///{tmp_path / 'j.db'}"
    schema.upgrade(url)
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
