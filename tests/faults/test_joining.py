"""The real MLflow client repeats a create whose answer was lost: one version is made, and everybody is told which."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from service import reconciler
from service.backends.http import HttpTransport
from service.unsettled import Pending
from tests.conftest import TOKENS
from tests.faults.proxy import proxied
from tests.faults.served import served

pytestmark = pytest.mark.real


@pytest.mark.parametrize("was_done", [True, False])
async def test_twenty_repeats_make_one_version(running, mlflow_server, monkeypatch, was_done):
    from mlflow import MlflowClient
    from mlflow.exceptions import RestException

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKENS["user:scientist"])
    monkeypatch.setattr(reconciler, "_PACE_SECONDS", 3600)  # it looks when all wait, not before
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 1.0)
    waiting, outcome = asyncio.Semaphore(0), Pending.outcome

    def counted(pending, seconds):
        waiting.release()
        return outcome(pending, seconds)

    monkeypatch.setattr(Pending, "outcome", counted)
    async with (
        proxied(mlflow_server.url) as proxy,
        running(
            transport=HttpTransport("main", proxy.url, timeout_seconds=3),
            registries={"main": {"kind": "mlflow", "url": proxy.url, "timeout_seconds": 3}},
        ) as it,
        served(it.application.asgi) as url,
    ):
        name = f"m{uuid.uuid4().hex[:10]}"

        def prepare():
            client = MlflowClient(url, url)
            client.create_registered_model(name)
            return client, client.create_run("0").info.run_id

        client, run_id = await asyncio.to_thread(prepare)

        def create():
            return client.create_model_version(name, f"runs:/{run_id}/model", run_id, await_creation_for=0)

        if was_done:
            proxy.swallow_answers_to = "model-versions/create"
        else:
            proxy.lose_requests_to = "model-versions/create"
        with pytest.raises(RestException) as lost:
            await asyncio.to_thread(create)
        assert lost.value.json["error_code"] == "OUTCOME_UNKNOWN"
        proxy.swallow_answers_to = proxy.lose_requests_to = ""
        with ThreadPoolExecutor(20) as pool:  # the loop's own threads read the journal
            loop = asyncio.get_running_loop()
            repeats = [loop.run_in_executor(pool, create) for _ in range(20)]
            for _ in repeats:
                await waiting.acquire()
            while await it.application.reconciler.sweep():
                await asyncio.sleep(0.1)
            made = await asyncio.gather(*repeats)
        assert {version.version for version in made} == {"1"}
        versions = await it.application.backends["main"].list_versions(name)
        assert [version.version for version in versions] == ["1"]
        sent = [line for line in proxy.writes() if "model-versions/create" in line]
        assert len(sent) == (1 if was_done else 2)
        print(f"20 repeats of a lost create (done: {was_done}): versions made {len(versions)}, forwarded {len(sent)}")
