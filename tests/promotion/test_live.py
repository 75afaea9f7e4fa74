"""What is live, now and then; who waits learns of a change within a second."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.client import Client
from tests.promotion.flow import V1, ask, register, simple

LIVE = f"{V1}/iris/environments/production"


async def test_what_was_live_then(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        moments = []
        now = it.application.trail.now
        for step, version in enumerate((first, second)):
            it.application.trail.now = lambda step=step: now() + step * 1000
            await ask(client, "promotions", version)
            moments.append(now() + step * 1000 + 1)
        stamps = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment + 1)) for moment in moments]
        found = [(await client("GET", f"{LIVE}?at={stamp}")).json for stamp in stamps]
        assert [item["version"] for item in found] == [first, second]
        assert found[0]["until"] == found[1]["since"]
        assert found[0]["by"] == "user:admin"
        await client.rpc("DELETE", "model-versions/delete", name="iris", version=first)
        gone = (await client("GET", f"{LIVE}?at={stamps[0]}")).json
        assert (gone["version"], gone["artifact_uri"]) == (first, None)
        history = (await client("GET", f"{LIVE}/history")).json["history"]
        assert [(item["version"], item["kind"], item["verdict"]["allowed"]) for item in history] == [
            (second, "promotion", True),
            (first, "promotion", True),
        ]


@pytest.mark.parametrize("query", ["?at=2020-01-01T00:00:00Z&wait=1", "?wait=-1", "?wait=61", "?wait=x", "?at=x"])
async def test_a_bad_question(running, tmp_path, query):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        assert (await client("GET", LIVE + query)).status == 400


async def test_who_waits_learns_of_our_own_change_at_once(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await ask(client, "promotions", first)
        known = (await client("GET", LIVE)).headers["etag"]
        waiting = [
            asyncio.create_task(client("GET", f"{LIVE}?wait=30", headers=[("if-none-match", known)])) for _ in range(20)
        ]
        while it.application.gateway._watch._waiting.get(("main", "iris")) != 20:
            await asyncio.sleep(0)
        began = time.monotonic()
        await ask(client, "promotions", second)
        answers = await asyncio.gather(*waiting)
        assert {answer.json["version"] for answer in answers} == {second}
        assert time.monotonic() - began < 5
        assert not it.application.gateway._watch._waiting


async def test_who_waits_learns_of_a_change_beside_the_gateway(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await ask(client, "promotions", first)
        known = (await client("GET", LIVE)).headers["etag"]
        waiting = asyncio.create_task(client("GET", f"{LIVE}?wait=30", headers=[("if-none-match", known)]))
        while not it.application.gateway._watch._waiting:
            await asyncio.sleep(0)
        it.memory.models["iris"]["aliases"]["champion"] = second
        answer = await waiting
        assert (answer.json["version"], answer.json["drifted"]) == (second, True)


async def test_nothing_new_is_304_and_nothing_live_is_404_after_the_wait(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await client("GET", f"{LIVE}?wait=1")).status == 404
        await ask(client, "promotions", version)
        known = (await client("GET", LIVE)).headers["etag"]
        for query in ("", "?wait=1"):
            same = await client("GET", LIVE + query, headers=[("if-none-match", known)])
            assert (same.status, same.body, same.headers["etag"]) == (304, b"", known)
        other = await client("GET", f"{LIVE}?wait=30", headers=[("if-none-match", '"other"')])
        assert other.json["version"] == version
