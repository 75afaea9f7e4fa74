"""Queries of the journal at a million events: ``python -m tests.benchmarks.journal [EVENTS] [--keep DIR]``."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import random
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

from service.event import build_event, canonical_json
from service.journal import schema
from service.journal.store import SqlJournal
from service.journal.tables import events as table
from service.journal.writes import GENESIS, _columns
from tests.postgres import Postgres

MODELS, ACTORS = 10_000, 500
BEGUN = 1_790_000_000.0
SECONDS = 90 * 86400.0
NAMES = [column.name for column in table.columns]
KINDS = (
    *[("alias:set", "intent", None)] * 20,
    *[("alias:set", "outcome", "succeeded")] * 19,
    ("alias:set", "outcome", "failed"),
    *[("version:create", "intent", None)] * 15,
    *[("version:create", "outcome", "succeeded")] * 15,
    *[("environment:promote", "intent", None)] * 5,
    *[("environment:promote", "outcome", "succeeded")] * 5,
    *[("environment:promote", "rejected", "rejected")] * 5,
    *[("model:read", "denied", "denied")] * 5,
    *[("artifact:write", "summed", "succeeded")] * 10,
)


def columns(number: int, previous: str, chance: random.Random, count: int) -> dict[str, Any]:
    """Make one event and what the journal stores of it."""
    action, phase, outcome = chance.choice(KINDS)
    model = None if phase == "summed" else f"model-{int(MODELS * chance.random() ** 2)}"
    promoted = action == "environment:promote"
    data = {
        "phase": phase,
        "operation": str(uuid.UUID(int=chance.getrandbits(128))),
        "outcome": outcome,
        "actor": {"subject": f"user:{int(ACTORS * chance.random() ** 3)}", "groups": ["group:ci"], "claims": {}},
        "call": "setRegisteredModelAlias",
        "action": action,
        "resource": f"models/{model}/aliases/blue",
        "registry": "lake" if chance.random() < 0.02 else "main",
        "model": model,
        "version": str(1 + int(50 * chance.random() ** 3)) if model else None,
        "environment": chance.choice(("staging", "production")) if promoted else None,
        "decision": {"allowed": True, "revision": "0" * 64, "row": "policy.csv:36"},
        "change": {"kind": "AliasSet", "model": model, "alias": "blue", "padding": "x" * 600},
        "sequence": number,
        "previous": previous,
    }
    event = build_event(action, phase, data, "/registry-gateway/bench", BEGUN + SECONDS * number / count, "main")
    body = canonical_json(event)
    return _columns(event, number, body.decode(), hashlib.sha256(body).hexdigest())


def rows(count: int) -> Iterator[tuple[Any, ...]]:
    """Give the rows of a whole chain of *count* events."""
    chance, previous = random.Random(7), GENESIS
    for number in range(1, count + 1):
        row = columns(number, previous, chance, count)
        previous = row["hash"]
        yield tuple(row[name] for name in NAMES)


def fill_sqlite(url: str, count: int) -> None:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    marks = ",".join("?" * len(NAMES))
    for batch in batches(count):
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO events ({','.join(NAMES)}) VALUES ({marks})", batch)
        connection.execute("COMMIT")
    connection.close()


async def fill_postgres(url: str, count: int) -> None:
    connection = await asyncpg.connect(url)
    for batch in batches(count):
        await connection.copy_records_to_table("events", records=batch, columns=NAMES)
    await connection.execute("VACUUM ANALYZE events")
    await connection.close()


def batches(count: int) -> Iterator[list[tuple[Any, ...]]]:
    every = rows(count)
    while batch := list(itertools.islice(every, 20_000)):
        yield batch


async def fill(url: str, count: int) -> None:
    """Make a journal of *count* events at *url*."""
    await asyncio.to_thread(schema.upgrade, url)
    if url.startswith("sqlite"):
        await asyncio.to_thread(fill_sqlite, url, count)
    else:
        await fill_postgres(url, count)


FILTERS: dict[str, tuple[Any, Any]] = {  # one that many events pass, one that none passes
    "model": ("model-7", "no-model"),
    "version": ("1", "999"),
    "registry": ("lake", "nowhere"),
    "environment": ("production", "no-where"),
    "actor": ("user:3", "user:nobody"),
    "action": ("alias:set", "model:delete"),
    "outcome": ("failed", "unknown"),
    "phase": ("denied", "reconciled"),
    "operation": (None, "none"),
    "since": (BEGUN + SECONDS * 0.6, BEGUN + SECONDS * 2),
    "until": (BEGUN + SECONDS * 0.4, BEGUN - 1),
}


def questions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Ask by every filter alone, and by every two."""
    yield "nothing", {}
    for name, (some, none) in FILTERS.items():
        yield from ((f"{name}={kind}", {name: value}) for kind, value in (("some", some), ("none", none)) if value)
    for one, two in itertools.combinations(FILTERS, 2):
        for kinds in itertools.product((0, 1), repeat=2):
            values = FILTERS[one][kinds[0]], FILTERS[two][kinds[1]]
            if None not in values:
                yield f"{one}+{two}{kinds}", {one: values[0], two: values[1]}


async def ask(url: str, show: int) -> dict[str, float]:
    """Time the first and the last page of every question; milliseconds."""
    journal = SqlJournal(url, deadline_seconds=30)
    await journal.start()
    times: list[tuple[float, str, bool]] = []
    try:
        for name, filters in questions():
            for newest in (False, True):
                best = []
                for _ in range(3):
                    begun = time.perf_counter()
                    found = await journal.page(filters, None, 100, newest_first=newest)
                    best.append((time.perf_counter() - begun) * 1000)
                times.append((sorted(best)[1], f"{name} {'newest' if newest else 'oldest'}", found.incomplete))
    finally:
        await journal.close()
    times.sort()
    for value, name, incomplete in times[-show:]:
        print(f"  {value:8.2f} ms  {name}{' (incomplete)' if incomplete else ''}")
    print(f"  {len(times)} questions, {sum(item[2] for item in times)} of them incomplete")
    return {"p50": times[len(times) // 2][0], "p99": times[int(len(times) * 0.99)][0], "max": times[-1][0]}


async def run(count: int, directory: Path, show: int) -> None:
    server = Postgres(directory / "pg")
    try:
        for kind in ("sqlite", "postgresql"):
            kept = directory / f"{kind}.url"
            if not kept.exists():
                url = f"sqlite:///{directory / 'journal.db'}" if kind == "sqlite" else await server.database()
                begun = time.perf_counter()
                await fill(url, count)
                print(f"{kind}: {count} events in {time.perf_counter() - begun:.0f} s")
                kept.write_text(url)
            figures = await ask(kept.read_text(), show)
            print(kind, json.dumps({name: round(value, 2) for name, value in figures.items()}))
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("events", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--keep", type=Path, help="make the journals here, or use those that are here")
    parser.add_argument("--show", type=int, default=8, help="how many of the slowest are shown")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = options.keep or Path(folder)
        directory.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TZ", "UTC")
        asyncio.run(run(options.events, directory, options.show))


if __name__ == "__main__":
    main()
