"""Page tokens: for one caller, one query, unchanged."""

from __future__ import annotations

import base64
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.model import Call, Principal, Request
from service.page_tokens import PageTokens

TOKENS = PageTokens(b"s" * 32)
REQUEST = Request(
    "ModelRegistryService.searchRegisteredModels", "GET", "/x", {"filter": "name = 'a'", "max_results": 5}
)
CALL = Call(principal=Principal("user:a"), registry="main", name="searchRegisteredModels", needs=(), request=REQUEST)


def asking(**message):
    return dataclasses.replace(CALL, request=dataclasses.replace(REQUEST, message={**REQUEST.message, **message}))


def test_a_token_comes_back_as_it_was_and_may_go_with_another_page_size():
    token = TOKENS.write(CALL, ["page", "", "abc", 3, 100])
    assert TOKENS.read(CALL, token) == ["page", "", "abc", 3, 100]
    assert TOKENS.read(asking(max_results=9, page_token=token), token) == ["page", "", "abc", 3, 100]


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(CALL, principal=Principal("user:b")),
        dataclasses.replace(CALL, registry="other"),
        dataclasses.replace(CALL, name="searchModelVersions"),
        asking(filter="name = 'b'"),
        asking(order_by=["name DESC"]),
    ],
)
def test_a_token_of_another_search_is_refused(other):
    token = TOKENS.write(CALL, ["page", "", "abc", 3, 100])
    with pytest.raises(InvalidRequest, match="Begin the search again"):
        TOKENS.read(other, token)


@given(st.binary(max_size=80) | st.text(max_size=80))
def test_nothing_made_up_is_a_token(made_up):
    text = made_up if isinstance(made_up, str) else made_up.decode("latin-1")
    with pytest.raises(InvalidRequest):
        TOKENS.read(CALL, text)


def test_every_changed_character_is_noticed():
    token = TOKENS.write(CALL, ["page", "", "abc", 3, 100])
    for index, character in enumerate(token.rstrip("=")):
        changed = token[:index] + ("A" if character != "A" else "B") + token[index + 1 :]
        with pytest.raises(InvalidRequest):
            TOKENS.read(CALL, changed)


def test_another_secret_signs_other_tokens():
    token = PageTokens(b"t" * 32).write(CALL, [1])
    with pytest.raises(InvalidRequest):
        TOKENS.read(CALL, token)


def test_a_token_shows_nothing_of_its_state():
    """An offset counts hidden rows: neither its digits nor the token's length may tell it."""
    tokens = [TOKENS.write(CALL, ["page", "", "abc", offset, 100]) for offset in (1, 1, 99999)]
    assert len(set(tokens)) == 3
    assert len({len(token) for token in tokens}) == 1
    for token in tokens:
        raw = base64.urlsafe_b64decode(token)
        assert b"page" not in raw
        assert b"abc" not in raw
