"""Figures of promotion: a verdict of ten rules, and what a promotion asks of the registry and costs of our own."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Protocol

from service.app import Application
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.journal import schema
from service.model import Answer, Principal, Request
from service.promotion.facts import LANGUAGE, Facts, VersionFacts
from service.promotion.gate import Environment, Mark, Rule
from service.records import ModelVersion, Run
from service.settings import load
from tests.client import Client
from tests.conftest import Running, write_configuration
from tests.promotion.flow import ask, promote, register, satisfy, simple

PROMOTIONS = 200


class Bench(Protocol):
    """Where figures go."""

    def add(self, name: str, value: float, unit: str, promise: str, held: bool) -> None:
        """Take one figure."""


def verdicts(bench: Bench) -> None:
    """Time a verdict of ten rules over prepared facts."""
    rules = tuple(
        Rule(f"rule-{index}", LANGUAGE.compile(f"candidate.metrics.m{index} >= 0.9 && candidate.tags.team != ''"), "b")
        for index in range(10)
    )
    gate = Environment("production", "*", "*", (Mark("alias", "champion"),), None, rules)
    version = ModelVersion("m", "1", "READY", "None", "runs:/r/m", "r", (), {"team": "a"}, 1, "", {})
    run = Run("r", "1", "FINISHED", "", {f"m{index}": 0.95 for index in range(10)}, {}, {}, ())
    facts = Facts(VersionFacts(version, run), None, (), (), Principal("user:a"), "", 1.0, "d")
    took = []
    for _ in range(2000):
        began = time.perf_counter()
        gate.judge(facts, "main")
        took.append((time.perf_counter() - began) * 1e6)
    took.sort()
    bench.add("verdict-of-ten-rules-p50", took[len(took) // 2], "us", "<=1000", took[len(took) // 2] <= 1000)


class Counting(MemoryTransport):
    """Counts what is asked of the registry, and how long it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.seconds = 0.0

    async def send(self, request: Request, *, writes: bool, trace: str = "") -> Answer:
        """Answer from memory."""
        self.asked[request.rpc.rpartition(".")[2]] += 1
        began = time.perf_counter()
        try:
            return await super().send(request, writes=writes, trace=trace)
        finally:
            self.seconds += time.perf_counter() - began

    async def get(self, path: str, query: list[tuple[str, str]], limit: int) -> bytes | None:
        """Read a file of a version."""
        self.asked["getArtifact"] += 1
        return await super().get(path, query, limit)


async def own_time(bench: Bench) -> None:
    """Time promotions over a registry in memory: what is left is ours. Count what each asks of the registry."""
    for name in ("no-rules", "shipped-rules"):
        with tempfile.TemporaryDirectory() as folder:
            changes = {"environments": simple(Path(folder))} if name == "no-rules" else {}
            configuration = load(write_configuration(Path(folder), **changes), environ={})
            schema.upgrade(configuration.journal_url())
            transport = Counting()
            application = Application(configuration, backends={"main": MlflowBackend("main", transport)}, sinks=[])
            async with application._lifespan(application.litestar):  # as a server would
                took = await _promotions(Running(application, transport), transport, name)
        asked = ", ".join(f"{rpc} {count / PROMOTIONS:g}" for rpc, count in sorted(transport.asked.items()))
        print(f"# promotion, {name}: each asks {asked}", flush=True)
        calls = sum(transport.asked.values()) / PROMOTIONS
        bench.add(f"promotion-upstream-calls-{name}", calls, "calls", "-", held=True)
        p50, p99 = took[len(took) // 2], took[int(len(took) * 0.99)]
        bench.add(f"promotion-own-{name}-p50", p50, "ms", "<=3", p50 <= 3)
        bench.add(f"promotion-own-{name}-p99", p99, "ms", "<=10", p99 <= 10)


async def _promotions(it: Running, transport: Counting, name: str) -> list[float]:
    client = Client(it.application.asgi)
    took, asked = [], Counter[str]()
    for _ in range(PROMOTIONS):
        version = await register(it, client)
        if name == "shipped-rules":
            await satisfy(client, version)
        transport.asked.clear()
        transport.seconds = 0.0
        began = time.perf_counter()
        answer = await (promote(client, version) if name == "shipped-rules" else ask(client, "promotions", version))
        took.append((time.perf_counter() - began - transport.seconds) * 1000)
        assert answer.status == 200, answer.body
        asked += transport.asked
    transport.asked = asked
    return sorted(took)


def promotions(bench: Bench) -> None:
    """Print every figure of promotion."""
    verdicts(bench)
    asyncio.run(own_time(bench))
