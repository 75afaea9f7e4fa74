"""What may have been done is never called not done: 424, unsettled, joined, and sent once."""

from __future__ import annotations

import asyncio
import json

import pytest

from service.backends.http import HttpTransport
from service.errors import OutcomeUnknown
from service.model import Answer
from tests.api.test_attacks import run_of
from tests.api.test_promotion import promote, register, satisfy
from tests.client import V1, Client
from tests.faults.upstream_server import plain, upstream


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("503 Service Unavailable", "TEMPORARILY_UNAVAILABLE"),  # MLflow's, when its database fails in a commit
        ("503 Service Unavailable", None),  # a proxy's, when the connection broke before the answer
        ("500 Internal Server Error", "INTERNAL_ERROR"),
        ("500 Internal Server Error", None),
        ("502 Bad Gateway", None),
        ("504 Gateway Timeout", None),
    ],
)
@pytest.mark.real
async def test_a_servers_failure_in_a_write_is_unknown(running, status, code):
    creates = []

    async def answer(head, writer):
        body = b'{"experiments": []}'
        if b"registered-models/create" in head:
            creates.append(head)
            body = json.dumps({"error_code": code, "message": "connection lost"}).encode() if code else b"reset"
            await plain(status, body)(head, writer)
        else:
            await plain(body=body)(head, writer)

    async with upstream(answer) as server:
        transport = HttpTransport("main", server.url, timeout_seconds=3)
        async with running(transport=transport, lock_seconds=0.2) as it:
            it.application.reconciler._task.cancel()
            client = Client(it.application.asgi)
            statuses = [(await client.rpc("POST", "registered-models/create", name="a")).status for _ in range(3)]
            assert (statuses, len(creates)) == ([424, 409, 409], 1)
            assert [event["data"]["outcome"] for event in await it.events(phase="outcome")] == ["unknown"]
        await transport.close()


@pytest.mark.parametrize("body", [b'{"model_version": {"name"', b"", b"{}", b"[]", b'{"model_version": {}}'])
async def test_an_answer_that_does_not_say_what_was_made_is_unknown(running, body):
    async with running(lock_seconds=0.2) as it:
        it.application.reconciler._task.cancel()
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        run = (await client.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
        send = it.memory.send

        async def cut(request, **keywords):
            answer = await send(request, **keywords)
            return Answer(200, body) if request.rpc.endswith("createModelVersion") else answer

        it.memory.send = cut
        message = {"name": "iris", "source": f"runs:/{run}/m", "run_id": run}
        statuses = [(await client.rpc("POST", "model-versions/create", **message)).status for _ in range(3)]
        assert statuses == [424, 409, 409]
        assert list(it.memory.models["iris"]["versions"]) == ["1"]


async def test_a_later_promotion_does_not_end_the_seal_of_an_unsettled_one(running):
    async with running() as it:
        await it.application.reconciler.close()
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await satisfy(client, first)
        send = it.memory.send

        async def lose(request, **keywords):
            answer = await send(request, **keywords)
            if request.rpc.endswith("setRegisteredModelAlias"):
                raise OutcomeUnknown("lost")
            return answer

        it.memory.send = lose
        assert (await promote(client, first)).status == 504
        it.memory.send = send
        lead = client.be("user:lead")
        signed = (await lead("GET", f"{V1}/iris/versions/{first}/approvals")).json["approvals"][0]
        assert (await lead("DELETE", f"{V1}/iris/versions/{first}/approvals/{signed['id']}")).status == 204
        assert (await promote(client, second)).status == 409  # its gate is closed
        message = {"run_id": run_of(it, first), "key": "accuracy", "value": 0.1, "timestamp": 2}
        assert (await client.rpc("POST", "runs/log-metric", **message)).status == 503


async def test_no_run_is_deleted_while_a_version_is_registered_from_it(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        run = (await client.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
        send, reached, go = it.memory.send, asyncio.Event(), asyncio.Event()

        async def slow(request, **keywords):
            if request.rpc.endswith("createModelVersion"):
                reached.set()
                await go.wait()
            return await send(request, **keywords)

        it.memory.send = slow
        scientist = client.be("user:scientist")
        message = {"name": "iris", "source": f"runs:/{run}/m", "run_id": run}
        creating = asyncio.create_task(scientist.rpc("POST", "model-versions/create", **message))
        await reached.wait()
        deleting = asyncio.create_task(scientist.rpc("POST", "runs/delete", run_id=run))
        while all(users < 2 for _, users in it.application.changes._locks.values()):
            await asyncio.sleep(0)
        go.set()
        assert ((await creating).status, (await deleting).status) == (200, 409)


async def test_who_is_live_without_rules_keeps_its_run(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        scientist = client.be("user:scientist")
        staged = await scientist.rpc(
            "POST", "registered-models/alias", name="iris", alias="challenger", version=version
        )
        assert staged.status == 200
        answer = await client.rpc("POST", "runs/delete", run_id=run_of(it, version))
        assert (answer.status, "live in 'staging'" in answer.json["message"]) == (409, True)
