"""No secret is in an event or a kept document, and none of them is too large, whatever was asked."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from service.audit import Operation
from service.change import AliasSet, TagSet, VersionCreate
from service.event import MAX_EVENT_BYTES, Asked, canonical_json
from service.masking import NO_MASKS, Masks
from service.model import Call, Decision, Finding, Need, Principal, Request, Verdict
from service.modes import Denial

KEY = b"k" * 32
MASKS = Masks(("*_token", "password", "db.*"), KEY)
SECRET = "s3cr3t-value-of-a-tag"
TAG = r"hmac-sha256:[0-9a-f]{8}:[0-9a-f]{64}"


@pytest.mark.parametrize(
    ("key", "hidden"),
    [
        ("api_token", True),
        ("API_TOKEN", True),
        ("_token", True),
        ("password", True),
        ("db.x", True),
        ("db.", True),
        ("my\n_token", True),
        ("token", False),
        ("passwords", False),
        ("dbx", False),
        ("", False),
    ],
)
def test_a_pattern_names_keys(key: str, hidden: bool) -> None:
    assert (MASKS.tag(key, "v") != "v") is hidden


def test_a_mask_is_an_hmac_of_key_and_value_with_the_keys_identifier() -> None:
    expected = hmac.new(KEY, b"registry-gateway tag\0api_token\0" + SECRET.encode(), hashlib.sha256).hexdigest()
    assert MASKS.tag("api_token", SECRET) == f"hmac-sha256:{MASKS.kid}:{expected}"
    assert MASKS.tag("other_token", SECRET) != MASKS.tag("api_token", SECRET)
    assert MASKS.tag("api_token", MASKS.tag("api_token", SECRET)) == MASKS.tag("api_token", SECRET)
    assert Masks(("*",), b"x" * 32).kid != MASKS.kid


@pytest.mark.parametrize(
    "document",
    [
        {"kind": "TagSet", "key": "api_token", "value": SECRET},
        {"tags": [{"key": "api_token", "value": SECRET}]},
        {"tags": {"api_token": SECRET, "plain": "p"}},
        {"candidate": {"run": {"tags": {"api_token": SECRET}}}},
        {"tags": {"float": {"api_token": SECRET}}},
        {"facts": {"candidate.tags.api_token": SECRET}},
        {"facts": {"candidate.run.tags['db.x']": SECRET}},
        {"facts": {"candidate.tags": {"password": SECRET}}},
        {"facts": {'incumbent.tags["password"]': SECRET}},
        {"change": {"key": "api_token", "value": SECRET}, "detail": f"the registry said: {SECRET} is no value"},
        {"change": {"key": "api_token", "value": SECRET}, "notes": [f"{SECRET[:15]}"]},
        {"tags": {"password": SECRET}, "findings": [{"because": f"{SECRET} is low"}]},
    ],
)
def test_a_sensitive_value_is_hidden_wherever_it_stands(document: Any) -> None:
    masked = json.dumps(MASKS.document(document))
    assert SECRET[:12] not in masked
    assert re.search(TAG, masked)
    assert MASKS.document(MASKS.document(document)) == MASKS.document(document)
    assert SECRET[:12] in json.dumps(NO_MASKS.document(document))


def test_a_value_is_hidden_that_only_the_message_beside_it_holds() -> None:
    message = {"tags": [{"key": "password", "value": 'a"quoted\\secret'}]}
    masked = MASKS.document({"detail": f"bad {json.dumps(message)}"}, message)
    assert "quoted" not in masked["detail"]


def test_nobody_hides_what_they_change_by_a_tag_of_its_name() -> None:
    data = {"model": "iris", "actor": {"subject": "user:ann"}, "resource": "models/iris/tags/password"}
    change = {"key": "password", "value": "iris"}
    assert MASKS.document({**data, "change": change})["model"] == "iris"
    masked = MASKS.document({**data, "change": {"key": "password", "value": "user:ann"}})
    assert masked["actor"] == data["actor"]
    assert masked["resource"] == data["resource"]


@pytest.mark.parametrize(
    ("text", "recorded"),
    [
        ("s3://bucket/path", "s3://bucket/path"),
        ("https://user:pw@host/path", "https://***@host/path"),
        ("see https://tok@host, and git+ssh://a:b@c/d@e", "see https://***@host, and git+ssh://***@c/d@e"),
        ("https://u:p@w@host/", "https://***@host/"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://host?x=a@b", "https://host?x=a@b"),
        ("ann@example.com", "ann@example.com"),
        ("locations/https%3A%2F%2Fu%3Apw@host%2Fx", "locations/https%3A%2F%2F***@host%2Fx"),
        ("https%3A%2F%2Fu%3Apw%40host", "https%3A%2F%2F***@host"),
        ("models/a@b", "models/a@b"),
        ("\ud800", "?"),
    ],
)
def test_userinfo_of_urls_is_hidden(text: str, recorded: str) -> None:
    assert NO_MASKS.document({"a": [text]}) == {"a": [recorded]}
    assert NO_MASKS.document({text: 1}) == ({recorded: 1} if text != "\ud800" else {"?": 1})
    assert NO_MASKS.same_text(recorded, text) or text == "\ud800"


def test_the_reconciler_compares_what_is_recorded() -> None:
    recorded = MASKS.tag("password", "old")
    assert MASKS.same_tag(recorded, "password", "old") is True
    assert MASKS.same_tag(recorded, "password", "new") is False
    assert MASKS.same_tag(recorded, "password", None) is False
    assert MASKS.same_tag(None, "password", None) is True
    assert MASKS.same_tag("old", "password", "old") is True, "recorded before the tag was sensitive"
    assert Masks(("password",), b"z" * 32).same_tag(recorded, "password", "old") is None, "another key"
    assert NO_MASKS.same_tag(recorded, "password", "old") is None, "no key"
    assert NO_MASKS.same_tag("a", "plain", "b") is False


def test_a_digest_that_would_prove_a_guess_is_keyed() -> None:
    secret, plain = {"key": "password", "value": "0000"}, {"key": "plain", "value": "0000"}
    assert MASKS.digest("d", secret) != "d"
    assert MASKS.digest("d", secret) == MASKS.digest("d", secret)
    assert MASKS.digest("d", plain) == "d"
    assert NO_MASKS.digest("d", secret) == "d"


def test_a_kept_answer_is_changed_only_where_it_must_be() -> None:
    plain = '{"run":  {"tags": [{"key": "a", "value": "b"}]}}'
    assert MASKS.answer(plain) == plain
    assert MASKS.answer("no json") == "no json"
    assert SECRET not in MASKS.answer(json.dumps({"run": {"tags": [{"key": "password", "value": SECRET}]}}))


TEXT = st.text(max_size=30) | st.text(min_size=200, max_size=3000) | st.just("\u2028\x00\x1b[31m\r\n\ud800" * 40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=60) | st.dictionaries(TEXT, inner, max_size=60),
    max_leaves=60,
)
FINDINGS = st.builds(
    Finding,
    rule=TEXT,
    passed=st.booleans(),
    because=TEXT,
    missing=st.lists(TEXT, max_size=30).map(tuple),
    facts=st.dictionaries(TEXT, JSON, max_size=5),
    self_reported=st.lists(TEXT, max_size=30).map(tuple),
)
PRINCIPALS = st.builds(
    Principal,
    subject=st.text(max_size=300),
    groups=st.frozensets(st.text(max_size=300), max_size=40),
    acting_for=st.none() | st.text(max_size=300),
    issuer=TEXT,
    credential=TEXT,
    claims=st.dictionaries(TEXT, JSON, max_size=10),
)
CHANGES = st.one_of(
    st.builds(TagSet, TEXT, TEXT, st.just("api_token"), TEXT.map(lambda text: SECRET + text)),
    st.builds(VersionCreate, TEXT, TEXT.map(lambda text: f"https://user:{SECRET}@host/{text}"), TEXT),
    st.builds(AliasSet, TEXT, TEXT, TEXT),
)


@settings(
    max_examples=60,
    phases=[Phase.generate],  # to shrink such texts takes minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    deadline=None,
)
@given(data=st.data(), principal=PRINCIPALS, change=CHANGES, multiplied=st.sampled_from([1, 30]))
def test_no_operation_makes_an_event_that_is_too_large_or_more_than_a_line_or_tells_a_secret(
    data: st.DataObject, principal: Principal, change: Any, multiplied: int
) -> None:
    tags = {"tags": [{"key": "password", "value": SECRET}]}
    request = Request("r", "POST", "/", tags)
    needs = (Need(data.draw(st.sampled_from(["tag:set", "version:create"])), data.draw(TEXT)),)
    call = Call(principal=principal, registry="main", name="x", needs=needs, change=change, request=request)
    made = Operation.opened(call, 0.0)
    findings = tuple(data.draw(st.lists(FINDINGS, max_size=4)) * multiplied)
    asked = [Asked(data.draw(st.booleans()), "a:b", data.draw(TEXT)) for _ in range(3)]
    made = dataclasses.replace(
        made,
        verdict=Verdict(findings=findings, stale_approvals=({"by": "b" * 400, "because": "c" * 900},) * multiplied),
        verdicts={data.draw(TEXT): Verdict(findings=findings) for _ in range(2)},
        decision=Decision(row=data.draw(TEXT)),
        before=data.draw(JSON),
        after=data.draw(JSON),
        reason=data.draw(TEXT),
        detail=f"{data.draw(TEXT)} {SECRET} {data.draw(TEXT)}",
        notes=data.draw(st.lists(TEXT, max_size=20)) * multiplied,
        asked=dict.fromkeys(asked),
        would_deny=[Denial("a:b", data.draw(TEXT))] * multiplied,
    )
    for phase in ("intent", "outcome"):
        event = made.event(phase, None, f"/registry-gateway/{'c' * 63}/{'r' * 63}/{'0' * 36}", 0.0, MASKS)
        raw = canonical_json({**event, "data": {**event["data"], "sequence": 10**15, "previous": "f" * 64}})
        assert len(raw) <= MAX_EVENT_BYTES
        assert all(0x20 <= byte < 0x7F for byte in raw)
        read = json.loads(raw, parse_constant=pytest.fail)
        assert read["data"]["operation"] == made.id
        assert SECRET not in raw.decode()
        assert set(read["data"]) >= {"phase", "operation", "outcome", "actor", "action", "resource", "registry"}
        assert read["data"]["verdict"]["allowed"] is False
