"""The AuthZEN API: decisions for other services, in its shapes, with its errors, for callers who may ask."""

from __future__ import annotations

import dataclasses
import json

import pytest

from service.api.access_schemas import MAX_EVALUATIONS
from service.embedded import DEMO_PRINCIPALS
from service.governance.evaluations import MAX_VERDICTS
from tests.api.test_refusals import policy
from tests.client import Client
from tests.promotion.flow import register, satisfy, simple

ONE, MANY = "/access/v1/evaluation", "/access/v1/evaluations"
PRODUCTION = {"type": "registry", "id": "main/models/iris/environments/production"}
PROMOTE = {"name": "environment:promote"}
CI = {"type": "service", "id": "ci", "properties": {"groups": ["group:ci"]}}
QUESTION = {"subject": CI, "action": PROMOTE, "resource": PRODUCTION}
EVALUATE = "p, group:readers, main, access, access:evaluate, allow"
ASSUME = "p, group:readers, main, access, access:assume, allow"


def about(name, action="model:read"):
    return {"resource": {"type": "registry", "id": f"main/models/{name}"}, "action": {"name": action}}


async def test_a_decision_comes_with_its_row_and_revision(running):
    async with running() as it:
        client = Client(it.application.asgi)
        answer = await client("POST", ONE, QUESTION)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        context = answer.json["context"]
        revision = it.application.authorizer.snapshot.revision
        assert (answer.json["decision"], context["revision"]) == (True, revision)
        assert context["row"].startswith("policy.csv:")
        assert context["reason"] == f"{context['row']} allows it"
        denied = (await client("POST", ONE, {**QUESTION, "subject": {"type": "user", "id": "zoe"}})).json
        assert denied == {
            "decision": False,
            "context": {"revision": revision, "row": None, "reason": "no row allows it"},
        }


@pytest.mark.parametrize(
    ("subject", "allowed"),
    [
        ({"type": "service", "id": "ci"}, False),
        (CI, True),
        ({"type": "group", "id": "ci"}, True),
        ({"type": "group", "id": "readers"}, False),
        ({"type": "user", "id": "ci"}, False),
        ({"type": "user", "id": "role"}, False),
        ({"type": "user", "id": "x", "properties": {"groups": [], "department": "sales"}}, False),
    ],
)
async def test_a_subject_is_its_type_and_name(running, subject, allowed):
    async with running() as it:
        answer = await Client(it.application.asgi)("POST", ONE, {**QUESTION, "subject": subject, "unknown": {"a": 1}})
        assert (answer.status, answer.json["decision"]) == (200, allowed)


@pytest.mark.parametrize(
    ("rows", "subject", "status", "missing"),
    [
        ((), {"type": "user", "id": "zoe"}, 403, "access:evaluate"),
        ((EVALUATE,), {"type": "user", "id": "zoe"}, 200, None),
        ((EVALUATE,), CI, 403, "access:assume"),
        ((EVALUATE, ASSUME), CI, 200, None),
        ((ASSUME,), CI, 403, "access:evaluate"),
        ((EVALUATE.replace("main", "*"),), {"type": "user", "id": "zoe"}, 200, None),
    ],
)
@pytest.mark.parametrize("route", [ONE, MANY])
async def test_who_asks_needs_the_right_to(running, tmp_path, route, rows, subject, status, missing):
    async with running(access=policy(tmp_path, *rows)) as it:
        question = {**QUESTION, "subject": subject}
        body = question if route == ONE else {"evaluations": [question]}
        answer = await Client(it.application.asgi, "user:viewer")("POST", route, body)
        assert answer.status == status
        denied = await it.events(phase="denied")
        if missing is None:
            assert denied == []
            await it.application.gateway.tally.flush()
            (summed,) = await it.events(phase="summed")
            assert (summed["data"]["calls"], summed["data"]["action"]) == ({"evaluate": 1}, "access:evaluate")
        else:
            assert f"may not {missing} on access of main" in answer.json["detail"]
            assert [event["data"]["action"] for event in denied] == [missing]
            assert "decision" not in answer.json


