"""`POST /v1/tokens`: a token that lives minutes for one of the gateway's that lives hours (RFC 8693).

Errors have the shape that OAuth clients read (RFC 6749, section 5.2), not that of our other routes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from service.api import schemas as s
from service.api.problems import render_error, status_of
from service.asgi import Event, Receive, RenderedError, Scope, header, once, read_body
from service.audit import Operation, Trail
from service.errors import GatewayError, IdentityUnavailable, InvalidRequest, RateLimited, Unauthenticated
from service.model import Call, Caller, Decision, Principal
from service.scope import MAX_ITEMS, item_problem, within
from service.strict import parse_json

__all__ = ["HANDLERS", "PATH", "Exchange", "oauth_renderer", "take_parameters"]

PATH = "/v1/tokens"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_TYPE = "urn:ietf:params:oauth:token-type:"
_SUBJECT_TYPES = (_TYPE + "jwt", _TYPE + "access_token", _TYPE + "id_token")
_REQUESTED_TYPES = (_TYPE + "access_token", _TYPE + "jwt")
_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"
_MAX_BYTES = 64 << 10
_FIELDS = tuple(s.TokenRequest.__struct_fields__)
ERRORS = {
    status: {
        "description": "An error of OAuth (RFC 6749, section 5.2).",
        "content": {
            _JSON: {
                "schema": {
                    "type": "object",
                    "required": ["error", "error_description"],
                    "properties": {"error": {"type": "string"}, "error_description": {"type": "string"}},
                }
            }
        },
    }
    for status in ("400", "401", "404", "408", "413", "415", "429", "503")
}
"""For the OpenAPI document."""
Issue = Callable[[Principal, frozenset[str] | None, int], tuple[str, str]]
"""Principal, scope and seconds -> the token, and the identifier that events show of it."""


class Refused(Exception):  # it is an answer
    """An error of RFC 6749, section 5.2, or RFC 8693, section 2.2.2."""

    def __init__(self, code: str, description: str, status: int = 400) -> None:
        """Say *code* and *description*."""
        super().__init__(description)
        self.code, self.description, self.status = code, description, status


class Exchange:
    """Exchanges tokens; where *issue* is None, it says which setting is missing."""

    def __init__(
        self,
        trail: Trail,
        registries: Collection[str],
        *,
        issue: Issue | None = None,
        issuer: str = "",
        max_seconds: int = 0,
        keys: Mapping[str, Any] | None = None,
    ) -> None:
        """Record in *trail*; scopes may name *registries*. *keys* is the public key set."""
        self._trail = trail
        self._registries = registries
        self._issue = issue
        self._issuer = issuer
        self._max_seconds = max_seconds
        self.keys = dict(keys or {"keys": []})

    async def exchange(self, caller: Caller, asked: s.TokenRequest) -> tuple[s.TokenBody, str]:
        """Issue what is asked for; also return the operation it is recorded under.

        Raises:
            Refused: it is not given, with the reason.
            JournalUnavailable: it could not be recorded. Nothing was issued.
        """
        principal = caller.principal
        if self._issue is None:
            message = "Tokens are not exchanged here: the setting `tokens` (issuer and keys) is missing."
            raise Refused("invalid_request", message, 404)
        self._check(asked, principal)
        scope = self._scope(asked.scope, principal)
        seconds = self._seconds(asked.expires_in)
        try:
            token, identifier = self._issue(principal, scope, seconds)
        except InvalidRequest as error:
            raise Refused("invalid_request", error.detail) from None
        call = Call(principal=principal, registry="", name="exchangeToken", needs=(), address=caller.address)
        operation = Operation.opened(call, self._trail.now())
        operation.action, operation.resource = "token:exchange", "tokens"
        operation.decision = Decision(allowed=True, row="exchange")  # it gives no right, so no row is asked
        narrowed = "" if scope is None else f", narrowed to {' '.join(sorted(scope))}"
        operation.detail = f"issued the token {identifier} for {seconds} s{narrowed}"
        await self._trail.stored(operation, [])
        kind = asked.requested_token_type or _REQUESTED_TYPES[0]
        body = s.TokenBody(token, kind, "Bearer", seconds, None if scope is None else " ".join(sorted(scope)))
        return body, operation.id

    def _check(self, asked: s.TokenRequest, principal: Principal) -> None:
        if asked.grant_type != GRANT:
            raise Refused("unsupported_grant_type", f"grant_type is {GRANT}.")
        if asked.subject_token and asked.subject_token_type not in _SUBJECT_TYPES:
            raise Refused("invalid_request", f"subject_token_type is one of: {', '.join(_SUBJECT_TYPES)}.")
        if asked.actor_token or asked.actor_token_type:
            raise Refused("invalid_request", "actor_token is not taken: who is behind a job comes from its own token.")
        if asked.requested_token_type not in ("", *_REQUESTED_TYPES):
            raise Refused("invalid_request", f"requested_token_type is one of: {', '.join(_REQUESTED_TYPES)}.")
        if {asked.audience, asked.resource} - {"", self._issuer}:
            raise Refused("invalid_target", f"The token is for this gateway alone: {self._issuer}.")
        if principal.exchanged:
            raise Refused("invalid_request", "The token was issued by this gateway; it is not exchanged again.")
        if principal.issuer == "api-key":
            message = "An API key is not exchanged: it lives as long as its entry says. Make one that is narrowed."
            raise Refused("invalid_request", message)

    def _scope(self, text: str, principal: Principal) -> frozenset[str] | None:
        items = text.split()
        if not items:
            return principal.scope
        if len(items) > MAX_ITEMS:
            raise Refused("invalid_scope", f"scope has at most {MAX_ITEMS} items.")
        for item in items:
            problem = item_problem(item)
            if problem is None and item.partition("/")[0] not in ("*", *self._registries):
                problem = f"{item!r} names no configured registry; there are: {', '.join(self._registries)}"
            if problem:
                raise Refused("invalid_scope", f"{problem}.")
        if principal.scope is not None and not within(items, principal.scope):
            raise Refused("invalid_scope", "The scope asks for more than the token has.")
        return frozenset(items)

    def _seconds(self, wish: str) -> int:
        if not wish:
            return self._max_seconds
        if not wish.isascii() or not wish.isdecimal() or int(wish[:9]) == 0:
            raise Refused("invalid_request", "expires_in is a whole number of seconds.")
        return min(int(wish[:9]), self._max_seconds)


async def take_parameters(scope: Scope, receive: Receive) -> Receive:
    """Read the request's parameters, a form or JSON; return a body that holds those that are known, as JSON.

    Where the token to be exchanged is a parameter, the request is authenticated by it.

    Raises:
        InvalidRequest: a parameter stands twice or is no text, or the token differs from the Authorization header's.
    """
    raw = await read_body(scope, receive, _MAX_BYTES, (_FORM, _JSON))
    is_json = (header(scope, "content-type") or "").lower().startswith(_JSON)
    given = _from_json(raw) if is_json else _from_form(raw)
    known = {name: value for name, value in given.items() if name in _FIELDS}  # RFC 6749: others are ignored
    token, sent = known.get("subject_token"), header(scope, "authorization")
    if token:
        scope["state"]["by_parameter"] = sent is None
        credential = f"Bearer {token}"
        if sent is not None and sent.partition(" ")[2].strip() != token:
            message = "The Authorization header and subject_token differ; send the token once."
            raise InvalidRequest(message)
        if any(not "\x20" < character < "\x7f" for character in token):
            message = "subject_token holds a character that no token has."
            raise InvalidRequest(message)
        if sent is None:
            scope["headers"] = [*scope["headers"], (b"authorization", credential.encode("ascii"))]
    body = json.dumps(known).encode()
    kept = [
        (name, value) for name, value in scope["headers"] if name.lower() not in (b"content-type", b"content-length")
    ]
    scope["headers"] = [*kept, (b"content-type", _JSON.encode())]
    parts = once(body)

    async def replay() -> Event:
        return {"type": "http.request", "body": await anext(parts, b""), "more_body": False}

    return replay


def _from_form(raw: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=50
        ) if raw else []  # fmt: skip
    except ValueError:
        message = "The body is not a well-formed form."
        raise InvalidRequest(message) from None
    if len({name for name, _ in pairs}) < len(pairs):
        message = "A parameter stands twice."
        raise InvalidRequest(message)
    return dict(pairs)


def _from_json(raw: bytes) -> dict[str, str]:
    document = parse_json(raw) if raw else {}
    if not isinstance(document, dict):
        message = "The body is not a JSON object."
        raise InvalidRequest(message)
    texts = {name: str(value) if type(value) is int else value for name, value in document.items()}
    wrong = [name for name, value in texts.items() if name in _FIELDS and not isinstance(value, str)]
    if wrong:
        message = f"{wrong[0]} is not a text."
        raise InvalidRequest(message)
    return texts


def oauth_renderer(scope: Mapping[str, Any]) -> Callable[[GatewayError], RenderedError]:
    """Return what gives an error of *scope*'s request OAuth's shape."""

    def render(error: GatewayError) -> RenderedError:
        status, headers, _ = render_error(error)
        code = "invalid_request"
        if isinstance(error, Unauthenticated):
            if scope["state"].get("by_parameter"):  # RFC 8693, section 2.2.2
                status = 400
                headers.pop("www-authenticate", None)
            else:
                code = "invalid_client"
        elif isinstance(error, RateLimited | IdentityUnavailable) or status_of(error) >= 500:
            code = "temporarily_unavailable"
        return status, {**headers, "content-type": _JSON}, _document(code, error.detail)

    return render


def _document(code: str, description: str) -> bytes:
    """Write an error; RFC 6749 takes quotes and backslashes out of descriptions, and all but printable ASCII."""
    plain = description.replace('"', "'").replace("\\", "/").encode("ascii", "replace").decode()
    return json.dumps({"error": code, "error_description": plain}).encode()


@post(PATH, operation_id="exchangeToken", status_code=200, opt={"action": "none"}, tags=["identity"])
async def exchange_token(
    request: Request[Any, Any, Any],
    caller: NamedDependency[Caller],
    exchange: NamedDependency[Exchange],
    data: JSONBody[s.TokenRequest],
) -> Response[s.TokenBody]:
    """Exchange a token of a configured issuer for one of this gateway (RFC 8693): same principal, at most six hours.

    The token is `subject_token`, or what the Authorization header holds. It gives no right that the first one had not.
    """
    try:
        body, operation = await exchange.exchange(caller, data)
    except Refused as refused:
        answer = _document(refused.code, refused.description)
        return Response(answer, status_code=refused.status, media_type=_JSON)  # type: ignore[arg-type]  # an error
    except GatewayError as error:
        status, headers, answer = oauth_renderer(request.scope)(error)
        kind = headers.pop("content-type")
        return Response(answer, status_code=status, headers=headers, media_type=kind)  # type: ignore[arg-type]  # as above
    return Response(body, headers={"registry-gateway-operation": operation, "pragma": "no-cache"})


@get("/.well-known/jwks.json", operation_id="getKeySet", opt={"public": True, "action": "none"}, tags=["identity"])
async def get_key_set(exchange: NamedDependency[Exchange]) -> Response[dict[str, Any]]:
    """Give the public keys of the tokens that this gateway issues (RFC 7517)."""
    return Response(exchange.keys, headers={"cache-control": "public, max-age=300"})


HANDLERS = (exchange_token, get_key_set)
