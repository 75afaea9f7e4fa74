"""The rows of traces and their assessments. A trace belongs to its experiment; its rights are those of runs there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from service.change import OfExperiment, OfRun, OfTraces
from service.dialects.locations import refuse_locations
from service.dialects.mlflow_row import EACH, SUMMED, Body, Message, Row, nothing, text
from service.errors import InvalidRequest
from service.model import Need, resource
from service.strict import check_text, check_version, no_traversal

_SPANS_BYTES = 16 << 20
_SPANS = "mlflow.trace.spansLocation"
"""What the client says of a new trace, and the server keeps from then on."""
_SPANS_PLACES = frozenset({"TRACKING_STORE", "ARTIFACT_REPO"})
_SOURCE_RUN = "mlflow.sourceRun"
_MAX_TRACES = 1_000


def _trace(action: str, field: str = "trace_id") -> Callable[[Message], tuple[Need, ...]]:
    return lambda message: (Need(action, OfTraces((text(message, field),))),)


def _ids(message: Message, field: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(check_text(str(item), field) for item in message.get(field, ())))
    if not 0 < len(found) <= _MAX_TRACES:
        problem = f"{field} must name 1 to {_MAX_TRACES} traces."
        raise InvalidRequest(problem)
    return found


def _tag(message: Message) -> tuple[Need, ...]:
    """Where a trace's files are is the registry's to say: MLflow's server reads what this tag names."""
    refuse_locations([message.get("key", ""), *(str(tag.get("key", "")) for tag in message.get("tags", ()))])
    return _trace("run:update", "request_id" if "request_id" in message else "trace_id")(message)


def _start(message: Message) -> tuple[Need, ...]:
    """Starting a trace under an identifier that exists writes over it: MLflow even moves it to another experiment."""
    info = message.get("trace", {}).get("trace_info", {})
    location = info.get("trace_location", {}).get("mlflow_experiment", {})
    experiment_id = text(location, "experiment_id")
    tags = info.get("tags", {})
    refuse_locations(key for key in tags if key != _SPANS)
    if tags.get(_SPANS, "ARTIFACT_REPO") not in _SPANS_PLACES:
        problem = f"The tag {_SPANS!r} of a new trace is one of: {', '.join(sorted(_SPANS_PLACES))}."
        raise InvalidRequest(problem)
    for assessment in info.get("assessments", ()):
        _refuse_identified(assessment)
        if assessment.get("trace_id", info.get("trace_id")) != info.get("trace_id"):
            problem = "An assessment names another trace than the one it stands in."
            raise InvalidRequest(problem)
    needs = [Need("run:create", OfTraces((text(info, "trace_id"),), experiment_id))]
    source_run = info.get("trace_metadata", {}).get(_SOURCE_RUN)
    if source_run:
        needs.append(Need("run:read", OfRun(check_text(str(source_run), _SOURCE_RUN))))
    return tuple(needs)


def _refuse_identified(assessment: Mapping[str, object]) -> None:
    """A new assessment gets its identifier from the server, which would write over one that has the same."""
    if assessment.get("assessment_id"):
        problem = "A new assessment has no assessment_id; the server gives it."
        raise InvalidRequest(problem)


def _export(message: Message) -> tuple[Need, ...]:
    needs = [Need("run:create", OfTraces(_ids(message, "trace_ids"), text(message, "experiment_id")))]
    if message.get("run_id"):
        needs.append(Need("run:update", OfRun(text(message, "run_id"))))
    return tuple(needs)


def _start_v2(message: Message) -> tuple[Need, ...]:
    refuse_locations(str(tag.get("key", "")) for tag in message.get("tags", ()))
    return (Need("run:create", OfExperiment(text(message, "experiment_id"))),)


def _delete(message: Message) -> tuple[Need, ...]:
    return (Need("run:delete", OfExperiment(text(message, "experiment_id"))),)


def _link_to_run(message: Message) -> tuple[Need, ...]:
    return (
        Need("run:update", OfRun(text(message, "run_id"))),
        Need("run:update", OfTraces(_ids(message, "trace_ids"))),
    )


def _link_prompts(message: Message) -> tuple[Need, ...]:
    prompts = message.get("prompt_versions", ())
    for prompt in prompts:
        check_version(text(prompt, "version"))
    return (
        Need("run:update", OfTraces((text(message, "trace_id"),))),
        *(Need("version:read", resource("models", text(prompt, "name"), "versions")) for prompt in prompts),
    )


def _assessment(action: str) -> Callable[[Message], tuple[Need, ...]]:
    """The trace and the assessment that the path names; a body that names others means two things."""

    def needs(message: Message) -> tuple[Need, ...]:
        inner = message.get("assessment", {})
        if "assessment_id" not in message:
            _refuse_identified(inner)
        for field in ("trace_id", "assessment_id"):
            if field in message and inner.get(field, message[field]) != message[field]:
                problem = f"The field {field!r} differs between path and body."
                raise InvalidRequest(problem)
        trace_id = message["trace_id"] if "trace_id" in message else inner.get("trace_id", "")
        return (Need(action, OfTraces((check_text(str(trace_id), "trace_id"),))),)

    return needs


def _trace_artifact(message: Message) -> tuple[Need, ...]:
    no_traversal(str(message.get("path", "")))
    return (Need("run:read", OfTraces((text(message, "request_id"),))),)


_TRACES = {
    "startTraceV3": Row(_start, SUMMED, max_body_bytes=_SPANS_BYTES),
    "startTrace": Row(_start_v2, SUMMED),
    "endTrace": Row(_tag, SUMMED),
    "getTraceInfoV3": Row(_trace("run:read")),
    "getTraceInfo": Row(_trace("run:read", "request_id")),
    "getTrace": Row(_trace("run:read")),
    "batchGetTraces": Row(nothing, traces="trace_ids"),
    "batchGetTraceInfos": Row(nothing, traces="trace_ids"),
    "searchTraces": Row(nothing, experiments="experiment_ids"),
    "searchTracesV3": Row(nothing, experiments="locations"),
    "calculateTraceFilterCorrelation": Row(nothing, experiments="experiment_ids"),
    "queryTraceMetrics": Row(nothing, experiments="experiment_ids"),
    "deleteTraces": Row(_delete, EACH),
    "deleteTracesV3": Row(_delete, EACH),
    "setTraceTag": Row(_tag, SUMMED),
    "setTraceTagV3": Row(_tag, SUMMED),
    "deleteTraceTag": Row(_tag, SUMMED),
    "deleteTraceTagV3": Row(_tag, SUMMED),
    "linkTracesToRun": Row(_link_to_run, SUMMED),
    "linkPromptsToTrace": Row(_link_prompts, SUMMED),
    "GetAssessment": Row(_assessment("run:read")),
    "createAssessment": Row(_assessment("run:update"), SUMMED),
    "updateAssessment": Row(_assessment("run:update"), SUMMED),
    "deleteAssessment": Row(_assessment("run:update"), EACH),
}

TRACES: Mapping[str, Row] = {
    **{f"MlflowService.{name}": row for name, row in _TRACES.items()},
    "MlflowRoutes.getTraceArtifact": Row(_trace_artifact, streams=True),
    "MlflowRoutes.exportTraces": Row(_export, SUMMED, max_body_bytes=_SPANS_BYTES, body=Body.OTLP),
}
