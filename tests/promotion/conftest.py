"""Fixtures that tests of promotion share."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.journal.verify import verify
from tests.api.test_reconciler import Losing
from tests.client import Client
from tests.promotion.flow import simple


@pytest.fixture
async def replicas(running, postgres, tmp_path):
    """Two applications before one registry, on one journal."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    url, memory = await postgres.database(), Losing()
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name in ("one", "two"):
            directory = tmp_path / name
            directory.mkdir()
            more = {"environments": simple(directory, "seal: approved"), "journal": {"url": url}}
            found.append(await stack.enter_async_context(running(memory, directory, secret_file=str(secret), **more)))
        yield found
    assert (await asyncio.to_thread(verify, url))[1] is None


@pytest.fixture
def clients(replicas):
    return [Client(it.application.asgi) for it in replicas]
