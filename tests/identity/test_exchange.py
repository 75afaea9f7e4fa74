"""A token of minutes for one of hours: the same principal, never more, for no other gateway, and not again."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import KeySet

from service.app import Application
from service.authentication.api_keys import entry_for
from service.authentication.own import MAX_TOKEN_BYTES, OwnTokens
from service.authentication.signing import SigningKeys
from service.errors import BadConfiguration, InvalidRequest, JournalUnavailable, Unauthenticated
from service.model import Principal
from service.settings import load
from tests.client import V1, Client
from tests.conftest import ROOT, TOKENS, write_configuration
from tests.identity.samples import GITHUB
from tests.identity.signer import AUDIENCE, ISSUER, Signer, claims, key_set, signer
from tests.promotion.flow import register, simple

ONE = signer("ES256", "one")
GATEWAY = "https://gateway.example"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
TYPE = "urn:ietf:params:oauth:token-type:"
FORM = ("content-type", "application/x-www-form-urlencoded")


def pem(path, key=None, mode=0o600, protection=None):
    key = key or ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection or NoEncryption()))
    path.chmod(mode)
    return key


@pytest.fixture
def configured(tmp_path):
    """A gateway that takes tokens of one issuer and exchanges them."""
    (tmp_path / "issuer.json").write_bytes(key_set(ONE))
    (tmp_path / "revoked.yaml").write_text("")
    for kid in ("k1", "k2"):
        pem(tmp_path / f"{kid}.pem")
    issuer = {
        "issuer": ISSUER, "audience": AUDIENCE, "jwks_file": "issuer.json", "principal": "service:{sub}",
        "groups": "group:{groups}", "acting_for": "user:{actor}", "claims": ["run_id", "ref"],
    }  # fmt: skip
    return {
        "authentication": {"api_keys": "keys.yaml", "issuers": [issuer], "revoked": "revoked.yaml"},
        "tokens": {"issuer": GATEWAY, "keys": [{"kid": "k1", "file": "k1.pem", "sign": True}]},
    }


def short(**changes):
    said = {"sub": "ci", "groups": ["ci"], "actor": "kim", "run_id": "77", "ref": "refs/heads/main", **changes}
    return ONE.by_hand(claims(**said))


async def ask(it, parameters=None, *, token=None, raw=None, kind=FORM):
    """POST to /v1/tokens: a form, or what *raw* and *kind* say."""
    headers = [kind, *([("authorization", f"Bearer {token}")] if token else [])]
    if raw is None:
        raw = urlencode({"grant_type": GRANT, **(parameters or {})}).encode()
    return await Client(it.application.asgi, None)(
        "POST", "/v1/tokens", raw=raw, headers=[*headers, ("content-length", str(len(raw)))]
    )


async def exchanged(it, token=None, **parameters):
    reply = await ask(it, parameters, token=token or short())
    assert reply.status == 200, reply.body
    return reply.json


async def call(it, token, method="GET", target="/v1/registries", body=None):
    return await Client(it.application.asgi, None)(method, target, body, headers=[("authorization", f"Bearer {token}")])


def said_by(token):
    """Read what a token says, by another library than the gateway's."""
    header, payload = (jws.extract_compact(token.encode()).headers(), jws.extract_compact(token.encode()).payload)
    return header, json.loads(payload)


async def test_it_is_the_same_principal_for_hours(running, configured):
    async with running(**configured) as it:
        token = short()
        answer = await exchanged(it, token)
        assert answer == {
            "access_token": answer["access_token"], "issued_token_type": TYPE + "access_token",
            "token_type": "Bearer", "expires_in": 21_600,
        }  # fmt: skip
        header, payload = said_by(answer["access_token"])
        assert header == {"alg": "EdDSA", "kid": "k1", "typ": "rgw+jwt"}
        assert payload["exp"] - payload["iat"] == 21_600 > said_by(token)[1]["exp"] - payload["iat"]
        assert (payload["iss"], payload["aud"], payload["sub"]) == (GATEWAY, GATEWAY, "service:ci")
        assert (payload["acting_for"], payload["orig_iss"], payload["orig"]["run_id"]) == ("user:kim", ISSUER, "77")
        before = await it.application.credentials.authenticate(f"Bearer {token}")
        after = await it.application.credentials.authenticate(f"Bearer {answer['access_token']}")
        for name in ("subject", "groups", "acting_for", "issuer", "claims", "scope", "persons"):
            assert getattr(before, name) == getattr(after, name), name
        assert after.credential != before.credential
        assert (before.exchanged, after.exchanged) == (False, True)


