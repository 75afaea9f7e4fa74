"""Telemetry never waits for the journal, and its sums are exact: through outages, floods and a stop."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sqlite3

import pytest

from service import tally
from service.backends.http import HttpTransport
from tests.client import Client

BATCHES = int(os.environ.get("TELEMETRY_CALLS", "10000"))
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


async def sums(it):
    return [event["data"] for event in await it.events() if event["data"]["phase"] == "summed"]


def add_up(found, field="calls"):
    total: dict[str, int] = {}
    for data in found:
        for name, count in data[field].items():
            total[name] = total.get(name, 0) + count
    return total


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=pytest.mark.real)])
def registry(request):
    """The registry and how many batches it gets; the real one gets all of them in CI only."""
    if request.param == "memory":
        return None, 10_000
    server = request.getfixturevalue("mlflow_server")
    return HttpTransport("main", server.url), BATCHES if "TELEMETRY_CALLS" in os.environ else 300


async def create_run(client):
    return (await client.rpc("POST", "runs/create", experiment_id="0", start_time=1)).json["run"]["info"]["run_id"]


async def test_training_goes_on_while_the_journal_is_stopped_and_promotions_do_not(running, registry):
    transport, batches = registry
    journal = {"url": "sqlite:///journal.db", "deadline_seconds": 0.5}
    async with running(transport=transport, journal=journal) as it:
        client = Client(it.application.asgi)
        run = await create_run(client)
        model = f"trained-{run[:8]}"
        await client.rpc("POST", "registered-models/create", name=model)
        made = await client.rpc(
            "POST", "model-versions/create", name=model, source=f"mlflow-artifacts:/0/{run}/artifacts", run_id=run
        )
        assert made.status == 200, made.body
        stopped = sqlite3.connect(it.application.configuration.path("journal.db"), isolation_level=None)
        stopped.execute("BEGIN EXCLUSIVE")

        async def train(count):
            metrics = [{"key": "loss", "value": 0.5, "timestamp": 1, "step": 0}]
            for _ in range(count):
                answer = await client.rpc("POST", "runs/log-batch", run_id=run, metrics=metrics)
                assert answer.status == 200, answer.body

        workers = [asyncio.create_task(train(batches // 10)) for _ in range(10)]
        alias = await client.rpc("POST", "registered-models/alias", name=model, alias="blue", version="1")
        guarded = await client.rpc("POST", "registered-models/alias", name=model, alias="challenger", version="1")
        assert (alias.status, guarded.status) == (503, 503)
        denied = client.be("user:viewer").rpc("POST", "runs/log-batch", run_id=run)
        async with asyncio.timeout(0.4):  # less than the journal's deadline: it was not waited for
            assert (await denied).status == 403
        await asyncio.gather(*workers)
        with pytest.raises(tally.JournalUnavailable):
            await it.application.gateway.tally.flush()
        stopped.execute("ROLLBACK")
        stored = (await client.rpc("GET", "registered-models/get", name=model)).json["registered_model"]
        assert stored.get("aliases", []) == []
        await train(10)
        for _ in range(2):
            await it.application.gateway.tally.flush()
        found = await sums(it)
        assert add_up(found)["logBatch"] == batches // 10 * 10 + 10
        assert {data["run"] for data in found if "logBatch" in data["calls"]} == {run}
        assert {data["actor"]["subject"] for data in found} == {"user:admin"}
        assert {(data["action"], data["resource"]) for data in found if "logBatch" in data["calls"]} == {
            ("run:update", "experiments/Default")
        }
    stopped.close()


async def test_a_stop_writes_what_is_left(running, tmp_path):
    async with running() as it:
        client = Client(it.application.asgi)
        run = await create_run(client)
        for _ in range(7):
            await client.rpc("POST", "runs/log-metric", run_id=run, key="a", value=1, timestamp=1)
        await client.rpc("POST", "runs/log-metric", run_id="0" * 32, key="a", value=1, timestamp=1)
        assert await sums(it) == []
    async with running() as it:
        found = await sums(it)
        assert add_up(found) == {"createRun": 1, "logMetric": 7}
        assert add_up(found, "failed") == {}


async def test_an_upload_leaves_its_digest(running, monkeypatch):
    monkeypatch.setattr(tally, "_LISTED_BYTES", 400)
    async with running() as it:
        client = Client(it.application.asgi)
        run = await create_run(client)
        files = {f"f{index}": bytes([index]) * (index * 1000) for index in range(9)}
        for name, raw in files.items():
            answer = await client(
                "PUT", f"{ARTIFACTS}/0/{run}/artifacts/{name}", raw=raw, headers=[("content-type", "text/plain")]
            )
            assert answer.status == 200
        await it.application.gateway.tally.flush()
        found = [data for data in await sums(it) if data["action"] == "artifact:write"]
        assert len(found) > 1  # the list is split
        assert add_up(found) == {"uploadArtifact": 9}
        listed = {item["path"]: (item["bytes"], item["sha256"]) for data in found for item in data["uploads"]}
        assert listed == {
            f"0/{run}/artifacts/{name}": (len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in files.items()
        }
        events = await client("GET", "/v1/audit/events")
        assert events.status == 200
        assert any(event["type"] == "registry-gateway.artifact.write.summed" for event in events.json["events"])


async def test_more_sums_than_fit_are_merged_and_none_is_lost(running, monkeypatch):
    monkeypatch.setattr(tally, "_MAX_SUMS", 8)
    async with running() as it:
        client = Client(it.application.asgi)
        runs = [await create_run(client) for _ in range(30)]
        for run in runs:
            await client.rpc("POST", "runs/log-metric", run_id=run, key="a", value=1, timestamp=1)
        await it.application.gateway.tally.flush()
        found = await sums(it)
        assert add_up(found) == {"createRun": 30, "logMetric": 30}
        assert "*" in {data["run"] for data in found}
        assert it.application.gateway.tally.merged > 0


async def test_a_batch_that_was_stored_without_an_answer_is_not_stored_twice(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await create_run(client)
        trail = it.application.gateway.tally._trail
        store = trail.summed

        async def stored_but_late(documents):
            await store(documents)
            message = "The journal did not answer in time."
            raise tally.JournalUnavailable(message)

        trail.summed = stored_but_late
        await it.application.gateway.tally.flush()  # it looks, and finds them
        trail.summed = store
        await create_run(client)
        for _ in range(2):
            await it.application.gateway.tally.flush()
        assert add_up(await sums(it)) == {"createRun": 2}
