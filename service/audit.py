"""The audit event, the ports that keep it (journal, sinks), and the trail that writes each phase."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

import structlog

from service.effects import (
    Effect,
    Opened,
    Posted,
    Quarantined,
    Released,
    Requested,
    RequestEnded,
    Revoked,
    Settled,
    Signed,
    Weighed,
    Withdrawn,
)
from service.errors import GatewayError
from service.model import ACTIONS, Call, Decision, Principal, Record, Verdict
from service.modes import ENFORCE, Denial
from service.records import Creation, Debt, LivePeriod, PromotionRequest, Quarantine, VersionRecords

MAX_EVENT_BYTES = 16 << 10
_MAX_GROUPS = 20
_MAX_TEXT = 512
PHASES = frozenset({"intent", "outcome", "reconciled", "denied", "rejected", "summed"})
OUTCOMES = frozenset({"succeeded", "failed", "unknown", "denied", "rejected"})
EVENT_ACTIONS = ACTIONS | {
    "authentication:fail",
    "request:refuse",
    "request:limit",
    "token:exchange",
    "environment:drift",
    "environment:revert",
}
"""What events are about: the actions of the policy, and what the gateway finds or does by itself."""
_log = structlog.get_logger()
Event = dict[str, Any]
ANY = object()
"""As a filter's value: set, whatever to."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpenOperation:
    """An operation without an outcome, as the reconciler finds it."""

    operation: str
    digest: str
    registry: str
    state: str
    change: Mapping[str, Any] | None
    intent: Event
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """A document that is kept by its digest, and since when."""

    document: Mapping[str, Any]
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What a POST with an Idempotency-Key was answered."""

    fingerprint: str
    status: int
    headers: Mapping[str, str]
    body: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class KnownOperation:
    """An operation that an Idempotency-Key began."""

    id: str
    digest: str
    state: str
    """``open``, ``unknown``, ``succeeded``, ``failed`` or ``unproven``."""


class Journal(Protocol):
    """The durable store. Every method raises JournalUnavailable when it cannot answer within its deadline."""

    async def append(
        self,
        events: Sequence[Event],
        effects: Sequence[Effect] = (),
        *,
        undo: tuple[Sequence[Event], Sequence[Effect]] | None = None,
    ) -> list[Event]:
        """Store *events* and *effects* in one transaction; return the events with sequence and previous hash.

        When it returns they are durable. When it raises they are not, or *undo* is stored after them.

        Raises:
            OperationPending: they begin an operation equal to one that is not settled, which the error names.
            Busy: they begin one about a model that another process is changing. Both: nothing is stored.
        """

    async def events(self, filters: Mapping[str, Any], after: int, limit: int) -> list[tuple[int, Event]]:
        """List events after the sequence *after*, oldest first.

        A filter's value is exact, a list of which one must be it, or `ANY` for whatever is set.
        """

    async def operation_events(self, operation: str) -> list[Event]:
        """List the events of one operation."""

    async def unsettled(self, operation: str | None = None) -> list[OpenOperation]:
        """List operations that have an intent and no terminal outcome, or *operation* if it is one."""

    async def operation_by_key(self, key: str) -> KnownOperation | None:
        """Return the newest operation that was begun with this Idempotency-Key (hashed)."""

    async def version(self, registry: str, model: str, binding: str) -> VersionRecords:
        """Get all that is recorded of one version."""

    async def periods(self, registry: str, model: str) -> list[LivePeriod]:
        """List what was live when, in every environment of a model, oldest first."""

    async def periods_named(self, registry: str, name: str) -> list[LivePeriod]:
        """List what was live when in the model that had this *name* then, oldest first."""

    async def verdicts(self, operations: Sequence[str], environment: str) -> dict[str, Mapping[str, Any]]:
        """Map those of *operations* that were judged to the verdict for *environment* in their last event."""

    async def document(self, kind: str, digest: str) -> Kept | None:
        """Return what is kept by *digest*: ``rules``, a ``review`` or ``facts``."""

    async def answer(self, key: str) -> StoredAnswer | None:
        """Return what a POST with this Idempotency-Key (hashed) was answered."""

    async def debts(self, registry: str | None = None, *, open_only: bool = True) -> list[tuple[str, Debt]]:
        """List what emergencies left, oldest first, each with the model's present name."""

    async def debt(self, debt_id: str) -> Debt | None:
        """Get what an emergency left, with the model's present name."""

    async def requests(self, now: float) -> list[tuple[str, str, PromotionRequest]]:
        """List the requests for promotions that are open and not expired, oldest first: registry, model, request."""

    async def request(self, request_id: str) -> tuple[str, str, PromotionRequest] | None:
        """Get a request for a promotion: registry, model, request."""

    async def present_name(self, registry: str, model: str, since: float) -> str:
        """Return the name that what was named *model* at the time *since* has now, by the renames on record."""

    async def model_changes(self, after: int) -> tuple[int, list[Event]]:
        """List what says who owns a model, oldest first: creations, renames and deletions that succeeded, baselines.

        Returns:
            The sequence up to which it looked, some way after *after*, and the events; *after* itself at the end.
        """

    async def creations(self, registry: str, models: Collection[str], versions: Collection[str]) -> list[Creation]:
        """List who registered versions of *models* of these numbers through the gateway, deleted ones too."""

    async def quarantines(self, registry: str) -> list[Quarantine]:
        """List the quarantines of a registry that were not lifted, oldest first."""

    async def live(self) -> list[tuple[str, str, LivePeriod]]:
        """List what is live everywhere by record: registry, model, period."""

    async def signed(self) -> list[Signed]:
        """List the decisions of everywhere that are neither revoked nor about a deleted version, oldest first.

        Those of before schema 0002, which did not keep what stands behind them, are left out.
        """

    async def ping(self) -> None:
        """Return when the journal can be written."""

    async def close(self) -> None:
        """Stop the writer."""


