"""What a credential is narrowed to."""

from __future__ import annotations

import pytest

from service.model import ACTIONS
from service.scope import covers, item_problem, within


@pytest.mark.parametrize(
    "item", ["main/model:read", "main/alias:*", "*/model:read", "*/*", "a-b_c/run:delete-referenced"]
)
def test_an_item_names_a_registry_and_an_action(item):
    assert item_problem(item) is None


@pytest.mark.parametrize(
    "item",
    [
        "",
        "main",
        "main/",
        "/model:read",
        "main/model",
        "main/model:reads",
        "main/models:*",
        "ma*/*",
        "main/mod*",
        "main/model:read ",
        "main/model:read/x",
        "main/*:*",
    ],
)
def test_another_item_is_refused(item):
    assert item_problem(item)


@pytest.mark.parametrize(
    ("scope", "registry", "action", "through"),
    [
        (["main/model:read"], "main", "model:read", True),
        (["main/model:read"], "lake", "model:read", False),
        (["main/model:read"], "main", "model:update", False),
        (["*/alias:*"], "lake", "alias:set", True),
        (["main/run:delete"], "main", "run:delete-referenced", False),
        (["main/*"], "main", "grant:change", True),
        ([], "main", "model:read", False),
    ],
)
def test_a_scope_covers_what_it_says(scope, registry, action, through):
    assert covers(scope, registry, action) is through


@pytest.mark.parametrize("narrower", ["main/model:read", "main/model:*", "main/*", "*/model:read", "*/*"])
@pytest.mark.parametrize("scope", ["main/model:read", "main/model:*", "main/*", "*/model:read", "*/*"])
def test_what_is_within_a_scope_covers_nothing_more(narrower, scope):
    covered = [(r, a) for r in ("main", "lake") for a in ACTIONS if covers([narrower], r, a)]
    assert within([narrower], [scope]) is all(covers([scope], r, a) for r, a in covered)
