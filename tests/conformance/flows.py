"""What a data team does with MLflow's client. Each flow yields (step, answer); names carry the side they run on."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

import mlflow
import pandas
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException


def refused(call, *arguments, **keywords):
    """Return the error that *call* raises, as its user sees it."""
    try:
        call(*arguments, **keywords)
    except MlflowException as error:
        return {"error_code": error.error_code, "message": str(error)}
    return "not refused"


def experiments(name):
    client = MlflowClient()
    experiment_id = client.create_experiment(name, tags={"team": "risk"})
    yield "get", client.get_experiment(experiment_id)
    yield "by name", client.get_experiment_by_name(name)
    yield "no such name", client.get_experiment_by_name(f"{name}-none")
    yield "twice", refused(client.create_experiment, name)
    client.set_experiment_tag(experiment_id, "k", "v")
    client.delete_experiment_tag(experiment_id, "k")
    client.rename_experiment(experiment_id, f"{name}-new")
    yield "search", client.search_experiments(filter_string=f"name LIKE '{name}%'", order_by=["name DESC"])
    client.delete_experiment(experiment_id)
    yield "deleted", client.get_experiment(experiment_id).lifecycle_stage
    client.restore_experiment(experiment_id)
    yield "restored", client.get_experiment(experiment_id)
    yield "bad filter", refused(client.search_experiments, filter_string="nonsense !! 3")


def runs(name):
    client = MlflowClient()
    experiment_id = client.create_experiment(name)
    run = client.create_run(experiment_id, tags={"a": "b"}, run_name="first", start_time=1_700_000_000_000)
    run_id = run.info.run_id
    client.log_metric(run_id, "loss", 0.5, step=1, timestamp=1_700_000_000_001)
    client.log_metric(run_id, "loss", 0.25, step=2, timestamp=1_700_000_000_002)
    client.log_param(run_id, "depth", 3)
    yield "param again", refused(client.log_param, run_id, "depth", 4)
    client.set_tag(run_id, "k", "v")
    client.delete_tag(run_id, "k")
    client.log_batch(
        run_id,
        metrics=[Metric(f"m{i}", i / 7, 1_700_000_000_000 + i, i) for i in range(50)],
        params=[Param(f"p{i}", "x") for i in range(20)],
        tags=[RunTag("batch", "yes")],
    )
    client.log_metric(run_id, "nan", float("nan"))
    client.log_metric(run_id, "inf", float("inf"))
    yield "history", [(m.key, m.value, m.step, m.timestamp) for m in client.get_metric_history(run_id, "loss")]
    client.update_run(run_id, status="FAILED", name="renamed")
    client.set_terminated(run_id, "FINISHED", end_time=1_700_000_000_009)
    yield "get", client.get_run(run_id)
    client.delete_run(run_id)
    yield "deleted", client.get_run(run_id).info.lifecycle_stage
    client.restore_run(run_id)
    yield "no such run", refused(client.get_run, "0" * 32)
    yield "bad metric", refused(client.log_metric, run_id, "bad key !!", 1.0)


def run_search(name):
    client = MlflowClient()
    experiment_id = client.create_experiment(name)
    for index in range(7):
        run = client.create_run(experiment_id, start_time=1_700_000_000_000 + index, run_name=f"r{index}")
        client.log_metric(run.info.run_id, "acc", index / 10)
        client.log_param(run.info.run_id, "kind", "even" if index % 2 == 0 else "odd")
    query = {"filter_string": "params.kind = 'even'", "order_by": ["metrics.acc DESC"], "max_results": 3}
    page = client.search_runs([experiment_id], **query)
    yield "first page", [run.info.run_name for run in page]
    yield "more", bool(page.token)
    page = client.search_runs([experiment_id], **query, page_token=page.token)
    yield "second page", [run.info.run_name for run in page]
    yield "frame", list(mlflow.search_runs([experiment_id], order_by=["attributes.start_time ASC"])["metrics.acc"])
    yield "bad filter", refused(client.search_runs, [experiment_id], "metrics.acc >< 3")
    yield "bad token", refused(client.search_runs, [experiment_id], page_token="nonsense")["error_code"]


def nested(name):
    mlflow.set_experiment(name)
    with mlflow.start_run(run_name="parent") as parent:
        mlflow.log_param("outer", 1)
        for index in range(2):
            with mlflow.start_run(nested=True, run_name=f"child{index}"):
                mlflow.log_metric("x", index)
        mlflow.log_dict({"a": 1}, "conf/a.json")
        mlflow.log_text("hello", "notes/hello.txt")
    client = MlflowClient()
    found = client.search_runs([parent.info.experiment_id], order_by=["attributes.run_name ASC"])
    yield "runs", [(run.info.run_name, sorted(run.data.params)) for run in found]
    yield "parent", client.get_parent_run(found[0].info.run_id).info.run_name


def artifacts(name):
    client = MlflowClient()
    experiment_id = client.create_experiment(name)
    run_id = client.create_run(experiment_id).info.run_id
    folder = Path(tempfile.mkdtemp())
    (folder / "sub").mkdir()
    (folder / "a b.txt").write_text("one")
    (folder / "sub" / "caf\u00e9.bin").write_bytes(bytes(range(256)) * 1000)
    client.log_artifacts(run_id, str(folder), "data")
    client.log_artifact(run_id, str(folder / "a b.txt"))
    yield "root", client.list_artifacts(run_id)
    yield "data", client.list_artifacts(run_id, "data")
    yield "sub", client.list_artifacts(run_id, "data/sub")
    got = Path(client.download_artifacts(run_id, "data", tempfile.mkdtemp()))
    yield (
        "files",
        sorted((str(item.relative_to(got)), item.stat().st_size) for item in got.rglob("*") if item.is_file()),
    )
    yield "text", mlflow.artifacts.load_text(f"runs:/{run_id}/a b.txt")
    yield "missing", refused(client.download_artifacts, run_id, "nothing")["error_code"]
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(client.get_run(run_id).info.artifact_uri).delete_artifacts("data/sub")
    yield "after delete", client.list_artifacts(run_id, "data")


def registry(name):
    client = MlflowClient()
    yield "create", client.create_registered_model(name, tags={"t": "1"}, description="d")
    yield "twice", refused(client.create_registered_model, name)
    experiment_id = client.create_experiment(name)
    run = client.create_run(experiment_id)
    for _ in range(3):
        client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id, tags={"v": "1"})
    yield "version", client.get_model_version(name, "1")
    yield "uri", client.get_model_version_download_uri(name, "1")
    client.update_model_version(name, "2", "second")
    client.update_registered_model(name, "described")
    client.set_model_version_tag(name, "2", "checked", "yes")
    client.delete_model_version_tag(name, "2", "checked")
    client.set_registered_model_tag(name, "k", "v")
    client.delete_registered_model_tag(name, "k")
    client.set_registered_model_alias(name, "blue", "2")
    yield "alias", client.get_model_version_by_alias(name, "blue")
    client.delete_registered_model_alias(name, "blue")
    yield "no alias", refused(client.get_model_version_by_alias, name, "blue")
    yield "stage", client.transition_model_version_stage(name, "1", "Archived")
    yield "latest", client.get_latest_versions(name)
    yield "search", client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"], max_results=2)
    page = client.search_model_versions(f"name = '{name}'", order_by=["version_number DESC"], max_results=2)
    yield (
        "next page",
        client.search_model_versions(
            f"name = '{name}'", order_by=["version_number DESC"], max_results=2, page_token=page.token
        ),
    )
    yield "models", client.search_registered_models(f"name LIKE '{name}%'", order_by=["name ASC"])
    yield "copy", client.copy_model_version(f"models:/{name}/2", f"{name}-copy").source
    client.delete_model_version(name, "3")
    yield "gone", refused(client.get_model_version, name, "3")
    client.rename_registered_model(name, f"{name}-b")
    yield "renamed", client.get_registered_model(f"{name}-b").name
    yield "bad filter", refused(client.search_registered_models, "nonsense !! 1")
    client.delete_registered_model(f"{name}-b")
    yield "deleted", refused(client.get_registered_model, f"{name}-b")


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input


def models(name):
    mlflow.set_experiment(name)
    frame = pandas.DataFrame({"x": [1.0, 2.0]})
    with mlflow.start_run() as run:
        info = mlflow.pyfunc.log_model(
            name="echo", python_model=Echo(), input_example=frame, registered_model_name=name
        )
    yield "flavors", sorted(info.flavors)
    yield "from the run", mlflow.pyfunc.load_model(f"models:/{name}/1").predict(frame).to_dict()
    version = mlflow.register_model(info.model_uri, name)
    yield "registered", (version.name, version.version, version.source, version.status)
    MlflowClient().set_registered_model_alias(name, "blue", "2")
    yield "by alias", mlflow.pyfunc.load_model(f"models:/{name}@blue").predict(frame).to_dict()
    yield "by run", mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/echo").predict(frame).to_dict()
    client = MlflowClient()
    logged = client.get_logged_model(info.model_id)
    yield "logged model", (logged.name, logged.status, sorted(logged.tags))
    client.set_logged_model_tags(info.model_id, {"k": "v"})
    client.delete_logged_model_tag(info.model_id, "k")
    found = client.search_logged_models([logged.experiment_id], filter_string="name = 'echo'")
    yield "logged models", [(item.name, item.status) for item in found]
    external = mlflow.create_external_model(name="outside", params={"p": "1"})
    mlflow.log_model_params({"q": "2"}, external.model_id)
    yield "external", mlflow.get_logged_model(external.model_id).params
    client.delete_logged_model(external.model_id)
    yield "deleted", refused(mlflow.get_logged_model, external.model_id)["error_code"]


def autolog(name):
    from sklearn.linear_model import LogisticRegression

    mlflow.set_experiment(name)
    mlflow.sklearn.autolog(silent=True)
    with mlflow.start_run() as run:
        LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    mlflow.sklearn.autolog(disable=True, silent=True)
    data = MlflowClient().get_run(run.info.run_id).data
    yield "params", data.params
    yield "metrics", sorted(data.metrics)
    yield "artifacts", MlflowClient().list_artifacts(run.info.run_id)


def datasets(name):
    mlflow.set_experiment(name)
    frame = pandas.DataFrame({"x": [1, 2], "y": [0, 1]})
    data = mlflow.data.from_pandas(frame, name="train", targets="y")
    with mlflow.start_run() as run:
        mlflow.log_input(data, context="training")
    inputs = MlflowClient().get_run(run.info.run_id).inputs.dataset_inputs
    yield "inputs", [(item.dataset.name, item.dataset.digest, [tag.value for tag in item.tags]) for item in inputs]


def prompts(name):
    prompt = mlflow.genai.register_prompt(name, "Say {{ word }}.", commit_message="first", tags={"a": "1"})
    yield "first", (prompt.version, prompt.template, prompt.tags)
    mlflow.genai.register_prompt(name, "Shout {{ word }}!")
    mlflow.genai.set_prompt_alias(name, "blue", 2)
    yield "by alias", mlflow.genai.load_prompt(f"prompts:/{name}@blue").template
    yield "by version", mlflow.genai.load_prompt(name, 1).format(word="hi")
    yield "search", [item.name for item in mlflow.genai.search_prompts(f"name = '{name}'")]
    client = MlflowClient()
    client.set_prompt_tag(name, "k", "v")
    client.set_prompt_version_tag(name, "1", "k", "v")
    client.delete_prompt_tag(name, "k")
    client.delete_prompt_version_tag(name, "1", "k")
    mlflow.genai.delete_prompt_alias(name, "blue")
    yield "versions", [item.version for item in client.search_prompt_versions(name)]
    client.delete_prompt_version(name, "1")
    yield "gone", mlflow.genai.load_prompt(name, 1, allow_missing=True)
    client.delete_prompt_version(name, "2")
    client.delete_prompt(name)


def traces(name):
    experiment = mlflow.set_experiment(name)
    client = MlflowClient()

    @mlflow.trace
    def inner(x):
        return x + 1

    with mlflow.start_span("outer") as span:
        span.set_inputs({"x": 1})
        span.set_outputs({"y": inner(1)})
        mlflow.update_current_trace(tags={"team": "risk"})
    mlflow.flush_trace_async_logging()
    trace_id = span.trace_id
    trace = wait_for(lambda: client.get_trace(trace_id))
    yield "spans", [(item.name, item.span_type) for item in trace.data.spans]
    yield "tags", {key: value for key, value in trace.info.tags.items() if not key.startswith("mlflow.")}
    found = client.search_traces(locations=[experiment.experiment_id], filter_string="tags.team = 'risk'")
    yield "search", [item.data.request for item in found]
    client.set_trace_tag(trace_id, "k", "v")
    client.delete_trace_tag(trace_id, "k")
    feedback = mlflow.log_feedback(trace_id=trace_id, name="good", value=True, rationale="r")
    expectation = mlflow.log_expectation(trace_id=trace_id, name="answer", value=2)
    changed = mlflow.update_assessment(
        trace_id, feedback.assessment_id, mlflow.entities.Feedback(name="good", value=False)
    )
    yield "feedback", (changed.name, changed.value)
    yield "assessment", mlflow.get_assessment(trace_id, expectation.assessment_id).name
    mlflow.delete_assessment(trace_id, expectation.assessment_id)
    with mlflow.start_run() as run:
        pass
    client.link_traces_to_run([trace_id], run.info.run_id)
    yield "of the run", len(client.search_traces(locations=[experiment.experiment_id], run_id=run.info.run_id))
    yield "deleted", client.delete_traces(experiment.experiment_id, trace_ids=[trace_id])
    yield "gone", refused(client.get_trace, trace_id)["error_code"]


def wait_for(call):
    """Spans are exported by a thread of the client's own."""
    for _ in range(100):
        with contextlib.suppress(MlflowException):
            if found := call():
                return found
        time.sleep(0.1)
    raise TimeoutError


FLOWS = {
    flow.__name__: flow
    for flow in (
        experiments, runs, run_search, nested, artifacts, registry, models, autolog, datasets, prompts, traces,
    )
}  # fmt: skip
