"""Adopting what was live before the gateway came."""

from __future__ import annotations

import asyncio

from service.audit import Operation
from service.backends.memory import MemoryTransport
from service.change import Promotion
from service.model import Call, Principal, Record
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


class Held(MemoryTransport):
    """Keeps back the answer to a written alias until `until`."""

    until: asyncio.Event | None = None

    async def send(self, request, *, writes, trace=""):
        answer = await super().send(request, writes=writes, trace=trace)
        if self.until is not None and request.rpc.endswith("setRegisteredModelAlias"):
            await self.until.wait()
        return answer


async def test_a_promotion_that_ends_meanwhile_stays_what_it_is(running, tmp_path):
    transport = Held()
    async with running(transport, environments=environments(tmp_path, TWO_MARKS.replace("after: staging, ", ""))) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        transport.until = asyncio.Event()
        promotion = asyncio.create_task(ask(client.be("service:ci"), "promotions", version, reason="mine"))
        while "champion" not in it.memory.models["iris"]["aliases"]:
            await asyncio.sleep(0)
        adoption = asyncio.create_task(client("POST", ADOPT, {"reason": "adopter"}))
        await asyncio.sleep(0.1)
        transport.until.set()
        assert (await promotion).status == 200
        assert {row["state"] for row in (await adoption).json["adopted"]} == {"recorded"}
        history = (await client("GET", f"{V1}/iris/environments/production/history")).json["history"]
        assert [(item["kind"], item["by"], item["reason"]) for item in history] == [("promotion", "service:ci", "mine")]


async def test_what_is_in_quarantine_is_skipped(running, tmp_path):
    async with running(environments=environments(tmp_path, TWO_MARKS)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await client.be("user:lead")("POST", f"{V1}/iris/versions/{version}/quarantine", {"reason": "leaked"})
        it.memory.models["iris"]["aliases"]["challenger"] = version
        await client("POST", f"{V1}/iris/environments/staging/checks", {})
        for dry_run in (True, False):
            (row,) = (await client("POST", ADOPT, {"reason": "r", "dry_run": dry_run})).json["adopted"]
            assert (row["state"], row["because"]) == ("skipped", f"version {version} is in quarantine")
        await client("DELETE", f"{V1}/iris/versions/{version}/quarantine")
        assert (await ask(client, "promotions", version)).status == 409


async def test_a_model_that_is_being_settled_or_changed_is_skipped(running, tmp_path):
    text = TWO_MARKS.replace("after: staging, ", "")
    async with running(environments=environments(tmp_path, text), lock_seconds=0.2) as it:
        client = Client(it.application.asgi)
        await estate(it, client, 2)
        call = Call(
            principal=Principal("user:admin"), registry="main", name="promote", needs=(), record=Record.EACH,
            change=Promotion("m0", "production", "1"),
        )  # fmt: skip
        await it.application.trail.intent(Operation.opened(call, it.application.trail.now()))
        async with it.application.gateway.lock("main", ("m1",)):
            done = await client("POST", ADOPT, {"reason": "r"})
        reasons = {row["model"]: row["because"] for row in done.json["adopted"] if row["state"] == "skipped"}
        assert done.status == 200
        assert reasons == {
            "m0": "a change of the model is being settled; run it again",
            "m1": "another change of the model is under way",
        }
        assert await it.events(action="environment:adopt", phase="outcome") == []


async def test_a_version_made_again_under_its_number_is_another(running, tmp_path):
    async with running(environments=environments(tmp_path, TWO_MARKS)) as it:
        client = Client(it.application.asgi)
        await estate(it, client, 1)
        await client("POST", ADOPT, {"reason": "r"})
        it.memory.models["m0"]["versions"]["1"]["creation_timestamp"] += 1
        done = await client("POST", ADOPT, {"reason": "r"})
        assert {row["state"] for row in done.json["adopted"]} == {"adopted"}


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


async def test_an_adoption_can_say_whose_a_model_is(running, tmp_path):
    shipped = (ROOT / "policies/policy.csv").read_text()
    (tmp_path / "rows.csv").write_text(shipped + "p, owner, *, models/*, model:update, allow\n")
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(tmp_path / "rows.csv")}
    async with running(environments=environments(tmp_path, TWO_MARKS), access=access) as it:
        client = Client(it.application.asgi)
        lead = client.be("user:lead")
        await estate(it, client, 2)
        it.memory.models["old"] = it.memory.models.pop("m1")  # created beside the gateway
        it.memory.models["old"]["name"] = "old"
        for version in it.memory.models["old"]["versions"].values():
            version["name"] = "old"
        for wrong in ("user:admin", "group:data-scientists", "owner", "user:", "user:a:b", "user:a\u0001"):
            refused = await client("POST", ADOPT, {"reason": "day one", "owner": wrong})
            assert (refused.status, "owner" in refused.json["detail"]) == (400, True), wrong
        assert await it.events(action="environment:adopt", outcome="succeeded") == []

        async def may(model):
            answer = await lead.rpc("PATCH", "registered-models/update", name=model, description="x")
            return answer.status != 403

        assert not await may("old")
        body = {"reason": "day one", "owner": "user:lead"}
        assert (await client("POST", ADOPT, {**body, "dry_run": True})).status == 200
        assert not await may("old")
        done = await client("POST", ADOPT, body)
        assert {row["state"] for row in done.json["adopted"]} == {"adopted"}
        assert await may("old")
        assert not await may("m0")  # who created it is on record
        events = await it.events(action="environment:adopt", model="old")
        assert [event["data"]["after"].get("owner") for event in events] == ["user:lead", None]
