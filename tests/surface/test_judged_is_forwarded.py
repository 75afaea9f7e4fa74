"""What is judged is what is forwarded: each served RPC, driven against a recording registry."""

from __future__ import annotations

import pytest

from service.dialects.mlflow import MlflowDialect
from service.dialects.mlflow_routes import ONLY_AJAX
from service.dialects.mlflow_row import Body
from service.dialects.mlflow_table import ROWS
from service.errors import GatewayError
from service.model import Answer, Record
from tests.client import Client

DIALECT = MlflowDialect()
RUN, MODEL_ID, TRACE = "0" * 32, "m-" + "1" * 32, "tr-" + "2" * 32
IN_PATH = [("trace_id", TRACE), ("assessment_id", "a-1"), ("assessment.trace_id", TRACE)]
LOOK_UPS = {"MlflowService.searchExperiments", "MlflowService.batchGetTraceInfos"}  # of /readyz; of a trace's owner
JSON_ROWS = sorted(key for key, row in ROWS.items() if row.body is not Body.OTLP)
VALUES = {
    "name": "iris", "new_name": "iris-2", "version": "1", "alias": "blue", "stage": "Archived", "key": "k",
    "value": "v", "source": f"runs:/{RUN}/m", "run_id": RUN, "experiment_id": "0", "experiment_name": "Default",
    "model_id": MODEL_ID, "metric_key": "k", "tag_key": "k", "experiment_ids": ["0"], "path": "p",
    "source_run_id": RUN, "timestamp": 1, "status": None, "max_results": 5, "stages": ["Production"],
    "description": "d", "archive_existing_versions": True, "trace_id": TRACE, "request_id": TRACE,
    "trace_ids": [TRACE], "run_ids": [RUN], "assessment_id": "a-1", "artifact_file_path": "p",
    "trace": {"trace_info": {"trace_id": TRACE, "trace_location": {"mlflow_experiment": {"experiment_id": "0"}}}},
    "assessment": {"trace_id": TRACE, "assessment_name": "a"}, "update_mask": "assessmentName",
    "prompt_versions": [{"name": "iris", "version": "1"}], "artifact_directory_path": "p",
    "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}],
}  # fmt: skip


class Recording:
    """Answers everything plausibly and remembers what came."""

    def __init__(self):
        self.seen = []

    async def send(self, request, *, writes, trace=""):
        self.seen.append(request)
        name = request.rpc.rpartition(".")[2]
        if request.body is not None:
            self.uploaded = b"".join([part async for part in request.body])
        answers = {
            "getRun": {"run": {"info": {"run_id": RUN, "experiment_id": "0"}}},
            "getExperiment": {"experiment": {"experiment_id": "0", "name": "Default"}},
            "getLoggedModel": {"model": {"info": {"model_id": MODEL_ID, "experiment_id": "0"}}},
            "getExperimentByName": {"experiment": {"experiment_id": "0", "name": "Default"}},
            "batchGetTraceInfos": {
                "trace_infos": [{"trace_id": TRACE, "trace_location": {"mlflow_experiment": {"experiment_id": "0"}}}]
            },
            "getModelVersion": {"model_version": {"name": "iris", "version": "1"}},
            "getRegisteredModel": {"registered_model": {"name": "iris"}},
            "createModelVersion": {"model_version": {"name": "iris", "version": "2", "creation_timestamp": 5}},
        }
        return Answer.of(answers.get(name, {}))

    async def get(self, path, query, limit):
        return None

    async def close(self):
        pass


def searches(row):
    return row.listing is not None or row.experiments or row.traces


def message_for(rpc):
    fields = rpc.request.DESCRIPTOR.fields_by_name
    message = {name: value for name, value in VALUES.items() if name in fields and value is not None}
    if rpc.name == "logMetric":
        message["value"] = 0.5
    if rpc.name == "getMetricHistoryBulk":
        message["run_id"] = [RUN]
    return message


