"""Chooses one process among all that use the journal, for what one does for all."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Protocol

import asyncpg
import structlog

from service.journal.database import FAILURES, POSTGRES, SQLITE
from service.journal.locks import key_of
from service.tasks import end

LEAD_SECONDS = 3.0
"""So long the lead is believed after the server was last asked for it."""
_GIVEN_UP_SECONDS = 5
"""After so long without a question the server gives the lead to another; more than `LEAD_SECONDS`."""
_PACE_SECONDS = 1.0
_LEADS = "SELECT pg_try_advisory_lock($1)"
_STILL_LEADS = """
    SELECT EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid = pg_backend_pid()
        AND ((classid::bigint << 32) | objid::bigint) = $1
    )
"""
_log = structlog.get_logger()


class Leader(Protocol):
    """Says whether this process does what one does for all."""

    def leads(self) -> bool:
        """Tell whether it is this process, now. At most one says yes at a time."""

    def start(self) -> None:
        """Stand for it."""

    async def close(self) -> None:
        """Leave it to another."""


class Alone:
    """The only process there is."""

    def leads(self) -> bool:
        """Tell that it is this one."""
        return True

    def start(self) -> None:
        """There is nobody to agree with."""

    async def close(self) -> None:
        """There is nobody to leave it to."""


class PostgresLeader:
    """Leads as long as it holds a lock of the journal's server, on a connection of its own.

    A process that stands still stops leading by its own clock before the server ends its connection.
    """

    def __init__(self, url: str, connect_seconds: float, name: str = "the leader") -> None:
        """Stand for *name* on the server of the journal *url*."""
        self._url = POSTGRES + url.removeprefix(POSTGRES)
        self._seconds = connect_seconds
        self._key = key_of(name)
        self._until = 0.0
        self._pace = _PACE_SECONDS
        self._task: asyncio.Task[None] | None = None

    def leads(self) -> bool:
        """Tell whether it is this process, now."""
        return time.monotonic() < self._until

    def start(self) -> None:
        """Try to get the lock every second, and ask every second whether it is still held."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Let another process lead at once."""
        await end(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self._stand()
            except FAILURES as error:
                _log.warning("it cannot be told who leads", problem=type(error).__name__)
            await asyncio.sleep(_PACE_SECONDS)

    async def _stand(self) -> None:
        """Lead or wait for it, until the connection is lost."""
        connection = await asyncpg.connect(
            self._url,
            timeout=self._seconds,
            server_settings={
                "application_name": "registry-gateway leader",
                "idle_session_timeout": str(_GIVEN_UP_SECONDS * 1000),
            },
        )
        held = False
        try:
            while True:
                asked = time.monotonic()
                question = _STILL_LEADS if held else _LEADS
                found = await connection.fetchval(question, self._key, timeout=_PACE_SECONDS)
                if found and not held:
                    _log.info("this process leads")
                held = found
                self._until = asked + LEAD_SECONDS if held else 0.0
                await asyncio.sleep(self._pace)
        finally:
            self._until = 0.0
            with contextlib.suppress(*FAILURES):
                connection.terminate()


def leader_of(url: str, connect_seconds: float) -> Leader:
    """Return who says whether this process leads among those that use the journal *url*."""
    return Alone() if url.startswith(SQLITE) else PostgresLeader(url, connect_seconds)
