"""Promotion requests: asked for, awaited, completed by a promotion, cancelled, expired."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from service.backends.memory import MemoryTransport
from service.errors import RegistryUnavailable
from tests.client import Client
from tests.conftest import ROOT
from tests.promotion.flow import ask, promote, register, satisfy, simple

REQUESTS = "/v1/promotion-requests"
READ_IRIS = "p, group:ml-leads, *, models/iris/*, *, allow\np, group:ml-leads, *, models/iris, *, allow\n"


async def test_a_request_shows_the_verdict_and_is_completed_by_the_promotion(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        scientist, lead, viewer = (client.be(f"user:{name}") for name in ("scientist", "lead", "viewer"))
        change = {"id": "CHG-7", "window": "tonight"}
        made = await ask(scientist, "promotion-requests", version, reason="better", change=change)
        assert (made.status, made.json["state"], made.json["verdict"]["allowed"]) == (201, "open", False)
        assert made.json["change"] == {**change, "fallback": ""}
        one = f"{REQUESTS}/{made.json['id']}"
        awaiting = {}
        for who in (scientist, lead, viewer):
            found = await who("GET", f"{REQUESTS}?awaiting=me")
            awaiting[who.principal] = [item["id"] for item in found.json["promotion_requests"]]
        assert awaiting == {"user:scientist": [], "user:lead": [made.json["id"]], "user:viewer": []}
        assert len((await viewer("GET", REQUESTS)).json["promotion_requests"]) == 1
        await satisfy(client, version)
        assert (await viewer("GET", one)).json["verdict"]["allowed"] is True
        done = await promote(client, version)
        assert done.status == 200
        ended = (await viewer("GET", one)).json
        assert (ended["state"], ended["promotion"], ended["ended_by"]) == ("completed", done.json["id"], "service:ci")
        assert (await viewer("GET", REQUESTS)).json == {"promotion_requests": []}
        assert (await scientist("DELETE", one)).status == 409


async def test_the_same_is_asked_once_and_cancelled_by_its_author_or_who_may_promote(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        scientist = client.be("user:scientist")
        made = await ask(scientist, "promotion-requests", version)
        assert (await ask(client, "promotion-requests", version)).status == 409
        one = f"{REQUESTS}/{made.json['id']}"
        assert (await client.be("user:viewer")("DELETE", one)).status == 403
        assert (await scientist("DELETE", one)).status == 204
        again = await ask(scientist, "promotion-requests", version)
        assert again.status == 201
        assert (await client.be("user:lead")("DELETE", f"{REQUESTS}/{again.json['id']}")).status == 204
        assert (await client("GET", f"{REQUESTS}/nothing")).status == 404


async def test_it_expires(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await ask(client, "promotion-requests", version, expires="2020-01-01T00:00:00Z")).status == 400
        made = await ask(client, "promotion-requests", version, expires="2030-01-01T00:00:00Z")
        assert made.status == 201
        it.application.trail.now = lambda: 2_000_000_000.0
        assert (await client("GET", f"{REQUESTS}/{made.json['id']}")).json["state"] == "expired"
        assert (await client("GET", REQUESTS)).json == {"promotion_requests": []}


async def test_who_may_not_ask_and_what_does_not_exist(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await ask(client.be("user:viewer"), "promotion-requests", version)).status == 403
        assert (await ask(client, "promotion-requests", "99")).status == 404
        assert (await ask(client, "promotion-requests", version, model="nothing")).status == 404


@pytest.mark.parametrize("old", ["expired", "hidden"])
async def test_old_requests_hide_no_new_ones(running, tmp_path, old):
    rows = tmp_path / "rows.csv"
    rows.write_text("p, group:platform, *, *, *, allow\np, group:data-scientists, *, *, *, allow\n" + READ_IRIS)
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(access=access) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        model, expires = ("iris", 2.0) if old == "expired" else ("secret", 4e9)
        with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as journal, journal:
            journal.executemany(
                "INSERT INTO requests (id, registry, model, environment, version, binding, by, persons, reason, change,"
                " at, expires, state, ended_by, operation) VALUES"
                f" (?, 'main', '{model}', 'production', '1', 'b', 'user:x', '[]', '', '{{}}', ?, ?, 'open', '', '')",
                [(str(index), float(index), expires) for index in range(1000)],
            )
        made = await ask(client, "promotion-requests", version)
        for target in (REQUESTS, f"{REQUESTS}?awaiting=me"):
            listed = (await client.be("user:lead")("GET", target)).json["promotion_requests"]
            assert [item["id"] for item in listed] == [made.json["id"]]


async def test_what_cannot_be_judged_is_not_stored(running, tmp_path):
    class Failing(MemoryTransport):
        fails = False

        async def send(self, request, *, writes, trace=""):
            if self.fails and request.rpc.endswith("getRun"):
                message = "no"
                raise RegistryUnavailable(message)
            return await super().send(request, writes=writes, trace=trace)

    registry = Failing()
    rules = "[{name: accurate, require: candidate.metrics.accuracy > 0.5}]"
    async with running(registry, environments=simple(tmp_path, "", rules)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        registry.fails = True
        failed = await ask(client, "promotion-requests", version)
        assert failed.status in (502, 503)
        assert (await client("GET", REQUESTS)).json == {"promotion_requests": []}
        assert len(await it.events(action="environment:request", phase="rejected")) == 1
        registry.fails = False
        made = await ask(client, "promotion-requests", version)
        assert (made.status, made.json["verdict"]["allowed"]) == (201, True)
