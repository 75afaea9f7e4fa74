"""The MLflow dialect: which requests are understood, as what, and how errors are told."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from service.change import (
    AliasDelete,
    AliasSet,
    ModelCreate,
    ModelRename,
    OfArtifact,
    OfExperiment,
    OfLoggedModel,
    OfRun,
    OutsideSource,
    StageSet,
    TagSet,
    VersionCreate,
)
from service.dialects.mlflow import MlflowDialect
from service.dialects.mlflow_refused import REFUSED
from service.dialects.mlflow_row import Body
from service.dialects.mlflow_table import ROWS
from service.errors import InvalidRequest, MethodNotAllowed, RefusedRoute, UnknownRoute
from service.model import Call, Need, Principal, Record

DIALECT = MlflowDialect()
CALLER = Principal("user:ann")
REGISTRY = "/api/2.0/mlflow/registered-models"
VERSIONS = "/api/2.0/mlflow/model-versions"
FILES = "/api/2.0/mlflow-artifacts/artifacts"


def understand(method: str, path: str, body: Any = None, query: dict[str, str] | None = None) -> Call:
    match = DIALECT.match(method, path)
    raw = b"" if body is None else json.dumps(body).encode()
    return DIALECT.call(match, CALLER, "main", list((query or {}).items()), raw)[0]


@pytest.mark.parametrize(
    ("method", "path", "rpc", "parameters"),
    [
        ("POST", f"{REGISTRY}/create", "createRegisteredModel", {}),
        ("POST", "/ajax-api/2.0/mlflow/registered-models/create", "createRegisteredModel", {}),
        ("GET", f"{REGISTRY}/alias", "getModelVersionByAlias", {}),
        ("POST", f"{REGISTRY}/alias", "setRegisteredModelAlias", {}),
        ("DELETE", f"{REGISTRY}/alias", "deleteRegisteredModelAlias", {}),
        ("POST", "/api/2.0/mlflow/logged-models/search", "searchLoggedModels", {}),
        ("GET", "/api/2.0/mlflow/logged-models/m-1", "getLoggedModel", {"model_id": "m-1"}),
        ("GET", "/api/2.0/mlflow/logged-models/a%20b", "getLoggedModel", {"model_id": "a b"}),
        ("DELETE", "/api/2.0/mlflow/logged-models/m/tags/t", "deleteLoggedModelTag", {"model_id": "m", "tag_key": "t"}),
        ("GET", FILES, "listArtifacts", {}),
        ("GET", f"{FILES}/1/a%20b/c", "downloadArtifact", {"path": "1/a b/c"}),
        ("PUT", f"{FILES}/1/x", "uploadArtifact", {"path": "1/x"}),
        ("DELETE", f"{FILES}/1/x", "deleteArtifact", {"path": "1/x"}),
    ],
)
def test_finds_the_rpc(method: str, path: str, rpc: str, parameters: dict[str, str]) -> None:
    match = DIALECT.match(method, path)
    assert (match.rpc.name, match.parameters) == (rpc, parameters)
    assert (match.row.body is Body.BYTES) is (rpc == "uploadArtifact")


@pytest.mark.parametrize(
    ("method", "path", "error"),
    [
        ("GET", "/api/2.0/mlflow/nope", UnknownRoute),
        ("GET", "/api/9.0/mlflow/experiments/get", UnknownRoute),
        ("GET", "/apis/2.0/mlflow/experiments/get", UnknownRoute),
        ("GET", "/2.0/mlflow/experiments/get", UnknownRoute),
        ("GET", "/", RefusedRoute),
        ("GET", "/api", UnknownRoute),
        ("GET", "/api/2.0/mlflow/experiments/get/", UnknownRoute),
        ("GET", "/api/2.0/mlflow//experiments/get", UnknownRoute),
        ("GET", "/api/2.0/mlflow/experiments/%67et", UnknownRoute),
        ("GET", "/api/2.0/mlflow/Experiments/get", UnknownRoute),
        ("GET", "/api/2.0/mlflow/logged-models/m-1/unknown/x", UnknownRoute),
        ("GET", f"{REGISTRY}/create", MethodNotAllowed),
        ("PUT", f"{REGISTRY}/alias", MethodNotAllowed),
        ("get", f"{REGISTRY}/alias", MethodNotAllowed),
        ("GET", "/api/2.0/mlflow/logged-models/search", MethodNotAllowed),
        ("POST", f"{FILES}/x", MethodNotAllowed),
        ("POST", "/graphql", RefusedRoute),
        ("POST", "/ajax-api/2.0/mlflow/graphql", UnknownRoute),
        ("POST", "/graphql/", UnknownRoute),
        ("GET", "/api/2.0/mlflow/webhooks", RefusedRoute),
        ("GET", "/api/2.0/mlflow/webhooks/1", RefusedRoute),
        ("POST", "/api/2.0/mlflow-artifacts/mpu/create/1/x", RefusedRoute),
    ],
)
def test_refuses_other_routes(method: str, path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        DIALECT.match(method, path)


def test_a_wrong_method_is_told_the_right_ones() -> None:
    with pytest.raises(MethodNotAllowed, match="takes DELETE, GET, POST, not PUT"):
        DIALECT.match("PUT", f"{REGISTRY}/alias")


def test_literal_paths_beat_templates() -> None:
    assert DIALECT.match("GET", "/api/3.0/mlflow/traces/batchGet").rpc.name == "batchGetTraces"


@pytest.mark.parametrize("key", sorted(DIALECT.rpcs))
def test_every_rpc_is_served_or_refused_with_its_reason(key: str) -> None:
    assert (key in ROWS) != (key in REFUSED)
    for endpoint in DIALECT.rpcs[key].endpoints:
        path = endpoint.path.replace("<path:artifact_path>", "1/x")
        if key in REFUSED:
            with pytest.raises(RefusedRoute, match=re.escape(REFUSED[key])):
                DIALECT.match(endpoint.method, path)
        else:
            assert DIALECT.match(endpoint.method, path).row is ROWS[key]


def test_tables_name_no_rpc_that_mlflow_lacks() -> None:
    assert set(ROWS) | set(REFUSED) <= set(DIALECT.rpcs)


V1 = {"name": "iris", "version": "1"}


@pytest.mark.parametrize(
    ("method", "path", "body", "needs", "change"),
    [
        ("POST", f"{REGISTRY}/create", {"name": "a b"}, [("model:create", "models/a b")], ModelCreate("a b")),
        ("POST", f"{REGISTRY}/create", {"name": "a,*%"}, [("model:create", "models/a%2C%2A%25")], ModelCreate("a,*%")),
        ("POST", f"{REGISTRY}/create", {"name": "a", "tags": [{"key": "k/1"}]},
         [("model:create", "models/a"), ("tag:set", "models/a/tags/k%2F1")], ModelCreate("a")),
        ("POST", f"{REGISTRY}/rename", {"name": "old/x", "new_name": "b"},
         [("model:rename", "models/old%2Fx"), ("model:rename", "models/b")], ModelRename("old/x", "b")),
        ("POST", f"{REGISTRY}/alias", {**V1, "alias": "champion"},
         [("alias:set", "models/iris/aliases/champion")], AliasSet("iris", "champion", "1")),
        ("DELETE", f"{REGISTRY}/alias", {"name": "iris", "alias": "old.alias"},
         [("alias:delete", "models/iris/aliases/old.alias")], AliasDelete("iris", "old.alias")),
        ("POST", f"{REGISTRY}/set-tag", {"name": "iris", "key": "k", "value": "v"},
         [("tag:set", "models/iris/tags/k")], TagSet("iris", "", "k", "v")),
        ("POST", f"{VERSIONS}/set-tag", {**V1, "key": "k", "value": "v"},
         [("tag:set", "models/iris/versions/tags/k")], TagSet("iris", "1", "k", "v")),
        ("POST", f"{VERSIONS}/create", {"name": "iris", "source": "runs:/r/m", "run_id": "q", "model_id": "m-9"},
         [("version:create", "models/iris/versions"), ("artifact:read", OfRun("r")), ("run:read", OfRun("q")),
          ("artifact:read", OfLoggedModel("m-9"))], VersionCreate("iris", "runs:/r/m", "q")),
        ("POST", "/api/2.0/mlflow/experiments/create", {"name": "e", "artifact_location": "s3://x/"},
         [("experiment:create", "experiments/e"), ("experiment:create", "locations/e")], None),
        ("POST", "/api/2.0/mlflow/experiments/update", {"experiment_id": "1", "new_name": "n"},
         [("experiment:update", OfExperiment("1")), ("experiment:update", "experiments/n")], None),
        ("POST", "/api/2.0/mlflow/runs/log-batch", {"run_id": "r", "metrics": [{"model_id": "m-1"}, {"key": "x"}]},
         [("run:update", OfRun("r")), ("run:update", OfLoggedModel("m-1"))], None),
    ],
)  # fmt: skip
def test_a_call_says_what_it_needs_and_changes(
    method: str, path: str, body: Any, needs: list[tuple[str, Any]], change: Any
) -> None:
    call = understand(method, path, body)
    assert call.needs == tuple(Need(*need) for need in needs)
    assert call.change == change
    assert call.request is not None
    assert call.request.message == body


@pytest.mark.parametrize("stage", ["Production", "production", "PRODUCTION", "pRoDuCtIoN"])
def test_a_stage_is_one_in_any_case(stage: str) -> None:
    call = understand("POST", f"{VERSIONS}/transition-stage", {**V1, "stage": stage, "archive_existing_versions": True})
    assert call.change == StageSet("iris", "1", "Production", archive=True)
    assert call.needs == (Need("stage:set", "models/iris/stages/Production"),)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        *(
            ("POST", f"{VERSIONS}/transition-stage", {**V1, "stage": stage})
            for stage in ("Prod", "Production ", "", "\u0130")
        ),
        *(
            ("POST", f"{VERSIONS}/transition-stage", {**V1, "version": v, "stage": "None"})
            for v in ("01", "+1", "\uff11", 1)
        ),
        ("POST", f"{REGISTRY}/create", {}),
        ("POST", f"{REGISTRY}/create", {"name": "a/b"}),
        ("POST", f"{REGISTRY}/rename", {"name": "a", "new_name": "b:c"}),
        ("POST", f"{REGISTRY}/alias", {**V1, "alias": "latest"}),
        ("POST", f"{REGISTRY}/set-tag", {"name": "iris", "key": "mlflow.prompt.is_prompt", "value": "true"}),
        ("DELETE", f"{REGISTRY}/delete-tag", {"name": "iris", "key": "MLflow.prompt.is_prompt"}),
        ("POST", f"{VERSIONS}/set-tag", {**V1, "key": "mlflow.prompt.is_prompt", "value": "false"}),
        ("POST", f"{REGISTRY}/alias", {**V1, "alias": "v2"}),
        ("POST", f"{REGISTRY}/alias", {"name": "iris", "alias": "a"}),
        ("POST", f"{REGISTRY}/get-latest-versions", {"version": "1"}),
        ("POST", "/api/2.0/mlflow/runs/log-metric", {"key": "k"}),
    ],
)
def test_refuses_a_message_that_names_nothing_or_two_things(method: str, path: str, body: Any) -> None:
    with pytest.raises(InvalidRequest):
        understand(method, path, body)


@pytest.mark.parametrize(
    ("source", "need"),
    [
        ("models:/other/3", Need("version:read", "models/other/versions")),
        ("models:/m-1a2b", Need("artifact:read", OfLoggedModel("m-1a2b"))),
        ("models:/m-1a2b/3", Need("version:read", "models/m-1a2b/versions")),
        ("runs:/r1/model", Need("artifact:read", OfRun("r1"))),
        ("mlflow-artifacts:/1/r1/artifacts/model", Need("artifact:read", OfArtifact("1/r1/artifacts/model"))),
        ("s3://bucket/key", Need("version:create", OutsideSource("s3://bucket/key"))),
        ("/etc/passwd", Need("version:create", OutsideSource("/etc/passwd"))),
        ("file:///etc", Need("version:create", OutsideSource("file:///etc"))),
        ("MODELS:/a@b", Need("version:create", OutsideSource("MODELS:/a@b"))),
    ],
)
def test_a_source_must_be_readable_by_its_caller(source: str, need: Need) -> None:
    call = understand("POST", f"{VERSIONS}/create", {"name": "iris", "source": source})
    assert call.needs == (Need("version:create", "models/iris/versions"), need)


@pytest.mark.parametrize(
    "source",
    [
        "", "models:/a@champion", "models:/a/Production", "models:/a/latest", "models:/a", "models:/a/01",
        "models:/a/1/x", "runs:/", "runs:/r/../q", "runs:/r/./q", "runs:/r/%2e%2e", "runs:/r/..\\q", "s3://b/../c", "s3://b/%2e%2e/c",
        "s3://b/a\u200bc", "mlflow-artifacts:/1/../2", "mlflow-artifacts:/1/%2e%2e/2",
    ],
)  # fmt: skip
def test_refuses_a_source_that_moves_or_goes_upwards(source: str) -> None:
    with pytest.raises(InvalidRequest):
        understand("POST", f"{VERSIONS}/create", {"name": "iris", "source": source})


LOG = "/api/2.0/mlflow/runs/log-metric"


@pytest.mark.parametrize("body", [{"run_id": "r"}, {"run_uuid": "r"}, {"run_id": "r", "runUuid": "r"}])
def test_run_uuid_is_run_id(body: dict[str, str]) -> None:
    call = understand("POST", LOG, {**body, "key": "k"})
    assert call.needs == (Need("run:update", OfRun("r")),)
    assert call.request is not None
    assert call.request.message == {"run_id": "r", "key": "k"}


@pytest.mark.parametrize("body", [{"run_id": "r", "run_uuid": "q"}, {"runId": "r", "runUuid": "R"}])
def test_two_different_runs_are_refused(body: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="two different runs"):
        understand("POST", LOG, body)
    with pytest.raises(InvalidRequest, match="two different runs"):
        understand("GET", "/api/2.0/mlflow/runs/get", query=body)


def test_path_and_body_must_agree() -> None:
    path, ready = "/api/2.0/mlflow/logged-models/m-1", {"status": "LOGGED_MODEL_READY"}
    call = understand("PATCH", path, {**ready, "model_id": "m-1"})
    assert call.needs == (Need("run:update", OfLoggedModel("m-1")),)
    assert call.request is not None
    assert (call.request.path, call.request.message["model_id"]) == (path, "m-1")
    assert understand("PATCH", path, ready).request == call.request
    with pytest.raises(InvalidRequest, match="'model_id' differs between path and body"):
        understand("PATCH", path, {**ready, "modelId": "m-2"})
    with pytest.raises(InvalidRequest, match="'model_id' differs between path and body"):
        understand("GET", path, query={"model_id": "m-2"})


def test_fields_have_one_place() -> None:
    with pytest.raises(InvalidRequest, match="body, not in the query"):
        understand("POST", f"{REGISTRY}/create", {"name": "a"}, {"name": "b"})
    with pytest.raises(InvalidRequest, match="takes no query"):
        understand("GET", f"{FILES}/1/x", query={"path": "2/y"})


@pytest.mark.parametrize(
    "path",
    [
        "a/../b",
        "..",
        "a/..",
        "./a",
        "a/%2e%2e/b",
        "%2E%2E",
        "a/%252e%252e/b",
        "a%2fb",
        "a/..%5cb",
        "a/b%25c",
        "%00",
        "%ff",
    ],
)
def test_an_artifact_path_stays_where_it_is(path: str) -> None:
    with pytest.raises(InvalidRequest):
        understand("GET", f"{FILES}/{path}")


def test_an_artifact_path_is_encoded_again_as_it_was_judged() -> None:
    call = understand("PUT", f"{FILES}/1/r%C3%A9/a%3Fb%23c")
    assert call.needs == (Need("artifact:write", OfArtifact("1/r\u00e9/a?b#c")),)
    assert call.request is not None
    assert call.request.path == f"{FILES}/1/r%C3%A9/a%3Fb%23c"
    assert call.record is Record.SUMMED


@pytest.mark.parametrize("path", ["../x", "a/..", "a%2e", "..\\x"])
def test_a_listing_of_artifacts_stays_below_its_run(path: str) -> None:
    with pytest.raises(InvalidRequest):
        understand("GET", "/api/2.0/mlflow/artifacts/list", query={"run_id": "r", "path": path})


def test_equal_calls_have_one_digest_whatever_their_spelling() -> None:
    one = understand("POST", LOG, {"run_id": "r", "timestamp": 5})
    assert (
        understand("POST", LOG.replace("/api", "/ajax-api"), {"timestamp": "5", "runUuid": "r"}).digest()
        == one.digest()
    )
    assert understand("POST", LOG, {"run_id": "r", "timestamp": 6}).digest() != one.digest()
