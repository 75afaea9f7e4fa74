"""A repeated POST gets the first one's answer, and does nothing again."""

from __future__ import annotations

import asyncio

import pytest
import yaml
from sqlalchemy import func, select

from service.authentication.api_keys import entry_for
from service.journal import tables
from tests.client import Client
from tests.conftest import ROOT, TOKENS
from tests.promotion.flow import V1, ask, promote, register, satisfy, simple

KEY = [("idempotency-key", "deploy-42")]
LIVE = f"{V1}/iris/environments/production"


async def kept(it):
    """Count the answers that are kept."""
    (row,) = await it.application.journal._rows(select(func.count().label("count")).select_from(tables.answers))
    return row.count


async def test_a_repeated_promotion_is_answered_and_not_done_again(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        first = await promote(client, version, headers=KEY)
        again = await promote(client, version, headers=KEY)
        assert (first.status, first.json["state"]) == (200, "succeeded")
        assert (again.status, again.body) == (200, first.body)
        assert again.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers
        assert len(await it.events(action="environment:promote", phase="outcome")) == 1


@pytest.mark.parametrize("change", ["body", "route"])
async def test_another_request_with_the_same_key_is_refused(running, change):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        await promote(client, version, headers=KEY)
        environment = "staging" if change == "route" else "production"
        body = {"version": version, **({"reason": "other"} if change == "body" else {})}
        target = f"{V1}/iris/environments/{environment}/promotions"
        answer = await client.be("service:ci")("POST", target, body, headers=KEY)
        assert (answer.status, answer.json["type"].rpartition("/")[2]) == (422, "idempotency-key-reused")
        assert it.memory.models["iris"]["aliases"].get("challenger") is None


async def test_another_principal_has_its_own_keys(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        target = f"{V1}/iris/environments/production/promotions"
        answers = [
            await client.be(who)("POST", target, {"version": version}, headers=KEY)
            for who in ("user:lead", "service:ci")
        ]
        assert [answer.json["state"] for answer in answers] == ["succeeded", "unchanged"]


async def test_of_two_at_once_one_is_under_way(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        answers = await asyncio.gather(*(promote(client, version, headers=KEY) for _ in range(5)))
        assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409]
        refused = next(answer for answer in answers if answer.status == 409)
        assert refused.json["type"].endswith("/operation-pending")
        assert refused.headers["retry-after"] == "1"
        assert (await promote(client, version, headers=KEY)).headers["idempotent-replayed"] == "true"


async def test_it_holds_on_the_dialect_too(running):
    async with running() as it:
        client = Client(it.application.asgi)
        first = await client("POST", "/api/2.0/mlflow/registered-models/create", {"name": "iris"}, headers=KEY)
        again = await client("POST", "/api/2.0/mlflow/registered-models/create", {"name": "iris"}, headers=KEY)
        assert (first.status, again.status, again.body) == (200, 200, first.body)
        other = await client("POST", "/api/2.0/mlflow/registered-models/create", {"name": "rose"}, headers=KEY)
        assert (other.status, other.json["error_code"]) == (422, "INVALID_PARAMETER_VALUE")


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256, "a\tb"])
async def test_a_bad_key_is_refused(running, key):
    async with running() as it:
        client = Client(it.application.asgi)
        body = {"name": "iris"}
        answer = await client(
            "POST", "/api/2.0/mlflow/registered-models/create", body, headers=[("idempotency-key", key)]
        )
        assert (answer.status, it.memory.models) == (400, {})


