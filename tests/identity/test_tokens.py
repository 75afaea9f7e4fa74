"""Which tokens are believed: every way to be wrong is a row, and good ones come from two signers."""

from __future__ import annotations

import hashlib
import json
import math
import time

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from service.authentication.keysets import ALGORITHMS, BadKeySetError, FixedKeys, KeySet, parse_key_set
from service.authentication.tokens import REFUSED, TokenRules, Verifier, looks_like_token, parse
from service.errors import Unauthenticated
from tests.identity.signer import (
    AUDIENCE,
    ISSUER,
    Signer,
    b64,
    claims,
    key_set,
    segment,
    signer,
    with_shared_secret,
)

RS, ES = signer("RS256"), signer("ES256", "k2")
NOW = int(time.time())
ALL = frozenset(ALGORITHMS)


async def verify(token, *signers, keys=None, now=None, **rules):
    found = FixedKeys(keys or parse_key_set(key_set(*(signers or (RS, ES)))))
    verifier = Verifier(TokenRules(ISSUER, AUDIENCE, **rules), found, **({"now": lambda: now} if now else {}))
    return await verifier.verify(parse(token))


async def reason(token, *signers, **rules):
    with pytest.raises(Unauthenticated) as caught:
        await verify(token, *signers, **rules)
    assert caught.value.detail == REFUSED  # one sentence for all
    assert token not in caught.value.reason
    assert token.rpartition(".")[2][:20] not in caught.value.reason or not token.rpartition(".")[2]
    return caught.value.reason


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize("how", ["by_hand", "by_joserfc"])
async def test_a_good_token_is_believed(algorithm, how):
    one = signer(algorithm)
    token = await verify(getattr(one, how)(claims(sub="ann")), one, algorithms=ALL)
    assert (token.issuer, token.claims["sub"], token.jti) == (ISSUER, "ann", "t1")
    assert token.id == hashlib.sha256(f"{ISSUER}\0t1".encode()).hexdigest()
    assert token.issued == token.expires - 300


async def test_without_jti_the_token_itself_is_what_is_hashed():
    token = RS.by_hand(claims(jti=None))
    assert (await verify(token)).id == hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()


