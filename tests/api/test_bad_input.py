"""Each bad input: the right status, one clear sentence, nothing changed, one event where it was a write."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json

import pytest

from tests.client import V1, Client
from tests.conftest import TOKENS

M = "/api/2.0/mlflow"
CREATE = f"{M}/registered-models/create"
ALIAS = f"{M}/registered-models/alias"
PROMOTE = f"{V1}/iris/environments/staging/promotions"


@dataclasses.dataclass
class Bad:
    """One bad request and how it must be answered."""

    name: str
    method: str
    target: str
    status: int
    says: str
    body: object = None
    raw: bytes | None = None
    headers: list[tuple[str, str]] | None = None


JSON = ("content-type", "application/json")
BIG = json.dumps({"name": "x" * (1 << 20)}).encode()
CASES = [
    Bad("malformed", "POST", CREATE, 400, "not valid JSON", raw=b'{"name": '),
    Bad("duplicate keys", "POST", CREATE, 400, "twice", raw=b'{"name":"a","name":"b"}'),
    Bad("NaN literal", "POST", CREATE, 400, "not JSON", raw=b'{"name":NaN}'),
    Bad("not UTF-8", "POST", CREATE, 400, "UTF-8", raw=b'{"name":"\xff"}'),
    Bad("byte order mark", "POST", CREATE, 400, "JSON", raw=b'\xef\xbb\xbf{"name":"a"}'),
    Bad("array", "POST", CREATE, 400, "object", body=[]),
    Bad("wrong type", "POST", CREATE, 400, "wrong type", body={"name": 1}),
    Bad("missing name", "POST", CREATE, 400, "missing", body={}),
    Bad("control character", "POST", CREATE, 400, "U+0007", body={"name": "a\u0007"}),
    Bad("bidirectional override", "POST", CREATE, 400, "U+202E", body={"name": "a\u202eb"}),
    Bad("compatibility letter", "POST", CREATE, 400, "compatibility", body={"name": "ﬁ"}),
    Bad("slash in a name", "POST", CREATE, 400, "'/'", body={"name": "a/b"}),
    Bad("space at the end", "POST", CREATE, 400, "white space", body={"name": "a "}),
    Bad("both spellings", "POST", f"{M}/runs/log-metric", 400, "two spellings", body={"run_id": "a", "runId": "b"}),
    Bad("two runs", "POST", f"{M}/runs/log-metric", 400, "different runs", body={"run_id": "a", "run_uuid": "b"}),
    Bad("version 01", "POST", ALIAS, 400, "'01'", body={"name": "iris", "alias": "a", "version": "01"}),
    Bad("version +1", "POST", ALIAS, 400, "'+1'", body={"name": "iris", "alias": "a", "version": "+1"}),
    Bad("version full-width", "POST", ALIAS, 400, "version", body={"name": "iris", "alias": "a", "version": "１"}),
    Bad("reserved alias", "POST", ALIAS, 400, "reserved", body={"name": "iris", "alias": "latest", "version": "1"}),
    Bad("alias v1", "POST", ALIAS, 400, "reserved", body={"name": "iris", "alias": "v1", "version": "1"}),
    Bad("look-alike alias", "POST", ALIAS, 400, "alias", body={"name": "iris", "alias": "сhampion", "version": "1"}),
    Bad("query on a write", "POST", CREATE + "?name=b", 400, "body", body={"name": "a"}),
    Bad(
        "no content type", "POST", CREATE, 415, "application/json", raw=b'{"name":"a"}', headers=[("content-type", "")]
    ),
    Bad("form", "POST", CREATE, 415, "application/json", raw=b"name=a", headers=[("content-type", "text/plain")]),
    Bad(
        "other charset",
        "POST",
        CREATE,
        415,
        "UTF-8",
        raw=b'{"name":"a"}',
        headers=[(*JSON[:1], "application/json; charset=latin-1")],
    ),
    Bad(
        "encoded body", "POST", CREATE, 415, "Content-Encoding", raw=b"x", headers=[JSON, ("content-encoding", "gzip")]
    ),
    Bad("too large", "POST", CREATE, 413, "limit", raw=BIG),
    Bad(
        "two content lengths",
        "POST",
        CREATE,
        400,
        "2 times",
        raw=b"{}",
        headers=[JSON, ("content-length", "2"), ("content-length", "3")],
    ),
    Bad(
        "length and chunked",
        "POST",
        CREATE,
        400,
        "not both",
        raw=b"{}",
        headers=[JSON, ("content-length", "2"), ("transfer-encoding", "chunked")],
    ),
    Bad(
        "source upwards",
        "POST",
        f"{M}/model-versions/create",
        400,
        "upwards",
        body={"name": "iris", "source": "runs:/r/../../x"},
    ),
    Bad(
        "source by alias",
        "POST",
        f"{M}/model-versions/create",
        400,
        "alias or stage",
        body={"name": "iris", "source": "models:/iris@champion"},
    ),
    Bad(
        "source outside",
        "POST",
        f"{M}/model-versions/create",
        400,
        "sources",
        body={"name": "iris", "source": "file:///etc/passwd"},
    ),
    Bad(
        "unknown stage",
        "POST",
        f"{M}/model-versions/transition-stage",
        400,
        "none of",
        body={"name": "iris", "version": "1", "stage": "Live"},
    ),
    Bad("unknown model", "POST", ALIAS, 404, "not found", body={"name": "nope", "alias": "champion", "version": "1"}),
    Bad("unknown route", "POST", f"{M}/registered-models/shred", 404, "No table", body={}),
    Bad("refused route", "POST", f"{M}/webhooks", 404, "not served", body={}),
    Bad("graphql", "POST", "/graphql", 404, "GraphQL", body={}),
    Bad("unknown registry", "POST", f"/registries/nope{CREATE}", 404, "configured", body={"name": "a"}),
    Bad("wrong method", "DELETE", CREATE, 405, "takes POST", body={}),
    Bad("strange method", "BREW", CREATE, 405, "not served", body={}),
    Bad("encoded slash", "POST", f"{M}/registered-models%2Fcreate", 400, "encoded slash", body={"name": "a"}),
    Bad("encoded letter", "POST", f"{M}/registered-models/%63reate", 400, "encoded letter", body={"name": "a"}),
    Bad("double slash", "POST", f"{M}//registered-models/create", 400, "//", body={"name": "a"}),
    Bad("dots", "POST", f"{M}/runs/../registered-models/create", 400, "segment", body={"name": "a"}),
    Bad("parameter", "POST", f"{CREATE};x=1", 400, ";", body={"name": "a"}),
    Bad("trailing slash", "POST", f"{CREATE}/", 404, "No table", body={"name": "a"}),
    Bad("trailing dot", "POST", f"{CREATE}.", 404, "No table", body={"name": "a"}),
    Bad("empty last segment", "POST", f"{CREATE}//", 400, "//", body={"name": "a"}),
    Bad("upper case", "POST", CREATE.replace("create", "Create"), 404, "No table", body={"name": "a"}),
    Bad("encoded twice", "POST", f"{M}/registered-models%252Fcreate", 404, "No table", body={"name": "a"}),
    Bad("encoded dot", "POST", f"{M}/runs/%2e%2e/registered-models/create", 400, "encoded", body={"name": "a"}),
    Bad("one dot", "POST", f"{M}/./registered-models/create", 400, "segment", body={"name": "a"}),
    Bad("backslash", "POST", f"{M}\\\\registered-models/create", 400, "backslash", body={"name": "a"}),
    Bad("encoded NUL", "POST", f"{CREATE}%00", 400, "NUL", body={"name": "a"}),
    Bad("encoded line feed", "POST", f"{CREATE}%0a", 400, "control", body={"name": "a"}),
    Bad("half a percent", "POST", f"{CREATE}%", 404, "No table", body={"name": "a"}),
    Bad("nested registry", "POST", f"/registries/main/registries/main{CREATE}", 404, "No table", body={"name": "a"}),
    Bad("deep JSON", "POST", CREATE, 400, "deep", raw=b"[" * 100 + b"]" * 100),
    *(
        Bad(name, "POST", CREATE, 400, name, body={"name": "a"}, headers=[(name, "DELETE")])
        for name in ("x-http-method-override", "x-http-method", "x-method-override")
    ),
    Bad("_method", "POST", f"{CREATE}?_method=DELETE", 400, "_method", body={"name": "a"}),
    Bad("_method encoded", "POST", f"{CREATE}?a=1&%5Fmethod=DELETE", 400, "_method", body={"name": "a"}),
    Bad(
        "other workspace",
        "POST",
        CREATE,
        400,
        "workspace",
        body={"name": "a"},
        headers=[("x-mlflow-workspace", "theirs")],
    ),
    Bad("artifact root", "DELETE", "/api/2.0/mlflow-artifacts/artifacts/", 400, "missing"),
    Bad("artifact upwards", "DELETE", "/api/2.0/mlflow-artifacts/artifacts/0/%2e%2e/x", 400, "encoded"),
    Bad("v1 unknown field", "POST", PROMOTE, 400, "field force is unknown", body={"version": "1", "force": True}),
    Bad("v1 duplicate keys", "POST", PROMOTE, 400, "twice", raw=b'{"version":"1","version":"2"}'),
    Bad("v1 number as version", "POST", PROMOTE, 400, "version", body={"version": 1}),
    Bad("v1 version 01", "POST", PROMOTE, 400, "version", body={"version": "01"}),
    Bad("v1 no body", "POST", PROMOTE, 400, "", raw=b""),
    Bad(
        "v1 unknown model",
        "POST",
        f"{V1}/nope/environments/staging/promotions",
        404,
        "not found",
        body={"version": "1"},
    ),
    Bad("v1 unknown version", "POST", PROMOTE, 404, "not found", body={"version": "77"}),
    Bad(
        "v1 unknown environment",
        "POST",
        f"{V1}/iris/environments/moon/promotions",
        404,
        "no environment",
        body={"version": "1"},
    ),
    Bad(
        "v1 unknown registry",
        "POST",
        "/v1/registries/no/models/iris/environments/staging/promotions",
        404,
        "registry",
        body={"version": "1"},
    ),
    Bad("v1 unknown route", "POST", "/v1/nope", 404, "no such route", body={}),
    Bad("v1 wrong method", "DELETE", "/v1/registries", 405, "takes GET, OPTIONS, not DELETE"),
    Bad("v1 too large", "POST", PROMOTE, 413, "limit", raw=BIG),
    Bad("v1 query", "POST", PROMOTE + "?version=1", 400, "query", body={"version": "1"}),
    Bad(
        "v1 evidence of 1 MiB",
        "POST",
        f"{V1}/iris/versions/1/evidence",
        413,
        "limit",
        body={"kind": "k", "result": "passed", "facts": {"x": "y" * (1 << 20)}},
    ),
    Bad(
        "v1 unknown decision",
        "POST",
        f"{V1}/iris/versions/1/approvals",
        400,
        "decision",
        body={"environment": "production", "decision": "maybe"},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_bad_write(running, case):
    async with running() as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        before, earlier = copy.deepcopy(it.memory.models), len(await it.events())
        answer = await client(case.method, case.target, case.body, raw=case.raw, headers=case.headers)
        assert answer.status == case.status, answer.body
        sentence = answer.json.get("detail") or answer.json.get("message")
        assert case.says.lower() in sentence.lower()
        assert "Traceback" not in sentence
        assert it.memory.models == before
        await asyncio.gather(*it.application.trail._later)  # telemetry does not wait for its event
        new = (await it.events())[earlier:]
        assert [event["data"]["phase"] for event in new] == ["rejected"], new
        assert new[0]["data"]["actor"]["subject"] == "user:admin"


@pytest.mark.parametrize(
    ("target", "headers", "raw", "status"),
    [
        (f"{M}/registered-models/get?name=iris", [("content-length", "2")], b"{}", 400),
        (f"{M}/registered-models/get?name=nope", None, None, 404),
        (f"{M}/registered-models/get", None, None, 400),
        (f"{M}/registered-models/get?name=iris&name=other", None, None, 400),
        (f"{M}/registered-models/alias?name=iris&alias=nope", None, None, 400),
        (f"{M}/model-versions/get?name=iris&version=01", None, None, 400),
        (f"{M}/model-versions/get?name=iris&version=1&%zz", None, None, 400),
        (f"{M}/registered-models/search?page_token=bm90IG91cnM=", None, None, 400),
        (f"{M}/registered-models/search?max_results=0", None, None, 400),
        (f"{M}/registered-models/search?max_results=%2B1", None, None, 400),
        ("/api/2.0/mlflow-artifacts/artifacts", None, None, 400),
        ("/api/2.0/mlflow-artifacts/artifacts?path=0", None, None, 400),
        (f"{V1}/nope/versions/1", None, None, 404),
        (f"{V1}/iris/versions/01", None, None, 400),
        (f"{V1}/iris/environments/production", None, None, 404),
        ("/v1/audit/events?cursor=x", None, None, 400),
        ("/v1/audit/events?limit=0", None, None, 400),
        ("/v1/promotions/nope", None, None, 404),
        ("/v1/audit/events?registri=x", None, None, 400),
        (f"{V1}/iris/environments/production?at=2020-01-01T00:00:00Z", None, None, 404),
    ],
)
async def test_a_bad_read(running, target, headers, raw, status):
    async with running() as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        answer = await client("GET", target, raw=raw, headers=headers)
        assert answer.status == status, answer.body


@pytest.mark.parametrize("hosts", [[], ["a", "b"], [""]])
async def test_the_host_header(running, hosts):
    async with running() as it:
        client = Client(it.application.asgi)
        headers = [("host", host) for host in hosts] or [("x-none", "1"), ("host", "")]
        answer = await client("GET", "/v1/registries", headers=headers)
        assert answer.status == 400


async def test_an_unknown_field_is_dropped_and_named(running):
    async with running() as it:
        client = Client(it.application.asgi)
        answer = await client("POST", CREATE, {"name": "iris", "shiny": 1})
        assert answer.status == 200
        assert "shiny" in answer.headers["warning"]


@pytest.mark.parametrize(
    "authorization",
    [None, "Bearer nope", "Bearer ", "Basic !!!", "Digest x", "Bearer " + "x" * 10_000, "expired"],
)
async def test_authentication_comes_first_and_leaves_one_event(running, authorization):
    async with running() as it:
        if authorization == "expired":
            authorization = f"Bearer {TOKENS['user:admin']}"
            it.application.keys._now = lambda: 4e9  # the demo keys below expire in 2090
        headers = [("authorization", authorization)] if authorization else None
        for target in ("/v1/registries", "/v1/nope", f"{M}/registered-models/search", "/nope"):
            earlier = len(await it.events())
            answer = await Client(it.application.asgi, None)("GET", target, headers=headers)
            assert answer.status == 401
            assert "bearer" in answer.headers["www-authenticate"].lower()
            new = (await it.events())[earlier:]
            assert [event["data"]["phase"] for event in new] == ["denied"]
            assert authorization is None or authorization not in json.dumps(new)


async def test_public_routes_are_public_and_only_those(running):
    async with running() as it:
        nobody = Client(it.application.asgi, None)
        for path in ("/livez", "/readyz", "/metrics", "/openapi.json"):
            assert (await nobody("GET", path)).status == 200, path
        for path in ("/livez/", "/livez/x", "/health", "/version", "/v1/livez"):
            assert (await nobody("GET", path)).status in (400, 401), path
        assert (await nobody("POST", "/livez", {})).status == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [("gw.example", 200), ("GW.example:8080", 200), ("other", 400), ("gw.example.", 400), ("gw.example.evil", 400)],
)
async def test_only_named_hosts_are_served(running, host, status):
    async with running(listen={"hosts": ["gw.example"]}) as it:
        answer = await Client(it.application.asgi)("GET", "/v1/registries", headers=[("host", host)])
        assert answer.status == status


@pytest.mark.parametrize(
    ("trusted", "headers", "address"),
    [
        ([], [("x-forwarded-for", "203.0.113.9")], "192.0.2.1"),
        (["192.0.2.0/24"], [("x-forwarded-for", "203.0.113.9")], "203.0.113.9"),
        (["192.0.2.0/24"], [("x-forwarded-for", "6.6.6.6, 203.0.113.9")], "203.0.113.9"),
        (["192.0.2.0/24"], [("x-forwarded-for", "203.0.113.9, 192.0.2.7")], "203.0.113.9"),
        (["192.0.2.0/24"], [("x-forwarded-for", "6.6.6.6, junk, 192.0.2.7")], "192.0.2.7"),
        (["192.0.2.0/24"], [("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "203.0.113.9:99")], "203.0.113.9"),
        (["192.0.2.0/24"], [("forwarded", 'for=6.6.6.6, for="[2001:db8::1]:99";proto=https')], "2001:db8::1"),
        (["192.0.2.0/24"], [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "7.7.7.7")], "192.0.2.1"),
        (["10.0.0.0/8"], [("x-forwarded-for", "203.0.113.9")], "192.0.2.1"),
        (["192.0.2.0/24"], [("x-real-ip", "203.0.113.9")], "192.0.2.1"),
    ],
)
async def test_whose_word_counts_for_the_address(running, trusted, headers, address):
    async with running(listen={"trusted_proxies": trusted}) as it:
        await Client(it.application.asgi, None)("GET", "/v1/registries", headers=headers)
        assert [event["data"]["actor"]["address"] for event in await it.events()] == [address]


ENVIRONMENT = "/v1/registries/main/models/iris/environments/production"
EVIDENCE = "/v1/registries/main/models/iris/versions/1/evidence"


@pytest.mark.parametrize(
    ("method", "path", "raw", "status"),
    [
        ("POST", f"{ENVIRONMENT}/promotions", rb'{"version": "1", "reason": "because\u0000"}', 400),
        ("POST", f"{ENVIRONMENT}/promotions", rb'{"version": "1", "reason": "\\\u0000"}', 400),
        ("POST", f"{ENVIRONMENT}/promotions", rb'{"version": "1", "reason": "as \\u0000 is written"}', 404),
        ("POST", "/v1/audit/holds", rb'{"registry": "main", "model": "a\u0000", "reason": "r"}', 400),
        ("POST", EVIDENCE, rb'{"kind": "validation", "result": "passed", "facts": {"a": ["\u0000"]}}', 400),
        ("GET", "/v1/audit/events?model=a%00", b"", 400),
    ],
)
async def test_nul_is_refused_before_a_journal_could_not_store_it(running, method, path, raw, status):
    """On PostgreSQL a promotion with it in the reason was carried out, and its outcome could never be recorded."""
    async with running() as it:
        answer = await Client(it.application.asgi)(method, path, raw=raw)
        assert answer.status == status, answer.body
        if status == 400:
            assert "U+0000" in answer.json["detail"]
            assert [event["type"] for event in await it.events()] == ["registry-gateway.request.refuse.rejected"] * (
                method != "GET"
            )
