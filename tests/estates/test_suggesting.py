"""Suggested rows: they allow all that was done, nothing that nobody did, and say what they leave out."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import BadConfiguration
from service.estates.history import Past, Right, read
from service.estates.rows import comment, load, row
from service.estates.suggesting import suggest
from service.model import Principal, resource
from service.modes import Denial
from tests.conftest import ROOT

MODEL = ROOT / "policies/model.conf"
REGISTRIES = ("main", "lake")
TIME = "2026-11-25T10:00:00.000000Z"


def did(subject, *rights, groups=(), count=1, registry="main", denials=(), time=TIME, **more):
    """Make what was done: each right is action and resource."""
    found = tuple(Right(registry, where, action) for action, where in rights)
    return Past(
        subject, frozenset(groups), registry, found, (), tuple(denials), count, count, time, denied=False, **more
    )


def rows_of(text):
    return [line for line in text.splitlines() if line.startswith("p,")]


NAMES = st.sampled_from(["fraud", "churn", "claims", "team-a-x", "team-a-y", "a,b", "ä", 'q"', "#", "50%", "é b"])


def asked(action, *parts):
    """Build a right; what is no text is drawn."""
    drawn = [st.just(part) if isinstance(part, str) else part for part in parts]
    return st.tuples(st.just(action), st.tuples(*drawn).map(lambda found: resource(*found)))


RIGHTS = st.one_of(
    asked("model:read", "models", NAMES),
    asked("model:create", "models", NAMES),
    asked("model:read", "models", NAMES, "environments", "production"),
    asked("version:create", "models", NAMES, "versions"),
    asked("alias:set", "models", NAMES, "aliases", st.sampled_from("abc")),
    asked("tag:set", "models", NAMES, "versions", "tags", NAMES),
    asked("run:update", "experiments", NAMES),
    asked("audit:read", "audit"),
)
GROUPS = ("group:a", "group:b", "group:c,d")
PASTS = st.builds(
    did,
    st.sampled_from(["user:ann", "user:bob", "service:ci", 'user:o"neil, x']),
    RIGHTS,
    RIGHTS,
    groups=st.sets(st.sampled_from(GROUPS)),
    count=st.integers(0, 3),
    registry=st.sampled_from(REGISTRIES),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(PASTS, min_size=1, max_size=12), st.one_of(st.none(), st.integers(2, 4)), st.randoms(use_true_random=False)
)
def test_what_was_done_is_allowed_and_the_order_of_events_is_no_matter(pasts, generalise, chance):
    found = suggest(pasts, generalise)
    shuffled = list(pasts)
    chance.shuffle(shuffled)
    assert suggest(shuffled, generalise).text == found.text
    done = [item for item in pasts if item.done]
    assert bool(found.rows) is bool(done)
    if not done:
        return
    snapshot = load(found.text, MODEL, REGISTRIES)
    assert len(snapshot.rows) == found.rows
    for item in done:
        for right in item.rights:
            assert snapshot.decide_whole(item.principal, right.registry, right.resource, right.action).allowed
    if generalise is None:
        nothing_more(snapshot, done)


def nothing_more(snapshot, done):
    """Nobody may do what they did not do, unless all that were seen in one of their groups did it."""
    actors = {(item.subject, item.groups): set() for item in done}
    for item in done:
        actors[item.subject, item.groups].update(item.rights)
    rights = set().union(*actors.values())
    for subject, groups in itertools.product({who for who, _ in actors}, [frozenset(), *({g} for g in GROUPS)]):
        by_name = set().union(*(did for (who, _), did in actors.items() if who == subject))
        members = [did for (_, theirs), did in actors.items() if groups and groups <= theirs]
        by_group = set.intersection(*members) if members else set()
        for right in rights:
            principal = Principal(subject, frozenset(groups))
            if snapshot.decide_whole(principal, right.registry, right.resource, right.action).allowed:
                assert right in by_name | by_group
    stranger = Principal("user:stranger")
    assert not any(snapshot.decide_whole(stranger, r.registry, r.resource, r.action).allowed for r in rights)


READ = ("model:read", "models/fraud")
CREATE = ("version:create", "models/fraud/versions")


@pytest.mark.parametrize(
    ("pasts", "rows"),
    [
        ([did("user:ann", READ)], ["p, user:ann, main, models/fraud, model:read, allow"]),
        (  # all of a group did it
            [did("user:ann", READ, groups=["group:x"]), did("user:bob", READ, CREATE, groups=["group:x"])],
            [
                "p, group:x, main, models/fraud, model:read, allow",
                "p, user:bob, main, models/fraud/versions, version:create, allow",
            ],
        ),
        (  # one of them did not
            [did("user:ann", READ, groups=["group:x"]), did("user:bob", CREATE, groups=["group:x"])],
            [
                "p, user:ann, main, models/fraud, model:read, allow",
                "p, user:bob, main, models/fraud/versions, version:create, allow",
            ],
        ),
        (  # one principal alone is no group
            [did("user:ann", READ, groups=["group:x"]), did("user:ann", READ, groups=["group:x", "group:y"])],
            ["p, user:ann, main, models/fraud, model:read, allow"],
        ),
        ([did("user:ann", READ, count=0)], []),
        ([did("user:ann", READ, denials=[Denial("model:read", "models/fraud", "policy.csv:3")])], []),
        ([did("user:ann", denials=[Denial("model:read", "models/*")])], []),
        ([did("user:ann", ("model:read", "models/x…(cut, 900 characters)"), whole=False)], []),
        (
            [did("user:ann", READ, denials=[Denial("tag:set", "models/fraud/tags/a")])],
            [
                "p, user:ann, main, models/fraud, model:read, allow",
                "p, user:ann, main, models/fraud/tags/a, tag:set, allow",
            ],
        ),
    ],
)
def test_rows(pasts, rows):
    found = suggest(pasts)
    assert rows_of(found.text) == rows
    assert found.rows == len(rows)


@pytest.mark.parametrize(
    ("names", "generalise", "resources"),
    [
        (("a", "b"), 3, ["models/a", "models/b"]),
        (("a", "b", "c"), 3, ["models/*"]),
        (("team-a-1", "team-a-2", "team-a-3"), 3, ["models/team-a-*"]),
        (("ab1", "ab2"), 2, ["models/*"]),
        (("xxä", "xxö"), 2, ["models/xx%C3*"]),
    ],
)
def test_names_become_a_pattern_where_that_is_asked_for(names, generalise, resources):
    found = suggest([did("user:ann", ("model:update", resource("models", name))) for name in names], generalise)
    assert [line.split(", ")[3] for line in rows_of(found.text)] == resources
    if "*" in resources[0]:
        assert f"stands for {len(names)} names" in found.text


def test_environments_and_stages_are_never_generalised():
    pasts = [did("user:ann", ("environment:promote", f"models/m/environments/e{n}")) for n in range(5)]
    assert len(rows_of(suggest(pasts, 2).text)) == 5


def test_comments_say_what_is_left_out():
    text = suggest(
        [
            did("user:ann", CREATE, count=4, time="2026-11-20T10:00:00Z"),
            did("user:ann", CREATE),
            did("user:bob", READ, denials=[Denial("model:read", "models/fraud", "policy.csv:3")]),
            did("user:bob", denials=[Denial("model:read", "models/*")], count=7),
            did("user:eve", CREATE, whole=False),
        ]
    ).text
    assert f"# 5 calls, last {TIME}\np, user:ann, main, models/fraud/versions" in text
    assert "user:bob: model:read on models/fraud of main: 1 call" in text
    assert "policy.csv:3 denies it" in text
    assert "user:bob: model:read on models/* of main: 7 calls" in text
    assert "# user:eve: 1 calls" in text
    assert "there are none here" in text


def test_a_suggestion_that_does_not_allow_what_it_was_made_from_is_refused():
    found = suggest([did("user:ann", READ)])
    other = load("p, user:bob, main, models/fraud, model:read, allow\n", MODEL, REGISTRIES)
    with pytest.raises(BadConfiguration, match="does not allow user:ann"):
        found.check(other)


def event(phase, outcome="succeeded", **data):
    actor = {"subject": "user:ann", "groups": ["group:x"]}
    known = {"phase": phase, "outcome": outcome, "actor": actor, "registry": "main", **data}
    return {"id": "1", "time": TIME, "data": known}


MADE = {"action": "version:create", "resource": "models/m/versions"}
TAG = {"action": "tag:set", "resource": "models/m/tags/a"}
LOGGED = {"action": "run:update", "resource": "experiments/e"}
ASKED = [{**MADE, "only_denials": False}, {**TAG, "only_denials": True}]


@pytest.mark.parametrize(
    ("item", "done", "rights"),
    [
        (event("outcome", **MADE, asked=ASKED), 1, ["version:create"]),
        (event("outcome", "failed", **MADE, asked=ASKED), 0, ["version:create"]),
        (event("denied", "denied", **TAG, asked=ASKED), 0, ["version:create", "tag:set"]),
        (event("outcome", action="model:read", resource="models/m"), 1, ["model:read"]),  # of an older version
        (event("summed", **LOGGED, calls={"logBatch": 5}, failed={"logBatch": 2}), 3, ["run:update"]),
        (event("rejected", "rejected", action="alias:set", resource="models/m/aliases/a", asked=[]), 0, []),
    ],
)
def test_what_events_say(item, done, rights):
    (found,) = read([item])
    assert (found.done, [right.action for right in found.rights]) == (done, rights)


@pytest.mark.parametrize("action", ["authentication:fail", "request:refuse", "environment:drift"])
def test_what_is_not_about_access_is_skipped(action):
    assert list(read([event("outcome", action=action, resource="POST /x")])) == []


def test_an_event_of_another_shape_is_named():
    with pytest.raises(BadConfiguration, match="'1' has another shape"):
        list(read([{"id": "1", "data": {"action": "model:read"}}]))


def test_a_comment_is_one_line_whatever_is_in_it():
    chance = random.Random(1)
    for _ in range(200):
        text = "".join(chr(chance.randrange(0x3000)) for _ in range(30))
        assert len(comment(text + "\r\np, x").splitlines()) <= 1 + sum(text.count(c) for c in "\x1c\x1d\x1e")
    assert row("p", "user:a, b", 'x"y') == 'p,"user:a, b","x""y"'
