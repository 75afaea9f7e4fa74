"""The connection on which replicas talk: one question at a time, and what the others say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import asyncpg
import structlog

from service.errors import JournalUnavailable
from service.journal.database import FAILURES, POSTGRES

LEASE_SECONDS = 5.0
"""A process that has not renewed its lease for so long is not waited for any more."""
CHANNEL = "registry_gateway_replicas"
UNKNOWN = "The journal does not say what other replicas do."
_log = structlog.get_logger()


class Session:
    """One connection to the server of the journal, made again by whoever needs it."""

    def __init__(
        self, url: str, connect_seconds: float, heard: Callable[[str], None], lost: Callable[[], None]
    ) -> None:
        """Connect to the server of *url*; *heard* is told what others say, *lost* that the connection is gone."""
        self._url = POSTGRES + url.removeprefix(POSTGRES)
        self._seconds = connect_seconds
        self._heard = heard
        self._lost = lost
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def connect(self) -> None:
        """Make the connection anew, and listen.

        Raises:
            JournalUnavailable: there is none.
        """
        self.lose()
        try:
            self._connection = await asyncpg.connect(
                self._url,
                timeout=self._seconds,
                server_settings={
                    "application_name": "registry-gateway replica",
                    "synchronous_commit": "off",  # of what ends with this process nothing has to outlive the server
                    "idle_session_timeout": str(int(LEASE_SECONDS * 1000)),
                },
            )
            async with asyncio.timeout(self._seconds):
                await self._connection.add_listener(CHANNEL, lambda _, __, ___, said: self._heard(said))
        except FAILURES as error:
            _log.warning("it cannot be told which other replicas there are", problem=type(error).__name__)
            self.lose()
            raise JournalUnavailable(UNKNOWN) from None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as it is known."""
        return self._connection is not None and not self._connection.is_closed()

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[asyncpg.Connection]:
        """Have the connection for oneself. If it fails it is lost.

        Raises:
            JournalUnavailable: there is none.
        """
        async with self._turn:
            connection = self._connection
            if connection is None or connection.is_closed():
                raise JournalUnavailable(UNKNOWN)
            try:
                yield connection
            except FAILURES as error:
                _log.warning("lost the other replicas", problem=type(error).__name__)
                self.lose()
                raise JournalUnavailable(UNKNOWN) from None

    def lose(self) -> None:
        """Give the connection up."""
        connection, self._connection = self._connection, None
        self._lost()
        if connection is not None:
            connection.terminate()
