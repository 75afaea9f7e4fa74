"""Figures of the record: a governed write's own time, events a second, and a flood of denials.

Each on both databases, over a registry in memory, in this process.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

import psutil

from service.app import Application
from service.audit import Operation, Trail
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.change import TagSet
from service.floods import Refusals
from service.journal.store import SqlJournal
from service.model import Call, Decision, Need, Principal
from service.settings import load
from tests.client import Client
from tests.conftest import Running, new_journal, write_configuration
from tests.postgres import Postgres

WRITES = 300
CALLERS = 64
SECONDS = 3.0
DENIALS = 100_000


class Bench(Protocol):
    """Where figures go."""

    def add(self, name: str, value: float, unit: str, promise: str, held: bool) -> None:
        """Take one figure."""


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@asynccontextmanager
async def application(directory: Path, url: str) -> AsyncIterator[Running]:
    (directory / "secret").write_bytes(b"s" * 32)
    changes = {"journal": {"url": url}, "secret_file": str(directory / "secret"), "audit": {"sinks": []}}
    configuration = load(write_configuration(directory, **changes), environ={})
    memory = MemoryTransport()
    made = Application(configuration, backends={"main": MlflowBackend("main", memory)}, sinks=[])
    async with made._lifespan(made.litestar):
        yield Running(made, memory)


async def writes(bench: Bench, name: str, directory: Path, url: str) -> None:
    """Time a governed write; the registry answers at once, so all of it is our own. Between two, time a plain fsync."""
    times, fsyncs = [], []
    async with application(directory, url) as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        with (directory / "fsync").open("wb", buffering=0) as file:
            for index in range(WRITES):
                begun = time.perf_counter()
                key = f"k{index % 50}"
                answer = await client.rpc("POST", "registered-models/set-tag", name="iris", key=key, value="v")
                times.append((time.perf_counter() - begun) * 1000)
                assert answer.status == 200
                begun = time.perf_counter()
                file.write(b"x" * 4096)
                os.fsync(file.fileno())
                fsyncs.append((time.perf_counter() - begun) * 1000)
    p50, p99, fsync = statistics.median(times), percentile(times, 0.99), statistics.median(fsyncs)
    bench.add(f"record-write-own-p50-{name}", p50, "ms", "<=3", p50 <= 3)
    bench.add(f"record-write-own-p99-{name}", p99, "ms", "<=10", p99 <= 10)
    bench.add(f"record-fsync-p50-{name}", fsync, "ms", "-", True)
    bench.add(f"record-write-in-fsyncs-{name}", p50 / fsync, "ratio", "-", True)


async def events(bench: Bench, name: str, url: str) -> None:
    """Count events that one process makes durable, each change its intent and its outcome."""
    journal = SqlJournal(url)
    await journal.start()
    trail, done, end = Trail(journal, "/bench"), 0, time.perf_counter() + SECONDS

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end:
            done += 1
            what = TagSet(f"m{number}", "", "k", str(done))
            need = Need("tag:set", f"models/m{number}/tags/k")
            call = Call(principal=Principal("user:u"), registry="main", name="setTag", needs=(need,), change=what)
            operation = Operation.opened(call, time.time())
            operation.digest = f"{number}-{done}"
            await trail.intent(operation)
            await trail.outcome(operation, "succeeded")

    begun = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    rate = 2 * done / (time.perf_counter() - begun)
    await journal.close()
    bench.add(f"record-events-per-second-{name}", rate, "1/s", "-", True)


async def flood(bench: Bench, directory: Path, url: str) -> None:
    """Record denials as fast as they come."""
    journal = SqlJournal(url)
    await journal.start()
    trail = Trail(journal, "/bench")
    trail.floods = refusals = Refusals(trail, 300)
    need = Need("model:delete", "models/iris")
    call = Call(principal=Principal("user:u"), registry="main", name="deleteModel", needs=(need,))
    gc.collect()
    before = psutil.Process().memory_info().rss
    begun = time.perf_counter()
    for _ in range(DENIALS):
        operation = Operation.opened(call, 1000.0)
        operation.decision = Decision()
        await trail.refused(operation, "denied")
    rate = DENIALS / (time.perf_counter() - begun)
    await refusals.flush()
    grown = (psutil.Process().memory_info().rss - before) / (1 << 20)
    await journal.close()
    with sqlite3.connect(directory / "journal.db") as connection:
        rows = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        summed = connection.execute("SELECT sum(json_extract(body, '$.data.count')) FROM events").fetchone()[0]
    assert rows - 1 + summed == DENIALS, (rows, summed)
    bench.add("flood-denials-per-second", rate, "1/s", ">=10000", rate >= 10_000)
    bench.add("flood-journal-rows", rows, "rows", "<=301", rows <= 301)
    bench.add("flood-memory-growth", grown, "MiB", "<=20", grown <= 20)


async def all_of(bench: Bench, folder: Path) -> None:
    for name in ("sqlite", "postgresql"):
        for part in ("writes", "events"):
            directory = folder / f"{name}-{part}"
            await asyncio.to_thread(directory.mkdir)
            server = Postgres(directory / "pg") if name == "postgresql" else None
            url = await server.database() if server else f"sqlite:///{directory}/journal.db"
            await asyncio.to_thread(new_journal, url)
            if part == "writes":
                await writes(bench, name, directory, url)
            else:
                await events(bench, name, url)
            if server:
                server.stop()
    directory = folder / "flood"
    await asyncio.to_thread(directory.mkdir)
    await asyncio.to_thread(new_journal, f"sqlite:///{directory}/journal.db")
    await flood(bench, directory, f"sqlite:///{directory}/journal.db")


def record(bench: Bench) -> None:
    """Measure all of it."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(all_of(bench, Path(folder)))


if __name__ == "__main__":
    from tests.benchmarks.bench import Bench as Printing

    record(Printing())
