"""Serves the gateway over a registry in memory: ``python -m tests.api.memory_server DIRECTORY PORT``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from granian.constants import Interfaces
from granian.server.embed import Server

from service.app import Application
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.journal import schema
from service.settings import load
from tests.conftest import write_configuration

LIMITS = {"failed_authentications_per_minute": 100_000}
"""All requests come from one address, many of them without a key."""


async def main(directory: Path, port: int) -> None:
    configuration = load(write_configuration(directory, limits=LIMITS), environ={})
    schema.upgrade(configuration.journal_url())
    backends = {"main": MlflowBackend("main", MemoryTransport())}
    application = Application(configuration, backends=backends, sinks=[])
    await Server(application.asgi, port=port, interface=Interfaces.ASGI, log_enabled=False).serve()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
