"""Posts to the endpoint of a receiver: to a checked address, once, without redirects, within a deadline."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from service.delivery.ports import Sent
from service.sinks.addresses import ForbiddenAddress, check_host
from service.sinks.resolving import CheckedResolver, Lookup, SystemLookup

_KEEPALIVE_SECONDS = 1.5  # most servers close idle connections after 5: a message must not meet a closing one
_MAX_ANSWER_BYTES = 16 << 10
_ANSWER_SECONDS = 1.0
"""So long the rest of an answer is read, for the connection's sake; what is in it does not matter."""
_CONNECTIONS = 8
_RECEIVE_BYTES = 8 << 10
"""So much of an answer comes in at a time: parsing a flood of little answers must not hold up the event loop."""
_MAX_PROBLEM = 300
_GONE = 410
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where events are sent."""

    url: str
    timeout_seconds: float = 10.0
    private: bool = False
    """Addresses of the own network are allowed too."""
    tls: ssl.SSLContext | None = None


class Poster:
    """Sends messages to one endpoint; nothing of the environment decides how (no proxy, no cookies)."""

    def __init__(self, endpoint: Endpoint, lookup: Lookup | None = None) -> None:
        """Send to *endpoint*, whose name *lookup* resolves; nothing is connected yet."""
        self.endpoint = endpoint
        url = urlsplit(endpoint.url)
        self._host = url.hostname or ""
        self.origin = f"{url.scheme}://{url.netloc}"
        """What may be told of the URL: its path can be a secret."""
        self._encrypted = url.scheme == "https"
        self._resolver = CheckedResolver(lookup or SystemLookup(), private=endpoint.private, encrypted=self._encrypted)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> Sent:
        """Make one attempt: a 2xx status is a success, whatever the rest of the answer. Never raises."""
        try:
            async with asyncio.timeout(self.endpoint.timeout_seconds):
                return await self._post(body, headers)
        except TimeoutError:
            return Sent(problem=f"no answer within {self.endpoint.timeout_seconds:g} seconds")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Sent(problem=_problem(error, self.endpoint.url))

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> Sent:
        check_host(self._host, private=self.endpoint.private, encrypted=self._encrypted)
        async with self._opened().post(self.endpoint.url, data=body, headers=headers, allow_redirects=False) as answer:
            if 200 <= answer.status < 300:
                await _drain(answer)
                return Sent(answer.status)
            answer.close()
            redirected = "; redirects are not followed" if 300 <= answer.status < 400 else ""
            gone = "; it wants nothing any more" if answer.status == _GONE else ""
            return Sent(
                answer.status,
                f"it answered {answer.status}{redirected}{gone}",
                gone=answer.status == _GONE,
                retry_after_seconds=_retry_after(answer.headers.get("Retry-After", "")),
            )

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=self._resolver,
                    use_dns_cache=False,  # a connection is made to what was checked for it
                    ssl=self.endpoint.tls or True,
                    limit=_CONNECTIONS,
                    socket_factory=_socket,
                    keepalive_timeout=_KEEPALIVE_SECONDS,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"User-Agent": "registry-gateway", "Accept-Encoding": "identity"},
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Make a socket that takes in little at a time."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    return made


async def _drain(answer: aiohttp.ClientResponse) -> None:
    """Read a short answer to its end, so that the connection can be used again; close it on a long or slow one."""
    left = _MAX_ANSWER_BYTES
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            while left > 0 and (part := await answer.content.read(left)):
                left -= len(part)
    except (TimeoutError, aiohttp.ClientError, OSError):
        left = 0
    if left <= 0:
        answer.close()


def _retry_after(text: str) -> float:
    return float(text[:_MAX_DIGITS]) if text.isascii() and text.isdigit() else 0.0


def _problem(error: BaseException, url: str) -> str:
    """Say in one line what went wrong; what stands in the URL can be a secret and is not said.

    A forbidden address is told as such, not as a failed connection.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ForbiddenAddress):
            return str(cause)
        cause = getattr(cause, "os_error", None) or cause.__cause__ or cause.__context__
    if isinstance(error, aiohttp.InvalidURL):
        return "the host of the URL is none that can be connected to"
    text = " ".join((error.message if isinstance(error, aiohttp.ClientResponseError) else str(error)).split())
    if urlsplit(url).path.strip("/") and urlsplit(url).path in text:
        text = ""
    return f"{type(error).__name__}: {text}"[:_MAX_PROBLEM] if text else type(error).__name__