class Sink(Protocol):
    """Another place events go."""

    async def write(self, event: Event) -> None:
        """Return when the event is there."""

    async def close(self) -> None:
        """Flush."""


class Asked(NamedTuple):
    """One thing that the policy was asked."""

    only_denials: bool
    """Only a row that denies it would have refused; none had to allow it."""
    action: str
    resource: str


def documents_of(asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """Give the JSON of what was asked: what had to be allowed comes first, in the order of asking."""
    ordered = sorted(asked, key=lambda item: item.only_denials)
    return [{"action": item.action, "resource": item.resource, "only_denials": item.only_denials} for item in ordered]


@dataclasses.dataclass(slots=True)
class Operation:
    """The record of one call while it goes down the path."""

    id: str
    principal: Principal
    registry: str
    name: str
    action: str
    resource: str
    address: str
    digest: str
    change: Mapping[str, Any] | None
    at: float
    started: float
    decision: Decision = dataclasses.field(default_factory=Decision)
    verdict: Verdict | None = None
    verdicts: dict[str, Verdict] = dataclasses.field(default_factory=dict)
    """By environment, where one change is judged for several: a rename."""
    facts: dict[str, Weighed] = dataclasses.field(default_factory=dict)
    """By environment: what it was judged by. They are stored with the first event that names them."""
    environment: str | None = None
    model: str | None = None
    version: str | None = None
    before: Any = None
    after: Any = None
    reason: str = ""
    detail: str = ""
    status: int | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    key: str = ""
    """sha256 of principal and Idempotency-Key, where one was sent."""
    telemetry: bool = False
    """Nothing about it waits for the journal."""
    intended: bool = False
    """An intent is durable, so the operation must end with an outcome."""
    mode: str = ENFORCE
    """How access is taken: only a call of a registry's own API has another than ``enforce``."""
    asked: dict[Asked, None] = dataclasses.field(default_factory=dict)
    """Everything the policy was asked that it let pass."""
    would_deny: list[Denial] = dataclasses.field(default_factory=list)
    """What enforcement would have refused."""
    left_out: dict[Denial, None] = dataclasses.field(default_factory=dict)
    """What enforcement would have left out of a search; one more than are named says that there are many."""

    @classmethod
    def opened(cls, call: Call, now: float) -> Operation:
        """Begin the record of *call*."""
        first = call.needs[0] if call.needs else None
        change = dataclasses.asdict(call.change) if call.change is not None else None
        return cls(
            id=str(uuid.uuid4()),
            principal=call.principal,
            registry=call.registry,
            name=call.name,
            action=first.action if first else "",
            resource=first.resource if first and isinstance(first.resource, str) else "",
            address=call.address,
            digest=call.digest(),
            change=None if change is None else {"kind": type(call.change).__name__, **change},
            at=now,
            started=time.monotonic(),
            model=getattr(call.change, "model", None),
            version=getattr(call.change, "version", None) or None,
            reason=getattr(call.change, "reason", ""),
            telemetry=call.record is Record.SUMMED,
            key=call.key,
        )

    def event(self, phase: str, outcome: str | None, source: str, now: float) -> Event:
        """Build the CloudEvents 1.0 object of one phase."""
        data = {
            "phase": phase,
            "operation": self.id,
            "outcome": outcome,
            "actor": {
                "subject": self.principal.subject,
                "groups": sorted(self.principal.groups),
                "acting_for": self.principal.acting_for,
                "issuer": self.principal.issuer,
                "credential": self.principal.credential,
                "claims": dict(self.principal.claims),
                "address": self.address,
            },
            "call": self.name,
            "action": self.action,
            "resource": self.resource,
            "registry": self.registry,
            "model": self.model,
            "version": self.version,
            "environment": self.environment,
            "decision": dataclasses.asdict(self.decision),
            "asked": documents_of(self.asked),
            "would_deny": [dataclasses.asdict(item) for item in self.would_deny],
            "verdict": self.verdict.document() if self.verdict else None,
            "verdicts": {name: item.document() for name, item in self.verdicts.items()},
            "facts": {
                name: {"digest": item.digest, "at": item.at, "approved_under": item.approved_under}
                for name, item in self.facts.items()
            },
            "before": self.before,
            "after": self.after,
            "change": self.change,
            "reason": self.reason,
            "detail": self.detail,
            "notes": list(self.notes),
            "status": self.status,
            "latency_ms": None if phase == "intent" else round((time.monotonic() - self.started) * 1000, 3),
        }
        return build_event(
            self.action or "request:refuse", phase, data, source, now, f"{self.registry}/{self.resource}"
        )


def _undone(effect: Effect, now: float) -> Effect | None:
    """Say what takes back a record whose author was told that it is not stored."""
    match effect:
        case Posted(evidence=evidence):
            return Withdrawn(evidence.id)
        case Signed(approval=approval):
            return Revoked(approval.id, now)
        case Quarantined(quarantine=quarantine):
            return Released(quarantine.id, now)
        case Requested(request=request):
            return RequestEnded(request.id, "cancelled", now, request.by)
    return None


def build_event(action: str, phase: str, data: Mapping[str, Any], source: str, now: float, subject: str) -> Event:
    """Build one CloudEvent, cut to 16 KiB: facts of findings go first, then long texts."""
    event = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": source,
        "type": f"registry-gateway.{action.replace(':', '.')}.{phase}",
        "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "subject": subject[:_MAX_TEXT],
        "datacontenttype": "application/json",
        "data": dict(data),
    }
    for shrink in (_with_few_groups, _without_facts, _with_short_texts, _core):
        if len(canonical_json(event)) <= MAX_EVENT_BYTES - 512:  # room for sequence and hash
            break
        event["data"] = shrink(event["data"])
    return event


