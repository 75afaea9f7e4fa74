"""Speaks HTTP to an MLflow server: bounded pools, one budget a call, errors translated into the closed set."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import structlog

from service.backends.breaker import Breaker
from service.errors import OutcomeUnknown, RegistryRefused, RegistryUnavailable
from service.model import Answer, Request

_MAX_JSON_BYTES = 64 << 20
_CHUNK = 256 << 10
_CLASS = re.compile(r"[A-Z0-9_]{1,64}")
_LEAKS = re.compile(r"\[SQL|sqlalchemy|sqlite3|psycopg|pymysql|Traceback|File \"|/site-packages/", re.IGNORECASE)
_FAILED = "The registry failed; its own log says why."
_KEEPALIVE_SECONDS = 1.5  # uvicorn closes idle connections after 5: a write must not meet a closing one
_CONNECT_SECONDS = 5.0
"""At most so long for a connection: for a free one of the pool, and for the registry to accept it."""
_RETRIES = 2
_MAX_RETRY_AFTER = 60
_CALLS, _FILES, _OWN = "calls", "files", "own"
_OWN_STREAMS = 8
_PASSED_ON = ("content-length", "content-disposition", "last-modified", "etag")


_log = structlog.get_logger()


class _NotDoneError(Exception):
    """The registry surely did nothing, so a read may be sent again; *error* is what the caller is told."""

    def __init__(self, error: RegistryUnavailable) -> None:
        self.error = error


@dataclass(frozen=True, slots=True)
class _Sent:
    """One call, ready to be sent."""

    method: str
    path: str
    query: list[tuple[str, str]]
    body: bytes | AsyncIterator[bytes] | None
    headers: Mapping[str, str]
    writes: bool
    streams: bool
    own: bool = False

    @property
    def pool(self) -> str:
        """Which connections it takes: clients' files never take those of the gate's own reads."""
        return _OWN if self.own else _FILES if self.long else _CALLS

    @property
    def long(self) -> bool:
        """Whether a file passes, which may take longer than a budget."""
        return self.streams or not (self.body is None or isinstance(self.body, bytes))


class HttpTransport:
    """Bounded connection pools to one server: for calls, for clients' files, and for files that the gateway reads.

    No registry waits for another.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        timeout_seconds: float = 30.0,
        authorization: Callable[[], str | None] = lambda: None,
        workspace: str | None = None,
        connections: int = 100,
        streams: int = 32,
        tls: ssl.SSLContext | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """Talk to *url* (http, https or ``unix:/path``); *authorization* gives the header for each request.

        At most *connections* calls and *streams* files pass at once. *timeout_seconds* is the budget of one call,
        its retries included.
        """
        self._name = name
        self._unix = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._root = "http://localhost" if self._unix else url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._authorization = authorization
        self._workspace = workspace
        self._limits = {_CALLS: connections, _FILES: streams, _OWN: _OWN_STREAMS}
        self._tls = tls
        self._breaker = breaker or Breaker()
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def send(self, request: Request, *, writes: bool, trace: str = "") -> Answer:
        """Send *request* and return its 2xx answer (see `service.backend.Backend` for the errors)."""
        query, body = _encode(request)
        headers = {**self._headers(trace), **request.headers}
        if isinstance(body, bytes) and request.method != "GET":
            headers["content-type"] = "application/json"
        return await self._exchange(
            _Sent(request.method, request.path, query, body, headers, writes, request.streams, request.own)
        )

    async def get(self, path: str, query: list[tuple[str, str]], limit: int) -> bytes | None:
        """GET a file of at most *limit* bytes; None if the server says it is not there."""
        try:
            answer = await self._exchange(
                _Sent("GET", path, query, None, self._headers(""), writes=False, streams=True, own=True)
            )
        except RegistryRefused as error:
            if error.status in (400, 404, 500):  # MLflow answers a missing file with any of these
                return None
            raise
        parts, size = [], 0
        if answer.stream is not None:
            async with contextlib.aclosing(answer.stream):
                async for part in answer.stream:
                    parts.append(part)
                    size += len(part)
                    if size > limit:
                        return None
        return b"".join(parts)

    async def _exchange(self, sent: _Sent) -> Answer:
        """Send within the budget; a read that surely was not done is sent again, at most twice."""
        deadline = time.monotonic() + self._timeout_seconds
        for attempt in range(_RETRIES + 1):
            try:
                return await self._guarded(sent, deadline)
            except _NotDoneError as not_done:
                pause = random.uniform(0.05, 0.15) * 3**attempt  # noqa: S311  # jitter is no secret
                if sent.writes or attempt == _RETRIES or time.monotonic() + 2 * pause >= deadline:
                    raise not_done.error from not_done.__cause__
                await asyncio.sleep(pause)
        raise AssertionError  # the last attempt returns or raises

    async def _guarded(self, sent: _Sent, deadline: float) -> Answer:
        refused = self._breaker.refuses(long=sent.long)
        if refused is not None:
            message = f"The registry {self._name!r} does not answer; nothing was forwarded."
            raise RegistryUnavailable(message, retry_after=math.ceil(refused))
        before = self._breaker.look()
        tries = before == "half-open"
        try:
            return await self._once(sent, deadline)
        finally:
            if tries:
                self._breaker.dropped()
            after = self._breaker.look()
            if after != before:
                _log.warning("circuit", registry=self._name, state=after)

    async def _once(self, sent: _Sent, deadline: float) -> Answer:
        left = max(deadline - time.monotonic(), 0.001)
        pool = SimpleNamespace(waits=False)
        timeout = aiohttp.ClientTimeout(
            total=None if sent.long else left,
            sock_read=self._timeout_seconds,
            connect=min(_CONNECT_SECONDS, left / 2),
        )
        try:
            response = await self._client(sent.pool).request(
                sent.method,
                self._root + sent.path,
                params=sent.query or None,
                data=sent.body,
                headers=sent.headers,
                timeout=timeout,
                allow_redirects=False,  # the gateway's credential goes to the configured server only
                trace_request_ctx=pool,
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise self._not_connected(busy=pool.waits) from error
        except aiohttp.ClientConnectorError as error:
            raise self._cannot_connect(error) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if isinstance(sent.body, _Watched) and sent.body.error is not None:
                raise sent.body.error from error  # the client's end broke, which says nothing about the registry
            raise self._no_answer(error, writes=sent.writes) from error
        self._breaker.answered()
        if sent.streams and response.status == 200:
            passed = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
            kind = response.headers.get("content-type", "application/octet-stream")
            return Answer(200, b"", kind, passed, stream=_File(response))
        try:
            raw = await _read(response)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._lost(writes=sent.writes) from error
        finally:
            response.release()
        return self._translate(response, raw, writes=sent.writes)

    def _not_connected(self, *, busy: bool) -> RegistryUnavailable:
        """Say that no connection was had in time."""
        if busy:
            message = f"All connections to the registry {self._name!r} are in use; nothing was forwarded."
            return RegistryUnavailable(message)
        self._breaker.failed()
        return RegistryUnavailable(self._unreachable())

    def _cannot_connect(self, error: aiohttp.ClientConnectorError) -> Exception:
        self._breaker.failed()
        if isinstance(error, aiohttp.ClientSSLError):  # another attempt would end as this one
            _log.error("TLS with the registry failed", registry=self._name, problem=str(error)[:300])
            message = f"The registry {self._name!r} and the gateway do not trust each other; nothing was forwarded."
            return RegistryUnavailable(message)
        return _NotDoneError(RegistryUnavailable(self._unreachable()))

    def _unreachable(self) -> str:
        return f"The registry {self._name!r} cannot be reached; nothing was forwarded."

    def _no_answer(self, error: Exception, *, writes: bool) -> Exception:
        """Judge a connection that broke, or stayed silent, before the first byte of an answer."""
        self._breaker.failed()
        if self._root.startswith("https:") and isinstance(error, aiohttp.ServerDisconnectedError):
            # in TLS 1.3 a server refuses a client's certificate after the handshake, and all that is seen is an end
            _log.error(
                "closed over TLS without an answer; does it want another client certificate?", registry=self._name
            )
        lost = self._lost(writes=writes)
        if isinstance(lost, RegistryUnavailable) and not isinstance(error, TimeoutError):
            return _NotDoneError(lost)
        return lost

    def _translate(self, response: aiohttp.ClientResponse, raw: bytes, *, writes: bool) -> Answer:
        status = response.status
        if status < 300:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("application/json") and (
                kind or raw
            ):  # a load balancer's page is no answer of MLflow's
                raise self._lost(writes=writes)
            if writes and raw and not _is_object(raw):  # cut on its way: what was done is done
                raise self._lost(writes=writes)
            return Answer(status, raw, kind)
        document = _object(raw)
        code = str(document.get("error_code") or "")
        after = _retry_after(response.headers.get("retry-after"))
        if status in (502, 504) or (status >= 500 and status != 503 and not code):
            lost = self._lost(writes=writes)
            if status in (502, 504) and isinstance(lost, RegistryUnavailable):
                raise _NotDoneError(lost)
            raise lost
        if writes and status >= 500:  # MLflow says 503 when its database fails in the middle of a commit
            raise self._lost(writes=writes)
        if status == 503 or status < 400:
            message = f"The registry {self._name!r} is not able to answer now (status {status})."
            unable = RegistryUnavailable(message, retry_after=after)
            raise _NotDoneError(unable) if status == 503 else unable
        if status == 401:
            message = f"The registry {self._name!r} does not accept the gateway's own credential."
            raise RegistryUnavailable(message)
        text = str(document.get("message") or f"The registry answered {status}.")[:2000]
        text = _FAILED if status >= 500 else _without_insides(text)
        given = {name: document.get(name) for name in ("sqlstate", "error_class")}
        classification = {name: v for name, v in given.items() if isinstance(v, str) and _CLASS.fullmatch(v)}
        code = code or ("REQUEST_LIMIT_EXCEEDED" if status == 429 else "BAD_REQUEST")
        raise RegistryRefused(text, status=status, error_code=code, classification=classification, retry_after=after)

    def _lost(self, *, writes: bool) -> OutcomeUnknown | RegistryUnavailable:
        if writes:
            message = (
                f"The registry {self._name!r} was asked and gave no answer. Whether it was done is being read back; "
                "do not repeat the request."
            )
            return OutcomeUnknown(message)
        message = f"The registry {self._name!r} did not answer within its deadline."
        return RegistryUnavailable(message)

    def _headers(self, trace: str) -> dict[str, str]:
        headers = {"accept-encoding": "identity", "user-agent": "registry-gateway"}
        if authorization := self._authorization():
            headers["authorization"] = authorization
        if self._workspace:
            headers["x-mlflow-workspace"] = self._workspace
        if trace:
            headers["traceparent"] = trace
        return headers

    def _client(self, pool_name: str) -> aiohttp.ClientSession:
        session = self._sessions.get(pool_name)
        if session is None:
            pool: Any = {"limit": self._limits[pool_name], "keepalive_timeout": _KEEPALIVE_SECONDS}
            connector: aiohttp.BaseConnector
            if self._unix:
                connector = aiohttp.UnixConnector(self._unix, **pool)
            else:
                connector = aiohttp.TCPConnector(ssl=self._tls or True, **pool)
            session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trace_configs=[_tells_whether_it_waits()],
            )
            # aiohttp sends a DELETE or PUT again when a kept connection breaks: a change could be made twice
            session._retry_connection = False  # noqa: SLF001  # it has no public name
            self._sessions[pool_name] = session
        return session

    async def close(self) -> None:
        """Close the pools."""
        for session in self._sessions.values():
            await session.close()


