"""Emergencies: waivable rules are passed, somebody else has to look at it afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3

import pytest
from structlog.testing import capture_logs

from service.backends.memory import MemoryTransport
from service.errors import JournalUnavailable, OutcomeUnknown
from tests.client import Client
from tests.conftest import ROOT
from tests.promotion.flow import alias_of, ask, environments, register, simple
from tests.promotion.test_requests import READ_IRIS

RULES = (
    "[{name: floor, require: 'candidate.metrics.accuracy >= 0.9', because: low, waivable: true},"
    " {name: tested, require: 'passed(evidence, \"validation\")', because: untested}]"
)
WHY = {"reason": "fraud wave", "ticket": "INC-1"}
DEBTS = "/v1/emergencies"


async def validated(client, version):
    body = {"kind": "validation", "result": "passed"}
    path = f"/v1/registries/main/models/iris/versions/{version}/evidence"
    assert (await client.be("service:ci")("POST", path, body)).status == 201


async def test_waivable_rules_are_passed_and_others_hold(running, tmp_path):
    async with running(environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        lead = client.be("user:lead")
        version = await register(it, client, accuracy=0.5)
        closed = await ask(lead, "promotions", version, emergency=WHY)
        assert closed.status == 409
        assert [(f["rule"], f["waived"]) for f in closed.json["verdict"]["findings"] if not f["passed"]] == [
            ("floor", True),
            ("tested", False),
        ]
        await validated(client, version)
        assert (await ask(lead, "promotions", version)).status == 409
        opened = await ask(lead, "promotions", version, emergency=WHY)
        assert (opened.status, alias_of(it)) == (200, version)
        event = (await it.events(action="environment:emergency", phase="outcome"))[-1]["data"]
        assert (event["reason"], event["change"]["ticket"]) == ("fraud wave", "INC-1")
        (debt,) = (await client("GET", DEBTS)).json["emergencies"]
        assert (debt["id"], debt["by"], debt["waived"], debt["ticket"]) == (
            opened.json["id"], "user:lead", ["floor"], "INC-1",
        )  # fmt: skip


async def test_an_open_debt_blocks_the_next_and_another_person_closes_it(running, tmp_path):
    async with running(environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        lead, admin = client.be("user:lead"), client.be("user:admin")
        first, second = await register(it, client, accuracy=0.5), await register(it, client, accuracy=0.6)
        for version in (first, second):
            await validated(client, version)
        debt = (await ask(lead, "promotions", first, emergency=WHY)).json["id"]
        blocked = await ask(admin, "promotions", second, emergency=WHY)
        assert blocked.status == 409
        (open_debt,) = [f for f in blocked.json["verdict"]["findings"] if f["rule"] == "debts-closed"]
        assert (open_debt["passed"], debt in open_debt["because"]) == (False, True)
        review = f"{DEBTS}/{debt}/reviews"
        assert (await lead("POST", review, {"reason": "fine"})).status == 403
        assert (await client.be("service:ci")("POST", review, {"reason": "fine"})).status == 403
        closed = await admin("POST", review, {"reason": "root cause fixed"})
        assert (closed.status, closed.json["closed_by"]) == (200, "user:admin")
        assert (await admin("POST", review, {"reason": "again"})).status == 409
        assert (await client("GET", DEBTS)).json == {"emergencies": []}
        assert len((await client("GET", f"{DEBTS}?closed=true")).json["emergencies"]) == 1
        assert (await ask(admin, "promotions", second, emergency=WHY)).status == 200


@pytest.mark.parametrize(
    "emergency", [{}, {"reason": "r"}, {"ticket": "t"}, {"reason": "", "ticket": "t"}, {"reason": "r", "ticket": ""}]
)
async def test_reason_and_ticket_are_needed(running, tmp_path, emergency):
    async with running(environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await ask(client, "promotions", version, emergency=emergency)).status == 400


class Lossy(MemoryTransport):
    """Does what it is asked, and the answer is lost."""

    loses = ""

    async def send(self, request, *, writes, trace=""):
        answer = await super().send(request, writes=writes, trace=trace)
        if self.loses and request.rpc.endswith(self.loses):
            message = "no answer"
            raise OutcomeUnknown(message)
        return answer


@pytest.mark.parametrize("fault", ["answer", "journal"])
async def test_a_lost_outcome_leaves_its_debt_and_completes_its_request(running, tmp_path, fault):
    memory = Lossy()
    async with running(memory, environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        lead = client.be("user:lead")
        first, second = await register(it, client, accuracy=0.1), await register(it, client, accuracy=0.2)
        for version in (first, second):
            await validated(client, version)
        assert (await ask(client.be("user:scientist"), "promotion-requests", first)).status == 201
        append = it.application.journal.append

        async def late(events, effects=(), **more):
            if any(item["data"]["phase"] == "outcome" for item in events):
                message = "late"
                raise JournalUnavailable(message)
            return await append(events, effects, **more)

        if fault == "answer":
            memory.loses = "setRegisteredModelAlias"
        else:
            it.application.journal.append = late
        hasty = await ask(lead, "promotions", first, emergency=WHY)
        assert hasty.status == (504 if fault == "answer" else 200)
        memory.loses, it.application.journal.append = "", append
        blocked = await ask(lead, "promotions", second, emergency=WHY)  # before anybody has settled the first
        assert blocked.json["verdict"]["findings"][-3]["rule"] == "debts-closed", blocked.body
        await it.application.reconciler.sweep()
        (debt,) = (await client("GET", DEBTS)).json["emergencies"]
        assert (debt["by"], debt["waived"], debt["version"]) == ("user:lead", ["floor"], first)
        assert (await client("GET", "/v1/promotion-requests")).json["promotion_requests"] == []
        assert (await ask(lead, "promotions", second, emergency=WHY)).status == 409


async def test_a_lost_emergency_that_was_taken_down_leaves_its_debt(running, tmp_path, monkeypatch):
    memory = Lossy()
    floor = RULES.split(", {name: tested", maxsplit=1)[0].rstrip(",") + "]"
    async with running(memory, environments=simple(tmp_path, "", floor)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=0.1)
        good = await register(it, client)
        assert (await ask(client, "promotions", good)).status == 200
        memory.loses = "setRegisteredModelAlias"
        assert (await ask(client.be("user:lead"), "promotions", version, emergency=WHY)).status == 504
        memory.loses = ""
        assert (await ask(client, "retirements", reason="it is wrong")).status == 200
        monkeypatch.setattr("service.reconciler.UNPROVEN_SECONDS", 0.0)
        await it.application.reconciler.sweep()
        settled = (await it.events(action="environment:emergency", phase="reconciled"))[0]["data"]
        assert settled["outcome"] == "unknown"
        (debt,) = (await client("GET", DEBTS)).json["emergencies"]
        assert debt["version"] == version


async def test_of_several_at_once_in_one_environment_one_passes(running, tmp_path):
    floor = RULES.split(", {name: tested", maxsplit=1)[0].rstrip(",") + "]"
    async with running(environments=simple(tmp_path, "", floor)) as it:
        client = Client(it.application.asgi)
        models = [f"m{index}" for index in range(5)]
        for model in models:
            await register(it, client, model=model, accuracy=0.1)
        asked = (ask(client.be("user:lead"), "promotions", "1", model=model, emergency=WHY) for model in models)
        assert sorted(answer.status for answer in await asyncio.gather(*asked)) == [200, 409, 409, 409, 409]
        assert len((await client("GET", DEBTS)).json["emergencies"]) == 1


async def test_a_version_in_quarantine_gets_no_further_mark_when_a_promotion_is_settled(running, tmp_path):
    class Silent(MemoryTransport):
        silent = True

        async def send(self, request, *, writes, trace=""):
            if self.silent and request.rpc.endswith("transitionModelVersionStage"):
                message = "no answer"
                raise OutcomeUnknown(message)
            return await super().send(request, writes=writes, trace=trace)

    memory = Silent()
    text = "environments:\n  production: {marks: [{alias: champion}, {stage: Production}], rules: []}\n"
    async with running(memory, environments=environments(tmp_path, text)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await ask(client, "promotions", version)).status == 504
        quarantine = f"/v1/registries/main/models/iris/versions/{version}/quarantine"
        assert (await client.be("user:lead")("POST", quarantine, {"reason": "leaked"})).status == 201
        memory.silent = False
        await it.application.reconciler.sweep()
        assert memory.models["iris"]["versions"][version]["current_stage"] == "None"
        settled = (await it.events(action="environment:promote", phase="reconciled"))[0]["data"]
        assert (settled["outcome"], "quarantine" in settled["detail"]) == ("succeeded", True)


async def test_the_right_is_its_own(running, tmp_path):
    async with running(environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        denied = await ask(client.be("service:ci"), "promotions", version, emergency=WHY)
        assert (denied.status, "environment:emergency" in denied.json["detail"]) == (403, True)


async def test_built_in_findings_are_waived_only_where_the_environment_says_so(running, tmp_path):
    more = (
        "freezes: [{from: 2020-01-01T00:00:00Z, until: 2090-01-01T00:00:00Z, because: year end}]\n"
        "approvals: {required: [{group: 'group:ml-leads'}]}\nwaivable: [freeze]"
    )
    async with running(environments=simple(tmp_path, more)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        closed = await ask(client, "promotions", version, emergency=WHY)
        assert [(f["rule"], f["waived"]) for f in closed.json["verdict"]["findings"] if not f["passed"]] == [
            ("freeze", True),
            ("approvals-ml-leads", False),
        ]


async def test_the_debt_of_a_model_that_one_may_not_read_is_named_by_its_id_only(running, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("p, group:platform, *, *, *, allow\np, group:data-scientists, *, *, *, allow\n" + READ_IRIS)
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(environments=simple(tmp_path, "", RULES), access=access) as it:
        client = Client(it.application.asgi)
        versions = {model: await register(it, client, model=model) for model in ("secret", "iris")}
        evidence = {"kind": "validation", "result": "passed"}
        for model, version in versions.items():
            path = f"/v1/registries/main/models/{model}/versions/{version}/evidence"
            assert (await client("POST", path, evidence)).status == 201
        debt = (await ask(client, "promotions", versions["secret"], model="secret", emergency=WHY)).json["id"]
        lead = client.be("user:lead")
        blocked = await ask(lead, "promotions", versions["iris"], emergency=WHY)
        assert (blocked.status, debt.encode() in blocked.body) == (409, True)
        assert b"secret" not in blocked.body
        assert (await lead("POST", f"{DEBTS}/{debt}/reviews", {"reason": "r"})).status == 404


async def test_a_debt_is_closed_however_many_there_were(running, tmp_path):
    async with running(environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=0.5)
        await validated(client, version)
        debt = (await ask(client.be("user:lead"), "promotions", version, emergency=WHY)).json["id"]
        with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as journal, journal:
            journal.executemany(
                "INSERT INTO debts (id, registry, model, environment, version, by, persons, reason, ticket, waived, at,"
                " closed_at, closed_by, closing_reason)"
                " VALUES (?, 'main', 'iris', 'production', '1', 'user:x', '[]', '', '', '[]', ?, 1.0, 'user:y', 'ok')",
                [(str(index), float(index)) for index in range(1000)],
            )
        listed = (await client("GET", f"{DEBTS}?closed=true")).json["emergencies"]
        assert (len(listed), listed[-1]["id"]) == (1000, debt)
        assert (await client("POST", f"{DEBTS}/{debt}/reviews", {"reason": "r"})).status == 200


async def test_an_emergency_is_logged_whole_and_counted_until_it_is_reviewed(running, tmp_path):
    async with running(environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=0.5)
        await validated(client, version)

        async def counted():
            await it.application.health.look()
            text = (await client("GET", "/metrics")).body.decode()
            return re.search(r'registry_gateway_emergencies_open{registry="main"} (\S+)', text)[1]

        assert await counted() == "0.0"
        with capture_logs() as logs:
            debt = (await ask(client.be("user:lead"), "promotions", version, emergency=WHY)).json["id"]
        (line,) = [item for item in logs if item["event"] == "emergency promotion"]
        said = (line["log_level"], line["principal"], line["version"], line["reason"], line["ticket"], line["waived"])
        assert said == ("error", "user:lead", version, "fraud wave", "INC-1", ("floor",))
        assert (line["operation"], await counted()) == (debt, "1.0")
        await client("POST", f"{DEBTS}/{debt}/reviews", {"reason": "fixed"})
        assert await counted() == "0.0"


async def test_the_shipped_environments_know_an_emergency(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await validated(client, version)
        lead = client.be("user:lead")
        assert (await ask(lead, "promotions", version)).status == 409
        assert (await ask(lead, "promotions", version, emergency=WHY)).status == 200
