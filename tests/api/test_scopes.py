"""A narrowed key does what its scope names and its principal may, and sees nothing else, on any route."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlencode

import pytest
import yaml

from service.authentication import api_keys as key_module
from service.authentication.api_keys import entry_for
from service.authorization.authorizer import Authorizer
from service.dialects.mlflow import MlflowDialect
from service.dialects.mlflow_row import Body
from service.dialects.mlflow_table import ROWS
from service.embedded import DEMO_PRINCIPALS
from service.routes import build_litestar, openapi_document
from tests.client import V1, Client
from tests.conftest import ROOT, TOKENS
from tests.promotion.flow import ask, promote, register, satisfy, simple
from tests.surface import test_judged_is_forwarded as forwarded

DIALECT = MlflowDialect()
JSON_ROWS = sorted(key for key, row in ROWS.items() if row.body is not Body.OTLP)
BOTH = {name: {"kind": "mlflow", "url": "http://127.0.0.1:1"} for name in ("main", "lake")}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Know the key that tests narrow, in these tests only."""
    monkeypatch.setitem(TOKENS, "narrow", "rgw_test-narrow-" + "x" * 24)


def narrowed(path, principal, *scopes, **fields):
    """Write the demo keys and one more of *principal*, narrowed to *scopes*."""
    entries = [entry_for(TOKENS[who], who, (group,), identifier=who) for who, group in DEMO_PRINCIPALS.items()]
    groups = (DEMO_PRINCIPALS[principal],)
    entries.append(
        {**entry_for(TOKENS["narrow"], principal, groups, identifier="narrow"), "scopes": list(scopes), **fields}
    )
    path.write_text(yaml.safe_dump(entries))
    return {"api_keys": str(path)}


async def call(client, rpc):
    """Send a good message of *rpc*."""
    endpoint, message = rpc.endpoints[0], forwarded.message_for(rpc)
    if rpc.key.startswith("MlflowArtifactsService"):
        message = {"path": f"0/{forwarded.RUN}/artifacts/x"}
    target = endpoint.path.replace("<path:artifact_path>", f"0/{forwarded.RUN}/artifacts/x")
    for name, value in [*message.items(), *forwarded.IN_PATH]:
        target = target.replace(f"{{{name}}}", str(value))
    if endpoint.method == "GET":
        return await client(
            "GET", target if "<path:" in endpoint.path else f"{target}?{urlencode(message, doseq=True)}"
        )
    if "<path:" in endpoint.path:
        return await client(endpoint.method, target, raw=b"", headers=[("content-length", "0")])
    return await client(endpoint.method, target, message)


async def test_it_reads_and_searches_what_its_scope_names(running, tmp_path):
    keys = narrowed(tmp_path / "n.yaml", "user:admin", "main/model:read", "main/alias:*")
    async with running(authentication=keys) as it:
        admin = Client(it.application.asgi)
        version = await register(it, admin)
        narrow = admin.be("narrow")
        found = await narrow.rpc("GET", "registered-models/search")
        assert [item["name"] for item in found.json["registered_models"]] == ["iris"]
        assert (await narrow.rpc("GET", "registered-models/get", name="iris")).status == 200
        assert (
            await narrow.rpc("POST", "registered-models/alias", name="iris", alias="blue", version=version)
        ).status == 200
        assert (await narrow.rpc("GET", "model-versions/search")).json.get("model_versions", []) == []
        assert (await admin.rpc("GET", "model-versions/search")).json["model_versions"]
        refused = await narrow.rpc("GET", "model-versions/get", name="iris", version=version)
        assert (refused.status, refused.json["error_code"]) == (403, "PERMISSION_DENIED")
        assert "leaves out main/version:read" in refused.json["message"]
        event = (await it.events(action="alias:set"))[0]
        assert event["data"]["actor"]["credential"] == "narrow"


@pytest.mark.parametrize("scope", ["main/alias:*", "main/model:*", "main/stage:set"])
async def test_it_promotes_and_approves_only_where_its_scope_says_so(running, tmp_path, scope):
    keys = narrowed(tmp_path / "n.yaml", "user:admin", scope)
    async with running(authentication=keys) as it:
        admin = Client(it.application.asgi)
        version = await register(it, admin)
        await satisfy(admin, version)
        narrow = admin.be("narrow")
        approval = {"environment": "production", "decision": "approve"}
        assert (await narrow("POST", f"{V1}/iris/versions/{version}/approvals", approval)).status == 403
        assert (await ask(narrow, "promotions", version)).status == 403
        for path, fields in (
            ("registered-models/alias", {"alias": "champion"}),
            ("model-versions/transition-stage", {"stage": "Production", "archive_existing_versions": True}),
        ):
            refused = await narrow.rpc("POST", path, name="iris", version=version, **fields)
            assert (refused.status, refused.json["error_code"]) == (403, "PERMISSION_DENIED")
            assert "leaves out main/environment:promote" in refused.json["message"]
        assert "champion" not in it.memory.models["iris"]["aliases"]


