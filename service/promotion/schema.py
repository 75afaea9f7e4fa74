"""The shape of environments.yaml, for its loader and, as a JSON Schema, for editors."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9_-]{0,62}$", description="a-z 0-9 - _, at most 63 characters.")]
Duration = Annotated[str, Meta(pattern="^[1-9][0-9]{0,5}[smhd]$", description="Such as 90m, 24h or 30d.")]
Pattern = Annotated[str, Meta(min_length=1, description="A name, or a prefix that ends in *.")]
Moment = Annotated[datetime, Meta(tz=True, description="ISO 8601 with an offset.")]
Parameter = str | int | float | bool


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A mapping of the file: a key it does not name is refused."""


class RuleShape(Shape, frozen=True, forbid_unknown_fields=True):
    """One requirement in CEL, and the sentence for the person who meets the closed gate."""

    name: str
    require: Annotated[
        str, Meta(description="A CEL expression that gives true or false.", extra_json_schema={"maxLength": 2000})
    ]
    because: str = ""
    severity: Literal["block", "warn"] = "block"
    waivable: bool = False


class WhereShape(Shape, frozen=True, forbid_unknown_fields=True):
    """Which models have the environment."""

    registry: str = "*"
    models: str = "*"


class QuorumShape(Shape, frozen=True, forbid_unknown_fields=True):
    """How many people of a group must approve."""

    group: Annotated[str, Meta(pattern="^group:.+", description="As in credentials: group:…")]
    count: Annotated[int, Meta(ge=1, le=100)] = 1


class ApprovalsShape(Shape, frozen=True, forbid_unknown_fields=True):
    """Whose approvals are needed, and how long one holds."""

    required: tuple[QuorumShape, ...] = ()
    expire_after: Duration | None = None
    review: Annotated[bool, Meta(description="An approval must name the digest of the review it is based on.")] = False


class EvidenceShape(Shape, frozen=True, forbid_unknown_fields=True):
    """What evidence of one kind must be to count."""

    expire_after: Duration | None = None
    keys: Annotated[
        tuple[str, ...],
        Meta(description="PEM files of public keys; evidence of this kind counts only with a proof by one of them."),
    ] = ()
    proof: Annotated[
        Literal["dsse", "model_signing"],
        Meta(description="What proves it: a signed statement, or the model's own signature, which says nothing else."),
    ] = "dsse"


class TimesShape(Shape, frozen=True, forbid_unknown_fields=True, rename={"since": "from"}):
    """A part of the week."""

    days: Annotated[tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...], Meta(min_length=1)]
    time_zone: Annotated[str, Meta(description="A name of the IANA time zone database: Europe/Zurich, UTC.")]
    since: Annotated[str, Meta(description="HH:MM")] = "00:00"
    until: Annotated[str, Meta(description="HH:MM; 24:00 is the end of the day.")] = "24:00"


class FreezeShape(Shape, frozen=True, forbid_unknown_fields=True, rename={"since": "from"}):
    """A time in which nothing is promoted; ISO 8601 with an offset."""

    since: Moment
    until: Moment
    because: str


class OverrideShape(Shape, frozen=True, forbid_unknown_fields=True):
    """What is asked of some models beside what is asked of all, or with `relax` instead of it."""

    models: Pattern
    rules: tuple[RuleShape, ...] = ()
    use: tuple[str, ...] = ()
    relax: Annotated[
        bool, Meta(description="Rules here replace those of the same name, and `without` takes some away.")
    ] = False
    reason: Annotated[str, Meta(description="Why less is asked of these models; needed with `relax`.")] = ""
    without: Annotated[tuple[str, ...], Meta(description="Names of rules that are not asked of these models.")] = ()


class RollbackShape(Shape, frozen=True, forbid_unknown_fields=True):
    """What is asked of a rollback, beside a reason and a version that was live and is not quarantined."""

    rules: tuple[RuleShape, ...] = ()


class EnvironmentShape(Shape, frozen=True, forbid_unknown_fields=True):
    """One environment: how it is marked, and what guards it."""

    marks: Annotated[
        tuple[dict[str, str], ...],
        Meta(
            extra_json_schema={"minItems": 1},
            description="{alias: NAME} or {stage: NAME}; the first says what is live.",
        ),
    ]
    rules: tuple[RuleShape, ...]
    where: WhereShape = WhereShape()
    mode: Literal["enforce", "warn", "observe"] = "enforce"
    after: str | None = None
    use: Annotated[tuple[str, ...], Meta(description="Names of rule_sets whose rules count here too.")] = ()
    parameters: Annotated[dict[str, Parameter], Meta(description="Read in rules as environment.parameters.NAME.")] = {}
    approvals: ApprovalsShape = ApprovalsShape()
    evidence: dict[str, EvidenceShape] = {}
    allowed_times: tuple[TimesShape, ...] = ()
    freezes: tuple[FreezeShape, ...] = ()
    overrides: tuple[OverrideShape, ...] = ()
    rollback: RollbackShape = RollbackShape()
    waivable: Annotated[
        tuple[Literal["after", "approvals", "allowed-times", "freeze"], ...],
        Meta(description="What an emergency may pass beside the rules that are waivable themselves."),
    ] = ()
    on_drift: Literal["report", "revert"] = "report"
    seal: Literal["approved", "live", "never"] | None = None
    sealed_tags: tuple[str, ...] = ()


class FileShape(Shape, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    environments: dict[str, EnvironmentShape]
    rule_sets: dict[str, tuple[RuleShape, ...]] = {}


def json_schema() -> bytes:
    """Give the JSON Schema (2020-12) of environments.yaml."""
    document: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Registry Gateway: environments.yaml",
        **msgspec.json.schema(FileShape),
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
