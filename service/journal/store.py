"""The journal on SQL: one writer with group commit, readers beside it, a deadline on everything."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, Select, bindparam, create_engine, delete, event, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from service.audit import Event, OpenOperation, canonical_json
from service.effects import (
    Deleted,
    Effect,
    MadeLive,
    Opened,
    Posted,
    Registered,
    Renamed,
    Revoked,
    Settled,
    Signed,
    TakenDown,
    Withdrawn,
)
from service.errors import JournalUnavailable
from service.journal import tables as t
from service.records import Approval, Creation, Evidence, LivePeriod

GENESIS = "0" * 64
_PREFIX = "sqlite:///"
_MAX_BATCH = 256
_log = structlog.get_logger()


@dataclasses.dataclass(slots=True)
class _Job:
    events: Sequence[Event]
    effects: Sequence[Effect]
    done: asyncio.Future[list[Event]]
    undo: tuple[Sequence[Event], Sequence[Effect]] | None
    abandoned: bool = False


class SqlJournal:
    """The journal in a SQL database. One process writes; SQLite allows no more."""

    def __init__(self, url: str, deadline_seconds: float = 2.0) -> None:
        """Open the journal at *url* (``sqlite:///path``); it must have been migrated."""
        self._file = Path(url.removeprefix(_PREFIX))
        self._deadline = deadline_seconds
        self._engine = _engine(url, deadline_seconds)
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        # One thread owns the writing connection: a batch is one hop; an async driver makes one for each statement.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._connection: Connection | None = None
        self._head: _Head | None = None
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
        self._engine.dispose()

    async def append(
        self,
        events: Sequence[Event],
        effects: Sequence[Effect] = (),
        *,
        undo: tuple[Sequence[Event], Sequence[Effect]] | None = None,
    ) -> list[Event]:
        """Store events and effects in one transaction (see `service.audit.Journal`)."""
        job = _Job(events, effects, asyncio.get_running_loop().create_future(), undo)
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

    async def _write(self, jobs: list[_Job]) -> None:
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
                late = _Job(*job.undo, asyncio.get_running_loop().create_future(), None)
                self._jobs.put_nowait(late)
            if not job.done.done():
                job.done.set_result(events)

    def _commit(self, jobs: list[_Job]) -> list[list[Event]]:
        """Store *jobs* in one transaction (on the writing thread)."""
        try:
            connection = self._connected()
            with connection.begin():
                stored, head = _store(connection, jobs, self._head or _head_of(connection))
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

    async def _rows(self, query: Select[Any]) -> Sequence[Any]:
        def work() -> Sequence[Any]:
            with self._engine.connect() as connection:
                return connection.execute(query).all()

        try:
            async with asyncio.timeout(self._deadline):
                return await asyncio.to_thread(work)
        except (SQLAlchemyError, OSError, TimeoutError) as error:
            _log.error("journal read failed", problem=type(error).__name__)
            message = "The journal cannot be read."
            raise JournalUnavailable(message) from None

    async def events(self, filters: Mapping[str, Any], after: int, limit: int) -> list[tuple[int, Event]]:
        """List events after the sequence *after* that match *filters*, oldest first."""
        query = select(t.events.c.sequence, t.events.c.body).where(t.events.c.sequence > after)
        for name, value in filters.items():
            if name == "since":
                query = query.where(t.events.c.time >= value)
            elif name == "until":
                query = query.where(t.events.c.time < value)
            elif isinstance(value, list):
                query = query.where(t.events.c[name].in_(value))
            else:
                query = query.where(t.events.c[name] == value)
        rows = await self._rows(query.order_by(t.events.c.sequence).limit(limit))
        return [(row.sequence, json.loads(row.body)) for row in rows]

    async def operation_events(self, operation: str) -> list[Event]:
        """List the events of one operation."""
        rows = await self._rows(
            select(t.events.c.body).where(t.events.c.operation == operation).order_by(t.events.c.sequence)
        )
        return [json.loads(row.body) for row in rows]

    async def unsettled(self, operation: str | None = None) -> list[OpenOperation]:
        """List operations without a terminal outcome, or *operation* if it has none."""
        query = (
            select(t.operations, t.events.c.body)
            .join(t.events, (t.events.c.operation == t.operations.c.id) & (t.events.c.phase == "intent"))
            .where(t.operations.c.state.in_(("open", "unknown")))
            .order_by(t.operations.c.at)
        )
        if operation is not None:
            query = query.where(t.operations.c.id == operation)
        return [
            OpenOperation(row.id, row.digest, row.registry, row.state, row.change, json.loads(row.body), row.at)
            for row in await self._rows(query)
        ]

    async def creation(self, registry: str, model: str, binding: str) -> Creation | None:
        """Return who registered the version."""
        c = t.creations.c
        rows = await self._rows(
            select(t.creations).where(c.registry == registry, c.model == model, c.binding == binding)
        )
        return (
            Creation(rows[0].model, rows[0].version, rows[0].binding, rows[0].by, tuple(rows[0].persons), rows[0].at)
            if rows
            else None
        )

    async def evidence(self, registry: str, model: str, binding: str) -> list[Evidence]:
        """List the evidence about a version, oldest first."""
        c = t.evidence.c
        rows = await self._rows(
            select(c.body).where(c.registry == registry, c.model == model, c.binding == binding).order_by(c.number)
        )
        return [Evidence(**{**row.body, "groups": tuple(row.body["groups"])}) for row in rows]

    async def approvals(self, registry: str, model: str, binding: str) -> list[Approval]:
        """List the approvals of a version, oldest first."""
        c = t.approvals.c
        rows = await self._rows(
            select(c.body, c.revoked_at)
            .where(c.registry == registry, c.model == model, c.binding == binding)
            .order_by(c.number)
        )
        return [_approval(row) for row in rows]

    async def signed(self) -> list[Signed]:
        """List the decisions of everywhere that are neither revoked nor about a deleted version, oldest first."""
        c = t.approvals.c
        query = select(t.approvals).where(c.revoked_at.is_(None), c.deleted_at.is_(None), c.version.is_not(None))
        return [
            Signed(row.registry, row.model, row.binding, _approval(row), row.version, tuple(row.behind))
            for row in await self._rows(query.order_by(c.number))
        ]

    async def periods(self, registry: str, model: str) -> list[LivePeriod]:
        """List what was live when, oldest first."""
        c = t.periods.c
        rows = await self._rows(
            select(t.periods).where(c.registry == registry, c.model == model).order_by(c.since, c.id)
        )
        return [_period(row) for row in rows]

    async def live(self) -> list[tuple[str, str, LivePeriod]]:
        """List what is live everywhere by record: registry, model, period."""
        rows = await self._rows(select(t.periods).where(t.periods.c.until.is_(None)).order_by(t.periods.c.id))
        return [(row.registry, row.model, _period(row)) for row in rows]


def _approval(row: Any) -> Approval:
    body = row.body
    groups, persons = tuple(body["groups"]), tuple(body["persons"])
    return Approval(**{**body, "groups": groups, "persons": persons, "revoked": row.revoked_at is not None})


def _period(row: Any) -> LivePeriod:
    return LivePeriod(
        row.environment,
        row.version,
        row.binding,
        row.since,
        row.until,
        row.by,
        row.operation,
        row.reason,
        tuple(row.behind),
    )


def _engine(url: str, deadline_seconds: float) -> Engine:
    engine = create_engine(url, connect_args={"timeout": deadline_seconds / 2, "check_same_thread": False})

    def configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine, "connect", configure)
    return engine


