"""A gateway in processes of its own before a registry that outlives it, with a fault proxy on each of its wires."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp
from sqlalchemy import make_url

from service.journal import schema
from tests.conftest import ROOT, TOKENS, free_port, write_configuration
from tests.faults.checker import Checker
from tests.faults.proxy import Proxy, proxied
from tests.faults.upstream_registry import Registry, registry
from tests.postgres import Postgres

CALLERS = 6
PASS_ON = 200
_NUMBERS = itertools.count(1)
_MIGRATING = asyncio.Lock()
"""Alembic makes one migration at a time in a process."""


class Deployment:
    """One journal, one gateway at a time."""

    def __init__(self, directory: Path, upstream: Proxy, database: Proxy | None, checker: Checker, url: str) -> None:
        self.directory = directory
        self.upstream = upstream
        self.database = database
        self.checker = checker
        self.postgres: Postgres | None = None
        self.registry: Registry | None = None
        self.chance = random.Random(int(os.environ.get("FAULTS_SEED", "7")))
        self.deadline = float(os.environ.get("FAULTS_DEADLINE", "2"))
        self.port = free_port()
        self.process: asyncio.subprocess.Process | None = None
        self.told: list[str] = []
        self.calls = 0
        self.clock = directory / "clock"
        self.clock.write_text("0")
        self.failpoint = directory / "failpoint"
        self.failpoint.write_text("")
        self._out = directory / "out"
        self._err = directory / "err"
        self._read_to = 0
        self._ending = False
        self._traffic: list[asyncio.Task] = []
        self._session: aiohttp.ClientSession | None = None
        (directory / "secret").write_bytes(b"s" * 32)
        self.config = write_configuration(
            directory,
            registries={"main": {"kind": "mlflow", "url": upstream.url, "timeout_seconds": 3}},
            environments=None,
            journal={"url": url, "deadline_seconds": self.deadline},
            secret_file=str(directory / "secret"),
            lock_seconds=3,
            drift_seconds=0,
        )

    @property
    def journal(self) -> Path:
        return self.directory / "journal.db"

    async def start(self) -> None:
        """Start the gateway; return when it answers."""
        self.port = free_port()
        with self._out.open("ab") as out, self._err.open("ab") as err:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.faults.gateway", "serve"),
                *("--config", str(self.config), "--port", str(self.port)),
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env={**os.environ, "TEST_FAILPOINT_FILE": str(self.failpoint), "TEST_CLOCK_FILE": str(self.clock)},
                start_new_session=True,
            )
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and self.process.returncode is None:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.02)
        raise AssertionError(self._err.read_text()[-2000:])

    async def kill(self) -> None:
        """End the whole process group as a loss of power does."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def terminate(self) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        return await self.process.wait()

    async def died(self, seconds: float) -> bool:
        """Tell whether it has ended within *seconds*."""
        assert self.process is not None
        try:
            async with asyncio.timeout(seconds):
                await self.process.wait()
        except TimeoutError:
            return False
        return True

    async def call(self, path: str, message: dict, seconds: float = 15) -> int:
        """Send one change; return its status, 0 where there was no answer."""
        assert self._session is not None
        self.calls += 1
        try:
            async with self._session.post(
                f"http://127.0.0.1:{self.port}/api/2.0/mlflow/{path}",
                json=message,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as answer:
                await answer.read()
                if answer.status == 200:
                    self.told.append(answer.headers["registry-gateway-operation"])
                return answer.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0

    async def read(self) -> int:
        """Read from the registry; return the status."""
        assert self._session is not None
        try:
            async with self._session.get(
                f"http://127.0.0.1:{self.port}/api/2.0/mlflow/registered-models/get?name=base",
                timeout=aiohttp.ClientTimeout(total=5),
            ) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return 0

    async def change(self) -> int:
        """Make one change that nobody made before."""
        return await self.call("registered-models/create", {"name": f"n{next(_NUMBERS)}"})

    def begin_traffic(self, *, hang_up: bool = False) -> None:
        """Let callers make changes, one after the other, until `end_traffic`."""
        self._ending = False
        self._traffic = [asyncio.create_task(self._caller(hang_up=hang_up)) for _ in range(CALLERS)]

    async def _caller(self, *, hang_up: bool) -> None:
        while not self._ending:
            name = f"n{next(_NUMBERS)}"
            for path, message in (
                ("registered-models/create", {"name": name}),
                ("registered-models/set-tag", {"name": name, "key": "k", "value": name}),
                ("registered-models/alias", {"name": "base", "alias": f"a{next(_NUMBERS)}", "version": "1"}),
            ):
                seconds = self.chance.random() * 0.05 if hang_up else 15
                if await self.call(path, message, seconds) == 0:
                    await asyncio.sleep(0.02)  # it hung up, or nobody is there

    async def end_traffic(self) -> None:
        self._ending = True
        if self._traffic:
            await asyncio.wait(self._traffic, timeout=10)
        for task in self._traffic:
            task.cancel()
        await asyncio.gather(*self._traffic, return_exceptions=True)
        self._traffic = []

    async def flowing(self, requests: int) -> None:
        """Return when so many more changes have reached the registry, or the gateway has died."""
        wanted = len(self.upstream.log) + requests
        async with asyncio.timeout(60):
            while len(self.upstream.log) < wanted and self.process and self.process.returncode is None:
                await asyncio.sleep(0.002)

    async def recovered(self, seconds: float = 40) -> float:
        """Return how long it takes until a change is made."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            if await self.change() == PASS_ON:
                return time.monotonic() - begun
            await asyncio.sleep(0.02)
        raise AssertionError(f"it does not recover: {self._err.read_text()[-1500:]}")

    async def settled(self, seconds: float = 30) -> None:
        """Return when nothing is open and nothing more is recorded, at most after *seconds*."""
        deadline, last, since = time.monotonic() + seconds, -1, time.monotonic()
        while time.monotonic() < deadline:
            end = await asyncio.to_thread(self.checker.end)
            if end != last or await asyncio.to_thread(self.checker.open_operations):
                last, since = end, time.monotonic()
            elif time.monotonic() - since > 2:
                return
            await asyncio.sleep(0.2)

    async def counted(self) -> dict[str, int]:
        """Compare registry, journal and sink since the last time."""
        told, self.told = self.told, []
        calls, self.calls = self.calls, 0
        printed = self._out.read_bytes()
        printed, self._read_to = printed[self._read_to :], len(printed)
        return {"calls": calls, **await self.checker.count(told, [printed])}

    async def __aenter__(self) -> Self:
        headers = {"Authorization": f"Bearer {TOKENS['user:admin']}"}
        connector = aiohttp.TCPConnector(force_close=True)
        self._session = aiohttp.ClientSession(headers=headers, connector=connector)
        await self.start()
        assert self.registry is not None
        memory = self.registry.memory
        memory._createRegisteredModel({"name": "base"})
        run = memory._createRun({"experiment_id": "0"})["run"]["info"]["run_id"]
        memory._createModelVersion({"name": "base", "source": f"runs:/{run}/m", "run_id": run})
        await self.recovered()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end_traffic()
        if self.process is not None and self.process.returncode is None:
            await self.kill()
        assert self._session is not None
        await self._session.close()


@asynccontextmanager
async def deployed(directory: Path, postgres: Postgres | None) -> AsyncIterator[Deployment]:
    """Run a gateway on SQLite, or on a database of *postgres*; *directory* is there."""
    async with registry() as served, proxied(served.target) as upstream, contextlib.AsyncExitStack() as stack:
        if postgres is None:
            url, through, database = f"sqlite:///{directory / 'journal.db'}", "sqlite:///journal.db", None
        else:
            url = await postgres.database()
            parts = make_url(url)
            socket = f"{parts.query['host']}/.s.PGSQL.{parts.port or 5432}"
            database = await stack.enter_async_context(proxied(f"unix:{socket}"))
            through = f"postgresql://{parts.username}@127.0.0.1:{database.port}/{parts.database}"
        async with _MIGRATING:
            await asyncio.to_thread(schema.upgrade, url)
        checker = Checker(url)
        upstream.witness = checker.witness
        made = Deployment(directory, upstream, database, checker, through)
        made.postgres, made.registry = postgres, served
        yield await stack.enter_async_context(made)