async def test_it_promotes_with_the_right_alone_and_takes_down_nothing(running, tmp_path):
    keys = narrowed(tmp_path / "n.yaml", "user:admin", "main/environment:promote", "main/alias:*")
    async with running(authentication=keys, environments=simple(tmp_path)) as it:
        admin = Client(it.application.asgi)
        version = await register(it, admin)
        narrow = admin.be("narrow")
        assert (
            await narrow.rpc("POST", "registered-models/alias", name="iris", alias="champion", version=version)
        ).status == 200
        refused = await narrow.rpc("DELETE", "registered-models/alias", name="iris", alias="champion")
        assert (refused.status, "leaves out main/environment:retire" in refused.json["message"]) == (403, True)


def denying(directory, row):
    """Write the demo policy and a row that denies the admin something."""
    (directory / "rows.csv").write_text(
        (ROOT / "policies/policy.csv").read_text() + f"p, user:admin, main, {row}, deny\n"
    )
    return {"model": str(ROOT / "policies/model.conf"), "rows": "rows.csv"}


@pytest.mark.parametrize("scopes", [("main/environment:promote",), ("*/*",)])
async def test_narrowing_takes_no_prohibition_away(running, tmp_path, scopes):
    keys = narrowed(tmp_path / "n.yaml", "user:admin", *scopes)
    rows = denying(tmp_path, "models/iris/aliases/champion, alias:set")
    async with running(authentication=keys, environments=simple(tmp_path), access=rows) as it:
        admin = Client(it.application.asgi)
        version = await register(it, admin)
        for client in (admin, admin.be("narrow")):
            alias = {"name": "iris", "alias": "champion", "version": version}
            refused = await client.rpc("POST", "registered-models/alias", **alias)
            assert (refused.status, "alias:set" in refused.json["message"]) == (403, True)
            assert (await ask(client, "promotions", version)).status == 403
        assert "champion" not in it.memory.models["iris"]["aliases"]


async def test_a_narrowed_rename_gains_its_principal_nothing(running, tmp_path):
    keys = narrowed(tmp_path / "n.yaml", "user:admin", "main/model:rename")
    async with running(authentication=keys, access=denying(tmp_path, "models/iris/tags/owner, tag:set")) as it:
        admin = Client(it.application.asgi)
        await admin.rpc("POST", "registered-models/create", name="iris")
        it.memory.models["iris"]["tags"]["owner"] = "a"
        for client in (admin, admin.be("narrow")):
            refused = await client.rpc("POST", "registered-models/rename", name="iris", new_name="free")
            assert (refused.status, "could after the rename" in refused.json["message"]) == (403, True)
        assert "iris" in it.memory.models


async def test_it_never_does_what_its_principal_may_not(running, tmp_path):
    keys = narrowed(tmp_path / "n.yaml", "user:viewer", "*/*")
    async with running(authentication=keys) as it:
        client = Client(it.application.asgi, "narrow")
        assert (await client.rpc("POST", "registered-models/create", name="x")).status == 403


@pytest.mark.parametrize("key", JSON_ROWS)
async def test_no_call_of_another_registry_is_forwarded(running, tmp_path, key):
    rpc, row = DIALECT.rpcs[key], ROWS[key]
    recording = forwarded.Recording()
    keys = narrowed(tmp_path / "n.yaml", "user:admin", "lake/*")
    async with running(
        recording, authentication=keys, registries=BOTH, default_registry="main", environments=None
    ) as it:
        client = Client(it.application.asgi, "narrow")
        recording.seen.clear()
        reply = await call(client, rpc)
        if forwarded.searches(row):
            assert reply.status in (200, 403), reply.body
            assert reply.status == 403 or not any(reply.json.values())
        else:
            assert (reply.status, reply.json["error_code"]) == (403, "PERMISSION_DENIED"), reply.body
        assert not {item.rpc for item in recording.seen if item.method != "GET"} - forwarded.LOOK_UPS


