"""The MLflow dialect: finds the RPC of a request and builds its Call, out of MLflow's own descriptors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from service.dialects.mlflow_owners import with_owner
from service.dialects.mlflow_refused import REFUSED
from service.dialects.mlflow_routes import ONLY_AJAX, REFUSED_ROUTES, load_routes
from service.dialects.mlflow_row import Row
from service.dialects.mlflow_table import ROWS
from service.dialects.protobuf import Endpoint, Rpc, canonical, load_services, read_body, read_query
from service.errors import (
    BodyTooLarge,
    Busy,
    Conflict,
    Denied,
    GateClosed,
    GatewayError,
    IdempotencyKeyReused,
    IdentityUnavailable,
    InvalidRequest,
    JournalUnavailable,
    MethodNotAllowed,
    NotFound,
    OperationPending,
    OutcomeUnknown,
    RateLimited,
    RefusedRoute,
    RegistryRefused,
    RegistryUnavailable,
    RequestTimeout,
    Stale,
    Unauthenticated,
    UnknownRoute,
    UnsupportedMediaType,
)
from service.model import Call, Principal, PromotionResult, Request
from service.strict import decode_segment, no_traversal, parse_json

SERVICES = (
    ("model_registry_pb2", "ModelRegistryService"),
    ("service_pb2", "MlflowService"),
    ("mlflow_artifacts_pb2", "MlflowArtifactsService"),
    ("webhooks_pb2", "WebhookService"),
)
_REST = "<path:"
_INNER_TRACE = "assessment.trace_id"
"""The one path parameter that names a field of a nested message (createAssessment)."""

_STATUS: dict[type[GatewayError], tuple[int, str]] = {
    Unauthenticated: (401, "UNAUTHENTICATED"),
    IdentityUnavailable: (503, "TEMPORARILY_UNAVAILABLE"),
    RateLimited: (429, "REQUEST_LIMIT_EXCEEDED"),
    Denied: (403, "PERMISSION_DENIED"),
    UnknownRoute: (404, "ENDPOINT_NOT_FOUND"),
    RefusedRoute: (404, "ENDPOINT_NOT_FOUND"),
    MethodNotAllowed: (405, "ENDPOINT_NOT_FOUND"),
    InvalidRequest: (400, "INVALID_PARAMETER_VALUE"),
    BodyTooLarge: (413, "INVALID_PARAMETER_VALUE"),
    UnsupportedMediaType: (415, "INVALID_PARAMETER_VALUE"),
    RequestTimeout: (408, "REQUEST_TIMEOUT"),
    NotFound: (404, "RESOURCE_DOES_NOT_EXIST"),
    Conflict: (409, "RESOURCE_CONFLICT"),
    GateClosed: (409, "RESOURCE_CONFLICT"),
    Stale: (412, "RESOURCE_CONFLICT"),
    OperationPending: (409, "RESOURCE_CONFLICT"),
    IdempotencyKeyReused: (422, "INVALID_PARAMETER_VALUE"),
    Busy: (503, "TEMPORARILY_UNAVAILABLE"),
    JournalUnavailable: (503, "TEMPORARILY_UNAVAILABLE"),
    RegistryUnavailable: (503, "TEMPORARILY_UNAVAILABLE"),
    OutcomeUnknown: (424, "OUTCOME_UNKNOWN"),  # 504 would be retried by MLflow's client, up to eight creates
}


_ABSENT = {"sqlstate": "KAM00", "error_class": "RESOURCE_NOT_FOUND"}
"""As MLflow classifies it (mlflow/error_classification.py)."""


def render_error(error: GatewayError) -> tuple[int, dict[str, str], bytes]:
    """Give *error* the shape of MLflow's REST API, so that its client raises its own exception."""
    if isinstance(error, RegistryRefused):
        status, code, more = error.status, error.error_code, error.classification
    else:
        status, code = _STATUS.get(type(error), (500, "INTERNAL_ERROR"))
        more = _ABSENT if isinstance(error, NotFound) else {}
    detail = error.detail
    if isinstance(error, GateClosed):
        failed = [f for f in error.verdict.findings if not f.passed]
        detail += "".join(f"\n- {finding.rule}: {finding.because}" for finding in failed)
    if error.operation and not isinstance(error, RegistryRefused | NotFound):  # the registry's own words
        detail += f"\n(operation {error.operation})"
    headers = {"content-type": "application/json"}
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="registry-gateway", Basic realm="registry-gateway"'
    if status in (429, 503) or isinstance(error, OperationPending):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    headers |= error.headers
    if error.operation:
        headers["registry-gateway-operation"] = error.operation
    return status, headers, json.dumps({"error_code": code, "message": detail, **more}).encode()


