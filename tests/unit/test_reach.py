"""The names that somebody can read at most: none that can be read is missing, and no row is read to find them."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.authorization.snapshot import Content, Snapshot
from service.model import Principal, resource
from tests.conftest import ROOT

MODEL = ROOT / "policies/model.conf"
NAMES = ("a", "ab", "b,c", "é", "*")
BELOW = {"model:read": "", "version:read": "/versions", "alias:read": "/aliases/x"}
ACTIONS = (*BELOW, "experiment:read")
SETS = (
    "g2, models/a, set:s\ng2, models/b%2Cc, set:s\ng2, experiments/ab, set:s\ng2, set:s, set:t\ng2, models/ab, set:t\n"
)
RESOURCES = ("*", "models/*", "models/*/versions", "models/a*", "models/%C3*", "models/%2A", "models/ab/aliases/*")
RESOURCES += ("models/a", "experiments/*", "experiments/a*", "set:s", "set:t/*", "set:t/versions")
SUBJECTS = ("user:ann", "group:x", "role:y", "owner")
ROWS = st.lists(
    st.tuples(
        st.sampled_from(SUBJECTS),
        st.sampled_from(("main", "other", "*")),
        st.sampled_from(RESOURCES),
        st.sampled_from((*ACTIONS, "model:*", "alias:*", "*")),
        st.sampled_from(("allow", "allow", "deny")),
    ),
    min_size=1,
    max_size=6,
)


def load(*rows: str) -> Snapshot:
    content = Content(MODEL.read_bytes(), (SETS + "".join(f"{row}\n" for row in rows)).encode())
    return Snapshot(MODEL, Path("policy.csv"), ["main", "other"], content=content)


@given(ROWS, st.sampled_from(("", "g, user:ann, role:y", "g, owner, role:y")), st.sampled_from(((), ("group:x",))))
def test_each_name_that_can_be_read_is_in_reach(rows, link, groups):
    snapshot = load(*(f"p, {', '.join(row)}" for row in rows), *([link] if link else []))
    ann = Principal("user:ann", frozenset(groups))
    for registry in ("main", "other"):
        for action in ACTIONS:
            kind = "experiments" if action == "experiment:read" else "models"
            scope = snapshot.scope(ann, registry, kind, action, frozenset({"a"}))
            for name in NAMES:
                asked = resource(kind, name) + BELOW.get(action, "")
                allowed = snapshot.decide(ann, registry, asked, action, owns=kind == "models" and name == "a").allowed
                found = name in scope.names or any(name.startswith(prefix) for prefix in scope.prefixes)
                assert found or not allowed, (registry, asked, action)


@pytest.mark.parametrize(
    ("row", "names", "prefixes"),
    [
        ("p, user:ann, main, models/a, model:read, allow", {"a"}, set()),
        ("p, user:ann, *, models/b%2Cc/*, *, allow", {"b,c"}, set()),
        ("p, user:ann, main, models/a*, model:*, allow", set(), {"a"}),
        ("p, user:ann, main, models/a%C3*, model:*, allow", set(), {"a"}),
        ("p, user:ann, main, *, model:read, allow", set(), {""}),
        ("p, user:ann, main, set:t, model:read, allow", {"a", "b,c", "ab"}, set()),
        ("p, user:ann, other, models/a, model:read, allow", set(), set()),
        ("p, user:bob, main, models/a, model:read, allow", set(), set()),
        ("p, user:ann, main, models/a, model:update, allow", set(), set()),
        ("p, user:ann, main, experiments/a, *, allow", set(), set()),
        ("p, user:ann, main, models/a, model:read, deny", set(), set()),
    ],
)
def test_nothing_else_is_in_reach(row, names, prefixes):
    scope = load(row).scope(Principal("user:ann"), "main", "models", "model:read")
    assert (scope.names, scope.prefixes) == (names, prefixes)


def test_a_search_reads_no_rows():
    def lines(count: int) -> int:
        snapshot = load(*(f"p, user:ann, main, models/m{at}, model:read, allow" for at in range(count)))
        counted = [0]

        def trace(_frame, event, _):
            counted[0] += event == "line"
            return trace

        before = sys.gettrace()
        gc.disable()  # hypothesis counts collections, in lines of its own
        sys.settrace(trace)
        try:
            found = snapshot.scope(Principal("user:ann"), "main", "models", "model:read")
        finally:
            sys.settrace(before)
            gc.enable()
        assert len(found.names) == count
        return counted[0]

    assert lines(10) == lines(500)
