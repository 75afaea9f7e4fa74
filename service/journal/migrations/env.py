"""Alembic's entry: runs the migrations over one connection."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine

from service.journal.tables import metadata

engine = create_engine(context.config.get_main_option("sqlalchemy.url") or "")
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
