"""The replicas that use a journal on PostgreSQL: leases, claims and judgings, on one connection of each process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import asyncpg
import structlog

from service.errors import Busy, JournalUnavailable
from service.held import LockLost
from service.journal.database import FAILURES
from service.journal.locks import key_of
from service.journal.session import CHANNEL, LEASE_SECONDS, UNKNOWN, Session
from service.patience import waiting as patient_for
from service.replicas import Judged, Judging, Published
from service.tasks import end

T = TypeVar("T")
_PACE_SECONDS = 1.0
_TRIES = 5
"""So often what one question may take, a start waits to join, and whoever asks waits for all before it."""
_ANSWER_SECONDS = LEASE_SECONDS + 1.0
_BEAT = """
    INSERT INTO replicas (source, seen_at) VALUES ($1, extract(epoch FROM clock_timestamp()))
    ON CONFLICT (source) DO UPDATE SET seen_at = excluded.seen_at
"""
_ALL = "SELECT source, seen_at FROM replicas"
_FORGET = "DELETE FROM replicas WHERE seen_at < extract(epoch FROM clock_timestamp()) - 3600"
_PUBLISH = """
    WITH made AS (
        INSERT INTO judgings (id, source, operation, registry, model, environment, version, behind)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    )
    SELECT pg_notify('registry_gateway_replicas', 'judgings')
"""
_ENDED = """
    WITH gone AS (DELETE FROM judgings WHERE id = ANY($1)) SELECT pg_notify('registry_gateway_replicas', 'judgings')
"""
_UNSETTLED = """
    WITH open AS (UPDATE judgings SET source = '' WHERE id = ANY($1))
    SELECT pg_notify('registry_gateway_replicas', 'judgings')
"""
_OTHERS = "SELECT * FROM judgings WHERE source <> $1"
_SWEEP = """
    DELETE FROM judgings USING judgings AS j LEFT JOIN operations AS o ON o.id = j.operation
    WHERE judgings.id = j.id AND coalesce(o.state, '') NOT IN ('open', 'unknown')
    AND j.source <> ALL($1)