async def test_groups_of_one_item_need_the_right_for_the_whole_call(running, tmp_path):
    async with running(access=policy(tmp_path, EVALUATE)) as it:
        body = {**QUESTION, "subject": {"type": "user", "id": "zoe"}, "evaluations": [{}, {"subject": CI}]}
        assert (await Client(it.application.asgi, "user:viewer")("POST", MANY, body)).status == 403


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"subject": {"type": "person", "id": "x"}}, "type 'person' is unknown; there are: user, service, group"),
        ({"subject": {"type": "role", "id": "platform"}}, "type 'role' is unknown"),
        ({"subject": {"type": "user", "id": "user:x"}}, "the subject 'user:user:x'"),
        ({"subject": {"type": "user", "id": ""}}, "the subject 'user:'"),
        ({"subject": {"type": "user", "id": "x", "properties": {"groups": "group:ci"}}}, "groups is a list"),
        ({"subject": {"type": "user", "id": "x", "properties": {"groups": ["role:platform"]}}}, "begin with group:"),
        ({"subject": {"type": "user", "id": "x", "properties": {"groups": ["group:x:y"]}}}, "'group:x:y'"),
        ({"resource": {"type": "model", "id": "main/models/iris"}}, "type 'model' is unknown; there is: registry"),
        ({"resource": {"type": "registry", "id": "main"}}, "id is <registry>/<resource>"),
        ({"resource": {"type": "registry", "id": "none/models/iris"}}, "no registry is named 'none'"),
        ({"resource": {"type": "registry", "id": "main/models/*"}}, "is a pattern"),
        ({"action": {"name": "promote"}}, "unknown action 'promote'"),
        ({"action": {"name": "model:read"}, "resource": {"type": "registry", "id": "main/audit"}}, "is never asked"),
        ({"context": {"version": 1}}, "The version is text"),
    ],
)
async def test_a_question_that_cannot_be_asked_says_why(running, change, says):
    async with running() as it:
        client = Client(it.application.asgi)
        refused = await client("POST", ONE, {**QUESTION, **change})
        assert (refused.status, says.lower() in refused.json["detail"].lower()) == (400, True), refused.json
        body = {**QUESTION, "evaluations": [{}, change, {}]}
        answer = (await client("POST", MANY, body)).json["evaluations"]
        assert [item["decision"] for item in answer] == [True, False, True]
        error = answer[1]["context"]["error"]
        assert (error["status"], says.lower() in error["message"].lower()) == (400, True)
        assert list(answer[1]["context"]) == ["error"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"subject": CI, "action": PROMOTE}, 400),
        ({**QUESTION, "subject": "ci"}, 400),
        ({**QUESTION, "context": []}, 400),
        ([QUESTION], 400),
        ({**QUESTION, "evaluations": ["x"]}, 400),
        ({**QUESTION, "evaluations": [{}] * (MAX_EVALUATIONS + 1)}, 400),
        ({**QUESTION, "evaluations": [{}], "options": {"evaluations_semantic": "first"}}, 400),
        ({**QUESTION, "evaluations": [{}], "options": {"another": 1}}, 200),
        ({**QUESTION, "evaluations": [{}] * MAX_EVALUATIONS}, 200),
    ],
)
async def test_a_call_that_cannot_be_read_is_refused_whole(running, body, status):
    async with running() as it:
        client = Client(it.application.asgi)
        answer = await client("POST", MANY, body)
        assert answer.status == status, answer.json
        if "evaluations" not in body:
            assert (await client("POST", ONE, body)).status == status


async def test_an_item_that_cannot_be_read_is_denied_alone(running):
    async with running() as it:
        items = [{"subject": 1}, {"resource": {"type": "registry"}}, {"unknown": 1}]
        answer = (await Client(it.application.asgi)("POST", MANY, {**QUESTION, "evaluations": items})).json
        assert [item["decision"] for item in answer["evaluations"]] == [False, False, True]
        lacking = (await Client(it.application.asgi)("POST", MANY, {"subject": CI, "evaluations": [QUESTION, {}]})).json
        assert "The action is missing" in lacking["evaluations"][1]["context"]["error"]["message"]


async def test_an_item_takes_from_the_top_level_what_it_lacks(running):
    async with running() as it:
        body = {
            "subject": {"type": "group", "id": "readers"},
            "action": {"name": "model:read"},
            "evaluations": [
                about("iris"),
                about("iris", "model:delete"),
                {**about("iris", "model:delete"), "subject": {"type": "group", "id": "platform"}},
            ],
        }
        answer = (await Client(it.application.asgi)("POST", MANY, body)).json
        assert [item["decision"] for item in answer["evaluations"]] == [True, False, True]
        body["resource"] = about("iris")["resource"]
        for without in (body | {"evaluations": []}, {k: v for k, v in body.items() if k != "evaluations"}):
            single = (await Client(it.application.asgi)("POST", MANY, without)).json
            assert (single["decision"], "evaluations" in single) == (True, False)


