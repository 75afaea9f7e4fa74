"""Explanations over HTTP: one's own for everybody, the rows for those who may know them, others' with access:read."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from urllib.parse import urlencode

import pytest

from tests.api.test_refusals import policy
from tests.client import Client

RETIRE = {
    "registry": "main",
    "resource": "models/iris/environments/production",
    "action": "environment:retire",
}
EXPLAIN = "p, group:data-scientists, main, access, access:explain, allow"
READ = "p, group:data-scientists, main, access, access:read, allow"


def asking(route="explain", **fields):
    return f"/v1/access/{route}?{urlencode({**RETIRE, **fields}, doseq=True)}"


async def test_everybody_is_told_what_was_decided_about_them(running, tmp_path):
    async with running(access=policy(tmp_path)) as it:
        client = Client(it.application.asgi, "user:scientist")
        told = (await client("GET", asking())).json
        assert (told["subject"], told["groups"], told["allowed"]) == (
            "user:scientist",
            ["group:data-scientists"],
            False,
        )
        assert told["revision"] == it.application.authorizer.snapshot.revision
        assert (told["row"], told["path"], told["roles"], told["near"]) == (None, [], [], [])
        assert "access:explain" in told["hidden"]
        assert "policy.csv" not in str(told)
        allowed = (await client("GET", asking(action="model:read", resource="models/iris"))).json
        assert (allowed["allowed"], allowed["row"]) == (True, None)


async def test_the_rows_are_read_for_one_at_a_time(running, monkeypatch):
    at_once, most, enough = [], [0], threading.Event()

    def slow(inner):
        def read(*asked):
            at_once.append(1)
            most[0] = max(most[0], len(at_once))
            enough.wait(0.02)
            at_once.pop()
            return inner(*asked)

        return read

    async with running() as it:
        explainer = it.application.governance.access.explainer
        for name in ("explain", "who_can"):
            monkeypatch.setattr(explainer, name, slow(getattr(explainer, name)))
        client = Client(it.application.asgi)
        answers = await asyncio.gather(*(client("GET", asking(route)) for route in ("explain", "who-can") * 3))
        assert [answer.status for answer in answers] == [200] * 6
        assert most == [1]


async def test_who_may_explain_sees_the_rows_for_themselves_alone(running, tmp_path):
    async with running(access=policy(tmp_path, EXPLAIN)) as it:
        client = Client(it.application.asgi, "user:scientist")
        told = (await client("GET", asking())).json
        assert told["near"]
        assert [near for near in told["near"] if "subject" in near["differs"]] == []
        assert "access:read" in told["hidden"]
        allowed = (await client("GET", asking(action="model:read", resource="models/iris"))).json
        assert allowed["row"]["text"] == "p, role:reader, *, models/*, model:read, allow"
        assert [step["role"] for step in allowed["path"]] == [
            "group:data-scientists",
            "role:scientist",
            "role:reader",
        ]
        assert allowed["path"][0]["where"] is None
        assert allowed["path"][1]["where"].startswith("policy.csv:")


async def test_who_may_read_the_policy_sees_all_rows_and_asks_about_others(running, tmp_path):
    async with running(access=policy(tmp_path, READ)) as it:
        client = Client(it.application.asgi, "user:scientist")
        told = (await client("GET", asking())).json
        assert told["hidden"] == ""
        assert [near["text"] for near in told["near"] if "subject" in near["differs"]]
        other = (await client("GET", asking(subject="user:zoe", group=["group:x", "group:ml-leads"]))).json
        assert (other["subject"], other["allowed"], other["groups"]) == (
            "user:zoe",
            True,
            ["group:ml-leads", "group:x"],
        )
        assert other["row"]["text"] == "p, role:lead, *, models/*/environments/*, environment:retire, allow"
        await it.application.gateway.tally.flush()
        (summed,) = await it.events(phase="summed", action="access:read")
        assert (summed["data"]["actor"]["subject"], summed["data"]["calls"]) == (
            "user:scientist",
            {"explainAccess": 1},
        )


async def test_others_are_no_business_of_who_may_not_read(running, tmp_path):
    async with running(access=policy(tmp_path, EXPLAIN)) as it:
        client = Client(it.application.asgi, "user:scientist")
        for asked in (asking(subject="user:zoe"), asking(subject="group:ml-leads"), asking("who-can")):
            refused = await client("GET", asked)
            assert (refused.status, "access:read on access" in refused.json["detail"]) == (403, True)
        assert len(await it.events(phase="denied", action="access:read")) == 3
        own = await client("GET", asking(subject="user:scientist"))  # as without a name
        assert (own.status, own.json["groups"]) == (200, ["group:data-scientists"])
        lent = await client("GET", asking(subject="user:scientist", group=["group:platform"]))
        assert lent.status == 403


async def test_who_can_lists_who_may_and_by_which_row(running, tmp_path):
    deny = "p, user:mallory, main, models/iris/environments/production, environment:retire, deny"
    async with running(access=policy(tmp_path, deny)) as it:
        told = (await Client(it.application.asgi)("GET", asking("who-can"))).json
        assert {item["subject"] for item in told["allowed"]} == {
            "group:ml-leads",
            "group:platform",
            "role:lead",
            "role:platform",
        }
        assert [item["subject"] for item in told["denied"]] == ["user:mallory"]
        assert told["denied"][0]["row"]["text"] == deny


async def test_a_narrowed_credential_is_explained_as_it_is(running):
    async with running() as it:

        async def authenticate(authorization, inner=it.application.asgi._authenticate):
            scope = frozenset({"main/model:read", "main/access:read"})
            return dataclasses.replace(await inner(authorization), scope=scope)

        it.application.asgi._authenticate = authenticate
        client = Client(it.application.asgi)
        told = (await client("GET", asking())).json
        assert (told["allowed"], told["beyond_scope"], told["row"]) == (False, True, None)
        told = (await client("GET", asking(action="model:read", resource="models/iris"))).json
        assert (told["allowed"], told["beyond_scope"]) == (True, False)


async def test_an_owner_is_told_that_it_is_one_and_others_are_decided_as_they_are(running, tmp_path):
    access = policy(tmp_path, READ, "p, owner, main, models/*, model:delete, allow")
    async with running(access=access) as it:
        client = Client(it.application.asgi, "user:scientist")
        await client.rpc("POST", "registered-models/create", name="iris")
        asked = {"action": "model:delete", "resource": "models/iris"}
        told = (await client("GET", asking(**asked))).json
        assert [(step["role"], step["where"]) for step in told["path"]] == [("owner", "journal")]
        assert told["allowed"] is True
        for subject, allowed in (("user:scientist", True), ("user:zoe", False)):
            groups = ["group:data-scientists"]  # named, so that the question is not about oneself
            told = (await client("GET", asking(subject=subject, group=groups, **asked))).json
            assert (told["allowed"], "owner" in told["roles"]) == (allowed, allowed)
        question = {
            "subject": {"type": "user", "id": "scientist"},
            "action": {"name": "model:delete"},
            "resource": {"type": "registry", "id": "main/models/iris"},
        }
        told = (await client.be("user:admin")("POST", "/access/v1/evaluation", question)).json
        assert told["decision"] is True


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"action": "environment:retier"}, 400, "Unknown action 'environment:retier'"),
        ({"resource": "models/*"}, 400, "is a pattern"),
        ({"resource": "models/iris"}, 400, "never asked on"),
        ({"registry": "none"}, 404, "No registry is named 'none'"),
        ({"subject": "ann"}, 400, "does not begin with user:"),
        ({"group": "group:x"}, 400, "send subject, or leave group out"),
        ({"subject": "user:x", "group": ["team"]}, 400, "'team' does not begin"),
        ({"subject": "user:x", "group": [f"group:g{number}" for number in range(101)]}, 400, "More than 100 groups"),
        ({"who": "me"}, 400, "'who' is unknown here"),
    ],
)
async def test_what_nobody_can_ask_is_refused(running, fields, status, says):
    async with running() as it:
        refused = await Client(it.application.asgi)("GET", asking(**fields))
        assert (refused.status, says in refused.json["detail"]) == (status, True), refused.json


async def test_a_key_is_needed(running):
    async with running() as it:
        assert (await Client(it.application.asgi, None)("GET", asking())).status == 401
