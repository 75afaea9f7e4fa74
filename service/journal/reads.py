"""What is read from the journal. Each method has the journal's deadline."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import structlog
from sqlalchemy import BigInteger, Connection, Select, and_, bindparam, func, or_, select

from service.effects import Signed
from service.errors import JournalUnavailable
from service.event import Event
from service.journal import tables as t
from service.journal.database import FAILURES, Database
from service.journal.queries import END, read_page
from service.keeping import ANY, Kept, KnownOperation, OpenOperation, Page, StoredAnswer, UnsettledOperation
from service.model import People
from service.owners import TELLING
from service.patience import asking
from service.records import (
    Approval,
    Creation,
    Debt,
    Evidence,
    Hold,
    LivePeriod,
    PromotionRequest,
    Quarantine,
    VersionRecords,
)

T = TypeVar("T")
_MAX_REQUESTS = 1000


def _any(column: Any) -> Any:
    """Give *column* as no index has it, where another one has to be used: most events have such a value."""
    return func.coalesce(column, "")


_INTENT = _any(t.events.c.phase) == "intent"
_log = structlog.get_logger()


def _of(columns: Any) -> tuple[Any, ...]:
    """Give the condition that names one version, by parameters."""
    return (
        columns.registry == bindparam("registry"),
        columns.model == bindparam("model"),
        columns.binding == bindparam("binding"),
    )


_PERIODS = (
    select(t.periods)
    .where(t.periods.c.registry == bindparam("registry"), t.periods.c.model == bindparam("model"))
    .order_by(t.periods.c.since, t.periods.c.id)
)
_FIRST = (
    select(func.min(t.periods.c.id))
    .where(*_of(t.periods.c), t.periods.c.kind != "drift")
    .group_by(t.periods.c.environment)
)
"""Of each environment, the period in which a version was live there first."""
_QUARANTINES = (
    select(t.quarantines)
    .where(t.quarantines.c.registry == bindparam("registry"), t.quarantines.c.lifted_at.is_(None))
    .order_by(t.quarantines.c.at)
)
_PAGE = 5000
_LAST = select(func.max(t.events.c.sequence))
_AFTER = bindparam("after", type_=BigInteger)
_CHECKPOINT = (
    select(t.events.c.sequence)
    .where(t.events.c.sequence > _AFTER, t.events.c.phase == "checkpoint")
    .order_by(t.events.c.sequence.desc())
    .limit(1)
)
TELLS_OWNERS = and_(
    t.events.c.outcome == "succeeded",
    or_(
        *(t.events.c.body.contains(f'"kind":"{kind}"') for kind in TELLING),
        t.events.c.action == "environment:adopt",
    ),
)
"""Which events say who owns a model. A text of a caller cannot look like that: its quotation marks are escaped."""
_MODEL_CHANGES = (
    select(t.events.c.body)
    .where(
        t.events.c.sequence > _AFTER,
        t.events.c.sequence <= _AFTER + _PAGE,  # a page has a bounded cost, however long the journal is
        TELLS_OWNERS,
    )
    .order_by(t.events.c.sequence)
)
# Built once: a statement costs more to build than to run.
_RECORDS = (
    select(t.creations).where(*_of(t.creations.c)),
    select(t.evidence.c.body).where(*_of(t.evidence.c)).order_by(t.evidence.c.number),
    select(t.approvals.c.body, t.approvals.c.revoked_at).where(*_of(t.approvals.c)).order_by(t.approvals.c.number),
    select(t.periods).where(t.periods.c.id.in_(_FIRST)).order_by(t.periods.c.since, t.periods.c.id),
    _QUARANTINES,
    select(t.requests)
    .where(*_of(t.requests.c), t.requests.c.state == "open")
    .order_by(t.requests.c.expires.desc())  # so that the limit cuts off expired ones only
    .limit(_MAX_REQUESTS),
    select(t.requests.c.by, t.requests.c.persons).where(*_of(t.requests.c)),
)
"""Of one version: creation, evidence, approvals, where it was live first, requests, askers; and all quarantines."""


class Reads:
    """The reading half of the journal; readers do not wait for the writer.

    Who a record's author counts as is told by the present configuration: two identities are found to be one person
    after both have signed.
    """

    def __init__(self, database: Database, deadline_seconds: float, people: People) -> None:
        """Read from *database*; *people* says which identities are one person now."""
        self._people = people
        self._database = database
        self._deadline = deadline_seconds

    async def _rows(self, query: Select[Any], **parameters: str) -> Sequence[Any]:
        (rows,) = await self._all([query], parameters)
        return rows

    async def _read(self, work: Callable[[Connection], T]) -> T:
        try:
            with asking(self._deadline) as seconds:
                return await self._database.read(work, seconds)
        except FAILURES as error:
            _log.error("journal read failed", problem=type(error).__name__)
            message = "The journal cannot be read."
            raise JournalUnavailable(message) from None

    async def _all(self, queries: Sequence[Select[Any]], parameters: Mapping[str, str | int]) -> list[Sequence[Any]]:
        """Run *queries* in one transaction: they see one state."""

        def work(connection: Connection) -> list[Sequence[Any]]:
            return [connection.execute(query, parameters).all() for query in queries]

        return await self._read(work)

    async def page(
        self, filters: Mapping[str, Any], after: int | None, limit: int, *, newest_first: bool = False
    ) -> Page:
        """Read one page of events (see `service.keeping.Journal`)."""
        beyond = after if after is not None else (END if newest_first else 0)
        return await self._read(partial(read_page, filters, beyond, limit, newest_first))

    async def events(self, filters: Mapping[str, Any], after: int, limit: int) -> list[tuple[int, Event]]:
        """List events after the sequence *after* that match *filters*, oldest first."""
        query = select(t.events.c.sequence, t.events.c.body).where(t.events.c.sequence > after)
        for name, value in filters.items():
            if name == "since":
                query = query.where(t.events.c.time >= value)
            elif name == "until":
                query = query.where(t.events.c.time < value)
            elif value is ANY:
                query = query.where(t.events.c[name].is_not(None))
            elif isinstance(value, list):
                query = query.where(t.events.c[name].in_(value))
            else:
                query = query.where(t.events.c[name] == value)
        rows = await self._rows(query.order_by(t.events.c.sequence).limit(limit))
        return [(row.sequence, json.loads(row.body)) for row in rows]

    async def heads(self, after: int) -> tuple[int, int]:
        """Return the sequence of the last event, and of the last checkpoint after the sequence *after* (0: none)."""
        last, checkpoint = await self._all([_LAST, _CHECKPOINT], {"after": after})
        return last[0][0] or 0, checkpoint[0][0] if checkpoint else 0

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
            .join(t.events, (t.events.c.operation == t.operations.c.id) & _INTENT)
            .where(t.operations.c.state.in_(("open", "unknown")))
            .order_by(t.operations.c.at)
        )
        if operation is not None:
            query = query.where(t.operations.c.id == operation)
        return [
            OpenOperation(
                row.id, row.digest, row.registry, row.state, row.change, json.loads(row.body), row.at, row.source
            )
            for row in await self._rows(query)
        ]

    async def operation_by_key(self, key: str) -> KnownOperation | None:
        """Return the newest operation that was begun with this Idempotency-Key (hashed)."""
        c = t.operations.c
        rows = await self._rows(select(c.id, c.digest, c.state).where(c.key == key).order_by(c.at.desc()).limit(1))
        return KnownOperation(rows[0].id, rows[0].digest, rows[0].state) if rows else None

    async def version(self, registry: str, model: str, binding: str) -> VersionRecords:
        """Get all that is recorded of one version."""
        names = {"registry": registry, "model": model, "binding": binding}
        creations, evidence, approvals, periods, quarantined, requests, askers = await self._all(_RECORDS, names)
        quarantines = tuple(map(_quarantine, quarantined))
        behind = {item for row in periods for item in row.behind}
        return VersionRecords(
            creation=self._creation(creations[0]) if creations else None,
            evidence=tuple(self._evidence(row) for row in evidence),
            approvals=tuple(self._approval(row) for row in approvals),
            periods=tuple(_period(row) for row in periods),
            quarantine=next((q for q in quarantines if (q.model, q.binding) == (model, binding)), None)
            or next((q for q in quarantines if not behind.isdisjoint(q.behind)), None),
            quarantines=quarantines,
            requests=tuple(self._request(row) for row in requests),
            askers=self._people.everyone(who for row in askers for who in (row.by, *row.persons)),
        )

    async def model_changes(self, after: int) -> tuple[int, list[Event]]:
        """List what says who owns a model (see `service.keeping.Journal`); a page of the journal at a time."""
        heads, rows = await self._all([_LAST, _MODEL_CHANGES], {"after": after})
        until = min(int(heads[0][0] or 0), after + _PAGE)
        return max(until, after), [json.loads(row.body) for row in rows]

    async def creations(self, registry: str, models: Collection[str], versions: Collection[str]) -> list[Creation]:
        """List who registered versions of *models* of these numbers through the gateway, deleted ones too."""
        c = t.creations.c
        rows = await self._rows(
            select(t.creations).where(c.registry == registry, c.model.in_(models), c.version.in_(versions))
        )
        return [self._creation(row) for row in rows]

    async def quarantines(self, registry: str) -> list[Quarantine]:
        """List the quarantines of a registry that were not lifted, oldest first."""
        return [_quarantine(row) for row in await self._rows(_QUARANTINES, registry=registry)]

    async def last(self) -> int:
        """Return the sequence of the newest event; 0 where there is none."""
        return int((await self._rows(_LAST))[0][0] or 0)

    async def signed(self, place: tuple[str, str] | None = None) -> list[Signed]:
        """List the decisions that are neither revoked nor about a deleted version, oldest first."""
        c = t.approvals.c
        query = select(t.approvals).where(c.revoked_at.is_(None), c.deleted_at.is_(None), c.version.is_not(None))
        if place is not None:
            query = query.where(c.registry == place[0], c.model == place[1])
        return [
            Signed(row.registry, row.model, row.binding, self._approval(row), row.version, tuple(row.behind))
            for row in await self._rows(query.order_by(c.number))
        ]

    async def periods(self, registry: str, model: str) -> list[LivePeriod]:
        """List what was live when, oldest first."""
        rows = await self._rows(_PERIODS, registry=registry, model=model)
        return [_period(row) for row in rows]

    async def periods_named(self, registry: str, name: str) -> list[LivePeriod]:
        """List what was live when in the model that had this *name* then, oldest first."""
        c = t.periods.c
        query = select(t.periods).where(c.registry == registry, c.live_as == name).order_by(c.since, c.id)
        return [_period(row) for row in await self._rows(query)]

    async def holds(self) -> list[Hold]:
        """List the legal holds that are in force, oldest first."""
        rows = await self._rows(select(t.holds).where(t.holds.c.lifted_at.is_(None)).order_by(t.holds.c.at))
        return [Hold(**_values(row, "lifted_at", "lifted_by")) for row in rows]

    async def unproven(self) -> int:
        """Count the operations that ended although nothing about them could be proved."""
        c = t.operations.c
        return int((await self._rows(select(func.count()).where(c.state == "unproven")))[0][0])

    async def unsettled_page(self, after: str, limit: int) -> list[UnsettledOperation]:
        """List operations without a proven outcome, by identifier, those after *after*."""
        c = t.operations.c
        query = (
            select(c.id, c.state, c.registry, c.at, t.events.c.body)
            .join(t.events, (t.events.c.operation == c.id) & _INTENT)
            .where(c.state.in_(("open", "unknown", "unproven")), c.id > after)
        )
        rows = await self._rows(query.order_by(c.id).limit(limit))
        return [UnsettledOperation(row.id, row.state, row.registry, row.at, json.loads(row.body)) for row in rows]

    async def live(self, place: tuple[str, str] | None = None) -> list[tuple[str, str, LivePeriod]]:
        """List what is live by record, everywhere or in one model: registry, model, period."""
        query = select(t.periods).where(t.periods.c.until.is_(None)).order_by(t.periods.c.id)
        if place is not None:
            query = query.where(t.periods.c.registry == place[0], t.periods.c.model == place[1])
        rows = await self._rows(query)
        return [(row.registry, row.model, _period(row)) for row in rows]

    async def verdicts(self, operations: Sequence[str], environment: str) -> dict[str, Mapping[str, Any]]:
        """Map those of *operations* that were judged to the verdict for *environment* in their last event."""
        c = t.events.c
        rows = await self._rows(
            select(c.operation, c.body).where(c.operation.in_(operations[:_MAX_REQUESTS])).order_by(c.sequence)
        )
        found = {}
        for row in rows:
            data = json.loads(row.body)["data"]
            verdict = data.get("verdicts", {}).get(environment) or data["verdict"]
            if verdict:
                found[row.operation] = verdict
        return found

    async def document(self, kind: str, digest: str) -> Kept | None:
        """Return what is kept by *digest*: ``rules``, a ``review`` or ``facts``."""
        c = t.documents.c
        rows = await self._rows(select(c.body, c.at).where(c.kind == kind, c.digest == digest))
        return Kept(dict(rows[0].body), rows[0].at) if rows else None

    async def answer(self, key: str) -> StoredAnswer | None:
        """Return what a POST with this Idempotency-Key was answered."""
        rows = await self._rows(select(t.answers).where(t.answers.c.key == key))
        if not rows:
            return None
        row = rows[0]
        return StoredAnswer(row.fingerprint, row.status, dict(row.headers), row.body, row.at)

    async def debts(self, registry: str | None = None, *, open_only: bool = True) -> list[tuple[str, Debt]]:
        """List what emergencies left, oldest first, each with the model's present name."""
        c = t.debts.c
        query = select(t.debts).order_by(c.at)
        if registry is not None:
            query = query.where(c.registry == registry)
        if open_only:
            query = query.where(c.closed_at.is_(None))
        return [(row.model, self._debt(row)) for row in await self._rows(query)]

    async def debt(self, debt_id: str) -> Debt | None:
        """Get what an emergency left, with the model's present name."""
        rows = await self._rows(select(t.debts).where(t.debts.c.id == debt_id))
        return self._debt(rows[0]) if rows else None

    async def requests(self, now: float) -> list[tuple[str, str, PromotionRequest]]:
        """List the requests for promotions that are open and not expired, oldest first: registry, model, request."""
        c = t.requests.c
        query = select(t.requests).where(c.state == "open", c.expires > now).order_by(c.at)
        return [(row.registry, row.model, self._request(row)) for row in await self._rows(query)]

    async def request(self, request_id: str) -> tuple[str, str, PromotionRequest] | None:
        """Get a request for a promotion: registry, model, request."""
        rows = await self._rows(select(t.requests).where(t.requests.c.id == request_id))
        return (rows[0].registry, rows[0].model, self._request(rows[0])) if rows else None

    async def present_name(self, registry: str, model: str, since: float) -> str:
        """Return the name that what was named *model* at the time *since* has now, by the renames on record."""
        c, sequence = t.events.c, 0
        named = select(c.sequence, c.body).where(_any(c.registry) == registry, _any(c.outcome) == "succeeded")
        named = named.where(c.time >= since)
        named = named.where(c.body.contains('"kind":"ModelRename"'))  # its action may be the retirement it was
        while True:
            rows = await self._rows(named.where(c.model == model, c.sequence > sequence).order_by(c.sequence).limit(1))
            if not rows:
                return model
            sequence, change = rows[0].sequence, json.loads(rows[0].body)["data"]["change"]
            if change["kind"] == "ModelRename":
                model = change["new_name"]

    async def named_since(self, registry: str, model: str) -> float:
        """Return since when *model* is the name of what has it now, by creations and renames on record; 0 if always."""
        c = t.events.c
        told = or_(*(c.body.contains(f'"kind":"{kind}"') for kind in ("ModelCreate", "ModelRename")))
        given = select(c.sequence, c.time, c.body).where(_any(c.registry) == registry, c.model == model)
        rows = await self._rows(given.where(_any(c.outcome) == "succeeded", told).order_by(c.sequence.desc()).limit(1))
        if not rows:
            return 0.0
        data = json.loads(rows[0].body)["data"]
        if data["change"]["kind"] == "ModelRename":  # what had the name has another one
            return float(rows[0].time) + 1e-6
        begun = select(func.min(c.time)).where(c.operation == data["operation"])
        return float((await self._rows(begun))[0][0])

    def _persons(self, by: str, persons: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(self._people.everyone((by, *persons))))

    def _creation(self, row: Any) -> Creation:
        return Creation(**{**_values(row, "registry"), "persons": self._persons(row.by, row.persons)})

    def _request(self, row: Any) -> PromotionRequest:
        values = _values(row, "registry", "model")
        return PromotionRequest(**{**values, "persons": self._persons(row.by, row.persons)})

    def _debt(self, row: Any) -> Debt:
        return Debt(**{**_values(row), "persons": self._persons(row.by, row.persons)})

    def _evidence(self, row: Any) -> Evidence:
        body = row.body
        persons = self._persons(body["by"], body.get("persons", ()))
        return Evidence(**{**body, "groups": tuple(body["groups"]), "persons": persons})

    def _approval(self, row: Any) -> Approval:
        body = row.body
        groups, persons = tuple(body["groups"]), self._persons(body["by"], body["persons"])
        return Approval(**{**body, "groups": groups, "persons": persons, "revoked": row.revoked_at is not None})


def _values(row: Any, *without: str) -> dict[str, Any]:
    """Give a row as keywords; lists of JSON become tuples."""
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in row._mapping.items()  # noqa: SLF001  # SQLAlchemy's public name for it
        if name not in without
    }


def _quarantine(row: Any) -> Quarantine:
    return Quarantine(**_values(row, "registry", "lifted_at"))


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
        row.kind,
        row.artifact_digest,
        row.passed,
        row.live_as,
    )