# Built once: a statement is as costly to build as to run.
_HEAD = select(t.events.c.sequence, t.events.c.hash).order_by(t.events.c.sequence.desc()).limit(1)
_TOUCH = update(t.operations).where(t.operations.c.id == "").values(state="open")
_INSERT_EVENT = insert(t.events)
_INSERT_OPERATION = insert(t.operations)
_SETTLE = (
    update(t.operations)
    .where(t.operations.c.id == bindparam("operation"), t.operations.c.state.in_(("open", "unknown")))
    .values(state=bindparam("new_state"))
)
_Head = tuple[int, str]
"""Sequence and hash of the last event."""


def _head_of(connection: Connection) -> _Head:
    row = connection.execute(_HEAD).first()
    return (row.sequence, row.hash) if row else (0, GENESIS)


def _store(connection: Connection, jobs: list[_Job], head: _Head) -> tuple[list[list[Event]], _Head]:
    """Chain and store the events of *jobs* after *head*; a second writer would break on the sequence's key."""
    sequence, previous = head
    stored: list[list[Event]] = []
    for job in jobs:
        finished: list[Event] = []
        for item in job.events:
            sequence += 1
            data = {**item["data"], "sequence": sequence, "previous": previous}
            chained = {**item, "data": data}
            body = canonical_json(chained)
            previous = hashlib.sha256(body).hexdigest()
            connection.execute(_INSERT_EVENT, _columns(chained, sequence, body.decode(), previous))
            finished.append(chained)
        for effect in job.effects:
            _apply(connection, effect)
        stored.append(finished)
    if not any(stored):
        connection.execute(_TOUCH)  # a ping proves that the journal can be written
    return stored, (sequence, previous)


