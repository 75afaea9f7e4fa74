"""Our own routes as one Litestar application, and their OpenAPI document."""

from __future__ import annotations

import importlib.metadata
import json
import re
from typing import Any

import structlog
from litestar import Litestar, Request, Response, get
from litestar.di import Provide
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from service import errors as e
from service.api import access as access_routes
from service.api import authzen as authzen_routes
from service.api import environments as environment_routes
from service.api import exchange as exchange_routes
from service.api import health as health_routes
from service.api import records as record_routes
from service.api import trail as trail_routes
from service.api import versions as version_routes
from service.api import webhooks as webhook_routes
from service.api.health import PUBLIC
from service.api.problems import render_error
from service.api.wrong import allowed_methods, sentence_of
from service.asgi import client_address
from service.model import Caller

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""U+0000 as JSON spells it, and not behind an escaped backslash."""
_NO_QUERY = frozenset(
    {
        *("request", "caller", "exchange", "gateway", "governance", "health", "metrics", "public_url"),
        *("data", "if_match", "if_none_match"),
    }
)
_log = structlog.get_logger()


def build_litestar(**keywords: Any) -> Litestar:
    """Build the application of our own routes, with its OpenAPI document at ``/openapi.json``."""

    @get("/openapi.json", operation_id="openapi", opt=PUBLIC, include_in_schema=False)
    async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Give the OpenAPI document of our own routes."""
        return Response(openapi_document(request.app), media_type="application/json")

    names = ("caller", "exchange", "gateway", "governance", "health", "metrics", "public_url")
    keywords.setdefault("dependencies", {name: given(None) for name in names})  # enough for the document
    return Litestar(
        route_handlers=[
            *version_routes.HANDLERS,
            *environment_routes.HANDLERS,
            *record_routes.HANDLERS,
            *trail_routes.HANDLERS,
            *access_routes.HANDLERS,
            *authzen_routes.HANDLERS,
            *exchange_routes.HANDLERS,
            *webhook_routes.HANDLERS,
            *health_routes.HANDLERS,
            openapi,
        ],
        exception_handlers={
            e.GatewayError: _answer_error,
            HTTPException: _answer_http_error,
            Exception: _answer_unexpected,
        },
        openapi_config=OpenAPIConfig(
            title="Registry Gateway",
            version=importlib.metadata.version("registry-gateway"),
            description="Governance for model registries: promotion, evidence, approvals, audit.",
            path="/unused",
            components=Components(
                security_schemes={
                    "key": SecurityScheme(
                        type="http", scheme="bearer", description="An API key (`rgw_…`), or a token of an issuer."
                    )
                }
            ),
            security=[{"key": []}],
            create_examples=False,
            use_handler_docstrings=True,
        ),
        logging_config=None,
        before_request=_refuse_what_no_route_takes,
        **keywords,
    )


def openapi_document(app: Litestar) -> bytes:
    """Give the OpenAPI 3.1 document: every operation with its ``x-action`` and its problems."""
    document = json.loads(json.dumps(app.openapi_schema.to_schema()))
    actions = {
        str(handler.operation_id): handler.opt
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
    }
    document["components"].setdefault("schemas", {})["Problem"] = {
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "operation": {"type": "string"},
            "decision": {
                "type": "object",
                "description": "Of a 403, for callers with `access:explain`. `row` is null where no row matches.",
                "properties": {"row": {"type": ["string", "null"]}, "revision": {"type": "string"}},
            },
            "verdict": {"$ref": "#/components/schemas/VerdictBody"},
        },
    }
    answer = {
        "description": "A problem.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method not in ("get", "post", "put", "patch", "delete"):
                continue
            options = actions[operation["operationId"]]
            operation["x-action"] = options["action"]
            if path == exchange_routes.PATH:
                operation["responses"].update(exchange_routes.ERRORS)
                content = operation["requestBody"]["content"]
                content["application/x-www-form-urlencoded"] = content["application/json"]
                continue
            if options.get("public"):
                operation["security"] = []
                if path == "/readyz":
                    operation["responses"]["503"] = {**operation["responses"]["200"], "description": "Unready."}
                continue
            for kind in options.get("also_answers", ()):
                content = operation["responses"]["200"]["content"]
                content[kind] = next(iter(content.values()))
            statuses = ["400", "401", "403", "404", "409", "412", "413", "415", "422", "429", "502", "503", "504"]
            operation["responses"].update(dict.fromkeys(statuses, answer))
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def public_paths(app: Litestar) -> frozenset[str]:
    """Return the exact paths of the routes that say themselves that they are public."""
    return frozenset(
        route.path
        for route in app.routes
        if any(handler.opt.get("public") for handler in getattr(route, "route_handlers", ())) and "{" not in route.path
    )


async def _refuse_what_no_route_takes(request: Request[Any, Any, Any]) -> None:
    """Refuse an unknown field of the query, and NUL: PostgreSQL stores no text with it, so it would be no record."""
    _refuse_unknown_query(request)
    if any("\0" in value for value in request.query_params.values()) or _NUL.search(await request.body()):
        message = "The request holds the character U+0000; leave it out."
        raise e.InvalidRequest(message)


def _refuse_unknown_query(request: Request[Any, Any, Any]) -> None:
    """Refuse a query field that the route does not name: an answer that ignores it would mislead."""
    named = request.route_handler.opt.get("query", {})  # Litestar takes some words for itself
    known = {named.get(name, name) for name in request.route_handler.parsed_fn_signature.parameters}
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        fields = ", ".join(sorted(known - _NO_QUERY - set(request.path_params))) or "none"
        message = f"The query field {unknown[0]!r} is unknown here; there are: {fields}."
        raise e.InvalidRequest(message)


def caller_of(request: Request[Any, Any, Any]) -> Caller:
    """Return who sent *request*, as the front door found."""
    state = request.scope["state"]
    address, key = client_address(request.scope), state.get("idempotency", "")
    return Caller(state["principal"], address, key, state.get("identify"))


def given(value: object) -> Provide:
    """Give handlers *value* by its name."""
    return Provide(lambda: value, sync_to_thread=False)


def _answer_error(_: Request[Any, Any, Any], error: e.GatewayError) -> Response[bytes]:
    status, headers, body = render_error(error)
    kind = headers.pop("content-type")
    return Response(body, status_code=status, headers=headers, media_type=kind)


def _answer_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Give Litestar's own refusals the shape of ours."""
    if isinstance(error, ValidationException) or error.status_code == 400:
        ours: e.GatewayError = e.InvalidRequest(sentence_of(request, error))
    elif error.status_code == 404:
        ours = e.UnknownRoute("There is no such route; /openapi.json lists them.")
    elif error.status_code == 405:
        allowed = allowed_methods(request)
        ours = e.MethodNotAllowed(f"The path takes {', '.join(allowed)}, not {request.method}.", allowed)
    else:
        _log.error("unexpected", status=error.status_code, detail=error.detail)
        ours = e.GatewayError("Something failed inside the gateway; its log says what.")
    return _answer_error(request, ours)


def _answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("unexpected", exc_info=error)
    return _answer_error(request, e.GatewayError("Something failed inside the gateway; its log says what."))
