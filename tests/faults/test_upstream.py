"""What happens when the registry is down, hangs, or its answer is lost; and when the client or the journal goes."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid

import pytest

from service import reconciler
from service.backends.http import HttpTransport
from service.model import Request
from tests.client import V1, Client
from tests.faults.proxy import proxied

pytestmark = pytest.mark.real


@pytest.fixture
async def model(mlflow_server) -> str:
    """A model with two versions, made directly."""
    transport = HttpTransport("main", mlflow_server.url)
    name = f"m{uuid.uuid4().hex[:10]}"

    async def post(path, **message):
        answer = await transport.send(Request("x.y", "POST", f"/api/2.0/mlflow/{path}", message), writes=True)
        return answer.document()

    run_id = (await post("runs/create", experiment_id="0", start_time=1))["run"]["info"]["run_id"]
    await post("registered-models/create", name=name)
    for _ in range(2):
        await post("model-versions/create", name=name, source=f"runs:/{run_id}/model", run_id=run_id)
    await transport.close()
    return name


def transport_to(proxy, seconds=1.0):
    return HttpTransport("main", proxy.url, timeout_seconds=seconds)


def registries(proxy, seconds=1.0):
    return {"main": {"kind": "mlflow", "url": proxy.url, "timeout_seconds": seconds}}


async def phases(it, **filters):
    return [(e["data"]["phase"], e["data"]["outcome"]) for e in await it.events(**filters)]


async def until(condition, seconds=20.0):
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def test_a_lost_answer_is_unknown_then_reconciled(running, mlflow_server, model, monkeypatch):
    monkeypatch.setattr(reconciler, "_PACE_SECONDS", 0.1)
    async with (
        proxied(mlflow_server.url) as proxy,
        running(transport=transport_to(proxy), registries=registries(proxy), lock_seconds=0.2) as it,
    ):
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        proxy.swallow_answers_to = "registered-models/alias"
        message = {"name": model, "alias": "blue", "version": "1"}
        lost = await client.rpc("POST", "registered-models/alias", **message)
        assert lost.status == 424  # MLflow's client does not retry it
        operation = lost.headers["registry-gateway-operation"]
        assert operation in lost.json["message"]
        again = await client.rpc("POST", "registered-models/alias", **message)
        assert (again.status, operation in again.json["message"]) == (409, True)
        assert len([line for line in proxy.writes() if "alias" in line]) == 1
        proxy.swallow_answers_to = ""
        it.application.reconciler.start()

        async def settled():
            return not await it.application.journal.unsettled()

        await until(settled)
        assert await phases(it, operation=operation) == [
            ("intent", None),
            ("outcome", "unknown"),
            ("reconciled", "succeeded"),
        ]
        third = await client.rpc("POST", "registered-models/alias", **message)
        assert third.status == 200


async def test_equal_calls_at_once_are_forwarded_once(running, mlflow_server, model):
    async with (
        proxied(mlflow_server.url) as proxy,
        running(transport=transport_to(proxy), registries=registries(proxy), lock_seconds=2) as it,
    ):
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        proxy.swallow_answers_to = "model-versions/create"
        made = await client.rpc("POST", "runs/create", experiment_id="0", start_time=1)
        run_id = made.json["run"]["info"]["run_id"]
        message = {"name": model, "source": f"runs:/{run_id}/model", "run_id": run_id}
        answers = await asyncio.gather(*(client.rpc("POST", "model-versions/create", **message) for _ in range(3)))
        assert sorted(answer.status for answer in answers) == [409, 409, 424]
        assert len([line for line in proxy.writes() if "model-versions/create" in line]) == 1


async def test_a_promotion_whose_answer_is_lost(running, mlflow_server, model, monkeypatch):
    monkeypatch.setattr(reconciler, "_PACE_SECONDS", 0.1)
    async with (
        proxied(mlflow_server.url) as proxy,
        running(transport=transport_to(proxy), registries=registries(proxy)) as it,
    ):
        client = Client(it.application.asgi)
        proxy.swallow_answers_to = "registered-models/alias"
        lost = await client("POST", f"{V1}/{model}/environments/staging/promotions", {"version": "1"})
        assert lost.status == 504
        assert lost.json["operation"]
        proxy.swallow_answers_to = ""

        async def live():
            return (await client("GET", f"{V1}/{model}/environments/staging")).status == 200 and not (
                await it.application.journal.unsettled()
            )

        await until(live)
        assert (await phases(it, operation=lost.json["operation"]))[-1] == ("reconciled", "succeeded")
        version = await it.application.backends["main"].get_version(model, "1")
        assert version.stage == "Staging"  # the mark that was still missing is written
        history = (await client("GET", f"{V1}/{model}/environments/staging/history")).json["history"]
        assert [item["promotion"] for item in history] == [lost.json["operation"]]


async def test_a_registry_that_is_down(running, mlflow_server, model):
    async with (
        proxied(mlflow_server.url) as proxy,
        running(transport=transport_to(proxy), registries=registries(proxy)) as it,
    ):
        client = Client(it.application.asgi)
        port = proxy.port
        await proxy.stop()
        for method, path, message in (
            ("GET", "registered-models/get", {"name": model}),
            ("POST", "registered-models/set-tag", {"name": model, "key": "k", "value": "v"}),
            ("POST", "registered-models/alias", {"name": model, "alias": "champion", "version": "1"}),
        ):
            answer = await client.rpc(method, path, **message)
            assert answer.status == 503
            assert answer.headers["retry-after"]
            assert answer.json["error_code"] == "TEMPORARILY_UNAVAILABLE"
        assert await phases(it, model=model) == [("rejected", "rejected"), ("rejected", "rejected")]
        await it.application.health.look()
        ready = await Client(it.application.asgi, None)("GET", "/readyz")
        assert (ready.status, ready.json["status"]) == (200, "degraded")
        await proxy.start(port)

        async def answers():
            return (await client.rpc("GET", "registered-models/get", name=model)).status == 200

        await until(answers, 5)  # the circuit may be open for two seconds


async def test_a_client_that_hangs_up_does_not_change_the_record(running, mlflow_server, model):
    async with (
        proxied(mlflow_server.url) as proxy,
        running(transport=transport_to(proxy, 10), registries=registries(proxy, 10)) as it,
    ):
        client = Client(it.application.asgi)
        await it.application.health.close()
        assert (await client.rpc("GET", "registered-models/get", name=model)).status == 200
        proxy.arrived.clear()
        proxy.hold.clear()
        call = asyncio.create_task(client.rpc("POST", "registered-models/set-tag", name=model, key="k", value="v"))
        await proxy.arrived.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        proxy.hold.set()

        async def written():
            return await phases(it, model=model) == [("intent", None), ("outcome", "succeeded")]

        await until(written)
        assert (await it.application.backends["main"].get_model(model)).tags == {"k": "v"}


async def test_a_journal_that_is_down_stops_changes_and_nothing_else(running, mlflow_server, model):
    async with (
        proxied(mlflow_server.url) as proxy,
        running(
            transport=transport_to(proxy, 10),
            registries=registries(proxy, 10),
            journal={"url": "sqlite:///journal.db", "deadline_seconds": 0.5},
        ) as it,
    ):
        client = Client(it.application.asgi)
        run = (await client.rpc("POST", "runs/create", experiment_id="0", start_time=1)).json["run"]["info"]["run_id"]
        path = it.application.configuration.path("journal.db")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        before = len(proxy.writes())
        for path_, message in (
            ("registered-models/set-tag", {"name": model, "key": "k", "value": "v"}),
            ("registered-models/alias", {"name": model, "alias": "challenger", "version": "1"}),
            ("model-versions/create", {"name": model, "source": f"runs:/{run}/x", "run_id": run}),
        ):
            answer = await client.rpc("POST", path_, **message)
            assert answer.status == 503, answer.body
            assert answer.headers["retry-after"]
        promoted = await client("POST", f"{V1}/{model}/environments/staging/promotions", {"version": "1"})
        assert promoted.status == 503
        assert len(proxy.writes()) == before  # nothing was forwarded
        read = await client.rpc("GET", "registered-models/get", name=model)
        metric = await client.rpc("POST", "runs/log-metric", run_id=run, key="k", value=1.0, timestamp=1)
        assert (read.status, metric.status) == (200, 200)
        await it.application.health.look()
        assert (await Client(it.application.asgi, None)("GET", "/readyz")).status == 503
        other.execute("ROLLBACK")
        other.close()

        async def recovered():
            answer = await client.rpc("POST", "registered-models/set-tag", name=model, key="k", value="v")
            return answer.status == 200

        await until(recovered, 5)


async def test_what_cannot_be_proved_ends_once_as_unknown(running, mlflow_server, monkeypatch):
    monkeypatch.setattr(reconciler, "UNPROVEN_SECONDS", 0.0)
    async with (
        proxied(mlflow_server.url) as proxy,
        running(transport=transport_to(proxy), registries=registries(proxy), lock_seconds=0.2) as it,
    ):
        it.application.reconciler._task.cancel()
        proxy.swallow_answers_to = "experiments/create"
        client = Client(it.application.asgi)
        name = uuid.uuid4().hex
        lost = await client.rpc("POST", "experiments/create", name=name)
        assert lost.status == 424
        again = await client.rpc("POST", "experiments/create", name=name)
        assert again.status == 409
        for _ in range(3):
            await it.application.reconciler.sweep()
        assert await phases(it, operation=lost.headers["registry-gateway-operation"]) == [
            ("intent", None),
            ("outcome", "unknown"),
            ("reconciled", "unknown"),
        ]
        assert len(it.application.gateway.unsettled) == 0