def _columns(item: Event, sequence: int, body: str, digest: str) -> dict[str, Any]:
    data = item["data"]
    return {
        "sequence": sequence,
        "id": item["id"],
        "time": datetime.fromisoformat(item["time"]).timestamp(),
        "type": item["type"],
        "phase": data["phase"],
        "operation": data["operation"],
        "actor": data["actor"]["subject"],
        "action": data["action"],
        "registry": data["registry"],
        "resource": data["resource"],
        "model": data["model"],
        "version": data["version"],
        "environment": data["environment"],
        "outcome": data["outcome"],
        "body": body,
        "hash": digest,
    }


def _apply(connection: Connection, effect: Effect) -> None:
    match effect:
        case Opened():
            row = {"id": effect.operation, "digest": effect.digest, "registry": effect.registry}
            connection.execute(insert(t.operations), {**row, "state": "open", "change": effect.change, "at": effect.at})
        case Settled():
            connection.execute(_SETTLE, {"operation": effect.operation, "new_state": effect.state})
        case Registered():
            row = dataclasses.asdict(effect.creation)
            connection.execute(insert(t.creations), {**row, "registry": effect.registry})
        case MadeLive():
            _end(connection, effect.registry, effect.model, (effect.period.environment,), effect.period.since)
            row = dataclasses.asdict(effect.period)
            connection.execute(insert(t.periods), {**row, "registry": effect.registry, "model": effect.model})
        case TakenDown():
            _end(connection, effect.registry, effect.model, effect.environments, effect.at)
        case Renamed():
            for table in t.BY_MODEL:
                connection.execute(
                    update(table)
                    .where(table.c.registry == effect.registry, table.c.model == effect.model)
                    .values(model=effect.new_name)
                )
        case Posted():
            _insert_body(connection, t.evidence, effect, effect.evidence)
        case Signed():
            more = {"version": effect.version, "behind": effect.behind}
            _insert_body(connection, t.approvals, effect, effect.approval, **more)
        case Deleted():
            c = t.approvals.c
            query = update(t.approvals).where(c.registry == effect.registry, c.model == effect.model)
            query = query.where(c.deleted_at.is_(None))
            if effect.version:
                query = query.where(c.version == effect.version)
            connection.execute(query.values(deleted_at=effect.at))
        case Withdrawn():
            connection.execute(delete(t.evidence).where(t.evidence.c.id == effect.evidence_id))
        case Revoked():
            connection.execute(
                update(t.approvals).where(t.approvals.c.id == effect.approval_id).values(revoked_at=effect.at)
            )


def _insert_body(
    connection: Connection, table: Any, effect: Posted | Signed, body: Evidence | Approval, **more: Any
) -> None:
    connection.execute(
        insert(table),
        {
            "id": body.id,
            "registry": effect.registry,
            "model": effect.model,
            "binding": effect.binding,
            "body": dataclasses.asdict(body),
            **more,
        },
    )


def _end(connection: Connection, registry: str, model: str, environments: tuple[str, ...], at: float) -> None:
    c = t.periods.c
    query = update(t.periods).where(c.registry == registry, c.model == model, c.until.is_(None))
    if environments:
        query = query.where(c.environment.in_(environments))
    connection.execute(query.values(until=at))
