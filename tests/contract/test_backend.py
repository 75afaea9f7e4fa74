"""One contract for every registry adapter: in memory first, then a real MLflow server."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest

from service.backends.http import HttpTransport
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.errors import NotFound, RegistryRefused
from service.model import Request

REGISTRY, TRACKING = "ModelRegistryService", "MlflowService"


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=pytest.mark.real)])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[MlflowBackend]:
    if request.param == "memory":
        made = MlflowBackend("main", MemoryTransport())
    else:
        server = request.getfixturevalue("mlflow_server")
        made = MlflowBackend("main", HttpTransport("main", server.url))
    yield made
    await made.close()


async def rpc(backend, service, rpc_name, method, path, /, **message):
    request = Request(f"{service}.{rpc_name}", method, f"/api/2.0/mlflow/{path}", message)
    return (await backend.forward(request, writes=method != "GET")).document()


async def create(backend, versions=1):
    name = f"m {uuid.uuid4().hex[:8]}"
    await rpc(backend, REGISTRY, "createRegisteredModel", "POST", "registered-models/create", name=name)
    made = await rpc(backend, TRACKING, "createRun", "POST", "runs/create", experiment_id="0", start_time=1)
    run_id = made["run"]["info"]["run_id"]
    message = {"name": name, "source": f"runs:/{run_id}/model", "run_id": run_id}
    for _ in range(versions):
        await rpc(backend, REGISTRY, "createModelVersion", "POST", "model-versions/create", **message)
    return name


async def test_a_model_with_marks(backend):
    name = await create(backend, versions=2)
    await backend.set_alias(name, "champion", "2")
    await backend.set_alias(name, "champion", "1")
    await backend.set_stage(name, "1", "Production")
    model = await backend.get_model(name)
    assert (model.name, dict(model.aliases)) == (name, {"champion": "1"})
    assert model.stages["Production"] == ("1",)
    version = await backend.get_version(name, "1")
    assert (version.version, version.stage, version.aliases) == ("1", "Production", ("champion",))
    assert version.status == "READY"
    assert version.created_ms > 1_600_000_000_000
    await backend.delete_alias(name, "champion")
    await backend.delete_alias(name, "champion")
    assert dict((await backend.get_model(name)).aliases) == {}


async def test_a_stage_archives_what_was_there(backend):
    name = await create(backend, versions=2)
    await backend.set_stage(name, "1", "Production")
    await backend.set_stage(name, "2", "Production")
    assert (await backend.get_version(name, "1")).stage == "Archived"
    assert (await backend.get_model(name)).stages["Production"] == ("2",)


async def test_a_version_made_again_has_another_binding(backend):
    name = await create(backend)
    first = (await backend.get_version(name, "1")).binding
    await rpc(
        backend, REGISTRY, "renameRegisteredModel", "POST", "registered-models/rename", name=name, new_name=name + "x"
    )
    assert (await backend.get_version(name + "x", "1")).binding == first


async def test_versions_are_listed_newest_first(backend):
    name = await create(backend, versions=3)
    assert [item.version for item in await backend.list_versions(name)] == ["3", "2", "1"]


@pytest.mark.parametrize(
    "ask",
    [
        lambda backend: backend.get_model("no such model"),
        lambda backend: backend.get_version("no such model", "1"),
        lambda backend: backend.get_run("0" * 32),
        lambda backend: backend.experiment_name("987654321"),
    ],
)
async def test_what_is_not_there_is_not_found(backend, ask):
    with pytest.raises(NotFound):
        await ask(backend)


@pytest.mark.parametrize(
    ("name", "method", "path", "message", "code"),
    [
        ("getModelVersionByAlias", "GET", "registered-models/alias", {"alias": "no"}, "INVALID_PARAMETER_VALUE"),
        ("createRegisteredModel", "POST", "registered-models/create", {}, "RESOURCE_ALREADY_EXISTS"),
        ("getModelVersion", "GET", "model-versions/get", {"version": "99"}, "RESOURCE_DOES_NOT_EXIST"),
        (
            "setRegisteredModelAlias",
            "POST",
            "registered-models/alias",
            {"alias": "a", "version": "9"},
            "RESOURCE_DOES_NOT_EXIST",
        ),
    ],
)
async def test_a_refusal_keeps_the_registrys_code(backend, name, method, path, message, code):
    model = await create(backend)
    with pytest.raises(RegistryRefused) as raised:
        await rpc(backend, REGISTRY, name, method, path, name=model, **message)
    assert raised.value.error_code == code
    assert raised.value.status in (400, 404)


async def test_a_run_with_its_facts(backend):
    made = await rpc(backend, TRACKING, "createRun", "POST", "runs/create", experiment_id="0", start_time=1)
    run_id = made["run"]["info"]["run_id"]
    await rpc(
        backend, TRACKING, "logMetric", "POST", "runs/log-metric", run_id=run_id, key="accuracy", value=0.5, timestamp=1
    )
    await rpc(
        backend, TRACKING, "logMetric", "POST", "runs/log-metric", run_id=run_id, key="bad", value="NaN", timestamp=1
    )
    await rpc(backend, TRACKING, "setTag", "POST", "runs/set-tag", run_id=run_id, key="k", value="v")
    run = await backend.get_run(run_id)
    assert (run.run_id, run.experiment_id, run.metrics["accuracy"]) == (run_id, "0", 0.5)
    assert run.metrics["bad"] != run.metrics["bad"]
    assert run.tags["k"] == "v"
    assert run.artifact_uri.startswith("mlflow-artifacts:/")
    assert await backend.experiment_name("0") == "Default"


async def test_files_are_streamed_listed_and_read(backend):
    made = await rpc(backend, TRACKING, "createRun", "POST", "runs/create", experiment_id="0", start_time=1)
    run_id = made["run"]["info"]["run_id"]
    root = f"0/{run_id}/artifacts/model"

    async def body():
        yield b"one "
        yield b"two"

    for path in ("a.txt", "deep/b%20c.txt"):
        target = f"/api/2.0/mlflow-artifacts/artifacts/{root}/{path}"
        request = Request("MlflowArtifactsService.uploadArtifact", "PUT", target, body=body())
        assert (await backend.forward(request, writes=True)).status == 200
    files = await backend.list_files(root, 100)
    assert sorted(files) == [(f"{root}/a.txt", 7), (f"{root}/deep/b c.txt", 7)]
    assert b"".join([part async for part in backend.read_file(f"{root}/deep/b c.txt")]) == b"one two"
    assert await backend.list_files(root, 1) is None


async def test_a_version_without_files_has_no_mlmodel(backend):
    name = await create(backend)
    assert await backend.get_mlmodel(name, "1") is None


async def new_run(backend):
    made = await rpc(backend, TRACKING, "createRun", "POST", "runs/create", experiment_id="0", start_time=1)
    return made["run"]["info"]["run_id"]


async def new_logged_model(backend, experiment_id="0", **more):
    message = {"experiment_id": experiment_id, "name": "net", **more}
    made = await rpc(backend, TRACKING, "createLoggedModel", "POST", "logged-models", **message)
    return made["model"]["info"]["model_id"]


async def new_version(backend, source, **more):
    name = f"m {uuid.uuid4().hex[:8]}"
    await rpc(backend, REGISTRY, "createRegisteredModel", "POST", "registered-models/create", name=name)
    message = {"name": name, "source": source, **more}
    await rpc(backend, REGISTRY, "createModelVersion", "POST", "model-versions/create", **message)
    return name


async def test_versions_are_found_by_their_run_and_by_their_source(backend, monkeypatch):
    monkeypatch.setattr("service.backends.mlflow._PAGE", 1)  # every page is read
    run = await new_run(backend)
    model, lone = await new_logged_model(backend, source_run_id=run), await new_logged_model(backend)
    by_run = await new_version(backend, f"runs:/{run}/model", run_id=run)
    by_model = await new_version(backend, f"models:/{model}", run_id=run, model_id=model)
    by_source = await new_version(backend, f"models:/{lone}", model_id=lone)
    await create(backend)  # of another run
    assert {item.model for item in await backend.versions_naming(run)} == {by_run, by_model}
    assert [item.model for item in await backend.versions_naming(model)] == [by_model]
    assert [item.model for item in await backend.versions_naming(lone)] == [by_source]
    assert await backend.versions_naming(uuid.uuid4().hex) == []
    assert await backend.versions_naming("x' OR name != '") == []
    copy = await new_version(backend, f"models:/{by_source}/1")
    copied = {item.model: item for item in await backend.all_versions("models:/")}
    assert {copy, by_model, by_source} <= set(copied)
    assert by_run not in copied
    assert (copied[copy].source, copied[copy].run_id) == (f"models:/{by_source}/1", "")
    assert await backend.download_uri(copy, "1") == f"mlflow-artifacts:/0/models/{lone}/artifacts"
    assert {by_run, by_source, by_model, copy} <= {item.model for item in await backend.all_versions()}


async def test_an_experiments_contents(backend):
    name = f"e {uuid.uuid4().hex[:8]}"
    made = await rpc(backend, TRACKING, "createExperiment", "POST", "experiments/create", name=name)
    experiment_id = made["experiment_id"]
    assert await backend.contents(experiment_id, 2) == []
    run = await rpc(backend, TRACKING, "createRun", "POST", "runs/create", experiment_id=experiment_id, start_time=1)
    run_id = run["run"]["info"]["run_id"]
    models = [await new_logged_model(backend, experiment_id, source_run_id=run_id) for _ in range(2)]
    assert sorted(await backend.contents(experiment_id, 3)) == sorted([run_id, *models])
    assert await backend.contents(experiment_id, 2) is None
    assert sorted(item.model_id for item in await backend.models_of_run(run_id, experiment_id)) == sorted(models)


async def test_it_answers_a_ping(backend):
    await backend.ping()


async def test_every_model_is_listed_with_its_marks(backend):
    name = await create(backend)
    await backend.set_alias(name, "champion", "1")
    await backend.set_stage(name, "1", "Production")
    found = {model.name: model async for model in backend.list_models()}[name]
    one = await backend.get_model(name)
    assert (dict(found.aliases), dict(found.stages)) == (dict(one.aliases), dict(one.stages))
    assert dict(found.aliases) == {"champion": "1"}
    assert await backend.names_like(name[:-1], 10) == [name]
    assert await backend.names_like("", 0) is None
