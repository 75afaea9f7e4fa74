"""Where the journal's tables are: SQLite for one process, PostgreSQL for replicas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import asyncpg
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from service.errors import JournalUnavailable
from service.journal.files import JournalFiles

T = TypeVar("T")
Work = Callable[[Connection], T]
"""What is done on a connection, inside a transaction."""
SQLITE = "sqlite:///"
POSTGRES = "postgresql://"
FAILURES = (
    *(SQLAlchemyError, OSError, ValueError, TimeoutError),
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
)
"""What a database that cannot do it raises."""
_READERS = 4
_WRITING = text("SELECT pg_advisory_xact_lock(5394, 1)")
"""Who holds it appends to the chain: one transaction at a time, of whatever replica."""


def asyncpg_url(url: str) -> str:
    """Name the driver in *url*."""
    return "postgresql+asyncpg://" + url.removeprefix(POSTGRES)


def shown(url: str) -> str:
    """Return *url* as messages show it: a file's path, a server without its password."""
    if url.startswith(SQLITE):
        return url.removeprefix(SQLITE)
    return make_url(url).set(query={}).render_as_string(hide_password=True)


def is_of_one_job(error: BaseException) -> bool:
    """Tell whether *error* is about what was to be stored, so that other things may well be stored."""
    if isinstance(error, OperationalError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return False
    return isinstance(error, StatementError | ValueError)


class NotThisJournal(OSError):
    """It does not hold what this process stored in it: it was replaced by another one, or has lost events."""


class InDoubt(Exception):
    """The transaction was to be committed, and nobody knows whether it is."""


class Database(Protocol):
    """One database. Methods raise one of `FAILURES`."""

    alone: bool
    """Whether this process is the only one that writes."""

    async def read(self, work: Work[T], seconds: float | None = None) -> T:
        """Run *work* in a transaction that sees one state, within *seconds* or the deadline."""

    async def write(self, work: Work[T]) -> T:
        """Run *work* in a transaction while nobody else appends; it is durable when this returns.

        Raises:
            InDoubt: it may be stored. Any other error: it is not.
        """

    async def claim(self) -> None:
        """Keep other processes from writing, where only one may.

        Raises:
            JournalUnavailable: another one writes.
        """

    async def close(self) -> None:
        """Give the connections back."""


def open_database(url: str, deadline_seconds: float) -> Database:
    """Open the database at *url*: ``sqlite:///path`` or ``postgresql://…``."""
    if url.startswith(SQLITE):
        return SqliteDatabase(url, deadline_seconds)
    return PostgresDatabase(url, deadline_seconds)


class SqliteDatabase:
    """A file, one writing connection, readers beside it."""

    alone = True

    def __init__(self, url: str, deadline_seconds: float) -> None:
        """Open the file of *url*; it is not made."""
        self._files = JournalFiles(Path(url.removeprefix(SQLITE)))
        self._engine = _sqlite_engine(url, deadline_seconds)
        self._deadline = deadline_seconds
        # One thread owns the writing connection: a batch is one hop; an async driver makes one for each statement.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        # Threads of their own: who hashes files does not keep a promotion waiting.
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="journal-read")
        self._connection: Connection | None = None
        self._claimed = False

    async def claim(self) -> None:
        """Keep other processes from the file."""
        await asyncio.to_thread(self._files.claim)
        self._claimed = True

    async def read(self, work: Work[T], seconds: float | None = None) -> T:
        """Run *work* on a reading thread."""
        async with asyncio.timeout(self._deadline if seconds is None else seconds):
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def write(self, work: Work[T]) -> T:
        """Run *work* on the writing thread."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._write, work)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.get_running_loop().run_in_executor(self._writer, self._disconnect)
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()
        self._files.release()

    def _read(self, work: Work[T]) -> T:
        self._files.check()  # opened under the log of another database, a file is written over when it is closed
        with self._engine.connect() as connection:
            return work(connection)

    def _write(self, work: Work[T]) -> T:
        try:
            connection = self._connected()
            with connection.begin():
                connection.exec_driver_sql("BEGIN IMMEDIATE")  # what is read now is what is written to
                done = work(connection)
                self._files.remember_log()
        except FAILURES:
            self._disconnect()
            raise
        try:
            self._files.check()
        except OSError as error:  # taken away meanwhile: what was stored goes with it, unless it is saved
            if not self._leave():
                raise InDoubt from error
        return done

    def _connected(self) -> Connection:
        if self._claimed:
            try:
                self._files.claim()  # the lock may have been taken away
            except JournalUnavailable as error:
                raise OSError(error.detail) from None
        if self._connection is not None:
            try:
                self._files.check()
            except OSError:
                if not self._leave():
                    raise
        if self._connection is None:
            self._files.remember_database()
            self._connection = self._engine.connect()
        return self._connection

    def _leave(self) -> bool:
        """Leave files that were deleted or replaced; tell whether what was stored is in the database of this name.

        The log is emptied first, into the database that it belongs to: beside another one it would be taken for its.
        """
        emptied = False
        with contextlib.suppress(*FAILURES):
            if self._connection is not None:
                busy, pages, moved = self._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
                emptied = not busy and pages == moved
        kept = emptied and self._files.database_is_kept()
        self._disconnect()
        self._engine.dispose()  # readers look into the old files, too
        return kept

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._files.forget()  # who closes last removes the log
        if connection is not None:
            with contextlib.suppress(SQLAlchemyError, OSError, ValueError):
                connection.invalidate()
                connection.close()


class PostgresDatabase:
    """A server that several replicas share. A connection that does not answer in time is given up."""

    alone = False

    def __init__(self, url: str, deadline_seconds: float) -> None:
        """Use the database at *url* (RFC 3986; libpq's names in the query)."""
        self._deadline = deadline_seconds
        self._reading = _postgres_engine(url, deadline_seconds, _READERS, "REPEATABLE READ")
        self._writing = _postgres_engine(url, deadline_seconds, 1, "READ COMMITTED")

    async def read(self, work: Work[T], seconds: float | None = None) -> T:
        """Run *work* on one of the reading connections."""
        async with self._connected(self._reading, self._deadline if seconds is None else seconds) as connection:
            return await connection.run_sync(work)

    async def write(self, work: Work[T]) -> T:
        """Run *work* while no other replica appends."""
        async with self._connected(self._writing, self._deadline) as connection:
            await connection.execute(_WRITING)
            done = await connection.run_sync(work)
            await self._commit(connection)
            return done

    @contextlib.asynccontextmanager
    async def _connected(self, engine: AsyncEngine, seconds: float) -> AsyncIterator[AsyncConnection]:
        """Have a connection for at most *seconds*; then it is cut, which ends whatever waits for the server.

        To end it in order, as a cancelled task does, is to wait for the server once more: for ever, if need be.
        """
        due = asyncio.get_running_loop().time() + seconds
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout_at(due):
                connection = await engine.connect()
            assert connection.sync_connection is not None  # it is open
            driver = connection.sync_connection.connection.driver_connection
            assert isinstance(driver, asyncpg.Connection)
            stack.callback(asyncio.get_running_loop().call_at(due, driver.terminate).cancel)
            stack.push_async_exit(connection)
            yield connection

    @staticmethod
    async def _commit(connection: AsyncConnection) -> None:
        try:
            await connection.commit()
        except (*FAILURES, asyncio.CancelledError) as error:
            raise InDoubt from error

    async def claim(self) -> None:
        """Do nothing: replicas write in turn."""

    async def close(self) -> None:
        """Close the connections."""
        for engine in (self._reading, self._writing):
            with contextlib.suppress(*FAILURES):  # a server that does not answer holds up no stop
                async with asyncio.timeout(self._deadline):
                    await engine.dispose()


def _sqlite_engine(url: str, deadline_seconds: float) -> Engine:
    path = quote(str(Path(url.removeprefix(SQLITE)).absolute()))
    engine = create_engine(  # mode=rw: a file that was deleted is not made again
        f"sqlite:///file:{path}?mode=rw&uri=true",
        connect_args={"timeout": deadline_seconds / 2, "check_same_thread": False},
    )

    def configure(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine, "connect", configure)
    return engine


def _postgres_engine(url: str, deadline_seconds: float, connections: int, isolation: str) -> AsyncEngine:
    milliseconds = str(int(deadline_seconds * 1000))
    return create_async_engine(
        asyncpg_url(url),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=deadline_seconds,
        isolation_level=isolation,
        connect_args={
            "timeout": deadline_seconds,
            "server_settings": {
                "application_name": "registry-gateway",
                "synchronous_commit": "on",
                "statement_timeout": milliseconds,
                "lock_timeout": milliseconds,
                # a replica that stands still in the middle must not keep the others from writing
                "idle_in_transaction_session_timeout": milliseconds,
            },
        },
    )
