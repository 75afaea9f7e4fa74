"""`make bench`: one line a figure, ``name value unit promise held|missed``, the same in build/bench.json.

Everything is measured in one run on one machine against a real MLflow server, directly and through the gateway in
interleaved pairs, because shared machines drift. A figure is a fact about this run, not a test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from service.journal import schema
from tests.benchmarks.access import access_figures
from tests.benchmarks.evaluations import evaluations
from tests.benchmarks.keys import keys
from tests.benchmarks.own_time import own_times
from tests.benchmarks.promotion import promotions
from tests.benchmarks.record import record
from tests.benchmarks.tokens import tokens
from tests.conftest import ROOT, TOKENS, free_port, start_mlflow, stop_mlflow, write_configuration
from tests.faults.test_process import ready, start

Figure = tuple[str, float, str, str, bool]
HEADERS = {"Authorization": f"Bearer {TOKENS['user:admin']}"}
CONNECTIONS = 16


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Bench:
    """Collects figures and prints them."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []

    def add(self, name: str, value: float, unit: str, promise: str, held: bool) -> None:
        self.figures.append((name, round(value, 3), unit, promise, held))
        print(f"{name} {value:.3f} {unit} {promise} {'held' if held else 'missed'}", flush=True)

    def write(self) -> None:
        target = ROOT / "build" / "bench.json"
        target.parent.mkdir(exist_ok=True)
        keys = ("name", "value", "unit", "promise", "held")
        target.write_text(json.dumps([dict(zip(keys, item, strict=True)) for item in self.figures], indent=1) + "\n")


def start_up(bench: Bench, config: Path) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    begun = time.perf_counter()
    process = start(config, port)
    ready(port, process)
    seconds = time.perf_counter() - begun
    bench.add("start-to-ready", seconds, "s", "<=3", seconds <= 3)
    return process, port


