"""A real HTTP server for key sets, which a test tells how to answer."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def says(body: bytes, status: int = 200, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, status=status, headers=headers, content_type="application/jwk-set+json")

    return answer


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


class KeyServer:
    """Counts what it is asked and answers as *answer* says."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[web.Request] = []
        self.sent = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        return await self.answer(request)

    async def floods(self, request: web.Request) -> web.StreamResponse:
        """Send 100 MiB, counting what goes out."""
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1600):
            await response.write(b" " * (64 << 10))
            self.sent += 64 << 10
        return response

    async def drips(self, request: web.Request) -> web.StreamResponse:
        """Send a byte now and then, for ever."""
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)


@asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[KeyServer]:
    server = KeyServer(answer)
    app = web.Application()
    app.router.add_get("/keys", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"{'https://localhost' if tls else f'http://{host}'}:{port}/keys"
    try:
        yield server
    finally:
        await runner.cleanup()
