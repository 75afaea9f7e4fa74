"""What protobuf's parser would let through is refused here, and what passes has one form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from service.dialects.mlflow import SERVICES
from service.dialects.protobuf import Rpc, canonical, load_services, read_body, read_query
from service.errors import InvalidRequest

RPCS = load_services(*SERVICES)
LOG_METRIC = RPCS["MlflowService.logMetric"]
LOG_BATCH = RPCS["MlflowService.logBatch"]
SEARCH_RUNS = RPCS["MlflowService.searchRuns"]
UPDATE_RUN = RPCS["MlflowService.updateRun"]
CREATE_MODEL = RPCS["ModelRegistryService.createRegisteredModel"]
SEARCH_MODELS = RPCS["ModelRegistryService.searchRegisteredModels"]
TRANSITION = RPCS["ModelRegistryService.transitionModelVersionStage"]


def protobuf_takes(document: Any, rpc: Rpc) -> bool:
    try:
        json_format.ParseDict(document, rpc.request(), ignore_unknown_fields=True)
    except (json_format.ParseError, AttributeError, TypeError):
        return False
    return True


@pytest.mark.parametrize(
    "integer", ["+1", "012", "\uff11", "1_0", "1 ", " 1", "1\n", 12.0, 1e3, "1e3", "1.0", "", "0x1"]
)
@pytest.mark.parametrize(("rpc", "field"), [(LOG_METRIC, "timestamp"), (SEARCH_RUNS, "max_results")])
def test_an_integer_has_one_spelling(rpc: Rpc, field: str, integer: object) -> None:
    with pytest.raises(InvalidRequest, match=field):
        read_body({field: integer}, rpc)


@pytest.mark.parametrize(
    ("rpc", "document"),
    [
        (LOG_METRIC, {"timestamp": "+1"}),
        (LOG_METRIC, {"timestamp": "012"}),
        (LOG_METRIC, {"timestamp": "\uff11"}),
        (LOG_METRIC, {"timestamp": "1_0"}),
        (LOG_METRIC, {"timestamp": 12.0}),
        (LOG_METRIC, {"value": " 1.5 "}),
        (LOG_METRIC, {"value": "1.5"}),
        (LOG_METRIC, {"value": True}),
        (LOG_METRIC, {"run_id": "a", "runId": "b"}),
        (LOG_BATCH, {"metrics": [{"model_id": "a", "modelId": "b"}]}),
        (LOG_METRIC, {"run_id": "a\0b"}),
        (UPDATE_RUN, {"status": "3"}),
        (LOG_METRIC, []),
    ],
)
def test_refuses_what_protobuf_itself_takes(rpc: Rpc, document: Any) -> None:
    assert protobuf_takes(document, rpc), "protobuf has become stricter: this check may go"
    with pytest.raises(InvalidRequest):
        read_body(document, rpc)


@pytest.mark.parametrize(
    ("rpc", "document", "says"),
    [
        (LOG_METRIC, {"run_id": "a", "runId": "a"}, "'run_id' stands in two spellings"),
        (LOG_METRIC, {"runUuid": "a", "run_uuid": "b"}, "'run_uuid' stands in two spellings"),
        (
            LOG_BATCH,
            {"metrics": [{"key": "k"}, {"model_id": "a", "modelId": "b"}]},
            r"'metrics\[1\].model_id' stands in two",
        ),
        (LOG_METRIC, {"run_id": 1}, "'run_id' has a value of the wrong type"),
        (LOG_METRIC, {"run_id": ["a"]}, "'run_id' has a value of the wrong type"),
        (LOG_METRIC, {"timestamp": True}, "'timestamp' has a value of the wrong type"),
        (LOG_METRIC, {"timestamp": 2**63}, "does not fit logMetric"),
        (LOG_METRIC, {"timestamp": str(2**63)}, "does not fit logMetric"),
        (SEARCH_RUNS, {"max_results": 2**31}, "does not fit searchRuns"),
        (LOG_METRIC, {"value": "nan"}, "'value' must be a number"),
        (LOG_METRIC, {"value": "inf"}, "'value' must be a number"),
        (LOG_METRIC, {"value": {}}, "'value' has a value of the wrong type"),
        (LOG_METRIC, {"value": 10**400}, "'value' is out of range"),
        (TRANSITION, {"archive_existing_versions": "true"}, "wrong type"),
        (TRANSITION, {"archive_existing_versions": 1}, "wrong type"),
        (UPDATE_RUN, {"status": "finished"}, "'status' has a value of the wrong type"),
        (UPDATE_RUN, {"status": 99}, "'status' has a value of the wrong type"),
        (UPDATE_RUN, {"status": 3.0}, "'status' has a value of the wrong type"),
        (SEARCH_RUNS, {"experiment_ids": "1"}, "'experiment_ids' must be a list"),
        (SEARCH_RUNS, {"experiment_ids": [None]}, r"'experiment_ids\[0\]' has a value of the wrong type"),
        (SEARCH_RUNS, {"experiment_ids": ["1", 2]}, r"'experiment_ids\[1\]' has a value of the wrong type"),
        (SEARCH_RUNS, {"experiment_ids": ["1"] * 100_001}, "more than 100000 items"),
        (CREATE_MODEL, {"tags": {}}, "'tags' must be a list"),
        (CREATE_MODEL, {"tags": ["a"]}, r"'tags\[0\]' must be an object"),
        (CREATE_MODEL, {"tags": [{"key": "a\0"}]}, r"'tags\[0\].key' has a value of the wrong type"),
        (CREATE_MODEL, [], "must be a JSON object"),
        (CREATE_MODEL, "{}", "must be a JSON object"),
        (CREATE_MODEL, 0, "must be a JSON object"),
        (CREATE_MODEL, False, "must be a JSON object"),
    ],
)
def test_refuses_and_names_the_field(rpc: Rpc, document: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_body(document, rpc)


@pytest.mark.parametrize(
    ("rpc", "document", "message"),
    [
        (LOG_METRIC, None, {}),
        (LOG_METRIC, {"run_id": None}, {}),
        (LOG_METRIC, {"runId": "a"}, {"run_id": "a"}),
        (LOG_METRIC, {"timestamp": "12", "step": -3}, {"timestamp": 12, "step": -3}),
        (LOG_METRIC, {"timestamp": "0"}, {"timestamp": 0}),
        (LOG_METRIC, {"value": 1}, {"value": 1.0}),
        (LOG_METRIC, {"value": "NaN"}, {"value": "NaN"}),
        (LOG_METRIC, {"value": "Infinity"}, {"value": "Infinity"}),
        (LOG_METRIC, {"value": "-Infinity"}, {"value": "-Infinity"}),
        (UPDATE_RUN, {"status": 3}, {"status": "FINISHED"}),
        (UPDATE_RUN, {"status": "FINISHED"}, {"status": "FINISHED"}),
        (CREATE_MODEL, {"tags": []}, {}),
        (CREATE_MODEL, {"name": ""}, {"name": ""}),
        (TRANSITION, {"archiveExistingVersions": False}, {"archive_existing_versions": False}),
        (
            LOG_BATCH,
            {"metrics": [{"modelId": "m", "timestamp": "7"}]},
            {"metrics": [{"model_id": "m", "timestamp": 7}]},
        ),
    ],
)
def test_gives_every_message_one_form(rpc: Rpc, document: Any, message: dict[str, Any]) -> None:
    found, dropped = read_body(document, rpc)
    assert (found, dropped) == (message, [])
    assert {type(item) for item in found.values()} == {type(item) for item in message.values()}


def test_an_enum_default_that_was_not_set_stays_out() -> None:
    assert read_body({"experiment_ids": ["1"]}, SEARCH_RUNS)[0] == {"experiment_ids": ["1"]}
    assert read_body({"runViewType": 2}, SEARCH_RUNS)[0] == {"run_view_type": "DELETED_ONLY"}


def test_fields_the_schema_lacks_are_dropped_and_named_where_they_stand() -> None:
    document = {"name": "a", "owner": {"x": 1}, "tags": [{"key": "k"}, {"key": "l", "value": "v", "hidden": 1}]}
    message, dropped = read_body(document, CREATE_MODEL)
    assert message == {"name": "a", "tags": [{"key": "k"}, {"key": "l", "value": "v"}]}
    assert dropped == ["owner", "tags[1].hidden"]


def test_a_field_name_in_another_case_is_unknown() -> None:
    assert read_body({"Name": "a", "NAME": "b"}, CREATE_MODEL) == ({}, ["Name", "NAME"])


def test_a_query_reads_repeated_fields_booleans_and_integers() -> None:
    pairs = [("order_by", "a"), ("max_results", "10"), ("order_by", "b"), ("page_token", "")]
    assert read_query(pairs, SEARCH_MODELS)[0] == {"max_results": 10, "order_by": ["a", "b"], "page_token": ""}
    assert read_query([("archive_existing_versions", "True")], TRANSITION)[0] == {"archive_existing_versions": True}
    assert read_query([("foo", "1")], SEARCH_MODELS) == ({}, ["foo"])


@pytest.mark.parametrize(
    "pairs",
    [
        [("filter", "a"), ("filter", "a")],
        [("page_token", "a"), ("pageToken", "a")],
        [("order_by", "a"), ("orderBy", "b")],
        [("max_results", "+1")],
        [("max_results", "\uff11")],
        [("max_results", "")],
        [("filter", "a\0")],
    ],
)
def test_a_query_with_two_meanings_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequest):
        read_query(pairs, SEARCH_MODELS)


def test_canonical_refuses_what_is_not_of_the_message() -> None:
    with pytest.raises(InvalidRequest, match="does not fit logMetric"):
        canonical({"nope": 1}, LOG_METRIC)


def test_rpcs_carry_their_routes() -> None:
    assert len(RPCS) > 150
    endpoint = RPCS["ModelRegistryService.setRegisteredModelAlias"].endpoints[0]
    assert (endpoint.method, endpoint.path) == ("POST", "/api/2.0/mlflow/registered-models/alias")


_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
_junk = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | _text | st.just([]) | st.just({})
_integers = st.integers(-(2**63), 2**63 - 1) | st.integers(-99, 99).map(str)
_doubles = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0, -7, "NaN", "Infinity", "-Infinity"])
_metric = {"key": _text, "value": _doubles, "timestamp": _integers, "step": _integers, "modelId": _text, "other": _junk}
_batch = {
    "runId": _text,
    "metrics": st.lists(st.fixed_dictionaries({}, optional=_metric), max_size=3),
    "params": st.lists(st.fixed_dictionaries({"key": _text, "other": _junk}), max_size=2),
    "unknown": _junk,
}
_search = {
    "experiment_ids": st.lists(_text, max_size=3),
    "maxResults": st.integers(-(2**31), 2**31 - 1),
    "run_view_type": st.sampled_from(["ALL", "ACTIVE_ONLY", 1, 2]),
    "filter": _text | st.none(),
    "order_by": st.lists(_text, max_size=2),
}
_good = st.tuples(st.just(LOG_BATCH), st.fixed_dictionaries({}, optional=_batch)) | st.tuples(
    st.just(SEARCH_RUNS), st.fixed_dictionaries({}, optional=_search)
)
_any = st.tuples(
    st.sampled_from([LOG_METRIC, LOG_BATCH, SEARCH_RUNS, UPDATE_RUN, CREATE_MODEL]),
    st.dictionaries(st.sampled_from(["run_id", "runId", "value", "step", "status", "metrics", "name", "tags"]), _junk),
)


@given(_good)
def test_canonicalising_twice_is_the_same_and_means_what_protobuf_read(case: tuple[Rpc, dict[str, Any]]) -> None:
    rpc, document = case
    once, _ = read_body(document, rpc)
    assert read_body(json.loads(json.dumps(once, allow_nan=False)), rpc) == (once, [])
    as_server = json_format.ParseDict(document, rpc.request(), ignore_unknown_fields=True)
    forwarded = json_format.ParseDict(once, rpc.request())
    assert forwarded.SerializeToString(deterministic=True) == as_server.SerializeToString(deterministic=True)


@given(_any)
def test_answers_any_document_with_a_message_or_invalid_request(case: tuple[Rpc, dict[str, Any]]) -> None:
    rpc, document = case
    try:
        once, _ = read_body(document, rpc)
    except InvalidRequest:
        return
    assert read_body(once, rpc) == (once, [])


@given(st.lists(st.tuples(_text, st.integers(0, 2**40)), max_size=4))
def test_spelling_does_not_change_the_canonical_form(metrics: list[tuple[str, int]]) -> None:
    snake = {"run_id": "r", "metrics": [{"model_id": key, "timestamp": at} for key, at in metrics]}
    camel = {"metrics": [{"timestamp": str(at), "modelId": key} for key, at in metrics], "runId": "r"}
    assert read_body(snake, LOG_BATCH) == read_body(camel, LOG_BATCH)
