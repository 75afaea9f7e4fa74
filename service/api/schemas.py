"""The wire shapes of the governance API. An unknown field is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Version = Annotated[str, Meta(pattern="^[1-9][0-9]{0,9}$", description="A model version number, as a string.")]
Reason = Annotated[str, Meta(max_length=2000)]
NeededReason = Annotated[str, Meta(min_length=1, max_length=2000, pattern=r"\S")]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Kind = Annotated[
    str,
    Meta(pattern="^[A-Za-z0-9._-]{1,100}$", description="What was checked, e.g. `validation`; part of the resource."),
]


class ChangeRecord(Struct, forbid_unknown_fields=True):
    """The change record of another system that a promotion belongs to; rules read it as `request.change`."""

    id: Annotated[str, Meta(min_length=1, max_length=200)]
    window: Annotated[str, Meta(max_length=200)] = ""
    fallback: Annotated[str, Meta(max_length=2000)] = ""


class Emergency(Struct, forbid_unknown_fields=True):
    """Why rules that are waivable must not hold this promotion up; somebody else has to review it afterwards."""

    reason: NeededReason
    ticket: Annotated[str, Meta(min_length=1, max_length=200)]


class PromotionRequest(Struct, forbid_unknown_fields=True):
    """Make a version live in an environment."""

    version: Version
    reason: Reason = ""
    dry_run: bool = False
    change: ChangeRecord | None = None
    emergency: Emergency | None = None


class RollbackRequest(Struct, forbid_unknown_fields=True):
    """Make live again what was live before: `to`, or the last good version."""

    reason: NeededReason
    to: Version | None = None
    dry_run: bool = False


class RetirementRequest(Struct, forbid_unknown_fields=True):
    """Take down what is live."""

    reason: NeededReason


class RetirementBody(Struct):
    """What was taken down."""

    id: str
    before: str | None


class FindingBody(Struct):
    """What one rule found."""

    rule: str
    passed: bool
    because: str
    missing: list[str]
    facts: dict[str, Any]
    severity: str = "block"
    waived: bool = False
    self_reported: list[str] = []


class StaleApproval(Struct):
    """An approval that does not count any more."""

    by: str
    because: str


class VerdictBody(Struct):
    """Every finding of a gate. `would_refuse`: it is closed, and the environment's mode does not enforce it."""

    allowed: bool
    rules_digest: str
    findings: list[FindingBody]
    mode: str = "enforce"
    would_refuse: bool = False
    stale_approvals: list[StaleApproval] = []
    artifact_digest: str | None = None


class PromotionBody(Struct):
    """What became of a promotion. `before` and `after` are versions; null where nothing is live."""

    id: str
    state: Literal["succeeded", "unchanged", "evaluated"]
    dry_run: bool
    before: str | None
    after: str | None
    verdict: VerdictBody
    version: str | None = None


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
    """What is or was live in an environment, and all a service needs to load it.

    `drifted`: the registry's mark was moved beside the gateway. `artifact_uri` is null where the version is gone.
    """

    environment: str
    version: str
    since: str | None
    until: str | None
    promotion: str | None
    by: str | None
    artifact_uri: str | None
    artifact_digest: str | None
    flavors: list[str]
    kind: str | None
    drifted: bool


class PeriodBody(Struct):
    """From when to when a version was live, and why.

    `model` is the name it had then. `passed`: its gate was open for it.
    """

    model: str
    version: str
    since: str
    until: str | None
    by: str
    promotion: str
    reason: str
    kind: str
    passed: bool
    artifact_digest: str | None
    verdict: VerdictBody | None


class HistoryBody(Struct):
    """What was live in an environment, newest first."""

    history: list[PeriodBody]


class ApprovalRequest(Struct, forbid_unknown_fields=True):
    """Sign under a version for an environment."""

    environment: Annotated[str, Meta(min_length=1, max_length=100)]
    decision: Literal["approve", "reject"]
    reason: Reason = ""
    expires: datetime | None = None
    review: Digest | None = None


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
    review: str | None


class ApprovalsBody(Struct):
    """The approvals of a version, oldest first."""

    approvals: list[ApprovalBody]


