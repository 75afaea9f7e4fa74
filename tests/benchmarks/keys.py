"""How long 10,000 API keys take to be read again, and how long the event loop waits meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from service.authentication.api_keys import ApiKeys

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench

KEYS = 10_000
LIMIT_MILLISECONDS = 5.0


def keys(bench: Bench) -> None:
    """Time one reload beside a loop that wants to run every millisecond."""
    seconds, idle, busy = asyncio.run(_reload())
    bench.add(f"key-reload-{KEYS}", seconds, "s", "-", held=True)
    bench.add(
        "key-reload-loop-late-p99",
        busy[int(len(busy) * 0.99)],
        "ms",
        "<=5",
        busy[int(len(busy) * 0.99)] <= LIMIT_MILLISECONDS,
    )
    bench.add("key-reload-loop-late-worst", busy[-1], "ms", "-", held=True)
    bench.add("key-reload-loop-late-worst-idle", idle[-1], "ms", "-", held=True)


def _file(seed: str) -> str:
    return "".join(
        f"- id: key-{index}\n  principal: service:trainer-{index % 500}\n  groups: ['group:ci', 'group:{index % 50}']\n"
        f"  sha256: {hashlib.sha256(f'{seed}{index}'.encode()).hexdigest()}\n"
        "  scopes: [main/model:read, 'main/alias:*']\n  expires: 2090-01-01T00:00:00Z\n"
        for index in range(KEYS)
    )


async def _reload() -> tuple[float, list[float], list[float]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.yaml"
        path.write_text(_file("old"))
        known = ApiKeys(path)
        path.write_text(_file("new"))
        late: list[float] = []

        async def beat() -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                late.append((time.perf_counter() - before - 0.001) * 1000)

        beating = asyncio.create_task(beat())
        await asyncio.sleep(1)
        idle = sorted(late)
        late.clear()
        began = time.perf_counter()
        assert await asyncio.to_thread(known.reload)
        seconds = time.perf_counter() - began
        beating.cancel()
        return seconds, idle, sorted(late)
