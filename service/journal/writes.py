"""What a batch of the journal becomes in SQL: events chained one to the next, and the tables they change."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    String,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from service import effects as f
from service.chain import GENESIS, digest_of
from service.errors import Busy, GatewayError, OperationPending
from service.event import Event, canonical_json
from service.journal import outbox
from service.journal import tables as t
from service.journal.prepared import Prepared
from service.journal.queries import CLOCK_SLACK_SECONDS, note_clock
from service.keeping import Undo
from service.records import Approval, Evidence

ANSWERS_KEPT_SECONDS = 24 * 3600.0


@dataclasses.dataclass(slots=True)
class Job:
    """Events and effects of one transaction, and who waits for it."""

    events: Sequence[Event]
    effects: Sequence[f.Effect]
    done: asyncio.Future[list[Event]]
    undo: Undo | None
    abandoned: bool = False
    finish: Callable[[Event], Event] | None = None
    """Completes an event that has its place in the chain."""


# Built once: a statement is as costly to build as to run.
_LATEST = select(func.max(t.events.c.time)).scalar_subquery()
_HEAD = select(t.events.c.sequence, t.events.c.hash, _LATEST).order_by(t.events.c.sequence.desc()).limit(1)
_KNOWN = select(t.events.c.sequence).where(t.events.c.id == bindparam("id"))
_TOUCH = update(t.operations).where(t.operations.c.id == "").values(state="open")
_UNSETTLED = (literal_column("'open'", String), literal_column("'unknown'", String))
_INSERT_EVENT = Prepared(insert(t.events), *t.events.columns.keys())
_INSERT_OPERATION = Prepared(insert(t.operations), *t.operations.columns.keys())
_SETTLE = Prepared(
    update(t.operations)
    .where(t.operations.c.id == bindparam("operation"), t.operations.c.state.in_(_UNSETTLED))
    .values(state=bindparam("new_state"))
)
_STATE = select(t.operations.c.state).where(t.operations.c.id == bindparam("operation"))
_INSERT_CREATION = Prepared(insert(t.creations), *t.creations.columns.keys())
_INSERT_PERIOD = Prepared(insert(t.periods), *(item.key for item in t.periods.columns if item.key != "id"))
_END = update(t.periods).where(
    t.periods.c.registry == bindparam("in_registry"),
    t.periods.c.model == bindparam("of_model"),
    t.periods.c.until.is_(None),
)
_END_ONE = Prepared(_END.where(t.periods.c.environment == bindparam("in_environment")).values(until=bindparam("at")))
_PASSED = update(t.periods).where(t.periods.c.operation == bindparam("by_operation")).values(passed=True)
"""Somebody else has looked at an emergency."""
_DOCUMENT = Prepared(
    select(t.documents.c.at).where(t.documents.c.kind == bindparam("kind"), t.documents.c.digest == bindparam("digest"))
)
_INSERT_DOCUMENT = Prepared(insert(t.documents), *t.documents.columns.keys())
_IS_EQUAL = and_(t.operations.c.digest == bindparam("digest"), t.operations.c.state.in_(_UNSETTLED))
_IS_ELSEWHERE = and_(
    t.operations.c.state == _UNSETTLED[0],
    t.operations.c.registry == bindparam("registry"),
    t.operations.c.source != bindparam("source"),
)
_HASH = select(t.events.c.hash).where(t.events.c.sequence == bindparam("sequence"))
_PRUNED = select(t.pruned.c.first).where(
    t.pruned.c.first <= bindparam("sequence"), t.pruned.c.last >= bindparam("sequence")
)
_ANY = Prepared(select(t.operations.c.id).where(or_(_IS_EQUAL, _IS_ELSEWHERE)))
_EQUAL = select(t.operations.c.id).where(_IS_EQUAL)
_ELSEWHERE = select(t.operations.c.id, t.operations.c.change).where(_IS_ELSEWHERE)


class Head(NamedTuple):
    """Sequence and hash of the last event, and the latest time of any."""

    sequence: int = 0
    hash: str = GENESIS
    latest: float = 0.0


Stored = list[Event] | GatewayError


def head_of(connection: Connection) -> Head:
    """Return what the next event is chained to."""
    row = connection.execute(_HEAD).first()
    return Head(*row) if row else Head()


def holds(connection: Connection, head: Head) -> bool:
    """Tell whether the event *head* is stored, or was and is pruned by now."""
    found = connection.execute(_HASH, {"sequence": head.sequence}).scalar()
    if found is not None:
        return bool(found == head.hash)
    return connection.execute(_PRUNED, {"sequence": head.sequence}).first() is not None


def stored_of(connection: Connection, events: Sequence[Event]) -> bool:
    """Tell whether *events*, which were written together, are stored."""
    return bool(events) and connection.execute(_KNOWN, {"id": events[0]["id"]}).first() is not None


def store(connection: Connection, jobs: list[Job], head: Head) -> tuple[list[Stored], Head]:
    """Chain and store the events of *jobs* after *head*; of each its events, or why it is not stored."""
    sequence, previous, latest = head
    back = 0.0
    stored: list[Stored] = []
    rows: list[dict[str, Any]] = []
    for job in jobs:
        refusal = next((why for effect in job.effects if (why := _refusal(connection, effect)) is not None), None)
        if refusal is not None:
            stored.append(refusal)
            continue
        if not all(_settle(connection, effect) for effect in job.effects if isinstance(effect, f.Settled)):
            stored.append([])  # another replica has ended it meanwhile: it has one outcome
            continue
        finished: list[Event] = []
        for item in job.events:
            sequence += 1
            data = {**item["data"], "sequence": sequence, "previous": previous}
            chained = {**item, "data": data}
            if job.finish is not None:
                chained = job.finish(chained)
            body = canonical_json(chained)
            previous = digest_of(body)
            rows.append(_columns(chained, sequence, body.decode(), previous))
            latest = max(latest, rows[-1]["time"])
            back = max(back, latest - rows[-1]["time"])
            finished.append(chained)
        for effect in job.effects:
            _apply(connection, effect)
        stored.append(finished)
    if rows:
        _INSERT_EVENT.execute(connection, *rows)
    else:
        connection.execute(_TOUCH)  # a ping proves that the journal can be written
    if back > CLOCK_SLACK_SECONDS:
        note_clock(connection, back)
    return stored, Head(sequence, previous, latest)


def _refusal(connection: Connection, effect: f.Effect) -> GatewayError | None:
    """Say why an operation may not begin: an equal one is not settled, or another process changes the model.

    The locks see to both. This holds where one was lost, and where a process died in the middle.
    """
    if not isinstance(effect, f.Opened):
        return None
    about = {"digest": effect.digest, "registry": effect.registry, "source": effect.source}
    if _ANY.execute(connection, about).first() is None:
        return None
    equal = connection.execute(_EQUAL, about).first()
    if equal is not None:
        message = f"The same call is unsettled as operation {equal.id}; it was not forwarded again."
        return OperationPending(message, operation=equal.id)
    for row in connection.execute(_ELSEWHERE, about):
        if not effect.models.isdisjoint(f.models_of(row.change)):
            message = f"Operation {row.id} on the same model is not settled yet; nothing was forwarded. Try again."
            return Busy(message, retry_after=2)
    return None


def _settle(connection: Connection, effect: f.Settled) -> bool:
    """End an operation; tell whether it was not ended before."""
    ended = _SETTLE.execute(connection, {"operation": effect.operation, "new_state": effect.state}).rowcount
    return bool(ended) or connection.execute(_STATE, {"operation": effect.operation}).first() is None


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


def _apply(connection: Connection, effect: f.Effect) -> None:
    match effect:
        case f.Opened():
            _INSERT_OPERATION.execute(connection, _opened(effect))
        case f.Settled():
            pass  # done before its event got a place in the chain
        case f.Registered():
            row = dataclasses.asdict(effect.creation)
            _INSERT_CREATION.execute(connection, {**row, "registry": effect.registry})
        case f.MadeLive():
            _end(connection, effect.registry, effect.model, (effect.period.environment,), effect.period.since)
            row = {**dataclasses.asdict(effect.period), "live_as": effect.model}
            _INSERT_PERIOD.execute(connection, {**row, "registry": effect.registry, "model": effect.model})
        case f.TakenDown():
            _end(connection, effect.registry, effect.model, effect.environments, effect.at)
        case f.Renamed():
            for table in t.BY_MODEL:
                here = (table.c.registry == effect.registry, table.c.model == effect.model)
                connection.execute(update(table).where(*here).values(model=effect.new_name))
        case f.Deleted():
            c = t.approvals.c
            query = update(t.approvals).where(c.registry == effect.registry, c.model == effect.model)
            query = query.where(c.deleted_at.is_(None))
            if effect.version:
                query = query.where(c.version == effect.version)
            connection.execute(query.values(deleted_at=effect.at))
        case _:
            _apply_to_records(connection, effect)


def _apply_to_records(connection: Connection, effect: f.Effect) -> None:
    """Change what the gateway itself records about versions."""
    match effect:
        case f.Posted():
            _insert_body(connection, t.evidence, effect, effect.evidence)
        case f.Signed():
            more = {"version": effect.version, "behind": effect.behind}
            _insert_body(connection, t.approvals, effect, effect.approval, **more)
        case f.Withdrawn():
            connection.execute(delete(t.evidence).where(t.evidence.c.id == effect.evidence_id))
        case f.Revoked():
            _set(connection, t.approvals, effect.approval_id, revoked_at=effect.at)
        case f.Archived():
            _keep(connection, "rules", effect)
        case f.Reviewed():
            _keep(connection, "review", effect)
        case f.Weighed():
            _keep(connection, "facts", effect)
        case f.Quarantined():
            row = {"registry": effect.registry, **dataclasses.asdict(effect.quarantine)}
            connection.execute(insert(t.quarantines), row)
        case f.Released():
            _set(connection, t.quarantines, effect.quarantine_id, lifted_at=effect.at)
        case f.Requested():
            here = {"registry": effect.registry, "model": effect.model}
            connection.execute(insert(t.requests), {**here, **dataclasses.asdict(effect.request)})
        case f.RequestEnded():
            ended = {"ended_at": effect.at, "ended_by": effect.by, "operation": effect.operation}
            still_open = (t.requests.c.id == effect.request_id, t.requests.c.state == "open")
            connection.execute(update(t.requests).where(*still_open).values(state=effect.state, **ended))
        case f.Owed():
            connection.execute(insert(t.debts), dataclasses.asdict(effect.debt))
        case f.Paid():
            closed = {"closed_at": effect.at, "closed_by": effect.by, "closing_reason": effect.reason}
            _set(connection, t.debts, effect.debt_id, **closed)
            connection.execute(_PASSED, {"by_operation": effect.debt_id})
        case f.Held():
            row = {**dataclasses.asdict(effect.hold), "lifted_by": ""}
            connection.execute(insert(t.holds), row)
        case f.HoldLifted():
            _set(connection, t.holds, effect.hold_id, lifted_at=effect.at, lifted_by=effect.by)
        case f.Answered():
            _answer(connection, effect)
        case f.KeysUsed():
            _use(connection, effect)
        case f.Follows() | f.Reached() | f.Redelivered():
            outbox.apply(connection, effect)


def _opened(effect: f.Opened) -> dict[str, Any]:
    return {
        "id": effect.operation,
        "digest": effect.digest,
        "registry": effect.registry,
        "state": "open",
        "change": effect.change,
        "at": effect.at,
        "key": effect.key or None,
        "source": effect.source,
    }


def _set(connection: Connection, table: Table, identifier: str, **values: Any) -> None:
    connection.execute(update(table).where(table.c.id == identifier).values(**values))


def _keep(connection: Connection, kind: str, effect: f.Archived | f.Reviewed | f.Weighed) -> None:
    """Keep a document by its digest; the same one is kept once."""
    name = {"kind": kind, "digest": effect.digest}
    if _DOCUMENT.execute(connection, name).first() is None:
        _INSERT_DOCUMENT.execute(connection, {**name, "body": effect.document, "at": effect.at})


def _answer(connection: Connection, effect: f.Answered) -> None:
    """Keep an answer for a day; the first one for a key stays."""
    c = t.answers.c
    connection.execute(delete(t.answers).where(c.at < effect.at - ANSWERS_KEPT_SECONDS))
    if connection.execute(select(c.at).where(c.key == effect.key)).first() is None:
        connection.execute(insert(t.answers), dataclasses.asdict(effect))


def _use(connection: Connection, effect: f.KeysUsed) -> None:
    """Keep the last hour of each key."""
    c = t.key_uses.c
    for credential, hour in effect.hours.items():
        if connection.execute(update(t.key_uses).where(c.credential == credential).values(hour=hour)).rowcount == 0:
            connection.execute(insert(t.key_uses).values(credential=credential, hour=hour))


def _insert_body(
    connection: Connection, table: Any, effect: f.Posted | f.Signed, body: Evidence | Approval, **more: Any
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
    """End what is live in *environments*; in all of the model's, if none is named."""
    here = {"in_registry": registry, "of_model": model}
    if not environments:
        connection.execute(_END.values(until=at), here)
    for name in environments:
        _END_ONE.execute(connection, {**here, "in_environment": name, "at": at})
