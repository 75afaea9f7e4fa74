"""The journal on SQL: one writer with group commit, readers beside it, a deadline on everything."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from service.audit import Event
from service.effects import Effect
from service.errors import JournalUnavailable
from service.journal.reads import Reads
from service.journal.writes import Head, Job, head_of, store
from service.model import People

_PREFIX = "sqlite:///"
_MAX_BATCH = 256
_log = structlog.get_logger()


class SqlJournal(Reads):
    """The journal in a SQL database. One process writes; SQLite allows no more."""

    def __init__(self, url: str, deadline_seconds: float = 2.0, people: People | None = None) -> None:
        """Open the journal at *url* (``sqlite:///path``); it must have been migrated."""
        self._file = Path(url.removeprefix(_PREFIX))
        super().__init__(_engine(url, deadline_seconds), deadline_seconds, people or People())
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        # One thread owns the writing connection: a batch is one hop; an async driver makes one for each statement.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._connection: Connection | None = None
        self._head: Head | None = None
        self._inode: tuple[int, int] | None = None
        self._writer: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the writer.

        Raises:
            JournalUnavailable: the database cannot be written.
        """
        self._writer = asyncio.create_task(self._write_forever())
        await self.ping()

    async def close(self) -> None:
        """Write what is queued, then stop."""
        if self._writer is not None:
            await self._jobs.join()
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
        await asyncio.get_running_loop().run_in_executor(self._thread, self._disconnect)
        self._thread.shutdown()
        self._readers.shutdown()
        self._engine.dispose()

    async def append(
        self,
        events: Sequence[Event],
        effects: Sequence[Effect] = (),
        *,
        undo: tuple[Sequence[Event], Sequence[Effect]] | None = None,
    ) -> list[Event]:
        """Store events and effects in one transaction (see `service.audit.Journal`)."""
        job = Job(events, effects, asyncio.get_running_loop().create_future(), undo)
        self._jobs.put_nowait(job)
        try:
            async with asyncio.timeout(self._deadline):  # wait_for can swallow a cancellation before Python 3.12
                return await asyncio.shield(job.done)
        except TimeoutError:
            if job.done.done():  # it was stored in the last instant
                return await job.done
            job.abandoned = True
            message = "The journal did not answer in time."
            raise JournalUnavailable(message) from None
        except asyncio.CancelledError:
            job.abandoned = True
            raise

    async def ping(self) -> None:
        """Return when the journal can be written."""
        await self.append(())

    async def _write_forever(self) -> None:
        while True:
            jobs = [await self._jobs.get()]
            while len(jobs) < _MAX_BATCH and not self._jobs.empty():
                jobs.append(self._jobs.get_nowait())
            try:
                await self._write(jobs)
            finally:
                for _ in jobs:
                    self._jobs.task_done()

    async def _write(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not job.abandoned]
        try:
            stored = await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, jobs)
        except (SQLAlchemyError, OSError, ValueError) as error:
            if len(jobs) > 1:  # one bad job must not fail the others
                for job in jobs:
                    await self._write([job])
                return
            _log.error("journal write failed", problem=type(error).__name__, detail=str(error).splitlines()[0])
            for job in jobs:
                if not job.done.done():
                    message = "The journal cannot be written."
                    job.done.set_exception(JournalUnavailable(message))
                    job.done.exception()  # nobody may be waiting any more
            return
        for job, events in zip(jobs, stored, strict=True):
            if job.abandoned and job.undo is not None:
                late = Job(*job.undo, asyncio.get_running_loop().create_future(), None)
                self._jobs.put_nowait(late)
            if not job.done.done():
                job.done.set_result(events)

    def _commit(self, jobs: list[Job]) -> list[list[Event]]:
        """Store *jobs* in one transaction (on the writing thread)."""
        try:
            connection = self._connected()
            with connection.begin():
                stored, head = store(connection, jobs, self._head or head_of(connection))
        except (SQLAlchemyError, OSError, ValueError):
            self._disconnect()
            raise
        self._head = head
        return stored

    def _connected(self) -> Connection:
        stat = self._file.stat()  # a journal deleted or replaced under us is not the journal
        if self._connection is not None and self._inode != (stat.st_dev, stat.st_ino):
            self._disconnect()
        if self._connection is None:
            self._connection = self._engine.connect()
            self._inode = (stat.st_dev, stat.st_ino)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection, self._head = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError, OSError, ValueError):
                connection.invalidate()
                connection.close()


def _engine(url: str, deadline_seconds: float) -> Engine:
    engine = create_engine(url, connect_args={"timeout": deadline_seconds / 2, "check_same_thread": False})

    def configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine, "connect", configure)
    return engine
