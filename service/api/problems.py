"""Errors as RFC 9457 problem documents: stable types, no upstream text beyond what the error itself says."""

from __future__ import annotations

import json
from typing import Any

from service import errors as e

TYPE_BASE = "https://registry-gateway.dev/problems/"

STATUS: dict[type[e.GatewayError], int] = {
    e.Unauthenticated: 401,
    e.IdentityUnavailable: 503,
    e.RateLimited: 429,
    e.Denied: 403,
    e.UnknownRoute: 404,
    e.RefusedRoute: 404,
    e.MethodNotAllowed: 405,
    e.InvalidRequest: 400,
    e.BodyTooLarge: 413,
    e.UnsupportedMediaType: 415,
    e.RequestTimeout: 408,
    e.NotFound: 404,
    e.Conflict: 409,
    e.GateClosed: 409,
    e.Stale: 412,
    e.OperationPending: 409,
    e.IdempotencyKeyReused: 422,
    e.Busy: 503,
    e.JournalUnavailable: 503,
    e.RegistryUnavailable: 503,
    e.OutcomeUnknown: 504,
    e.RegistryRefused: 502,
    e.BadConfiguration: 500,
}
"""The status of each error on our own routes. An error without a row turns a test red."""

_REFUSALS_PASSED_ON = {400: 400, 403: 502, 404: 404, 409: 409, 429: 503}


def problem(error: e.GatewayError) -> dict[str, Any]:
    """Give the problem document of *error*."""
    document: dict[str, Any] = {
        "type": TYPE_BASE + error.code,
        "title": error.title,
        "status": status_of(error),
        "detail": error.detail,
    }
    if error.operation:
        document["operation"] = error.operation
    if isinstance(error, e.Denied) and error.decision is not None:
        document["decision"] = {"row": error.decision.row, "revision": error.decision.revision}
    if isinstance(error, e.GateClosed):
        document["verdict"] = error.verdict.document()
    if isinstance(error, e.RegistryRefused):
        document["error_code"] = error.error_code
    return document


def status_of(error: e.GatewayError) -> int:
    """Return the HTTP status of *error* on our own routes."""
    if isinstance(error, e.RegistryRefused):
        return _REFUSALS_PASSED_ON.get(error.status, 502)
    return STATUS.get(type(error), 500)


def render_error(error: e.GatewayError) -> tuple[int, dict[str, str], bytes]:
    """Render *error* for our own routes: status, headers, body."""
    document = problem(error)
    headers = {"content-type": "application/problem+json"}
    if document["status"] == 401:  # RFC 9110, section 11.6.1
        headers["www-authenticate"] = 'Bearer realm="registry-gateway", Basic realm="registry-gateway"'
    if document["status"] in (429, 503) or isinstance(error, e.OperationPending):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, e.MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if error.operation:
        headers["registry-gateway-operation"] = error.operation
    return document["status"], headers, json.dumps(document, default=str).encode()