async def test_its_keys_are_published_and_verify_it(running, configured):
    configured["tokens"]["keys"].append({"kid": "k2", "file": "k2.pem"})
    async with running(**configured) as it:
        published = await Client(it.application.asgi, None)("GET", "/.well-known/jwks.json")
        assert (published.status, "max-age" in published.headers["cache-control"]) == (200, True)
        assert [key["kid"] for key in published.json["keys"]] == ["k1", "k2"]
        assert all("d" not in key for key in published.json["keys"])
        token = (await exchanged(it))["access_token"]
        registry = jws.JWSRegistry(algorithms=["EdDSA"])
        with pytest.warns(SecurityWarning):  # EdDSA has a newer name
            jws.deserialize_compact(token, KeySet.import_key_set(published.json), registry=registry)


@pytest.mark.parametrize("how", ["header", "form", "json", "both"])
@pytest.mark.parametrize("kind", ["jwt", "access_token", "id_token"])
async def test_the_token_comes_as_header_or_parameter(running, configured, how, kind):
    async with running(**configured) as it:
        token = short()
        parameters = {"grant_type": GRANT, "scope": "main/model:read", "expires_in": "900", "unknown": "x"}
        if how != "header":
            parameters |= {"subject_token": token, "subject_token_type": TYPE + kind}
        sent = token if how in ("header", "both") else None
        if how == "json":
            raw = json.dumps({**parameters, "expires_in": 900}).encode()
            reply = await ask(it, raw=raw, kind=("content-type", "application/json"))
        else:
            reply = await ask(it, parameters, token=sent)
        assert reply.status == 200, reply.body
        assert (reply.json["expires_in"], reply.json["scope"]) == (900, "main/model:read")
        assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("changes", "status", "error", "says"),
    [
        ({"grant_type": "client_credentials"}, 400, "unsupported_grant_type", "token-exchange"),
        ({"grant_type": ""}, 400, "unsupported_grant_type", "token-exchange"),
        ({"requested_token_type": TYPE + "saml2"}, 400, "invalid_request", "requested_token_type is one of"),
        ({"audience": "https://other.example"}, 400, "invalid_target", GATEWAY),
        ({"resource": GATEWAY + "/"}, 400, "invalid_target", GATEWAY),
        ({"actor_token": "x"}, 400, "invalid_request", "actor_token is not taken"),
        ({"scope": "main"}, 400, "invalid_scope", "is not <registry>/<action>"),
        ({"scope": "main/model:reed"}, 400, "invalid_scope", "unknown action"),
        ({"scope": "lake/model:read"}, 400, "invalid_scope", "no configured registry"),
        ({"scope": " ".join(["main/model:read"] * 51)}, 400, "invalid_scope", "at most 50"),
        ({"expires_in": "1h"}, 400, "invalid_request", "whole number of seconds"),
        ({"expires_in": "0"}, 400, "invalid_request", "whole number of seconds"),
        ({"expires_in": "-5"}, 400, "invalid_request", "whole number of seconds"),
        ({"subject_token": "x.y.z"}, 400, "invalid_request", "differ; send the token once"),
    ],
)
async def test_what_is_not_given_says_why(running, configured, changes, status, error, says):
    async with running(**configured) as it:
        reply = await ask(it, changes, token=short())
        assert (reply.status, reply.headers["content-type"]) == (status, "application/json")
        assert set(reply.json) == {"error", "error_description"}
        assert (reply.json["error"], says in reply.json["error_description"]) == (error, True), reply.json
        assert await it.events(action="token:exchange") == []
        assert len(await it.events(action="request:refuse")) == 1


