"""The table against the URL map of the installed MLflow server: its Flask and its FastAPI routes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from service.dialects.mlflow import MlflowDialect
from service.dialects.mlflow_routes import REFUSED_ROUTES
from service.dialects.mlflow_table import ROWS
from service.errors import MethodNotAllowed, RefusedRoute, UnknownRoute

DIALECT = MlflowDialect()
OURS = {"/version", "/health", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info"}
"""Answered by the gateway itself."""

LIST_ROUTES = """
import json
from mlflow.server import app
from mlflow.server.fastapi_app import create_fastapi_app

def walk(router, prefix=""):
    for route in router.routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from walk(inner, prefix + route.include_context.prefix)
        elif getattr(route, "methods", None):
            yield from ((method, prefix + route.path) for method in route.methods)
        elif type(route).__name__ != "Mount":
            raise SystemExit(f"a kind of route that this test does not know: {route!r}")

found = {(method, rule.rule) for rule in app.url_map.iter_rules() for method in rule.methods}
found |= set(walk(create_fastapi_app(app)))
print(json.dumps(sorted(item for item in found if item[0] not in ("HEAD", "OPTIONS"))))
"""


@pytest.fixture(scope="module")
def url_map(tmp_path_factory) -> list[tuple[str, str]]:
    environment = {"PATH": "/usr/bin:/bin", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path_factory.mktemp('m')}/m.db"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIST_ROUTES],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, "HOME": str(tmp_path_factory.mktemp("home"))},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(item) for item in json.loads(done.stdout.splitlines()[-1])]


def example(path: str) -> str:
    """Fill the parameters of a Flask or FastAPI path."""
    path = re.sub(r"<path:artifact_path>|\{artifact_path:path\}", "0/r/artifacts/x", path)
    return re.sub(r"<(?:\w+:)?\w+>|\{\w+(?::path)?\}", "x", path)


def test_the_map_is_whole(url_map):
    assert len(url_map) > 450
    assert ("POST", "/v1/traces") in url_map  # FastAPI
    assert ("GET", "/graphql") in url_map  # Flask
    assert ("POST", "/api/3.0/mlflow/mcp-servers/{name:path}/tags") in url_map  # a nested router


NOT_IMPLEMENTED = {("POST", "/api/2.0mlflow/experiments/search-datasets"), ("POST", "/ajax-api/2.0mlflow/experiments/search-datasets")}  # noqa: E501  # fmt: skip
"""A slip of MLflow's: these answer 404 on its own server."""


def test_each_route_of_the_server_is_served_or_refused_with_a_reason(url_map):
    forgotten, sentences = [], []
    for method, path in url_map:
        if path in OURS or (method, path) in NOT_IMPLEMENTED:
            continue
        try:
            assert DIALECT.match(method, example(path)).rpc.key in ROWS
        except RefusedRoute as error:
            sentences.append(error.detail)
        except (UnknownRoute, MethodNotAllowed):
            forgotten.append((method, path))
    assert forgotten == []
    assert all(len(sentence) > 30 for sentence in sentences)


def test_each_served_route_is_one_of_the_server(url_map):
    known = {(method, example(path)) for method, path in url_map}
    for key in ROWS:
        rpc = DIALECT.rpcs[key]
        first = rpc.endpoints[0]
        path = example(re.sub(r"\{[^}]*\}", "{x}", DIALECT.upstream_path(rpc)))
        assert (first.method, path) in known, key


def test_each_refused_route_is_one_of_the_server(url_map):
    known = {(method, example(path)) for method, path in url_map}
    assert {(method, path) for method, path in REFUSED_ROUTES if (method, example(path)) not in known} == set()
