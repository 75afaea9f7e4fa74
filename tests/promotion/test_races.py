"""Of several promotions that believe the same, exactly one wins."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

from tests.client import Client
from tests.promotion.flow import V1, alias_of, ask, promote, register, satisfy, simple

RACES = int(os.environ.get("RACES", "200"))
AT_ONCE = 4


async def test_each_race_has_one_winner(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        versions = [await register(it, client) for _ in range(AT_ONCE + 1)]
        assert (await ask(client, "promotions", versions[-1])).status == 200
        target, live = f"{V1}/iris/environments/production", versions[-1]
        for _ in range(RACES):
            etag = (await client("GET", target)).headers["etag"]
            challengers = [version for version in versions if version != live]
            answers = await asyncio.gather(
                *(
                    client("POST", f"{target}/promotions", {"version": version}, headers=[("if-match", etag)])
                    for version in challengers
                )
            )
            assert Counter(answer.status for answer in answers) == {200: 1, 412: AT_ONCE - 1}
            live = next(answer.json["after"] for answer in answers if answer.status == 200)
            assert alias_of(it) == live


async def test_of_approved_rivals_the_first_makes_the_others_approvals_stale(running):
    async with running() as it:
        client = Client(it.application.asgi)
        versions = [await register(it, client) for _ in range(4)]
        for version in versions:
            await satisfy(client, version)
        answers = await asyncio.gather(*(promote(client, version) for version in versions))
        assert Counter(answer.status for answer in answers) == {200: 1, 409: 3}
        because = {
            stale["because"]
            for answer in answers
            if answer.status == 409
            for stale in answer.json["verdict"]["stale_approvals"]
        }
        assert because == {"another version is live than then"}
