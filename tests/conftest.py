"""Fixtures that several kinds of tests share: the real MLflow server, and applications in memory."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from service.app import Application
from service.authentication.api_keys import entry_for
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.embedded import DEMO_PRINCIPALS, answers
from service.journal import schema
from service.settings import PREFIX, load
from tests.postgres import Postgres

ROOT = Path(__file__).parent.parent
TOKENS = {principal: f"rgw_test-{principal}-{'x' * 24}" for principal in DEMO_PRINCIPALS}


@pytest.fixture(autouse=True)
def _settings_of_the_environment_stay() -> Iterator[None]:
    """Fail a test that leaves settings behind in the environment: the next test would be configured by them."""
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    yield
    after = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    if before != after:
        for name in before.keys() | after.keys():
            os.environ.pop(name, None)
        os.environ.update(before)
        pytest.fail(f"settings were left in the environment: {after}, before: {before}")


@dataclasses.dataclass
class RealMlflow:
    """A real MLflow server under a guardian, on a Unix socket."""

    url: str
    directory: Path
    guardian: subprocess.Popen[bytes]


def start_mlflow(directory: Path) -> RealMlflow:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "mlflow.sock"
    log = directory / "mlflow.log"
    guardian = subprocess.Popen(
        [sys.executable, "-m", "service.guardian", str(directory), str(path), str(log)],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not answers(path):
        assert guardian.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return RealMlflow(f"unix:{path}", directory, guardian)


def stop_mlflow(server: RealMlflow) -> None:
    assert server.guardian.stdin is not None
    server.guardian.stdin.close()
    server.guardian.wait(timeout=30)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMlflow]:
    server = start_mlflow(tmp_path_factory.mktemp("m"))
    yield server
    stop_mlflow(server)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("pg"))
    yield server
    server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_configuration(directory: Path, **changes: object) -> Path:
    """Write a configuration over the demo policies with fixed keys; *changes* replace top-level keys."""
    keys = [
        {**entry_for(TOKENS[principal], principal, (group,)), "id": principal, "expires": "2090-01-01"}
        for principal, group in DEMO_PRINCIPALS.items()
    ]
    (directory / "keys.yaml").write_text(yaml.safe_dump(keys))
    document = {
        "registries": {"main": {"kind": "mlflow", "url": "http://127.0.0.1:1"}},
        "access": {"model": str(ROOT / "policies/model.conf"), "rows": str(ROOT / "policies/policy.csv")},
        "environments": str(ROOT / "policies/environments.yaml"),
        "authentication": {"api_keys": "keys.yaml"},
        "journal": {"url": "sqlite:///journal.db", "deadline_seconds": 10},  # a busy machine is no fault
        **changes,
    }
    path = directory / "gateway.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@dataclasses.dataclass
class Running:
    """An application whose lifespan has begun, over a registry in memory."""

    application: Application
    memory: MemoryTransport

    async def events(self, **filters: object) -> list[dict]:
        return [event for _, event in await self.application.journal.events(filters, 0, 1000)]


@functools.cache
def empty_journal() -> bytes:
    """Give the content of a journal of the present schema, in which nothing happened yet."""
    with tempfile.TemporaryDirectory() as folder:
        schema.upgrade(f"sqlite:///{folder}/journal.db")
        return Path(folder, "journal.db").read_bytes()


def new_journal(url: str) -> None:
    """Make a journal, as `journal upgrade` does, in a file without going through each migration."""
    if not url.startswith("sqlite:///"):
        schema.upgrade(url)
        return
    path = Path(url.removeprefix("sqlite:///"))
    if not path.exists():
        path.write_bytes(empty_journal())


@pytest.fixture
def running(tmp_path: Path) -> Callable[..., object]:
    """Build and start an application: ``async with running() as it``."""

    @asynccontextmanager
    async def start(
        transport: object | None = None, directory: Path = tmp_path, **changes: object
    ) -> AsyncIterator[Running]:
        configuration = load(write_configuration(directory, **changes), environ={})
        await asyncio.to_thread(new_journal, configuration.journal_url())
        memory = transport or MemoryTransport()
        backends = {name: MlflowBackend(name, memory) for name in configuration.settings.registries}
        application = Application(configuration, backends=backends, sinks=[])
        async with application._lifespan(application.litestar):
            yield Running(application, memory)

    return start
