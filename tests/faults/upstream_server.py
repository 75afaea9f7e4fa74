"""An upstream that a test scripts: it records what it is sent and answers, hangs or breaks as told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def plain(status: str = "200 OK", body: bytes = b"{}", *headers: str) -> Answer:
    """Answer so, and keep the connection."""

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return answer


async def breaks(_: bytes, writer: asyncio.StreamWriter) -> None:
    """Close without an answer."""
    writer.close()


async def hangs(_: bytes, __: asyncio.StreamWriter) -> None:
    """Never answer."""
    await asyncio.Event().wait()


class Scripted:
    """Answers the first requests by *script*, all later ones with its last entry."""

    def __init__(self, *script: Answer) -> None:
        self.script = list(script)
        self.seen: list[bytes] = []
        self.url = ""
        self._tasks: set[asyncio.Task] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
                )
                body = await reader.readexactly(length)
                self.seen.append(head + body)
                answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                await answer(head, writer)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await writer.wait_closed()

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def upstream(*script: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
    scripted = Scripted(*script)
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    scripted.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    try:
        yield scripted
    finally:
        server.close()
        await scripted.stop()
