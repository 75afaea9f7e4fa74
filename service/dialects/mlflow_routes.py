"""The routes of an MLflow server that its descriptors do not name: what they take, and which are refused.

`tests/surface/test_url_map.py` compares this list and the descriptors with the URL map of the installed server.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.dialects.protobuf import Endpoint, Rpc, build_rpc

SERVICE = "MlflowRoutes"
_AJAX = "/ajax-api/2.0/mlflow"

_SERVED: Mapping[str, tuple[tuple[Endpoint, ...], Mapping[str, str]]] = {
    "getArtifact": (
        (Endpoint("GET", "/get-artifact"),),
        {"run_id": "string", "run_uuid": "string", "path": "string"},
    ),
    "getModelVersionArtifact": (
        (Endpoint("GET", "/model-versions/get-artifact"),),
        {"name": "string", "version": "string", "path": "string"},
    ),
    "getLoggedModelArtifact": (
        (Endpoint("GET", f"{_AJAX}/logged-models/{{model_id}}/artifacts/files"),),
        {"model_id": "string", "artifact_file_path": "string"},
    ),
    "getTraceArtifact": (
        (
            Endpoint("GET", "/ajax-api/3.0/mlflow/get-trace-artifact"),
            Endpoint("GET", f"{_AJAX}/get-trace-artifact"),
        ),
        {"request_id": "string", "path": "string"},
    ),
    "getMetricHistoryBulk": (
        (Endpoint("GET", f"{_AJAX}/metrics/get-history-bulk"),),
        {"run_id": "strings", "metric_key": "string", "max_results": "int"},
    ),
    "exportTraces": (  # OpenTelemetry's OTLP/HTTP; its body is read by `otlp`
        (Endpoint("POST", "/v1/traces"),),
        {"experiment_id": "string", "run_id": "string", "trace_ids": "strings"},
    ),
}

ONLY_AJAX = frozenset({"MlflowService.searchDatasets", "MlflowService.getMetricHistoryBulkInterval"})
"""RPCs with a descriptor that the server answers under ``/ajax-api`` only."""

_PAGES = "belongs to MLflow's own web pages, which are not served through the gateway"
_OUTWARD = "makes the MLflow server call other systems and is not served through the gateway"
_ADMIN = "administers the MLflow server itself and is not served through the gateway"
_CODE = "runs code on the MLflow server and is not served through the gateway"
_LATER = "is not served through the gateway yet; nothing was forwarded"

_REFUSED = {
    _PAGES: """
        GET /
        GET /build/<path:filename>
        GET /static-files/<path:path>
        POST /ajax-api/2.0/mlflow/upload-artifact
        GET /ajax-api/3.0/mlflow/ui-telemetry
        POST /ajax-api/3.0/mlflow/ui-telemetry
        POST /ajax-api/3.0/mlflow/demo/generate
        POST /ajax-api/3.0/mlflow/demo/delete
        GET /graphql
        POST /graphql
    """,
    _OUTWARD: """
        GET /ajax-api/2.0/mlflow/gateway-proxy
        POST /ajax-api/2.0/mlflow/gateway-proxy
        POST /ajax-api/2.0/mlflow/runs/create-promptlab-run
        GET /ajax-api/3.0/mlflow/gateway/provider-config
        GET /ajax-api/3.0/mlflow/gateway/secrets/config
        GET /ajax-api/3.0/mlflow/gateway/supported-models
        GET /ajax-api/3.0/mlflow/gateway/supported-providers
        POST /gateway/{endpoint_name}/mlflow/invocations
        POST /gateway/mlflow/v1/chat/completions
        GET /gateway/mlflow/v1/models
        POST /gateway/openai/v1/chat/completions
        POST /gateway/openai/v1/embeddings
        POST /gateway/typesafe/v1/systemone
        POST /gateway/openai/v1/responses
        POST /gateway/openai/v1/responses/compact
        POST /gateway/anthropic/v1/messages
        POST /gateway/gemini/v1beta/models/{endpoint_name}:generateContent
        POST /gateway/gemini/v1beta/models/{endpoint_name}:streamGenerateContent
        POST /gateway/proxy/{endpoint_name}/<path:path>
        POST /ajax-api/3.0/mlflow/assistant/message
        GET /ajax-api/3.0/mlflow/assistant/sessions/{session_id}/stream
        PATCH /ajax-api/3.0/mlflow/assistant/sessions/{session_id}
        POST /ajax-api/3.0/mlflow/assistant/sessions/{session_id}/permission
        POST /ajax-api/3.0/mlflow/assistant/sessions/{session_id}/tool-result
        GET /ajax-api/3.0/mlflow/assistant/providers/{provider}/health
        GET /ajax-api/3.0/mlflow/assistant/providers
        GET /ajax-api/3.0/mlflow/assistant/config
        PUT /ajax-api/3.0/mlflow/assistant/config
        POST /ajax-api/3.0/mlflow/assistant/skills/install
        GET /ajax-api/3.0/mlflow/assistant/providers/{provider}/models
    """,
    _CODE: """
        POST /ajax-api/3.0/mlflow/genai/evaluate/invoke
        POST /ajax-api/3.0/mlflow/issues/invoke
        POST /ajax-api/3.0/mlflow/scorer/invoke
        PUT /api/3.0/mlflow/scorers/online-config
        PUT /ajax-api/3.0/mlflow/scorers/online-config
        GET /api/3.0/mlflow/scorers/online-configs
        GET /ajax-api/3.0/mlflow/scorers/online-configs
        GET /ajax-api/3.0/mlflow/jobs/{job_id}
        PATCH /ajax-api/3.0/mlflow/jobs/cancel/{job_id}
        GET /ajax-api/3.0/jobs/{job_id}
        POST /ajax-api/3.0/jobs/
        POST /ajax-api/3.0/jobs/search
        PATCH /ajax-api/3.0/jobs/cancel/{job_id}
    """,
}

_MCP = """
    POST
    GET
    GET /endpoints
    POST /{name}/versions/{version}/tags
    DELETE /{name}/versions/{version}/tags/{key}
    GET /{name}/versions/{version}
    PATCH /{name}/versions/{version}
    DELETE /{name}/versions/{version}
    POST /{name}/versions
    GET /{name}/versions
    POST /{name}/endpoints
    GET /{name}/endpoints/{endpoint_id}
    PATCH /{name}/endpoints/{endpoint_id}
    DELETE /{name}/endpoints/{endpoint_id}
    GET /{name}/endpoints
    POST /{name}/tags
    DELETE /{name}/tags/{key}
    POST /{name}/aliases
    GET /{name}/aliases/{alias}
    DELETE /{name}/aliases/{alias}
    GET /{name}
    PATCH /{name}
    DELETE /{name}
"""


def _refusals() -> dict[tuple[str, str], str]:
    refused = {}
    for reason, text in _REFUSED.items():
        for line in text.split("\n"):
            method, _, path = line.strip().partition(" ")
            if method:
                refused[method, path] = f"{method} {path} {reason}."
    for line in _MCP.strip().split("\n"):
        method, _, rest = line.strip().partition(" ")
        for prefix in ("/api", "/ajax-api"):
            path = f"{prefix}/3.0/mlflow/mcp-servers{rest}"
            refused[method, path] = f"{method} {path} {_LATER}."
    return refused


REFUSED_ROUTES: Mapping[tuple[str, str], str] = _refusals()
"""Refused routes by (method, path) -> the sentence a caller is told. A parameter is ``{name}``, the rest of a path
``<path:name>``. A route that a new MLflow adds must come here or be served; until then it is 404."""


def load_routes() -> dict[str, Rpc]:
    """Return the served routes as RPCs, keys ``MlflowRoutes.name``."""
    return {
        f"{SERVICE}.{name}": build_rpc(f"{SERVICE}.{name}", endpoints, fields)
        for name, (endpoints, fields) in _SERVED.items()
    }
