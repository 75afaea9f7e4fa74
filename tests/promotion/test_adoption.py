"""Adopting what was live before the gateway came."""

from __future__ import annotations

from tests.client import Client
from tests.conftest import ROOT
from tests.promotion.flow import V1, ask, environments, register

ADOPT = "/v1/registries/main/adoptions"
TWO_MARKS = """\
environments:
  staging: {marks: [{alias: challenger}], rules: []}
  production: {marks: [{alias: champion}, {stage: Production}], after: staging, rules: []}
"""


async def estate(it, client, count=3):
    for index in range(count):
        version = await register(it, client, model=f"m{index}")
        model = it.memory.models[f"m{index}"]
        model["aliases"]["champion"] = version
        model["versions"][version]["current_stage"] = "Production"


async def test_one_act_adopts_all_with_one_event_a_mark(running, tmp_path):
    async with running(environments=environments(tmp_path, TWO_MARKS)) as it:
        client = Client(it.application.asgi)
        await estate(it, client)
        listed = await client("POST", ADOPT, {"reason": "day one", "dry_run": True})
        assert {(row["model"], row["mark"], row["state"]) for row in listed.json["adopted"]} == {
            (f"m{index}", mark, "to-adopt") for index in range(3) for mark in ("alias champion", "stage Production")
        }
        assert await it.events(action="environment:adopt") == []
        done = await client("POST", ADOPT, {"reason": "day one"})
        assert (done.status, {row["state"] for row in done.json["adopted"]}) == (200, {"adopted"})
        found = await it.events(action="environment:adopt")
        assert len(found) == 6
        assert {event["data"]["reason"] for event in found} == {"day one"}
        assert await it.application.drift.sweep(it.application.backends["main"]) == []
        live = (await client("GET", f"{V1}/m0/environments/production")).json
        assert (live["kind"], live["drifted"], live["by"]) == ("baseline", False, "user:admin")
        again = await client("POST", ADOPT, {"reason": "again"})
        assert {row["state"] for row in again.json["adopted"]} == {"recorded"}
        assert len(await it.events(action="environment:adopt")) == 6


async def test_a_baseline_counts_as_having_been_live(running, tmp_path):
    async with running(environments=environments(tmp_path, TWO_MARKS)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        it.memory.models["iris"]["aliases"]["challenger"] = version
        assert (await ask(client, "promotions", version)).status == 409
        await client("POST", ADOPT, {"reason": "day one", "environment": "staging"})
        assert (await ask(client, "promotions", version)).status == 200


async def test_without_the_right_for_each_nothing_is_adopted(running, tmp_path):
    rows = tmp_path / "rows.csv"
    more = "p, user:lead, *, models/m0/environments/*, environment:adopt, allow\n"
    rows.write_text((ROOT / "policies/policy.csv").read_text() + more)
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(environments=environments(tmp_path, TWO_MARKS), access=access) as it:
        client = Client(it.application.asgi)
        await estate(it, client.be("user:admin"))
        lead = client.be("user:lead")
        assert (await lead("POST", ADOPT, {"reason": "r"})).status == 403
        assert await it.events(action="environment:adopt", phase="outcome") == []
        only = await lead("POST", ADOPT, {"reason": "r", "models": "m0"})
        assert (only.status, {row["model"] for row in only.json["adopted"]}) == (200, {"m0"})


async def test_a_denial_names_nothing_that_its_caller_cannot_read(running, tmp_path):
    rows = tmp_path / "rows.csv"
    allowed = (
        "user:admin, *, *, *",
        "user:scientist, *, *, *",
        "user:viewer, *, models/m1, model:read",
        "user:lead, *, models/m2/*, *",
    )
    rows.write_text("".join(f"p, {row}, allow\n" for row in allowed))
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(environments=environments(tmp_path, TWO_MARKS), access=access) as it:
        client = Client(it.application.asgi)
        await estate(it, client)
        for who, prefix, status in (
            ("user:viewer", "m0", 200),
            ("user:viewer", "m1", 403),
            ("user:viewer", "*", 403),
            ("user:lead", "*", 200),
            ("service:ci", "m*", 200),
        ):
            answer = await client.be(who)("POST", ADOPT, {"reason": "r", "dry_run": True, "models": prefix})
            assert answer.status == status, answer.body
            assert b"m0" not in answer.body, (who, prefix)
            if status == 200:
                assert {row["model"] for row in answer.json["adopted"]} == ({"m2"} if who == "user:lead" else set())


async def test_bad_input(running, tmp_path):
    async with running(environments=environments(tmp_path, TWO_MARKS)) as it:
        client = Client(it.application.asgi)
        for body in ({}, {"reason": ""}, {"reason": " "}, {"reason": "r", "models": ""}, {"reason": "r", "x": 1}):
            assert (await client("POST", ADOPT, body)).status == 400, body
        for body in ({"reason": "r", "environment": "nowhere"}, {"reason": "r", "models": "a*b"}):
            assert (await client("POST", ADOPT, body)).status in (400, 404), body
        assert (await client("POST", "/v1/registries/none/adoptions", {"reason": "r"})).status == 404


async def test_four_hundred_live_models_are_adopted_by_one_call(running, tmp_path):
    async with running(environments=environments(tmp_path, TWO_MARKS)) as it:
        client = Client(it.application.asgi)
        await estate(it, client, 400)
        backend = it.application.backends["main"]
        done = await client("POST", ADOPT, {"reason": "day one"})
        assert (done.status, len(done.json["adopted"])) == (200, 800)
        assert await it.application.drift.sweep(backend) == []
        assert len(await it.application.journal.live()) == 400