def _tells_whether_it_waits() -> aiohttp.TraceConfig:
    """Let a call know whether it waits for a free connection of the pool."""

    def says(*, waits: bool) -> Any:
        async def say(_session: object, context: SimpleNamespace, _parameters: object) -> None:
            context.trace_request_ctx.waits = waits

        return say

    config = aiohttp.TraceConfig()
    config.on_connection_queued_start.append(says(waits=True))
    config.on_connection_queued_end.append(says(waits=False))
    return config


def _retry_after(value: str | None) -> int:
    """Read Retry-After in seconds, 1 to 60; a date, or anything else, is 1."""
    digits = (value or "").strip()
    return min(max(int(digits), 1), _MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,9}", digits) else 1


def _without_insides(text: str) -> str:
    """Keep the sentences before the first one that shows the server's insides."""
    leak = _LEAKS.search(text)
    if leak is None:
        return text
    kept = text[: leak.start()].rpartition(". ")[0]
    return f"{kept}." if kept else _FAILED


def _encode(request: Request) -> tuple[list[tuple[str, str]], bytes | AsyncIterator[bytes] | None]:
    if request.body is not None:
        return [], _Watched(request.body)
    if request.method != "GET":
        return [], json.dumps(request.message).encode()
    query: list[tuple[str, str]] = []
    for key, value in request.message.items():
        items = value if isinstance(value, list) else [value]
        query += [(key, str(item).lower() if isinstance(item, bool) else str(item)) for item in items]
    return query, None


class _Watched:
    """A body that is passed on, and what went wrong with it."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.error: Exception | None = None

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._parts)
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_chunked(_CHUNK):
        parts.append(part)
        size += len(part)
        if size > _MAX_JSON_BYTES:
            response.close()
            message = "the registry's answer is too large"
            raise aiohttp.ClientPayloadError(message)
    return b"".join(parts)


class _File:
    """The parts of an answer as they come; closing it before its end stops the transfer."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._response.content.iter_chunked(_CHUNK):
                yield part
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            message = "The registry stopped in the middle of a file."
            raise RegistryUnavailable(message) from error
        finally:
            self._response.close()

    async def aclose(self) -> None:
        self._response.close()


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(json.loads(raw), dict)
    except ValueError:
        return False


def _object(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
