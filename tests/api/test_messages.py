"""What a refusal says: what was wrong, by its name, and what to send instead."""

from __future__ import annotations

import pytest

from tests.client import Client


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("phase=outcom", "phase=outcom is unknown; phase is one of: denied, intent, outcome, reconciled,"),
        ("action=environment:promot", "environment:promote,"),
        ("outcome=success", "outcome is one of: denied, failed, rejected, succeeded, unknown."),
    ],
)
async def test_a_filter_that_nothing_can_pass_is_refused(running, query, says):
    async with running() as it:
        reply = await Client(it.application.asgi)("GET", f"/v1/audit/events?{query}")
        assert (reply.status, says in reply.json["detail"]) == (400, True), reply.json


async def test_filters_of_what_there_is_are_taken(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await client("POST", "/v1/registries/main/adoptions", raw=b"{")
        for query in ("phase=rejected", "action=request:refuse", "outcome=rejected"):
            reply = await client("GET", f"/v1/audit/events?{query}")
            assert (reply.status, len(reply.json["events"])) == (200, 1)
