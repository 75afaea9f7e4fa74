"""A real receiver on a real socket, that can fail in every way a receiver fails."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Got:
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """What a server got, and how it answers."""

    port: int = 0
    scheme: str = "http"
    got: list[Got] = field(default_factory=list)
    answer: Callable[[Got], int] = lambda _: 204
    """The status for a message."""
    headers: dict[str, str] = field(default_factory=dict)
    hangs: Callable[[Got], bool] = lambda _: False
    """Which messages are never answered."""
    slow_body: bool = False
    """The head of an answer is sent, and its body never ends."""
    paths: list[str] = field(default_factory=list)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook"

    async def until(self, enough: Callable[[list[Got]], bool], seconds: float = 10.0) -> None:
        """Return when what it got is *enough*."""
        async with asyncio.timeout(seconds):
            while not enough(self.got):
                self._came.clear()
                await self._came.wait()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        got = Got(dict(request.headers), await request.read())
        self.paths.append(request.path)
        self.got.append(got)
        self._came.set()
        if self.hangs(got):
            await asyncio.Event().wait()
        if self.slow_body:
            response = web.StreamResponse(status=200)
            await response.prepare(request)
            await response.write(b"x")
            await asyncio.Event().wait()
        return web.Response(status=self.answer(got), headers=self.headers)


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None, **how: Any) -> AsyncIterator[Receiver]:
    receiver = Receiver(scheme="https" if tls else "http", **how)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        await runner.cleanup()
