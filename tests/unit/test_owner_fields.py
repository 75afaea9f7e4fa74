"""Who made it is who called, whatever the message says and however it spells it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.dialects import mlflow_owners
from service.dialects.mlflow import MlflowDialect
from service.dialects.mlflow_owners import with_owner
from service.dialects.mlflow_row import Body
from service.dialects.mlflow_table import ROWS
from service.dialects.otlp import read_export
from service.errors import InvalidRequest
from service.model import Principal

DIALECT = MlflowDialect()
CI = Principal("service:ci")
SPELLINGS = ["mlflow.user", "MLflow.User", "mlflow.user ", " MLFLOW.USER", "mlflow.auth.username", "mlflow.auth.userId",
             "mlflow.usér", "mlflow.u\u017fer", "ｍlflow.user"]  # fmt: skip
FIELDS = {"tags", "request_metadata", "trace_metadata", "key", "tag_key", "user_id", "trace"}
HARMLESS = {"MlflowService.logMetric", "MlflowService.logParam"}


def message_of(rpc: str, document: dict) -> dict:
    """Read a body as the dialect does; give what would be forwarded."""
    endpoint = DIALECT.rpcs[rpc].endpoints[0]
    path = endpoint.path.replace("{", "").replace("}", "")
    call, _ = DIALECT.call(DIALECT.match(endpoint.method, path), CI, "main", [], json.dumps(document).encode())
    assert call.request is not None
    return dict(call.request.message)


def test_each_call_that_writes_tags_is_known() -> None:
    writing = {
        key
        for key, row in ROWS.items()
        if row.body is Body.JSON
        and DIALECT.rpcs[key].endpoints[0].method != "GET"
        and FIELDS & set(DIALECT.rpcs[key].request.DESCRIPTOR.fields_by_name)
    }
    assert writing - HARMLESS == set(mlflow_owners._CHANGES)


@pytest.mark.parametrize("tags", [None, [], [{"key": "mlflow.user", "value": "root"}], [{"key": "a", "value": "b"}]])
def test_a_new_run_belongs_to_who_makes_it(tags: list | None) -> None:
    sent = {"experiment_id": "0", "user_id": "user:lead", **({"tags": tags} if tags is not None else {})}
    message = message_of("MlflowService.createRun", sent)
    assert message["user_id"] == "service:ci"
    owners = [tag["value"] for tag in message["tags"] if tag["key"] == "mlflow.user"]
    assert owners == ["service:ci"]
    assert [tag for tag in message["tags"] if tag["key"] != "mlflow.user"] == [t for t in tags or [] if t["key"] == "a"]


def test_of_several_owners_none_is_another() -> None:
    tags = [{"key": "mlflow.user", "value": "user:lead"}, {"key": "mlflow.user", "value": "user:admin"}]
    message = message_of("MlflowService.createRun", {"experiment_id": "0", "tags": tags})
    assert {tag["value"] for tag in message["tags"]} == {"service:ci"}


def test_a_long_name_fits_the_column_of_the_registry() -> None:
    message = with_owner("MlflowService.createRun", {}, "user:" + "x" * 400)
    assert len(message["user_id"]) == 256
    assert len(message["tags"][0]["value"]) == 405


@pytest.mark.parametrize("key", SPELLINGS)
@pytest.mark.parametrize(
    ("rpc", "more"),
    [
        ("MlflowService.createExperiment", {"name": "e"}),
        ("MlflowService.createRun", {"experiment_id": "0"}),
        ("MlflowService.createLoggedModel", {"experiment_id": "0"}),
        ("MlflowService.logBatch", {"run_id": "r"}),
        ("MlflowService.setLoggedModelTags", {}),
        ("MlflowService.startTrace", {"experiment_id": "0"}),
        ("ModelRegistryService.createRegisteredModel", {"name": "iris"}),
        ("ModelRegistryService.createModelVersion", {"name": "iris", "source": "runs:/r/m"}),
    ],
)
def test_tags_that_name_a_user_name_who_calls(rpc: str, more: dict, key: str) -> None:
    tags = [{"key": "a", "value": "root"}, {"key": key, "value": "root"}]
    message = message_of(rpc, {**more, "tags": tags})
    assert message["tags"][:2] == [{"key": "a", "value": "root"}, {"key": key, "value": "service:ci"}]


@pytest.mark.parametrize("key", SPELLINGS)
@pytest.mark.parametrize(
    ("rpc", "more"),
    [
        ("MlflowService.setExperimentTag", {"experiment_id": "0"}),
        ("MlflowService.setTag", {"run_id": "r"}),
        ("MlflowService.setTraceTag", {"request_id": "request_id"}),
        ("MlflowService.setTraceTagV3", {"trace_id": "trace_id"}),
        ("ModelRegistryService.setRegisteredModelTag", {"name": "iris"}),
        ("ModelRegistryService.setModelVersionTag", {"name": "iris", "version": "1"}),
    ],
)
def test_one_tag_that_names_a_user_names_who_calls(rpc: str, more: dict, key: str) -> None:
    if DIALECT.rpcs[rpc].key.endswith("TraceTag"):
        more = {}
    sent = {**more, "key": key, "value": "user:lead"}
    try:
        message = message_of(rpc, sent)
    except InvalidRequest:  # a spelling that is refused anyway
        assert key != key.strip()
        return
    assert message["value"] == "service:ci"
    assert message_of(rpc, {**more, "key": "note", "value": "user:lead"})["value"] == "user:lead"


@pytest.mark.parametrize("key", SPELLINGS)
@pytest.mark.parametrize("rpc", sorted(key for key in mlflow_owners._CHANGES if ".delete" in key))
def test_who_made_it_is_not_deleted(rpc: str, key: str) -> None:
    field = "tag_key" if rpc.endswith("LoggedModelTag") else "key"
    with pytest.raises(InvalidRequest, match="says who made it"):
        with_owner(rpc, {field: key}, "service:ci")
    assert with_owner(rpc, {field: "note"}, "service:ci") == {field: "note"}


def test_a_new_trace_names_who_calls() -> None:
    info = {
        "trace_id": "tr-" + "1" * 32,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}},
        "trace_metadata": {"mlflow.user": "root", "mlflow.trace.user": "a-customer", "mlflow.auth.username": "root"},
        "tags": {"MLFLOW.USER": "root", "a": "b"},
    }
    message = message_of("MlflowService.startTraceV3", {"trace": {"trace_info": info}})
    written = message["trace"]["trace_info"]
    assert written["trace_metadata"] == {
        "mlflow.user": "service:ci",
        "mlflow.trace.user": "a-customer",
        "mlflow.auth.username": "service:ci",
    }
    assert written["tags"] == {"MLFLOW.USER": "service:ci", "a": "b"}


@pytest.mark.parametrize("key", ["mlflow.user", "mlflow.traceTag.mlflow.user", "mlflow.traceTag.MLflow.User"])
def test_spans_name_who_calls(key: str) -> None:
    export = ExportTraceServiceRequest()
    resource = export.resource_spans.add()
    resource.resource.attributes.add(key=key).value.string_value = "root"
    span = resource.scope_spans.add().spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="n")
    span.attributes.add(key=key).value.int_value = 0
    span.attributes.add(key="note").value.string_value = "root"
    body, _ = read_export(export.SerializeToString(), is_json=False, owner="service:ci")
    read = ExportTraceServiceRequest.FromString(body).resource_spans[0]
    assert read.resource.attributes[0].value.string_value == "service:ci"
    values = [item.value.string_value for item in read.scope_spans[0].spans[0].attributes]
    assert values == ["service:ci", "root"]


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.text(), st.lists, max_leaves=5), max_size=5))
def test_any_message_is_taken(message: dict) -> None:
    with_owner("MlflowService.startTraceV3", {"trace": {"trace_info": message}}, "user:x")
