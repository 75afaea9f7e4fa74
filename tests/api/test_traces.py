"""Traces, assessments and the routes outside the descriptors, against a real MLflow server, by right and by wrong."""

from __future__ import annotations

import json
import secrets

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.backends.http import HttpTransport
from tests.client import Client
from tests.conftest import ROOT

V3 = "/api/3.0/mlflow"
POLICY = """
p, group:platform, *, *, *, allow
p, user:scientist, *, experiments/mine-*, *, allow
p, user:viewer, *, experiments/mine-*, run:read, allow
"""


@pytest.fixture
async def gateway(running, mlflow_server, tmp_path):
    """A gateway whose scientist owns the experiments ``mine-*``; an experiment of theirs and one of somebody else."""
    (tmp_path / "rows.csv").write_text(POLICY)
    transport = HttpTransport("main", mlflow_server.url)
    access = {"model": str(ROOT / "policies/model.conf"), "rows": "rows.csv"}
    async with running(transport=transport, access=access) as it:
        admin = Client(it.application.asgi)
        ids = []
        for prefix in ("mine", "theirs"):
            answer = await admin.rpc("POST", "experiments/create", name=f"{prefix}-{secrets.token_hex(6)}")
            ids.append(answer.json["experiment_id"])
        yield it, admin, admin.be("user:scientist"), *ids


def trace_info(trace_id, experiment_id, **more):
    return {
        "trace": {
            "trace_info": {
                "trace_id": trace_id,
                "trace_location": {
                    "type": "MLFLOW_EXPERIMENT",
                    "mlflow_experiment": {"experiment_id": experiment_id},
                },
                "request_time": "2026-01-01T00:00:00Z",
                "state": "OK",
                **more,
            }
        }
    }


def new_id():
    return f"tr-{secrets.token_hex(16)}"


async def start(client, experiment_id, trace_id=None, **more):
    trace_id = trace_id or new_id()
    return trace_id, await client("POST", f"{V3}/traces", trace_info(trace_id, experiment_id, **more))


def export(*trace_ids, name="span"):
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for trace_id in trace_ids:
        span = spans.add(trace_id=bytes.fromhex(trace_id.removeprefix("tr-")), span_id=secrets.token_bytes(8))
        span.name, span.start_time_unix_nano, span.end_time_unix_nano = name, 1, 2
    return message


async def send_spans(client, body, experiment_id=None, run_id=None, kind="application/x-protobuf", **more):
    headers = [("content-type", kind), ("content-length", str(len(body)))]
    headers += [("x-mlflow-experiment-id", experiment_id)] if experiment_id else []
    headers += [("x-mlflow-run-id", run_id)] if run_id else []
    return await client("POST", "/v1/traces", raw=body, headers=[*headers, *more.items()])


async def test_a_trace_lives_its_life_where_its_owner_may(gateway):
    _, _, mine, mine_id, _ = gateway
    trace_id, started = await start(mine, mine_id)
    assert started.status == 200, started.body
    assert started.json["trace"]["trace_info"]["trace_id"] == trace_id
    tagged = await mine("PATCH", f"{V3}/traces/{trace_id}/tags", {"key": "team", "value": "risk"})
    assert tagged.status == 200, tagged.body
    got = (await mine("GET", f"{V3}/traces/{trace_id}")).json["trace"]["trace_info"]
    assert got["tags"]["team"] == "risk"
    body = {"assessment": {"assessment_name": "good", "feedback": {"value": True}, "source": {"source_type": "HUMAN", "source_id": "me"}}}  # noqa: E501  # fmt: skip
    made = await mine("POST", f"{V3}/traces/{trace_id}/assessments", body)
    assert made.status == 200, made.body
    assessment = made.json["assessment"]["assessment_id"]
    at = f"{V3}/traces/{trace_id}/assessments/{assessment}"
    changed = await mine("PATCH", at, {"assessment": {"rationale": "because"}, "update_mask": "rationale"})
    assert changed.status == 200, changed.body
    assert (await mine("GET", at)).json["assessment"]["rationale"] == "because"
    assert (await mine("DELETE", at)).status == 200
    deleted = await mine("POST", f"{V3}/traces/delete-traces", {"experiment_id": mine_id, "request_ids": [trace_id]})
    assert deleted.json == {"traces_deleted": 1}
    assert (await mine("GET", f"{V3}/traces/{trace_id}")).status == 404