class EvidenceRequest(Struct, forbid_unknown_fields=True):
    """Post a fact about a version."""

    kind: Kind
    result: Literal["passed", "failed"]
    facts: dict[str, Any] = {}
    source: Annotated[str, Meta(max_length=2000)] = ""
    expires: datetime | None = None
    proof: dict[str, Any] | None = None


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
    expires: str | None
    proof: dict[str, str] | None


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
    quarantine: str | None


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
    severity: str
    waivable: bool


class QuorumBody(Struct):
    """How many people of a group must approve."""

    group: str
    count: int


class ApprovalTermsBody(Struct):
    """What approvals must be to count. `review`: each names the review it is based on."""

    required: list[QuorumBody]
    expire_after: str | None
    review: bool


class EvidenceTermsBody(Struct):
    """What evidence of a kind must be to count. `keys`: identifiers of the keys of which one must have signed it."""

    expire_after: str | None
    keys: list[str]


class TimesBody(Struct, rename={"since": "from"}):
    """A part of the week in which promotions happen."""

    days: list[str]
    since: str
    until: str
    time_zone: str


class FreezeBody(Struct, rename={"since": "from"}):
    """A time in which nothing is promoted."""

    since: str
    until: str
    because: str


class OverrideBody(Struct):
    """Rules that some models have besides those of all."""

    models: str
    rules: list[RuleBody]


class EnvironmentBody(Struct):
    """An environment of a registry, with everything that is asked of a version there."""

    registry: str
    name: str
    models: str
    marks: list[dict[str, str]]
    after: str | None
    rules: list[RuleBody]
    rules_digest: str
    seal: Literal["approved", "live", "never"]
    sealed_tags: list[str]
    mode: Literal["enforce", "warn", "observe"]
    on_drift: Literal["report", "revert"]
    parameters: dict[str, Any]
    approvals: ApprovalTermsBody
    evidence: dict[str, EvidenceTermsBody]
    allowed_times: list[TimesBody]
    freezes: list[FreezeBody]
    overrides: list[OverrideBody]
    rollback_rules: list[RuleBody]
    waivable: list[str]


class EnvironmentsBody(Struct):
    """The configured environments."""

    environments: list[EnvironmentBody]


class ReviewBody(Struct):
    """What an approver has to see, kept by its digest; name it in the approval."""

    digest: str
    registry: str
    model: str
    version: str
    environment: str
    binding: str
    rules_digest: str
    artifact_digest: str | None
    incumbent_binding: str | None
    quarantine: str | None
    candidate: dict[str, Any]
    incumbent: dict[str, Any] | None
    comparison: dict[str, Any]
    evidence: list[dict[str, Any]]
    findings: list[FindingBody]
    verdict: dict[str, Any]


class QuarantineRequest(Struct, forbid_unknown_fields=True):
    """Keep a version from becoming live again."""

    reason: NeededReason


class QuarantineBody(Struct):
    """A quarantine. `live_in`: environments where the version is live, each with the version to roll back to."""

    id: str
    version: str
    reason: str
    by: str
    at: str
    live_in: dict[str, str | None]


class PromotionRequestRequest(Struct, forbid_unknown_fields=True):
    """Ask that a version be promoted by whoever has the right."""

    version: Version
    reason: Reason = ""
    expires: datetime | None = None
    change: ChangeRecord | None = None


class RequestBody(Struct):
    """A promotion request. `state`: open, completed, cancelled or expired."""

    id: str
    state: str
    registry: str
    model: str
    environment: str
    version: str
    by: str
    reason: str
    at: str
    expires: str
    change: dict[str, str]
    ended_at: str | None
    ended_by: str | None
    promotion: str | None
    verdict: VerdictBody | None = None


class RequestsBody(Struct):
    """Open promotion requests, oldest first."""

    promotion_requests: list[RequestBody]


class DebtBody(Struct):
    """An emergency and its review."""

    id: str
    registry: str
    model: str
    environment: str
    version: str
    by: str
    reason: str
    ticket: str
    waived: list[str]
    at: str
    closed_at: str | None
    closed_by: str | None
    closing_reason: str | None


class DebtsBody(Struct):
    """Emergencies, oldest first."""

    emergencies: list[DebtBody]


