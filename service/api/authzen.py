"""The OpenID AuthZEN Authorization API 1.0: access evaluation, one and several, and its metadata. No searches."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from service.api import access_schemas as s
from service.api import shapes
from service.api.health import PUBLIC, Metrics
from service.api.problems import status_of
from service.errors import GatewayError, InvalidRequest
from service.governance import Governance
from service.governance.access import MAX_GROUPS
from service.governance.evaluations import MARKING, PROMOTE, AskedAbout, Evaluated, Semantic, Wrong
from service.model import Caller, Principal

EVALUATION, EVALUATIONS = "/access/v1/evaluation", "/access/v1/evaluations"
METADATA = "/.well-known/authzen-configuration"
_SUBJECTS = ("user", "service", "group")
_RESOURCE = "registry"
_CACHED = {"cache-control": "public, max-age=300"}


@post(EVALUATION, operation_id="evaluate", status_code=200, opt={"action": "access:evaluate"}, tags=["access"])
async def evaluate(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    metrics: NamedDependency[Metrics],
    data: JSONBody[s.EvaluationRequest],
) -> s.EvaluationBody:
    """Decide whether a subject may do something; with a version of a promotion, its verdict too."""
    return await _one(caller, governance, metrics, data)


@post(EVALUATIONS, operation_id="evaluateAll", status_code=200, opt={"action": "access:evaluate"}, tags=["access"])
async def evaluate_all(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    metrics: NamedDependency[Metrics],
    data: JSONBody[s.EvaluationsRequest],
) -> s.EvaluationsBody | s.EvaluationBody:
    """Decide several questions in one call, at most 100; a question that cannot be asked is denied with its error."""
    if not data.evaluations:
        return await _one(caller, governance, metrics, _filled(s.EvaluationItem(), data))
    semantic = Semantic(data.options.evaluations_semantic) if data.options else Semantic.EXECUTE_ALL
    questions = [_read(item, data) for item in data.evaluations]
    answers = await governance.evaluations.evaluate(caller, questions, semantic)
    bodies = [_body(asked, answer, metrics) for asked, answer in zip(questions, answers, strict=False)]
    if len(bodies) < len(questions):
        bodies[-1].context.reason = f"{semantic.value}: {bodies[-1].context.reason or 'it cannot be asked'}"
    return s.EvaluationsBody(bodies)


@get(METADATA, operation_id="authzenConfiguration", opt=PUBLIC, tags=["access"])
async def authzen_configuration(
    request: Request[Any, Any, Any], public_url: NamedDependency[str | None]
) -> Response[s.AuthzenConfiguration]:
    """Say where evaluations are asked (`listen.public_url`)."""
    base = public_url or f"{request.scope['scheme']}://{request.headers['host']}"
    return Response(s.AuthzenConfiguration(base, base + EVALUATION, base + EVALUATIONS), headers=_CACHED)


async def _one(caller: Caller, governance: Governance, metrics: Metrics, data: s.EvaluationRequest) -> s.EvaluationBody:
    asked = _caught(data)
    answer = (await governance.evaluations.evaluate(caller, [asked]))[0]
    if isinstance(answer, Wrong):
        raise answer.error
    return _body(asked, answer, metrics)


def _filled(item: s.EvaluationItem, defaults: s.EvaluationsRequest) -> s.EvaluationRequest:
    """Take from the top level what an item lacks.

    Raises:
        InvalidRequest: it is in neither.
    """
    found: dict[str, Any] = {}
    for name in ("subject", "action", "resource", "context"):
        value = getattr(item, name)
        found[name] = getattr(defaults, name) if value is None else value
        if found[name] is None and name != "context":
            message = f"The {name} is missing, here and at the top level."
            raise InvalidRequest(message)
    return s.EvaluationRequest(**{**found, "context": found["context"] or {}})


def _read(item: dict[str, Any], defaults: s.EvaluationsRequest) -> AskedAbout | Wrong:
    try:
        return _caught(_filled(msgspec.convert(item, s.EvaluationItem), defaults))
    except msgspec.ValidationError as error:
        return Wrong(InvalidRequest(f"{error}."))
    except InvalidRequest as error:
        return Wrong(error)


def _caught(data: s.EvaluationRequest) -> AskedAbout | Wrong:
    try:
        return _question(data)
    except InvalidRequest as error:
        return Wrong(error)


def _question(data: s.EvaluationRequest) -> AskedAbout:
    """Understand a question; properties and context that mean nothing here are ignored (section 5).

    Raises:
        InvalidRequest: a type that is not ours, or a value of the wrong kind.
    """
    if data.subject.type not in _SUBJECTS:
        message = f"The subject's type {data.subject.type[:100]!r} is unknown; there are: {', '.join(_SUBJECTS)}."
        raise InvalidRequest(message)
    if data.resource.type != _RESOURCE:
        message = f"The resource's type {data.resource.type[:100]!r} is unknown; there is: {_RESOURCE}."
        raise InvalidRequest(message)
    registry, slash, resource = data.resource.id.partition("/")
    if not slash:
        message = "The resource's id is <registry>/<resource>, such as main/models/iris."
        raise InvalidRequest(message)
    principal = Principal(f"{data.subject.type}:{data.subject.id}", _groups(data.subject.properties))
    version = data.resource.properties.get("version", data.context.get("version"))
    if data.action.name not in (PROMOTE, *MARKING):
        version = None  # it means nothing for others
    if version is not None and not isinstance(version, str):
        message = 'The version is text, such as "1".'
        raise InvalidRequest(message)
    return AskedAbout(principal, registry, resource, data.action.name, version)


def _groups(properties: dict[str, Any]) -> frozenset[str]:
    groups = properties.get("groups") or []
    known = isinstance(groups, list) and all(isinstance(item, str) and item.startswith("group:") for item in groups)
    if not known or len(groups) > MAX_GROUPS:
        message = f"subject.properties.groups is a list of at most {MAX_GROUPS} names that begin with group:."
        raise InvalidRequest(message)
    return frozenset(groups)


def _body(asked: AskedAbout | Wrong, answer: Evaluated | Wrong, metrics: Metrics) -> s.EvaluationBody:
    decision = answer.decision
    kind = "error" if isinstance(answer, Wrong) else "permit" if decision.allowed else "deny"
    metrics.evaluations.labels(kind).inc()
    if isinstance(answer, Wrong):
        return s.EvaluationBody(decision=False, context=s.EvaluationContext(error=_error(answer.error)))
    context = s.EvaluationContext(revision=decision.revision, row=decision.row)
    verb = "allows" if decision.allowed else "denies"
    context.reason = f"{decision.row} {verb} it" if decision.row else "no row allows it"
    if answer.asked != asked:
        context.decided_as = s.DecidedAs(answer.asked.action, answer.asked.resource)
    if answer.verdict is not None:
        context.verdict = shapes.verdict_body(answer.verdict.document())
    if answer.verdict_problem is not None:
        context.verdict_problem = _error(answer.verdict_problem)
    return s.EvaluationBody(decision.allowed, context)


def _error(error: GatewayError) -> s.EvaluationError:
    return s.EvaluationError(status_of(error), error.detail)


HANDLERS = (evaluate, evaluate_all, authzen_configuration)
