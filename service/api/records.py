"""Routes about what is configured and what was recorded, over all models."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, PathParameter, QueryParameter

from service.api import schemas as s
from service.api import shapes, verdicts
from service.api.shapes import When
from service.gateway import Gateway
from service.governance import Governance
from service.model import Caller
from service.scope import reaches

Digest = Annotated[str, PathParameter(pattern="^[0-9a-f]{64}$")]
Closed = Annotated[bool, QueryParameter(description="Those that were reviewed, too.")]
Awaiting = Annotated[str | None, QueryParameter(pattern="^me$", description="Those that wait for the caller.")]


@get("/v1/registries", operation_id="listRegistries", opt={"action": "none"}, tags=["registries"])
async def list_registries(caller: NamedDependency[Caller], gateway: NamedDependency[Gateway]) -> s.RegistriesBody:
    """List the configured registries and what they can hold; of a narrowed credential those that its scope names."""
    return s.RegistriesBody(
        [
            s.RegistryBody(name, "mlflow", **dataclasses.asdict(backend.capabilities))
            for name, backend in gateway.backends.items()
            if reaches(caller.principal.scope, name)
        ]
    )


@post(
    "/v1/registries/{registry:str}/adoptions",
    operation_id="adopt",
    status_code=200,
    opt={"action": "environment:adopt"},
    tags=["registries"],
)
async def adopt(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    registry: FromPath[str],
    data: JSONBody[s.AdoptionRequest],
) -> s.AdoptionBody:
    """Take over what was live before the gateway came: one baseline event a mark. `dry_run` lists it first."""
    rows = await governance.adoption.adopt(
        caller,
        registry,
        models=data.models,
        environment=data.environment,
        reason=data.reason,
        dry_run=data.dry_run,
        owner=data.owner,
    )
    return s.AdoptionBody(data.dry_run, [s.AdoptedBody(**dataclasses.asdict(row)) for row in rows])


@get("/v1/environments", operation_id="listEnvironments", opt={"action": "none"}, tags=["environments"])
async def list_environments(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance]
) -> s.EnvironmentsBody:
    """List the environments, their marks, and everything that is asked of a version there.

    A narrowed credential sees those of the registries that its scope names.
    """
    listed = [item for item in governance.trail.environments() if reaches(caller.principal.scope, item[0])]
    return s.EnvironmentsBody([shapes.environment(*item) for item in listed])


@get("/v1/rules/{digest:str}", operation_id="getRules", opt={"action": "none"}, tags=["environments"])
async def get_rules(governance: NamedDependency[Governance], digest: Digest) -> dict[str, Any]:
    """Get rules that judged once, as they were written, by the `rules_digest` of a verdict."""
    return await governance.trail.rules(digest)


@get("/v1/reviews/{digest:str}", operation_id="getKeptReview", opt={"action": "version:read"}, tags=["versions"])
async def get_review(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], digest: Digest
) -> dict[str, Any]:
    """Get a review that was shown, by the digest that an approval names."""
    return await governance.reviews.kept(caller, digest)


@get(
    "/v1/promotions/{promotion_id:str}",
    operation_id="getPromotion",
    opt={"action": "model:read"},
    tags=["environments"],
)
async def get_promotion(
    request: Request[Any, Any, Any],
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    promotion_id: FromPath[str],
) -> Response[s.PromotionRecord]:
    """Get a promotion and its events; as JUnit XML or Markdown its verdict alone."""
    events = await governance.trail.promotion(caller, promotion_id)
    data, last = events[0]["data"], events[-1]["data"]
    verdict = last["verdict"] or data["verdict"]
    body = shapes.verdict_body(verdict) if verdict else None
    if body is not None:
        what = f"{data['model']} version {data['version']} in {data['environment']}"
        rendered = verdicts.render(request.headers.get("accept", ""), body, what)
        if rendered is not None:
            return Response(rendered[1], media_type=rendered[0])  # type: ignore[arg-type]  # text, not the body
    return Response(
        s.PromotionRecord(
            id=promotion_id,
            state=last["outcome"] or "open",
            registry=data["registry"],
            model=data["model"],
            environment=data["environment"],
            version=data["version"],
            by=data["actor"]["subject"],
            before=(last["before"] or {}).get("version"),
            after=(last["after"] or {}).get("version"),
            verdict=body,
            events=events,
        )
    )


@get("/v1/promotion-requests", operation_id="listPromotionRequests", opt={"action": "model:read"}, tags=["requests"])
async def list_requests(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], awaiting: Awaiting = None
) -> s.RequestsBody:
    """List the open promotion requests; with `awaiting=me` those the caller can promote or approve."""
    found = await governance.requests.list(caller, awaiting_me=awaiting is not None)
    return s.RequestsBody([shapes.request(item) for item in found])


@get(
    "/v1/promotion-requests/{request_id:str}",
    operation_id="getPromotionRequest",
    opt={"action": "model:read"},
    tags=["requests"],
)
async def get_request(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], request_id: FromPath[str]
) -> s.RequestBody:
    """Get a promotion request; an open one with the verdict as it stands."""
    placed = await governance.requests.get(caller, request_id)
    body = shapes.request(placed)
    if placed.request.state == "open":
        body.verdict = shapes.verdict_body((await governance.requests.verdict(caller, placed)).document())
    return body


@delete(
    "/v1/promotion-requests/{request_id:str}",
    operation_id="cancelPromotionRequest",
    opt={"action": "environment:request"},
    tags=["requests"],
)
async def cancel_request(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], request_id: FromPath[str]
) -> None:
    """Cancel one's own promotion request; with `environment:promote` anybody's."""
    await governance.requests.cancel(caller, request_id)


@get("/v1/emergencies", operation_id="listEmergencies", opt={"action": "model:read"}, tags=["emergencies"])
async def list_emergencies(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], closed: Closed = False
) -> s.DebtsBody:
    """List emergencies that were not reviewed yet, or with `closed=true` every one."""
    found = await governance.debts.list(caller, open_only=not closed)
    return s.DebtsBody([shapes.debt(item) for item in found])


@post(
    "/v1/emergencies/{emergency_id:str}/reviews",
    operation_id="reviewEmergency",
    status_code=200,
    opt={"action": "approval:create"},
    tags=["emergencies"],
)
async def review_emergency(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    emergency_id: FromPath[str],
    data: JSONBody[s.DebtReview],
) -> s.DebtBody:
    """Review somebody else's emergency; until then the environment takes no other one."""
    return shapes.debt(await governance.debts.close(caller, emergency_id, data.reason))


@get("/v1/reports/would-refuse", operation_id="reportWouldRefuse", opt={"action": "audit:read"}, tags=["audit"])
async def would_refuse(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], since: When = None, until: When = None
) -> s.RefusalsBody:
    """Sum what environments in `observe` and `warn` would have refused, by rule, model and principal."""
    given = {"since": shapes.seconds(since), "until": shapes.seconds(until)}
    filters = {name: value for name, value in given.items() if value is not None}
    rows = await governance.trail.would_refuse(caller, filters)
    return s.RefusalsBody([s.RefusalBody(**dataclasses.asdict(row)) for row in rows])


HANDLERS = (
    list_registries,
    adopt,
    list_environments,
    get_rules,
    get_review,
    get_promotion,
    list_requests,
    get_request,
    cancel_request,
    list_emergencies,
    review_emergency,
    would_refuse,
)