PEM = RS.private.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
DER = RS.private.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
UNSIGNED = f"{segment({'alg': 'none', 'typ': 'JWT'})}.{segment(claims())}."


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (UNSIGNED, "alg 'none' is not one of"),
        (UNSIGNED + RS.by_hand().rpartition(".")[2], "alg 'none' is not one of"),
        (RS.by_hand(header=RS.header(alg="None")), "alg 'None'"),
        (RS.by_hand(header=RS.header(alg="nOnE")), "alg 'nOnE'"),
        (RS.by_hand(header=RS.header(alg=None)), "alg None"),
        (RS.by_hand(header={**RS.header(), "alg": ["RS256"]}), "alg ['RS256']"),
        (with_shared_secret(PEM), "alg 'HS256'"),
        (with_shared_secret(PEM.strip()), "alg 'HS256'"),
        (with_shared_secret(DER), "alg 'HS256'"),
        (with_shared_secret(json.dumps(RS.public).encode()), "alg 'HS256'"),
        (with_shared_secret(PEM, header=RS.header()), "the signature is wrong"),
        (ES.by_hand(header=ES.header(alg="RS256")), "no one key by kid 'k2' for RS256"),  # the types swapped
        (RS.by_hand(header=RS.header(alg="ES256")), "no one key by kid 'k1' for ES256"),
        (ES.by_hand(header=ES.header(kid="k1")), "no one key by kid 'k1' for ES256"),
        (RS.by_hand(header=RS.header(alg="PS256")), "alg 'PS256'"),  # not configured
        (RS.by_hand(header=RS.header(kid="k9")), "no one key by kid 'k9'"),
        (RS.by_hand(header=RS.header(kid="K1")), "no one key by kid 'K1'"),
        (RS.by_hand(header={**RS.header(), "kid": ["k1"]}), "kid is not a text"),
        (RS.by_hand(header={**RS.header(), "kid": ""}), "kid is not a text"),
        (RS.by_hand(header=RS.header(kid="k" * 600)), "kid is not a text"),
        (RS.by_hand(header=RS.header(crit=["exp"])), "crit"),
        (RS.by_hand(header=RS.header(crit=["b64"], b64=False)), "crit"),
        (RS.by_hand(header=RS.header(crit=[])), "crit"),
        (Signer("RS256").by_hand(), "the signature is wrong"),
        (Signer("ES256", "k2").by_hand(), "the signature is wrong"),
        (ES.by_hand().rpartition(".")[0] + "." + b64(bytes(64)), "the signature is wrong"),
        (ES.by_hand().rpartition(".")[0] + ".", "the signature is wrong"),
        (RS.by_hand().rpartition(".")[0] + "." + b64(b"x" * 256), "the signature is wrong"),
        (".".join([RS.by_hand().split(".")[0], segment(claims(sub="bob")), RS.by_hand().split(".")[2]]), "signature"),
        (RS.by_hand(b'{"iss":"a","iss":"b"}'), "stands twice"),
        (RS.by_hand(header=b'{"alg":"RS256","alg":"none","kid":"k1"}'), "stands twice"),
        (RS.by_hand(b"[]"), "the payload is not a JSON object"),
        (RS.by_hand(header=b'"RS256"'), "the header is not a JSON object"),
        (RS.by_hand(b"{"), "the payload is not strict JSON"),
        (RS.by_hand(b"\xff{}"), "the payload is not strict JSON"),
        (RS.by_hand(b'{"exp": NaN}'), "the payload is not strict JSON"),
        (RS.by_hand(b'{"exp": 1e999}'), "the payload is not strict JSON"),
        (RS.by_hand(b"[" * 9000), "the payload is not strict JSON"),
        (RS.by_hand(claims(pad="x" * 20_000)), "over 16384 bytes"),
        ("e30." + "x" * (1 << 20) + ".e30", "over 16384 bytes"),
        (RS.by_hand() + "=", "not three parts"),
        (RS.by_hand() + ".x", "not three parts"),
        (RS.by_hand().replace(".", "..", 1), "not three parts"),
        ("a.b", "not three parts"),
        ("a.e30.", "the header is not Base64url"),
        ("e31.e30.", "the header is not Base64url in its only spelling"),
    ],
)  # fmt: skip
async def test_what_is_no_good_token(token, says):
    assert says in await reason(token)


@pytest.mark.parametrize(
    "issuer",
    [
        ISSUER + "/", ISSUER[:-1], ISSUER + ".evil.example", "https://user@issuer.example", ISSUER.upper(),
        "http://issuer.example", "https://issuer.example:443", "https://Issuer.example", f" {ISSUER}", ISSUER + "#",
        ISSUER + "?", ISSUER + "/x", "//issuer.example", "https:issuer.example", "", [ISSUER], {"": ISSUER}, 1,
        "https://issuer.example@evil.example", ISSUER + "\x00", "https://issuer\u3002example",
    ],
)  # fmt: skip
async def test_another_issuer(issuer):
    assert "the issuer" in await reason(RS.by_hand(claims(iss=issuer)))
    assert "the issuer None" in await reason(RS.by_hand(claims(iss=None)))


@pytest.mark.parametrize(
    "audience",
    [
        AUDIENCE + "/", AUDIENCE[:-1], AUDIENCE.upper(), "*", "", f"{AUDIENCE} other", f"other,{AUDIENCE}", [], ["x"],
        [AUDIENCE, 1], [[AUDIENCE]], {AUDIENCE: 1}, True, 1, f" {AUDIENCE}",
    ],
)  # fmt: skip
async def test_another_audience(audience):
    assert "the audience" in await reason(RS.by_hand(claims(aud=audience)))
    assert "the audience None" in await reason(RS.by_hand(claims(aud=None)))


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["other", AUDIENCE]])
async def test_a_list_of_audiences_holds_ours(audience):
    assert (await verify(RS.by_hand(claims(aud=audience)))).claims["aud"] == audience


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"exp": NOW - 31}, "it expired"),
        ({"exp": None}, "exp is missing"),
        ({"exp": str(NOW + 300)}, "exp is not a number"),
        ({"exp": True}, "exp is not a number"),
        ({"exp": [NOW + 300]}, "exp is not a number"),
        ({"exp": 10**400}, "exp is not a number"),
        ({"exp": -1}, "it expired"),
        ({"nbf": NOW + 31}, "not valid before"),
        ({"nbf": "0"}, "nbf is not a number"),
        ({"iat": NOW + 31}, "it was issued"),
        ({"iat": "0"}, "iat is not a number"),
        ({"exp": NOW + 10 * 365 * 86_400}, "max_lifetime_seconds 86400"),
        ({"exp": NOW + 86_401}, "it lives 86401 s"),
        ({"exp": NOW + 10 * 365 * 86_400, "iat": None}, "max_lifetime_seconds 86400"),
        ({"iat": NOW - 86_300, "exp": NOW + 200}, "it lives 86500 s"),
        ({"jti": ""}, "jti is not a text"),
        ({"jti": 7}, "jti is not a text"),
        ({"jti": "x" * 1025}, "jti is not a text"),
    ],
)
async def test_times_and_identifiers(changes, says):
    token = claims(iat=NOW, nbf=NOW, exp=NOW + 300)
    token.update(changes)
    assert says in await reason(RS.by_hand({k: v for k, v in token.items() if v is not None}), now=NOW)


