"""The revocation list: which tokens a line takes back, and which lines are refused."""

from __future__ import annotations

import re

import pytest

from service.authentication.revoked import Revoked
from service.authentication.tokens import Token
from service.errors import BadConfiguration

NOON = 1_577_880_000.0  # 2020-01-01T12:00:00Z
ID = "ab" * 32


@pytest.fixture
def load(tmp_path):
    def load(text, now=NOON):
        path = tmp_path / "revoked.yaml"
        path.write_text(text)
        return Revoked(path, lambda: now)

    return load


@pytest.mark.parametrize(
    ("line", "covered"),
    [
        ("{jti: t1}", True),
        ("{jti: t2}", False),
        ("{jti: T1}", False),
        ("{jti: t1, issuer: 'https://a'}", True),
        ("{jti: t1, issuer: 'https://a/'}", False),
        ("{jti: t1, until: 2020-01-01T12:00:01Z}", True),
        ("{jti: t1, until: 2020-01-01T12:00:00Z}", False),
        ("{jti: t1, until: 2020-01-01}", False),
        ("{jti: t1, until: 2020-01-02, because: leaked}", True),
        (f"{{credential: {ID}}}", True),
        (f"{{credential: {'cd' * 32}}}", False),
        ("{subject: 'user:ann'}", True),
        ("{subject: 'user:bob'}", False),
        ("{subject: 'service:ann'}", False),
        ("{subject: 'user:ann', before: 2020-01-01T11:30:00Z}", True),
        ("{subject: 'user:ann', before: '2020-01-01T11:00:01+00:00'}", True),
        ("{subject: 'user:ann', before: 2020-01-01T11:00:00Z}", False),
    ],
)
def test_what_a_line_takes_back(load, line, covered):
    token = Token("https://a", {}, ID, "t1", NOON - 3600, NOON + 60)
    assert load(f"- {{jti: other}}\n- {line}\n").covers(token, "user:ann") is covered


def test_a_token_that_does_not_say_when_it_was_issued_counts_as_before(load):
    token = Token("https://a", {}, ID, None, None, NOON + 60)
    assert load("- {subject: 'user:ann', before: 2019-01-01}\n").covers(token, "user:ann")
    assert not load("- {jti: t1}\n").covers(token, "user:ann")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("- {}\n", 1, "names one of"),
        ("- {jti: a}\n- {jti: a, subject: 'user:a'}\n", 2, "names one of"),
        ("- {issuer: a}\n", 1, "names one of"),
        ("- {subject: ann}\n", 1, "is not user:"),
        ("- {subject: 'group:a'}\n", 1, "is not user:"),
        ("- {subject: 'user:a', issuer: b}\n", 1, "issuer goes with jti"),
        ("- {jti: a, before: 2020-01-01}\n", 1, "before goes with subject"),
        ("- {jti: a, until: soon}\n", 1, "not a date"),
        ("- {jti: a, until: 7}\n", 1, "not a date"),
        ("- {credential: abc}\n", 1, "64 lower-case"),
        ("- {jti: 7}\n", 1, "jti"),
        ("- {jit: a}\n", 1, "unknown key"),
        ("jti: a\n", 1, "array"),
        ("- [\n", 2, "not valid YAML"),
        ("- {jti: a, until: !!timestamp soon}\n", 1, "'soon' is no timestamp"),
        ("- {jti: a, until: !!bool maybe}\n", 1, "'maybe' is no bool"),
        (f"- {{jti: a, until: 0x{'f' * 6000}}}\n", 1, "Exceeds the limit"),
    ],
)
def test_a_line_that_is_wrong_is_named(load, text, line, says):
    with pytest.raises(BadConfiguration, match=rf"revoked\.yaml:{line}: .*{re.escape(says)}"):
        load(text)


def test_a_line_that_names_an_issuer_that_is_not_configured_is_refused(tmp_path):
    path = tmp_path / "revoked.yaml"
    path.write_text("- {jti: a, issuer: 'https://a/'}\n")
    with pytest.raises(BadConfiguration, match=r"revoked\.yaml:1: .*no issuer 'https://a/' is configured.*https://a$"):
        Revoked(path, issuers={"https://a"})
    path.write_text("- {jti: a, issuer: 'https://a'}\n- {jti: b}\n")
    revoked = Revoked(path, issuers={"https://a"})
    path.write_text("- {jti: a, issuer: 'https://b'}\n")
    with pytest.raises(BadConfiguration, match="is configured"):
        revoked.reload()


def test_a_missing_file_is_no_empty_list(tmp_path):
    with pytest.raises(BadConfiguration, match="No such file"):
        Revoked(tmp_path / "revoked.yaml")


def test_the_file_is_followed_and_bad_content_takes_nothing_back(load, tmp_path):
    token = Token("https://a", {}, ID, "t1", NOON, NOON + 60)
    revoked = load("")
    assert not revoked.covers(token, "user:ann")
    assert revoked.reload() is False
    (tmp_path / "revoked.yaml").write_text("- {jti: t1}\n")
    assert revoked.reload() is True
    assert revoked.covers(token, "user:ann")
    (tmp_path / "revoked.yaml").write_text("- {}\n")
    with pytest.raises(BadConfiguration):
        revoked.reload()
    assert revoked.covers(token, "user:ann")
