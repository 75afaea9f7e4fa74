"""The gateway on a real port, in the test's own loop, for clients that need one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from granian.constants import Interfaces
from granian.server.embed import Server

from service.asgi import ASGI
from tests.conftest import free_port


@asynccontextmanager
async def served(asgi: ASGI) -> AsyncIterator[str]:
    """Serve *asgi*, whose lifespan has begun already; yield its URL."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await asgi(scope, receive, send)
        else:
            for said in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{said}.complete"})

    port = free_port()
    server = Server(app, port=port, interface=Interfaces.ASGI, log_enabled=False, websockets=False)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(20):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
        await task
