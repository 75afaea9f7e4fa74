"""The journal on SQL: one writer with group commit, readers beside it, a deadline on everything."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence

import structlog
from sqlalchemy import Connection, text

from service.effects import Effect
from service.errors import GatewayError, JournalUnavailable
from service.event import Event
from service.journal.bell import CHANNEL, Bell, PostgresBell
from service.journal.database import FAILURES, SQLITE, InDoubt, NotThisJournal, is_of_one_job, open_database
from service.journal.outbox import OutboxReads
from service.journal.writes import Head, Job, Stored, head_of, holds, store, stored_of
from service.keeping import Undo
from service.model import People
from service.patience import begun, waiting

_MAX_BATCH = 256
_NOTIFY = text(f"NOTIFY {CHANNEL}")
_NOT_THIS = (
    "The journal does not hold what was stored in it: it was replaced, or has lost events. "
    "Put it back, or restart the gateway to go on with this one."
)
_LATE = "The journal did not answer in time."
_log = structlog.get_logger()


class SqlJournal(OutboxReads):
    """The journal in a SQL database."""

    def __init__(self, url: str, deadline_seconds: float = 2.0, people: People | None = None) -> None:
        """Open the journal at *url*, which must have been migrated."""
        super().__init__(open_database(url, deadline_seconds), deadline_seconds, people or People())
        self._jobs: asyncio.Queue[Job] = asyncio.Queue()
        self._head: Head | None = None
        self._last: Head | None = None
        """The last event that this process stored: a journal without it is another one."""
        self._late_at = -math.inf
        """When it last did not answer in time, if it has not since."""
        self._version: object = None
        """Of a database of one's own: another one when somebody else has written, such as who prunes it."""
        self._doubtful: list[Job] = []
        self._writer: asyncio.Task[None] | None = None
        self._bell = Bell() if url.startswith(SQLITE) else PostgresBell(url, deadline_seconds)

    async def start(self) -> None:
        """Start the writer.

        Raises:
            JournalUnavailable: the database cannot be written, or another process uses its file.
        """
        await self._database.claim()
        self._writer = asyncio.create_task(self._write_forever())
        self._bell.start()
        await self.ping()

    async def close(self) -> None:
        """Write what is queued, then stop."""
        if self._writer is not None:
            await self._jobs.join()
            self._writer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._writer
        await self._bell.close()
        await self._database.close()

    async def append(
        self,
        events: Sequence[Event],
        effects: Sequence[Effect] = (),
        *,
        undo: Undo | None = None,
        finish: Callable[[Event], Event] | None = None,
    ) -> list[Event]:
        """Store events and effects in one transaction (see `service.keeping.Journal`)."""
        if self._late_at > begun():  # who waited for another one that was refused is not kept waiting once more
            raise JournalUnavailable(_LATE)
        job = Job(events, effects, asyncio.get_running_loop().create_future(), undo, finish=finish)
        self._jobs.put_nowait(job)
        try:
            async with waiting(self._deadline):  # wait_for can swallow a cancellation before Python 3.12
                return await asyncio.shield(job.done)
        except TimeoutError:
            if job.done.done():  # it was stored in the last instant
                return await job.done
            job.abandoned = True
            self._late_at = time.monotonic()
            raise JournalUnavailable(_LATE) from None
        except asyncio.CancelledError:
            job.abandoned = True
            raise

    @property
    def rings(self) -> int:
        """How often somebody has appended events, as far as this process heard."""
        return self._bell.rings

    async def more(self, rings: int, seconds: float) -> None:
        """Return when somebody has appended since *rings* was read, at most after *seconds*."""
        await self._bell.wait(rings, seconds)

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
            except Exception as error:  # noqa: BLE001  # it must never end: nobody could change anything any more
                self._head = None
                self._fail(jobs, error)
            finally:
                for _ in jobs:
                    self._jobs.task_done()

    async def _write(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not job.abandoned]
        try:
            stored, doubtful, self._head = await self._database.write(lambda connection: self._store(connection, jobs))
        except InDoubt as doubt:
            self._head = None
            self._doubtful += [job for job in jobs if job.undo is not None]
            self._fail(jobs, doubt.__cause__ or doubt)
        except FAILURES as error:
            self._head = None
            if len(jobs) > 1 and is_of_one_job(error):  # one bad job must not fail the others
                for job in jobs:
                    await self._write([job])
                return
            self._fail(jobs, error)
        else:
            self._doubtful, self._late_at = [], -math.inf
            self._last = self._head if any(isinstance(events, list) and events for events in stored) else self._last
            if any(job.events for job in jobs):
                self._bell.ring()
            for job, events in zip(jobs, stored, strict=True):
                if isinstance(events, GatewayError):
                    _refuse(job, events)
                    continue
                if job.abandoned and job.undo is not None:
                    doubtful.append(job)
                if not job.done.done():
                    job.done.set_result(events)
            for job in doubtful:
                self._take_back(job)

    def _store(self, connection: Connection, jobs: list[Job]) -> tuple[list[Stored], list[Job], Head]:
        """Store *jobs*; find which of those in doubt are stored after all."""
        if self._database.alone:
            version = connection.exec_driver_sql("PRAGMA data_version").scalar()
            self._head, self._version = self._head if version == self._version else None, version
        if self._head is None and self._last is not None and not holds(connection, self._last):
            raise NotThisJournal(_NOT_THIS)
        head = self._head if self._database.alone and self._head is not None else head_of(connection)
        doubtful = [job for job in self._doubtful if stored_of(connection, job.events)]
        before = head
        stored, head = store(connection, jobs, head)
        if head != before and not self._database.alone:
            connection.execute(_NOTIFY)
        return stored, doubtful, head

    def _take_back(self, job: Job) -> None:
        """Undo what is stored although its author was told otherwise."""
        assert job.undo is not None
        self._jobs.put_nowait(Job(*job.undo(), asyncio.get_running_loop().create_future(), None))

    @staticmethod
    def _fail(jobs: list[Job], error: BaseException) -> None:
        _log.error("journal write failed", problem=type(error).__name__, detail=str(error).split("\n", 1)[0])
        for job in jobs:
            message = str(error) if isinstance(error, NotThisJournal) else "The journal cannot be written."
            _refuse(job, JournalUnavailable(message))


def _refuse(job: Job, why: GatewayError) -> None:
    """Tell the author of *job*, who may not be waiting any more, that it is not stored."""
    if not job.done.done():
        job.done.set_exception(why)
        job.done.exception()
