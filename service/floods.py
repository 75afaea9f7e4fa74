"""Keeps floods of refusals from filling the journal: each is recorded, up to a rate; the rest is counted and summed."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog

from service.audit import Operation, Trail
from service.errors import GatewayError
from service.event import Event
from service.model import NOBODY

EACH_MINUTE = 60
"""So many failures of one address a minute are one event each."""
LIMITED_EACH_MINUTE = 1
"""So many refusals of one principal that sends too much."""
ALL_MINUTE = 600
"""So many of all addresses together."""
SUM_SECONDS = 60.0
"""So often sums are written."""
OTHERS = "others"
_WINDOW_SECONDS = 60.0
_MAX_KINDS = 10_000
_MAX_SUMS = 600
"""So many kinds have a sum of their own; those of all others are one."""
_KINDS_AT_ONCE = 20
_OWN_FLOODS = frozenset({"authentication:fail", "request:limit"})
"""The front door looks after these by itself: they have no principal yet, or one that sends too much of anything."""
_log = structlog.get_logger()
K = TypeVar("K")


class Floods(Generic[K]):
    """Says which refusals are recorded one by one, and sums the others by kind and minute."""

    def __init__(
        self,
        trail: Trail,
        document: Callable[[K, int], Mapping[str, Any]],
        others: K,
        clock: Callable[[], float] = time.monotonic,
        *,
        each_minute: int = EACH_MINUTE,
        all_minute: int = ALL_MINUTE,
    ) -> None:
        """Record sums in *trail*, as *document* writes them; so many of one kind are an event each, and of all."""
        self._each = each_minute
        self._everything = all_minute
        self._document = document
        self._others = others
        self._trail = trail
        self._clock = clock
        self._began = clock()
        self._all = 0
        self._seen: OrderedDict[K, int] = OrderedDict()
        self._over: dict[K, int] = {}
        self._unwritten: list[Event] = []

    def admits(self, kind: K) -> bool:
        """Tell whether a refusal of this *kind* is recorded as an event of its own; otherwise it is counted."""
        if self._clock() - self._began >= _WINDOW_SECONDS:
            self._began, self._all = self._clock(), 0
            self._seen.clear()
        seen = self._seen.get(kind, 0)
        if seen >= self._each or self._all >= self._everything or len(self._seen) >= _MAX_KINDS:
            self.count(kind)
            return False
        self._seen[kind] = seen + 1
        self._all += 1
        return True

    def count(self, kind: K) -> None:
        """Count one that has no event of its own."""
        known = kind if kind in self._over or len(self._over) < _MAX_SUMS else self._others
        self._over[known] = self._over.get(known, 0) + 1

    async def flush(self) -> None:
        """Record what was counted, one event a kind; what cannot be recorded now stays counted."""
        if not self._unwritten:
            counted, self._over = self._over, {}
            self._unwritten = self._trail.sums(self._document(kind, count) for kind, count in counted.items())
        if not self._unwritten:
            return
        try:
            if not await self._trail.journal.operation_events(self._unwritten[0]["data"]["operation"]):
                await self._trail.summed(self._unwritten)
        except GatewayError as error:
            _log.warning("sums of refusals are waiting for the journal", problem=error.detail, count=self.waiting)
        else:
            self._unwritten = []

    @property
    def waiting(self) -> int:
        """How many refusals are counted and not in the journal yet."""
        unwritten = sum(int(event["data"]["count"]) for event in self._unwritten)
        return sum(self._over.values()) + unwritten


@dataclass(frozen=True, slots=True)
class Refusal:
    """What refusals have in common that are summed up."""

    phase: str
    subject: str
    registry: str
    action: str
    resource: str
    """Its kind: the first part of a resource's name."""
    reason: str


class Refusals:
    """Sums floods of denied calls and rejected changes, by principal, action, kind of resource and reason."""

    def __init__(self, trail: Trail, each_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Let *each_minute* of one kind through to *trail*."""
        self._floods: Floods[Refusal] = Floods(
            trail,
            _refused,
            Refusal("denied", NOBODY, "", "request:refuse", "", OTHERS),
            clock,
            each_minute=each_minute,
            all_minute=each_minute * _KINDS_AT_ONCE,
        )

    def admits(self, operation: Operation, phase: str) -> bool:
        """Tell whether a refusal is an event of its own; otherwise it is counted."""
        return operation.action in _OWN_FLOODS or self._floods.admits(_kind_of(operation, phase))

    def count(self, operation: Operation, phase: str) -> None:
        """Count a refusal whose event the journal did not take."""
        self._floods.count(_kind_of(operation, phase))

    async def flush(self) -> None:
        """Record what was counted; what cannot be recorded now stays counted."""
        await self._floods.flush()

    @property
    def waiting(self) -> int:
        """How many refusals are counted and not in the journal yet."""
        return self._floods.waiting


def _kind_of(operation: Operation, phase: str) -> Refusal:
    if operation.verdict is not None and not operation.verdict.allowed:
        reason = f"{operation.environment}: {', '.join(f.rule for f in operation.verdict.findings if not f.passed)}"
    elif phase == "denied":
        reason = operation.decision.row or ("scope" if operation.decision.beyond_scope else "no row allows it")
    else:
        reason = str(operation.status or "")
    return Refusal(
        phase,
        operation.principal.subject,
        operation.registry,
        operation.action,
        operation.resource.partition("/")[0],
        reason,
    )


def failures(address: str, count: int) -> Mapping[str, Any]:
    """Sum failed authentications of an address."""
    detail = f"{count} more failed authentications from this address, summed."
    return _document("denied", "authentication:fail", NOBODY, count, detail, address=address)


def limited(subject: str, count: int) -> Mapping[str, Any]:
    """Sum the requests of a principal that were over its rate."""
    detail = f"{count} more requests over the rate of this principal, summed."
    return _document("rejected", "request:limit", subject, count, detail)


def _refused(kind: Refusal, count: int) -> Mapping[str, Any]:
    detail = f"{count} more of the same kind, summed: {kind.reason}"
    return _document(
        kind.phase,
        kind.action or "request:refuse",
        kind.subject,
        count,
        detail,
        registry=kind.registry,
        resource=f"{kind.resource}/*" if kind.resource else "",
    )


def _document(
    phase: str, action: str, subject: str, count: int, detail: str, *, address: str = "", **where: str
) -> Mapping[str, Any]:
    actor: dict[str, Any] = {
        "subject": subject,
        "groups": [],
        "acting_for": None,
        "issuer": "",
        "credential": "",
    }
    return {
        "phase": phase,
        "operation": str(uuid.uuid4()),
        "outcome": phase,
        "actor": {**actor, "address": address},
        "call": "",
        "action": action,
        "resource": "",
        "registry": "",
        "model": None,
        "version": None,
        "environment": None,
        "count": count,
        "detail": detail,
        **where,
    }