def resident_mebibytes(parent: int) -> float:
    """Return the resident memory of the largest child of *parent*."""
    done = subprocess.run(["ps", "-o", "rss=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return max(int(line) for line in done.stdout.split()) / 1024


def resident(bench: Bench, process: subprocess.Popen[bytes]) -> None:
    mebibytes = resident_mebibytes(process.pid)
    bench.add("resident-per-worker", mebibytes, "MiB", "<=200", mebibytes <= 200)


async def timed(call: Callable[[], Awaitable[None]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1000


async def paired(
    direct: Callable[[], Awaitable[None]], through: Callable[[], Awaitable[None]], rounds: int
) -> tuple[list[float], list[float]]:
    """Run both in alternating rounds of `CONNECTIONS` calls at once; milliseconds a call."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 2):
        for side, call in ((0, direct), (1, through)) if index % 2 else ((1, through), (0, direct)):
            found = await asyncio.gather(*(timed(call) for _ in range(CONNECTIONS)))
            if index >= 2:  # the first two rounds warm the pools
                times[side].extend(found)
    return times


async def sequential(
    direct: Callable[[], Awaitable[None]], through: Callable[[], Awaitable[None]], rounds: int
) -> tuple[list[float], list[float]]:
    """Alternate single calls; milliseconds a call."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 5):
        pair = (await timed(direct), await timed(through))
        if index >= 5:
            times[0].append(pair[0])
            times[1].append(pair[1])
    return times


async def traffic(bench: Bench, socket: str, port: int, gateway: int) -> None:
    """Time reads, writes and artifacts, directly and through the process *gateway*."""
    async with (
        aiohttp.ClientSession(
            "http://localhost", connector=aiohttp.UnixConnector(socket.removeprefix("unix:"), keepalive_timeout=1.5)
        ) as direct,
        aiohttp.ClientSession(
            f"http://127.0.0.1:{port}", headers=HEADERS, connector=aiohttp.TCPConnector(keepalive_timeout=30)
        ) as through,
    ):

        async def post(session: aiohttp.ClientSession, path: str, **message: object) -> dict:
            async with session.post(f"/api/2.0/mlflow/{path}", json=message) as answer:
                body = await answer.json()
                assert answer.status == 200, body
                return body

        async def get(session: aiohttp.ClientSession, path: str) -> None:
            async with session.get(f"/api/2.0/mlflow/{path}") as answer:
                await answer.read()
                assert answer.status == 200

        run_id = (await post(through, "runs/create", experiment_id="0", start_time=1))["run"]["info"]["run_id"]
        await post(through, "registered-models/create", name="bench")
        await post(through, "model-versions/create", name="bench", source=f"runs:/{run_id}/m", run_id=run_id)
        read = "model-versions/get?name=bench&version=1"
        alone = await sequential(lambda: get(direct, read), lambda: get(through, read), 300)
        own = statistics.median(alone[1]) - statistics.median(alone[0])
        bench.add("read-direct-p50", statistics.median(alone[0]), "ms", "-", True)
        bench.add("read-through-p50", statistics.median(alone[1]), "ms", "-", True)
        bench.add("read-own-time-p50", own, "ms", "<=1", own <= 1)
        busy = await paired(lambda: get(direct, read), lambda: get(through, read), 30)
        ratio = statistics.median(busy[1]) / statistics.median(busy[0])
        bench.add("read-ratio-16-connections", ratio, "ratio", "<=1.25", ratio <= 1.25)

        numbers = iter(range(1_000_000))

        async def write(session: aiohttp.ClientSession) -> None:
            await post(session, "registered-models/set-tag", name="bench", key=f"k{next(numbers) % 50}", value="v")

        alone = await sequential(lambda: write(direct), lambda: write(through), 200)
        ratio = statistics.median(alone[1]) / statistics.median(alone[0])
        bench.add("write-direct-p50", statistics.median(alone[0]), "ms", "-", True)
        bench.add("write-through-p50", statistics.median(alone[1]), "ms", "-", True)
        bench.add("write-ratio", ratio, "ratio", "<=1.3", ratio <= 1.3)
        own_times = [b - a for a, b in zip(*alone, strict=True)]
        own = statistics.median(own_times)
        bench.add("write-own-time-p50", own, "ms", "<=3", own <= 3)
        own99 = percentile(own_times, 0.99)
        bench.add("write-own-time-p99", own99, "ms", "<=10", own99 <= 10)
        await artifacts(bench, direct, through, run_id, gateway)


async def artifacts(
    bench: Bench, direct: aiohttp.ClientSession, through: aiohttp.ClientSession, run_id: str, gateway: int
) -> None:
    """Stream an artifact both ways."""
    size = int(os.environ.get("BENCH_ARTIFACT_MIB", "256")) << 20

    async def body() -> object:
        block = b"x" * (1 << 20)
        for _ in range(size >> 20):
            yield block

    async def up(session: aiohttp.ClientSession, name: str) -> None:
        target = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/{name}"
        async with session.put(target, data=body(), timeout=aiohttp.ClientTimeout(total=300)) as answer:
            assert answer.status == 200, await answer.text()

    async def down(session: aiohttp.ClientSession, name: str) -> None:
        target = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_id}/artifacts/{name}"
        async with session.get(target, timeout=aiohttp.ClientTimeout(total=300)) as answer:
            async for _ in answer.content.iter_chunked(1 << 20):
                pass

    before = resident_mebibytes(gateway)
    for name, move, least in (("upload", up, 0.9), ("download", down, 0.8)):
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(3):
            times[0].append(await timed(lambda move=move: move(direct, "d.bin")))
            times[1].append(await timed(lambda move=move: move(through, "d.bin")))
        ratio = statistics.median(times[0]) / statistics.median(times[1])
        bench.add(f"artifact-{name}-throughput", ratio, "ratio", f">={least}", ratio >= least)
    growth = resident_mebibytes(gateway) - before
    bench.add("artifact-memory-growth", growth, "MiB", "<=20", growth <= 20)


SEARCHERS = (
    ("30-percent-prefix", "user:scientist"),
    ("30-percent-scattered", "user:lead"),
    ("0.1-percent-prefix", "service:ci"),
    ("0.1-percent-names", "user:viewer"),
)


def model_names() -> list[str]:
    return [f"team-{'a' if index < 3_000 else 'b'}-{index:05}" for index in range(10_000)]


def search_rows() -> str:
    """Give each searcher of `SEARCHERS` its share of 10,000 models."""
    names = model_names()
    rows = ["p, group:platform, *, *, *, allow"]
    rows += ["p, user:scientist, main, models/team-a-*, model:read, allow"]
    rows += [f"p, user:lead, main, models/{name}, model:read, allow" for name in names if int(name[-1]) < 3]
    rows += ["p, service:ci, main, models/team-b-0700*, model:read, allow"]
    rows += [f"p, user:viewer, main, models/{name}, model:read, allow" for name in names[500::1000]]
    return "\n".join(rows) + "\n"


async def searches(bench: Bench, directory: Path, socket: str, port: int) -> None:
    """Time a search over 10,000 models, written straight into the server's database."""
    with contextlib.closing(sqlite3.connect(directory / "mlflow.db", timeout=30)) as connection:
        rows = [(name, index, index) for index, name in enumerate(model_names())]
        connection.executemany(
            "INSERT INTO registered_models (name, workspace, creation_time, last_updated_time) "
            "VALUES (?, 'default', ?, ?)",
            rows,
        )
        connection.commit()
    target = "/api/2.0/mlflow/registered-models/search?max_results=100"
    async with aiohttp.ClientSession(
        "http://localhost", connector=aiohttp.UnixConnector(socket.removeprefix("unix:"), keepalive_timeout=1.5)
    ) as direct:
        for name, principal in SEARCHERS:
            headers = {"Authorization": f"Bearer {TOKENS[principal]}"}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as through:

                async def find(session: aiohttp.ClientSession, least: int) -> None:
                    async with session.get(target) as answer:
                        found = await answer.json()
                        assert len(found.get("registered_models", ())) >= least, found

                least = 100 if name.startswith("30") else 10
                times = await sequential(
                    lambda direct=direct: find(direct, 100), lambda s=through, n=least: find(s, n), 30
                )
                ratio = statistics.median(times[1]) / statistics.median(times[0])
                bench.add(f"search-{name}", ratio, "ratio", "<=1.5", ratio <= 1.5)


def main() -> int:
    bench = Bench()
    access_figures(bench)
    tokens(bench)
    keys(bench)
    promotions(bench)
    evaluations(bench)
    record(bench)
    own_times(bench)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        server = start_mlflow(directory / "m")
        (directory / "rows.csv").write_text(search_rows())
        access = {"model": str(ROOT / "policies/model.conf"), "rows": "rows.csv"}
        registries = {"main": {"kind": "mlflow", "url": server.url}}
        config = write_configuration(directory, registries=registries, access=access)
        schema.upgrade(f"sqlite:///{directory / 'journal.db'}")
        process, port = start_up(bench, config)
        try:
            asyncio.run(searches(bench, directory / "m", server.url, port))
            asyncio.run(traffic(bench, server.url, port, process.pid))
            resident(bench, process)
            urllib.request.urlopen(f"http://127.0.0.1:{port}/livez").read()
        finally:
            process.terminate()
            process.wait(timeout=40)
            stop_mlflow(server)
    bench.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
