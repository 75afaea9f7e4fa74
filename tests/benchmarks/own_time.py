"""The gateway's own time of a governed write: wall less what a registry that keeps the time of its own calls took.

The difference of two calls to a real server holds that server's jitter twice. Here each call's own upstream time is
known. ``python -m tests.benchmarks.own_time`` prints the figures alone.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Protocol

import aiohttp

from service.journal import schema
from tests.conftest import TOKENS, free_port, write_configuration
from tests.faults.test_process import ready, start

WRITES = 300
ANSWERS_AFTER_SECONDS = 0.008
"""As MLflow on SQLite does; meanwhile the gateway's caches grow cold, as they do in production."""
HEADERS = {"Authorization": f"Bearer {TOKENS['user:admin']}"}
_ABSENT = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}'
_MODEL = b'{"registered_model": {"name": "bench", "creation_timestamp": 1}}'


class Bench(Protocol):
    """Where figures go."""

    def add(self, name: str, value: float, unit: str, promise: str, held: bool) -> None:
        """Take one figure."""


class Registry(asyncio.Protocol):
    """Answers what a tag's write asks, and adds up how long that took."""

    seconds = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if end and len(body) >= sum(int(line.partition(b":")[2]) for line in lengths):
            self._received = b""
            target, began = head.split(b" ")[1], time.perf_counter()
            asyncio.get_running_loop().call_later(ANSWERS_AFTER_SECONDS, self._answer, target, began)

    def _answer(self, target: bytes, began: float) -> None:
        status, body = b"200 OK", b"{}"
        if b"registered-models/get" in target:  # the gateway asks once whether spellings are told apart
            known = target.endswith(b"name=bench")
            status, body = (b"200 OK", _MODEL) if known else (b"404 Not Found", _ABSENT)
        headers = b"content-type: application/json\r\ncontent-length: %d" % len(body)
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(b"HTTP/1.1 %s\r\n%s\r\n\r\n%s" % (status, headers, body))
        Registry.seconds += time.perf_counter() - began


async def _writes(directory: Path, port: int, config: Path) -> list[float]:
    """Return the own time of each write, ascending; milliseconds."""
    server = await asyncio.get_running_loop().create_unix_server(Registry, directory / "registry.sock")
    process = start(config, port)
    own = []
    try:
        await asyncio.to_thread(ready, port, process)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=HEADERS) as session:
            for number in range(WRITES + 20):
                Registry.seconds = 0.0
                tag = {"name": "bench", "key": f"k{number % 50}", "value": "v"}
                began = time.perf_counter()
                async with session.post("/api/2.0/mlflow/registered-models/set-tag", json=tag) as answer:
                    assert answer.status == 200, await answer.text()
                    await answer.read()
                own.append((time.perf_counter() - began - Registry.seconds) * 1000)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 40)
        server.close()
    return sorted(own[20:])  # the first ones warm the pools


def own_times(bench: Bench) -> None:
    """Print the figures of one governed write after the other."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        registries = {"main": {"kind": "mlflow", "url": f"unix:{directory / 'registry.sock'}"}}
        config = write_configuration(directory, registries=registries)
        schema.upgrade(f"sqlite:///{directory / 'journal.db'}")
        own = asyncio.run(_writes(directory, free_port(), config))
    p50, p99 = own[len(own) // 2], own[int(len(own) * 0.99)]
    bench.add("write-own-time-exact-p50", p50, "ms", "<=3", p50 <= 3)
    bench.add("write-own-time-exact-p99", p99, "ms", "<=10", p99 <= 10)


class _Printed:
    def add(self, name: str, value: float, unit: str, promise: str, held: bool) -> None:
        print(f"{name} {value:.3f} {unit} {promise} {'held' if held else 'missed'}", flush=True)


if __name__ == "__main__":
    own_times(_Printed())
