"""What a refusal says: what was wrong, by its name, and what to send instead."""

from __future__ import annotations

import json
import re

import pytest

from service.api.wrong import PATTERNS
from service.routes import build_litestar, openapi_document
from tests.client import V1, Client

PROMOTE = f"{V1}/iris/environments/production/promotions"
ROLLBACK = f"{V1}/iris/environments/production/rollbacks"
APPROVE = f"{V1}/iris/versions/1/approvals"
DECISION = {"environment": "production", "decision": "approve"}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("phase=outcom", "phase=outcom is unknown; phase is one of: checkpoint, denied, intent, outcome, reconciled,"),
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


@pytest.mark.parametrize(
    ("target", "body", "says"),
    [
        (PROMOTE, None, "The body is missing: send a JSON object with version (required), reason, dry_run,"),
        (PROMOTE, [], "The body is no JSON object; send one with version (required)"),
        (PROMOTE, {}, "The field version is missing; the fields are: version (required), reason"),
        (PROMOTE, {"version": "1", "foo": 1}, "The field foo is unknown; the fields are: version (required)"),
        (
            PROMOTE,
            {"version": "1", "change": {"x": 1}},
            "The field change.x is unknown; the fields are: id (required), window",
        ),
        (PROMOTE, {"version": "1", "change": {"id": ""}}, "change.id: must not be empty."),
        (PROMOTE, {"version": 1}, "version: send text in quotes, not a number."),
        (PROMOTE, {"version": "v1"}, 'version: a version is a number such as "3"'),
        (APPROVE, {**DECISION, "decision": "yes"}, "decision is 'yes'; it is one of: approve, reject."),
        (APPROVE, {**DECISION, "expires": "30d"}, "expires: not a time; write one like 2026-11-24T12:00:00Z."),
        (APPROVE, {**DECISION, "review": "x"}, "review: a digest is 64 digits of 0-9 a-f"),
        (ROLLBACK, {"reason": " "}, "reason: it must say something"),
        (ROLLBACK, {"reason": "x" * 2001}, "reason: at most 2000 characters."),
    ],
)
async def test_a_body_is_refused_by_its_field(running, target, body, says):
    async with running() as it:
        reply = await Client(it.application.asgi)("POST", target, body)
        assert (reply.status, says in reply.json["detail"]) == (400, True), reply.json


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/v1/audit/events?since=30d", "since: not a time; write one like 2026-"),
        (f"{V1}/iris/environments/production?at=now", "at: not a time; write one like 2026-"),
        ("/v1/audit/events?limit=0", "limit: at least 1."),
        ("/v1/audit/events?cursor=x", "cursor: a cursor is the `next_cursor`"),
        (
            "/v1/audit/events?modell=x",
            "'modell' is unknown here; there are: action, actor, cursor, environment, limit,",
        ),
        ("/v1/audit/events?order=down", "order is 'down'; it is one of: asc, desc."),
        ("/v1/audit/export?format=xml", "format is 'xml'; it is one of: csv, jsonl, ocsf."),
        ("/v1/webhooks/ci/deliveries?state=lost", "state is 'lost'; it is one of: delivered, parked, pending."),
        ("/v1/promotion-requests?awaiting=you", "awaiting: the only value is `me`"),
        ("/v1/rules/x", "digest: a digest is 64 digits"),
        (f"{V1}/iris/versions/v1", 'version: a version is a number such as "3"'),
        (f"{V1}/iris/versions/1/review", "The query field environment is missing: add ?environment="),
    ],
)
async def test_a_query_or_path_is_refused_by_its_field(running, target, says):
    async with running() as it:
        reply = await Client(it.application.asgi)("GET", target)
        assert (reply.status, says in reply.json["detail"]) == (400, True), reply.json


def test_each_pattern_has_its_sentence():
    text = openapi_document(build_litestar()).decode()
    found = {json.loads(f'"{pattern}"') for pattern in re.findall(r'"pattern": "([^"]*)"', text)}
    assert found == set(PATTERNS)


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("PUT", PROMOTE, "OPTIONS, POST"),
        ("DELETE", APPROVE, "GET, OPTIONS, POST"),
        ("POST", "/livez", "GET, OPTIONS"),
        ("PATCH", "/api/2.0/mlflow/registered-models/get", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(running, method, target, allowed):
    async with running() as it:
        reply = await Client(it.application.asgi)(method, target)
        said = reply.json.get("detail") or reply.json["message"]
        assert (reply.status, reply.headers["allow"], f"takes {allowed}, not {method}." in said) == (405, allowed, True)


async def test_a_method_that_nothing_takes(running):
    async with running() as it:
        reply = await Client(it.application.asgi)("BREW", PROMOTE)
        assert (reply.status, "POST" in reply.headers["allow"]) == (405, True)


@pytest.mark.parametrize("verb", ["promotions", "retirements"])
async def test_an_unknown_environment_is_told_the_known_ones(running, verb):
    async with running() as it:
        body = {"version": "1"} if verb == "promotions" else {"reason": "r"}
        reply = await Client(it.application.asgi)("POST", f"{V1}/iris/environments/prod/{verb}", body)
        assert (reply.status, reply.json["detail"]) == (
            404,
            "The model has no environment 'prod'; it has: staging, production.",
        )


@pytest.mark.parametrize("etag", ["abc", "W/abc", '"abc', 'abc"', '"'])
async def test_an_etag_has_quotes(running, etag):
    async with running() as it:
        client = Client(it.application.asgi)
        asked = [
            ("POST", PROMOTE, {"version": "1"}, "If-Match"),
            ("GET", PROMOTE.rpartition("/")[0], None, "If-None-Match"),
        ]
        for method, target, body, name in asked:
            reply = await client(method, target, body, headers=[(name.lower(), etag)])
            assert (reply.status, f"{name} takes an ETag with its quotes" in reply.json["detail"]) == (400, True)


async def test_a_key_has_no_spaces(running):
    async with running() as it:
        reply = await Client(it.application.asgi)(
            "POST", PROMOTE, {"version": "1"}, headers=[("idempotency-key", "a b")]
        )
        assert (reply.status, "without spaces" in reply.json["detail"]) == (400, True)