@pytest.mark.parametrize("changes", [{"exp": NOW - 29}, {"nbf": NOW + 30}, {"iat": NOW + 30}, {"exp": NOW + 0.5}])
async def test_clocks_differ_by_the_leeway(changes):
    assert await verify(RS.by_hand({**claims(iat=NOW - 60, nbf=NOW - 60, exp=NOW + 300), **changes}), now=NOW)
    if changes == {"exp": NOW - 29}:
        assert "expired" in await reason(RS.by_hand({**claims(), **changes}), now=NOW, leeway_seconds=0)


@pytest.mark.parametrize(
    ("asked", "sent", "good"),
    [
        (None, "anything", True), ("at+jwt", "at+jwt", True), ("at+jwt", "application/AT+JWT", True),
        ("at+jwt", "JWT", False), ("at+jwt", None, False), ("JWT", "jwt", True), ("JWT", ["JWT"], False),
    ],
)  # fmt: skip
async def test_typ_if_it_is_configured(asked, sent, good):
    token = RS.by_hand(header={**RS.header(typ=None), **({"typ": sent} if sent else {})})
    if good:
        assert await verify(token, type=asked)
    else:
        assert "typ is" in await reason(token, type=asked)


async def test_keys_in_the_header_are_not_read():
    mallory = Signer("RS256", "m1")
    named = {"jwk": mallory.public, "jku": "https://evil.example/keys", "x5u": "https://evil.example/c", "x5c": ["AA"]}
    assert "no one key by kid 'm1'" in await reason(mallory.by_hand(header=mallory.header(**named)))
    assert "signature" in await reason(mallory.by_hand(header=mallory.header(**named, kid="k1")))
    assert await verify(RS.by_hand(header=RS.header(**named)))


async def test_without_kid_there_is_exactly_one_key_that_fits():
    token = RS.by_hand(header=RS.header(kid=None))
    assert await verify(token, RS, ES)  # only one of them is RSA
    assert await verify(token, RS)
    assert "without kid" in await reason(token, RS, signer("RS256", "other", 1))
    assert "without kid" in await reason(token, ES)
    twice = signer("RS256", "k1", 2)
    assert "by kid 'k1'" in await reason(RS.by_hand(), RS, twice)


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"}, {"use": None}, {"key_ops": ["sign"]}, {"key_ops": "verify"}, {"alg": "RS512"}, {"alg": "none"},
        {"alg": 7}, {"kty": "oct"}, {"kty": "rsa"}, {"kty": ["RSA"]}, {"d": "AQAB"}, {"p": "AQAB"}, {"k": "c2VjcmV0"},
        {"kid": 7}, {"n": "%%"}, {"n": ""}, {"n": 7}, {"n": None}, {"e": "AA"}, {"e": "Ag"},
        {"e": b64(b"\x01" + bytes(20) + b"\x01")},
    ],
)  # fmt: skip
async def test_keys_that_are_left_out(change):
    entry = {**RS.public, **change}
    keys = parse_key_set(json.dumps({"keys": [entry, "junk", 7, None, ES.public]}).encode())
    if change == {"alg": "RS512"}:  # the key is for another algorithm
        assert len(keys.keys) == 2
    else:
        assert [key.kid for key in keys.keys] == ["k2"]
    assert "no one key by kid 'k1'" in await reason(RS.by_hand(), keys=keys)