@pytest.mark.parametrize("principal", ["user:scientist", "user:viewer"])
async def test_a_trace_of_another_experiment_is_out_of_reach(gateway, principal):
    _, admin, _, mine_id, theirs_id = gateway
    client = admin.be(principal)
    trace_id, started = await start(admin, theirs_id)
    assert started.status == 200
    run = (await admin.rpc("POST", "runs/create", experiment_id=mine_id)).json["run"]["info"]["run_id"]
    assessment = {"assessment": {"assessment_name": "a", "trace_id": trace_id}}
    attempts = [
        ("GET", f"{V3}/traces/{trace_id}", None),
        ("GET", f"/api/2.0/mlflow/traces/{trace_id}/info", None),
        ("GET", f"{V3}/traces/get?trace_id={trace_id}", None),
        ("PATCH", f"{V3}/traces/{trace_id}/tags", {"key": "k", "value": "v"}),
        ("PATCH", f"/api/2.0/mlflow/traces/{trace_id}/tags", {"key": "k", "value": "v"}),
        ("DELETE", f"{V3}/traces/{trace_id}/tags", {"key": "k"}),
        ("POST", f"{V3}/traces/{trace_id}/assessments", assessment),
        ("GET", f"{V3}/traces/{trace_id}/assessments/a-1", None),
        ("DELETE", f"{V3}/traces/{trace_id}/assessments/a-1", None),
        ("POST", f"{V3}/traces/delete-traces", {"experiment_id": theirs_id, "request_ids": [trace_id]}),
        ("POST", "/api/2.0/mlflow/traces/link-to-run", {"trace_ids": [trace_id], "run_id": run}),
        ("POST", "/api/2.0/mlflow/traces/link-prompts", {"trace_id": trace_id, "prompt_versions": []}),
        ("GET", f"/ajax-api/3.0/mlflow/get-trace-artifact?request_id={trace_id}", None),
        ("GET", f"/ajax-api/2.0/mlflow/get-trace-artifact?request_id={trace_id}", None),
        ("GET", f"/api/2.0/mlflow-artifacts/artifacts/{theirs_id}/traces/{trace_id}/artifacts/traces.json", None),
    ]
    for method, target, body in attempts:
        answer = await client(method, target, body)
        assert (answer.status, answer.json["error_code"]) == (403, "PERMISSION_DENIED"), (target, answer.body)


async def test_a_trace_is_not_written_over_from_another_experiment(gateway):
    """MLflow's server takes any identifier for a new trace, writes over what is there and moves it."""
    _, admin, mine, mine_id, theirs_id = gateway
    trace_id, _ = await start(admin, theirs_id)
    _, again = await start(mine, mine_id, trace_id)
    assert again.status == 409
    assert "exists in another experiment" in again.json["message"]
    spans = await send_spans(mine, export(new_id(), trace_id).SerializeToString(), mine_id)
    assert spans.status == 409
    located = (await admin("GET", f"{V3}/traces/{trace_id}")).json["trace"]["trace_info"]["trace_location"]
    assert located["mlflow_experiment"]["experiment_id"] == theirs_id


