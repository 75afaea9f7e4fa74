"""Strict reading: one text has one meaning, or none."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.strict import (
    MAX_DEPTH,
    check_alias,
    check_name,
    check_text,
    check_version,
    decode_segment,
    has_control,
    parse_json,
)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'{"a": 1, "\\u0061": 2}', "'a' stands twice"),
        (b'{"a": 1, "a": 1}', "'a' stands twice"),
        (b'{"x": [{"b": 1, "c": 2, "b": 3}]}', "'b' stands twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"[Infinity]", "Infinity is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        (b'"\\ud800"', "lone surrogate"),
        (b'"\\udc00\\ud800"', "lone surrogate"),
        (b'{"\\udfff": 1}', "lone surrogate"),
        (b'[{"a": ["\\ud83d"]}]', "lone surrogate"),
        (b"\xff", "not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),  # a surrogate in UTF-8's clothes
        (b'"\xc0\x80"', "not UTF-8"),  # an overlong NUL
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b"{} {}", "not valid JSON"),
        (b"{}\x00", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b"01", "not valid JSON"),
        (b"+1", "not valid JSON"),
        (b'"\x01"', "not valid JSON"),
        (b"9" * 5000, "too many digits"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "nested deeper"),
        (b'{"a":' * (MAX_DEPTH + 2) + b"1" + b"}" * (MAX_DEPTH + 2), "nested deeper"),
    ],
)
def test_refuses_what_parsers_disagree_about(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        parse_json(raw)


def test_reports_the_position_of_bytes_that_are_not_utf8() -> None:
    with pytest.raises(InvalidRequest, match="byte 2"):
        parse_json(b'{"\xff": 1}')


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b' {"a": [1, -2.5, true, null]} ', {"a": [1, -2.5, True, None]}),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        ('"caf\u00e9"'.encode(), "caf\u00e9"),
        (b'{"a": {"k": 1}, "b": {"k": 1}}', {"a": {"k": 1}, "b": {"k": 1}}),
        (b'{"a": 1, "A": 2}', {"a": 1, "A": 2}),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
    ],
)
def test_reads_what_is_plain(raw: bytes, value: object) -> None:
    assert parse_json(raw) == (json.loads(raw) if value is None else value)


_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
_documents = st.recursive(
    _scalars | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=20,
)


@given(_documents)
def test_reads_every_document_that_json_writes(document: object) -> None:
    assert parse_json(json.dumps(document).encode()) == document
    assert parse_json(json.dumps(document, ensure_ascii=False).encode()) == document


@given(st.binary(max_size=200))
def test_answers_any_bytes_with_a_value_or_invalid_request(raw: bytes) -> None:
    try:
        value = parse_json(raw)
    except InvalidRequest:
        return
    assert value == json.loads(raw)


@pytest.mark.parametrize(
    ("raw", "decoded"),
    [("iris", "iris"), ("a%20b", "a b"), ("caf%C3%A9", "caf\u00e9"), ("a+b", "a+b"), ("100%25", "100%"), ("%2A", "*")],
)
def test_decodes_a_segment_once(raw: str, decoded: str) -> None:
    assert decode_segment(raw) == decoded


@pytest.mark.parametrize(
    "raw",
    [
        "a%2Fb", "a%2fb", "a/b", "a%5Cb", "a\\b", "%252F", "%252e%252e", "%2541", "%ff", "%C3", "%ED%A0%80", "%C0%AF",
        "a%00", "a%0D%0Ab", "a%7F", "%E2%80%AE", "%E2%80%8B", "%E2%80%A8", "a%C2%85b",
    ],
)  # fmt: skip
def test_refuses_a_segment_that_means_two_things(raw: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_segment(raw)


@given(st.text(max_size=20))
def test_a_decoded_segment_holds_nothing_that_could_split_or_hide(text: str) -> None:
    try:
        decoded = decode_segment(quote(text, safe="", errors="replace"))
    except InvalidRequest:
        return
    assert "/" not in decoded
    assert "\\" not in decoded
    assert not has_control(decoded)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "missing"),
        ("x" * 1001, "more than 1000 characters"),
        (" a", "white space"),
        ("a ", "white space"),
        ("a\u00a0", "white space"),
        ("a/b", r"U\+002F"),
        ("a:b", r"U\+003A"),
        ("a\x00b", r"U\+0000"),
        ("a\nb", r"U\+000A"),
        ("a\u200bb", r"U\+200B"),
        ("a\u202eb", r"U\+202E"),
        ("a\u2028b", r"U\+2028"),
        ("a\ufeffb", r"U\+FEFF"),
        ("\ud800", r"U\+D800"),
        ("\ufb01t", "write it as 'fit'"),
        ("\uff11", "write it as '1'"),
        ("e\u0301", "compatibility"),
    ],
)
def test_refuses_a_new_name_that_looks_like_another(name: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        check_name(name, "model name")


@pytest.mark.parametrize("name", ["iris", "a b", "team-a.model_1@x", "caf\u00e9", "\u6a21\u578b", "a*", "a,b", "a%2Fb"])
def test_takes_a_new_name_as_it_is(name: str) -> None:
    assert check_name(name, "model name") == name


def test_an_existing_name_may_be_one_that_no_new_one_may_be() -> None:
    assert check_text(" old/name:\uff11 ", "name") == " old/name:\uff11 "
    for bad in ("", "a\x00", "a\u200d"):
        with pytest.raises(InvalidRequest, match="The name"):
            check_text(bad, "name")


@pytest.mark.parametrize("version", ["1", "10", "9999999999"])
def test_takes_a_version_number(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize(
    "version",
    [
        "",
        "0",
        "01",
        "+1",
        "-1",
        " 1",
        "1 ",
        "1\n",
        "1_0",
        "1.0",
        "1e3",
        "\uff11",
        "\u0661",
        "\u00b2",
        "latest",
        "10000000000",
    ],
)
def test_refuses_every_other_spelling_of_a_version(version: str) -> None:
    with pytest.raises(InvalidRequest, match="not a number"):
        check_version(version)


@pytest.mark.parametrize("alias", ["champion", "A_b-1", "x" * 255, "v", "v1a", "latest2", "_", "1"])
def test_takes_an_alias(alias: str) -> None:
    assert check_alias(alias) == alias


@pytest.mark.parametrize(
    "alias",
    ["", "x" * 256, "latest", "LATEST", "Latest", "v1", "V12", "v007", "a b", "a/b", "a.b", "a\n", "\uff41", "a@b"],
)
def test_refuses_an_alias_that_is_reserved_or_not_plain(alias: str) -> None:
    with pytest.raises(InvalidRequest, match="alias"):
        check_alias(alias)
