"""Figures of decisions for other services: one, and a hundred in a call; an explanation; the demo policy's coverage.

In one process over a registry in memory, HTTP left out: ``python -m tests.benchmarks.evaluations`` prints them alone.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from service.app import Application
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.journal import schema
from service.policy_tests import run_tables, snapshot_of, tables_in
from service.settings import load
from tests.client import Client
from tests.conftest import ROOT, write_configuration

CALLS = 200
SUBJECT = {"type": "service", "id": "ci", "properties": {"groups": ["group:ci", "group:t1"]}}


class Bench(Protocol):
    """Where figures go."""

    def add(self, name: str, value: float, unit: str, promise: str, held: bool) -> None:
        """Take one figure."""


def rows(count: int) -> str:
    """Give the shipped rows and *count* more, over a hundred roles."""
    more = [f"p, role:r{index % 100}, main, models/m{index}, model:read, allow" for index in range(count)]
    more += [f"g, group:t{index}, role:r{index}" for index in range(100 if count else 0)]
    return "\n".join([(ROOT / "policies/policy.csv").read_text(), *more, ""])


def question(index: int) -> dict[str, Any]:
    return {"resource": {"type": "registry", "id": f"main/models/m{index}"}}


async def own_time(bench: Bench, count: int) -> None:
    """Time calls of the whole application but its server."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "policy.csv").write_text(rows(count))
        access = {"model": str(ROOT / "policies/model.conf"), "rows": str(directory / "policy.csv")}
        configuration = load(write_configuration(directory, access=access), environ={})
        schema.upgrade(configuration.journal_url())
        backends = {"main": MlflowBackend("main", MemoryTransport())}
        application = Application(configuration, backends=backends, sinks=[])
        asked = {"subject": SUBJECT, "action": {"name": "model:read"}}
        hundred = {**asked, "evaluations": [question(index) for index in range(100)]}
        explain = "/v1/access/explain?registry=main&resource=models/m1&action=model:read&subject=user:x&group=group:t1"
        async with application._lifespan(application.litestar):
            client = Client(application.asgi)
            for name, method, target, body in (
                ("evaluation", "POST", "/access/v1/evaluation", {**asked, **question(1)}),
                ("evaluations-100", "POST", "/access/v1/evaluations", hundred),
                ("explain", "GET", explain, None),
            ):
                took = []
                for _ in range(CALLS if method == "POST" else CALLS // 10):
                    began = time.perf_counter()
                    answer = await client(method, target, body)
                    took.append((time.perf_counter() - began) * 1000)
                    assert answer.status == 200, answer.body
                took.sort()
                bench.add(f"{name}-{count}-rows-p50", took[len(took) // 2], "ms", "-", held=True)
                bench.add(f"{name}-{count}-rows-p99", took[int(len(took) * 0.99)], "ms", "-", held=True)


def coverage(bench: Bench) -> None:
    """Say how much of the demo policy its tests exercise."""
    with tempfile.TemporaryDirectory() as folder:
        configuration = load(write_configuration(Path(folder)), environ={})
        tables, _ = tables_in(ROOT / "policies/tests")
        _, found = run_tables(snapshot_of(configuration), configuration.settings.registries, tables)
    bench.add("demo-policy-coverage", found.percent, "%", "100", found.percent == 100)


def evaluations(bench: Bench) -> None:
    """Print every figure of decisions for others."""
    coverage(bench)
    for count in (0, 10_000):
        asyncio.run(own_time(bench, count))


class _Printed:
    def add(self, name: str, value: float, unit: str, promise: str, held: bool) -> None:
        print(f"{name} {value:.3f} {unit} {promise} {'held' if held else 'missed'}", flush=True)


if __name__ == "__main__":
    evaluations(_Printed())
