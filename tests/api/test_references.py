"""What stands behind a registered version is not deleted by the way."""

from __future__ import annotations

import pytest

from service.errors import RegistryUnavailable
from tests.api.test_attacks import ARTIFACTS, run_of, upload
from tests.api.test_promotion import promote, register, satisfy
from tests.api.test_seals import approve, refused
from tests.client import Client
from tests.conftest import ROOT

RIGHT = "run:delete-referenced"


async def new_run(client):
    return (await client.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]


async def new_model(client, run=""):
    """Log a model, of *run* or of none."""
    message = {"experiment_id": "0", "name": "net", **({"source_run_id": run} if run else {})}
    made = await client.rpc("POST", "logged-models", **message)
    assert made.status == 200, made.body
    return made.json["model"]["info"]["model_id"]


async def new_version(client, source, run="", model="iris"):
    await client.rpc("POST", "registered-models/create", name=model)
    made = await client.rpc(
        "POST", "model-versions/create", name=model, source=source, **({"run_id": run} if run else {})
    )
    assert made.status == 200, made.body
    return made.json["model_version"]["version"]


async def delete(client, kind, identifier):
    if kind == "run":
        return await client.rpc("POST", "runs/delete", run_id=identifier)
    if kind == "model":
        return await client("DELETE", f"/api/2.0/mlflow/logged-models/{identifier}")
    if kind == "experiment":
        return await client.rpc("POST", "experiments/delete", experiment_id=identifier)
    return await client("DELETE", f"{ARTIFACTS}/{identifier}")


async def by_run(client):
    run = await new_run(client)
    await new_version(client, f"runs:/{run}/model", run)
    return run, None


async def by_source_only(client):
    run = await new_run(client)
    await new_version(client, f"mlflow-artifacts:/0/{run}/artifacts/model")
    return run, None


async def by_logged_model(client):
    run = await new_run(client)
    model = await new_model(client, run)
    await new_version(client, f"models:/{model}")
    return run, model


async def by_files_of_a_logged_model(client):
    run = await new_run(client)
    model = await new_model(client, run)
    await new_version(client, f"mlflow-artifacts:/0/models/{model}/artifacts")
    return run, model


async def by_the_run_of_a_logged_model(client):
    """MLflow reads a ``runs:`` source from the run's logged models too."""
    run = await new_run(client)
    model = await new_model(client, run)
    await new_version(client, f"runs:/{run}/net", run)
    return run, model


async def by_a_logged_model_without_run(client):
    model = await new_model(client)
    await new_version(client, f"models:/{model}")
    return None, model


async def by_a_copy_of_a_copy(client):
    """The versions between are gone, and the copies name no run."""
    run = await new_run(client)
    model = await new_model(client, run)
    await new_version(client, f"models:/{model}", model="a")
    await new_version(client, "models:/a/1", model="b")
    await new_version(client, "models:/b/1")
    for name in ("a", "b"):
        assert (await client.rpc("DELETE", "registered-models/delete", name=name)).status == 200
    return run, model


