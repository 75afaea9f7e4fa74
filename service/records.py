"""What a registry holds of a model, and what the gateway itself records about it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a registry can hold; an environment that needs more is refused at start."""

    aliases: bool
    stages: bool
    tags: bool


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A registered model and its marks."""

    name: str
    aliases: Mapping[str, str]
    """Alias -> version."""
    stages: Mapping[str, tuple[str, ...]]
    """Stage -> versions in it, newest last; ``None`` left out."""
    created_ms: int
    tags: Mapping[str, str]
    description: str
    native: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model version."""

    model: str
    version: str
    status: str
    stage: str
    source: str
    run_id: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created_ms: int
    description: str
    native: Mapping[str, Any]

    @property
    def binding(self) -> str:
        """Name this very version: one deleted and made again is another, a renamed one is the same."""
        return binding_of(self.version, self.created_ms, self.source)


def binding_of(version: str, created_ms: int, source: str) -> str:
    """Name one very version of a model."""
    return hashlib.sha256(f"{version}\n{created_ms}\n{source}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Run:
    """A run, as far as rules judge it. Metrics may be NaN."""

    run_id: str
    experiment_id: str
    status: str
    artifact_uri: str
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    datasets: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class LoggedModel:
    """A logged model: where its files are and which run made it."""

    model_id: str
    experiment_id: str
    artifact_uri: str
    source_run_id: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """A fact about one version, posted by someone who may."""

    id: str
    kind: str
    result: str
    by: str
    groups: tuple[str, ...]
    facts: Mapping[str, Any]
    source: str
    at: float
    artifact_digest: str = ""
    persons: tuple[str, ...] = ()
    """Everyone its author counts as."""
    expires: float | None = None
    proof: Mapping[str, str] | None = None
    """Which key signed it, of what kind the proof is, and its digest; None without a proof that was verified."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's signature under one version for one environment."""

    id: str
    environment: str
    decision: str
    by: str
    persons: tuple[str, ...]
    groups: tuple[str, ...]
    reason: str
    at: float
    expires: float | None
    rules_digest: str
    revoked: bool = False
    artifact_digest: str = ""
    incumbent: str | None = None
    """The binding of what was live then, ``""`` for nothing; None in records that do not say it."""
    review: str = ""
    """The digest of the review it is based on."""


@dataclass(frozen=True, slots=True)
class LivePeriod:
    """A version that is or was live in an environment, by record."""

    environment: str
    version: str
    binding: str
    since: float
    until: float | None
    by: str
    operation: str
    reason: str
    behind: tuple[str, ...] = ()
    """The run and the logged model it was made from."""
    kind: str = "promotion"
    """``promotion``, ``rollback``, ``emergency``, ``baseline``, ``revert``, or ``drift``: a mark moved beside the
    gateway."""
    artifact_digest: str | None = None
    """Of the files it was judged with; None where nobody looked at them."""
    passed: bool = True
    """Its gate was open for it; not so for drift, for what was only observed, and for an emergency until its debt is
    closed."""
    live_as: str = ""
    """The name that the model had then."""


@dataclass(frozen=True, slots=True)
class Creation:
    """Who registered a version through the gateway."""

    model: str
    version: str
    binding: str
    by: str
    persons: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A version that must not become live again, nor what is made from the same."""

    id: str
    model: str
    version: str
    binding: str
    reason: str
    by: str
    at: float
    behind: tuple[str, ...] = ()
    """What it was made from (`service.provenance.made_from`); nothing in records that do not say it."""


@dataclass(frozen=True, slots=True)
class PromotionRequest:
    """Somebody asks that a version be promoted by whoever has the right."""

    id: str
    environment: str
    version: str
    binding: str
    by: str
    persons: tuple[str, ...]
    reason: str
    at: float
    expires: float
    change: Mapping[str, str]
    state: str = "open"
    """``open``, ``completed``, ``cancelled``; one that is open and past ``expires`` has expired."""
    ended_at: float | None = None
    ended_by: str = ""
    operation: str = ""
    """The promotion that completed it."""


@dataclass(frozen=True, slots=True)
class Debt:
    """What an emergency leaves: somebody else has to look at it afterwards."""

    id: str
    """The operation of the emergency."""
    registry: str
    model: str
    environment: str
    version: str
    by: str
    persons: tuple[str, ...]
    reason: str
    ticket: str
    waived: tuple[str, ...]
    """The rules that failed and were passed."""
    at: float
    closed_at: float | None = None
    closed_by: str = ""
    closing_reason: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold: events of a model, or of a whole registry (``model`` empty), stay in the journal."""

    id: str
    registry: str
    model: str
    reason: str
    by: str
    at: float


@dataclass(frozen=True, slots=True)
class VersionRecords:
    """All that is recorded of one version."""

    creation: Creation | None = None
    evidence: tuple[Evidence, ...] = ()
    """Oldest first."""
    approvals: tuple[Approval, ...] = ()
    """Oldest first, revoked ones too."""
    periods: tuple[LivePeriod, ...] = ()
    """The first one in each environment it has been live in, drift left out; oldest first."""
    quarantine: Quarantine | None = None
    """Its own, or one of what it was made from when it was live."""
    quarantines: tuple[Quarantine, ...] = ()
    """All of the registry."""
    requests: tuple[PromotionRequest, ...] = ()
    """Those that are open or have expired."""
    askers: frozenset[str] = frozenset()
    """Everyone who ever asked that it be promoted, also those who cancelled."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that a sink was given, or is to be given again. Those of one place go in order."""

    id: str
    sink: str
    sequence: int
    """Of the event."""
    event: str
    """Its identifier."""
    place: str
    """Registry and model, or registry and resource."""
    state: str
    """``pending``, ``delivered``, or ``parked``: given up."""
    attempts: int
    due: float
    """When it is tried again, if nothing of its place is before it."""
    status: int | None
    """The HTTP status of the last answer."""
    problem: str
    """Why the last attempt failed."""
    at: float
    """When it was to be delivered first; it is given up some time after that."""
    ended_at: float | None = None