@pytest.mark.parametrize("key", JSON_ROWS)
async def test_the_canonical_message_is_forwarded_and_nothing_else(running, key):
    rpc, row = DIALECT.rpcs[key], ROWS[key]
    recording = Recording()
    async with running(transport=recording) as it:
        client = Client(it.application.asgi)
        endpoint = rpc.endpoints[0]
        message = message_for(rpc)
        target = endpoint.path
        artifact = f"0/{RUN}/artifacts/a%20b.txt"
        target = target.replace("<path:artifact_path>", artifact)
        for name, value in [*message.items(), *IN_PATH]:
            target = target.replace(f"{{{name}}}", str(value))
        raw = None
        if "<path:" in endpoint.path:
            message = {}
            raw = b"bytes" if endpoint.method == "PUT" else None
        elif key == "MlflowArtifactsService.listArtifacts":
            message = {"path": f"0/{RUN}/artifacts"}
        noisy = {**message, "unknown_field": "x"} if "<path:" not in endpoint.path else {}
        if endpoint.method == "GET" and noisy:
            from urllib.parse import urlencode

            flat = {k: str(v).lower() if isinstance(v, bool) else v for k, v in noisy.items()}
            answer = await client("GET", f"{target}?{urlencode(flat, doseq=True)}")
        elif raw is not None:
            answer = await client(endpoint.method, target, raw=raw, headers=[("content-type", "text/plain")])
        else:
            answer = await client(endpoint.method, target, noisy or None)
        assert answer.status == 200, answer.body
        probe = {"max_results": 1}  # the health check's own call
        last = [request for request in recording.seen if request.rpc == key and request.message != probe][-1]
        assert last.method == endpoint.method
        assert "unknown_field" not in last.message
        in_path = {name for name in message if f"{{{name}}}" in endpoint.path}
        missing = set(message) - set(last.message) - {"run_uuid", "max_results"} - in_path
        assert missing <= (in_path if endpoint.method == "GET" else set())  # every judged field is forwarded
        sent_to = target.partition("?")[0]
        assert last.path == (sent_to.replace("/api/", "/ajax-api/") if key in ONLY_AJAX else sent_to)
        judged = dict(message)
        if rpc.name == "createRun":  # whose it is, is not the client's to say
            judged.update(user_id="user:admin", tags=[{"key": "mlflow.user", "value": "user:admin"}])
        for name, value in last.message.items():
            assert name in rpc.request.DESCRIPTOR.fields_by_name
            if name == "max_results" and row.listing:
                continue
            assert judged.get(name) == value, name
        if raw is not None:
            assert recording.uploaded == raw
        if row.record is Record.EACH:
            events = [e["data"] for e in await it.events()]
            assert [data["phase"] for data in events] == ["intent", "outcome"]
            assert events[1]["outcome"] == "succeeded"
        else:
            assert await it.events() == []


@pytest.mark.parametrize("key", [key for key in JSON_ROWS if not searches(ROWS[key])])
async def test_without_a_row_nothing_is_forwarded(running, key):
    """The viewer of an empty policy file: every RPC that is not a search is denied, once, and not forwarded."""
    rpc, row = DIALECT.rpcs[key], ROWS[key]
    recording = Recording()
    async with running(transport=recording) as it:
        it.application.gateway.access.decide = lambda *_: type(
            it.application.authorizer.snapshot.decide(
                it.application.keys._keys[next(iter(it.application.keys._keys))].entry.principal_of(),
                "no",
                "no",
                "audit:read",
            )
        )(allowed=False)
        message = message_for(rpc)
        try:
            if key.startswith("MlflowArtifactsService"):
                message = {"path": f"0/{RUN}/artifacts/x"}
            needs = row.needs({"trace_id": TRACE, **message})
        except GatewayError:
            pytest.fail("the message should be good")
        assert needs
        client = Client(it.application.asgi, "user:viewer")
        endpoint = rpc.endpoints[0]
        target = endpoint.path.replace("<path:artifact_path>", f"0/{RUN}/artifacts/x")
        for name, value in [*message.items(), *IN_PATH]:
            target = target.replace(f"{{{name}}}", str(value))
        if endpoint.method == "GET":
            from urllib.parse import urlencode

            query = "" if "<path:" in endpoint.path else "?" + urlencode(message, doseq=True)
            answer = await client("GET", target + query)
        elif "<path:" in endpoint.path:
            answer = await client(endpoint.method, target, raw=b"", headers=[("content-length", "0")])
        else:
            answer = await client(endpoint.method, target, message)
        assert (answer.status, answer.json["error_code"]) == (403, "PERMISSION_DENIED"), answer.body
        assert {request.method for request in recording.seen if request.rpc not in LOOK_UPS} <= {"GET"}
        await it.application.trail.caught_up()
        assert [event["data"]["phase"] for event in await it.events()] == ["denied"]
