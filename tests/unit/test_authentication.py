"""Credentials: which header is whom, and which key files are refused."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from service.authentication.api_keys import KEY_PREFIX, MAX_KEY_CHARACTERS, ApiKeys, entry_for, new_key
from service.errors import BadConfiguration, Unauthenticated
from service.model import Principal

KEY = "rgw_key-of-ann"
SHA = hashlib.sha256(KEY.encode()).hexdigest()
ENTRY = f"- id: ann-1\n  principal: user:ann\n  sha256: {SHA}\n"
ANN = Principal("user:ann", credential="ann-1")
NOON = 1_577_880_000.0  # 2020-01-01T12:00:00Z
Load = Callable[..., ApiKeys]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str, now: float = NOON) -> ApiKeys:
        path = tmp_path / "api-keys.yaml"
        path.write_text(text, encoding="utf-8")
        return ApiKeys(path, now=lambda: now)

    return load


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "header",
    [
        f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} ", basic(f"any:{KEY}"), basic(f":{KEY}"),
        basic(f"any:{KEY}").replace("Basic", "basic"),
    ],
)  # fmt: skip
def test_a_key_comes_as_bearer_or_as_basics_password(load: Load, header: str) -> None:
    assert load(ENTRY).authenticate(header) == ANN


def test_a_principal_has_its_groups_and_the_credentials_id(load: Load) -> None:
    found = load(ENTRY + "  groups: ['group:a', 'group:b c']\n").authenticate(f"Bearer {KEY}")
    assert found == Principal("user:ann", frozenset({"group:a", "group:b c"}), credential="ann-1")
    assert found.issuer == "api-key"
    assert found.acting_for is None


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", "Bearer ", KEY, f"Token {KEY}", f"Digest {KEY}", f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}", f"Bearer {KEY.upper()}",
        f"Bearer {SHA}", f"Bearer a,{KEY}", "Basic", "Basic !!!", "Basic YQ", basic(KEY),
        basic(f"{KEY}:"), basic(f"{KEY}:x"),
        "Basic " + base64.b64encode(b"\xff:" + KEY.encode()).decode(), "Bearer " + "x" * (MAX_KEY_CHARACTERS + 1),
        "Bearer caf\u00e9",
    ],
)  # fmt: skip
def test_one_sentence_for_every_credential_that_is_none(load: Load, header: str) -> None:
    keys = load(ENTRY)
    with pytest.raises(Unauthenticated, match=r"^The credential is unknown or has expired\.") as caught:
        keys.authenticate(header)
    assert KEY not in str(caught.value)


def test_no_credential_is_told_how_to_send_one(load: Load) -> None:
    with pytest.raises(Unauthenticated, match="Authorization: Bearer"):
        load(ENTRY).authenticate(None)


@pytest.mark.parametrize(
    ("expires", "seconds_after_midnight"),
    [
        ("2020-01-01", 0),
        ("2020-01-01T12:00:00Z", 43_200),
        ("2020-01-01 12:00:00", 43_200),
        ("'2020-01-01T12:00'", 43_200),
        ("2020-01-01T12:00:00+02:00", 36_000),
        ("'2020-01-01T12:00:00-05:00'", 61_200),
    ],
)
def test_a_key_ends_at_its_instant(load: Load, expires: str, seconds_after_midnight: int) -> None:
    text, end = f"{ENTRY}  expires: {expires}\n", NOON - 43_200 + seconds_after_midnight
    assert load(text, now=end - 0.001).authenticate(f"Bearer {KEY}") == ANN
    with pytest.raises(Unauthenticated, match="has expired"):
        load(text, now=end).authenticate(f"Bearer {KEY}")


OTHER = ENTRY.replace("ann-1", "ann-2").replace(SHA, "f" * 64)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("{a: b}", 1, "Expected `array`"),
        ("- [\n", 2, "not valid YAML"),
        ("- 1\n", 1, "Expected `object`"),
        (f"- id: a\n  principal: user:a\n\n- {ENTRY[2:]}", 1, "sha256"),
        (ENTRY + "  role: admin\n", 4, "unknown key 'role'"),
        (ENTRY + OTHER + "  role: admin\n", 7, "unknown key 'role'"),
        (ENTRY + "  id: b\n", 4, "'id' stands twice"),
        (ENTRY + OTHER.replace("ann-2", "ann-1"), 4, "'ann-1' stands twice"),
        (ENTRY + OTHER.replace("f" * 64, SHA), 6, "same sha256"),
        (ENTRY.replace("user:ann", "ann"), 2, "principal 'ann'"),
        (ENTRY.replace("user:ann", "group:ann"), 2, "principal 'group:ann'"),
        (ENTRY.replace("user:ann", "role:ann"), 2, "principal 'role:ann'"),
        (ENTRY.replace("user:ann", "'user:'"), 2, "principal 'user:'"),
        (ENTRY.replace("user:ann", "user:a:b"), 2, "principal 'user:a:b'"),
        (ENTRY.replace("user:ann", '"user:a\\u200Bb"'), 2, "principal"),
        (ENTRY.replace("user:ann", "user:" + "a" * 296), 2, "301 characters, over 300"),
        (ENTRY + "  groups: [role:x]\n", 4, "group 'role:x'"),
        (ENTRY + "  groups: ['group:a', leads]\n", 4, "group 'leads'"),
        (ENTRY + "  groups: group:a\n", 4, "Expected `array`"),
        (ENTRY.replace(SHA, SHA.upper() + ""), 3, "64 lower-case"),
        (ENTRY.replace(SHA, SHA[:-1]), 3, "64 lower-case"),
        (ENTRY.replace(SHA, KEY), 3, "64 lower-case"),
        (ENTRY + "  expires: tomorrow\n", 4, "not a date and time"),
        (ENTRY + "  expires: 1577836800\n", 4, "not a date and time"),
        (ENTRY + "  expires: true\n", 4, "not a date and time"),
        (ENTRY + "  expires: 2020-13-01\n", 4, "month"),
        (ENTRY.replace("- id", "- &a\n  id") + "- *a\n", 5, "aliases are not read"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(load: Load, text: str, line: int, says: str) -> None:
    with pytest.raises(BadConfiguration, match=rf"api-keys\.yaml:{line}: .*{re.escape(says)}"):
        load(text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"nope\.yaml: No such file"):
        ApiKeys(tmp_path / "nope.yaml")


def test_an_empty_file_lets_nobody_in(load: Load) -> None:
    with pytest.raises(Unauthenticated):
        load("").authenticate(f"Bearer {KEY}")


def test_reload_follows_the_file_and_keeps_the_old_keys_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "api-keys.yaml"
    path.write_text(ENTRY)
    keys = ApiKeys(path, now=lambda: NOON)
    assert keys.reload() is False

    for bad in ("- [", ENTRY + ENTRY, ENTRY.replace("user:", "")):
        path.write_text(bad)
        with pytest.raises(BadConfiguration):
            keys.reload()
        assert keys.authenticate(f"Bearer {KEY}") == ANN
    path.unlink()
    with pytest.raises(BadConfiguration):
        keys.reload()
    assert keys.authenticate(f"Bearer {KEY}") == ANN

    path.write_text(OTHER)
    assert keys.reload() is True
    with pytest.raises(Unauthenticated):
        keys.authenticate(f"Bearer {KEY}")


def test_a_new_key_works_and_is_not_in_its_entry(load: Load) -> None:
    key = new_key()
    assert key.startswith(KEY_PREFIX)
    assert len(key) > 40
    assert key != new_key()
    entry = entry_for(key, "service:ci", ("group:ci",))
    assert key not in str(entry)
    assert load(str([entry])).authenticate(f"Bearer {key}").subject == "service:ci"


@pytest.mark.parametrize(
    ("principal", "groups"), [("ann", ()), ("group:x", ()), ("user:ann", ("leads",)), ("user:ann", ("role:x",))]
)
def test_an_entry_is_for_a_principal_and_groups(principal: str, groups: tuple[str, ...]) -> None:
    with pytest.raises(BadConfiguration, match="is not"):
        entry_for(KEY, principal, groups)