WAYS = [
    by_run, by_source_only, by_logged_model, by_files_of_a_logged_model, by_the_run_of_a_logged_model,
    by_a_logged_model_without_run, by_a_copy_of_a_copy,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_what_stands_behind_a_version_is_not_deleted_by_default(running, way):
    async with running() as it:
        client = Client(it.application.asgi)
        run, model = await way(client)
        scientist = client.be("user:scientist")
        for kind, identifier in (("run", run), ("model", model)):
            if identifier:
                answer = await delete(scientist, kind, identifier)
                assert refused(answer, "version 1 of 'iris'", RIGHT, "experiments/Default")
                assert [event["data"]["phase"] for event in (await it.events())[-1:]] == ["rejected"]
                allowed = await delete(client, kind, identifier)
                assert allowed.status == 200, allowed.body
                done = (await it.events(operation=allowed.headers["registry-gateway-operation"]))[-1]["data"]
                assert any(RIGHT in note and "'iris'" in note for note in done["notes"])


@pytest.mark.parametrize(
    "way", [by_run, by_source_only, by_logged_model, by_a_logged_model_without_run, by_a_copy_of_a_copy]
)
async def test_an_experiment_whose_contents_stand_behind_a_version_is_not_deleted(running, tmp_path, way):
    async with running(access=may_delete(tmp_path)) as it:
        client = Client(it.application.asgi)
        empty = (await client.rpc("POST", "experiments/create", name="empty")).json["experiment_id"]
        await way(client)
        deleter = client.be("user:scientist")
        assert refused(await delete(deleter, "experiment", "0"), "version 1 of 'iris'", RIGHT)
        assert (await delete(deleter, "experiment", empty)).status == 200
        assert (await delete(client, "experiment", "0")).status == 200


async def test_a_version_that_names_a_run_counts_wherever_its_files_are(running, tmp_path):
    async with running(access=may_delete(tmp_path)) as it:
        client = Client(it.application.asgi)
        run, _ = await by_run(client)
        it.memory.models["iris"]["versions"]["1"]["source"] = "s3://elsewhere/model"
        for kind, identifier in (("run", run), ("experiment", "0")):
            assert refused(await delete(client.be("user:scientist"), kind, identifier), "version 1 of 'iris'", RIGHT)


async def test_an_experiment_too_large_to_look_through_needs_the_right(running, tmp_path, monkeypatch):
    monkeypatch.setattr("service.references._MAX_CONTENTS", 1)
    async with running(access=may_delete(tmp_path)) as it:
        client = Client(it.application.asgi)
        for _ in range(2):
            await new_run(client)
        assert refused(await delete(client.be("user:scientist"), "experiment", "0"), "cannot be told", RIGHT)
        assert (await delete(client, "experiment", "0")).status == 200


def may_delete(tmp_path):
    """The demo policy, in which scientists may delete experiments and files too."""
    rows = tmp_path / "rows.csv"
    more = "".join(
        f"p, role:scientist, *, experiments/*, {action}, allow\n" for action in ("experiment:delete", "artifact:delete")
    )
    rows.write_text((ROOT / "policies/policy.csv").read_text() + more)
    return {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}


@pytest.mark.parametrize(
    ("path", "status"),
    [("model/MLmodel", 409), ("model", 409), ("", 409), ("logs/out.txt", 200), ("model2/MLmodel", 200)],
)
async def test_only_files_that_a_version_is_made_of_are_kept(running, tmp_path, path, status):
    async with running(access=may_delete(tmp_path)) as it:
        client = Client(it.application.asgi)
        it.memory._deleteArtifact = lambda _: {}
        await register(it, client)
        run = run_of(it)
        for name in ("model/MLmodel", "logs/out.txt", "model2/MLmodel"):
            assert (await upload(client, run, b"x", name)).status == 200
        target = f"0/{run}/artifacts/{path}".rstrip("/")
        answer = await delete(client.be("user:scientist"), "artifact", target)
        assert answer.status == status, answer.body
        assert (await delete(client, "artifact", target)).status == 200


async def test_what_stands_behind_nothing_is_deleted(running):
    async with running() as it:
        client = Client(it.application.asgi)
        scientist = client.be("user:scientist")
        run = await new_run(client)
        first, second, lone = await new_model(client, run), await new_model(client, run), await new_model(client)
        await new_version(client, f"models:/{first}")
        assert (await delete(scientist, "model", second)).status == 200  # another model of the same run
        assert (await delete(scientist, "model", lone)).status == 200
        assert (await delete(scientist, "run", await new_run(client))).status == 200
        assert (await delete(scientist, "run", "f" * 32)).status == 404
        await client.rpc("DELETE", "registered-models/delete", name="iris")
        assert (await delete(scientist, "run", run)).status == 200


async def test_the_right_does_not_reach_what_is_sealed(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        approval = await approve(client)
        assert refused(await delete(client, "run", run_of(it)), "approved for 'production'")
        del approval
        await satisfy(client, version)
        assert (await promote(client, version)).status == 200
        assert refused(await delete(client, "run", run_of(it)), "live in 'production'")
        assert refused(await delete(client, "experiment", "0"), "live in 'production'")


async def test_all_pages_are_read_and_ten_versions_named(running, monkeypatch):
    monkeypatch.setattr("service.backends.mlflow._PAGE", 3)
    async with running() as it:
        client = Client(it.application.asgi)
        run = await new_run(client)
        for _ in range(14):
            await new_version(client, f"runs:/{run}/model", run)
        answer = await delete(client.be("user:scientist"), "run", run)
        assert refused(answer, "and 4 more versions")
        assert answer.json["message"].count("version ") == 10


async def test_versions_that_the_caller_may_not_read_are_counted_not_named(running, tmp_path):
    access = may_delete(tmp_path)
    rows = tmp_path / "rows.csv"
    rows.write_text(rows.read_text() + "p, user:scientist, *, models/secret/versions, version:read, deny\n")
    async with running(access=access) as it:
        client = Client(it.application.asgi)
        run = await new_run(client)
        await new_version(client, f"runs:/{run}/model", run, model="secret")
        answer = await delete(client.be("user:scientist"), "run", run)
        assert refused(answer, "1 registered version", RIGHT)
        assert "secret" not in answer.json["message"]
        await new_version(client, f"runs:/{run}/model", run)
        answer = await delete(client.be("user:scientist"), "run", run)
        assert refused(answer, "version 1 of 'iris' and 1 more version")
        assert "secret" not in answer.json["message"]


@pytest.mark.parametrize("rpc", ["searchModelVersions", "searchLoggedModels", "getModelVersionDownloadUri"])
async def test_a_registry_that_cannot_tell_deletes_nothing(running, rpc):
    async with running() as it:
        client = Client(it.application.asgi)
        run, model = await by_a_copy_of_a_copy(client)
        await new_version(client, f"runs:/{run}/model", run)  # its files have to be looked up for the model
        inner, seen = it.memory.send, []

        async def failing(request, *, writes, trace=""):
            seen.append(request.rpc)
            if request.rpc.endswith(f".{rpc}"):
                raise RegistryUnavailable("down")
            return await inner(request, writes=writes, trace=trace)

        it.memory.send = failing
        answer = await delete(client, "model", model)
        assert answer.status == 503, answer.body
        assert "MlflowService.deleteLoggedModel" not in seen


async def test_restoring_asks_for_no_more_than_before(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        await approve(client)
        it.memory._restoreRun = lambda _: {}
        restored = await client.be("user:scientist").rpc("POST", "runs/restore", run_id=run_of(it))
        assert restored.status == 200, restored.body
