"""The trail: writes each phase of an operation to the journal, which is also the outbox of the sinks."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog

from service.effects import (
    Effect,
    Held,
    HoldLifted,
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
from service.event import Asked, Event, build_event, documents_of
from service.keeping import Journal, OpenOperation, Undo
from service.masking import NO_MASKS, Masks
from service.model import Call, Decision, Principal, Record, Verdict
from service.modes import ENFORCE, Denial
from service.patience import left, lift
from service.record_digest import record_of

_log = structlog.get_logger()


class Crowd(Protocol):
    """Sums refusals where there are too many of a kind."""

    def admits(self, operation: Operation, phase: str) -> bool:
        """Tell whether a refusal is an event of its own; otherwise it is counted here."""

    def count(self, operation: Operation, phase: str) -> None:
        """Count a refusal whose event the journal did not take."""


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
    message: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What was asked of the registry; it is no part of events, which hold none of its sensitive values."""
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
    record: Mapping[str, str] | None = None
    """Which record is stored with it, and its digest."""
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
            message=call.request.message if call.request else {},
        )

    def event(self, phase: str, outcome: str | None, source: str, now: float, masks: Masks = NO_MASKS) -> Event:
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
            **({"record": self.record} if self.record else {}),
            "latency_ms": None if phase == "intent" else round((time.monotonic() - self.started) * 1000, 3),
        }
        subject = f"{self.registry}/{self.resource}"
        return build_event(self.action or "request:refuse", phase, data, source, now, subject, masks, self.message)


def _undone(effect: Effect, now: float) -> Effect | None:
    """Say what takes back a record whose author was told that it is not stored."""
    match effect:
        case Posted(evidence=evidence):
            return Withdrawn(evidence.id)
        case Signed(approval=approval):
            return Revoked(approval.id, now)
        case Quarantined(quarantine=quarantine):
            return Released(quarantine.id, now)
        case Held(hold=hold):
            return HoldLifted(hold.id, now, hold.by)
        case Requested(request=request):
            return RequestEnded(request.id, "cancelled", now, request.by)
    return None


