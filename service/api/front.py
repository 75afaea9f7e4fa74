"""The front door: every request passes here first, whatever it asks for.

Refuses spellings that parsers disagree about, authenticates, hands on, and sees to it that a refused write
leaves exactly one event.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Protocol
from urllib.parse import unquote_to_bytes

import structlog

from service.access import Access
from service.api.exchange import PATH as EXCHANGE
from service.api.exchange import oauth_renderer, take_parameters
from service.api.forwarded import Proxies
from service.api.health import Metrics
from service.api.idempotency import Idempotency
from service.api.limits import Bounds, Limits, site_of
from service.api.problems import render_error as render_problem
from service.asgi import (
    ASGI,
    MAX_BODY_BYTES,
    ClientGone,
    ErrorRenderer,
    Event,
    Receive,
    Scope,
    Send,
    client_address,
    header,
    read_body,
    refuse_body,
    respond,
)
from service.audit import Operation, Trail
from service.errors import GatewayError, InvalidRequest, MethodNotAllowed, RateLimited, Unauthenticated
from service.floods import LIMITED_EACH_MINUTE, OTHERS, Floods, failures, limited
from service.masking import without_userinfo
from service.model import NOBODY, Call, Principal
from service.replicas import Replicas
from service.strict import has_control, parse_json

_MAX_HEADER_BYTES = 64 << 10
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = _READS | {"POST", "PUT", "PATCH", "DELETE"}
_ENCODED_LETTER = re.compile(r"%(?:3[0-9]|4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9Aa]|2[DdEe]|5[Ff])")
_ENCODED_SEPARATOR = re.compile(r"%(?:2[Ff]|5[Cc]|00|3[Bb])")
_TRACE = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SECURITY = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_OVERRIDES = (b"x-http-method-override", b"x-http-method", b"x-method-override")
_METHOD_FIELD = re.compile(rb"(?:^|&)(?:_|%5[Ff])method=", re.IGNORECASE)
_HOST = re.compile(r"([A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_AUTHZEN = b"/access/"
_VISIBLE = re.compile(rb"[\x20-\x7e]{1,1000}")
_NOBODY = Principal(NOBODY)
Authenticate = Callable[[str | None], Awaitable[Principal]]
"""The Authorization header -> who sent it. Raises `Unauthenticated` for no, `IdentityUnavailable` for cannot tell."""
_log = structlog.get_logger()


class Note(Protocol):
    """Which revision of the policy decided in one request; empty while nothing was decided."""

    revision: str


class Front:
    """An ASGI application around all others."""

    def __init__(
        self,
        *,
        own: ASGI,
        own_paths: Callable[[str], bool],
        public: frozenset[str],
        dialect: ASGI,
        render_dialect_error: ErrorRenderer,
        authenticate: Authenticate,
        trail: Trail,
        access: Access,
        metrics: Metrics,
        noting: Callable[[], Note],
        hosts: Collection[str] = (),
        proxies: Proxies | None = None,
        limits: Limits | None = None,
        replicas: Replicas | None = None,
        journal_seconds: float = math.inf,
    ) -> None:
        """Send paths for which *own_paths* holds to *own*, all others to *dialect*.

        *public* are the exact paths whose routes said themselves that they need no authentication. A Host header
        names one of *hosts*, if there are any. *proxies* are believed about the client's address.
        *noting* begins to note by which revision a request is decided.
        *limits* say who sends too much. *replicas* answer requests with an Idempotency-Key, too, and
        those wait for the journal at most *journal_seconds*.
        """
        self._hosts = frozenset(hosts)
        self._proxies = proxies or Proxies(())
        self._own = own
        self._own_paths = own_paths
        self._public = public
        self._dialect = dialect
        self._render_dialect_error = render_dialect_error
        self._authenticate = authenticate
        self._trail = trail
        self._idempotency = Idempotency(trail, access, replicas, journal_seconds)
        self.floods = Floods(trail, failures, OTHERS)
        self._limits = limits or Limits(Bounds())
        self._limited = Floods(trail, limited, OTHERS, each_minute=LIMITED_EACH_MINUTE)
        self._metrics = metrics
        self._noting = noting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._own(scope, receive, send)
            return
        path = scope.get("raw_path", b"").split(b"?", 1)[0].decode("latin-1") or "/"
        scope["raw_path"] = path.encode("latin-1")
        own = self._own_paths(path)
        render = render_problem if own else self._render_dialect_error
        scope["state"] = {}
        exchanges = path.rstrip("/") == EXCHANGE  # both reach the route
        if exchanges:
            render = oauth_renderer(scope)
        scope["client"] = (self._proxies.client_of(scope), 0)
        reply = _Reply(scope, send, self._record_refusal, self._metrics, self._noting())
        try:
            if exchanges and scope["method"] == "POST":
                receive = await take_parameters(scope, receive)
            if path not in self._public or scope["method"] not in _READS:
                await self._identify(scope)
            self._check(scope, path)
            if own:
                receive = await self._read_own_body(scope, receive)
            await self._idempotency(self._own if own else self._dialect, scope, receive, reply)
        except GatewayError as error:
            if reply.started:  # the client sees a transfer that was cut
                raise
            if isinstance(error, RateLimited):
                self._metrics.rate_limited.labels("principal" if "principal" in scope["state"] else "address").inc()
            await respond(reply, *render(error))
        except ClientGone:  # or its chunks were malformed, which the server tells no otherwise
            if not reply.started:
                await respond(reply, *render(InvalidRequest("The body ended before its end.")))
        except Exception:  # the last resort: no stack or library text leaks
            _log.exception("unexpected", path=path[:200])
            if reply.started:
                raise
            await respond(reply, *render(GatewayError("Something failed inside the gateway; its log says what.")))

    async def flush(self) -> None:
        """Record the sums of refusals."""
        await self.floods.flush()
        await self._limited.flush()

    def _check_host(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
        match = _HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if match is None:
            message = "Send exactly one Host header, a name or address with or without a port."
            raise InvalidRequest(message)
        if self._hosts and match[1].lower() not in self._hosts:
            message = f"The host {match[1]!r} is not served here."
            raise InvalidRequest(message)

    def _check(self, scope: Scope, path: str) -> None:
        self._check_host(scope)
        for name in _OVERRIDES:
            if any(found.lower() == name for found, _ in scope["headers"]):
                message = f"{name.decode()} is not obeyed; send the request with the method itself."
                raise InvalidRequest(message)
        if _METHOD_FIELD.search(scope.get("query_string", b"")):
            message = "The query field _method is not obeyed; send the request with the method itself."
            raise InvalidRequest(message)
        if scope["method"] not in _METHODS:
            message = f"The method {scope['method'][:20]!r} is not served; these are: {', '.join(sorted(_METHODS))}."
            raise MethodNotAllowed(message, _METHODS)
        if header(scope, "transfer-encoding") is not None and header(scope, "content-length") is not None:
            message = "Send Content-Length or Transfer-Encoding, not both."
            raise InvalidRequest(message)
        if (header(scope, "transfer-encoding") or "chunked").strip().lower() != "chunked":
            message = "The only Transfer-Encoding served is chunked."
            raise InvalidRequest(message)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MAX_HEADER_BYTES:
            message = f"The headers are over {_MAX_HEADER_BYTES} bytes together."
            raise InvalidRequest(message)
        problem = _path_problem(path)
        if problem:
            message = f"The path {problem}; it is not served in this spelling."
            raise InvalidRequest(message)
        trace = header(scope, "traceparent")
        if trace is not None and _TRACE.fullmatch(trace):
            scope["state"]["trace"] = trace

    async def _identify(self, scope: Scope) -> None:
        address = client_address(scope)
        try:
            authorization = _authorization(scope)
            self._limits.before(address, authorization)
            principal = await self._authenticate(authorization)
        except (Unauthenticated, RateLimited) as error:
            await self._record_failure(scope, error)
            if isinstance(error, Unauthenticated):
                self._limits.failed(address)  # so that the last one is told to wait
            raise
        self._limits.succeeded(authorization)
        scope["state"]["principal"] = principal
        scope["state"]["identify"] = partial(self._authenticate, authorization)
        try:
            self._limits.admit(principal.subject)
        except RateLimited as error:
            scope["state"]["recorded"] = True
            if self._limited.admits(principal.subject):
                operation = _operation(scope, principal, "request:limit", self._trail.now())
                operation.detail = error.detail
                self._trail.refused_later(operation, "rejected")
            raise

    async def _record_failure(self, scope: Scope, error: Unauthenticated | RateLimited) -> None:
        scope["state"]["recorded"] = True
        if self.floods.admits(site_of(client_address(scope))):
            operation = _operation(scope, _NOBODY, "authentication:fail", self._trail.now())
            reason = error.reason if isinstance(error, Unauthenticated) else ""
            operation.detail = reason or error.detail
            if reason:
                _log.warning("credential refused", reason=without_userinfo(reason), address=client_address(scope))
            await self._trail.refused(operation, "denied")

    @staticmethod
    async def _read_own_body(scope: Scope, receive: Receive) -> Receive:
        if scope["method"] in _READS:
            refuse_body(scope)
            return receive
        raw = await read_body(scope, receive, MAX_BODY_BYTES)
        if raw:
            parse_json(raw)  # duplicate keys and the like are refused before anything reads the body
        if scope.get("query_string"):
            message = "A write takes its fields in the body, not in the query."
            raise InvalidRequest(message)

        async def replay() -> Event:
            return {"type": "http.request", "body": raw, "more_body": False}

        return replay

    async def _record_refusal(self, scope: Scope, status: int) -> None:
        """Leave one ``rejected`` event for a write that was refused before the gateway saw a call."""
        state = scope["state"]
        if scope["method"] in _READS or state.get("recorded") or state.get("reads"):
            return
        state["recorded"] = True
        operation = _operation(scope, state.get("principal", _NOBODY), "request:refuse", self._trail.now())
        operation.name = state.get("call_name", "")
        operation.status = status
        if state.get("telemetry"):
            self._trail.refused_later(operation, "rejected")
        else:
            await self._trail.refused(operation, "rejected")


class _Reply:
    """Sends, after seeing to the event of a refusal."""

    def __init__(self, scope: Scope, send: Send, record: Callable[..., object], metrics: Metrics, note: Note) -> None:
        self._scope = scope
        self._send = send
        self._record = record
        self._metrics = metrics
        self._note = note
        self.started = False

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.started = True
            status = event["status"]
            headers = [(name.lower(), value) for name, value in event.get("headers", ())]
            if any(name == b"registry-gateway-operation" for name, _ in headers):
                self._scope["state"]["recorded"] = True
            if 400 <= status < 500 and status != 424:  # "no"; 5xx and 424 are "cannot tell"
                await self._record(self._scope, status)  # type: ignore[misc]  # a coroutine function
            if self._note.revision:
                headers.append((b"registry-gateway-policy-revision", self._note.revision.encode()))
            present = {name for name, _ in headers}
            added = [item for item in _SECURITY if item[0] not in present]
            event = {**event, "headers": [*headers, *added, *_request_id(self._scope)]}
            name = self._scope["state"].get("call_name") or ("own" if status < 400 else "refused")
            self._metrics.requests.labels(name, str(status)).inc()
        await self._send(event)


def _request_id(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Give back the identifier of a request to the AuthZEN API (Authorization API 1.0, section 10.1.4)."""
    sent = [value for name, value in scope["headers"] if name.lower() == b"x-request-id"]
    echoed = scope["raw_path"].startswith(_AUTHZEN) and len(sent) == 1 and _VISIBLE.fullmatch(sent[0])
    return [(b"x-request-id", sent[0])] if echoed else []


def _path_problem(path: str) -> str | None:
    if not path.startswith("/") or not path.isascii():
        return "is not an absolute path in ASCII"
    if "//" in path or ";" in path or "\\" in path:
        return "holds //, ; or a backslash"
    if _ENCODED_SEPARATOR.search(path):
        return "holds an encoded slash, backslash, semicolon or NUL"
    if _ENCODED_LETTER.search(path):
        return "holds an encoded letter, digit, dot, dash or underscore"
    if any(part in (".", "..") for part in path.split("/")):
        return "holds . or .. as a segment"
    try:
        decoded = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8"
    return "holds a control or format character" if has_control(decoded) else None


def _authorization(scope: Scope) -> str | None:
    try:
        return header(scope, "authorization")
    except InvalidRequest as error:
        raise Unauthenticated(error.detail) from None


def _operation(scope: Scope, principal: Principal, action: str, now: float) -> Operation:
    call = Call(principal=principal, registry=scope["state"].get("registry") or "", name="", needs=())
    operation = Operation.opened(call, now)
    operation.action = action
    operation.resource = f"{scope['method']} {scope['raw_path'].decode('latin-1')[:300]}"
    operation.address = client_address(scope)
    operation.started = time.monotonic()
    return operation