@pytest.mark.parametrize(
    ("raw", "kind", "status"),
    [
        (b"grant_type=a&grant_type=b", FORM, 400),
        (b"grant_type", FORM, 400),
        ("grant_type=\u00e9".encode(), FORM, 400),
        (b"subject_token=a%0Ab", FORM, 400),
        (b'{"grant_type": 1}', ("content-type", "application/json"), 401),
        (b'{"grant_type": ["a"]}', ("content-type", "application/json"), 400),
        (b'{"grant_type": "a", "grant_type": "b"}', ("content-type", "application/json"), 400),
        (b"[]", ("content-type", "application/json"), 400),
        (b"<x/>", ("content-type", "application/xml"), 415),
        (b"subject_token=" + b"x" * 70_000, FORM, 413),
        (b"", FORM, 401),
    ],
)
async def test_a_malformed_request_has_the_shape_that_oauth_clients_read(running, configured, raw, kind, status):
    async with running(**configured) as it:
        reply = await ask(it, raw=raw, kind=kind)
        assert (reply.status, reply.headers["content-type"]) == (status, "application/json"), reply.body
        assert set(reply.json) == {"error", "error_description"}
        assert ("www-authenticate" in reply.headers) == (status == 401)


async def test_a_bad_token_is_refused_where_it_was_sent(running, configured):
    async with running(**configured) as it:
        bad = short(aud="other")
        by_header = await ask(it, token=bad)
        assert (by_header.status, by_header.json["error"]) == (401, "invalid_client")
        by_parameter = await ask(it, {"subject_token": bad, "subject_token_type": TYPE + "jwt"})
        assert (by_parameter.status, by_parameter.json["error"]) == (400, "invalid_request")
        assert "www-authenticate" not in by_parameter.headers
        assert len(await it.events(action="authentication:fail")) == 2
        untyped = await ask(it, {"subject_token": short()})
        assert "subject_token_type is one of" in untyped.json["error_description"]


async def test_a_key_is_not_exchanged_and_a_token_not_twice(running, configured):
    async with running(**configured) as it:
        key = await ask(it, token=TOKENS["user:admin"])
        assert (key.status, "An API key is not exchanged" in key.json["error_description"]) == (400, True)
        token = (await exchanged(it))["access_token"]
        for parameters in ({}, {"subject_token": token, "subject_token_type": TYPE + "jwt"}):
            again = await ask(it, parameters, token=None if parameters else token)
            assert (again.status, "not exchanged again" in again.json["error_description"]) == (400, True)


async def test_a_scope_narrows_and_never_widens(running, configured):
    async with running(**configured) as it:
        token = (await exchanged(it, short(groups=["platform"]), scope="main/model:read"))["access_token"]
        search = "/api/2.0/mlflow/registered-models/search"
        assert (await call(it, token, target=search)).status == 200
        body = {"name": "m"}
        refused = await call(it, token, "POST", "/api/2.0/mlflow/registered-models/create", body)
        assert (refused.status, "leaves out main/model:create" in refused.json["message"]) == (403, True)
        wide = (await exchanged(it, short(groups=["readers"]), scope="*/*"))["access_token"]
        assert (await call(it, wide, "POST", "/api/2.0/mlflow/registered-models/create", body)).status == 403
        free = (await exchanged(it, short(groups=["platform"])))["access_token"]
        assert (await call(it, free, "POST", "/api/2.0/mlflow/registered-models/create", body)).status == 200


def test_a_narrowed_token_is_only_narrowed_further():
    from service.api.exchange import Exchange, Refused

    exchange = Exchange(None, ["main"])
    narrow = Principal("service:ci", scope=frozenset({"main/alias:*"}))
    assert exchange._scope("main/alias:set", narrow) == {"main/alias:set"}
    assert exchange._scope("", narrow) == narrow.scope
    for wider in ("main/*", "*/alias:set", "main/model:read", "main/alias:set main/model:read"):
        with pytest.raises(Refused, match="more than the token has"):
            exchange._scope(wider, narrow)


