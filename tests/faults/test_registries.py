"""Several registries behind one gateway, each at its own address, for the real MLflow client."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from service.backends.http import HttpTransport
from service.backends.mlflow import MlflowBackend
from tests.client import Client
from tests.conftest import TOKENS
from tests.faults.served import served
from tests.faults.upstream_server import plain, upstream

pytestmark = pytest.mark.real


def registries(**entries):
    return {name: {"kind": "mlflow", "url": "http://127.0.0.1:1", **entry} for name, entry in entries.items()}


@pytest.fixture
def no_environments(tmp_path):
    path = tmp_path / "environments.yaml"
    path.write_text("environments: {}\n")
    return str(path)


async def test_tracking_and_registry_may_be_two(running, mlflow_server, monkeypatch, tmp_path, no_environments):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKENS["user:admin"])
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    name = f"m{uuid.uuid4().hex[:10]}"
    entries = registries(a={}, b={"sources": ["s3://models/"]})
    async with running(registries=entries, environments=no_environments, default_registry="b") as it:
        it.application.backends["a"] = MlflowBackend("a", HttpTransport("a", mlflow_server.url))
        async with served(it.application.asgi) as url:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{url}/registries/a")
            monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"{url}/registries/b")

            def flow():
                mlflow.set_tracking_uri(f"{url}/registries/a")
                mlflow.set_registry_uri(f"{url}/registries/b")
                client = mlflow.MlflowClient()
                run_id = client.create_run("0").info.run_id
                client.log_metric(run_id, "accuracy", 0.9)
                client.log_text(run_id, "hello", "notes/a.txt")  # mlflow-artifacts: is resolved below /registries/a
                listed = [item.path for item in client.list_artifacts(run_id, "notes")]
                path = client.download_artifacts(run_id, "notes/a.txt", str(tmp_path))
                client.create_registered_model(name)
                made = client.create_model_version(name, "s3://models/x", await_creation_for=0)
                client.set_registered_model_alias(name, "blue", made.version)
                found = client.get_model_version_by_alias(name, "blue")
                return client.get_run(run_id), listed, path, found

            try:
                run, listed, path, found = await asyncio.to_thread(flow)
            finally:
                mlflow.set_tracking_uri(None)
                mlflow.set_registry_uri(None)
            with open(path) as file:  # noqa: ASYNC230, PTH123  # a small file of the test's own
                assert file.read() == "hello"
            assert (listed, found.version, run.data.metrics) == (["notes/a.txt"], "1", {"accuracy": 0.9})
            assert list(it.memory.models) == [name]
            client = Client(it.application.asgi)
            at = "api/2.0/mlflow/registered-models/get"
            statuses = [
                (await client("GET", f"{prefix}/{at}?name={name}")).status
                for prefix in ("", "/registries/b", "/registries/a", "/registries/c")
            ]
            assert statuses == [200, 200, 404, 404]


@pytest.mark.parametrize(
    ("configured", "asked", "status"),
    [("red", "red", 200), ("red", None, 200), ("red", "blue", 400), (None, "default", 200), (None, "red", 400)],
)
async def test_an_entry_is_one_workspace(running, no_environments, configured, asked, status):
    async with upstream(plain(body=b'{"registered_model": {"name": "m"}}')) as server:
        entry = {"url": server.url} | ({"workspace": configured} if configured else {})
        async with running(registries=registries(main=entry), environments=no_environments) as it:
            await it.application.health.close()
            transport = HttpTransport("main", server.url, workspace=configured)
            it.application.backends["main"] = MlflowBackend("main", transport)
            server.seen.clear()
            headers = [("x-mlflow-workspace", asked)] if asked else None
            target = "/api/2.0/mlflow/registered-models/get?name=m"
            answer = await Client(it.application.asgi)("GET", target, headers=headers)
            assert answer.status == status
            sent = [b"x-mlflow-workspace: red" in request.lower() for request in server.seen]
            assert set(sent) == ({configured == "red"} if status == 200 else set())
            if status == 400:
                assert repr(configured or "default") in answer.json["message"]
            await transport.close()
