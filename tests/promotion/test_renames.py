"""A rename between guarded names: one version after the other in the record, and no mark slips in unjudged."""

from __future__ import annotations

from itertools import pairwise

from tests.api.test_promotion import promote, register, satisfy
from tests.client import V1, Client


async def test_what_ends_and_what_begins_meet(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version)).status == 200
        it.memory.files[("rose", version)] = it.memory.files[("iris", version)]
        renamed = await client.rpc("POST", "registered-models/rename", name="iris", new_name="rose")
        assert renamed.status == 200, renamed.body
        history = (await client("GET", f"{V1}/rose/environments/production/history")).json["history"][::-1]
        assert len(history) == 2
        for earlier, later in pairwise(history):
            assert earlier["until"] <= later["since"]


async def test_a_lesser_mark_on_another_version_is_judged_too(running):
    async with running() as it:
        client = Client(it.application.asgi)
        good, bad = await register(it, client), await register(it, client, accuracy=0.1)
        await satisfy(client, good)
        assert (await promote(client, good)).status == 200
        it.memory.models["iris"]["versions"][good]["current_stage"] = "None"
        it.memory.models["iris"]["versions"][bad]["current_stage"] = "Production"
        renamed = await client.rpc("POST", "registered-models/rename", name="iris", new_name="rose")
        assert renamed.status == 409, renamed.body
        assert "iris" in it.memory.models


async def test_a_lesser_mark_alone_is_not_recorded_as_live(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version)).status == 200
        del it.memory.models["iris"]["aliases"]["champion"]
        await client("POST", f"{V1}/iris/environments/production/checks")
        renamed = await client.rpc("POST", "registered-models/rename", name="iris", new_name="rose")
        assert renamed.status == 200, renamed.body
        assert await it.application.journal.live() == []
