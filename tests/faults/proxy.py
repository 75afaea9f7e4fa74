"""A TCP proxy that does what networks do, and remembers the requests for writes that passed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

_REQUEST = re.compile(rb"(GET|POST|PATCH|PUT|DELETE) (\S+) HTTP/1.1\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_KEPT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Seen:
    """A request for a write, as the server gets it."""

    at: float
    line: str
    message: Any


class Proxy:
    """Forwards to a server, a Unix socket or ``host:port``."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.seen: list[str] = []
        self.log: list[Seen] = []
        """Whole requests for writes, in the order in which the server gets them."""
        self.swallow_answers_to = ""
        """Requests that contain this reach the server; their answer never comes back."""
        self.lose_requests_to = ""
        """Requests that contain this are taken and never reach the server."""
        self.drops_after = b""
        """What is sent with this in it reaches the server; then the connection breaks: done, and nobody is told."""
        self.breaks_at = b""
        """What is sent with this in it breaks the connection, and does not reach the server."""
        self.latency_seconds = 0.0
        """Everything sent waits so long."""
        self.black_hole = False
        """Connections are accepted, and nothing comes back or gets through."""
        self.cut_answer_after: int | None = None
        """So many bytes of each answer come back, then the connection breaks."""
        self.cut_request_after: int | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        """While cleared, nothing is passed on to the server."""
        self.arrived = asyncio.Event()
        """Set when a request for a write was seen."""
        self.witness: Callable[[Seen], Awaitable[None]] | None = None
        """Told of each whole request for a write before its last byte is passed on."""
        self._tasks: set[asyncio.Task] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.returned = 0
        """Bytes that the server sent back."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port or self.port, backlog=1000)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on, and break those that are there."""
        if self._server is not None:
            self._server.close()
            self.reset()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def reset(self) -> None:
        """Break all connections."""
        for task in list(self._tasks):
            task.cancel()

    def heal(self) -> None:
        """Do no harm any more."""
        self.swallow_answers_to = self.lose_requests_to = ""
        self.drops_after = self.breaks_at = b""
        self.latency_seconds = 0.0
        self.cut_answer_after = self.cut_request_after = None
        if self.black_hole:
            self.black_hole = False
            self.reset()
        self.hold.set()

    def writes(self) -> list[str]:
        return [line for line in self.seen if _writes(line)]

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.target.rpartition(":")
        if port.isdigit():
            return await asyncio.open_connection(host, int(port))
        return await asyncio.open_unix_connection(self.target.removeprefix("unix:"))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        back: asyncio.Task | None = None
        try:
            answers, upstream = await self._open()
            state = {"swallow": False}
            requests = _Requests()
            back = asyncio.create_task(self._pump_back(answers, writer, state))
            while data := await reader.read(65536):
                for line in requests.lines(data):
                    self.seen.append(line)
                    state["swallow"] = bool(self.swallow_answers_to) and self.swallow_answers_to in line
                    if _writes(line):
                        self.arrived.set()
                if self.lose_requests_to and self.lose_requests_to.encode() in data:
                    continue
                if self.breaks_at and self.breaks_at in data:
                    writer.transport.abort()
                    return
                while self.black_hole:
                    await asyncio.sleep(3600)
                if self.latency_seconds:
                    await asyncio.sleep(self.latency_seconds)
                await self.hold.wait()
                if self.cut_request_after is not None:
                    upstream.write(data[: self.cut_request_after])
                    await upstream.drain()
                    writer.transport.abort()
                    return
                for seen in requests.whole(data):
                    self.log.append(seen)
                    if self.witness is not None:
                        await self.witness(seen)
                drops = bool(self.drops_after) and self.drops_after in data
                state["swallow"] = state["swallow"] or drops
                upstream.write(data)
                await upstream.drain()
                if drops:
                    await answers_or_end(back)
                    writer.transport.abort()
                    return
        except (ConnectionError, asyncio.CancelledError, FileNotFoundError):
            writer.transport.abort()
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
                if state["swallow"]:
                    if self.drops_after:
                        return  # the server has answered: it is done
                    continue
                if self.cut_answer_after is not None:
                    writer.write(data[: self.cut_answer_after])
                    await writer.drain()
                    writer.transport.abort()
                    return
                writer.write(data)
                await writer.drain()
            if not state["swallow"]:
                writer.close()  # the server is gone


async def answers_or_end(back: asyncio.Task) -> None:
    """Wait until the server has answered what was sent."""
    with contextlib.suppress(TimeoutError, asyncio.CancelledError):
        async with asyncio.timeout(5):
            await asyncio.shield(back)


class _Requests:
    """Finds the requests in what one connection sends."""

    def __init__(self) -> None:
        self._buffer = b""

    @staticmethod
    def lines(data: bytes) -> list[str]:
        return [f"{method.decode()} {path.decode()}" for method, path in _REQUEST.findall(data)]

    def whole(self, data: bytes) -> list[Seen]:
        """Return the requests for writes that end in *data*; of long bodies (artifacts) nothing is kept."""
        self._buffer = (self._buffer + data)[-_KEPT_BYTES:]
        found = []
        while match := _REQUEST.search(self._buffer):
            head, mark, rest = self._buffer[match.start() :].partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            wanted = int(length[1]) if length else 0
            if not mark or len(rest) < wanted:
                break
            self._buffer = rest[wanted:]
            line = f"{match[1].decode()} {match[2].decode()}"
            if _writes(line):
                found.append(Seen(time.time(), line, _parsed(rest[:wanted])))
        return found


def _writes(line: str) -> bool:
    return not line.startswith("GET") and "search" not in line


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


@asynccontextmanager
async def proxied(target: str) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