@pytest.mark.parametrize("key", ["mlflow.artifactLocation", "MLFLOW.ARTIFACTLOCATION", "mlflow.trace.spansLocation"])
async def test_where_a_traces_files_are_cannot_be_changed(gateway, key):
    _, admin, mine, mine_id, _ = gateway
    trace_id, _ = await start(mine, mine_id)
    before = (await admin("GET", f"{V3}/traces/{trace_id}")).json["trace"]["trace_info"]["tags"]
    away = {"key": key, "value": "file:///etc"}
    for method, target, body in (
        ("PATCH", f"{V3}/traces/{trace_id}/tags", away),
        ("PATCH", f"/api/2.0/mlflow/traces/{trace_id}/tags", away),
        ("DELETE", f"{V3}/traces/{trace_id}/tags", {"key": key}),
        ("PATCH", f"/api/2.0/mlflow/traces/{trace_id}", {"timestamp_ms": 2, "status": "OK", "tags": [away]}),
    ):
        assert (await admin(method, target, body)).status == 400
    _, started = await start(mine, mine_id, tags={"mlflow.artifactLocation": "file:///etc"})
    assert started.status == 400
    after = (await admin("GET", f"{V3}/traces/{trace_id}")).json["trace"]["trace_info"]["tags"]
    assert after == before


async def test_an_assessment_of_another_trace_is_not_smuggled_in(gateway):
    _, admin, mine, mine_id, theirs_id = gateway
    trace_id, _ = await start(mine, mine_id)
    other, _ = await start(admin, theirs_id)
    answer = await mine(
        "POST", f"{V3}/traces/{trace_id}/assessments", {"assessment": {"assessment_name": "a", "trace_id": other}}
    )
    assert answer.status == 400
    answer = await mine(
        "PATCH",
        f"{V3}/traces/{trace_id}/assessments/a-1",
        {"assessment": {"trace_id": other, "rationale": "x"}, "update_mask": "rationale"},
    )
    assert answer.status == 400
    _, answer = await start(mine, mine_id, assessments=[{"assessment_name": "a", "trace_id": other}])
    assert answer.status == 400


