"""Locks that all replicas see: PostgreSQL's advisory locks, each hold on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import asyncpg

from service.held import Held, LockLost
from service.journal.database import FAILURES, POSTGRES
from service.patience import begun, left, waiting

_CHECK_SECONDS = 1.0
LEASE_SECONDS = 5
"""A process that stands still for so long, or is cut off, loses its locks: the server ends its connection."""
_KEEP_SECONDS = 1.0
_TRY = f"SELECT pg_try_advisory_lock($1), set_config('idle_session_timeout', '{LEASE_SECONDS * 1000}', false)"
_SLICE_SECONDS = 0.25
"""So long the server is trusted to wait for a lock before it has to say that it is still there."""
_HELD = """
    SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid = pg_backend_pid()
"""
_UNLOCK = "SELECT pg_advisory_unlock_all(); RESET idle_session_timeout"
_CONNECTIONS = 20
"""So many models change at once, in one replica."""
_KEPT = 4
"""So many connections stay open for the next changes."""


class PostgresLocks:
    """Locks by name. A replica that dies loses them with its connections."""

    def __init__(self, url: str, connect_seconds: float) -> None:
        """Lock on the server of the journal *url*; a connection that is not had in *connect_seconds* is none."""
        self._url = POSTGRES + url.removeprefix(POSTGRES)
        self._seconds = connect_seconds
        self._free: list[asyncpg.Connection] = []
        self._places = asyncio.Semaphore(_CONNECTIONS)
        self._lost_at = -math.inf
        """When the server was last found not to answer, if it has not answered since."""

    @contextlib.asynccontextmanager
    async def hold(self, names: Sequence[str], seconds: float) -> AsyncIterator[Held]:
        """Hold the locks *names*, taken in this order; wait for them at most *seconds* (0: not at all).

        Raises:
            TimeoutError: another one holds one of them. LockLost: the server cannot be asked.
        """
        deadline = time.monotonic() + seconds
        keys = [key_of(name) for name in names]
        async with asyncio.timeout(seconds or _CHECK_SECONDS):
            await self._places.acquire()
        try:
            if self._lost_at > begun():  # who waited for another one that was refused is not kept waiting once more
                message = "the server does not answer"
                raise LockLost(message)
            connection = await self._connection()
            usable = False
            try:
                for key in keys:
                    if not await self._lock(connection, key, deadline):
                        usable = await self._unlock(connection)
                        raise TimeoutError
                held = _Held(connection, keys)
                keeper = asyncio.create_task(held.keep())
                try:
                    yield held
                finally:
                    usable = await self._unlock(connection, held, keeper)
                    keeper.cancel()
            finally:
                if usable and len(self._free) < _KEPT:
                    self._free.append(connection)
                else:
                    connection.terminate()  # and the server gives up its locks
        finally:
            self._places.release()

    async def close(self) -> None:
        """Close the connections that hold nothing."""
        free, self._free = self._free, []
        for connection in free:
            connection.terminate()

    async def _connection(self) -> asyncpg.Connection:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        with self._answers():
            async with waiting(self._seconds):
                return await asyncpg.connect(
                    self._url,
                    timeout=self._seconds,
                    server_settings={"application_name": "registry-gateway locks"},
                )

    async def _lock(self, connection: asyncpg.Connection, key: int, deadline: float) -> bool:
        """Take one lock; tell whether it was had."""
        with self._answers():
            async with waiting(_CHECK_SECONDS):
                if await connection.fetchval(_TRY, key):
                    return True
            while (rest := deadline - time.monotonic()) > 0:  # another one has it, and the server is asked now and then
                rest = min(rest, _SLICE_SECONDS)
                with contextlib.suppress(asyncpg.LockNotAvailableError):
                    async with asyncio.timeout(rest + left(_CHECK_SECONDS)):
                        await connection.execute(
                            f"SET lock_timeout = {max(1, int(rest * 1000))}; SELECT pg_advisory_lock({key})"
                        )
                    return True
        return False

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Note whether the server answers.

        Raises:
            LockLost: it does not.
        """
        try:
            yield
        except FAILURES as error:
            self._lost_at = time.monotonic()
            raise LockLost(type(error).__name__) from None
        self._lost_at = -math.inf

    @staticmethod
    async def _unlock(
        connection: asyncpg.Connection, held: _Held | None = None, keeper: asyncio.Task[None] | None = None
    ) -> bool:
        """Give the locks back; tell whether the connection can be used again."""
        try:
            async with waiting(_CHECK_SECONDS):
                if held is not None and keeper is not None:
                    await held.leave(keeper)
                await connection.execute(_UNLOCK)
        except FAILURES:
            return False
        return True


class _Held:
    """Locks that are held as long as their connection lives."""

    def __init__(self, connection: asyncpg.Connection, keys: Sequence[int]) -> None:
        self._connection = connection
        self._keys = set(keys)
        self._turn = asyncio.Lock()

    async def keep(self) -> None:
        """Show the server that this process goes on; end with the connection."""
        while True:
            await asyncio.sleep(_KEEP_SECONDS)
            async with self._turn:
                await self._connection.execute("SELECT 1", timeout=_CHECK_SECONDS)

    async def leave(self, keeper: asyncio.Task[None]) -> None:
        """End *keeper* between two questions: one that is cancelled in the middle costs the connection."""
        async with self._turn:
            keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)

    async def check(self) -> None:
        """Return if the locks are still held.

        Raises:
            LockLost: it cannot be told, so nothing may be written.
        """
        try:
            async with waiting(_CHECK_SECONDS), self._turn:
                rows = await self._connection.fetch(_HELD)
        except FAILURES as error:
            raise LockLost(type(error).__name__) from None
        if not self._keys <= {row["key"] for row in rows}:
            message = "it is not held any more"
            raise LockLost(message)


def key_of(name: str) -> int:
    """Name a lock as PostgreSQL does, by 64 bits with a sign."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
