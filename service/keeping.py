"""The port of the journal: what is kept durably, and what can be asked of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from service.effects import Effect, Signed
from service.event import Event
from service.records import Creation, Debt, Delivery, Hold, LivePeriod, PromotionRequest, Quarantine, VersionRecords

Undo = Callable[[], tuple[Sequence[Event], Sequence[Effect]]]
"""Makes the events and effects that take back others; it is seldom asked."""
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
    source: str = ""
    """Which process carries it out."""


@dataclasses.dataclass(frozen=True, slots=True)
class UnsettledOperation:
    """An operation of which nobody knows whether it was done."""

    operation: str
    state: str
    """``open``, ``unknown`` (it is read back) or ``unproven`` (it was, in vain)."""
    registry: str
    at: float
    intent: Event


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Events in their order, each as its sequence and its canonical JSON."""

    rows: list[tuple[int, str]]
    cursor: int | None
    """From where the next page goes on; None: there is nothing more."""
    incomplete: bool = False
    """It ends where it took too long to look on, and not because it is full."""


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


@dataclasses.dataclass(frozen=True, slots=True)
class Backlog:
    """How far one sink is."""

    sequence: int
    """The last event that it has come to."""
    behind: int
    """How many events come after that."""
    pending: int
    parked: int
    places: frozenset[str]
    """Those where something is pending, so that later events wait."""


class Outbox(Protocol):
    """The journal as its sinks see it. Every method raises JournalUnavailable when it cannot answer."""

    async def backlog(self, sink: str) -> Backlog | None:
        """Say how far a sink is; None for one that never followed."""

    async def next_pending(self, sink: str, limit: int) -> list[Delivery]:
        """List the pending deliveries of *sink* that come next in their place, by when they are due."""

    async def pending_in(self, sink: str, place: str, limit: int) -> list[Delivery]:
        """List the pending deliveries of one place, in order."""

    async def deliveries(self, sink: str, state: str | None, before: int | None, limit: int) -> list[Delivery]:
        """List deliveries of events before the sequence *before*, newest event first."""

    async def delivery(self, delivery_id: str) -> Delivery | None:
        """Get one delivery."""


class Journal(Outbox, Protocol):
    """The durable store. Every method raises JournalUnavailable when it cannot answer within its deadline."""

    async def append(
        self,
        events: Sequence[Event],
        effects: Sequence[Effect] = (),
        *,
        undo: Undo | None = None,
        finish: Callable[[Event], Event] | None = None,
    ) -> list[Event]:
        """Store *events* and *effects* in one transaction; return the events with sequence and previous hash.

        *finish* completes an event once it has its place in the chain.

        When it returns they are durable. When it raises they are not, or what *undo* makes is stored after them.

        Raises:
            OperationPending: they begin an operation equal to one that is not settled, which the error names.
            Busy: they begin one about a model that another process is changing. Both: nothing is stored.
        """

    async def events(self, filters: Mapping[str, Any], after: int, limit: int) -> list[tuple[int, Event]]:
        """List events after the sequence *after*, oldest first.

        A filter's value is exact, a list of which one must be it, or `ANY` for whatever is set.
        """

    async def heads(self, after: int) -> tuple[int, int]:
        """Return the sequence of the last event, and of the last checkpoint after the sequence *after* (0: none)."""

    async def page(
        self, filters: Mapping[str, Any], after: int | None, limit: int, *, newest_first: bool = False
    ) -> Page:
        """Read events beyond the sequence *after* (None: from the beginning, or the end), filtered as in `events`.

        ``since`` and ``until`` (exclusive) are seconds since the epoch. However many events there are, the work for a
        page is bounded: it may be short, or empty, and go on all the same.
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

    async def named_since(self, registry: str, model: str) -> float:
        """Return since when *model* is the name of what has it now, by creations and renames on record; 0 if always."""

    async def model_changes(self, after: int) -> tuple[int, list[Event]]:
        """List what says who owns a model, oldest first: creations, renames and deletions that succeeded, baselines.

        Returns:
            The sequence up to which it looked, some way after *after*, and the events; *after* itself at the end.
        """

    async def creations(self, registry: str, models: Collection[str], versions: Collection[str]) -> list[Creation]:
        """List who registered versions of *models* of these numbers through the gateway, deleted ones too."""

    async def quarantines(self, registry: str) -> list[Quarantine]:
        """List the quarantines of a registry that were not lifted, oldest first."""

    async def last(self) -> int:
        """Return the sequence of the newest event; 0 where there is none."""

    async def holds(self) -> list[Hold]:
        """List the legal holds that are in force, oldest first."""

    async def unproven(self) -> int:
        """Count the operations that ended although nothing about them could be proved."""

    async def unsettled_page(self, after: str, limit: int) -> list[UnsettledOperation]:
        """List operations without a proven outcome, by identifier, those after *after*."""

    async def live(self, place: tuple[str, str] | None = None) -> list[tuple[str, str, LivePeriod]]:
        """List what is live by record, everywhere or in the model at *place*: registry, model, period."""

    async def signed(self, place: tuple[str, str] | None = None) -> list[Signed]:
        """List the decisions that are neither revoked nor about a deleted version, oldest first.

        Of everywhere, or of the model at *place* (registry and name).

        Those of before schema 0002, which did not keep what stands behind them, are left out.
        """

    @property
    def rings(self) -> int:
        """How often somebody has appended events, as far as this process heard. Read it before you look."""

    async def more(self, rings: int, seconds: float) -> None:
        """Return when somebody has appended since *rings* was read, at most after *seconds*: a hint to look again."""

    async def ping(self) -> None:
        """Return when the journal can be written."""

    async def close(self) -> None:
        """Stop the writer."""
