"""What is live, now and then; who waits learns of a change within a second."""

from __future__ import annotations

import asyncio
import time

import pytest
import yaml

from service.backends.memory import MemoryTransport
from service.governance.standing import MAX_WAITS
from tests.client import Client
from tests.conftest import ROOT
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


class Counting(MemoryTransport):
    """Counts what is read of the registry."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    async def send(self, request, *, writes, trace=""):
        self.reads += 1
        return await super().send(request, writes=writes, trace=trace)

    async def get(self, path, query, limit):
        self.reads += 1
        return await super().get(path, query, limit)


async def reads_of(it, count, *, seconds):
    """Let *count* wait for what is live, which does not change; then for a promotion. Give what both cost in reads."""
    client = Client(it.application.asgi)
    first, second = await register(it, client), await register(it, client)
    await ask(client, "promotions", first)
    known = (await client("GET", LIVE)).headers["etag"]
    readers = [client.be(who) for who in ("user:viewer", "user:lead", "user:admin")]

    def waiting(query):
        each = (readers[number % 3] for number in range(count))
        tasks = [asyncio.create_task(who("GET", LIVE + query, headers=[("if-none-match", known)])) for who in each]
        return asyncio.gather(*tasks)

    before = it.memory.reads
    assert {answer.status for answer in await waiting(f"?wait={seconds}")} == {304}
    idle = it.memory.reads - before
    answers = waiting("?wait=30")
    while sum(it.application.gateway._watch._waiting.values()) < count:
        await asyncio.sleep(0.01)
    await ask(client, "promotions", second)
    before = it.memory.reads
    assert {answer.json["version"] for answer in await answers} == {second}
    return idle, it.memory.reads - before


async def test_three_hundred_that_wait_cost_what_one_does(running, tmp_path):
    costs = []
    for count in (1, 300):
        directory = tmp_path / str(count)
        directory.mkdir()
        async with running(Counting(), directory, environments=simple(directory)) as it:
            costs.append(await reads_of(it, count, seconds=3))
    (one, change_of_one), (many, change_of_many) = costs
    assert many <= one + 6, costs  # a look is two reads
    assert change_of_many <= change_of_one + 2, costs


async def test_where_many_models_are_waited_for_each_is_read_less_often(running, tmp_path, monkeypatch):
    monkeypatch.setattr("service.watching.LOOKS_A_SECOND", 10)
    async with running(Counting(), environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        for number in range(60):
            await client.rpc("POST", "registered-models/create", name=f"m{number}")
        before = it.memory.reads
        await asyncio.gather(*(client("GET", f"{V1}/m{number}/environments/production?wait=3") for number in range(60)))
        assert it.memory.reads - before <= 60 * 2 + 3 * 10 + 60


async def viewer_waits(it, client):
    """Make the first of two versions live, and have the viewer wait; return the second and what the viewer gets."""
    first, second = await register(it, client), await register(it, client)
    await ask(client, "promotions", first)
    known = (await client("GET", LIVE)).headers["etag"]
    viewer = client.be("user:viewer")
    waiting = asyncio.create_task(viewer("GET", f"{LIVE}?wait=30", headers=[("if-none-match", known)]))
    while not it.application.gateway._watch._waiting:
        await asyncio.sleep(0)
    return second, waiting


async def test_a_right_that_goes_while_waiting_is_missed_at_the_answer(running, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text((ROOT / "policies/policy.csv").read_text())
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(environments=simple(tmp_path), access=access) as it:
        client = Client(it.application.asgi)
        second, waiting = await viewer_waits(it, client)
        rows.write_text(rows.read_text().replace("g, group:readers, role:reader", ""))
        it.application.authorizer.reload()
        await ask(client, "promotions", second)
        answer = await waiting
        assert (answer.status, "version" in answer.json) == (403, False)


async def test_a_key_that_is_revoked_while_its_owner_waits_is_told_nothing(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        second, waiting = await viewer_waits(it, client)
        keys = it.application.configuration.path("keys.yaml")
        entries = [entry for entry in yaml.safe_load(keys.read_text()) if entry["principal"] != "user:viewer"]
        keys.write_text(yaml.safe_dump(entries))
        await it.application.follow_files()
        await ask(client, "promotions", second)
        answer = await waiting
        assert (answer.status, "version" in answer.json) == (401, False)


async def test_one_principal_waits_so_many_times_and_no_more(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        viewer = client.be("user:viewer")
        waiting = [asyncio.create_task(viewer("GET", f"{LIVE}?wait=1")) for _ in range(MAX_WAITS)]
        while it.application.gateway._watch._waiting.get(("main", "iris")) != MAX_WAITS:
            await asyncio.sleep(0)
        refused = await viewer("GET", f"{LIVE}?wait=1")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert (await viewer("GET", LIVE)).status == 404
        assert (await client("GET", f"{LIVE}?wait=1")).status == 404
        assert {answer.status for answer in await asyncio.gather(*waiting)} == {404}
        assert (await viewer("GET", f"{LIVE}?wait=1")).status == 404


async def test_a_deny_on_the_model_closes_its_environments(running, tmp_path):
    rows = tmp_path / "rows.csv"
    deny = "p, group:readers, *, models/iris, model:read, deny\n"
    rows.write_text((ROOT / "policies/policy.csv").read_text() + deny)
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    more = "waivable: [approvals]\napprovals: {required: [{group: 'group:ml-leads'}]}"
    async with running(environments=simple(tmp_path, more), access=access) as it:
        client = Client(it.application.asgi)
        viewer = client.be("user:viewer")
        for model in ("iris", "rose"):
            version = await register(it, client, model=model)
            emergency = {"reason": "r", "ticket": "t"}
            done = await ask(client, "promotions", version, model=model, emergency=emergency)
            assert done.status == 200
            reviewed = f"/v1/emergencies/{done.json['id']}/reviews"
            assert (await client.be("user:lead")("POST", reviewed, {"reason": "seen"})).status == 200
            asked = await ask(client, "promotion-requests", await register(it, client, model=model), model=model)
            live = f"{V1}/{model}/environments/production"
            status = 403 if model == "iris" else 200
            for query in ("", "?at=2099-01-01T00:00:00Z", "?wait=1", "/history"):
                assert (await viewer("GET", live + query)).status == status, query
            assert (await viewer("POST", f"{live}/checks", {})).status == status
            found = await viewer("GET", f"/v1/promotion-requests/{asked.json['id']}")
            assert found.status == (404 if model == "iris" else 200)
        listed = (await viewer("GET", "/v1/promotion-requests")).json["promotion_requests"]
        debts = (await viewer("GET", "/v1/emergencies?closed=true")).json["emergencies"]
        assert ([item["model"] for item in listed], [item["model"] for item in debts]) == (["rose"], ["rose"])
