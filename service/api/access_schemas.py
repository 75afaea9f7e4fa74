"""The wire shapes of questions about access: our own, and those of OpenID AuthZEN, which ignore unknown fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from service.api.schemas import VerdictBody

MAX_EVALUATIONS = 100
Text = Annotated[str, Meta(min_length=1, max_length=1000)]


class RowBody(Struct):
    """A row of the policy."""

    where: Annotated[str, Meta(description="`file:line`", examples=["policy.csv:36"])]
    text: Annotated[
        str,
        Meta(examples=["p, role:pipeline, *, models/*/environments/*, environment:promote, allow"]),
    ]


class StepBody(Struct):
    """One membership on the way to the row. `where` is null for a group of the credential."""

    member: str
    role: str
    where: str | None


class NearBody(Struct):
    """A row that did not decide. `differs` is empty where it matches too."""

    where: str
    text: str
    differs: list[Literal["subject", "registry", "resource", "action"]]
    because: str


class ExplanationBody(Struct):
    """A decision and what led to it."""

    subject: str
    groups: list[str]
    registry: str
    resource: str
    action: str
    allowed: bool
    revision: str
    beyond_scope: bool
    row: RowBody | None
    decided_on: str
    path: list[StepBody]
    roles: list[str]
    near: list[NearBody]
    hidden: Annotated[str, Meta(description="What was left out for the reader, and which right shows it.")]


class HolderBody(Struct):
    """A subject of the policy, and the row that decides for it."""

    subject: str
    row: RowBody


class WhoCanBody(Struct):
    """Who may; and who is denied by a row. `left_out` further ones are not listed."""

    registry: str
    resource: str
    action: str
    revision: str
    allowed: list[HolderBody]
    denied: list[HolderBody]
    left_out: int


class SubjectBody(Struct):
    """Who is asked about. `properties.groups` needs `access:assume`."""

    type: Annotated[str, Meta(description="`user`, `service` or `group`", examples=["user"], max_length=1000)]
    id: Annotated[str, Meta(description="The name behind the prefix.", examples=["ann"], max_length=1000)]
    properties: dict[str, Any] = {}


class ActionBody(Struct):
    """What they would do."""

    name: Annotated[str, Meta(examples=["environment:promote"], max_length=1000)]
    properties: dict[str, Any] = {}


class ResourceBody(Struct):
    """To what: type `registry`, and `<registry>/<resource>`."""

    type: Annotated[str, Meta(description="`registry`", examples=["registry"], max_length=1000)]
    id: Annotated[str, Meta(examples=["main/models/iris/environments/production"], max_length=4000)]
    properties: Annotated[dict[str, Any], Meta(examples=[{"version": "1"}])] = {}


class EvaluationRequest(Struct):
    """May the subject do the action to the resource?"""

    subject: SubjectBody
    action: ActionBody
    resource: ResourceBody
    context: dict[str, Any] = {}


class EvaluationItem(Struct):
    """One question of a list; what it lacks is taken from the top level."""

    subject: SubjectBody | None = None
    action: ActionBody | None = None
    resource: ResourceBody | None = None
    context: dict[str, Any] | None = None


class EvaluationsOptions(Struct, frozen=True):
    """When the list has its answer."""

    evaluations_semantic: Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"] = "execute_all"


class EvaluationsRequest(Struct):
    """Several questions; without `evaluations`, one."""

    subject: SubjectBody | None = None
    action: ActionBody | None = None
    resource: ResourceBody | None = None
    context: dict[str, Any] | None = None
    evaluations: Annotated[
        list[dict[str, Any]],
        Meta(
            max_length=MAX_EVALUATIONS,
            description="Each with what differs from the top level. One that cannot be read is denied with an error.",
            examples=[[{"resource": {"type": "registry", "id": "main/models/iris"}}]],
        ),
    ] = []
    options: EvaluationsOptions | None = None


class EvaluationError(Struct):
    """Why there is no answer."""

    status: int
    message: str


class DecidedAs(Struct):
    """As what it was decided, where that is something else than was asked: a write on a mark is a promotion."""

    action: str
    resource: str


class EvaluationContext(Struct):
    """What led to the decision. `row` is null where no row matches. `verdict` is of a promotion with a version."""

    revision: str | UnsetType = UNSET
    row: str | UnsetType | None = UNSET
    reason: str | UnsetType = UNSET
    decided_as: DecidedAs | UnsetType = UNSET
    verdict: VerdictBody | UnsetType = UNSET
    verdict_problem: EvaluationError | UnsetType = UNSET
    error: EvaluationError | UnsetType = UNSET


class EvaluationBody(Struct):
    """The decision, of access alone."""

    decision: bool
    context: EvaluationContext


class EvaluationsBody(Struct):
    """The decisions, in the order of the questions; fewer where the semantic ended early."""

    evaluations: list[EvaluationBody]


class AuthzenConfiguration(Struct):
    """The metadata of a policy decision point (AuthZEN Authorization API 1.0, section 9)."""

    policy_decision_point: str
    access_evaluation_endpoint: str
    access_evaluations_endpoint: str