"""
"""What nobody judges any more, and of which the outcome is known or will never be: the judge ended or was cut off."""
_CLAIM = "SELECT pg_try_advisory_lock($1)"
_RELEASE = "SELECT pg_advisory_unlock($1)"
_log = structlog.get_logger()


class PostgresReplicas:
    """The processes that use one journal (see `service.replicas.Replicas`)."""

    def __init__(self, url: str, connect_seconds: float) -> None:
        """Meet them on the server of the journal *url*."""
        self._session = Session(url, connect_seconds, self._heard, self._lost)
        self._seconds = connect_seconds
        self._source = ""
        self._judged: Judged | None = None
        self._until = 0.0
        self.joined = 0
        """How often this process came to have a lease."""
        self._seen: dict[str, tuple[float, float]] = {}
        """Of each process what it wrote last, and when that was first seen, by the clock of this process."""
        self._waiting: dict[str, _Waiting] = {}
        self._claimed: set[str] = set()
        self._ended: dict[bool, set[str]] = {True: set(), False: set()}
        """Judgings to be let go of: those that are settled, and those whose operation is not."""
        self._look_again = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._started: asyncio.Task[None] | None = None

    def lease(self) -> int:
        """Return the number of the lease in force, 0 if none is; by the own clock, which is never late."""
        return self.joined if time.monotonic() < self._until else 0

    async def start(self, source: str, judged: Judged) -> None:
        """Join them as *source*, and stay. What others judge is known before this returns."""
        self._source, self._judged = source, judged
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started = asyncio.create_task(self._run(first))
        try:
            async with asyncio.timeout(_TRIES * self._seconds):
                await asyncio.shield(first)
        except TimeoutError:
            message = "The journal does not say which other replicas there are."
            raise JournalUnavailable(message) from None

    async def close(self) -> None:
        """Leave them: nobody waits for this process any more."""
        await end(self._started)
        with contextlib.suppress(*FAILURES, JournalUnavailable):
            async with self._session.asking() as connection:
                await self._let_go(connection)
                await connection.execute("DELETE FROM replicas WHERE source = $1", self._source, timeout=1)
        self._session.lose()

    async def living(self) -> frozenset[str]:
        """Name the sources whose lease is in force."""
        async with self._session.asking() as connection:
            return await self._living(connection)

    async def _living(self, connection: asyncpg.Connection) -> frozenset[str]:
        """Name who has renewed its lease lately. No clock of another machine, which can be set, is asked."""
        now, before = time.monotonic(), self._seen
        rows = {row["source"]: row["seen_at"] for row in await connection.fetch(_ALL, timeout=self._seconds)}
        same = {name: before[name] for name, value in rows.items() if before.get(name, (None,))[0] == value}
        self._seen = {name: same.get(name, (value, now)) for name, value in rows.items()}
        living = {name for name, (_, since) in self._seen.items() if now - since < LEASE_SECONDS}
        return frozenset({self._source, *living})

    async def publish(self, judging: Judging) -> Published:
        """Tell the others; return when each of them has sealed what is behind it, or has no lease any more."""
        waiting = self._waiting[judging.id] = _Waiting()
        found = _Published(self, judging.id, self.lease())
        try:
            await self._in_time(self._tell(judging))
            await self._answers(waiting)
            await found.check()
        except (JournalUnavailable, LockLost, TimeoutError):
            found.end(settled=True)
            message = "It cannot be told what other replicas write just now; nothing was changed. Try again."
            raise Busy(message) from None
        except BaseException:
            found.end(settled=True)
            raise
        finally:
            del self._waiting[judging.id]
        return found

    async def _tell(self, judging: Judging) -> None:
        async with self._session.asking() as connection:
            values = dataclasses.asdict(judging) | {"behind": json.dumps(sorted(judging.behind))}
            row = (values.pop("id"), self._source, *values.values())
            await connection.fetch(_PUBLISH, *row, timeout=self._seconds)

    async def _in_time(self, question: Coroutine[Any, Any, T] | asyncio.Task[T]) -> T:
        """Ask, and give up waiting when the present change must; the question goes on to its own end."""
        task = question if isinstance(question, asyncio.Task) else asyncio.create_task(question)
        self._tasks.add(task)
        task.add_done_callback(self._asked)
        async with patient_for(_TRIES * self._seconds):
            return await asyncio.shield(task)

    def _asked(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may wait for it any more

    async def _answers(self, waiting: _Waiting) -> None:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            left = await self._in_time(self.living()) - {self._source} - waiting.sealed
            if waiting.busy:
                message = "Something behind the version is being written just now, in another replica. Try again."
                raise Busy(message)
            if not left:
                return
            if time.monotonic() > deadline:
                message = "Another replica does not say whether something behind the version is being written."
                raise Busy(message)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PACE_SECONDS / 4):
                    await waiting.heard.wait()
            waiting.heard.clear()

    async def answer(self, judging: Judging, *, busy: bool) -> None:
        """Tell who judges what was found. An answer that is lost is waited for as long as the lease."""
        said = json.dumps([judging.id, self._source, busy])
        with contextlib.suppress(JournalUnavailable):
            async with self._session.asking() as connection:
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, said, timeout=self._seconds)

    async def claim(self, names: Sequence[str]) -> str | None:
        """Claim *names*, all or none; return the first that is another's."""
        task = asyncio.create_task(self._claim(names))
        try:
            return await self._in_time(task)
        except (TimeoutError, asyncio.CancelledError) as error:
            self._in_background(self._unclaim(task, names))  # it may be had in the next moment
            if isinstance(error, TimeoutError):
                raise JournalUnavailable(UNKNOWN) from None
            raise

    async def _claim(self, names: Sequence[str]) -> str | None:
        had: list[str] = []
        try:
            async with self._session.asking() as connection:
                for name in names:
                    if not await connection.fetchval(_CLAIM, key_of(name), timeout=self._seconds):
                        return name
                    had.append(name)
                self._claimed.update(had)
                had = []
        finally:
            if had:
                self._in_background(self._give_back(had))
        return None

    async def _unclaim(self, claiming: asyncio.Task[str | None], names: Sequence[str]) -> None:
        if await claiming is None:
            await self.release(names)

    async def release(self, names: Sequence[str]) -> None:
        """Give back what was claimed, also where the caller is cancelled meanwhile."""
        self._claimed.difference_update(names)
        with contextlib.suppress(TimeoutError):
            await self._in_time(self._in_background(self._give_back(names)))

    async def _give_back(self, names: Sequence[str]) -> None:
        async with self._session.asking() as connection:
            for name in names:
                await connection.fetchval(_RELEASE, key_of(name), timeout=self._seconds)

    def end(self, judging: str, *, settled: bool) -> None:
        """Let go of a judging, now or when its operation is settled."""
        self._ended[settled].add(judging)
        self._in_background(self._let_go_soon())

    async def _let_go_soon(self) -> None:
        async with self._session.asking() as connection:
            await self._let_go(connection)

    async def _let_go(self, connection: asyncpg.Connection) -> None:
        for settled, query in ((True, _ENDED), (False, _UNSETTLED)):
            judgings = list(self._ended[settled])
            if judgings:
                await connection.fetch(query, judgings, timeout=self._seconds)
                self._ended[settled].difference_update(judgings)

    def _in_background(self, work: Any) -> asyncio.Task[None]:
        async def run() -> None:
            with contextlib.suppress(JournalUnavailable):  # the connection is lost, and with it what it held
                await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, first: asyncio.Future[None]) -> None:
        while True:
            try:
                await self._stay(first)
            except JournalUnavailable:
                pass  # it is said where it was found
            except Exception as error:  # noqa: BLE001  # it must never end
                _log.error("lost the other replicas", problem=f"{type(error).__name__}: {error}")
                self._session.lose()
            await asyncio.sleep(_PACE_SECONDS)

    async def _stay(self, first: asyncio.Future[None]) -> None:
        """Join, and renew the lease every second until the connection is lost."""
        await self._session.connect()
        await self._beat(joining=True)
        if not first.done():
            first.set_result(None)
        due = time.monotonic() + _PACE_SECONDS
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._look_again.wait()
            self._look_again.clear()
            if time.monotonic() >= due:
                due = time.monotonic() + _PACE_SECONDS
                await self._beat(joining=False)
            else:
                await self._look()

    async def _beat(self, *, joining: bool) -> None:
        """Renew the lease. One that ran out meanwhile is a new one: what was missed is looked for first."""
        begun = time.monotonic()
        async with self._session.asking() as connection:
            await connection.execute(_BEAT, self._source, timeout=self._seconds)
            if joining:
                await connection.execute(_FORGET, timeout=self._seconds)
                for name in self._claimed:
                    await connection.fetchval(_CLAIM, key_of(name), timeout=self._seconds)
            await self._let_go(connection)
            await connection.execute(_SWEEP, list(await self._living(connection)), timeout=self._seconds)
        lapsed = not self.lease()
        await self._look(joining=lapsed)
        if lapsed or not self.lease():
            self.joined += 1
        self._until = begun + LEASE_SECONDS

    async def _look(self, *, joining: bool = False) -> None:
        """Tell what others judge now."""
        async with self._session.asking() as connection:
            rows = await connection.fetch(_OTHERS, self._source, timeout=self._seconds)
        assert self._judged is not None  # start() set it
        await self._judged([_judging(row) for row in rows], joining)

    def _lost(self) -> None:
        self._until = 0.0

    def _heard(self, said: str) -> None:
        if said == "judgings":
            self._look_again.set()
            return
        judging, source, busy = json.loads(said)
        waiting = self._waiting.get(judging)
        if waiting is not None:
            waiting.busy |= busy
            waiting.sealed.add(source)
            waiting.heard.set()


class _Waiting:
    """What the others have answered about one judging."""

    def __init__(self) -> None:
        self.sealed: set[str] = set()
        self.busy = False
        self.heard = asyncio.Event()


class _Published:
    """A judging that the others know of as long as the lease it was made in is in force."""

    def __init__(self, replicas: PostgresReplicas, judging: str, lease: int) -> None:
        self._replicas = replicas
        self._judging = judging
        self._lease = lease

    async def check(self) -> None:
        """Return if the others still keep it.

        Raises:
            LockLost: they may not.
        """
        if self._lease != self._replicas.lease():
            message = "this process was not heard of for a while"
            raise LockLost(message)

    def end(self, *, settled: bool) -> None:
        """Let go of it."""
        self._replicas.end(self._judging, settled=settled)


def _judging(row: Any) -> Judging:
    values = {name: row[name] for name in ("id", "operation", "registry", "model", "environment", "version")}
    return Judging(**values, behind=frozenset(json.loads(row["behind"])))