class Trail:
    """Writes the phases of operations to the journal."""

    def __init__(
        self,
        journal: Journal,
        source: str,
        now: Callable[[], float] = time.time,
        still_held: Callable[[], Awaitable[None]] | None = None,
        masks: Masks = NO_MASKS,
    ) -> None:
        """Write to *journal*; *source* names this process in events.

        *still_held* raises Busy where a lock is lost that other replicas see; *masks* hide what is sensitive.
        """
        self.masks = masks
        self._still_held = still_held
        self.journal = journal
        self.now = now
        self.source = source
        self._later: set[asyncio.Task[None]] = set()
        self.on_recorded: Callable[[Event], Awaitable[None]] | None = None
        """Told of each event once it is durable; never raises."""
        self.floods: Crowd | None = None
        """Sums refusals where there are too many of a kind."""
        self.lost = 0
        """Events that could not be journalled since the start."""

    async def close(self) -> None:
        """Return when everything is recorded."""
        await self.caught_up()

    async def caught_up(self) -> None:
        """Return when the refusals that nobody waited for are recorded."""
        await asyncio.gather(*self._later)

    async def intent(self, operation: Operation) -> None:
        """Record what is about to be forwarded.

        Raises:
            JournalUnavailable: it is not recorded, so nothing may be forwarded.
            Busy: a lock was lost meanwhile, so nothing may be forwarded; that is recorded.
        """
        event = self._event(operation, "intent", None)
        operation.at = self.now()  # it may have waited for its turn until now
        opened = Opened(
            operation.id,
            operation.digest,
            operation.registry,
            self.masks.document(operation.change, operation.message),
            operation.at,
            operation.key,
            self.source,
        )

        def undo() -> tuple[list[Event], list[Effect]]:
            late = dataclasses.replace(operation, detail="The intent was recorded too late; nothing was forwarded.")
            return [self._event(late, "outcome", "failed")], [Settled(operation.id, "failed")]

        await self._append([event], [opened, *operation.facts.values()], undo=undo)
        operation.intended = True
        if self._still_held is not None:
            try:
                await self._still_held()
            except GatewayError as error:
                operation.detail, error.operation = error.detail, operation.id
                await self._outcome_in_time(operation)
                raise
        lift()

    async def _outcome_in_time(self, operation: Operation) -> None:
        """Record that nothing was forwarded; whoever waits for it does not wait longer than for the intent."""
        seconds = left(math.inf)
        lift()
        task = asyncio.create_task(self.outcome(operation, "failed"))
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        await asyncio.wait([task], timeout=None if math.isinf(seconds) else seconds)

    async def outcome(self, operation: Operation, outcome: str, effects: Sequence[Effect] = ()) -> None:
        """Record how it ended.

        Never raises: the change is made, and failing now would lie. Without a record the intent stays open and the
        reconciler settles it. What another replica has settled, while this process stood still, keeps its outcome.
        """
        event = self._event(operation, "outcome", outcome)
        if await self._append_or_count([event], [Settled(operation.id, outcome), *effects]) == []:
            _log.error("settled by another replica before its answer came", operation=operation.id, answer=outcome)

    async def reconciled(self, operation: OpenOperation, outcome: str, detail: str, effects: Sequence[Effect]) -> bool:
        """Record what reading the registry back showed about an open operation; tell whether it was still open."""
        data = {
            **operation.intent["data"],
            "phase": "reconciled",
            "outcome": outcome,
            "detail": detail,
        }
        for key in ("sequence", "previous"):
            data.pop(key, None)
        event = build_event(
            data["action"], "reconciled", data, self.source, self.now(), operation.intent["subject"], self.masks
        )
        state = "unproven" if outcome == "unknown" else outcome  # it ends, so that nobody looks again
        return bool(await self._append([event], [Settled(operation.operation, state), *effects]))

    async def refused(self, operation: Operation, phase: str) -> None:
        """Record a call that was ``denied`` or ``rejected``; telemetry does not wait. Never raises: no stays no."""
        if operation.telemetry:
            self.refused_later(operation, phase)
        elif self.floods is None or self.floods.admits(operation, phase):
            await self._refuse(operation, phase)

    def refused_later(self, operation: Operation, phase: str) -> None:
        """Record a refusal without waiting: telemetry never waits for the journal."""
        if self.floods is None or self.floods.admits(operation, phase):
            task = asyncio.create_task(self._refuse(operation, phase))
            self._later.add(task)
            task.add_done_callback(self._later.discard)

    async def _refuse(self, operation: Operation, phase: str) -> None:
        event = self._event(operation, phase, phase)
        facts = [] if operation.telemetry else list(operation.facts.values())
        if self.floods is None:
            await self._append_or_count([event], facts)
            return
        try:
            await self._append([event], facts)
        except GatewayError as error:
            self.floods.count(operation, phase)  # it is told by a sum when the journal is back
            _log.error("refusal counted, not journalled", operation=operation.id, problem=error.detail)

    async def stored(self, operation: Operation, effects: Sequence[Effect]) -> None:
        """Record a change of the journal itself (evidence, an approval) together with it.

        Raises:
            JournalUnavailable: nothing is stored. Busy: a lock was lost meanwhile; nothing is stored.
        """
        if self._still_held is not None:
            await self._still_held()

        def undo() -> tuple[list[Event], list[Effect]]:
            now = self.now()
            late = dataclasses.replace(operation, detail="The journal answered too late; it is taken back.")
            back = [undone for effect in effects if (undone := _undone(effect, now)) is not None]
            return [self._event(late, "outcome", "failed")], back

        operation.record = record_of(effects, self.masks)
        await self._append([self._event(operation, "outcome", "succeeded")], effects, undo=undo)

    async def checkpoint(self, data: Mapping[str, Any], finish: Callable[[Event], Event]) -> Event:
        """Record a checkpoint, which *finish* signs when it has its place in the chain.

        Raises:
            JournalUnavailable: it may be recorded all the same; the next one covers it.
        """
        event = build_event(data["action"], "checkpoint", data, self.source, self.now(), data["resource"])
        (stored,) = await self._append([event], finish=finish)
        return stored

    def _event(self, operation: Operation, phase: str, outcome: str | None) -> Event:
        return operation.event(phase, outcome, self.source, self.now(), self.masks)

    def sample(self, operation: Operation) -> Event:
        """Build the event of *operation* as it would be if it succeeded; it is not recorded."""
        return operation.event("outcome", "succeeded", self.source, self.now())

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
            build_event(
                data["action"], "summed", data, self.source, now, f"{data['registry']}/{data['resource']}", self.masks
            )
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
        event = self._event(operation, "outcome", "succeeded")
        await self._append_or_count([event], list(operation.facts.values()))

    async def _append_or_count(self, events: Sequence[Event], effects: Sequence[Effect] = ()) -> list[Event] | None:
        try:
            return await self._append(events, effects)
        except GatewayError as error:
            self.lost += len(events)
            _log.error("audit event not journalled", operation=events[0]["data"]["operation"], problem=error.detail)
            return None

    async def _append(
        self,
        events: Sequence[Event],
        effects: Sequence[Effect] = (),
        *,
        undo: Undo | None = None,
        finish: Callable[[Event], Event] | None = None,
    ) -> list[Event]:
        more = {} if finish is None else {"finish": finish}
        stored = await self.journal.append(events, effects, undo=undo, **more)
        for event in stored:
            if self.on_recorded is not None:
                await self.on_recorded(event)
        return stored
