"""The governance API. Routes hold no registry: they ask the gateway or the governance beside it."""

from __future__ import annotations

import dataclasses
import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from litestar import Controller, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody, PathParameter, QueryParameter

from service.api import schemas as s
from service.change import Promotion
from service.errors import InvalidRequest
from service.gateway import Gateway
from service.governance import Governance
from service.model import Call, Caller, PromotionResult, Record, Verdict
from service.promotion.facts import version_document
from service.records import Approval, Evidence
from service.strict import check_text, check_version

Version = Annotated[str, PathParameter(pattern="^[1-9][0-9]{0,9}$", description="A model version number.")]
Cursor = Annotated[str | None, QueryParameter(pattern="^[0-9]{1,18}$", description="From `next_cursor`.")]
When = Annotated[datetime | None, QueryParameter(description="ISO 8601.")]
Text = Annotated[str | None, QueryParameter(max_length=500)]
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
_MAX_FACTS_BYTES = 8192
_LAST_SECOND = datetime(9000, 1, 1, tzinfo=UTC).timestamp()
_BASE = "/v1/registries/{registry:str}/models/{model:str}"


class VersionController(Controller):
    """What is recorded about versions."""

    path = _BASE + "/versions/{version:str}"
    tags = ("versions",)

    @get(operation_id="getVersion", opt={"action": "version:read"})
    async def version(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
    ) -> s.VersionBody:
        """Get a version with the facts rules see, its evidence and its approvals."""
        facts, evidence, approvals = await governance.version(caller, registry, model, version)
        document = json.loads(json.dumps(version_document(facts), default=_iso), parse_constant=str)
        return s.VersionBody(
            registry,
            model,
            version,
            document,
            [_evidence(item) for item in evidence],
            [_approval(item) for item in approvals],
            dict(facts.version.native),
        )

    @post("/evidence", operation_id="postEvidence", opt={"action": "evidence:post"})
    async def post_evidence(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
        data: JSONBody[s.EvidenceRequest],
    ) -> s.EvidenceBody:
        """Post evidence about a version: append-only; the newest of a kind counts."""
        if len(json.dumps(data.facts)) > _MAX_FACTS_BYTES:
            message = f"The facts are over {_MAX_FACTS_BYTES} bytes; keep a link in `source` instead."
            raise InvalidRequest(message)
        posted = {"kind": data.kind, "result": data.result, "facts": data.facts, "source": data.source}
        return _evidence(await governance.post_evidence(caller, registry, model, version, posted))

    @get("/evidence", operation_id="listEvidence", opt={"action": "version:read"})
    async def list_evidence(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
    ) -> s.EvidencesBody:
        """List the evidence about a version, oldest first."""
        found = await governance.evidence(caller, registry, model, version)
        return s.EvidencesBody([_evidence(item) for item in found])

    @post("/approvals", operation_id="createApproval", opt={"action": "approval:create"})
    async def approve(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
        data: JSONBody[s.ApprovalRequest],
    ) -> s.ApprovalBody:
        """Approve or reject a version for an environment, under its present rules."""
        expires = _seconds(data.expires)
        if expires is not None and expires <= time.time():
            message = "expires is in the past."
            raise InvalidRequest(message)
        signed = {
            "environment": data.environment,
            "decision": data.decision,
            "reason": data.reason,
            "expires": expires,
        }
        return _approval(await governance.approve(caller, registry, model, version, signed))

    @get("/approvals", operation_id="listApprovals", opt={"action": "version:read"})
    async def list_approvals(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
    ) -> s.ApprovalsBody:
        """List the approvals of a version, oldest first."""
        found = await governance.approvals(caller, registry, model, version)
        return s.ApprovalsBody([_approval(item) for item in found])

    @delete("/approvals/{approval_id:str}", operation_id="revokeApproval", opt={"action": "approval:revoke"})
    async def revoke(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
        approval_id: FromPath[str],
    ) -> None:
        """Take back an approval: one's own with `approval:create`, anybody's with `approval:revoke`."""
        await governance.revoke(caller, registry, model, version, approval_id)


class EnvironmentController(Controller):
    """What is live, and making it so."""

    path = _BASE + "/environments/{environment:str}"
    tags = ("environments",)

    @get(operation_id="getEnvironment", opt={"action": "model:read"})
    async def live(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
    ) -> Response[s.LiveBody]:
        """Get what is live in an environment. The ETag is for If-Match on a promotion."""
        version, period, mlmodel, digest, etag = await governance.live(caller, registry, model, environment)
        flavors = (mlmodel or {}).get("flavors")
        body = s.LiveBody(
            environment=environment,
            version=version.version,
            since=_stamp(period.since) if period else None,
            promotion=period.operation if period else None,
            by=period.by if period else None,
            artifact_uri=version.source,
            artifact_digest=digest,
            flavors=sorted(flavors) if isinstance(flavors, dict) else [],
        )
        return Response(body, headers={"ETag": etag})

    @get("/history", operation_id="getHistory", opt={"action": "model:read"})
    async def history(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
    ) -> s.HistoryBody:
        """List what was live in an environment by record, newest first."""
        found = await governance.history(caller, registry, model, environment)
        return s.HistoryBody(
            [
                s.PeriodBody(
                    item.version,
                    _stamp(item.since),
                    _stamp(item.until) if item.until is not None else None,
                    item.by,
                    item.operation,
                    item.reason,
                )
                for item in found
            ]
        )

    @post("/promotions", operation_id="promote", status_code=200, opt={"action": "environment:promote"})
    async def promote(
        self,
        caller: NamedDependency[Caller],
        gateway: NamedDependency[Gateway],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
        data: JSONBody[s.PromotionRequest],
        if_match: Annotated[str | None, HeaderParameter(name="If-Match", max_length=200)] = None,
    ) -> s.PromotionBody:
        """Make a version live if the environment's gate is open. `dry_run` gives the verdict and changes nothing."""
        change = Promotion(
            model=check_text(model, "model name"),
            environment=environment,
            version=check_version(data.version),
            reason=data.reason,
            dry_run=data.dry_run,
            if_match=if_match,
        )
        call = Call(
            principal=caller.principal,
            registry=registry,
            name="promote",
            needs=(),
            record=Record.EACH,
            change=change,
            address=caller.address,
        )
        answer = await gateway.handle(call)
        assert answer.promotion is not None  # a promotion is answered by one
        return _promotion(answer.promotion)