@pytest.mark.parametrize(
    ("semantic", "pattern", "answers"),
    [
        (None, "pdep", [True, False, False, True]),
        ("execute_all", "pdep", [True, False, False, True]),
        ("deny_on_first_deny", "pdep", [True, False]),
        ("deny_on_first_deny", "pep", [True, False]),
        ("deny_on_first_deny", "pp", [True, True]),
        ("permit_on_first_permit", "dep", [False, False, True]),
        ("permit_on_first_permit", "pd", [True]),
        ("permit_on_first_permit", "dd", [False, False]),
    ],
)
async def test_the_three_semantics(running, semantic, pattern, answers):
    kinds = {"p": about("iris"), "d": about("iris", "model:delete"), "e": about("iris", "model:dlete")}
    body = {"subject": {"type": "group", "id": "readers"}, "evaluations": [kinds[kind] for kind in pattern]}
    if semantic:
        body["options"] = {"evaluations_semantic": semantic}
    async with running() as it:
        found = (await Client(it.application.asgi)("POST", MANY, body)).json["evaluations"]
        assert [item["decision"] for item in found] == answers
        ended = len(found) < len(pattern)
        assert found[-1]["context"].get("reason", "").startswith(f"{semantic}: ") is ended


async def test_a_promotion_with_a_version_shows_its_verdict(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        before = len(await it.events())
        question = {**QUESTION, "resource": {**PRODUCTION, "properties": {"version": version}}}
        closed = (await client("POST", ONE, question)).json
        assert (closed["decision"], closed["context"]["verdict"]["allowed"]) == (True, False)
        in_context = (await client("POST", ONE, {**QUESTION, "context": {"version": version}})).json
        findings = [item["rule"] for item in closed["context"]["verdict"]["findings"]]
        assert [item["rule"] for item in in_context["context"]["verdict"]["findings"]] == findings
        assert len(await it.events()) == before  # a dry run leaves none
        await satisfy(client, version)
        assert (await client("POST", ONE, question)).json["context"]["verdict"]["allowed"] is True
        denied = (await client("POST", ONE, {**question, "subject": {"type": "user", "id": "zoe"}})).json
        assert (denied["decision"], "verdict" in denied["context"]) == (False, False)
        live = await client("GET", "/v1/registries/main/models/iris/environments/production")
        assert live.status == 404  # nothing was promoted


@pytest.mark.parametrize(
    ("model", "environment", "version", "status"),
    [
        ("iris", "production", "99", 404),
        ("iris", "prod", "1", 404),
        ("none", "production", "1", 404),
        ("iris", "production", "v1", 400),
    ],
)
async def test_a_verdict_that_cannot_be_given_says_why(running, model, environment, version, status):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        where = {"type": "registry", "id": f"main/models/{model}/environments/{environment}"}
        answer = (await client("POST", ONE, {**QUESTION, "resource": where, "context": {"version": version}})).json
        assert answer["decision"] is True
        assert answer["context"]["verdict_problem"]["status"] == status
        assert "verdict" not in answer["context"]


async def test_a_verdict_is_for_who_may_read_the_version(running, tmp_path):
    blind = "p, user:viewer, main, models/*/versions, version:read, deny"
    async with running(access=policy(tmp_path, EVALUATE, ASSUME, blind)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        question = {**QUESTION, "context": {"version": version}}
        answer = (await client.be("user:viewer")("POST", ONE, question)).json
        assert (answer["decision"], answer["context"]["verdict_problem"]["status"]) == (True, 403)
        assert "verdict" not in answer["context"]


CHAMPION = {"type": "registry", "id": "main/models/iris/aliases/champion"}
AS_PROMOTION = {"action": "environment:promote", "resource": "models/iris/environments/production"}


@pytest.mark.parametrize(
    ("rows", "action", "resource", "group", "allowed", "decided_as"),
    [
        ((), "alias:set", CHAMPION, "ci", True, AS_PROMOTION),
        ((), "alias:set", CHAMPION, "data-scientists", False, AS_PROMOTION),
        ((), "alias:set", {**CHAMPION, "id": "main/models/iris/aliases/dev"}, "data-scientists", True, None),
        ((), "stage:set", {**CHAMPION, "id": "main/models/iris/stages/Production"}, "ci", True, AS_PROMOTION),
        ((), "stage:set", {**CHAMPION, "id": "main/models/iris/stages/None"}, "ci", False, None),
        ((), "environment:promote", PRODUCTION, "ci", True, None),
        (("stage:set",), "environment:promote", PRODUCTION, "ci", False, "stage:set"),
        (("stage:set",), "environment:rollback", PRODUCTION, "ml-leads", False, "stage:set"),
        (("stage:set",), "environment:retire", PRODUCTION, "ml-leads", True, None),
        (("stage:set",), "alias:set", CHAMPION, "ci", False, "stage:set"),
    ],
)
async def test_a_write_on_a_mark_is_decided_as_a_request_is(
    running, tmp_path, rows, action, resource, group, allowed, decided_as
):
    denied = [f"p, role:reader, main, models/iris/stages/Production, {item}, deny" for item in rows]
    async with running(access=policy(tmp_path, *denied)) as it:
        question = {"subject": {"type": "group", "id": group}, "action": {"name": action}, "resource": resource}
        answer = (await Client(it.application.asgi)("POST", ONE, question)).json
        assert answer["decision"] is allowed
        found = answer["context"].get("decided_as")
        assert (found and found["action"] if isinstance(decided_as, str) else found) == decided_as


async def test_an_answer_is_what_the_same_write_meets(running, tmp_path):
    """What the gateway answers others is what it does itself, on guarded targets too."""
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        for principal, group in DEMO_PRINCIPALS.items():
            kind, _, name = principal.partition(":")
            subject = {"type": kind, "id": name, "properties": {"groups": [group]}}
            for alias in ("champion", "dev"):
                resource = {"type": "registry", "id": f"main/models/iris/aliases/{alias}"}
                question = {"subject": subject, "action": {"name": "alias:set"}, "resource": resource}
                told = (await client("POST", ONE, question)).json["decision"]
                fields = {"name": "iris", "alias": alias, "version": version}
                done = await client.be(principal).rpc("POST", "registered-models/alias", **fields)
                assert (done.status == 200, done.status == 403) == (told, not told), (principal, alias)


async def test_a_call_gives_few_verdicts(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        items = [{"context": {"version": version}}] * (MAX_VERDICTS + 2)
        answer = (await client("POST", MANY, {**QUESTION, "evaluations": items})).json["evaluations"]
        assert ["verdict" in item["context"] for item in answer] == [True] * MAX_VERDICTS + [False] * 2
        assert answer[-1]["context"]["verdict_problem"]["status"] == 400


@pytest.mark.parametrize(
    ("principal", "body", "status"),
    [("user:admin", QUESTION, 200), ("user:admin", {}, 400), (None, QUESTION, 401), ("user:viewer", QUESTION, 403)],
)
async def test_a_request_identifier_is_given_back(running, principal, body, status):
    async with running() as it:
        sent = "bfe9eb29-ab87 4ca3 ~ any text"
        client = Client(it.application.asgi, principal)
        raw = json.dumps(body).encode()
        headers = [("x-request-id", sent)]
        answer = await client("POST", ONE, raw=raw, headers=headers)
        assert (answer.status, answer.headers.get("x-request-id")) == (status, sent)
        assert "x-request-id" not in (await client("POST", ONE, body)).headers
        assert "x-request-id" not in (await client("GET", "/livez", headers=headers)).headers


async def test_the_metadata_names_what_is_served(running):
    listen = {"public_url": "https://gateway.example.com"}
    async with running(listen=listen) as it:
        answer = await Client(it.application.asgi, None)("GET", "/.well-known/authzen-configuration")
        assert answer.json == {
            "policy_decision_point": "https://gateway.example.com",
            "access_evaluation_endpoint": "https://gateway.example.com/access/v1/evaluation",
            "access_evaluations_endpoint": "https://gateway.example.com/access/v1/evaluations",
        }
        for name in ("subject", "resource", "action"):
            assert (await Client(it.application.asgi)("POST", f"/access/v1/search/{name}", {})).status == 404


async def test_without_a_public_url_the_metadata_says_what_the_host_is(running):
    async with running() as it:
        answer = await Client(it.application.asgi, None)("GET", "/.well-known/authzen-configuration")
        assert answer.json["access_evaluation_endpoint"] == "http://gateway/access/v1/evaluation"


async def test_a_narrowed_subject_is_none_of_ours_but_a_narrowed_caller_is(running):
    """The caller's own credential decides whether it may ask; the subject's credential is not known here."""
    async with running() as it:

        async def authenticate(authorization, inner=it.application.asgi._authenticate):
            return dataclasses.replace(await inner(authorization), scope=frozenset({"main/model:read"}))

        it.application.asgi._authenticate = authenticate
        refused = await Client(it.application.asgi)("POST", ONE, QUESTION)
        assert (refused.status, "leaves out main/access:evaluate" in refused.json["detail"]) == (403, True)


async def test_an_answer_is_not_kept_for_a_repetition(running):
    async with running() as it:
        client = Client(it.application.asgi)
        headers = [("idempotency-key", "k1")]
        raw = json.dumps(QUESTION).encode()
        for _ in range(2):
            answer = await client("POST", ONE, raw=raw, headers=headers)
            assert (answer.status, answer.headers.get("idempotent-replayed")) == (200, None)


async def test_questions_are_counted(running):
    async with running() as it:
        client = Client(it.application.asgi)
        body = {
            "subject": {"type": "group", "id": "readers"},
            "evaluations": [about("iris"), about("x", "model:dlete")],
        }
        await client("POST", MANY, body)
        said = (await client("GET", "/metrics")).body.decode()
        assert 'registry_gateway_evaluations_total{decision="permit"} 1.0' in said
        assert 'registry_gateway_evaluations_total{decision="error"} 1.0' in said
