"""The wire shapes of the governance API. An unknown field is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Version = Annotated[str, Meta(pattern="^[1-9][0-9]{0,9}$", description="A model version number, as a string.")]
Reason = Annotated[str, Meta(max_length=2000)]
Kind = Annotated[
    str,
    Meta(pattern="^[A-Za-z0-9._-]{1,100}$", description="What was checked, e.g. `validation`; part of the resource."),
]


class PromotionRequest(Struct, forbid_unknown_fields=True):
    """Make a version live in an environment."""

    version: Version
    reason: Reason = ""
    dry_run: bool = False


class FindingBody(Struct):
    """What one rule found."""

    rule: str
    passed: bool
    because: str
    missing: list[str]
    facts: dict[str, Any]


class VerdictBody(Struct):
    """Every finding of a gate."""

    allowed: bool
    rules_digest: str
    findings: list[FindingBody]


class PromotionBody(Struct):
    """What became of a promotion. `before` and `after` are versions; null where nothing is live."""

    id: str
    state: Literal["succeeded", "unchanged", "evaluated"]
    dry_run: bool
    before: str | None
    after: str | None
    verdict: VerdictBody


class PromotionRecord(Struct):
    """A promotion as the journal has it."""

    id: str
    state: str
    registry: str
    model: str
    environment: str
    version: str | None
    by: str
    before: str | None
    after: str | None
    verdict: VerdictBody | None
    events: list[dict[str, Any]]


class LiveBody(Struct):
    """What is live in an environment, and all a service needs to load it."""

    environment: str
    version: str
    since: str | None
    promotion: str | None
    by: str | None
    artifact_uri: str
    artifact_digest: str | None
    flavors: list[str]


class PeriodBody(Struct):
    """From when to when a version was live, and why."""

    version: str
    since: str
    until: str | None
    by: str
    promotion: str
    reason: str


class HistoryBody(Struct):
    """What was live in an environment, newest first."""

    history: list[PeriodBody]


class ApprovalRequest(Struct, forbid_unknown_fields=True):
    """Sign under a version for an environment."""

    environment: Annotated[str, Meta(min_length=1, max_length=100)]
    decision: Literal["approve", "reject"]
    reason: Reason = ""
    expires: datetime | None = None


class ApprovalBody(Struct):
    """An approval or a rejection."""

    id: str
    environment: str
    decision: str
    by: str
    groups: list[str]
    reason: str
    at: str
    expires: str | None
    rules_digest: str
    artifact_digest: str
    revoked: bool


class ApprovalsBody(Struct):
    """The approvals of a version, oldest first."""

    approvals: list[ApprovalBody]


class EvidenceRequest(Struct, forbid_unknown_fields=True):
    """Post a fact about a version."""

    kind: Kind
    result: Literal["passed", "failed"]
    facts: dict[str, Any] = {}
    source: Annotated[str, Meta(max_length=2000)] = ""


class EvidenceBody(Struct):
    """Evidence about a version."""

    id: str
    kind: str
    result: str
    by: str
    facts: dict[str, Any]
    source: str
    artifact_digest: str
    at: str


class EvidencesBody(Struct):
    """The evidence about a version, oldest first."""

    evidence: list[EvidenceBody]


class VersionBody(Struct):
    """What the rules see of a version, and what is recorded of it."""

    registry: str
    model: str
    version: str
    candidate: dict[str, Any]
    evidence: list[EvidenceBody]
    approvals: list[ApprovalBody]
    native: dict[str, Any]


class RegistryBody(Struct):
    """A configured registry."""

    name: str
    kind: str
    aliases: bool
    stages: bool
    tags: bool


class RegistriesBody(Struct):
    """The configured registries."""

    registries: list[RegistryBody]


class RuleBody(Struct):
    """A rule of an environment."""

    name: str
    require: str
    because: str


class EnvironmentBody(Struct):
    """An environment of a registry."""

    registry: str
    name: str
    models: str
    marks: list[dict[str, str]]
    after: str | None
    rules: list[RuleBody]
    rules_digest: str
    seal: Literal["approved", "live", "never"]
    sealed_tags: list[str]


class EnvironmentsBody(Struct):
    """The configured environments."""

    environments: list[EnvironmentBody]


class EventsBody(Struct):
    """A page of audit events, oldest first. `next_cursor` is null on the last page."""

    events: list[dict[str, Any]]
    next_cursor: str | None
