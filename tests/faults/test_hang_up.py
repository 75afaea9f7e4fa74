"""A client that hangs up in the middle of an artifact stops the transfer: a real process before a real server."""

from __future__ import annotations

import asyncio
import io

import aiohttp
import pytest

from tests.conftest import TOKENS, free_port, write_configuration
from tests.faults.proxy import Proxy, proxied
from tests.faults.test_process import ready, start

SIZE = 64 << 20
KEY = TOKENS["user:admin"]
pytestmark = pytest.mark.real


@pytest.fixture
async def gateway(mlflow_server, tmp_path):
    async with proxied(mlflow_server.url) as proxy:
        config = write_configuration(tmp_path, registries={"main": {"kind": "mlflow", "url": proxy.url}})
        port = free_port()
        process = start(config, port)
        try:
            await asyncio.to_thread(ready, port, process)
            async with aiohttp.ClientSession(
                f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}
            ) as session:
                created = await session.post("/api/2.0/mlflow/runs/create", json={"experiment_id": "0"})
                run = (await created.json())["run"]["info"]["run_id"]
                yield proxy, port, session, f"/api/2.0/mlflow-artifacts/artifacts/0/{run}/artifacts/big.bin"
        finally:
            process.terminate()
            await asyncio.to_thread(process.communicate)


async def still(proxy: Proxy) -> int:
    """Return how many bytes the server sent, once that stands still."""
    async with asyncio.timeout(20):
        seen = -1
        while seen != proxy.returned:
            seen = proxy.returned
            await asyncio.sleep(0.5)
    return seen


async def test_a_download_that_is_left_stops(gateway):
    proxy, port, session, path = gateway
    async with session.put(path, data=io.BytesIO(b"x" * SIZE)) as answer:
        assert answer.status == 200
    before = await still(proxy)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
    assert b" 200 " in await reader.readline()
    await reader.readexactly(1 << 16)
    writer.transport.abort()
    assert await still(proxy) - before < SIZE // 2
    async with session.get(path) as answer:  # and a patient client gets all of it
        assert len(await answer.read()) == SIZE


async def test_an_upload_that_is_left_leaves_no_file(gateway):
    proxy, port, session, path = gateway
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"PUT {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {SIZE}\r\n\r\n"
    writer.write(head.encode() + b"x" * (1 << 20))
    await writer.drain()
    async with asyncio.timeout(20):
        while not any(line.startswith("PUT") for line in proxy.seen):
            await asyncio.sleep(0.05)
    writer.transport.abort()
    await still(proxy)
    async with session.get(path) as answer:
        assert answer.status == 404, await answer.read()