async def test_no_route_of_ours_tells_of_another_registry(running, tmp_path):
    keys = narrowed(tmp_path / "n.yaml", "user:admin", "lake/*")
    async with running(
        authentication=keys, registries=BOTH, default_registry="main", environments=simple(tmp_path)
    ) as it:
        admin = Client(it.application.asgi)
        version = await register(it, admin)
        await admin.rpc("PATCH", "registered-models/update", name="iris", description="classified")
        await admin.rpc("PATCH", "model-versions/update", name="iris", version=version, description="classified")
        reason = {"reason": "classified"}
        done = await promote(admin, version, **reason)
        assert done.status == 200
        routes = json.loads(openapi_document(build_litestar()))["paths"]
        values = {"registry": "main", "model": "iris", "version": version, "environment": "production",
                  "promotion_id": done.json["id"]}  # fmt: skip
        narrow, tried = admin.be("narrow"), 0
        for path, item in routes.items():
            if "get" not in item or item["get"].get("security") == []:
                continue
            filled = "/".join(
                values.get(part.strip("{}"), "f" * 64) if "{" in part else part for part in path.split("/")
            )
            reply = await narrow("GET", filled)
            assert b"classified" not in reply.body, path
            assert b'"main"' not in reply.body, (path, reply.body)
            assert reply.status in (200, 400, 403, 404), (path, reply.status)
            tried += 1
        assert tried > 10
        assert [item["name"] for item in (await narrow("GET", "/v1/registries")).json["registries"]] == ["lake"]
        assert b"classified" in (await admin("GET", f"{V1}/iris/environments/production/history")).body


@pytest.mark.parametrize(
    ("change", "works"), [({"revoked": True}, False), ({"expires": "2020-01-01"}, False), ({}, True)]
)
async def test_a_key_is_revoked_while_the_gateway_runs(running, tmp_path, change, works):
    path = tmp_path / "n.yaml"
    async with running(authentication=narrowed(path, "user:admin", "main/*")) as it:
        client = Client(it.application.asgi, "narrow")
        assert (await client("GET", "/v1/registries")).status == 200
        narrowed(path, "user:admin", "main/*", **change)
        async with asyncio.timeout(5):
            while (await client("GET", "/v1/registries")).status != (200 if works else 401):
                await asyncio.sleep(0.05)
        assert it.application.keys.reload() is False or works


async def test_a_key_is_revoked_whatever_becomes_of_other_files_and_whatever_went_wrong(running, tmp_path, monkeypatch):
    async def hangs():
        await asyncio.Event().wait()

    path = tmp_path / "n.yaml"
    with monkeypatch.context() as patched:
        patched.setattr(Authorizer, "follow", lambda _: hangs())
        async with running(authentication=narrowed(path, "user:admin", "main/*")) as it:
            client = Client(it.application.asgi, "narrow")
            read = path.read_text()
            patched.setattr(key_module, "read_text", lambda _: 1 / 0)
            async with asyncio.timeout(5):
                while "ZeroDivisionError" not in it.application.health.problems.get("api_keys", ""):
                    await asyncio.sleep(0.05)
            assert (await client("GET", "/v1/registries")).status == 200
            patched.setattr(key_module, "read_text", lambda _: read.replace("scopes:", "revoked: true\n  scopes:"))
            async with asyncio.timeout(5):
                while (await client("GET", "/v1/registries")).status != 401:
                    await asyncio.sleep(0.05)
            assert not it.application.health.problems


@pytest.mark.parametrize(
    ("scopes", "says"),
    [
        (["main"], "'main' is not <registry>/<action>"),
        (["main/model:reads"], "unknown action 'model:reads'"),
        (["lake/model:read"], "the registry 'lake'; there are: main"),
        ([], "scopes has 1 to 50 items"),
        (["main/model:read"] * 51, "scopes has 1 to 50 items"),
        ([1], "Expected `str`"),
        ("main/model:read", "Expected `array`"),
        (None, "Expected `array`"),
    ],
)
async def test_a_scope_nobody_can_mean_is_refused_with_its_line(running, tmp_path, scopes, says):
    from service.errors import BadConfiguration

    entry = {**entry_for("k", "user:x", identifier="x"), "scopes": scopes}
    (tmp_path / "n.yaml").write_text(yaml.safe_dump([entry], sort_keys=False, default_flow_style=None))
    with pytest.raises(BadConfiguration, match=r"n\.yaml:\d+: ") as caught:
        async with running(authentication={"api_keys": str(tmp_path / "n.yaml")}):
            pass
    assert says in caught.value.detail