@dataclass(frozen=True, slots=True)
class Match:
    """A request's RPC, its row, and the parameters its path held."""

    rpc: Rpc
    row: Row
    endpoint: Endpoint
    parameters: dict[str, str]


_Target = tuple[Rpc, Endpoint] | str
"""What a path leads to: an RPC, or the sentence that refuses it."""


class MlflowDialect:
    """Routes and parses MLflow's REST API. Holds no registry: it only understands requests."""

    def __init__(self) -> None:
        """Load MLflow's descriptors and index their paths."""
        self.rpcs = {**load_services(*SERVICES), **load_routes()}
        self._literal: dict[str, dict[str, _Target]] = {}
        self._template: dict[int, list[tuple[list[str], str, _Target]]] = {}
        for rpc in self.rpcs.values():
            for endpoint in rpc.endpoints:
                self._index(endpoint, (rpc, endpoint))
        for (method, path), sentence in REFUSED_ROUTES.items():
            self._index(Endpoint(method, path), sentence)

    def _index(self, endpoint: Endpoint, target: _Target) -> None:
        if "{" in endpoint.path or _REST in endpoint.path:
            segments = endpoint.path.split("/")
            length = 0 if segments[-1].startswith(_REST) else len(segments)  # 0: of any length
            self._template.setdefault(length, []).append((segments, endpoint.method, target))
        else:
            self._literal.setdefault(endpoint.path, {})[endpoint.method] = target

    def match(self, method: str, raw_path: str) -> Match:
        """Find the RPC of *method* and the raw, still encoded *raw_path* (``/api/2.0/mlflow/...``).

        Raises:
            UnknownRoute: no table has this path. RefusedRoute: one has, and it is refused on purpose.
            MethodNotAllowed: the path is served with other methods only.
        """
        found = self._find(raw_path)
        if not found:
            raise UnknownRoute(_unknown(method, raw_path))
        if method not in found:
            message = f"{raw_path[:200]} takes {', '.join(sorted(found))}, not {method}."
            raise MethodNotAllowed(message, found)
        target, parameters = found[method]
        if isinstance(target, str):
            raise RefusedRoute(target)
        rpc, endpoint = target
        row = ROWS.get(rpc.key)
        if row is None:
            raise RefusedRoute(REFUSED.get(rpc.key) or _unknown(method, raw_path))
        return Match(rpc, row, endpoint, parameters)

    def _find(self, path: str) -> dict[str, tuple[_Target, dict[str, str]]]:
        if path in self._literal:  # literal paths beat templates
            return {method: (target, {}) for method, target in self._literal[path].items()}
        segments = path.split("/")
        found: dict[str, tuple[_Target, dict[str, str]]] = {}
        for length in (len(segments), 0):
            for template, method, target in self._template.get(length, ()):
                parameters = _parameters(template, segments)
                if parameters is not None:
                    found.setdefault(method, (target, parameters))
        return found

    def call(
        self, match: Match, principal: Principal, registry: str, query: Iterable[tuple[str, str]], body: bytes
    ) -> tuple[Call, list[str]]:
        """Build the Call of a matched request; also return the names of dropped fields.

        Raises:
            InvalidRequest: the message does not fit, or means two things. Nothing was forwarded.
        """
        message, dropped = self._message(match, list(query), body)
        message = with_owner(match.rpc.key, message, principal.subject)
        needs = match.row.needs(message)
        change = match.row.change(message) if match.row.change else None
        return (
            Call(
                principal=principal,
                registry=registry,
                name=match.rpc.name,
                needs=needs,
                record=match.row.record,
                request=self._request(match, message),
                change=change,
                listing=match.row.listing,
                experiments=match.row.experiments,
                traces=match.row.traces,
            ),
            dropped,
        )

    def _message(self, match: Match, query: list[tuple[str, str]], body: bytes) -> tuple[dict[str, Any], list[str]]:
        if "path" in match.parameters:  # an artifact's route has no message
            if query:
                message = f"{match.rpc.name} takes no query."
                raise InvalidRequest(message)
            return dict(match.parameters), []
        if match.endpoint.method == "GET":
            document, dropped = read_query(query, match.rpc)
        elif query:
            message = f"A {match.endpoint.method} takes its fields in the body, not in the query."
            raise InvalidRequest(message)
        else:
            document, dropped = read_body(parse_json(body) if body else None, match.rpc)
        beside = _merge_parameters(document, match)
        spelled_twice = "run_uuid" in match.rpc.request.DESCRIPTOR.fields_by_name and bool(document.get("run_uuid"))
        if spelled_twice:
            _merge_run_uuid(document)
        if match.parameters or spelled_twice:  # otherwise it is in its one form already
            document = canonical(document, match.rpc)
        return {**document, **beside}, dropped

    @staticmethod
    def upstream_path(rpc: Rpc) -> str:
        """Return the path template that *rpc* is forwarded to, whichever of its spellings was asked."""
        path = rpc.endpoints[0].path
        return path.replace("/api/", "/ajax-api/", 1) if rpc.key in ONLY_AJAX else path

    def _request(self, match: Match, message: dict[str, Any]) -> Request:
        first = match.rpc.endpoints[0]
        path, rest = self.upstream_path(match.rpc), dict(message)
        fields = match.rpc.request.DESCRIPTOR.fields_by_name
        for name in match.parameters:
            value = rest["assessment"]["trace_id"] if name == _INNER_TRACE else rest[name]
            if name != _INNER_TRACE and (first.method == "GET" or name == "path" or name not in fields):
                del rest[name]
            path = path.replace(f"{{{name}}}", quote(value, safe="")).replace(
                "<path:artifact_path>", quote(value, safe="/")
            )
        return Request(match.rpc.key, first.method, path, rest, streams=match.row.streams)