async def test_searches_and_batches_return_what_the_caller_may_read(gateway):
    _, admin, mine, mine_id, theirs_id = gateway
    kept, _ = await start(mine, mine_id)
    hidden, _ = await start(admin, theirs_id)
    for client, expected in ((mine, {kept}), (admin, {kept, hidden})):
        locations = [
            {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": item}} for item in (mine_id, theirs_id)
        ]
        found = await client("POST", f"{V3}/traces/search", {"locations": locations})
        assert {item["trace_id"] for item in found.json["traces"]} == expected
        batch = await client("POST", f"{V3}/traces/batchGetInfos", {"trace_ids": [kept, hidden, new_id()]})
        assert {item["trace_id"] for item in batch.json["trace_infos"]} == expected
    nobody = admin.be("user:lead")
    assert (await nobody("POST", f"{V3}/traces/search", {"locations": locations})).json == {}
    assert (await nobody("POST", f"{V3}/traces/batchGetInfos", {"trace_ids": [kept]})).json == {}


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
async def test_opentelemetry_spans_go_where_their_header_says(gateway, encoding):
    _, admin, mine, mine_id, theirs_id = gateway
    trace_id = new_id()
    message = export(trace_id, name="from a collector")
    body, kind = message.SerializeToString(), "application/x-protobuf"
    if encoding == "json":
        span = {
            "traceId": trace_id.removeprefix("tr-"), "spanId": secrets.token_hex(8), "name": "from a collector",
            "startTimeUnixNano": "1", "endTimeUnixNano": "2",
        }  # fmt: skip
        body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
        kind = "application/json"
    assert (await send_spans(mine, body, theirs_id, kind=kind)).status == 403
    answer = await send_spans(mine, body, mine_id, kind=kind)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/x-protobuf"
    got = await mine("GET", f"{V3}/traces/get?trace_id={trace_id}")
    assert "from a collector" in got.body.decode()
    assert (await admin.be("user:lead")("GET", f"{V3}/traces/get?trace_id={trace_id}")).status == 403


async def test_opentelemetry_exports_that_are_refused(gateway):
    _, admin, mine, mine_id, theirs_id = gateway
    theirs_run = (await admin.rpc("POST", "runs/create", experiment_id=theirs_id)).json["run"]["info"]["run_id"]
    good = export(new_id()).SerializeToString()
    short = ExportTraceServiceRequest()
    short.resource_spans.add().scope_spans.add().spans.add(trace_id=b"\1", span_id=b"\2")
    cases = [
        (400, await send_spans(mine, good)),  # no experiment
        (404, await send_spans(mine, good, "999999")),
        (400, await send_spans(mine, b"\xff\xff", mine_id)),
        (400, await send_spans(mine, b"", mine_id)),
        (400, await send_spans(mine, short.SerializeToString(), mine_id)),
        (400, await send_spans(mine, b'{"resourceSpans": 1}', mine_id, kind="application/json")),
        (400, await send_spans(mine, b'{"a": 1, "a": 2}', mine_id, kind="application/json")),
        (415, await send_spans(mine, good, mine_id, kind="text/plain")),
        (415, await send_spans(mine, good, mine_id, **{"content-encoding": "gzip"})),
        (403, await send_spans(mine, good, mine_id, theirs_run)),
    ]
    assert [answer.status for _, answer in cases] == [status for status, _ in cases]


async def test_files_by_the_routes_outside_the_descriptors(gateway):
    _, admin, mine, mine_id, theirs_id = gateway
    runs = {}
    for experiment_id in (mine_id, theirs_id):
        run = (await admin.rpc("POST", "runs/create", experiment_id=experiment_id)).json["run"]["info"]["run_id"]
        path = f"/api/2.0/mlflow-artifacts/artifacts/{experiment_id}/{run}/artifacts/a.txt"
        put = await admin("PUT", path, raw=b"hello", headers=[("content-type", "text/plain"), ("content-length", "5")])
        assert put.status == 200
        runs[experiment_id] = run
    for spelling in ("run_id", "run_uuid"):
        got = await mine("GET", f"/get-artifact?{spelling}={runs[mine_id]}&path=a.txt")
        assert (got.status, got.body) == (200, b"hello")
        assert (await mine("GET", f"/get-artifact?{spelling}={runs[theirs_id]}&path=a.txt")).status == 403
    both = f"/get-artifact?run_id={runs[mine_id]}&run_uuid={runs[theirs_id]}&path=a.txt"
    assert (await mine("GET", both)).status == 400
    up = f"/get-artifact?run_id={runs[mine_id]}&path=../../{runs[theirs_id]}/artifacts/a.txt"
    assert (await mine("GET", up)).status == 400
    model = f"m{secrets.token_hex(6)}"
    await admin.rpc("POST", "registered-models/create", name=model)
    source = f"mlflow-artifacts:/{mine_id}/{runs[mine_id]}/artifacts"
    made = await admin.rpc("POST", "model-versions/create", name=model, source=source, run_id=runs[mine_id])
    assert made.status == 200, made.body
    target = f"/model-versions/get-artifact?name={model}&version=1&path=a.txt"
    got = await admin("GET", target)
    assert (got.status, got.body) == (200, b"hello"), got.body
    assert (await mine("GET", target)).status == 403
    await mine.rpc("POST", "runs/log-metric", run_id=runs[mine_id], key="loss", value=0.5, timestamp=1, step=0)
    bulk = "/ajax-api/2.0/mlflow/metrics/get-history-bulk?metric_key=loss&run_id="
    got = await mine("GET", bulk + runs[mine_id])
    assert [item["value"] for item in got.json["metrics"]] == [0.5]
    assert (await mine("GET", f"{bulk}{runs[mine_id]}&run_id={runs[theirs_id]}")).status == 403
    interval = "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?metric_key=loss&run_ids="
    got = await mine("GET", interval + runs[mine_id])
    assert [item["value"] for item in got.json["metrics"]] == [0.5]
    found = await mine("POST", "/ajax-api/2.0/mlflow/experiments/search-datasets", {"experiment_ids": [mine_id]})
    assert found.status == 200, found.body


@pytest.mark.parametrize("place", ["root span", "inner span", "resource"])
@pytest.mark.parametrize(
    "key",
    [
        "mlflow.artifactLocation",
        "MLFLOW.ARTIFACTLOCATION ",
        "mlflow.trace.spansLocation",
        "mlflow.trace.archiveLocation",
    ],
)
async def test_an_export_cannot_say_where_a_trace_is_stored(gateway, place, key):
    _, admin, mine, mine_id, _ = gateway
    trace_id = new_id()
    message = export(trace_id)
    resource = message.resource_spans[0]
    span = resource.scope_spans[0].spans[0]
    holder = span.attributes if place != "resource" else resource.resource.attributes
    if place == "inner span":
        span.parent_span_id = b"12345678"
    attribute = holder.add(key=key if place == "resource" else f"mlflow.traceTag.{key}")
    attribute.value.string_value = "file:///etc"
    answer = await send_spans(mine, message.SerializeToString(), mine_id)
    assert (answer.status, "says where the trace is stored" in answer.json["message"]) == (400, True)
    assert (await admin("GET", f"{V3}/traces/{trace_id}")).status == 404


async def test_tags_of_an_export_that_say_something_else_are_kept(gateway):
    _, _, mine, mine_id, _ = gateway
    trace_id = new_id()
    message = export(trace_id)
    attribute = message.resource_spans[0].scope_spans[0].spans[0].attributes.add(key="mlflow.traceTag.team")
    attribute.value.string_value = "blue"
    assert (await send_spans(mine, message.SerializeToString(), mine_id)).status == 200
    tags = (await mine("GET", f"{V3}/traces/{trace_id}")).json["trace"]["trace_info"]["tags"]
    assert tags["team"] == "blue"


async def test_a_new_assessment_cannot_take_the_identifier_of_another(gateway):
    _, admin, mine, mine_id, theirs_id = gateway
    theirs, _ = await start(admin, theirs_id)
    source = {"source_type": "HUMAN", "source_id": "boss"}
    good = {"assessment": {"assessment_name": "quality", "source": source, "feedback": {"value": True}}}
    made = (await admin("POST", f"{V3}/traces/{theirs}/assessments", good)).json["assessment"]
    trace_id, _ = await start(mine, mine_id)
    stolen = {**good["assessment"], "assessment_name": "stolen", "assessment_id": made["assessment_id"]}
    _, answer = await start(mine, mine_id, trace_id=trace_id, assessments=[{**stolen, "trace_id": trace_id}])
    assert answer.status == 400
    assert (await mine("POST", f"{V3}/traces/{trace_id}/assessments", {"assessment": stolen})).status == 400
    kept = await admin("GET", f"{V3}/traces/{theirs}/assessments/{made['assessment_id']}")
    assert (kept.status, kept.json["assessment"]["assessment_name"]) == (200, "quality")


async def test_a_trace_names_only_runs_that_the_caller_may_read(gateway):
    _, admin, mine, mine_id, theirs_id = gateway
    runs = [
        (await client.rpc("POST", "runs/create", experiment_id=where)).json["run"]["info"]["run_id"]
        for client, where in ((mine, mine_id), (admin, theirs_id))
    ]
    statuses = [(await start(mine, mine_id, trace_metadata={"mlflow.sourceRun": run}))[1].status for run in runs]
    assert statuses == [200, 403]


async def test_to_write_over_a_trace_needs_the_right_to_change_it(running, mlflow_server, tmp_path):
    rows = "p, group:platform, *, *, *, allow\np, user:scientist, main, experiments/*, run:create, allow\n"
    (tmp_path / "rows.csv").write_text(rows)
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(tmp_path / "rows.csv")}
    transport = HttpTransport("main", mlflow_server.url)
    async with running(transport=transport, access=access) as it:
        admin = Client(it.application.asgi)
        scientist = admin.be("user:scientist")
        trace_id, started = await start(admin, "0", request_preview="mine")
        assert started.status == 200
        _, again = await start(scientist, "0", trace_id, request_preview="theirs")
        assert (again.status, "run:update" in again.json["message"]) == (403, True)
        assert (await send_spans(scientist, export(trace_id).SerializeToString(), "0")).status == 403
        kept = (await admin("GET", f"{V3}/traces/{trace_id}")).json["trace"]["trace_info"]
        assert kept["request_preview"] == "mine"
        assert (await start(scientist, "0"))[1].status == 200
