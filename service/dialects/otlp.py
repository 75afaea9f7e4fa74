"""Reads OpenTelemetry's trace export, so that the spans that are judged are the spans that are forwarded.

OTLP/HTTP 1.x, https://opentelemetry.io/docs/specs/otlp/#otlphttp, as MLflow's server takes it at ``/v1/traces``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.dialects.locations import refuse_locations
from service.dialects.mlflow_owners import names_owner
from service.dialects.wire import check_size
from service.errors import InvalidRequest
from service.strict import parse_json

EXPERIMENT_HEADER = "x-mlflow-experiment-id"
RUN_HEADER = "x-mlflow-run-id"
PROTOBUF = "application/x-protobuf"
_HEX_FIELDS = ("traceId", "spanId", "parentSpanId")
_TRACE_BYTES = 16
_TAG_PREFIX = "mlflow.traceTag."


def read_export(body: bytes, *, is_json: bool, owner: str) -> tuple[bytes, list[str]]:
    """Parse an ExportTraceServiceRequest; tags that name a user name *owner* then.

    Returns it written anew, as protobuf, and MLflow's identifiers of its traces (``tr-<32 hex digits>``).

    Raises:
        InvalidRequest: it is not one, holds no span, or a trace identifier that is not 16 bytes.
    """
    export = ExportTraceServiceRequest()
    try:
        if is_json:
            json_format.ParseDict(_with_base64(parse_json(body)), export, ignore_unknown_fields=True)
        else:
            check_size(body, ExportTraceServiceRequest.DESCRIPTOR)
            export.ParseFromString(body)
            export.DiscardUnknownFields()
    except (DecodeError, json_format.ParseError, ValueError, RecursionError):
        message = "The body is not an ExportTraceServiceRequest of OpenTelemetry."
        raise InvalidRequest(message) from None
    trace_ids: dict[str, None] = {}
    for resource in export.resource_spans:
        refuse_locations(attribute.key for attribute in resource.resource.attributes)  # MLflow makes tags of them
        _set_owner(resource.resource.attributes, owner)
        for scope in resource.scope_spans:
            for span in scope.spans:
                refuse_locations(_tags_of(span))
                _set_owner(span.attributes, owner)
                if len(span.trace_id) != _TRACE_BYTES:
                    message = "A span's trace_id is not 16 bytes."
                    raise InvalidRequest(message)
                trace_ids[f"tr-{span.trace_id.hex()}"] = None
    if not trace_ids:
        message = "The export holds no span."
        raise InvalidRequest(message)
    return export.SerializeToString(deterministic=True), list(trace_ids)


def _tags_of(span: Span) -> Iterator[str]:
    """Yield the keys of the tags that MLflow reads from a span's attributes (mlflow/tracing/constant.py)."""
    for attribute in span.attributes:
        if attribute.key.startswith(_TAG_PREFIX):
            yield attribute.key.removeprefix(_TAG_PREFIX)


def _set_owner(attributes: Iterable[Any], owner: str) -> None:
    for attribute in attributes:
        if names_owner(attribute.key.removeprefix(_TAG_PREFIX)):
            attribute.value.string_value = owner


def _with_base64(document: Any) -> Any:
    """OTLP's JSON writes identifiers in hex, protobuf's JSON reads them in base64."""
    if isinstance(document, list):
        return [_with_base64(item) for item in document]
    if not isinstance(document, dict):
        return document
    converted = {}
    for key, value in document.items():
        if key in _HEX_FIELDS and isinstance(value, str):
            converted[key] = base64.b64encode(bytes.fromhex(value)).decode()
        else:
            converted[key] = _with_base64(value)
    return converted
