"""The schema: no drift, forward from every revision with what is in it, and one version beside the next."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from service.errors import BadConfiguration
from service.journal import schema
from service.journal.database import asyncpg_url
from service.journal.queries import CLOCK
from service.journal.store import SqlJournal
from service.journal.tables import metadata
from service.journal.verify import verify
from tests.contract.test_journal import beside
from tests.contract.test_queries import BEGUN, event, everything

REVISIONS = ["0001", "0002", "0003", "0004", "0005", "0006", "0007"]
NEWER = """
import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade():
    op.add_column("events", sa.Column("more", sa.String(10)))
    op.create_table("novelties", sa.Column("id", sa.Integer(), primary_key=True))
    op.execute("UPDATE about SET value = 'FROM' WHERE name = 'usable_from'")
"""


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty(request, tmp_path):
    """The URL of a journal that was not made yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'journal.db'}"
    return await request.getfixturevalue("postgres").database()


def to(url, revision, monkeypatch):
    """Make a journal of an older schema."""
    from alembic import command

    real = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(command, "upgrade", lambda config, _: real(config, revision))
        schema.upgrade(url)


def drift(connection):
    return compare_metadata(MigrationContext.configure(connection), metadata)


async def drift_of(url):
    if url.startswith("sqlite"):
        engine = create_engine(url)
        with engine.connect() as connection:
            found = drift(connection)
        engine.dispose()
        return found
    remote = create_async_engine(asyncpg_url(url))
    async with remote.connect() as connection:
        found = await connection.run_sync(drift)
    await remote.dispose()
    return found


async def test_migrations_make_what_the_tables_say(url):
    assert await drift_of(url) == []


async def test_drift_would_be_found(url):
    await beside(url, "DROP INDEX events_outcome")
    assert len(await drift_of(url)) == 1


def row(number, at, previous, **columns):
    """Make a row of `events` as every schema had it, and its hash."""
    import hashlib

    from service.event import canonical_json
    from service.journal.writes import _columns

    item = event(at, model="iris", **columns)
    item["data"] |= {"sequence": number, "previous": previous}
    body = canonical_json(item)
    return _columns(item, number, body.decode(), hashlib.sha256(body).hexdigest())


def literal(value):
    return (
        "NULL" if value is None else repr(value) if not isinstance(value, str) else "'" + value.replace("'", "''") + "'"
    )


@pytest.mark.parametrize("revision", REVISIONS)
async def test_every_older_schema_comes_forward_with_what_is_in_it(empty, revision, monkeypatch):
    await asyncio.to_thread(to, empty, revision, monkeypatch)
    with pytest.raises(BadConfiguration, match=f"the journal has schema '{revision}', this version needs"):
        await asyncio.to_thread(schema.check, empty)
    previous = "0" * 64
    for number, at in enumerate((BEGUN, BEGUN - 7200, BEGUN + 10), 1):
        values = row(number, at, previous)
        previous = values["hash"]
        names, cells = ", ".join(values), ", ".join(map(literal, values.values()))
        await beside(empty, f"INSERT INTO events ({names}) VALUES ({cells})")
    await asyncio.to_thread(schema.upgrade, empty)
    await asyncio.to_thread(schema.check, empty)
    assert await drift_of(empty) == []
    journal = SqlJournal(empty, 2.0)
    await journal.start()
    try:
        assert [item["data"]["sequence"] for item in await journal.append([event(BEGUN + 20)])] == [4]
        assert await everything(journal, {"since": BEGUN - 10}) == ([1, 3, 4], 1)
        known = []
        await journal._database.read(lambda c: known.extend(c.exec_driver_sql("SELECT name, value FROM about").all()))
        assert float(dict(map(tuple, known))[CLOCK]) == 7200  # measured by the upgrade
    finally:
        await journal.close()
    assert await asyncio.to_thread(verify, empty) == (4, None)


@pytest.fixture
def newer(tmp_path, monkeypatch):
    """Upgrade a journal as the next version of the gateway would."""

    def make(url, usable_from):
        folder = tmp_path / "migrations"
        shutil.copytree(schema._MIGRATIONS, folder)
        (folder / "versions" / "v0009_made_up.py").write_text(NEWER.replace("FROM", usable_from))
        with monkeypatch.context() as patched:
            patched.setattr(schema, "_MIGRATIONS", folder)
            patched.setattr(schema, "HEAD", "0009")
            schema.upgrade(url)

    return make


async def test_this_version_runs_beside_the_next_one_where_that_says_so(url, newer):
    await asyncio.to_thread(newer, url, schema.HEAD)
    assert await asyncio.to_thread(schema.revision, url) == "0009"
    await asyncio.to_thread(schema.check, url)
    await asyncio.to_thread(schema.upgrade, url)  # leaves it alone
    assert await asyncio.to_thread(schema.revision, url) == "0009"
    journal = SqlJournal(url, 2.0)
    await journal.start()
    try:
        await journal.append([event(BEGUN, model="iris"), event(BEGUN + 1)])
        page = await journal.page({"model": "iris"}, None, 10)
        assert [json.loads(body)["data"]["sequence"] for _, body in page.rows] == [1]
    finally:
        await journal.close()
    assert await asyncio.to_thread(verify, url) == (2, None)


async def test_a_newer_schema_that_left_this_one_behind_is_refused_by_name(url, newer):
    await asyncio.to_thread(newer, url, "0009")
    for use in (schema.check, schema.check_readable, schema.upgrade):
        with pytest.raises(
            BadConfiguration, match=f"the journal has schema '0009', this version needs '{schema.HEAD}'"
        ):
            await asyncio.to_thread(use, url)
