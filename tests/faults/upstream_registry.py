"""A registry in memory behind real HTTP, for faults: it outlives every gateway that is killed before it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, urlsplit

from service.backends.memory import MemoryTransport
from service.dialects.mlflow import MlflowDialect, render_error
from service.errors import GatewayError
from service.model import Principal

_DIALECT = MlflowDialect()


class Registry:
    """Serves a `MemoryTransport` on a port."""

    def __init__(self) -> None:
        self.memory = MemoryTransport()
        self.target = ""
        self._tasks: set[asyncio.Task] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, target, _ = head.split(" ", 2)
                length = next(
                    (int(line[15:]) for line in head.lower().split("\r\n") if line[:15] == "content-length:"), 0
                )
                status, body = await self._answer(method, target, await reader.readexactly(length))
                writer.write(
                    b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (status, len(body), body)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        url = urlsplit(target)
        if url.path in ("/health", "/version"):
            return 200, b"OK"
        try:
            match = _DIALECT.match(method, url.path)
            query = parse_qsl(url.query, keep_blank_values=True)
            call, _ = _DIALECT.call(match, Principal("user:upstream"), "main", query, body)
            assert call.request is not None
            answer = await self.memory.send(call.request, writes=call.request.method != "GET")
        except GatewayError as error:
            status, _, document = render_error(error)
            return status, document
        except KeyError as error:
            return 404, json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": str(error)}).encode()
        return answer.status, answer.body

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def registry() -> AsyncIterator[Registry]:
    made = Registry()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, backlog=1000)
    made.target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await made.stop()
        with contextlib.suppress(Exception):
            await server.wait_closed()