@get("/v1/registries", operation_id="listRegistries", opt={"action": "none"}, tags=["registries"])
async def list_registries(gateway: NamedDependency[Gateway]) -> s.RegistriesBody:
    """List the configured registries and what they can hold."""
    return s.RegistriesBody(
        [
            s.RegistryBody(name, "mlflow", **dataclasses.asdict(backend.capabilities))
            for name, backend in gateway.backends.items()
        ]
    )


@get("/v1/environments", operation_id="listEnvironments", opt={"action": "none"}, tags=["environments"])
async def list_environments(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance]
) -> s.EnvironmentsBody:
    """List the environments, their marks and their rules."""
    return s.EnvironmentsBody(
        [
            s.EnvironmentBody(
                registry,
                item.name,
                item.models,
                [{mark.kind: mark.value} for mark in item.marks],
                item.after,
                [s.RuleBody(rule.name, rule.require.text, rule.because) for rule in item.rules],
                item.rules_digest,
                item.sealing.value,
                list(item.sealed_tags),
            )
            for registry, item in governance.environments(caller)
        ]
    )


@get(
    "/v1/promotions/{promotion_id:str}",
    operation_id="getPromotion",
    opt={"action": "model:read"},
    tags=["environments"],
)
async def get_promotion(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], promotion_id: FromPath[str]
) -> s.PromotionRecord:
    """Get a promotion and its events."""
    events = await governance.promotion(caller, promotion_id)
    data, last = events[0]["data"], events[-1]["data"]
    verdict = last["verdict"] or data["verdict"]
    return s.PromotionRecord(
        id=promotion_id,
        state=last["outcome"] or "open",
        registry=data["registry"],
        model=data["model"],
        environment=data["environment"],
        version=data["version"],
        by=data["actor"]["subject"],
        before=(last["before"] or {}).get("version"),
        after=(last["after"] or {}).get("version"),
        verdict=_verdict_body(verdict) if verdict else None,
        events=events,
    )


@get("/v1/audit/events", operation_id="listEvents", opt={"action": "audit:read"}, tags=["audit"])
async def list_events(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    model: Text = None,
    actor: Text = None,
    action: Text = None,
    outcome: Text = None,
    operation: Text = None,
    phase: Text = None,
    since: When = None,
    until: When = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> s.EventsBody:
    """List audit events, oldest first."""
    given: dict[str, Any] = {
        "model": model,
        "actor": actor,
        "action": action,
        "outcome": outcome,
        "operation": operation,
        "phase": phase,
        "since": _seconds(since),
        "until": _seconds(until),
    }
    filters = {name: value for name, value in given.items() if value is not None}
    rows = await governance.events(caller, filters, int(cursor or 0), limit + 1)
    more = len(rows) > limit
    rows = rows[:limit]
    return s.EventsBody([event for _, event in rows], str(rows[-1][0]) if more else None)


HANDLERS = (
    VersionController,
    EnvironmentController,
    list_registries,
    list_environments,
    get_promotion,
    list_events,
)


def _promotion(result: PromotionResult) -> s.PromotionBody:
    return s.PromotionBody(
        id=result.id,
        state=result.state,  # type: ignore[arg-type]  # one of the three
        dry_run=result.dry_run,
        before=result.before,
        after=result.after,
        verdict=_verdict(result.verdict),
    )


def _verdict(verdict: Verdict) -> s.VerdictBody:
    return _verdict_body(verdict.document())


def _verdict_body(document: dict[str, Any]) -> s.VerdictBody:
    findings = [s.FindingBody(**finding) for finding in document["findings"]]
    return s.VerdictBody(document["allowed"], document["rules_digest"], findings)


def _evidence(item: Evidence) -> s.EvidenceBody:
    return s.EvidenceBody(
        item.id, item.kind, item.result, item.by, dict(item.facts), item.source, item.artifact_digest, _stamp(item.at)
    )


def _approval(item: Approval) -> s.ApprovalBody:
    return s.ApprovalBody(
        item.id,
        item.environment,
        item.decision,
        item.by,
        list(item.groups),
        item.reason,
        _stamp(item.at),
        _stamp(item.expires) if item.expires is not None else None,
        item.rules_digest,
        item.artifact_digest,
        item.revoked,
    )


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _iso(value: object) -> str:
    if isinstance(value, datetime):
        return _stamp(value.timestamp())
    return str(value)


def _seconds(moment: datetime | None) -> float | None:
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
