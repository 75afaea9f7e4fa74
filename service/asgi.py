"""Small helpers over raw ASGI that both the dialects and our own API use."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from service.errors import BodyTooLarge, GatewayError, InvalidRequest, RequestTimeout, UnsupportedMediaType

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]
RenderedError = tuple[int, dict[str, str], bytes]
"""Status, headers and body of an error in the shape its client understands."""
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
MAX_BODY_BYTES = 1 << 20
IDLE_SECONDS = 30.0
MIN_RATE = 500
"""Bytes a second."""
WHOLE_SECONDS = 60.0
"""For a body that is read whole."""
RETRY_HEADER = "retry-after"
ErrorRenderer = Callable[[GatewayError], RenderedError]


class ClientGone(Exception):  # says what happened, is no error of ours
    """The client hung up while its body was read."""


def header(scope: Scope, name: str) -> str | None:
    """Return the only value of the header *name* (lower case), or None.

    Raises:
        InvalidRequest: the header stands twice.
    """
    key = name.encode()
    values = [value for found, value in scope["headers"] if found.lower() == key]
    if len(values) > 1:
        message = f"The header {name} stands {len(values)} times."
        raise InvalidRequest(message)
    return values[0].decode("latin-1") if values else None


def refuse_body(scope: Scope) -> None:
    """Raise InvalidRequest if a request that must have no body announces one."""
    if header(scope, "transfer-encoding") is not None or header(scope, "content-length") not in (None, "0"):
        message = f"A {scope['method']} has no body."
        raise InvalidRequest(message)


async def read_body(
    scope: Scope, receive: Receive, limit: int, kinds: tuple[str, ...] = ("application/json",)
) -> bytes:
    """Read a whole body of at most *limit* bytes and of one of the media types *kinds*.

    Raises:
        UnsupportedMediaType: another media type, another charset than UTF-8, or encoded (gzip and the like).
        RequestTimeout: it comes too slowly.
        BodyTooLarge: over the limit, announced or found.
    """
    if (header(scope, "content-encoding") or "identity").lower() != "identity":
        message = "Send the body without Content-Encoding."
        raise UnsupportedMediaType(message)
    announced = header(scope, "content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit:
        raise BodyTooLarge(_over(limit))
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(WHOLE_SECONDS):  # it is held in memory until it is whole
            async for part in stream_body(receive):
                size += len(part)
                if size > limit:
                    raise BodyTooLarge(_over(limit))
                parts.append(part)
    except TimeoutError:
        message = f"The body was not whole after {WHOLE_SECONDS:g} s."
        raise RequestTimeout(message) from None
    raw = b"".join(parts)
    if raw:
        kind, _, parameters = (header(scope, "content-type") or "").partition(";")
        charset = parameters.strip().lower()
        if kind.strip().lower() not in kinds or charset not in ("", "charset=utf-8", 'charset="utf-8"'):
            message = f"Send the body as Content-Type: {' or '.join(kinds)} in UTF-8."
            raise UnsupportedMediaType(message)
    return raw


def _over(limit: int) -> str:
    return f"The body is over this route's limit of {limit} bytes."


class Pace:
    """What a transfer must keep up, or it is ended: something within `IDLE_SECONDS`, and `MIN_RATE` on the whole.

    As Apache's mod_reqtimeout does it (``body=20,MinRate=500``): a client that stalls holds connections and buffers,
    and what it writes to cannot be judged.
    """

    def __init__(self) -> None:
        """Begin now."""
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + IDLE_SECONDS

    def next(self, size: int) -> asyncio.Timeout:
        """Give the deadline of the next part, after one of *size* bytes."""
        self._until += size / MIN_RATE
        return asyncio.timeout_at(min(self._until, self._loop.time() + IDLE_SECONDS))


async def stream_body(receive: Receive) -> AsyncIterator[bytes]:
    """Yield the request's body as it comes.

    Raises:
        ClientGone: the client hung up in the middle.
        RequestTimeout: it sends too slowly.
    """
    pace, size = Pace(), 0
    while True:
        try:
            async with pace.next(size):
                event = await receive()
        except TimeoutError:
            message = f"The body came too slowly: nothing for {IDLE_SECONDS:g} s, under {MIN_RATE} bytes a second."
            raise RequestTimeout(message) from None
        size = len(event.get("body", b""))
        if event["type"] == "http.disconnect":
            raise ClientGone
        if event.get("body"):
            yield event["body"]
        if not event.get("more_body"):
            return


async def once(body: bytes) -> AsyncIterator[bytes]:
    """Yield *body* as a stream of one part."""
    yield body


async def respond(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send a whole response."""
    await start(send, status, {**headers, "content-length": str(len(body))})
    await send({"type": "http.response.body", "body": body})


async def start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Send the head of a response."""
    await send({"type": "http.response.start", "status": status, "headers": encode_headers(headers.items())})


def encode_headers(pairs: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """Encode headers, dropping what could split them."""
    return [(name.lower().encode("ascii"), _UNPRINTABLE.sub("?", value).encode("ascii")) for name, value in pairs]


def client_address(scope: Mapping[str, Any]) -> str:
    """Return the peer's address; forwarded-for headers are not believed."""
    client = scope.get("client")
    return str(client[0]) if client else ""