def canonical_json(document: Any) -> bytes:
    """Give the one byte form of *document*: sorted keys, no spaces, ASCII, control characters escaped."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _with_few_groups(data: Any) -> Any:
    """Keep 20 groups, and say how many more there were: a token can bring hundreds."""
    groups = list(data.get("actor", {}).get("groups", ()))
    if len(groups) <= _MAX_GROUPS:
        return data
    kept = {"groups": groups[:_MAX_GROUPS], "more_groups": len(groups) - _MAX_GROUPS}
    return {**data, "actor": {**data["actor"], **kept}}


def _without_facts(data: Any) -> Any:
    def bare(verdict: Any) -> Any:
        return verdict and {**verdict, "findings": [{**item, "facts": {}} for item in verdict["findings"]]}

    return _with_verdicts(data, bare)


def _with_verdicts(data: Any, change: Callable[[Any], Any]) -> Any:
    verdicts = {name: change(verdict) for name, verdict in data.get("verdicts", {}).items()}
    return {**data, "verdict": change(data.get("verdict")), "verdicts": verdicts}


def _with_short_texts(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, dict):
        return {key[:_MAX_TEXT]: _with_short_texts(item) for key, item in list(value.items())[:50]}
    if isinstance(value, list | tuple):
        return [_with_short_texts(item) for item in value[:50]]
    return value


def _cut(text: str, limit: int = _MAX_TEXT) -> str:
    """Cut *text* so that its JSON has at most about *limit* bytes; a character can take twelve."""
    kept = text[:limit]
    while len(json.dumps(kept)) - 2 > limit:
        kept = kept[: len(kept) * 3 // 4]
    return text if len(kept) == len(text) else f"{kept}…(cut, {len(text)} characters)"


def _core(data: Any) -> Any:
    """Keep what every event must say, within any bound: lists shrink to their first items, facts are gone."""

    def core(verdict: Any) -> Any:
        findings = [
            {**item, "because": _cut(item["because"], 150), "missing": [_cut(m, 60) for m in item["missing"][:3]]}
            for item in (verdict or {}).get("findings", ())[:20]
        ]
        return verdict and {**verdict, "findings": findings}

    return {
        **_with_verdicts(data, core),
        "verdicts": {},
        "facts": dict(list(data.get("facts", {}).items())[:5]),
        "actor": {**data["actor"], "groups": list(data["actor"].get("groups", ()))[:5], "claims": {}},
        "notes": list(data.get("notes", ()))[:3],
        "asked": list(data.get("asked", ()))[:5],
        "would_deny": list(data.get("would_deny", ()))[:5],
        "cut": True,
    }


class Trail:
    """Writes the phases of operations to the journal and, when they are durable, to the sinks."""

    def __init__(
        self,
        journal: Journal,
        sinks: Iterable[Sink],
        source: str,
        now: Callable[[], float] = time.time,
        still_held: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Write to *journal*, then to *sinks*; *source* names this process in events.

        *still_held* raises Busy where a lock is lost that other replicas see.
        """
        self._still_held = still_held
        self.journal = journal
        self.now = now
        self._sinks = tuple(sinks)
        self._source = source
        self._queue: asyncio.Queue[Event] = asyncio.Queue(maxsize=10_000)
        self._pump: asyncio.Task[None] | None = None
        self._later: set[asyncio.Task[None]] = set()
        self.on_recorded: Callable[[Event], Awaitable[None]] | None = None
        """Told of each event once it is durable; never raises."""
        self.lost = 0
        """Events that could not be journalled or given to a sink since the start."""

    def start(self) -> None:
        """Begin to feed the sinks."""
        self._pump = asyncio.create_task(self._feed_sinks())

    async def close(self) -> None:
        """Feed the sinks what is left."""
        await self.caught_up()
        if self._pump is not None:
            await self._queue.join()
            self._pump.cancel()
        for sink in self._sinks:
            await sink.close()

    async def caught_up(self) -> None:
        """Return when the refusals that nobody waited for are recorded."""
        await asyncio.gather(*self._later)

    async def intent(self, operation: Operation) -> None:
        """Record what is about to be forwarded.

        Raises:
            JournalUnavailable: it is not recorded, so nothing may be forwarded.
            Busy: a lock was lost meanwhile, so nothing may be forwarded; that is recorded.
        """
        event = operation.event("intent", None, self._source, self.now())
        operation.at = self.now()  # it may have waited for its turn until now
        opened = Opened(
            operation.id,
            operation.digest,
            operation.registry,
            operation.change,
            operation.at,
            operation.key,
            self._source,
        )
        undo = dataclasses.replace(operation, detail="The intent was recorded too late; nothing was forwarded.")
        await self._append(
            [event],
            [opened, *operation.facts.values()],
            undo=([undo.event("outcome", "failed", self._source, self.now())], [Settled(operation.id, "failed")]),
        )
        operation.intended = True
        if self._still_held is not None:
            try:
                await self._still_held()
            except GatewayError as error:
                operation.detail, error.operation = error.detail, operation.id
                await self.outcome(operation, "failed")
                raise

    async def outcome(self, operation: Operation, outcome: str, effects: Sequence[Effect] = ()) -> None:
        """Record how it ended.

        Never raises: the change is made, and failing now would lie. Without a record the intent stays open and the
        reconciler settles it.
        """
        event = operation.event("outcome", outcome, self._source, self.now())
        await self._append_or_count([event], [Settled(operation.id, outcome), *effects])

    async def reconciled(self, operation: OpenOperation, outcome: str, detail: str, effects: Sequence[Effect]) -> None:
        """Record what reading the registry back showed about an open operation."""
        data = {
            **operation.intent["data"],
            "phase": "reconciled",
            "outcome": outcome,
            "detail": detail,
        }
        for key in ("sequence", "previous"):
            data.pop(key, None)
        event = build_event(data["action"], "reconciled", data, self._source, self.now(), operation.intent["subject"])
        state = "unproven" if outcome == "unknown" else outcome  # it ends, so that nobody looks again
        await self._append([event], [Settled(operation.operation, state), *effects])

    async def refused(self, operation: Operation, phase: str) -> None:
        """Record a call that was ``denied`` or ``rejected``; telemetry does not wait. Never raises: no stays no."""
        if operation.telemetry:
            self.refused_later(operation, phase)
            return
        event = operation.event(phase, phase, self._source, self.now())
        await self._append_or_count([event], list(operation.facts.values()))

    def refused_later(self, operation: Operation, phase: str) -> None:
        """Record a refusal without waiting: telemetry never waits for the journal."""
        event = operation.event(phase, phase, self._source, self.now())
        task = asyncio.create_task(self._append_or_count([event]))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def stored(self, operation: Operation, effects: Sequence[Effect]) -> None:
        """Record a change of the journal itself (evidence, an approval) together with it.

        Raises:
            JournalUnavailable: nothing is stored.
        """
        late = dataclasses.replace(operation, detail="The journal answered too late; it is taken back.")
        back = [undone for effect in effects if (undone := _undone(effect, self.now())) is not None]
        await self._append(
            [operation.event("outcome", "succeeded", self._source, self.now())],
            effects,
            undo=([late.event("outcome", "failed", self._source, self.now())], back),
        )

    async def keep(self, effect: Effect) -> None:
        """Keep what is no event: rules or a review by digest, an answer by key.

        Raises:
            JournalUnavailable: it is not kept.
        """
        await self._append([], [effect])

    def sums(self, documents: Iterable[Mapping[str, Any]]) -> list[Event]:
        """Make events of sums; each has its identifier from now on, so it cannot be recorded twice."""
        now = self.now()
        return [
            build_event(data["action"], "summed", data, self._source, now, f"{data['registry']}/{data['resource']}")
            for data in documents
        ]

    async def summed(self, events: Sequence[Event]) -> None:
        """Record what `sums` made, all or none.

        Raises:
            JournalUnavailable: it may be recorded all the same, or was before; look for its operation.
        """
        await self._append(events)

    async def noted(self, operation: Operation) -> None:
        """Record what changed nothing: a read, where reads are recorded, or a promotion of what was live."""
        event = operation.event("outcome", "succeeded", self._source, self.now())
        await self._append_or_count([event], list(operation.facts.values()))

    async def _append_or_count(self, events: Sequence[Event], effects: Sequence[Effect] = ()) -> None:
        try:
            await self._append(events, effects)
        except GatewayError as error:
            self.lost += len(events)
            _log.error("audit event not journalled", operation=events[0]["data"]["operation"], problem=error.detail)

    async def _append(
        self,
        events: Sequence[Event],
        effects: Sequence[Effect] = (),
        *,
        undo: tuple[Sequence[Event], Sequence[Effect]] | None = None,
    ) -> None:
        for event in await self.journal.append(events, effects, undo=undo):
            try:
                self._queue.put_nowait(event)
            except asyncio.QueueFull:
                self.lost += 1
            if self.on_recorded is not None:
                await self.on_recorded(event)

    async def _feed_sinks(self) -> None:
        while True:
            event = await self._queue.get()
            for sink in self._sinks:
                try:
                    await sink.write(event)
                except Exception as error:  # noqa: BLE001  # a broken sink must not stop the others
                    self.lost += 1
                    _log.error("sink failed", problem=f"{type(error).__name__}: {error}")
            self._queue.task_done()