async def test_who_is_behind_it_still_does_not_approve(running, configured, tmp_path):
    async with running(environments=simple(tmp_path), **configured) as it:
        entries = yaml.safe_load((tmp_path / "keys.yaml").read_text())
        keys = [entry_for("rgw_kim", "user:kim", ("group:ml-leads",), identifier="kim")]
        (tmp_path / "keys.yaml").write_text(yaml.safe_dump([*entries, *keys]))
        it.application.keys.reload()
        version = await register(it, Client(it.application.asgi))
        token = (await exchanged(it))["access_token"]
        evidence = {"kind": "validation", "result": "passed"}
        assert (await call(it, token, "POST", f"{V1}/iris/versions/{version}/evidence", evidence)).status == 201
        approval = {"environment": "production", "decision": "approve"}
        refused = await call(it, "rgw_kim", "POST", f"{V1}/iris/versions/{version}/approvals", approval)
        assert refused.status == 403


async def test_it_is_recorded_first_and_stored_nowhere(running, configured, tmp_path):
    async with running(**configured) as it:
        first = await it.application.credentials.authenticate(f"Bearer {short(jti='once')}")
        token = (await exchanged(it, short(jti="once"), scope="main/model:read"))["access_token"]
        (event,) = await it.events(action="token:exchange")
        data = event["data"]
        assert (data["phase"], data["outcome"], data["actor"]["subject"]) == ("outcome", "succeeded", "service:ci")
        assert data["actor"]["credential"] == first.credential
        issued = await it.application.credentials.authenticate(f"Bearer {token}")
        assert issued.credential in data["detail"]
        assert "main/model:read" in data["detail"]
        jti = said_by(token)[1]["jti"]
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("journal.db*"))
        for secret in (token, token.rpartition(".")[2], jti):
            assert secret.encode() not in stored

        async def down(*_):
            raise JournalUnavailable("The journal cannot be written.")

        it.application.trail.stored = down
        reply = await ask(it, token=short())
        assert (reply.status, reply.json["error"]) == (503, "temporarily_unavailable")
        assert "access_token" not in reply.json
        assert int(reply.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    "line",
    ["jti", "jti and issuer", "credential", "subject", "first credential", "first jti", "first jti and issuer"],
)
async def test_it_is_revoked_while_the_gateway_runs(running, configured, tmp_path, line):
    async with running(**configured) as it:
        first = short()
        token = (await exchanged(it, first))["access_token"]
        other = (await exchanged(it, short(sub="other", jti="t2")))["access_token"]
        jti = said_by(token)[1]["jti"]
        ids = [(await it.application.credentials.authenticate(f"Bearer {one}")).credential for one in (token, first)]
        entry = {
            "jti": {"jti": jti}, "jti and issuer": {"jti": jti, "issuer": GATEWAY},
            "credential": {"credential": ids[0]}, "subject": {"subject": "service:ci"},
            "first credential": {"credential": ids[1]},
            "first jti": {"jti": "t1"}, "first jti and issuer": {"jti": "t1", "issuer": ISSUER},
        }[line]  # fmt: skip
        assert (await call(it, token)).status == 200
        (tmp_path / "revoked.yaml").write_text(yaml.safe_dump([entry]))
        async with asyncio.timeout(5):
            while (await call(it, token)).status != 401:
                await asyncio.sleep(0.05)
        assert (await call(it, other)).status == 200


@pytest.mark.parametrize("issuer", [ISSUER, GATEWAY, "https://other.example"])
async def test_the_list_names_issuers_that_are_there(running, configured, tmp_path, issuer):
    (tmp_path / "revoked.yaml").write_text(yaml.safe_dump([{"jti": "x", "issuer": issuer}]))
    if issuer in (ISSUER, GATEWAY):
        async with running(**configured) as it:
            assert (await call(it, short())).status == 200
    else:
        with pytest.raises(BadConfiguration, match=r"no issuer .https://other\.example. is configured"):
            async with running(**configured):
                pass


