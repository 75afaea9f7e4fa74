"""A PostgreSQL journal that stands still or dies, and comes back: nothing changes unseen, nothing told is lost."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from service.audit import Operation, Trail
from service.change import AliasSet
from service.errors import GatewayError
from service.journal import schema
from service.journal.store import SqlJournal
from service.journal.verify import verify
from service.model import Call, Need, Principal
from tests.client import Client
from tests.postgres import Postgres

ROUNDS = int(os.environ.get("POSTGRES_KILLS", "3"))


@pytest.fixture
def server(tmp_path_factory):
    """A server of this test's own."""
    made = Postgres(tmp_path_factory.mktemp("own"))
    yield made
    made.signal(signal.SIGCONT)
    made.stop()


async def until_it_is_recorded(client, name: str) -> int:
    """Create models until one is; return how often that was refused."""
    for attempt in range(200):
        answer = await client.rpc("POST", "registered-models/create", name=f"{name}{attempt}")
        if answer.status == 200:
            return attempt
        assert answer.status == 503
        await asyncio.sleep(0.05)
    pytest.fail("it does not recover")


@pytest.mark.parametrize("how", ["stands still", "is killed"])
async def test_without_it_nothing_changes_and_reads_go_on(running, server, tmp_path, how):
    (tmp_path / "secret").write_bytes(b"s" * 32)
    journal = {"url": await server.database(), "deadline_seconds": 0.5}
    async with running(journal=journal, secret_file=str(tmp_path / "secret"), directory=tmp_path) as it:
        client = Client(it.application.asgi)
        assert (await client.rpc("POST", "registered-models/create", name="iris")).status == 200
        if how == "stands still":
            server.signal(signal.SIGSTOP)
        else:
            server.kill()
        for _ in range(3):
            refused = await client.rpc("POST", "registered-models/create", name="lily")
            assert (refused.status, "retry-after" in refused.headers) == (503, True)
        assert set(it.memory.models) == {"iris"}
        assert (await client.rpc("GET", "registered-models/get", name="iris")).status == 200
        if how == "stands still":
            server.signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(server.start)
        await until_it_is_recorded(client, "rose")
        assert "lily" not in it.memory.models
    assert (await asyncio.to_thread(verify, journal["url"]))[1] is None


async def test_killed_in_the_middle_it_keeps_what_was_told_and_takes_back_the_rest(server):
    url = await server.database()
    await asyncio.to_thread(schema.upgrade, url)
    journal = SqlJournal(url, deadline_seconds=1.0)
    await journal.start()
    trail, told, refused = Trail(journal, "/test"), [], []

    async def change(number: int) -> None:
        what = AliasSet(f"m{number}", "blue", "1")
        need = Need("alias:set", f"models/m{number}/aliases/blue")
        call = Call(principal=Principal("user:u"), registry="main", name="setAlias", needs=(need,), change=what)
        operation = Operation.opened(call, 1000.0)
        try:
            await trail.intent(operation)
        except GatewayError:
            refused.append(operation.id)
        else:
            told.append(operation.id)

    number = 0
    for _ in range(ROUNDS):
        before, batch = len(told), []
        while len(told) < before + 20:  # it is killed while changes are being recorded
            batch += [asyncio.create_task(change(number + index)) for index in range(10)]
            number += 10
            await asyncio.sleep(0)
            await asyncio.wait(batch, return_when=asyncio.FIRST_COMPLETED)
        server.kill()
        batch += [asyncio.create_task(change(number + index)) for index in range(10)]
        number += 10
        await asyncio.gather(*batch)
        await asyncio.to_thread(server.start)
        for _attempt in range(100):
            try:
                await journal.ping()
                break
            except GatewayError:
                await asyncio.sleep(0.05)
    await journal.ping()
    await journal._jobs.join()
    still_open = {found.operation for found in await journal.unsettled()}
    await journal.close()
    print(f"kills {ROUNDS} told {len(told)} refused {len(refused)} open {len(still_open)}")
    assert set(told) == still_open
    assert (await asyncio.to_thread(verify, url))[1] is None
