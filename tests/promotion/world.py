"""A gateway in process, called from code that is not asynchronous."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from service.app import Application
from service.backend import Backend
from service.settings import load
from tests.client import Client, Reply
from tests.conftest import new_journal, write_configuration

T = TypeVar("T")


class World:
    """An application whose lifespan has begun, and the loop it lives in."""

    def __init__(self, runner: asyncio.Runner, application: Application) -> None:
        self._runner = runner
        self._client = Client(application.asgi)
        self.application = application
        self.backend: Backend = application.backends["main"]
        self.numbers = itertools.count(1)
        self.sequences = 0
        self.steps = 0
        self.promoted = 0
        self.refused = 0

    def origin(self) -> dict[str, str]:
        """Make a run, and say what a version of it is registered with."""
        run = self.rpc("user:scientist", "POST", "runs/create", experiment_id="0", start_time=1).json["run"]["info"]
        return {"source": f"mlflow-artifacts:/0/{run['run_id']}/artifacts/model", "run_id": run["run_id"]}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def call(self, by: str, method: str, target: str, body: Any = None) -> Reply:
        return self.run(self._client.be(by)(method, target, body))

    def rpc(self, by: str, method: str, path: str, **message: Any) -> Reply:
        return self.run(self._client.be(by).rpc(method, path, **message))


@contextmanager
def world(directory: Path, **changes: object) -> Iterator[World]:
    """Start an application over the registry that *changes* configure."""
    configuration = load(write_configuration(directory, **changes), environ={})
    new_journal(configuration.journal_url())
    with asyncio.Runner() as runner:

        async def begin() -> tuple[Application, Any]:
            application = Application(configuration, sinks=[])
            lifespan = application._lifespan(application.litestar)
            await lifespan.__aenter__()
            return application, lifespan

        application, lifespan = runner.run(begin())
        try:
            yield World(runner, application)
        finally:
            runner.run(lifespan.__aexit__(None, None, None))
