"""Serves a gateway over a registry in memory: ``python -m tests.delivery.gateway_process CONFIG PORT``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from granian.constants import Interfaces
from granian.server.embed import Server

from service.app import Application
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.settings import load


async def main(config: Path, port: int) -> None:
    configuration = load(config, environ={})
    application = Application(configuration, backends={"main": MlflowBackend("main", MemoryTransport())})
    await Server(application.asgi, port=port, interface=Interfaces.ASGI, log_enabled=False).serve()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