async def test_keys_are_changed_without_a_token_lost(running, configured, tmp_path):
    old_key, new_key = ({"kid": kid, "file": f"{kid}.pem"} for kid in ("k1", "k2"))
    async with running(**configured) as it:
        token = (await exchanged(it))["access_token"]
    configured["tokens"]["keys"] = [old_key, {**new_key, "sign": True}]
    async with running(**configured) as it:
        assert (await call(it, token)).status == 200
        newer = (await exchanged(it))["access_token"]
        assert said_by(newer)[0]["kid"] == "k2"
    configured["tokens"]["keys"] = [{**new_key, "sign": True}]
    async with running(**configured) as it:
        assert [(await call(it, one)).status for one in (token, newer)] == [401, 200]
    configured.pop("tokens")
    async with running(**configured) as it:
        assert (await call(it, newer)).status == 401


async def test_a_repetition_under_a_key_keeps_no_token(running, configured, tmp_path):
    async with running(**configured) as it:
        raw = urlencode({"grant_type": GRANT}).encode()
        headers = [
            FORM,
            ("authorization", f"Bearer {short()}"),
            ("idempotency-key", "k1"),
            ("content-length", str(len(raw))),
        ]
        client = Client(it.application.asgi, None)
        first, second = [await client("POST", "/v1/tokens", raw=raw, headers=headers) for _ in range(2)]
        assert (first.status, second.status) == (200, 200)
        assert first.json["access_token"] != second.json["access_token"]
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("journal.db*"))
        assert first.json["access_token"].encode() not in stored


async def test_without_keys_it_says_which_setting_is_missing(running, configured):
    configured.pop("tokens")
    async with running(**configured) as it:
        reply = await ask(it, token=short())
        assert (reply.status, "the setting `tokens`" in reply.json["error_description"]) == (404, True)
        assert (await ask(it)).status == 401
        empty = await Client(it.application.asgi, None)("GET", "/.well-known/jwks.json")
        assert empty.json == {"keys": []}
    async with running() as it:  # no issuers either
        assert (await ask(it, token=TOKENS["user:admin"])).status == 404


def ours(**changes):
    now = int(time.time())
    good = {
        "iss": GATEWAY, "aud": GATEWAY, "sub": "service:ci", "groups": ["group:platform"], "jti": "j", "iat": now,
        "nbf": now, "exp": now + 600, "orig_iss": ISSUER, "orig_id": "0" * 64, "orig": {},
    }  # fmt: skip
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


OWN = Signer("EdDSA", "k1")
HEAD = {"alg": "EdDSA", "kid": "k1", "typ": "rgw+jwt"}
NOW = int(time.time())


@pytest.mark.parametrize(
    ("payload", "head", "by"),
    [
        (ours(), {**HEAD, "typ": "JWT"}, OWN),
        (ours(), {**HEAD, "typ": "at+jwt"}, OWN),
        (ours(), {"alg": "EdDSA", "kid": "k1"}, OWN),
        (ours(), {**HEAD, "kid": "k9"}, OWN),
        (ours(), HEAD, Signer("EdDSA", "k1")),
        (ours(), {**HEAD, "alg": "ES256", "kid": "one"}, ONE),
        (ours(aud="https://other.example"), HEAD, OWN),
        (ours(aud=[GATEWAY + "/"]), HEAD, OWN),
        (ours(aud=None), HEAD, OWN),
        (ours(iss=GATEWAY + "/"), HEAD, OWN),
        (ours(iss=ISSUER, aud=AUDIENCE), HEAD, OWN),
        (ours(exp=NOW - 100), HEAD, OWN),
        (ours(exp=None), HEAD, OWN),
        (ours(exp=NOW + 7 * 3600), HEAD, OWN),
        (ours(nbf=NOW + 1000), HEAD, OWN),
        (ours(jti=None), HEAD, OWN),
        (ours(orig_iss="https://gone.example"), HEAD, OWN),
        (ours(orig_iss="api-key"), HEAD, OWN),
        (ours(sub=None), HEAD, OWN),
        (ours(sub=["service:ci"]), HEAD, OWN),
        (ours(groups="group:platform"), HEAD, OWN),
        (ours(scope=7), HEAD, OWN),
        (ours(scope="main/model:fly"), HEAD, OWN),
    ],
)
async def test_what_only_looks_like_one_is_none(running, configured, tmp_path, payload, head, by):
    pem(tmp_path / "k1.pem", OWN.private)
    async with running(**configured) as it:
        assert (await call(it, OWN.by_hand(ours(), HEAD))).status == 200
        assert (await call(it, by.by_hand(payload, head))).status == 401


