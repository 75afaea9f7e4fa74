"""Emergencies: waivable rules are passed, somebody else has to look at it afterwards."""

from __future__ import annotations

import pytest

from tests.client import Client
from tests.promotion.flow import alias_of, ask, register, simple

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
        assert (blocked.status, debt in blocked.json["detail"]) == (409, True)
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