async def test_what_was_not_done_can_be_tried_again_with_the_same_key(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        target = f"{V1}/iris/environments/production/promotions"
        denied = await client.be("user:viewer")("POST", target, {"version": version}, headers=KEY)
        assert denied.status == 403
        stopped = it.application.journal._deadline
        it.application.journal._deadline = 0.0
        unavailable = await promote(client, version, headers=KEY)
        it.application.journal._deadline = stopped
        assert unavailable.status == 503
        assert (await promote(client, version, headers=KEY)).json["state"] == "succeeded"


async def test_a_closed_gate_is_replayed(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        closed = await promote(client, version, headers=KEY)
        await satisfy(client, version)
        again = await promote(client, version, headers=KEY)
        assert (closed.status, again.status, again.body) == (409, 409, closed.body)
        assert (await promote(client, version, headers=[("idempotency-key", "another")])).status == 200


async def test_an_answer_that_was_lost_is_found_by_its_operation(running, monkeypatch):
    """A crash after the change and before its answer was kept: the operation knows the key."""
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        once = it.application.asgi._idempotency

        async def lose(*_: object) -> None:
            """Keep nothing."""

        with monkeypatch.context() as patched:
            patched.setattr(type(once), "_keep", lose)
            first = await promote(client, version, headers=KEY)
            made = await client(
                "POST", "/api/2.0/mlflow/model-versions/create",
                {"name": "iris", "source": f"models:/iris/{version}"}, headers=KEY,
            )  # fmt: skip
        assert (first.status, made.status) == (200, 200)
        again = await promote(client, version, headers=KEY)
        assert (again.status, again.json["id"]) == (200, first.json["id"])
        repeated = await client(
            "POST", "/api/2.0/mlflow/model-versions/create",
            {"name": "iris", "source": f"models:/iris/{version}"}, headers=KEY,
        )  # fmt: skip
        assert repeated.json["model_version"]["version"] == made.json["model_version"]["version"]
        assert len(it.memory.models["iris"]["versions"]) == 2
        other = await client("POST", "/api/2.0/mlflow/registered-models/create", {"name": "rose"}, headers=KEY)
        assert other.status == 422


@pytest.mark.parametrize(
    ("scopes", "status"),
    [(["main/model:read"], 403), (["main/environment:promote"], 403), (["main/stage:set"], 200)],
)
async def test_what_was_lost_is_told_to_a_narrowed_key_that_may_do_it(running, tmp_path, monkeypatch, scopes, status):
    monkeypatch.setitem(TOKENS, "weak", f"rgw_test-weak-{'y' * 24}")
    async with running(environments=simple(tmp_path)) as it:
        file = tmp_path / "keys.yaml"
        weak = {**entry_for(TOKENS["weak"], "user:admin", ("group:platform",)), "id": "weak", "scopes": scopes}
        file.write_text(yaml.safe_dump([*yaml.safe_load(file.read_text()), weak]))
        it.application.keys.reload()
        client = Client(it.application.asgi)
        version = await register(it, client)

        async def lose(*_: object) -> None:
            """Keep nothing."""

        monkeypatch.setattr(type(it.application.asgi._idempotency), "_keep", lose)
        move = {"name": "iris", "version": version, "stage": "Staging"}
        target = "/api/2.0/mlflow/model-versions/transition-stage"
        assert (await client("POST", target, move, headers=KEY)).status == 200
        again = await client.be("weak")("POST", target, move, headers=KEY)
        assert (again.status, "model_version" in again.json) == (status, status == 200)


@pytest.mark.parametrize("more", [("if-match", '"wrong"'), ("accept", "application/xml")])
async def test_another_if_match_or_accept_is_another_request(running, tmp_path, more):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await promote(client, version, headers=KEY)).status == 200
        answer = await promote(client, version, headers=[*KEY, more])
        assert (answer.status, answer.json["type"].rpartition("/")[2]) == (422, "idempotency-key-reused")


async def test_a_stale_if_match_does_not_stick(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        stale = await promote(client, version, headers=[*KEY, ("if-match", '"wrong"')])
        corrected = await promote(client, version, headers=KEY)
        assert (stale.status, corrected.status) == (412, 200)
        assert "idempotent-replayed" not in corrected.headers


@pytest.mark.parametrize(
    ("groups", "fields"), [((), {}), (("group:ci",), {"scopes": ["main/environment:promote", "main/version:read"]})]
)
async def test_a_weaker_credential_of_the_same_principal_is_told_nothing(
    running, tmp_path, monkeypatch, groups, fields
):
    monkeypatch.setitem(TOKENS, "weak", f"rgw_test-weak-{'y' * 24}")
    async with running(environments=simple(tmp_path)) as it:
        file = tmp_path / "keys.yaml"
        weak = {**entry_for(TOKENS["weak"], "service:ci", groups), "id": "weak", **fields}
        file.write_text(yaml.safe_dump([*yaml.safe_load(file.read_text()), weak]))
        it.application.keys.reload()
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await promote(client.be("service:ci"), version, headers=KEY)).status == 200
        target = f"{LIVE}/promotions"
        answer = await client.be("weak")("POST", target, {"version": version}, headers=KEY)
        assert (answer.status, "verdict" in answer.json) == (422, False)


@pytest.mark.parametrize("route", ["own", "dialect", "desk"])
async def test_a_revoked_right_is_not_replayed(running, tmp_path, route):
    rows = tmp_path / "rows.csv"
    rows.write_text((ROOT / "policies/policy.csv").read_text())
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(environments=simple(tmp_path), access=access) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        target, body = {
            "own": (f"{LIVE}/promotions", {"version": version}),
            "dialect": ("/api/2.0/mlflow/registered-models/create", {"name": "rose"}),
            "desk": (f"{V1}/iris/versions/{version}/evidence", {"kind": "validation", "result": "passed"}),
        }[route]
        ci = client.be("service:ci")
        first, again = await ci("POST", target, body, headers=KEY), await ci("POST", target, body, headers=KEY)
        assert (again.status, again.body, again.headers["idempotent-replayed"]) == (first.status, first.body, "true")
        rows.write_text(
            "".join(line for line in rows.read_text().splitlines(keepends=True) if not line.startswith("g, group:ci"))
        )
        it.application.authorizer.reload()
        before = len(await it.events())
        refused = await ci("POST", target, body, headers=KEY)
        assert (refused.status, "idempotent-replayed" in refused.headers) == (403, False)
        found = (await it.events())[before:]
        assert [event["data"]["phase"] for event in found] == ["denied"]


async def test_what_changes_nothing_is_not_kept(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        viewer = client.be("user:viewer")
        calls = [
            (viewer, "/api/2.0/mlflow/runs/search", {"experiment_ids": ["0"]}, 200),
            (viewer, "/v1/nothing/here", {}, 404),
            (viewer, f"{LIVE}/promotions", {"nonsense": 1}, 400),
            (viewer, f"{LIVE}/checks", {}, 200),
            (client, f"{LIVE}/promotions", {"version": version, "dry_run": True}, 200),
            (client, f"{LIVE}/promotions", {"version": "99"}, 404),
        ]
        for number, (who, target, body, status) in enumerate(calls):
            answer = await who("POST", target, body, headers=[("idempotency-key", f"k{number}")])
            assert answer.status == status, answer.body
        assert await kept(it) == 0


async def test_a_long_answer_is_not_kept_and_found_by_its_operation(running, monkeypatch):
    from service.api import idempotency

    monkeypatch.setattr(idempotency, "_MAX_KEPT_BYTES", 10)
    async with running() as it:
        client = Client(it.application.asgi)
        target, body = "/api/2.0/mlflow/registered-models/create", {"name": "iris"}
        first, again = [await client("POST", target, body, headers=KEY) for _ in range(2)]
        assert (first.status, again.status, again.json) == (200, 200, first.json)
        assert await kept(it) == 0


async def test_a_dry_run_does_not_use_up_the_key(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        states = [(await promote(client, version, headers=KEY, dry_run=dry)).json["state"] for dry in (True, False)]
        assert states == ["evaluated", "succeeded"]
        assert (await ask(client, "promotions", version)).json["state"] == "unchanged"
