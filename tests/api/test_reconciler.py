"""Every kind of change whose answer is lost ends as if nothing had happened."""

from __future__ import annotations

import asyncio
import time

import pytest

from service import reconciler
from service.backends.memory import MemoryTransport
from service.errors import OutcomeUnknown
from tests.api.test_promotion import promote, register, satisfy
from tests.client import V1, Client
from tests.conftest import ROOT


class Losing(MemoryTransport):
    """Loses the answer of one RPC, with or without doing it."""

    rpc, done = "", True

    async def send(self, request, *, writes, trace=""):
        if self.rpc and request.rpc.endswith("." + self.rpc) and writes:
            self.rpc = ""
            if self.done:
                await super().send(request, writes=writes)
            raise OutcomeUnknown("no answer")
        return await super().send(request, writes=writes, trace=trace)


CHANGES = [
    ("createRegisteredModel", "POST", "registered-models/create", {"name": "new"}),
    ("updateRegisteredModel", "PATCH", "registered-models/update", {"name": "iris", "description": "d"}),
    ("renameRegisteredModel", "POST", "registered-models/rename", {"name": "iris", "new_name": "iris2"}),
    ("deleteRegisteredModel", "DELETE", "registered-models/delete", {"name": "iris"}),
    ("createModelVersion", "POST", "model-versions/create", {"name": "iris"}),
    ("updateModelVersion", "PATCH", "model-versions/update", {"name": "iris", "version": "1", "description": "d"}),
    ("deleteModelVersion", "DELETE", "model-versions/delete", {"name": "iris", "version": "1"}),
    ("transitionModelVersionStage", "POST", "model-versions/transition-stage",
     {"name": "iris", "version": "1", "stage": "Archived"}),
    ("setRegisteredModelTag", "POST", "registered-models/set-tag", {"name": "iris", "key": "k", "value": "v"}),
    ("deleteRegisteredModelTag", "DELETE", "registered-models/delete-tag", {"name": "iris", "key": "old"}),
    ("setModelVersionTag", "POST", "model-versions/set-tag",
     {"name": "iris", "version": "1", "key": "k", "value": "v"}),
    ("deleteModelVersionTag", "DELETE", "model-versions/delete-tag", {"name": "iris", "version": "1", "key": "old"}),
    ("setRegisteredModelAlias", "POST", "registered-models/alias", {"name": "iris", "alias": "blue", "version": "1"}),
    ("setRegisteredModelAlias", "POST", "registered-models/alias",
     {"name": "iris", "alias": "champion", "version": "2"}),
    ("deleteRegisteredModelAlias", "DELETE", "registered-models/alias", {"name": "iris", "alias": "champion"}),
]  # fmt: skip


async def prepare(it, client):
    """Version 1 is live in production, 2 could be; old tags stand."""
    first, second = await register(it, client), await register(it, client)
    await satisfy(client, first)
    assert (await promote(client, "1")).status == 200
    await satisfy(client, second)  # for what is live then
    for path, message in (
        ("registered-models/set-tag", {"name": "iris"}),
        ("model-versions/set-tag", {"name": "iris", "version": "1"}),
    ):
        await client.rpc("POST", path, key="old", value="v", **message)


async def tables(it):
    """What the journal and the seals say, without times and identifiers."""
    journal = it.application.journal
    periods = [
        (model, item.environment, item.version, item.until is None)
        for model in ("iris", "iris2")
        for item in await journal.periods("main", model)
    ]
    backend, made = it.application.backends["main"], []
    for model in {"iris", "iris2"} & set(it.memory.models):
        for number in it.memory.models[model]["versions"]:
            found = await backend.get_version(model, number)
            made.append((model, number, (await journal.version("main", model, found.binding)).creation is not None))
    seals = sorted(
        (seal.model, seal.environment.name, seal.version, seal.standing.value)
        for seal in it.application.gateway.seals._seals.values()
    )
    return periods, made, seals


def message_of(it, path, message):
    if path != "model-versions/create":
        return message
    one = it.memory.models["iris"]["versions"]["1"]
    return {**message, "source": one["source"], "run_id": one["run_id"]}