async def test_it_ends_after_six_hours(tmp_path):
    now = [1_000_000.0]
    pem(tmp_path / "k.pem")
    tokens = OwnTokens(GATEWAY, SigningKeys([("k", tmp_path / "k.pem")], "k"), [ISSUER], now=lambda: now[0])
    token, _ = tokens.issue(Principal("service:ci", issuer=ISSUER), None, 10**9)
    now[0] += 21_590
    assert (await tokens.authenticate(token)).subject == "service:ci"
    now[0] += 41  # with the 30 s for clocks that differ
    with pytest.raises(Unauthenticated):
        await tokens.authenticate(token)


NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=":"), min_size=1, max_size=30)


@given(
    subject=NAMES,
    groups=st.sets(NAMES, max_size=5),
    person=st.none() | NAMES,
    told=st.dictionaries(NAMES, st.text(max_size=50) | st.booleans() | st.integers(-(2**53), 2**53), max_size=5),
    scope=st.none() | st.sets(st.sampled_from(["main/*", "*/model:read", "main/alias:set"]), min_size=1),
)
def test_any_principal_comes_back_the_same(tmp_path_factory, subject, groups, person, told, scope):
    path = tmp_path_factory.getbasetemp() / "round-trip.pem"
    if not path.exists():
        pem(path)
    tokens = OwnTokens(GATEWAY, SigningKeys([("k", path)], "k"), [ISSUER])
    principal = Principal(
        f"user:{subject}",
        frozenset(f"group:{name}" for name in groups),
        f"user:{person}" if person else None,
        issuer=ISSUER,
        claims=told,
        scope=None if scope is None else frozenset(scope),
    )
    token, identifier = tokens.issue(principal, principal.scope, 600)
    found = asyncio.run(tokens.authenticate(token))
    assert found.credential == identifier
    for name in ("subject", "groups", "acting_for", "issuer", "claims", "scope"):
        assert getattr(found, name) == getattr(principal, name)


