"""Makes faults and prints the table of faults and promises: ``python -m tests.faults.long``; figures add up over runs.

FAULTS_TRIALS of each fault (20), FAULTS_KILLS kills -9 in all (1000), FAULTS_ONLY names some, FAULTS_ADD=1 adds to
what earlier runs left in build/faults.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import ROOT
from tests.faults.checker import Counts
from tests.faults.deployment import deployed
from tests.faults.faults import BOTH, FAULTS, SQLITE, possible
from tests.postgres import Postgres

OUT = ROOT / "build/faults.json"
_KIB = 48 << 10
HEAD = ("fault", "database", "trials", "calls", "changes", "w/o intent", "open", "double", "untold", "sinks", "broken")


@contextmanager
def small_file_system(directory: Path, name: str) -> Iterator[None]:
    """Make *directory* a file system that can be filled, for the fault that does so."""
    directory.mkdir(parents=True, exist_ok=True)
    if name != "journal: disk full":
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_KIB}k", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


async def run(name: str, database: str, trials: int, directory: Path) -> Counts:
    """Make one fault *trials* times on one journal; count what holds."""
    function, _ = FAULTS[name]
    counts = Counts()
    with contextlib.ExitStack() as stack:  # in a thread: who blocks the loop makes others look slow
        await asyncio.to_thread(stack.enter_context, small_file_system(directory, name))
        postgres = await asyncio.to_thread(stack.enter_context, postgres_in(directory / "pg", database))
        try:
            async with deployed(directory, postgres) as it:
                for _ in range(trials):
                    counts.add(await function(it))
                    counts.trials += 1
                await it.settled()
                counts.add(await it.counted())
        finally:
            await asyncio.to_thread(stack.close)
    return counts


@contextmanager
def postgres_in(directory: Path, database: str) -> Iterator[Postgres | None]:
    """Run a server of this fault's own."""
    if database == SQLITE:
        yield None
        return
    server = Postgres(directory)
    try:
        yield server
    finally:
        server.signal(signal.SIGCONT)
        server.stop()


def names() -> list[str]:
    only = os.environ.get("FAULTS_ONLY", "")
    return [name for name in FAULTS if only in name and possible(name)]


def trials_of(name: str) -> int:
    kills = [other for other in FAULTS if other.startswith("kill -9")]
    if name in kills:
        return max(1, int(os.environ.get("FAULTS_KILLS", "1000")) // (len(kills) * len(BOTH)))
    return int(os.environ.get("FAULTS_TRIALS", "20"))


def table(found: dict[str, dict]) -> str:
    lines = ["| " + " | ".join(HEAD) + " | refused s | recovered s |", "|---" * (len(HEAD) + 2) + "|"]
    for key, item in found.items():
        counts = Counts(**item)
        cells = [
            *key.split(" @ "),
            *(counts.trials, counts.calls, counts.changes, counts.without_intent, counts.open, counts.double),
            *(counts.untold, counts.only_in_sinks, counts.not_intact + counts.reads_failed),
            *(f"{counts.slowest_refusal:.2f}", f"{counts.slowest_recovery:.2f}"),
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    kills = sum(item["trials"] for key, item in found.items() if key.startswith("kill -9"))
    every = Counts()
    for item in found.values():
        every.add(item)
    lines.append(
        f"kills -9 {kills}, trials {every.trials}, changes {every.changes}, without intent {every.without_intent}, "
        f"open after 30 s {every.open}, double outcomes {every.double}, slowest refusal {every.slowest_refusal:.2f} s"
    )
    return "\n".join(lines)


async def main() -> int:
    found: dict[str, dict] = json.loads(OUT.read_text()) if os.environ.get("FAULTS_ADD") and OUT.exists() else {}
    failed: list[str] = []
    places = asyncio.Semaphore(int(os.environ.get("FAULTS_AT_ONCE", "2")))

    async def one(index: int, name: str, database: str) -> None:
        key = f"{name} @ {database}"
        async with places:
            begun = time.monotonic()
            try:
                counts = await run(name, database, trials_of(name), folder / f"{index}-{database}")
            except Exception as error:  # noqa: BLE001  # the others are made all the same
                failed.append(f"{key}: {type(error).__name__}: {error}")
                print(failed[-1], file=sys.stderr, flush=True)
                return
        if counts.broken():
            failed.append(f"{key}: {counts.broken()}")
        print(f"{key}: {time.monotonic() - begun:.0f} s {counts}", file=sys.stderr, flush=True)
        all_of = Counts(**found.get(key, {}))
        all_of.add(counts.document())
        found[key] = all_of.document()
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(found, indent=1) + "\n")

    with tempfile.TemporaryDirectory(prefix="f") as temporary:
        folder = Path(temporary)
        pairs = [(name, database) for name in names() for database in FAULTS[name][1]]
        await asyncio.gather(*(one(index, *pair) for index, pair in enumerate(pairs)))
    print(table(found))
    print("\n".join(failed) or "every promise held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
