"""Routes about environments: what is live, making it so, taking it down, asking for it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, HeaderParameter, JSONBody, QueryParameter

from service.api import schemas as s
from service.api import shapes, verdicts
from service.api.shapes import BASE, When
from service.change import Promotion, Retirement
from service.errors import InvalidRequest
from service.gateway import Gateway
from service.governance import Governance
from service.governance.requests import Wish
from service.governance.standing import MAX_WAIT_SECONDS
from service.model import Answer, Call, Caller, Record
from service.strict import check_text, check_version

IfMatch = Annotated[str | None, HeaderParameter(name="If-Match", max_length=200)]
IfNoneMatch = Annotated[str | None, HeaderParameter(name="If-None-Match", max_length=200)]
Wait = Annotated[
    int, QueryParameter(ge=0, le=MAX_WAIT_SECONDS, description="Seconds to wait for something else than If-None-Match.")
]


class EnvironmentController(Controller):
    """What is live, and making it so."""

    path = BASE + "/environments/{environment:str}"
    tags = ("environments",)

    @get(operation_id="getEnvironment", opt={"action": "model:read"})
    async def live(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
        at: When = None,
        wait: Wait = 0,
        if_none_match: IfNoneMatch = None,
    ) -> Response[s.LiveBody | None]:
        """Get what is live, or was `at` a moment. With `wait` and If-None-Match, as soon as it changes, else 304."""
        if at is not None:
            if wait:
                message = "Send at or wait, not both."
                raise InvalidRequest(message)
            found = await governance.live.at(caller, registry, model, environment, _moment(at))
            return Response(shapes.live(environment, found), headers=_tagged(found.etag))
        if_none_match = _quoted(if_none_match, "If-None-Match")
        known = await governance.live.now(caller, registry, model, environment, if_none_match, wait)
        if known is None:
            return Response(None, status_code=304, headers=_tagged(if_none_match or ""))
        return Response(shapes.live(environment, known), headers=_tagged(known.etag))

    @get("/history", operation_id="getHistory", opt={"action": "model:read"})
    async def history(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
    ) -> s.HistoryBody:
        """List what was live in an environment by record, newest first, with who, why and by which verdict."""
        found = await governance.live.history(caller, registry, model, environment)
        return s.HistoryBody([shapes.period(item, verdict) for item, verdict in found])

    @post("/promotions", operation_id="promote", status_code=200, opt={"action": "environment:promote"})
    async def promote(
        self,
        request: Request[Any, Any, Any],
        caller: NamedDependency[Caller],
        gateway: NamedDependency[Gateway],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
        data: JSONBody[s.PromotionRequest],
        if_match: IfMatch = None,
    ) -> Response[s.PromotionBody]:
        """Make a version live if the environment's gate is open. `dry_run` gives the verdict and changes nothing."""
        emergency = data.emergency
        change = Promotion(
            model=check_text(model, "model name"),
            environment=environment,
            version=check_version(data.version),
            reason=emergency.reason if emergency else data.reason,
            dry_run=data.dry_run,
            if_match=_quoted(if_match, "If-Match"),
            purpose="emergency" if emergency else "promotion",
            ticket=emergency.ticket if emergency else "",
            record=_record(data.change),
        )
        answer = await gateway.handle(_call(caller, registry, "promote", change))
        return _promoted(request, answer, change)

    @post("/rollbacks", operation_id="rollback", status_code=200, opt={"action": "environment:rollback"})
    async def rollback(
        self,
        request: Request[Any, Any, Any],
        caller: NamedDependency[Caller],
        gateway: NamedDependency[Gateway],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
        data: JSONBody[s.RollbackRequest],
        if_match: IfMatch = None,
    ) -> Response[s.PromotionBody]:
        """Make live again what was live before: the version `to`, or the last good one."""
        change = Promotion(
            model=check_text(model, "model name"),
            environment=environment,
            version=check_version(data.to) if data.to else "",
            reason=data.reason,
            dry_run=data.dry_run,
            if_match=_quoted(if_match, "If-Match"),
            purpose="rollback",
        )
        answer = await gateway.handle(_call(caller, registry, "rollback", change))
        return _promoted(request, answer, change)

    @post("/retirements", operation_id="retire", status_code=200, opt={"action": "environment:retire"})
    async def retire(
        self,
        caller: NamedDependency[Caller],
        gateway: NamedDependency[Gateway],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
        data: JSONBody[s.RetirementRequest],
    ) -> s.RetirementBody:
        """Take down what is live: every mark of the environment is taken off."""
        change = Retirement(check_text(model, "model name"), environment, data.reason)
        answer = await gateway.handle(_call(caller, registry, "retire", change))
        return s.RetirementBody(answer.operation, answer.document().get("before"))

    @post("/promotion-requests", operation_id="requestPromotion", opt={"action": "environment:request"})
    async def ask(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
        data: JSONBody[s.PromotionRequestRequest],
    ) -> s.RequestBody:
        """Ask that a version be promoted by whoever has the right. The answer shows the verdict as it stands."""
        wish = Wish(
            environment, check_version(data.version), data.reason, shapes.future(data.expires), _record(data.change)
        )
        placed, verdict = await governance.requests.ask(caller, registry, check_text(model, "model name"), wish)
        body = shapes.request(placed)
        body.verdict = shapes.verdict_body(verdict.document())
        return body

    @post("/checks", operation_id="checkEnvironment", status_code=200, opt={"action": "model:read"})
    async def check(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        environment: FromPath[str],
    ) -> s.CheckBody:
        """Compare the registry with the record at once, as a registry's own trigger can ask for."""
        return shapes.look(await governance.live.check(caller, registry, model, environment))


def _call(caller: Caller, registry: str, name: str, change: Promotion | Retirement) -> Call:
    return Call(
        principal=caller.principal,
        registry=registry,
        name=name,
        needs=(),
        record=Record.EACH,
        change=change,
        address=caller.address,
        key="" if isinstance(change, Promotion) and change.dry_run else caller.key,  # nothing that must be done once
    )


def _promoted(request: Request[Any, Any, Any], answer: Answer, change: Promotion) -> Response[s.PromotionBody]:
    """Answer a promotion, as JSON or in the form that Accept asks for."""
    assert answer.promotion is not None  # a promotion is answered by one
    result = answer.promotion
    headers = dict(answer.headers)
    body = shapes.promotion(result)
    what = f"{change.model} version {body.version} in {change.environment}"
    rendered = verdicts.render(request.headers.get("accept", ""), body.verdict, what)
    if rendered is not None:
        return Response(rendered[1], media_type=rendered[0], headers=headers)  # type: ignore[arg-type]  # text, not the body
    return Response(body, headers=headers)


def _record(change: s.ChangeRecord | None) -> dict[str, str]:
    return {"id": change.id, "window": change.window, "fallback": change.fallback} if change else {}


def _moment(at: datetime) -> float:
    moment = shapes.seconds(at)
    assert moment is not None  # it was given
    return moment


def _quoted(etag: str | None, name: str) -> str | None:
    """Refuse an ETag without its quotes, which are part of it (RFC 9110, section 8.8.3): it would match nothing."""
    if etag is not None and etag != "*" and not ('"' in etag[:3] and etag.endswith('"') and len(etag) > 1):
        message = f'{name} takes an ETag with its quotes, as the header ETag gave it: {name}: "…".'
        raise InvalidRequest(message)
    return etag


def _tagged(etag: str) -> dict[str, str]:
    return {"ETag": etag} if etag else {}


HANDLERS = (EnvironmentController,)
