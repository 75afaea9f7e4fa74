"""Gives the nouns of the governance API their wire shapes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar.params import PathParameter, QueryParameter

from service.api import schemas as s
from service.drift import Look
from service.errors import InvalidRequest
from service.governance.requests import Placed
from service.governance.standing import Live
from service.keeping import UnsettledOperation
from service.model import PromotionResult
from service.promotion.gate import Environment, Rule
from service.records import Approval, Debt, Evidence, Hold, LivePeriod

Version = Annotated[str, PathParameter(pattern="^[1-9][0-9]{0,9}$", description="A model version number.")]
When = Annotated[datetime | None, QueryParameter(description="ISO 8601.")]
_LAST_SECOND = datetime(9000, 1, 1, tzinfo=UTC).timestamp()
BASE = "/v1/registries/{registry:str}/models/{model:str}"


def promotion(result: PromotionResult) -> s.PromotionBody:
    """Give a promotion."""
    return s.PromotionBody(
        id=result.id,
        state=result.state,  # type: ignore[arg-type]  # one of the three
        version=result.version.version if result.version else None,
        dry_run=result.dry_run,
        before=result.before,
        after=result.after,
        verdict=verdict_body(result.verdict.document()),
    )


def verdict_body(document: dict[str, Any]) -> s.VerdictBody:
    """Give a verdict as it was recorded."""
    return msgspec.convert(document, s.VerdictBody)


def evidence(item: Evidence) -> s.EvidenceBody:
    """Give evidence."""
    return s.EvidenceBody(
        item.id,
        item.kind,
        item.result,
        item.by,
        dict(item.facts),
        item.source,
        item.artifact_digest,
        stamp(item.at),
        stamp_or_none(item.expires),
        dict(item.proof) if item.proof else None,
    )


def approval(item: Approval) -> s.ApprovalBody:
    """Give an approval."""
    return s.ApprovalBody(
        item.id,
        item.environment,
        item.decision,
        item.by,
        list(item.groups),
        item.reason,
        stamp(item.at),
        stamp_or_none(item.expires),
        item.rules_digest,
        item.artifact_digest,
        item.revoked,
        item.review or None,
    )


def environment(registry: str, item: Environment) -> s.EnvironmentBody:
    """Give an environment of *registry*."""
    terms = item.terms()
    return s.EnvironmentBody(
        registry=registry,
        name=item.name,
        models=item.models,
        marks=[{mark.kind: mark.value} for mark in item.marks],
        after=item.after,
        rules=_rules(item.rules),
        rules_digest=item.rules_digest,
        seal=item.sealing.value,
        sealed_tags=list(item.sealed_tags),
        mode=item.mode,  # type: ignore[arg-type]  # one of the three
        on_drift=item.on_drift,  # type: ignore[arg-type]  # one of the two
        parameters=dict(item.parameters),
        overrides=[s.OverrideBody(other.models, _rules(other.rules)) for other in item.overrides],
        rollback_rules=_rules(item.rollback_rules),
        waivable=sorted(item.waivable),
        approvals=msgspec.convert(terms["approvals"], s.ApprovalTermsBody),
        evidence=msgspec.convert(terms["evidence"], dict[str, s.EvidenceTermsBody]),
        allowed_times=msgspec.convert(terms["allowed_times"], list[s.TimesBody]),
        freezes=msgspec.convert(terms["freezes"], list[s.FreezeBody]),
    )


def _rules(rules: Iterable[Rule]) -> list[s.RuleBody]:
    return [s.RuleBody(rule.name, rule.require.text, rule.because, rule.severity, rule.waivable) for rule in rules]


def stamp(seconds: float) -> str:
    """Give a moment in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unsettled(item: UnsettledOperation, now: float) -> s.UnsettledBody:
    """Give an operation without a proven outcome."""
    data = item.intent["data"]
    return s.UnsettledBody(
        operation=item.operation,
        state=item.state,  # type: ignore[arg-type]  # one of the three
        registry=item.registry,
        model=data["model"],
        version=data["version"],
        environment=data["environment"],
        action=data["action"],
        resource=data["resource"],
        actor=data["actor"]["subject"],
        at=stamp(item.at),
        age_seconds=round(max(0.0, now - item.at), 3),
    )


def hold(item: Hold) -> s.HoldBody:
    """Give a legal hold."""
    return s.HoldBody(item.id, item.registry, item.model or None, item.reason, item.by, stamp(item.at))


def iso(value: object) -> str:
    """Give what JSON has no form for."""
    if isinstance(value, datetime):
        return stamp(value.timestamp())
    return str(value)


def seconds(moment: datetime | None) -> float | None:
    """Read a moment as seconds since the epoch.

    Raises:
        InvalidRequest: it is out of range.
    """
    if moment is None:
        return None
    try:
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= _LAST_SECOND:
        message = "The time is out of range."
        raise InvalidRequest(message)
    return seconds


def stamp_or_none(value: float | None) -> str | None:
    """Give a moment, or null."""
    return None if value is None else stamp(value)


def live(environment: str, item: Live) -> s.LiveBody:
    """Give what is or was live."""
    flavors = (item.mlmodel or {}).get("flavors")
    return s.LiveBody(
        environment=environment,
        version=item.version,
        since=stamp_or_none(item.period.since if item.period else None),
        until=stamp_or_none(item.period.until if item.period else None),
        promotion=item.period.operation if item.period else None,
        by=item.period.by if item.period else None,
        artifact_uri=item.found.source if item.found else None,
        artifact_digest=item.artifact_digest,
        flavors=sorted(str(name) for name in flavors) if isinstance(flavors, dict) else [],
        kind=item.period.kind if item.period else None,
        drifted=item.drifted,
    )


def period(item: LivePeriod, verdict: Any) -> s.PeriodBody:
    """Give from when to when a version was live."""
    return s.PeriodBody(
        item.live_as,
        item.version,
        stamp(item.since),
        stamp_or_none(item.until),
        item.by,
        item.operation,
        item.reason,
        item.kind,
        item.passed,
        item.artifact_digest,
        verdict_body(verdict) if verdict else None,
    )


def request(item: Placed) -> s.RequestBody:
    """Give a promotion request."""
    it = item.request
    return s.RequestBody(
        it.id,
        it.state,
        item.registry,
        item.model,
        it.environment,
        it.version,
        it.by,
        it.reason,
        stamp(it.at),
        stamp(it.expires),
        dict(it.change),
        stamp_or_none(it.ended_at),
        it.ended_by or None,
        it.operation or None,
    )


def debt(item: Debt) -> s.DebtBody:
    """Give what an emergency left."""
    return s.DebtBody(
        item.id,
        item.registry,
        item.model,
        item.environment,
        item.version,
        item.by,
        item.reason,
        item.ticket,
        list(item.waived),
        stamp(item.at),
        stamp_or_none(item.closed_at),
        item.closed_by or None,
        item.closing_reason or None,
    )


def look(item: Look) -> s.CheckBody:
    """Give what a comparison showed."""
    return s.CheckBody(item.environment, item.state, item.recorded, item.live)


def future(moment: datetime | None) -> float | None:
    """Read when something expires.

    Raises:
        InvalidRequest: it is in the past or out of range.
    """
    expires = seconds(moment)
    if expires is not None and expires <= time.time():
        message = "expires is in the past."
        raise InvalidRequest(message)
    return expires
