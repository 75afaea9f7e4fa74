"""The faults, by name: each does one thing to a running gateway with traffic, and takes it back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil

from tests.faults.deployment import PASS_ON, Deployment
from tests.faults.failpoints import FAILPOINTS
from tests.postgres import execute

Figures = dict[str, Any]
Fault = Callable[[Deployment], Awaitable[Figures]]
SQLITE, POSTGRES = "sqlite", "postgresql"
BOTH = (SQLITE, POSTGRES)
FAULTS: dict[str, tuple[Fault, tuple[str, ...]]] = {}


def fault(name: str, *databases: str) -> Callable[[Fault], Fault]:
    def added(function: Fault) -> Fault:
        FAULTS[name] = (function, databases or BOTH)
        return function

    return added


async def _restart(it: Deployment) -> Figures:
    begun = time.monotonic()
    await it.start()
    await it.recovered()
    return {"slowest_recovery": time.monotonic() - begun}


# what happens to the process


@fault("kill -9 at random")
async def _kill(it: Deployment) -> Figures:
    it.begin_traffic()
    await it.flowing(1)
    await asyncio.sleep(it.chance.random() * 0.3)  # the moment of death is the experiment
    await it.kill()
    await it.end_traffic()
    return await _restart(it)


def _failpoint(name: str) -> Fault:
    async def at(it: Deployment) -> Figures:
        it.begin_traffic()
        await it.flowing(1)
        it.failpoint.write_text(f"{name}:{it.chance.randint(1, 20)}")
        assert await it.died(30), name
        it.failpoint.write_text("")
        await it.end_traffic()
        return await _restart(it)

    return at


for _name in FAILPOINTS:
    FAULTS[f"kill -9 {_name}"] = (_failpoint(_name), BOTH)


@fault("kill -9 after-forward")
async def _kill_between(it: Deployment) -> Figures:
    """The request is at the registry, its answer is not here."""
    witness, wanted = it.upstream.witness, it.chance.randint(1, 20)
    assert witness is not None
    seen = 0

    async def kill(request: Any) -> None:
        nonlocal seen
        await witness(request)
        seen += 1
        if seen == wanted:
            await it.kill()

    it.upstream.witness = kill
    it.begin_traffic()
    assert await it.died(30)
    await it.end_traffic()
    it.upstream.witness = witness
    return await _restart(it)


@fault("SIGTERM")
async def _sigterm(it: Deployment) -> Figures:
    before = set(await asyncio.to_thread(it.checker.open_operations))
    it.begin_traffic()
    await it.flowing(5)
    assert await it.terminate() == 0
    await it.end_traffic()
    left = set(await asyncio.to_thread(it.checker.open_operations)) - before
    assert not left, left  # a stop leaves nothing to the next start
    return await _restart(it)


@fault("grace exceeded: SIGTERM, SIGKILL")
async def _grace(it: Deployment) -> Figures:
    it.begin_traffic()
    await it.flowing(5)
    it.upstream.swallow_answers_to = "mlflow"
    await it.flowing(1)
    assert it.process is not None
    it.process.terminate()
    await asyncio.sleep(0.1)
    await it.kill()
    await it.end_traffic()
    it.upstream.heal()
    return await _restart(it)


@fault("clients hang up")
async def _hang_up(it: Deployment) -> Figures:
    it.begin_traffic(hang_up=True)
    await it.flowing(30)
    await it.end_traffic()
    return {"slowest_recovery": await it.recovered()}


@fault("clock stepped by an hour")
async def _clock(it: Deployment) -> Figures:
    it.begin_traffic()
    for offset in (3600, 0, -3600, 0):
        it.clock.write_text(str(offset))
        await asyncio.sleep(0.1)
        await it.flowing(10)
        if it.chance.random() < 0.3:
            await it.kill()
            await it.start()
    await it.end_traffic()
    return {"slowest_recovery": await it.recovered()}


# what happens to the registry


def _upstream(**how: Any) -> Fault:
    async def broken(it: Deployment) -> Figures:
        it.begin_traffic()
        await it.flowing(5)
        for name, value in how.items():
            setattr(it.upstream, name, value)
        await asyncio.sleep(0.3)
        it.upstream.heal()
        await it.flowing(1)
        await it.end_traffic()
        return {"slowest_recovery": await it.recovered()}

    return broken


FAULTS["registry: black hole"] = (_upstream(black_hole=True), BOTH)
FAULTS["registry: done, answer dropped"] = (_upstream(drops_after=b"POST"), BOTH)
FAULTS["registry: broken before it"] = (_upstream(breaks_at=b"POST"), BOTH)
FAULTS["registry: request cut"] = (_upstream(cut_request_after=150), BOTH)
FAULTS["registry: answer cut"] = (_upstream(cut_answer_after=40), BOTH)
FAULTS["registry: 0.2 s slower"] = (_upstream(latency_seconds=0.2), BOTH)


@fault("registry: reset and refused")
async def _refused(it: Deployment) -> Figures:
    it.begin_traffic()
    await it.flowing(5)
    await it.upstream.stop()
    await asyncio.sleep(0.2)
    await it.upstream.start()
    await it.flowing(1)
    await it.end_traffic()
    return {"slowest_recovery": await it.recovered()}


# what happens to the journal


async def refuses(it: Deployment) -> Figures:
    """See that changes are refused in time, that none reaches the registry, and that reads go on."""
    before = len(it.upstream.log)
    begun = time.monotonic()
    statuses, read = await asyncio.gather(asyncio.gather(*(it.change() for _ in range(3))), it.read())
    refused = time.monotonic() - begun
    assert set(statuses) == {503}, statuses
    assert len(it.upstream.log) == before, it.upstream.log[before:]
    return {"slowest_refusal": refused, "reads_failed": int(read != PASS_ON)}


def _without_journal(gone: Callable[[Deployment], Any]) -> Fault:
    async def broken(it: Deployment) -> Figures:
        it.begin_traffic()
        await it.flowing(5)
        async with gone(it):
            await it.end_traffic()
            figures = await refuses(it)
        return {**figures, "slowest_recovery": await it.recovered()}

    return broken


def journal_fault(name: str, *databases: str) -> Callable[[Callable], Callable]:
    def added(function: Callable) -> Callable:
        FAULTS[name] = (_without_journal(asynccontextmanager(function)), databases)
        return function

    return added


@journal_fault("journal: locked by another", SQLITE)
async def _locked(it: Deployment) -> AsyncIterator[None]:
    opened = sqlite3.connect(it.journal, isolation_level=None, timeout=20, check_same_thread=False)
    with contextlib.closing(opened) as other:
        await asyncio.to_thread(other.execute, "BEGIN EXCLUSIVE")  # it waits for its turn
        yield
        other.execute("ROLLBACK")


@journal_fault("journal: file deleted", SQLITE)
async def _deleted(it: Deployment) -> AsyncIterator[None]:
    aside = it.journal.with_name("aside.db")
    it.journal.rename(aside)
    yield
    aside.rename(it.journal)


@journal_fault("journal: another in its place", SQLITE)
async def _replaced(it: Deployment) -> AsyncIterator[None]:
    aside, other = it.journal.with_name("aside.db"), it.journal.with_name("other.db")
    with contextlib.closing(sqlite3.connect(it.journal)) as connection:
        connection.execute("VACUUM INTO ?", (str(other),))
    await it.change()  # the copy is older than the journal
    it.journal.rename(aside)
    other.rename(it.journal)
    yield
    aside.rename(it.journal)


@journal_fault("journal: made immutable", SQLITE)
async def _immutable(it: Deployment) -> AsyncIterator[None]:
    files = [str(it.journal), f"{it.journal}-wal"]  # root ignores modes
    await asyncio.to_thread(subprocess.run, ["chattr", "+i", *files], check=True)
    try:
        yield
    finally:
        await asyncio.to_thread(subprocess.run, ["chattr", "-i", *files], check=True)


@journal_fault("journal: no room (file size limit)", SQLITE)
async def _no_room(it: Deployment) -> AsyncIterator[None]:
    assert it.process is not None
    family = [it.process.pid, *(child.pid for child in psutil.Process(it.process.pid).children(recursive=True))]
    for pid in family:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    yield
    for pid in family:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@journal_fault("journal: disk full", SQLITE)
async def _disk_full(it: Deployment) -> AsyncIterator[None]:
    filler = it.directory / "filler"  # the directory is a small file system of its own

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)

    await asyncio.to_thread(fill)
    yield
    filler.unlink()


@fault("journal: log deleted, then kill -9", SQLITE)
async def _log_deleted(it: Deployment) -> Figures:
    it.begin_traffic()
    await it.flowing(5)
    it.journal.with_name("journal.db-wal").unlink(missing_ok=True)
    await it.flowing(it.chance.randint(1, 10))
    await it.kill()
    await it.end_traffic()
    return await _restart(it)


def _signalled(number: int) -> Callable[[Deployment], AsyncIterator[None]]:
    async def gone(it: Deployment) -> AsyncIterator[None]:
        assert it.postgres is not None
        it.postgres.signal(number)
        yield
        it.postgres.signal(signal.SIGCONT)

    return gone


journal_fault("journal: server stands still", POSTGRES)(_signalled(signal.SIGSTOP))


@journal_fault("journal: server killed", POSTGRES)
async def _server_killed(it: Deployment) -> AsyncIterator[None]:
    assert it.postgres is not None
    await asyncio.to_thread(it.postgres.kill)
    yield
    await asyncio.to_thread(it.postgres.start)


@journal_fault("journal: black hole", POSTGRES)
async def _database_black_hole(it: Deployment) -> AsyncIterator[None]:
    assert it.database is not None
    it.database.black_hole = True
    yield
    it.database.heal()


@journal_fault("journal: reset and refused", POSTGRES)
async def _database_refused(it: Deployment) -> AsyncIterator[None]:
    assert it.database is not None
    await it.database.stop()
    yield
    await it.database.start()


@journal_fault("journal: another holds its turn", POSTGRES)
async def _turn_held(it: Deployment) -> AsyncIterator[None]:
    import asyncpg

    connection = await asyncpg.connect(it.checker.url)
    try:
        await connection.execute("SELECT pg_advisory_lock(5394, 1)")
        yield
    finally:
        await connection.close()


@journal_fault("journal: no connection left", POSTGRES)
async def _no_connection(it: Deployment) -> AsyncIterator[None]:
    assert it.database is not None
    parts = it.checker.url.rpartition("/")[2].partition("?")[0]
    assert it.postgres is not None
    await execute(it.postgres.admin_url, f"ALTER DATABASE {parts} ALLOW_CONNECTIONS false")
    it.database.reset()
    try:
        yield
    finally:
        await execute(it.postgres.admin_url, f"ALTER DATABASE {parts} ALLOW_CONNECTIONS true")


def _at_commit(how: str) -> Fault:
    async def broken(it: Deployment) -> Figures:
        assert it.database is not None
        it.begin_traffic()
        for _ in range(5):
            await it.flowing(3)
            setattr(it.database, how, b"COMMIT;")
            await asyncio.sleep(0.05 + it.chance.random() * 0.1)
            it.database.heal()
        await it.flowing(1)
        await it.end_traffic()
        return {"slowest_recovery": await it.recovered()}

    return broken


FAULTS["journal: committed, answer dropped"] = (_at_commit("drops_after"), (POSTGRES,))
FAULTS["journal: broken before COMMIT"] = (_at_commit("breaks_at"), (POSTGRES,))


@fault("journal: server restarted in traffic", POSTGRES)
async def _server_restarted(it: Deployment) -> Figures:
    assert it.postgres is not None
    it.begin_traffic()
    await it.flowing(5)
    begun = time.monotonic()
    await asyncio.to_thread(it.postgres.kill)
    await asyncio.to_thread(it.postgres.start)
    await it.flowing(1)
    recovered = time.monotonic() - begun
    await it.end_traffic()
    await it.recovered()
    return {"slowest_recovery": recovered}


def possible(name: str) -> bool:
    """Tell whether the machine lets this fault be made."""
    if name == "journal: disk full":
        return os.geteuid() == 0 and shutil.which("mount") is not None
    if name == "journal: made immutable":
        return os.geteuid() == 0 and shutil.which("chattr") is not None
    return True