def test_a_token_that_no_request_could_carry_is_not_issued(tmp_path):
    pem(tmp_path / "k.pem")
    tokens = OwnTokens(GATEWAY, SigningKeys([("k", tmp_path / "k.pem")], "k"), [ISSUER])
    many = frozenset(f"group:{index:040}" for index in range(200))
    with pytest.raises(InvalidRequest, match=f"over {MAX_TOKEN_BYTES}: 200 groups"):
        tokens.issue(Principal("service:ci", many, issuer=ISSUER), None, 600)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: pem(path, mode=0o640), "others may read it (mode 0640); run: chmod 600"),
        (lambda path: pem(path, mode=0o604), "others may read it (mode 0604)"),
        (lambda path: pem(path, ec.generate_private_key(ec.SECP256R1())), "not an Ed25519 key"),
        (lambda path: pem(path, protection=BestAvailableEncryption(b"x")), "without password"),
        (lambda path: (path.write_text("secret-text"), path.chmod(0o600)), "not an Ed25519 key"),
        (Path.exists, "No such file"),
    ],
)
def test_a_key_that_cannot_be_trusted_stops_the_start(tmp_path, configured, make, says):
    (tmp_path / "k1.pem").unlink()
    make(tmp_path / "k1.pem")
    with pytest.raises(BadConfiguration) as caught:
        Application(load(write_configuration(tmp_path, **configured), environ={}))
    assert caught.value.detail.startswith(f"tokens.keys: k1: {tmp_path / 'k1.pem'}")
    assert says in caught.value.detail
    assert "secret-text" not in caught.value.detail


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ({"issuer": "http://gateway.example"}, "the gateway's own https:// URL"),
        ({"issuer": "gateway"}, "the gateway's own https:// URL"),
        ({"issuer": ISSUER}, "it is one of authentication.issuers too"),
        ({"max_seconds": 21_601}, "tokens.max_seconds: 60 to 21600"),
        ({"max_seconds": 0}, "tokens.max_seconds: 60 to 21600"),
        ({"keys": []}, "exactly one has sign: true"),
        ({"keys": [{"kid": "k1", "file": "k1.pem"}]}, "exactly one has sign: true"),
        ({"keys": [{"kid": "k1", "file": name, "sign": True} for name in ("a", "b")]}, "tokens.keys.1.kid"),
        ({"keys": [{"kid": "a b", "file": "k1.pem", "sign": True}]}, "tokens.keys.0.kid"),
        ({"key": []}, "unknown key 'tokens.key'"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(tmp_path, configured, tokens, says):
    configured["tokens"] = {**configured["tokens"], **tokens}
    with pytest.raises(BadConfiguration) as caught:
        load(write_configuration(tmp_path, **configured), environ={})
    assert says in caught.value.detail


def test_nothing_to_exchange_is_said(tmp_path, configured):
    configured["authentication"] = {"api_keys": "keys.yaml"}
    with pytest.raises(BadConfiguration, match=r"no authentication\.issuers whose tokens could be exchanged"):
        load(write_configuration(tmp_path, **configured), environ={})


async def test_another_spelling_of_the_path_is_the_same_route(running, configured):
    async with running(**configured) as it:
        token = short()
        raw = urlencode({"grant_type": GRANT, "subject_token": token, "subject_token_type": TYPE + "jwt"}).encode()
        client = Client(it.application.asgi, None)
        for target in ("/v1/tokens", "/v1/tokens/", "/v1/tokens?"):
            headers = [FORM, ("content-length", str(len(raw)))]
            assert (await client("POST", target, raw=raw, headers=headers)).status == 200, target
        other = [FORM, ("content-length", str(len(raw))), ("authorization", f"Bearer {short(sub='other')}")]
        assert (await client("POST", "/v1/tokens/", raw=raw, headers=other)).status == 400


def test_the_configuration_of_the_guide_loads(tmp_path):
    text = (ROOT / "docs/identity/exchange.md").read_text()
    document = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    pem(tmp_path / "tokens-2026.pem")
    (tmp_path / "revoked.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[1])
    application = Application(load(write_configuration(tmp_path, **document), environ={}))
    assert [key["kid"] for key in application.exchange.keys["keys"]] == ["2026"]


async def test_a_job_of_github_keeps_its_claims(running, configured, tmp_path):
    configured["authentication"]["issuers"] = [
        {"preset": "github", "issuer": GITHUB["iss"], "audience": AUDIENCE, "jwks_file": "issuer.json",
         "require": {"repository_owner_id": "65"}}
    ]  # fmt: skip
    now = int(time.time())
    token = ONE.by_hand({**GITHUB, "aud": AUDIENCE, "iat": now, "nbf": now, "exp": now + 300})
    async with running(**configured) as it:
        principal = await it.application.credentials.authenticate(
            f"Bearer {(await exchanged(it, token))['access_token']}"
        )
        assert principal.subject == "service:github-74"
        assert principal.acting_for == "user:github-12"
        assert principal.groups == {"group:github-74/environment/prod", "group:github-74/ref/refs/heads/main"}
        assert principal.claims["run_id"] == "example-run-id"