@pytest.mark.parametrize(("rpc", "method", "path", "message"), CHANGES, ids=lambda item: str(item)[:40])
@pytest.mark.parametrize("done", [True, False])
async def test_a_lost_answer_ends_as_if_nothing_had_happened(
    running, monkeypatch, tmp_path_factory, rpc, method, path, message, done
):
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    outcomes = []
    for lost in (False, True):
        async with running(transport=Losing(), directory=tmp_path_factory.mktemp("r")) as it:
            client = Client(it.application.asgi)
            it.application.reconciler._task.cancel()
            it.application.reconciler._deadlines = {}
            await prepare(it, client)
            if lost:
                it.memory.rpc, it.memory.done = rpc, done
                answer = await client.rpc(method, path, **message_of(it, path, message))
                assert answer.status == 424, answer.body
                assert await it.application.reconciler.sweep() == 0
                last = (await it.events(operation=answer.headers["registry-gateway-operation"]))[-1]["data"]
                assert (last["phase"], last["outcome"]) == ("reconciled", "succeeded" if done else "failed")
                assert len(it.application.gateway.unsettled) == 0
            elif done:
                answer = await client.rpc(method, path, **message_of(it, path, message))
                assert answer.status == 200, answer.body
            outcomes.append(await tables(it))
    assert outcomes[0] == outcomes[1]


async def test_completing_a_promotion_leaves_a_later_environments_stage(running, monkeypatch):
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    async with running(transport=Losing()) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        await prepare(it, client)
        it.memory.rpc = "setRegisteredModelAlias"
        lost = await client("POST", f"{V1}/iris/environments/staging/promotions", {"version": "1"})
        assert lost.status == 504
        assert await it.application.reconciler.sweep() == 0
        assert it.memory.models["iris"]["versions"]["1"]["current_stage"] == "Production"


async def test_the_reconciler_outlives_odd_answers(running):
    async with running(transport=Losing()) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        await prepare(it, client)
        it.memory.rpc = "setRegisteredModelTag"
        await client.rpc("POST", "registered-models/set-tag", name="iris", key="k", value="v")
        good = it.memory._getRegisteredModel
        it.memory._getRegisteredModel = lambda message: {"unexpected": message}
        assert await it.application.reconciler.sweep() == 1
        it.memory._getRegisteredModel = good
        assert await it.application.reconciler.sweep() == 0


def without_times(document):
    """An answer without what differs from one registry in memory to the next."""
    if isinstance(document, dict):
        moving = ("creation_timestamp", "last_updated_timestamp", "run_id", "source")
        return {key: without_times(value) for key, value in document.items() if key not in moving}
    return [without_times(item) for item in document] if isinstance(document, list) else document


@pytest.mark.parametrize(("rpc", "method", "path", "message"), CHANGES, ids=lambda item: str(item)[:40])
@pytest.mark.parametrize("done", [True, False])
async def test_equal_calls_get_the_outcome_of_the_unsettled_one(
    running, monkeypatch, tmp_path_factory, rpc, method, path, message, done
):
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    async with running(transport=MemoryTransport(), directory=tmp_path_factory.mktemp("r")) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        await prepare(it, client)
        plain = await client.rpc(method, path, **message_of(it, path, message))
        expected = await tables(it)
    async with running(transport=Losing(), directory=tmp_path_factory.mktemp("r")) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        it.application.reconciler._deadlines = {}
        await prepare(it, client)
        it.memory.rpc, it.memory.done = rpc, done
        message = message_of(it, path, message)
        lost = await client.rpc(method, path, **message)
        operation = lost.headers["registry-gateway-operation"]
        digest = next(iter(it.application.gateway.unsettled._pending))
        pending = it.application.gateway.unsettled.get(digest)
        repeats = [asyncio.create_task(client.rpc(method, path, **message)) for _ in range(5)]
        other = await client.be("user:viewer").rpc(method, path, **message)  # joins nothing of another's
        assert other.status == 403
        assert not pending._outcome.done()
        assert await it.application.reconciler.sweep() == 0
        answers = await asyncio.gather(*repeats)
        for answer in answers:
            assert (answer.status, without_times(answer.json)) == (200, without_times(plain.json)), answer.body
            assert (answer.headers["registry-gateway-operation"] == operation) == done
        assert len({answer.headers["registry-gateway-operation"] for answer in answers}) == 1
        assert await tables(it) == expected


