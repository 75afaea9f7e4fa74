"""Idempotency-Key: a repeated POST gets the first one's answer (draft-ietf-httpapi-idempotency-key-header)."""

from __future__ import annotations

import hashlib
import re

import structlog

from service.asgi import ASGI, MAX_BODY_BYTES, RETRY_HEADER, Event, Receive, Scope, Send, header, read_body
from service.audit import StoredAnswer, Trail
from service.effects import Answered
from service.errors import GatewayError, IdempotencyKeyReused, InvalidRequest, OperationPending

_KINDS = ("application/json", "application/x-protobuf")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_NOT_KEPT = frozenset({401, 403, 408, 413, 424, 425, 429})
"""Nothing was done, or it is not known yet: the next try is a try of its own."""
_KEPT_HEADERS = frozenset(
    {"content-type", "etag", "registry-gateway-operation", "registry-gateway-revision", "location"}
)
_log = structlog.get_logger()


class Idempotency:
    """Gives the answer of the first POST with a key to every further one of the same principal."""

    def __init__(self, trail: Trail) -> None:
        """Keep answers in *trail*'s journal."""
        self._trail = trail
        self._in_flight: dict[str, str] = {}

    async def __call__(self, app: ASGI, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request through *app*, or with what it answered before.

        Raises:
            InvalidRequest: the key is not 1 to 255 visible ASCII characters.
            IdempotencyKeyReused: the key belongs to another route or body. Nothing was forwarded.
            OperationPending: the first request with this key is still under way. Nothing was forwarded.
            JournalUnavailable: it cannot be told whether it was done. Nothing was forwarded.
        """
        sent = header(scope, "idempotency-key") if scope["method"] == "POST" else None
        if sent is None:
            await app(scope, receive, send)
            return
        if not _KEY.fullmatch(sent):
            message = "An Idempotency-Key has 1 to 255 visible ASCII characters."
            raise InvalidRequest(message)
        body = await read_body(scope, receive, MAX_BODY_BYTES, _KINDS)
        key = _hash(scope["state"]["principal"].subject, sent)
        fingerprint = _hash(scope["raw_path"].decode("latin-1"), scope.get("query_string", b"").decode("latin-1"), body)
        running = self._in_flight.get(key)
        if running is None:
            self._in_flight[key] = fingerprint
        elif running == fingerprint:
            message = "The first request with this Idempotency-Key is still under way."
            raise OperationPending(message)
        if running is not None:
            raise _reused()
        try:
            known = await self._trail.journal.answer(key)
            if known is not None:
                await _replay(known, fingerprint, send)
                return
            scope["state"]["idempotency"] = key
            recorder = _Recorder(send)
            await app(scope, _again(body, receive), recorder)
            await self._keep(key, fingerprint, recorder)
        finally:
            del self._in_flight[key]

    async def _keep(self, key: str, fingerprint: str, recorder: _Recorder) -> None:
        """Keep a final answer. A failure is logged: the change is made, and its operation knows the key too."""
        if not recorder.is_final:
            return
        answered = Answered(
            key, fingerprint, recorder.status, recorder.headers, recorder.body.decode(), self._trail.now()
        )
        try:
            await self._trail.keep(answered)
        except GatewayError as error:
            _log.error("the answer of an Idempotency-Key was not kept", problem=error.detail)


class _Recorder:
    """Passes an answer on and remembers it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self._complete = False

    @property
    def is_final(self) -> bool:
        """Whether a repetition must get this answer."""
        final = 200 <= self.status < 500 and self.status not in _NOT_KEPT and RETRY_HEADER not in self.headers
        return final and self._complete and len(self.body) <= MAX_BODY_BYTES

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {
                name: value.decode("latin-1")
                for raw, value in event.get("headers", ())
                if (name := raw.decode("latin-1").lower()) in _KEPT_HEADERS or name == RETRY_HEADER
            }
        elif event["type"] == "http.response.body":
            if len(self.body) <= MAX_BODY_BYTES:
                self.body += event.get("body", b"")
            self._complete = not event.get("more_body", False)
        await self._send(event)


async def _replay(known: StoredAnswer, fingerprint: str, send: Send) -> None:
    if known.fingerprint != fingerprint:
        raise _reused()
    headers = [(name.encode(), value.encode("latin-1")) for name, value in known.headers.items()]
    headers += [(b"idempotent-replayed", b"true"), (b"content-length", str(len(known.body.encode())).encode())]
    await send({"type": "http.response.start", "status": known.status, "headers": headers})
    await send({"type": "http.response.body", "body": known.body.encode()})


def _reused() -> IdempotencyKeyReused:
    return IdempotencyKeyReused("This Idempotency-Key was sent with another route or body; take a new one.")


def _again(body: bytes, rest: Receive) -> Receive:
    """Give *body* once more; afterwards what the server has to say, such as that the client left."""
    given = False

    async def receive() -> Event:
        nonlocal given
        if given:
            return await rest()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _hash(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "big") + raw)
    return whole.hexdigest()
