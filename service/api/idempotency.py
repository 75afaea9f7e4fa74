"""Idempotency-Key: a repeated POST gets the first one's answer (draft-ietf-httpapi-idempotency-key-header)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable

import structlog

from service.access import Access, Right
from service.asgi import (
    ASGI,
    MAX_BODY_BYTES,
    RETRY_HEADER,
    Event,
    Receive,
    Scope,
    Send,
    client_address,
    header,
    read_body,
)
from service.audit import Operation, Trail
from service.effects import Answered
from service.errors import GatewayError, IdempotencyKeyReused, InvalidRequest, OperationPending
from service.keeping import StoredAnswer
from service.model import Call, Principal
from service.patience import patient
from service.replicas import OneReplica, Replicas

_KINDS = ("application/json", "application/x-protobuf")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_MAX_KEPT_BYTES = 64 << 10
"""A longer answer is of an operation that is found by its key, or of a call that is safe to repeat."""
_OF_MEANING = (b"if-match", b"accept")
"""They decide what is done or how it is answered."""
_RIGHTS = ":rights"
"""Kept beside the headers; none has such a name."""
_KEPT_HEADERS = frozenset(
    {"content-type", "etag", "registry-gateway-operation", "registry-gateway-revision", "location"}
)
_log = structlog.get_logger()


class Idempotency:
    """Gives the answer of the first POST with a key to every further one of the same principal."""

    def __init__(
        self, trail: Trail, access: Access, replicas: Replicas | None = None, journal_seconds: float = math.inf
    ) -> None:
        """Keep answers in *trail*'s journal; *access* decides again before one is repeated.

        *replicas* have keys of their own requests under way. A request waits for the journal at most
        *journal_seconds* in all, until the intent of its change is durable.
        """
        self._journal_seconds = journal_seconds
        self._replicas = replicas or OneReplica()
        self._trail = trail
        self._access = access
        self._in_flight: dict[str, str] = {}

    async def __call__(self, app: ASGI, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request through *app*, or with what it answered before.

        Raises:
            InvalidRequest: the key is not 1 to 255 visible ASCII characters.
            IdempotencyKeyReused: the key belongs to another request, or to a credential with other rights. Nothing
                was forwarded.
            Denied: a right that the first answer needed is not there any more. Nothing was forwarded.
            OperationPending: the first request with this key is still under way. Nothing was forwarded.
            JournalUnavailable: it cannot be told whether it was done. Nothing was forwarded.
        """
        sent = header(scope, "idempotency-key") if scope["method"] == "POST" else None
        if sent is None:
            await app(scope, receive, send)
            return
        if not _KEY.fullmatch(sent):
            message = "An Idempotency-Key has 1 to 255 visible ASCII characters, without spaces."
            raise InvalidRequest(message)
        body = await read_body(scope, receive, MAX_BODY_BYTES, _KINDS)
        with patient(self._journal_seconds):
            await self._answer(app, sent, body, scope, receive, send)

    async def _answer(self, app: ASGI, sent: str, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request with a key, of which nothing is under way yet (see `__call__`)."""
        principal = scope["state"]["principal"]
        key = _hash(principal.subject, sent)
        fingerprint = self._trail.masks.keyed(_fingerprint(scope, principal, body))
        running = self._in_flight.get(key)
        if running is None:
            self._in_flight[key] = fingerprint
        else:
            raise _under_way() if running == fingerprint else _reused()
        claimed = (f"request {key} {fingerprint}", f"key {key}")
        other: str | None = claimed[0]
        try:
            other = await self._replicas.claim(claimed)
            if other is not None:
                refusal = _under_way() if other == claimed[0] else _reused()
                raise refusal
            known = await self._trail.journal.answer(key)
            if known is not None:
                await self._replay(known, fingerprint, scope, send)
                return
            scope["state"]["idempotency"] = key
            recorder = _Recorder(send)
            with self._access.noting(key) as rights:
                await app(scope, _again(body, receive), recorder)
            if recorder.is_final and not all(right.reads for right in rights):
                await self._keep(key, fingerprint, recorder, rights)
        finally:
            try:
                if other is None:
                    await self._replicas.release(claimed)
            finally:
                del self._in_flight[key]

    async def _replay(self, known: StoredAnswer, fingerprint: str, scope: Scope, send: Send) -> None:
        """Give the kept answer to who may still ask for it."""
        if known.fingerprint != fingerprint:
            raise _reused()
        call = Call(
            principal=scope["state"]["principal"],
            registry="",
            name="replayAnswer",
            needs=(),
            address=client_address(scope),
        )
        rights = [Right(*item) for item in json.loads(known.headers[_RIGHTS])]
        await self._access.authorize_again(rights, Operation.opened(call, self._trail.now()))
        kept = {name: value for name, value in known.headers.items() if name != _RIGHTS}
        headers = [(name.encode(), value.encode("latin-1")) for name, value in kept.items()]
        headers += [(b"idempotent-replayed", b"true"), (b"content-length", str(len(known.body.encode())).encode())]
        await send({"type": "http.response.start", "status": known.status, "headers": headers})
        await send({"type": "http.response.body", "body": known.body.encode()})

    async def _keep(self, key: str, fingerprint: str, recorder: _Recorder, rights: Iterable[Right]) -> None:
        """Keep an answer. A failure is logged: the change is made, and its operation knows the key too."""
        headers = {**recorder.headers, _RIGHTS: json.dumps([dataclasses.astuple(right) for right in rights])}
        body = self._trail.masks.answer(recorder.body.decode())
        answered = Answered(key, fingerprint, recorder.status, headers, body, self._trail.now())
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
        """Whether a repetition must get this answer: it was done, or the state of things did not allow it.

        After another refusal nothing was done, or it is not known yet: the next try is a try of its own.
        """
        final = (200 <= self.status < 300 or self.status == 409) and RETRY_HEADER not in self.headers
        return final and self._complete and len(self.body) <= _MAX_KEPT_BYTES

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {
                name: value.decode("latin-1")
                for raw, value in event.get("headers", ())
                if (name := raw.decode("latin-1").lower()) in _KEPT_HEADERS or name == RETRY_HEADER
            }
        elif event["type"] == "http.response.body":
            if len(self.body) <= _MAX_KEPT_BYTES:
                self.body += event.get("body", b"")
            self._complete = not event.get("more_body", False)
        await self._send(event)


def _under_way() -> OperationPending:
    return OperationPending("The first request with this Idempotency-Key is still under way.")


def _reused() -> IdempotencyKeyReused:
    return IdempotencyKeyReused("This Idempotency-Key was sent with another request or rights; take a new one.")


def _fingerprint(scope: Scope, principal: Principal, body: bytes) -> str:
    """Name what is asked for, and with which rights: another credential of the same principal may have fewer."""
    named = [_hash(*(value for found, value in scope["headers"] if found.lower() == name)) for name in _OF_MEANING]
    rights = _hash(principal.issuer, principal.acting_for or "", *sorted(principal.groups))
    narrowed = "" if principal.scope is None else _hash(*sorted(principal.scope))
    return _hash(scope["raw_path"], scope.get("query_string", b""), body, *named, rights, narrowed)


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
