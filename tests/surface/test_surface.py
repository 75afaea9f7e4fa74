"""Forgetting turns red: a new RPC, route, error, setting or action needs its row, its words, its place."""

from __future__ import annotations

import inspect
import json
import re

import msgspec
import pytest

from service import errors, outlets, settings
from service.api import problems
from service.dialects import mlflow
from service.dialects.mlflow import SERVICES, MlflowDialect
from service.dialects.mlflow_refused import REFUSED
from service.dialects.mlflow_table import ROWS
from service.model import ACTIONS, Record
from service.routes import build_litestar, openapi_document, public_paths
from tests.conftest import ROOT

DIALECT = MlflowDialect()
ERRORS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.GatewayError) and kind is not errors.GatewayError
]


@pytest.mark.parametrize("key", sorted(DIALECT.rpcs))
def test_each_rpc_of_the_installed_mlflow_is_mapped_or_refused_with_a_reason(key):
    assert (key in ROWS) != (key in REFUSED), f"{key}: put it into mlflow_table or mlflow_refused"
    assert key in ROWS or len(REFUSED[key]) > 30


def test_no_row_names_an_rpc_that_is_not_there():
    assert not (set(ROWS) | set(REFUSED)) - set(DIALECT.rpcs)


def test_each_service_of_the_server_is_loaded():
    names = {service for _, service in SERVICES}
    assert {"ModelRegistryService", "MlflowService", "MlflowArtifactsService", "WebhookService"} == names
    assert len([key for key in DIALECT.rpcs if key.startswith("ModelRegistryService.")]) == 21


def test_each_registry_change_is_recorded_each():
    for key, row in ROWS.items():
        method = DIALECT.rpcs[key].endpoints[0].method
        if key.startswith("ModelRegistryService."):
            reads = method == "GET" or key.endswith("getLatestVersions")
            assert row.record is (Record.NONE if reads else Record.EACH), key
            assert reads or row.change is not None, key


@pytest.mark.parametrize("prefix", ["/api/", "/ajax-api/"])
def test_the_twins_are_the_same_row(prefix):
    for rpc in DIALECT.rpcs.values():
        for endpoint in rpc.endpoints:
            path = re.sub(r"\{[^}]*\}|<path:[^>]*>", "0/r/artifacts/x" if "<" in endpoint.path else "x", endpoint.path)
            path = prefix + path.split("/", 2)[2] if path.startswith(("/api/", "/ajax-api/")) else path
            if rpc.key.startswith("MlflowRoutes."):
                continue  # these have one path each
            if rpc.key in ROWS:
                assert DIALECT.match(endpoint.method, path).rpc is rpc
            else:
                with pytest.raises(errors.RefusedRoute):
                    DIALECT.match(endpoint.method, path)


@pytest.mark.parametrize("kind", ERRORS)
def test_each_error_has_a_problem_and_a_shape_in_the_dialect(kind):
    assert kind in problems.STATUS
    assert kind in mlflow._STATUS or kind in (errors.RegistryRefused, errors.BadConfiguration)
    assert kind.__doc__
    assert len({other.code for other in ERRORS}) == len(ERRORS)


def test_each_route_says_its_action():
    app = build_litestar()
    for route in app.routes:
        for handler in route.route_handlers:
            if handler.operation_id is None or "OPTIONS" in handler.http_methods:
                continue
            action = handler.opt.get("action")
            assert action == "none" or action in ACTIONS, f"{route.path}: opt={{'action': …}}"
    metadata = {"/.well-known/authzen-configuration", "/.well-known/jwks.json"}
    assert public_paths(app) == {"/livez", "/readyz", "/metrics", "/openapi.json", *metadata}


def test_each_write_on_our_own_routes_needs_an_action():
    document = json.loads(openapi_document(build_litestar()))
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["x-action"], (path, method)
            assert operation["description"], (path, method)
            if method in ("post", "delete", "put", "patch") and path != "/v1/tokens":  # it gives no right
                assert operation["x-action"] in ACTIONS


def test_the_committed_openapi_is_current():
    assert (ROOT / "openapi/openapi.json").read_bytes() == openapi_document(build_litestar()), "run: make openapi"


def _keys(struct: type, at: str = "") -> list[str]:
    keys = []
    for field in msgspec.structs.fields(struct):
        name = at + field.encode_name
        if field.name == "registries":
            keys += _keys(settings.Registry, "registries.*.")
        elif field.name == "issuers":
            keys += [name, *_keys(settings.Issuer, f"{name}.*.")]
        elif field.name == "sinks":
            keys.append(name)
            for kind in msgspec.structs.fields(outlets.Outlet):
                shape = next(one for one in kind.type.__args__ if one is not type(None))
                keys += _keys(shape, f"{name}.*.{kind.name}.")
        elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            keys += _keys(field.type, name + ".")
        else:
            keys.append(name)
    return keys


@pytest.mark.parametrize("key", _keys(settings.Settings))
def test_each_setting_is_documented(key):
    assert f"`{key}`" in (ROOT / "docs/configuration.md").read_text()


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_each_action_is_documented(action):
    assert f"`{action}`" in (ROOT / "docs/policies.md").read_text()


def test_each_error_type_is_documented():
    text = (ROOT / "docs/api.md").read_text()
    assert [kind.code for kind in ERRORS if f"`{kind.code}`" not in text and kind is not errors.BadConfiguration] == []
