"""Tokens at the front door: the whole gateway, with keys from a real HTTP server or a file."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import subprocess
import sys
import time

import pytest
import yaml
from structlog.testing import capture_logs

from service.authentication.tokens import REFUSED
from service.errors import BadConfiguration
from service.settings import load
from tests.api.test_promotion import register, satisfy
from tests.client import V1, Client
from tests.conftest import TOKENS, write_configuration
from tests.identity.key_server import says, serving
from tests.identity.signer import AUDIENCE, ISSUER, claims, key_set, signer, with_shared_secret
from tests.promotion.flow import simple

ONE, TWO = signer("ES256", "one"), signer("RS256", "two")
READ = "/v1/registries"


def issuer(**changes):
    found = {"issuer": ISSUER, "audience": AUDIENCE, "principal": "user:{sub}", "groups": "group:{groups}", **changes}
    return {name: value for name, value in found.items() if value is not None}


def authentication(*issuers, **more):
    return {"api_keys": "keys.yaml", "issuers": list(issuers), **more}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(ONE, TWO))
    return path


@pytest.fixture
def filed(file):
    """The configuration of one issuer whose keys are in a file."""
    return authentication(issuer(jwks_file=str(file)))


async def ask(it, *authorization, method="GET", target=READ, body=None):
    client = Client(it.application.asgi, None)
    return await client(method, target, body, headers=[("authorization", value) for value in authorization])


async def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_a_token_is_taken_in_any_case_of_the_scheme(running, filed, scheme):
    async with running(authentication=filed) as it:
        assert (await ask(it, f"{scheme} {ONE.by_hand()}")).status == 200
        assert (await ask(it, f"{scheme} {ONE.by_joserfc()}")).status == 200


async def test_what_the_token_says_is_what_the_policy_and_the_events_see(running, file):
    mapping = issuer(jwks_file=str(file), acting_for="user:{actor}", principal="service:{sub}")
    async with running(authentication=authentication(mapping)) as it:
        token = ONE.by_hand(claims(sub="robot", groups=["platform"], actor="ann"))
        created = await ask(
            it, f"Bearer {token}", method="POST", target="/api/2.0/mlflow/registered-models/create", body={"name": "m"}
        )
        assert created.status == 200
        other = ONE.by_hand(claims(sub="robot", groups=["readers"], actor="ann"))
        body = {"name": "n"}
        denied = await ask(
            it, f"Bearer {other}", method="POST", target="/api/2.0/mlflow/registered-models/create", body=body
        )
        assert denied.status == 403
        events = await it.events()
        actors = [event["data"]["actor"] for event in events]
        assert {actor["subject"] for actor in actors} == {"service:robot"}
        assert {actor["acting_for"] for actor in actors} == {"user:ann"}
        assert {actor["issuer"] for actor in actors} == {ISSUER}
        assert all(len(actor["credential"]) == 64 for actor in actors)
        assert token not in json.dumps(events)


PAYLOAD = claims()
BAD = {
    "expired": ONE.by_hand(claims(exp=int(time.time()) - 3600)),
    "not yet valid": ONE.by_hand(claims(nbf=int(time.time()) + 3600)),
    "ten years": ONE.by_hand(claims(exp=int(time.time()) + 315_360_000)),
    "none": with_shared_secret(b"", header={"alg": "none"}).rpartition(".")[0] + ".",
    "shared secret": with_shared_secret(json.dumps(ONE.public).encode()),
    "issuer": ONE.by_hand(claims(iss=ISSUER + "/")),
    "userinfo": ONE.by_hand(claims(iss="https://issuer.example@evil.example")),
    "issuer twice": ONE.by_hand(b'{"iss":"https://evil.example","iss":"%s"}' % ISSUER.encode()),
    "audience": ONE.by_hand(claims(aud="other")),
    "signature": ONE.by_hand()[:-8] + "AAAAAAAA",
    "subject": ONE.by_hand(claims(sub="group:platform")),
    "no subject": ONE.by_hand(claims(sub=None)),
    "group": ONE.by_hand(claims(groups=["a:b"])),
    "no kid": signer("ES256", "x", 9).by_hand(header={"alg": "ES256"}),
    "long": "e30." + "x" * 20_000 + ".e30",
}


@pytest.mark.parametrize("how", sorted(BAD))
async def test_a_bad_token_is_one_sentence_and_one_event_with_the_reason(running, filed, how, caplog):
    caplog.set_level(logging.DEBUG)
    async with running(authentication=filed) as it:
        with capture_logs() as logs:
            answer = await ask(it, f"Bearer {BAD[how]}", method="POST", target="/api/2.0/mlflow/runs/create", body={})
        assert answer.status == 401
        assert answer.json["message"] == REFUSED
        assert (await ask(it, f"Bearer {BAD[how]}")).json["detail"] == REFUSED
        events = await it.events()
        assert len(events) == 2
        assert {event["type"] for event in events} == {"registry-gateway.authentication.fail.denied"}
        reason = events[0]["data"]["detail"]
        assert reason
        assert reason != REFUSED
        assert [line["reason"] for line in logs if line["event"] == "credential refused"] == [reason]
        secret = BAD[how].rpartition(".")[2] or BAD[how]
        for place in (answer.body.decode(), json.dumps(events), str(logs), caplog.text):
            assert secret not in place


async def test_one_authorization_header_only(running, filed):
    async with running(authentication=filed) as it:
        good = f"Bearer {ONE.by_hand()}"
        for pair in ((good, good), (good, "Bearer x"), (f"Bearer {TOKENS['user:admin']}", good)):
            assert (await ask(it, *pair)).status == 401


async def test_basic_takes_keys_and_no_tokens(running, filed):
    def basic(password):
        return "Basic " + base64.b64encode(f"token:{password}".encode()).decode()

    async with running(authentication=filed) as it:
        assert (await ask(it, basic(TOKENS["user:admin"]))).status == 200
        assert (await ask(it, basic(ONE.by_hand()))).status == 401
        assert (await it.events())[0]["data"]["detail"].startswith("a token came as Basic's password")


@pytest.mark.parametrize("size", [17 << 10, 1 << 20])
async def test_long_tokens_are_not_parsed(running, filed, size):
    async with running(authentication=filed) as it:
        token = ONE.by_hand(claims(pad="x" * size))
        begun = time.perf_counter()
        answer = await ask(it, f"Bearer {token}")
        assert answer.status == 401
        assert time.perf_counter() - begun < 0.5
        assert "over 16384 bytes" in (await it.events())[0]["data"]["detail"]


async def test_without_issuers_a_token_is_an_unknown_key(running):
    async with running() as it:
        answer = await ask(it, f"Bearer {ONE.by_hand()}")
        assert (answer.status, "unknown or has expired" in answer.json["detail"]) == (401, True)


async def test_without_keys_tokens_alone(running, file):
    async with running(authentication={"issuers": [issuer(jwks_file=str(file))]}) as it:
        assert (await ask(it, f"Bearer {ONE.by_hand()}")).status == 200
        for header in ((), (f"Bearer {TOKENS['user:admin']}",), ("Basic eDp5",)):
            assert (await ask(it, *header)).status == 401


async def test_keys_that_are_down_at_the_start_are_503_and_nobody_else_notices(running):
    async with serving(says(b"", 500)) as server:
        configured = authentication(issuer(jwks_url=server.url))
        async with running(authentication=configured) as it:
            answer = await ask(it, f"Bearer {ONE.by_hand()}")
            assert (answer.status, answer.headers["retry-after"]) == (503, "10")
            assert "nothing was done" in answer.json["detail"]
            mlflow = await ask(it, f"Bearer {ONE.by_hand()}", target="/api/2.0/mlflow/registered-models/search")
            assert mlflow.status == 503
            assert (await Client(it.application.asgi)("GET", READ)).status == 200
            await it.application.health.look()
            ready = await Client(it.application.asgi, None)("GET", "/readyz")
            assert (ready.status, ready.json["status"]) == (200, "degraded")
            assert ready.json["issuers"] == {ISSUER: "down"}
            metric = f'registry_gateway_issuer_keys_up{{issuer="{ISSUER}"}}'
            assert f"{metric} 0.0" in (await Client(it.application.asgi, None)("GET", "/metrics")).body.decode()
            assert await it.events() == []  # nobody was refused
            server.answer = says(key_set(ONE))

            async def believed():
                return (await ask(it, f"Bearer {ONE.by_hand()}")).status == 200

            await until(believed)
            assert (await Client(it.application.asgi, None)("GET", "/readyz")).json["issuers"] == {ISSUER: "up"}
            assert f"{metric} 1.0" in (await Client(it.application.asgi, None)("GET", "/metrics")).body.decode()
            server.answer = says(b"", 500)
            assert (await ask(it, f"Bearer {ONE.by_hand()}")).status == 200


async def test_a_strange_issuer_fetches_nothing(running):
    async with serving(says(key_set(ONE))) as server, serving(says(key_set(TWO))) as evil:
        configured = authentication(issuer(jwks_url=server.url))
        async with running(authentication=configured) as it:
            await until(lambda: _is(it.application.issuers.states(), {ISSUER: "up"}))
            header = TWO.header(jku=evil.url, x5u=evil.url)
            for payload in (claims(iss=evil.url), claims(iss=evil.url.removesuffix("/keys")), claims()):
                assert (await ask(it, f"Bearer {TWO.by_hand(payload, header)}")).status == 401
            assert evil.asked == []


async def _is(found, wanted):
    return found == wanted


async def test_a_changed_key_file_is_followed(running, file, filed):
    async with running(authentication=filed) as it:
        assert (await ask(it, f"Bearer {TWO.by_hand()}")).status == 200
        file.write_bytes(key_set(ONE))

        async def refused():
            return (await ask(it, f"Bearer {TWO.by_hand()}")).status == 401

        await until(refused, 5)
        file.write_bytes(b"{")
        name = f"jwks_file {file}"
        await until(lambda: _is(name in it.application.health.problems, wanted=True), 5)
        assert (await ask(it, f"Bearer {ONE.by_hand()}")).status == 200


async def test_what_is_revoked_is_refused_within_five_seconds(running, file, tmp_path):
    path = tmp_path / "revoked.yaml"
    path.write_text("")
    configured = authentication(issuer(jwks_file=str(file)), revoked=str(path))
    async with running(authentication=configured) as it:
        leaked, other = ONE.by_hand(claims(jti="leaked")), ONE.by_hand(claims(jti="other", sub="bob"))
        assert (await ask(it, f"Bearer {leaked}")).status == 200
        path.write_text("- {jti: leaked}\n")

        async def refused():
            return (await ask(it, f"Bearer {leaked}")).status == 401

        await until(refused, 5)
        assert (await ask(it, f"Bearer {other}")).status == 200
        assert (await it.events())[0]["data"]["detail"] == "the token is revoked"
        path.write_text("- {jti: leaked}\n- {nonsense: 1}\n- {subject: 'user:bob'}\n")
        await until(lambda: _is("revoked" in it.application.health.problems, wanted=True), 5)
        assert (await ask(it, f"Bearer {leaked}")).status == 401  # what was revoked stays so
        assert (await ask(it, f"Bearer {other}")).status == 200


async def test_two_audiences_of_one_issuer_are_two_mappings(running, file):
    first = issuer(jwks_file=str(file))
    second = issuer(jwks_file=str(file), audience="second", principal="service:{sub}")
    async with running(authentication=authentication(first, second)) as it:
        create = {"method": "POST", "target": "/api/2.0/mlflow/registered-models/create", "body": {"name": "x"}}
        for audience, subject in ((AUDIENCE, "user:ann"), ("second", "service:ann"), (["second", "x"], "service:ann")):
            await ask(it, f"Bearer {ONE.by_hand(claims(aud=audience))}", **create)
            assert (await it.events())[-1]["data"]["actor"]["subject"] == subject
        both = await ask(it, f"Bearer {ONE.by_hand(claims(aud=[AUDIENCE, 'second']))}")
        assert both.status == 401
        assert "is several of this issuer's" in (await it.events())[-1]["data"]["detail"]


async def test_rules_read_claims(running, file, tmp_path):
    mapping = issuer(jwks_file=str(file), principal="service:{sub}", acting_for="user:{actor}", claims=["workflow"])
    rules = "[{name: workflow, require: request.claims.workflow == 'release'}]"
    async with running(environments=simple(tmp_path, "", rules), authentication=authentication(mapping)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        target = f"{V1}/iris/environments/production/promotions"
        for workflow, status in (("test", 409), (None, 409), ("release", 200)):
            said = claims(sub="robot", groups=["platform"], actor="lead", workflow=workflow, jti=str(workflow))
            answer = await ask(
                it, f"Bearer {ONE.by_hand(said)}", method="POST", target=target, body={"version": version}
            )
            assert answer.status == status, answer.json


def test_check_names_what_is_wrong_in_key_files_and_revocations(tmp_path, file):
    (tmp_path / "revoked.yaml").write_text("- {subject: bob}\n")
    configured = authentication(issuer(jwks_file=str(file)), revoked="revoked.yaml")
    config = write_configuration(tmp_path, authentication=configured)
    command = [sys.executable, "-m", "service", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "revoked.yaml:1" in done.stderr, "Traceback" in done.stderr) == (1, True, False)
    (tmp_path / "revoked.yaml").write_text("")
    file.write_text("{}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "keys.json: The key set is not" in done.stderr) == (1, True)


def test_a_revocation_list_goes_with_issuers(tmp_path):
    config = write_configuration(tmp_path, authentication={"api_keys": "keys.yaml", "revoked": "r.yaml"})
    with pytest.raises(BadConfiguration, match=r"authentication\.revoked: .* no issuers"):
        load(config, environ={})
    assert yaml.safe_load(config.read_text())["authentication"]["revoked"] == "r.yaml"