@pytest.mark.parametrize("bits", [1024, 2047])
def test_weak_keys_are_left_out(bits):
    with pytest.raises(BadKeySetError, match="None of the 1 keys"):
        parse_key_set(key_set(Signer("RS256", bits=bits)))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({**ES.public, "crv": "secp256k1"}, "None of"),
        ({**ES.public, "crv": "P-384"}, "None of"),
        ({**ES.public, "x": ES.public["y"]}, "None of"),  # not on the curve
        ({**signer("EdDSA").public, "crv": "X25519"}, "None of"),
        ({**signer("EdDSA").public, "x": "AAAA"}, "None of"),
    ],
)
def test_broken_keys_are_left_out(entry, says):
    with pytest.raises(BadKeySetError, match=says):
        parse_key_set(json.dumps({"keys": [entry]}).encode())


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not valid JSON"), (b"<html>", "not valid JSON"), (b"[]", "is not"), (b"{}", "is not"),
        (b'{"keys": {}}', "is not"), (b'{"keys": []}', "None of the 0 keys"), (b'{"keys": [], "keys": []}', "twice"),
        (json.dumps({"keys": [{}] * 101}).encode(), "101 keys; at most 100"), (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested|digits|deep"),
    ],
)  # fmt: skip
def test_what_is_no_key_set(raw, says):
    with pytest.raises(BadKeySetError, match=says):
        parse_key_set(raw)


def test_a_key_verifies_only_what_it_fits():
    key = parse_key_set(key_set(RS)).keys[0]
    signed = b"x"
    assert key.verifies("RS256", signed, RS.raw(signed))
    assert not key.verifies("ES256", signed, RS.raw(signed))
    assert not key.verifies("HS256", signed, RS.raw(signed))
    assert not key.verifies("RS256", b"y", RS.raw(signed))
    other = Signer("RS512")
    entry = {**other.public, "alg": "RS256"}  # it says what it is for
    only = parse_key_set(json.dumps({"keys": [entry]}).encode()).keys[0]
    assert not only.verifies("RS512", signed, other.raw(signed))
    assert KeySet(()).find("k1", "RS256") is None


@pytest.mark.parametrize("algorithms", [{"none"}, {"HS256"}, {"RS256", "HS512"}, set()])
def test_no_shared_secrets_and_no_none(algorithms):
    with pytest.raises(ValueError, match="algorithms"):
        Verifier(TokenRules(ISSUER, AUDIENCE, frozenset(algorithms)), FixedKeys(KeySet(())))


@pytest.mark.parametrize("leeway", [-1, 61, math.inf, math.nan])
def test_the_leeway_is_a_minute_at_most(leeway):
    with pytest.raises(ValueError, match="leeway"):
        Verifier(TokenRules(ISSUER, AUDIENCE, leeway_seconds=leeway), FixedKeys(KeySet(())))


@pytest.mark.parametrize(
    ("text", "good"),
    [("a.b.c", True), ("a..", True), ("a.b.", True), ("rgw_x", False), ("a.b", False), (".b.c", False), ("", False),
     ("a.b.c.d.e", False), ("a.b.c d", False), ("a.b.é", False)],
)  # fmt: skip
def test_what_looks_like_a_token(text, good):
    assert looks_like_token(text) is good


GOOD = ES.by_hand()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(GOOD) - 1), st.sampled_from("AZaz09-_.=+/ \x00é"))
@example(len(GOOD) - 1, "x")
async def test_no_changed_character_goes_unnoticed(at, character):
    changed = GOOD[:at] + character + GOOD[at + 1 :]
    if changed != GOOD:
        with pytest.raises(Unauthenticated):
            await verify(changed)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}\.[A-Za-z0-9_-]{0,40}"))
def test_any_text_is_taken_apart_or_refused(text):
    refusal = None
    try:
        parse(text)
    except Unauthenticated as error:
        refusal = error
    assert refusal is None or (refusal.detail == REFUSED and refusal.reason.isascii())
