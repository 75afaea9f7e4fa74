"""A TCP proxy in front of a real server that can hang, refuse, or swallow answers, and remembers what passed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_REQUEST = re.compile(rb"(GET|POST|PATCH|PUT|DELETE) (\S+) HTTP/1.1\r\n")


class Proxy:
    """Forwards to the Unix socket of a server."""

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("unix:")
        self.seen: list[str] = []
        self.swallow_answers_to = ""
        """Requests whose path contains this reach the server; their answer never comes back."""
        self.lose_requests_to = ""
        """Requests whose path contains this are taken and never reach the server."""
        self.hold = asyncio.Event()
        self.hold.set()
        """While cleared, nothing is passed on to the server."""
        self.arrived = asyncio.Event()
        """Set when a request for a write was seen."""
        self._tasks: set[asyncio.Task] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.returned = 0
        """Bytes that the server sent back."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def writes(self) -> list[str]:
        return [line for line in self.seen if not line.startswith("GET") and "search" not in line]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        back: asyncio.Task | None = None
        try:
            answers, upstream = await asyncio.open_unix_connection(self.target)
            state = {"swallow": False}
            back = asyncio.create_task(self._pump_back(answers, writer, state))
            while data := await reader.read(65536):
                for method, path in _REQUEST.findall(data):
                    line = f"{method.decode()} {path.decode()}"
                    self.seen.append(line)
                    state["swallow"] = bool(self.swallow_answers_to) and self.swallow_answers_to in line
                    if not line.startswith("GET") and "search" not in line:
                        self.arrived.set()
                if self.lose_requests_to and self.lose_requests_to.encode() in data:
                    continue
                await self.hold.wait()
                upstream.write(data)
                await upstream.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            if back is not None:
                back.cancel()
            for side in (upstream, writer):
                if side is not None:
                    side.close()
                    with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                        await side.wait_closed()

    async def _pump_back(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter, state: dict) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await answers.read(65536):
                self.returned += len(data)
                if not state["swallow"]:
                    writer.write(data)
                    await writer.drain()


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
