"""A repeated POST gets the first one's answer, and does nothing again."""

from __future__ import annotations

import asyncio

import pytest

from tests.client import Client
from tests.promotion.flow import V1, promote, register, satisfy, simple

KEY = [("idempotency-key", "deploy-42")]


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
