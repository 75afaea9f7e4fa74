"""Speaks HTTP to an MLflow server: one pooled client, deadlines, errors translated into the closed set."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

from service.errors import OutcomeUnknown, RegistryRefused, RegistryUnavailable
from service.model import Answer, Request

_MAX_JSON_BYTES = 64 << 20
_CHUNK = 256 << 10
_CLASS = re.compile(r"[A-Z0-9_]{1,64}")
_LEAKS = re.compile(r"\[SQL|sqlalchemy|sqlite3|psycopg|pymysql|Traceback|File \"|/site-packages/", re.IGNORECASE)
_FAILED = "The registry failed; its own log says why."
_KEEPALIVE_SECONDS = 1.5  # uvicorn closes idle connections after 5: a write must not meet a closing one
_PASSED_ON = ("content-length", "content-disposition", "last-modified", "etag")


class HttpTransport:
    """A connection pool to one server."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        timeout_seconds: float = 30.0,
        authorization: Callable[[], str | None] = lambda: None,
        workspace: str | None = None,
        connections: int = 100,
    ) -> None:
        """Talk to *url* (http, https or ``unix:/path``); *authorization* gives the header for each request."""
        self._name = name
        self._unix = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._root = "http://localhost" if self._unix else url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._authorization = authorization
        self._workspace = workspace
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: Request, *, writes: bool, trace: str = "") -> Answer:
        """Send *request* and return its 2xx answer (see `service.backend.Backend` for the errors)."""
        query, body = _encode(request)
        headers = {**self._headers(trace), **request.headers}
        if isinstance(body, bytes) and request.method != "GET":
            headers["content-type"] = "application/json"
        return await self._exchange(
            request.method, request.path, query, body, headers, writes=writes, streams=request.streams
        )

    async def get(self, path: str, query: list[tuple[str, str]], limit: int) -> bytes | None:
        """GET a file of at most *limit* bytes; None if the server says it is not there."""
        try:
            answer = await self._exchange("GET", path, query, None, self._headers(""), writes=False, streams=True)
        except RegistryRefused as error:
            if error.status in (400, 404, 500):  # MLflow answers a missing file with any of these
                return None
            raise
        parts, size = [], 0
        if answer.stream is not None:
            async for part in answer.stream:
                parts.append(part)
                size += len(part)
                if size > limit:
                    return None
        return b"".join(parts)

    async def _exchange(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]],
        body: bytes | AsyncIterator[bytes] | None,
        headers: Mapping[str, str],
        *,
        writes: bool,
        streams: bool,
    ) -> Answer:
        long = streams or not (body is None or isinstance(body, bytes))
        timeout = aiohttp.ClientTimeout(
            total=None if long else self._timeout_seconds, sock_read=self._timeout_seconds, sock_connect=5
        )
        try:
            response = await self._client().request(
                method,
                self._root + path,
                params=query or None,
                data=body,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError as error:
            message = f"The registry {self._name!r} cannot be reached; nothing was forwarded."
            raise RegistryUnavailable(message) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._lost(writes=writes) from error
        if streams and response.status == 200:
            passed = {name: response.headers[name] for name in _PASSED_ON if name in response.headers}
            kind = response.headers.get("content-type", "application/octet-stream")
            return Answer(200, b"", kind, passed, stream=_chunks(response))
        try:
            raw = await _read(response)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            raise self._lost(writes=writes) from error
        finally:
            response.release()
        return self._translate(response, raw, writes=writes)

    def _translate(self, response: aiohttp.ClientResponse, raw: bytes, *, writes: bool) -> Answer:
        status = response.status
        if status < 300:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("application/json") and (
                kind or raw
            ):  # a load balancer's page is no answer of MLflow's
                raise self._lost(writes=writes)
            return Answer(status, raw, kind)
        document = _object(raw)
        code = str(document.get("error_code") or "")
        if status in (502, 504) or (status >= 500 and not code):
            raise self._lost(writes=writes)
        if status == 503 or status < 400:
            message = f"The registry {self._name!r} is not able to answer now (status {status})."
            raise RegistryUnavailable(message)
        if status == 401:
            message = f"The registry {self._name!r} does not accept the gateway's own credential."
            raise RegistryUnavailable(message)
        text = str(document.get("message") or f"The registry answered {status}.")[:2000]
        text = _FAILED if status >= 500 else _without_insides(text)
        given = {name: document.get(name) for name in ("sqlstate", "error_class")}
        classification = {name: v for name, v in given.items() if isinstance(v, str) and _CLASS.fullmatch(v)}
        raise RegistryRefused(text, status=status, error_code=code or "BAD_REQUEST", classification=classification)

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

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            pool: Any = {"limit": self._connections, "keepalive_timeout": _KEEPALIVE_SECONDS}
            connector = aiohttp.UnixConnector(self._unix, **pool) if self._unix else aiohttp.TCPConnector(**pool)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )
        return self._session

    async def close(self) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()


def _without_insides(text: str) -> str:
    """Keep the sentences before the first one that shows the server's insides."""
    leak = _LEAKS.search(text)
    if leak is None:
        return text
    kept = text[: leak.start()].rpartition(". ")[0]
    return f"{kept}." if kept else _FAILED


def _encode(request: Request) -> tuple[list[tuple[str, str]], bytes | AsyncIterator[bytes] | None]:
    if request.body is not None:
        return [], request.body
    if request.method != "GET":
        return [], json.dumps(request.message).encode()
    query: list[tuple[str, str]] = []
    for key, value in request.message.items():
        items = value if isinstance(value, list) else [value]
        query += [(key, str(item).lower() if isinstance(item, bool) else str(item)) for item in items]
    return query, None


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


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for part in response.content.iter_chunked(_CHUNK):
            yield part
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        message = "The registry stopped in the middle of a file."
        raise RegistryUnavailable(message) from error
    finally:
        response.close()  # a client that hangs up stops the transfer


def _object(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