def render_promotion(match: Match, promotion: PromotionResult) -> dict[str, Any]:
    """Answer a write on a guarded alias or stage as MLflow answers that RPC."""
    if match.rpc.name == "transitionModelVersionStage" and promotion.version is not None:
        return {"model_version": dict(promotion.version.native)}
    return {}


def _merge_parameters(document: dict[str, Any], match: Match) -> dict[str, str]:
    """Put the path's parameters into *document*; return those that its message has no field for.

    Raises:
        InvalidRequest: the body names something else than the path.
    """
    beside = {}
    for name, value in match.parameters.items():
        target, field = document, name
        if name == _INNER_TRACE:
            target, field = document.setdefault("assessment", {}), "trace_id"
        elif name not in match.rpc.request.DESCRIPTOR.fields_by_name:
            beside[name] = value
            continue
        if target.setdefault(field, value) != value:
            message = f"The field {field!r} differs between path and body."
            raise InvalidRequest(message)
    return beside


def _merge_run_uuid(document: dict[str, Any]) -> None:
    """Keep one spelling: MLflow's client sends ``run_uuid`` beside an equal ``run_id``; different ones are refused."""
    run_uuid = document.pop("run_uuid")
    if document.setdefault("run_id", run_uuid) != run_uuid:
        message = "run_id and run_uuid name two different runs."
        raise InvalidRequest(message)


def _parameters(template: list[str], segments: list[str]) -> dict[str, str] | None:
    if template[-1].startswith(_REST):
        fixed = len(template) - 1
        found = _parameters(template[:fixed], segments[:fixed]) if len(segments) > fixed else None
        if found is None:
            return None
        path = "/".join(decode_segment(part) for part in segments[fixed:])
        no_traversal(path)
        return {**found, "path": path}
    if len(template) != len(segments):
        return None
    parameters = {}
    for expected, given in zip(template, segments, strict=True):
        if expected.startswith("{"):
            parameters[expected.strip("{}")] = decode_segment(given)
        elif expected != given:
            return None
    return parameters


def _unknown(method: str, raw_path: str) -> str:
    return f"No table of the gateway names {method} {raw_path[:200]}; nothing was forwarded."
