"""The commands that look and add, against a gateway that listens."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.client import Client
from tests.faults.served import served
from tests.promotion.flow import promote, register, simple
from tests.promotion.test_pipeline import run

RULES = "[{name: floor, require: 'candidate.metrics.accuracy >= 0.9', because: low, waivable: true}]"


async def test_from_evidence_to_an_emergency(running, tmp_path):
    async with running(environments=simple(tmp_path, "", RULES)) as it, served(it.application.asgi) as url:
        client = Client(it.application.asgi)
        good, low = await register(it, client), await register(it, client, accuracy=0.5)

        async def ok(*arguments, who="user:lead"):
            status, out, err = await run(url, *arguments, who=who)
            assert status == 0, (out, err)
            return out

        posted = await ok(
            "evidence", "post", "iris", good, "bias", "failed", "--facts", '{"gap": 0.2}', who="service:ci"
        )
        assert "bias failed by service:ci" in posted
        review = await ok("review", "iris", good, "production")
        assert ("candidate.metrics = " in review, "pass   floor" in review) == (True, True)
        assert "evidence: bias failed by service:ci" in review
        digest = json.loads(await ok("review", "iris", good, "production", "--format", "json"))["digest"]
        assert review.endswith(f"review {digest}\n")

        asked = await ok("request", "iris", good, "production", "--reason", "spring", who="user:scientist")
        assert f"iris version {good} for production by user:scientist: spring (open until" in asked
        assert await ok("requests", "--mine") == asked
        await promote(client, good)
        assert await ok("requests") == "none\n"
        assert f"production: version {good} since 20" in (status := await ok("status", "iris", "production"))
        assert "by service:ci (promotion)" in status
        it.memory.models["iris"]["aliases"]["champion"] = low
        await asyncio.sleep(1)  # what is moved beside the gateway is seen within a second
        assert "drifted: " in await ok("status", "iris", "production")
        it.memory.models["iris"]["aliases"]["champion"] = good

        kept = await ok("quarantine", "iris", good, "--reason", "leaked labels")
        assert f"version {good} is in quarantine: leaked labels" in kept
        assert await ok("quarantine", "iris", good, "--reason", "checked", "--lift") == "lifted\n"

        assert await ok("emergencies") == "none\n"
        await ok("promote", "iris", low, "production", "--emergency", "--reason", "fraud", "--ticket", "INC-1")
        owed = await ok("emergencies")
        assert f"iris version {low} in production by user:lead, INC-1: fraud (to be reviewed)" in owed
        identifier = owed.split()[0]
        reviewed = await ok("emergencies", "--review", identifier, "--reason", "fixed", who="user:admin")
        assert "(reviewed by user:admin: fixed)" in reviewed
        assert (await ok("emergencies"), await ok("emergencies", "--all")) == ("none\n", reviewed)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("status", "iris", "production"), 1, "live"),
        (("review", "iris", "99", "production"), 1, "99"),
        (("quarantine", "iris", "1"), 2, "--reason"),
        (("request", "iris", "1", "production"), 2, "--reason"),
        (("evidence", "post", "iris", "1", "bias", "maybe"), 2, "passed"),
        (("evidence", "post", "iris", "1", "bias", "passed", "--facts", "12"), 2, "a JSON object such as"),
        (("quarantine", "iris", "1", "--reason", "r"), 1, "may not version:quarantine"),
        (("emergencies", "--review", "x", "--reason", "r"), 1, "no emergency of this id"),
        (("status", "iris", "production", "--url", "http://127.0.0.1:1", "--format", "junit"), 2, "usage"),
    ],
)
async def test_what_cannot_be_done_says_so(running, tmp_path, arguments, status, says):
    async with running(environments=simple(tmp_path)) as it, served(it.application.asgi) as url:
        await register(it, Client(it.application.asgi))
        found, out, err = await run(url, *arguments)
        assert (found, says in out + err, "Traceback" in err) == (status, True, False), (out, err)
