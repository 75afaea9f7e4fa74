"""Tells who follows the journal that there is more: appended by this process, or by another replica."""

from __future__ import annotations

import asyncio
import contextlib

import asyncpg
import structlog

from service.journal.database import FAILURES, POSTGRES

CHANNEL = "registry_gateway"
_AGAIN_SECONDS = 1.0
_LOOK_SECONDS = 5.0
_log = structlog.get_logger()


class Bell:
    """Rings at each append of this process. A ring is a hint: who follows looks for itself."""

    def __init__(self) -> None:
        """Nothing was appended yet."""
        self.rings = 0
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake all who wait."""
        self.rings += 1
        self._rung.set()
        self._rung = asyncio.Event()

    async def wait(self, rings: int, seconds: float) -> None:
        """Return when it has rung more than *rings* times, at most after *seconds*."""
        if self.rings > rings:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._rung.wait()

    def start(self) -> None:
        """Begin to hear others; there are none."""

    async def close(self) -> None:
        """Hear others no more."""


class PostgresBell(Bell):
    """Rings at each append of any replica, by the server's NOTIFY."""

    def __init__(self, url: str, connect_seconds: float) -> None:
        """Listen to the server of the journal *url*."""
        super().__init__()
        self._url = POSTGRES + url.removeprefix(POSTGRES)
        self._seconds = connect_seconds
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to hear other replicas."""
        self._task = asyncio.create_task(self._listen_forever())

    async def close(self) -> None:
        """Hear other replicas no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _listen_forever(self) -> None:
        while True:
            try:
                await self._listen()
            except FAILURES as error:
                _log.warning("the journal does not tell of other replicas", problem=type(error).__name__)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _listen(self) -> None:
        """Listen until the connection is lost."""
        connection = await asyncpg.connect(
            self._url, timeout=self._seconds, server_settings={"application_name": "registry-gateway bell"}
        )
        lost = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            async with asyncio.timeout(self._seconds):
                await connection.add_listener(CHANNEL, lambda *_: self.ring())
            self.ring()  # what was missed while nobody listened
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await lost.wait()
                await connection.execute("SELECT 1", timeout=self._seconds)  # a server that is gone may not say so
        finally:
            connection.terminate()
