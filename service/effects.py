"""What an event changes in the journal's own tables, in the same transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from service.records import Approval, Creation, Debt, Delivery, Evidence, Hold, LivePeriod, PromotionRequest, Quarantine


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """An operation was begun; it stays open until it is settled."""

    operation: str
    digest: str
    registry: str
    change: Mapping[str, Any] | None
    at: float
    key: str = ""
    """sha256 of principal and Idempotency-Key, where one was sent."""
    source: str = ""
    """Which process carries it out."""

    @property
    def models(self) -> frozenset[str]:
        """The models that it is about."""
        return models_of(self.change)


def models_of(change: Mapping[str, Any] | None) -> frozenset[str]:
    """Return the models that a recorded *change* is about."""
    return frozenset(name for key in ("model", "new_name") if (name := (change or {}).get(key)))


@dataclasses.dataclass(frozen=True, slots=True)
class Settled:
    """An operation ended.

    ``state`` is ``succeeded``, ``failed``, ``unknown`` (read back later) or ``unproven`` (read back in vain).
    """

    operation: str
    state: str


@dataclasses.dataclass(frozen=True, slots=True)
class Registered:
    """A version was registered through the gateway."""

    registry: str
    creation: Creation


@dataclasses.dataclass(frozen=True, slots=True)
class MadeLive:
    """A version became live in an environment; whatever was live there ends."""

    registry: str
    model: str
    period: LivePeriod


@dataclasses.dataclass(frozen=True, slots=True)
class TakenDown:
    """Nothing is live in these environments any more (empty: in any of the model)."""

    registry: str
    model: str
    environments: tuple[str, ...]
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Renamed:
    """A model has another name; what is recorded of it follows."""

    registry: str
    model: str
    new_name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Posted:
    """Evidence about a version (named by its binding)."""

    registry: str
    model: str
    binding: str
    evidence: Evidence


@dataclasses.dataclass(frozen=True, slots=True)
class Signed:
    """An approval of a version (named by its binding)."""

    registry: str
    model: str
    binding: str
    approval: Approval
    version: str
    behind: tuple[str, ...]
    """The run and the logged models it was made from."""


@dataclasses.dataclass(frozen=True, slots=True)
class Deleted:
    """A version was deleted (``version`` empty: the model with all of them); its approvals hold nothing any more."""

    registry: str
    model: str
    version: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Revoked:
    """An approval was taken back."""

    approval_id: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Withdrawn:
    """Evidence whose poster was told that it is not stored, because the journal answered too late."""

    evidence_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class Archived:
    """Rules that judge from now on, as they are written, by their digest."""

    digest: str
    document: Mapping[str, Any]
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Reviewed:
    """What an approver was shown, by its digest."""

    digest: str
    document: Mapping[str, Any]
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Weighed:
    """The facts that a gate judged by, by their digest."""

    digest: str
    document: Mapping[str, Any]
    at: float
    """The time of the verdict; it is no part of the document, so that the same facts are kept once."""
    approved_under: str = ""
    """The digest of the rules under which approvals counted: for a rollback, those of promotions."""


@dataclasses.dataclass(frozen=True, slots=True)
class Quarantined:
    """A version must not become live again."""

    registry: str
    quarantine: Quarantine


@dataclasses.dataclass(frozen=True, slots=True)
class Released:
    """A quarantine was lifted."""

    quarantine_id: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Requested:
    """Somebody asks for a promotion."""

    registry: str
    model: str
    request: PromotionRequest


@dataclasses.dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request for a promotion was completed or cancelled."""

    request_id: str
    state: str
    at: float
    by: str
    operation: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Owed:
    """An emergency passed rules; somebody else has to review it."""

    debt: Debt


@dataclasses.dataclass(frozen=True, slots=True)
class Paid:
    """A debt was closed by a review."""

    debt_id: str
    at: float
    by: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """Events are under legal hold."""

    hold: Hold


@dataclasses.dataclass(frozen=True, slots=True)
class HoldLifted:
    """A legal hold ended."""

    hold_id: str
    at: float
    by: str


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """What a POST with an Idempotency-Key was answered."""

    key: str
    """sha256 of principal and key."""
    fingerprint: str
    """sha256 of path, query, body, the headers that decide the answer, and the credential's rights."""
    status: int
    headers: Mapping[str, str]
    body: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class KeysUsed:
    """API keys let somebody in: the id of each, and when the hour of its last use began (Unix time)."""

    hours: Mapping[str, int]


@dataclasses.dataclass(frozen=True, slots=True)
class Follows:
    """Somebody follows the journal from now on; who follows it already goes on where it is."""

    name: str
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Reached:
    """A follower has come so far, never back, and this became of what it was to deliver."""

    name: str
    sequence: int
    at: float
    deliveries: tuple[Delivery, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Redelivered:
    """A delivery is tried again, as if for the first time."""

    delivery_id: str
    at: float


Effect = (
    Opened
    | Settled
    | Registered
    | MadeLive
    | TakenDown
    | Deleted
    | Renamed
    | Posted
    | Signed
    | Revoked
    | Withdrawn
    | Archived
    | Reviewed
    | Weighed
    | Quarantined
    | Released
    | Requested
    | RequestEnded
    | Owed
    | Paid
    | Held
    | HoldLifted
    | Answered
    | KeysUsed
    | Follows
    | Reached
    | Redelivered
)
