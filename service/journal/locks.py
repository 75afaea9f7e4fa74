"""Locks that all replicas see: PostgreSQL's advisory locks, each hold on a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Sequence

import asyncpg

from service.changes import Held, LockLost
from service.errors import JournalUnavailable
from service.journal.database import FAILURES, POSTGRES

_CHECK_SECONDS = 1.0
_SOLE = "the only process"
_IN_USE = "Another gateway process uses this journal; this version serves a journal on PostgreSQL by one process."
_TRY = "SELECT pg_try_advisory_lock($1)"
_HELD = """
    SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid = pg_backend_pid()
"""
_CONNECTIONS = 20
"""So many models change at once, in one replica."""


class PostgresLocks:
    """Locks by name. A replica that dies loses them with its connections."""

    def __init__(self, url: str, connect_seconds: float) -> None:
        """Lock on the server of the journal *url*; a connection that is not had in *connect_seconds* is none."""
        self._url = POSTGRES + url.removeprefix(POSTGRES)
        self._seconds = connect_seconds
        self._free: list[asyncpg.Connection] = []
        self._places = asyncio.Semaphore(_CONNECTIONS)

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
            connection = await self._connection()
            usable = False
            try:
                for key in keys:
                    if not await self._lock(connection, key, seconds and max(0.001, deadline - time.monotonic())):
                        usable = await self._unlock(connection)
                        raise TimeoutError
                try:
                    yield _Held(connection, keys)
                finally:
                    usable = await self._unlock(connection)
            finally:
                if usable:
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
        try:
            return await asyncpg.connect(
                self._url,
                timeout=self._seconds,
                server_settings={"application_name": "registry-gateway locks"},
            )
        except FAILURES as error:
            raise LockLost(type(error).__name__) from None

    @staticmethod
    async def _lock(connection: asyncpg.Connection, key: int, seconds: float) -> bool:
        """Take one lock; tell whether it was had."""
        try:
            if seconds <= 0:
                return bool(await connection.fetchval(_TRY, key, timeout=_CHECK_SECONDS))
            await connection.execute(f"SET lock_timeout = {max(1, int(seconds * 1000))}", timeout=_CHECK_SECONDS)
            await connection.execute(f"SELECT pg_advisory_lock({key})", timeout=seconds + _CHECK_SECONDS)
        except asyncpg.LockNotAvailableError:
            return False
        except FAILURES as error:
            raise LockLost(type(error).__name__) from None
        return True

    @staticmethod
    async def _unlock(connection: asyncpg.Connection) -> bool:
        """Give the locks back; tell whether the connection can be used again."""
        try:
            await connection.execute("SELECT pg_advisory_unlock_all()", timeout=_CHECK_SECONDS)
        except FAILURES:
            return False
        return True


class Sole:
    """Keeps a second process from the journal: what one knows of the other is not complete in this version."""

    def __init__(self, url: str, connect_seconds: float) -> None:
        """Guard the journal *url*; a connection that is not had in *connect_seconds* is none."""
        self._locks = PostgresLocks(url, connect_seconds)
        self._stack = contextlib.AsyncExitStack()
        self._held: Held | None = None

    async def take(self, seconds: float) -> None:
        """Be the only one; wait for another process to end at most *seconds*.

        Raises:
            JournalUnavailable: another one uses the journal, or it cannot be asked.
        """
        await self.close()
        try:
            self._held = await self._stack.enter_async_context(self._locks.hold([_SOLE], seconds))
        except TimeoutError:
            raise JournalUnavailable(_IN_USE) from None
        except LockLost as error:
            message = f"The journal cannot be asked who uses it ({error})."
            raise JournalUnavailable(message) from None

    async def check(self) -> None:
        """Return if this is still the only process; a connection that was lost is made again.

        Raises:
            JournalUnavailable: another one took over. Nothing may be written.
        """
        try:
            if self._held is not None:
                await self._held.check()
                return
        except LockLost:
            pass
        await self.take(0)

    async def close(self) -> None:
        """Let another process have it."""
        self._held = None
        await self._stack.aclose()
        await self._locks.close()


class _Held:
    """Locks that are held as long as their connection lives."""

    def __init__(self, connection: asyncpg.Connection, keys: Sequence[int]) -> None:
        self._connection = connection
        self._keys = set(keys)

    async def check(self) -> None:
        """Return if the locks are still held.

        Raises:
            LockLost: it cannot be told, so nothing may be written.
        """
        try:
            rows = await self._connection.fetch(_HELD, timeout=_CHECK_SECONDS)
        except FAILURES as error:
            raise LockLost(type(error).__name__) from None
        if not self._keys <= {row["key"] for row in rows}:
            message = "it is not held any more"
            raise LockLost(message)


def key_of(name: str) -> int:
    """Name a lock as PostgreSQL does, by 64 bits with a sign."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
