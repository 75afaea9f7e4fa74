"""Two replicas on one PostgreSQL journal: what one does, the other knows."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter

import pytest

from service.backends.memory import MemoryTransport
from service.errors import JournalUnavailable
from service.journal.verify import verify
from tests.client import Client
from tests.contract.test_locks import KILL
from tests.postgres import execute
from tests.promotion.flow import V1, alias_of, ask, register, simple

RACES = int(os.environ.get("RACES", "50"))
AT_ONCE = 4


@pytest.fixture
async def replicas(running, postgres, tmp_path):
    """Two applications before one registry, on one journal."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 32)
    url, memory = await postgres.database(), MemoryTransport()
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name in ("one", "two"):
            directory = tmp_path / name
            directory.mkdir()
            found.append(
                await stack.enter_async_context(
                    running(
                        memory,
                        directory,
                        several=True,
                        environments=simple(directory),
                        journal={"url": url},
                        secret_file=str(secret),
                    )
                )
            )
        yield found
    assert (await asyncio.to_thread(verify, url))[1] is None


async def test_each_race_of_two_replicas_has_one_winner(replicas):
    one, two = (Client(it.application.asgi) for it in replicas)
    versions = [await register(replicas[0], one) for _ in range(AT_ONCE + 1)]
    assert (await ask(one, "promotions", versions[-1])).status == 200
    target, live, losers = f"{V1}/iris/environments/production", versions[-1], Counter()
    for _ in range(RACES):
        while (seen := await two("GET", target)).json["version"] != live:  # a look is shared for a moment
            await asyncio.sleep(0.05)
        etag = seen.headers["etag"]
        challengers = [version for version in versions if version != live]
        answers = await asyncio.gather(
            *(
                client("POST", f"{target}/promotions", {"version": version}, headers=[("if-match", etag)])
                for client, version in zip((one, two, one, two), challengers, strict=True)
            )
        )
        statuses = Counter(answer.status for answer in answers)
        losers += statuses
        assert statuses == {200: 1, 412: AT_ONCE - 1}
        live = next(answer.json["after"] for answer in answers if answer.status == 200)
        assert alias_of(replicas[1]) == live
    print(f"races {RACES} answers {dict(losers)}")


async def test_a_second_process_is_kept_away_until_the_first_ends(running, postgres, tmp_path, monkeypatch):
    monkeypatch.setattr("service.app.SOLE_SECONDS", 0)
    (tmp_path / "secret").write_bytes(b"s" * 32)
    more = {"journal": {"url": await postgres.database()}, "secret_file": str(tmp_path / "secret")}
    async with running(directory=tmp_path, **more) as it:
        client = Client(it.application.asgi)
        assert (await client.rpc("POST", "registered-models/create", name="iris")).status == 200
        with pytest.raises(JournalUnavailable, match="Another gateway process uses this journal"):
            async with running(directory=tmp_path, **more):
                pytest.fail("two")
        await execute(more["journal"]["url"], KILL)  # as a restart of the server does
        assert (await client.rpc("POST", "registered-models/create", name="lily")).status == 200
        await execute(more["journal"]["url"], KILL)
        async with running(directory=tmp_path, **more):  # it took over
            refused = await client.rpc("POST", "registered-models/create", name="rose")
            assert (refused.status, "rose" in it.memory.models) == (503, False)
    async with running(directory=tmp_path, **more):
        pass
