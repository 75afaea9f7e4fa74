"""Has the keys of issuers: from an HTTPS endpoint, through a cache that outlives the endpoint, or from a file."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import structlog

from service.authentication.keysets import BadKeySetError, KeySet, SigningKey, parse_key_set
from service.errors import BadConfiguration, IdentityUnavailable
from service.files import read_text

MAX_BYTES = 1 << 20
FETCH_SECONDS = 5.0
PACE_SECONDS = 10.0
"""At least so long between two fetches that tokens ask for: an unknown kid costs its sender nothing."""
_FIRST_RETRY_SECONDS = 1.0
_MAX_RETRY_SECONDS = 60.0
_CHUNK = 64 << 10
_log = structlog.get_logger()


class RemoteKeys:
    """The key set at one URL. Only `start` and `find` fetch it, one fetch at a time."""

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext | None = None,
        *,
        refresh_seconds: float = 300.0,
        stale_seconds: float = 86_400.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Fetch *url* each *refresh_seconds*; use the last good set for *stale_seconds* when it cannot be fetched."""
        self.url = url
        self._tls = tls
        self._refresh_seconds = refresh_seconds
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched = 0.0
        self._tried: float | None = None
        self.problem: str | None = None
        """Why the last fetch failed, if it did."""
        self.fetches = 0
        self._flight: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def state(self) -> str:
        """``up``; ``stale``: the last fetch failed; ``down``: there are no keys to use; ``unknown``: not tried yet."""
        if self._usable() is None:
            return "unknown" if self._tried is None else "down"
        return "stale" if self.problem else "up"

    async def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Return the key for *kid* and *algorithm*; a new *kid* may fetch the set, but not often.

        Raises:
            IdentityUnavailable: there is no set that may still be used, or the key may be in one that cannot be had.
        """
        keys = self._usable()
        if keys is None or (kid is not None and not keys.has(kid)):
            await self._ask()
            keys = self._usable()
        found = keys.find(kid, algorithm) if keys is not None else None
        may_be_new = kid is not None and keys is not None and self.problem is not None and not keys.has(kid)
        if keys is None or may_be_new:
            message = "The keys that this token is verified with cannot be had now; nothing was done. Try again."
            raise IdentityUnavailable(message, retry_after=int(PACE_SECONDS))
        return found

    def start(self) -> None:
        """Fetch now and keep fetching; failures are tried again sooner."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop fetching."""
        tasks = [task for task in (self._task, self._flight) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _usable(self) -> KeySet | None:
        fresh = self._keys is not None and self._clock() - self._fetched <= self._stale_seconds
        return self._keys if fresh else None

    async def _run(self) -> None:
        retry = _FIRST_RETRY_SECONDS
        while True:
            await self._fly()
            retry = min(retry * 2, _MAX_RETRY_SECONDS) if self.problem else _FIRST_RETRY_SECONDS
            pause = min(retry, self._refresh_seconds) if self.problem else self._refresh_seconds
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))  # noqa: S311  # spreads replicas, guards nothing

    async def _ask(self) -> None:
        if self._flight is None and self._tried is not None and self._clock() - self._tried < PACE_SECONDS:
            return
        await self._fly()

    async def _fly(self) -> None:
        if self._flight is None:
            self._tried = self._clock()
            self._flight = asyncio.create_task(self._fetch())
            self._flight.add_done_callback(self._landed)
        await asyncio.shield(self._flight)  # who hangs up does not stop the others' fetch

    def _landed(self, _: asyncio.Task[None]) -> None:
        self._flight = None

    async def _fetch(self) -> None:
        self.fetches += 1
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                raw = await self._read()
                keys = await asyncio.to_thread(parse_key_set, raw)  # 100 keys take ten milliseconds
        except Exception as error:  # noqa: BLE001  # whatever it answers, it does not answer as a key set
            problem = f"{type(error).__name__}: {error}"[:300] if str(error) else type(error).__name__
            if problem != self.problem:
                _log.error("keys of an issuer not fetched", url=self.url, problem=problem)
            self.problem = problem
            return
        if self.problem:
            _log.info("keys of an issuer fetched again", url=self.url)
        self._keys, self._fetched, self.problem = keys, self._clock(), None

    async def _read(self) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._tls or True, limit=1, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,  # no proxy decides whose keys are believed
                auto_decompress=False,  # nothing grows on the way
                headers={"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"},
            )
        async with self._session.get(self.url, allow_redirects=False) as answer:
            if answer.status != 200:
                followed = "; redirects are not followed" if 300 <= answer.status < 400 else ""
                message = f"it answered {answer.status}{followed}"
                raise BadKeySetError(message)
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise BadKeySetError("the answer is encoded")
            raw = bytearray()
            async for chunk in answer.content.iter_chunked(_CHUNK):
                raw += chunk
                if len(raw) > MAX_BYTES:
                    message = f"the key set is over {MAX_BYTES} bytes"
                    raise BadKeySetError(message)
            return bytes(raw)


class FileKeys:
    """The key set in one file; `reload` follows it."""

    state = "up"

    def __init__(self, path: Path) -> None:
        """Read *path*.

        Raises:
            BadConfiguration: it is no key set; the message names it.
        """
        self._path = path
        self._text = read_text(path)
        self._keys = self._parse(self._text)

    async def find(self, kid: str | None, algorithm: str) -> SigningKey | None:
        """Return the key for *kid* and *algorithm*."""
        return self._keys.find(kid, algorithm)

    def reload(self) -> bool:
        """Take the file's keys if its content changed; True if it did.

        Raises:
            BadConfiguration: the new content is no key set. The old keys stay.
        """
        text = read_text(self._path)
        if text == self._text:
            return False
        self._keys = self._parse(text)
        self._text = text
        return True

    def _parse(self, text: str) -> KeySet:
        try:
            return parse_key_set(text.encode())
        except BadKeySetError as error:
            message = f"{self._path}: {error}"
            raise BadConfiguration(message) from None
