"""Looks into a journal from outside: read-only, page by page, beside a gateway that may be running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

from sqlalchemy import Connection, Select, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from service.errors import BadConfiguration
from service.journal.database import FAILURES, SQLITE, asyncpg_url, shown

T = TypeVar("T")
Row = tuple[Any, ...]
_SECONDS = 10


class Look:
    """A journal, open for reading. Use it as a context manager. Each SELECT sees the state of its moment."""

    def __init__(self, url: str) -> None:
        """Name the journal at *url*; nothing is read yet."""
        self.name = shown(url)
        self._runner = None if url.startswith(SQLITE) else asyncio.Runner()
        if url.startswith(SQLITE):
            path = quote(str(Path(url.removeprefix(SQLITE)).absolute()))
            # a page is a connection of its own, so the writer is never kept waiting
            self._engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true", poolclass=NullPool)
        else:
            arguments = {"timeout": _SECONDS, "server_settings": {"default_transaction_read_only": "on"}}
            self._asynchronous = create_async_engine(asyncpg_url(url), connect_args=arguments, pool_size=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._runner is not None:
            self._runner.run(self._asynchronous.dispose())
            self._runner.close()

    def rows(self, query: str | Select[Any], **parameters: Any) -> list[Row]:
        """Run one SELECT with ``:name`` parameters.

        Raises:
            BadConfiguration: the journal cannot be read.
        """
        statement = text(query) if isinstance(query, str) else query

        def work(connection: Connection) -> list[Row]:
            return [tuple(row) for row in connection.execute(statement, parameters).all()]

        return self.run(work)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run *work* on one state of the journal.

        Raises:
            BadConfiguration: the journal cannot be read.
        """
        try:
            if self._runner is None:
                with self._engine.connect() as connection:
                    return work(connection)
            return self._runner.run(self._remote(work))
        except FAILURES as error:
            message = f"{self.name}: the journal cannot be read: {getattr(error, 'orig', None) or error}"
            raise BadConfiguration(message) from None

    async def _remote(self, work: Callable[[Connection], T]) -> T:
        async with self._asynchronous.connect() as connection:
            return await connection.run_sync(work)
