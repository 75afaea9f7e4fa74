"""The main flow of an MLflow client, for any version of it: run in an environment of its own, prints each step.

Usage: ``python flow.py GATEWAY_URL NAME KEY_OF_A_SCIENTIST KEY_OF_A_PIPELINE``. Each line is ``step outcome``.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

uri, name, scientist, pipeline = sys.argv[1:]
os.environ.update(MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_TOKEN=scientist, MLFLOW_DISABLE_TELEMETRY="true")

import mlflow  # noqa: E402  # its settings come first
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

client = MlflowClient()


def step(title):
    def run(function):
        try:
            print(title, function() or "ok", flush=True)
        except Exception as error:  # noqa: BLE001  # each step says how it went
            print(title, "FAILED", type(error).__name__, str(error)[:300].replace("\n", " "), flush=True)

    return run


def refused(call, code):
    begun = time.monotonic()
    try:
        call()
    except MlflowException as error:
        said = error.error_code
    except ValueError as error:  # a client that is older than the code
        return "refused-unnamed" if code in str(error) else str(error)
    else:
        return "not refused"
    seconds = time.monotonic() - begun
    return "ok" if said == code and seconds < 5 else f"{said} after {seconds:.1f} s"


experiment_id = client.create_experiment(name)
run_id = client.create_run(experiment_id).info.run_id


@step("run")
def _():
    client.log_metric(run_id, "accuracy", 0.95, step=1)
    client.log_param(run_id, "depth", 3)
    client.set_tag(run_id, "team", "risk")
    data = client.get_run(run_id).data
    assert (data.metrics, data.params, data.tags["team"]) == ({"accuracy": 0.95}, {"depth": "3"}, "risk")


@step("artifacts")
def _():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a b.txt")
        path.write_text("hello")
        client.log_artifact(run_id, str(path), "model")
    assert [item.path for item in client.list_artifacts(run_id, "model")] == ["model/a b.txt"]
    assert Path(client.download_artifacts(run_id, "model/a b.txt", tempfile.mkdtemp())).read_text() == "hello"


@step("search")
def _():
    found = client.search_runs([experiment_id], "params.depth = '3'", order_by=["metrics.accuracy DESC"])
    assert [run.info.run_id for run in found] == [run_id]


@step("register")
def _():
    client.create_registered_model(name, tags={"a": "b"})
    source = client.get_run(run_id).info.artifact_uri + "/model"
    version = client.create_model_version(name, source, run_id)
    client.set_model_version_tag(name, version.version, "checked", "yes")
    assert [item.name for item in client.search_registered_models(f"name = '{name}'")] == [name]
    assert client.get_model_version(name, "1").tags == {"checked": "yes"}
    client.get_model_version_download_uri(name, "1")


@step("alias")
def _():
    if not hasattr(client, "set_registered_model_alias"):
        return "not-there-yet"
    client.set_registered_model_alias(name, "blue", "1")
    assert client.get_model_version_by_alias(name, "blue").version in ("1", 1)
    client.delete_registered_model_alias(name, "blue")
    return None


@step("denied")
def _():
    return refused(lambda: client.delete_registered_model(name), "PERMISSION_DENIED")


os.environ["MLFLOW_TRACKING_TOKEN"] = pipeline


@step("gate-closed")
def _():
    return refused(
        lambda: client.transition_model_version_stage(name, "1", "Production", archive_existing_versions=True),
        "RESOURCE_CONFLICT",
    )


@step("staging")
def _():
    version = client.transition_model_version_stage(name, "1", "Staging", archive_existing_versions=True)
    assert version.current_stage == "Staging"
    assert [item.version for item in client.get_latest_versions(name, ["Staging"])] in (["1"], [1])


print("version", mlflow.__version__)
