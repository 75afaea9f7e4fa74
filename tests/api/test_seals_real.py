"""Seals and references over a real MLflow server: its own identifiers, filters and files."""

from __future__ import annotations

import dataclasses
import secrets

import pytest

from service.backends.http import HttpTransport
from tests.api.test_attacks import ARTIFACTS, environments
from tests.api.test_references import RIGHT, delete
from tests.api.test_seals import approve, log, refused, revoke, tag
from tests.client import Client


@dataclasses.dataclass
class Trained:
    """A run with files and a logged model of its own, and a version registered from the logged model."""

    client: Client
    name: str
    experiment: str
    run: str
    model: str

    async def put(self, owner, path="MLmodel"):
        target = f"{ARTIFACTS}/{self.experiment}/{owner}/artifacts/{path}"
        return await self.client("PUT", target, raw=b"bytes", headers=[("content-type", "text/plain")])

    async def logged_model(self, rpc, method="POST", **message):
        return await self.client(method, f"/api/2.0/mlflow/logged-models/{self.model}{rpc}", message or None)


async def train(client) -> Trained:
    name = f"m {secrets.token_hex(6)}"
    experiment = (await client.rpc("POST", "experiments/create", name=name)).json["experiment_id"]
    made = await client.rpc("POST", "runs/create", experiment_id=experiment, start_time=1)
    run = made.json["run"]["info"]["run_id"]
    logged = await client.rpc("POST", "logged-models", experiment_id=experiment, name="net", source_run_id=run)
    trained = Trained(client, name, experiment, run, logged.json["model"]["info"]["model_id"])
    assert (await log(client, run, key="accuracy", value=0.95)).status == 200
    for owner in (run, f"models/{trained.model}"):
        assert (await trained.put(owner)).status == 200
    await client.be("user:scientist").rpc("POST", "registered-models/create", name=name)
    message = {"name": name, "source": f"models:/{trained.model}", "run_id": run, "model_id": trained.model}
    made = await client.be("user:scientist").rpc("POST", "model-versions/create", **message)
    assert made.status == 200, made.body
    return trained


@pytest.mark.real
async def test_an_approval_seals_until_it_is_revoked_also_after_a_restart(running, mlflow_server, tmp_path):
    changes = {"environments": environments(tmp_path, sealed_tags=["qa/*"])}
    says = ("approved for 'production'", "sealed")
    async with running(transport=HttpTransport("main", mlflow_server.url), **changes) as begun:
        it = await train(Client(begun.application.asgi))
        approval = await approve(it.client, "1", it.name)
    async with running(transport=HttpTransport("main", mlflow_server.url), **changes) as again:
        it.client = client = Client(again.application.asgi)
        for answer in (
            await log(client, it.run),
            await it.put(it.run),
            await it.put(f"models/{it.model}"),
            await client.rpc("POST", "logged-models", experiment_id=it.experiment, name="n", source_run_id=it.run),
            await it.logged_model("/tags", "PATCH", tags=[{"key": "k", "value": "v"}]),
            await it.logged_model("/params", params=[{"key": "k", "value": "v"}]),
            await it.logged_model("", "PATCH", status="LOGGED_MODEL_READY"),
            await it.logged_model("", "DELETE"),
            await delete(client, "artifact", f"{it.experiment}/models/{it.model}/artifacts/MLmodel"),
            await delete(client, "run", it.run),
            await delete(client, "experiment", it.experiment),
            await tag(client, "qa/bias", model=it.name),
        ):
            assert refused(answer, it.name, *says)
        ended = await client.rpc("POST", "runs/update", run_id=it.run, status="FINISHED", end_time=2)
        assert ended.status == 200, ended.body
        renamed = await client.rpc("POST", "runs/update", run_id=it.run, run_name="another")
        assert refused(renamed, *says)
        new_name = f"{it.name} 2"
        assert (await client.rpc("POST", "registered-models/rename", name=it.name, new_name=new_name)).status == 200
        assert refused(await log(client, it.run), new_name)
        assert (await revoke(client, approval, "1", new_name)).status == 204
        assert (await log(client, it.run)).status == 200
        assert (await tag(client, "qa/bias", model=new_name)).status == 200


@pytest.mark.real
async def test_what_stands_behind_a_version_is_deleted_only_by_right(running, mlflow_server):
    async with running(transport=HttpTransport("main", mlflow_server.url)) as begun:
        admin = Client(begun.application.asgi)
        scientist, it = admin.be("user:scientist"), await train(admin)
        copy = f"{it.name} copy"
        await admin.rpc("POST", "registered-models/create", name=copy)
        made = await admin.rpc("POST", "model-versions/create", name=copy, source=f"models:/{it.name}/1")
        assert made.status == 200, made.body
        for kind, identifier in (("run", it.run), ("model", it.model)):
            refusal = await delete(scientist, kind, identifier)
            assert refused(refusal, repr(it.name), repr(copy), RIGHT)
        assert (await admin.rpc("DELETE", "registered-models/delete", name=it.name)).status == 200
        assert refused(await delete(scientist, "run", it.run), repr(copy))
        assert (await delete(admin, "model", it.model)).status == 200
        assert (await delete(admin, "experiment", it.experiment)).status == 200
        assert (await scientist.rpc("POST", "runs/restore", run_id=it.run)).status == 200
        assert (await admin.rpc("DELETE", "registered-models/delete", name=copy)).status == 200
        assert (await delete(scientist, "run", it.run)).status == 200