async def test_a_promotion_by_our_own_route_is_joined_with_its_verdict(running, monkeypatch):
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    async with running(transport=Losing()) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        await prepare(it, client)
        it.memory.rpc = "setRegisteredModelAlias"
        lost = await promote(client, "2")
        assert lost.status == 504
        repeat = asyncio.create_task(promote(client, "2"))
        while not it.application.gateway.active:
            await asyncio.sleep(0)
        assert await it.application.reconciler.sweep() == 0
        answer = (await repeat).json
        assert (answer["id"], answer["state"]) == (lost.json["operation"], "succeeded")
        assert (answer["before"], answer["after"], answer["verdict"]["allowed"]) == ("1", "2", True)


async def test_who_lost_the_right_meanwhile_joins_nothing(running, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("p, user:admin, *, *, *, allow\n")
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(transport=Losing(), access=access, lock_seconds=0.2) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        it.memory.rpc = "createRegisteredModel"
        assert (await client.rpc("POST", "registered-models/create", name="a")).status == 424
        pending = await client.rpc("POST", "registered-models/create", name="a")
        assert (pending.status, pending.json["error_code"]) == (409, "RESOURCE_CONFLICT")
        rows.write_text("p, user:admin, *, experiments/*, *, allow\n")
        it.application.authorizer.reload()
        assert (await client.rpc("POST", "registered-models/create", name="a")).status == 403


QUICK = {"main": {"kind": "mlflow", "url": "http://127.0.0.1:1", "timeout_seconds": 0.1}}


async def lost(it, client, clock: float, rpc: str, path: str, *, done: bool, **message) -> str:
    """Lose the answer of a change that is made while our clock is *clock* seconds ahead; return its operation."""
    it.application.reconciler._task.cancel()
    it.application.trail.now = lambda: time.time() + clock
    it.memory.rpc, it.memory.done = rpc, done
    answer = await client.rpc("POST", path, **message)
    assert answer.status == 424
    it.application.trail.now = time.time
    return answer.headers["registry-gateway-operation"]


async def ended(it) -> None:
    async with asyncio.timeout(5):
        while await it.application.reconciler.sweep():
            await asyncio.sleep(0.05)


async def last(it, operation: str) -> tuple[str, str]:
    data = (await it.events(operation=operation))[-1]["data"]
    return data["phase"], data["outcome"]


async def test_a_clock_that_was_set_back_keeps_nothing_open(running, monkeypatch):
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    async with running(Losing(), registries=QUICK) as it:
        client = Client(it.application.asgi)
        operation = await lost(
            it, client, 3600, "createRegisteredModel", "registered-models/create", done=False, name="a"
        )
        async with asyncio.timeout(5):
            while await it.application.reconciler.sweep():
                await asyncio.sleep(0.05)
        assert [event["data"]["outcome"] for event in await it.events(operation=operation)][-1] == "failed"


async def test_a_clock_that_was_set_forward_ends_nothing_early(running):
    async with running(Losing(), registries=QUICK) as it:
        client = Client(it.application.asgi)
        await lost(it, client, -3600, "createRegisteredModel", "registered-models/create", done=False, name="a")
        assert await it.application.reconciler.sweep() == 1  # the registry may do it yet


async def test_a_version_made_while_our_clock_was_ahead_is_not_called_failed(running, monkeypatch):
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    async with running(Losing(), registries=QUICK) as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="a")
        run = (await client.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
        message = {"name": "a", "source": f"runs:/{run}/m", "run_id": run}
        operation = await lost(it, client, 3600, "createModelVersion", "model-versions/create", done=True, **message)
        monkeypatch.setattr(reconciler, "UNPROVEN_SECONDS", 0.0)
        await ended(it)
        assert await last(it, operation) == ("reconciled", "unknown")
        await it.application.health.look()  # it has ended, so the count of those that are looked at is no help
        assert "registry_gateway_unproven 1.0" in (await client("GET", "/metrics")).body.decode()
