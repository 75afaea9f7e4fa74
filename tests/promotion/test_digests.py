"""Reading the files of versions: once for all who look, anew for what is judged, and a few at once."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from service.digests import AT_ONCE, LOOKS_AT_ONCE, Digests
from service.errors import NotFound
from service.provenance import Origin
from tests.api.test_attacks import run_of
from tests.client import Client
from tests.promotion.flow import V1, register, simple
from tests.promotion.test_evidence import Held


class Counting:
    """A registry that counts how often files are read, and at once."""

    name = "main"

    def __init__(self) -> None:
        self.reads = self.now = self.most = 0
        self.content = b"first"
        self.go_on = asyncio.Event()

    async def list_files(self, path: str, limit: int) -> list[tuple[str, int]]:
        del limit
        if path == "gone":
            message = "gone"
            raise NotFound(message)
        return [(f"{path}/w", 1)]

    async def read_file(self, path: str):
        del path
        self.reads += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            yield self.content
            await self.go_on.wait()
        finally:
            self.now -= 1


def origin(name: str = "a") -> Origin:
    return Origin("run", (), (name,))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_looks_shares_a_reading():
    registry, digests = Counting(), Digests()
    first = [asyncio.create_task(digests.digest(registry, origin(), looking=True)) for _ in range(10)]
    await settle()
    later = [asyncio.create_task(digests.digest(registry, origin(), looking=True)) for _ in range(10)]
    await settle()
    registry.go_on.set()
    assert len(set(await asyncio.gather(*first, *later))) == 1
    assert registry.reads == 1
    await digests.digest(registry, origin(), looking=True)
    assert registry.reads == 2


async def test_what_is_judged_is_read_after_it_was_asked_for():
    registry, digests = Counting(), Digests()
    looks = asyncio.create_task(digests.digest(registry, origin(), looking=True))
    before = asyncio.create_task(digests.digest(registry, origin()))
    await settle()
    registry.content = b"written over"
    after = asyncio.create_task(digests.digest(registry, origin()))
    await settle()
    registry.go_on.set()
    assert await looks == await before != await after


@pytest.mark.parametrize(("looking", "bound"), [(True, LOOKS_AT_ONCE), (False, AT_ONCE)])
async def test_a_few_at_once(looking, bound):
    registry, digests = Counting(), Digests()
    tasks = [asyncio.create_task(digests.digest(registry, origin(str(n)), looking=looking)) for n in range(20)]
    await settle()
    assert registry.now == bound
    other = asyncio.create_task(digests.digest(registry, origin(), looking=not looking))
    await settle()
    assert registry.now == bound + 1  # who looks keeps no promotion waiting
    registry.go_on.set()
    await asyncio.gather(*tasks, other)
    assert registry.most == bound + 1


async def test_what_nobody_waits_for_any_more_is_not_read():
    registry, digests = Counting(), Digests()
    tasks = [asyncio.create_task(digests.digest(registry, origin(), looking=True)) for _ in range(2)]
    await settle()
    tasks[0].cancel()
    await settle()
    assert registry.now == 1
    tasks[1].cancel()
    await settle()
    assert registry.now == 0
    registry.go_on.set()
    assert await digests.digest(registry, origin(), looking=True)
    with contextlib.suppress(asyncio.CancelledError):
        await tasks[0]


async def test_an_error_reaches_everybody():
    registry, digests = Counting(), Digests()
    found = await asyncio.gather(*(digests.digest(registry, origin("gone")) for _ in range(3)), return_exceptions=True)
    assert [type(item) for item in found] == [NotFound] * 3


async def test_reviews_of_one_version_read_it_once(running, tmp_path):
    registry = Held("downloadArtifact")
    async with running(registry, environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        path = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_of(it, version)}/artifacts/model/w"
        it.memory.artifacts[path] = b"w"
        target = f"{V1}/iris/versions/{version}/review?environment=production"
        registry.go_on.clear()
        reviews = [asyncio.create_task(client.be("user:viewer")("GET", target)) for _ in range(25)]
        await registry.begun.wait()
        await asyncio.sleep(0.5)
        assert registry.held == 1
        registry.go_on.set()
        assert {answer.status for answer in await asyncio.gather(*reviews)} == {200}
