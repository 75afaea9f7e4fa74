"""Alembic's entry: runs the migrations over one connection, one process at a time."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from service.journal.database import SQLITE, asyncpg_url
from service.journal.tables import metadata


def migrate(connection: Connection) -> None:
    """Run them in one transaction."""
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(5394, 2)"))  # two replicas that start at once
        context.run_migrations()


async def migrate_server(url: str) -> None:
    """Run them on a server."""
    engine = create_async_engine(asyncpg_url(url))
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
        await connection.commit()
    await engine.dispose()


where = context.config.get_main_option("sqlalchemy.url") or ""
if where.startswith(SQLITE):
    engine = create_engine(where)
    with engine.connect() as here:
        migrate(here)
    engine.dispose()
else:
    asyncio.run(migrate_server(where))