class DebtReview(Struct, forbid_unknown_fields=True):
    """What somebody else found about an emergency."""

    reason: NeededReason


class CheckBody(Struct):
    """How the registry and the record compare: `agrees`, `drifted`, `reverted` or `unsettled`."""

    environment: str
    state: str
    recorded: str | None
    live: str | None


class AdoptionRequest(Struct, forbid_unknown_fields=True):
    """Take over what is live: `models` is exact or a prefix that ends in `*`; no `environment` means each.

    `owner` is whose the models are, if nobody created them through the gateway; never the caller.
    """

    reason: NeededReason
    models: Annotated[str, Meta(min_length=1, max_length=500)] = "*"
    environment: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    owner: Annotated[str, Meta(min_length=1, max_length=300)] | None = None
    dry_run: bool = False


class AdoptedBody(Struct):
    """One mark: `adopted`, `recorded` before, `skipped`, or `to-adopt` in a dry run."""

    model: str
    environment: str
    mark: str
    version: str
    state: str
    because: str


class AdoptionBody(Struct):
    """What was taken over."""

    dry_run: bool
    adopted: list[AdoptedBody]


class EventsBody(Struct):
    """A page of audit events. `next_cursor` is null on the last page.

    `incomplete`: looking further would have taken too long, so the page is short; it goes on at `next_cursor`.
    """

    events: list[dict[str, Any]]
    next_cursor: str | None
    incomplete: bool


class UnsettledBody(Struct):
    """An operation of which nobody knows whether it was done.

    `state` is `open`, `unknown` (it is read back) or `unproven` (it was, in vain: somebody has to look).
    """

    operation: str
    state: Literal["open", "unknown", "unproven"]
    registry: str
    model: str | None
    version: str | None
    environment: str | None
    action: str
    resource: str
    actor: str
    at: str
    age_seconds: float


class UnsettledsBody(Struct):
    """A page of unsettled operations. `next_cursor` is null on the last page."""

    operations: list[UnsettledBody]
    next_cursor: str | None


class HoldRequest(Struct, forbid_unknown_fields=True):
    """Hold the events of a model, or of the whole registry without one."""

    registry: Annotated[str, Meta(min_length=1, max_length=100)]
    reason: NeededReason
    model: Annotated[str, Meta(min_length=1, max_length=500)] | None = None


class HoldBody(Struct):
    """A legal hold. `model` is null for a whole registry."""

    id: str
    registry: str
    model: str | None
    reason: str
    by: str
    at: str


class HoldsBody(Struct):
    """The legal holds in force, oldest first."""

    holds: list[HoldBody]


class RefusalBody(Struct):
    """What enforcement would have refused: a rule, or a right (`no policy allows …`)."""

    registry: str
    environment: str
    rule: str
    model: str
    principal: str
    count: int
    first: str
    last: str


class RefusalsBody(Struct):
    """What enforcement would have refused, most often first."""

    would_refuse: list[RefusalBody]


class TokenRequest(Struct):
    """Ask for a token of this gateway (RFC 8693, section 2.1). Unknown parameters are ignored, as OAuth says."""

    grant_type: Annotated[str, Meta(description="`urn:ietf:params:oauth:grant-type:token-exchange`")] = ""
    subject_token: Annotated[str, Meta(description="Left out: what the Authorization header holds.")] = ""
    subject_token_type: Annotated[
        str,
        Meta(
            description="With `subject_token`: `urn:ietf:params:oauth:token-type:jwt`, `…:access_token`, `…:id_token`."
        ),
    ] = ""
    requested_token_type: str = ""
    scope: Annotated[str, Meta(description="Narrower: `<registry>/<action>` items, separated by spaces.")] = ""
    audience: str = ""
    resource: str = ""
    actor_token: str = ""
    actor_token_type: str = ""
    expires_in: Annotated[str, Meta(description="A wish, in seconds.")] = ""


class TokenBody(Struct, omit_defaults=True):
    """A token of this gateway (RFC 8693, section 2.2.1)."""

    access_token: str
    issued_token_type: str
    token_type: str
    expires_in: int
    scope: str | None = None
