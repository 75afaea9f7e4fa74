"""The proof of access decisions: equal to the stock Casbin enforcer and to an oracle, on random policies.

`make prove` asks a million questions; PROVE_CASES says how many. Hypothesis shrinks a mismatch.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import random
from collections.abc import Iterable
from pathlib import Path

import casbin
import hypothesis
import pytest
from hypothesis import strategies as st

from service.authorization.patterns import FUNCTIONS
from service.authorization.snapshot import Content, Snapshot
from service.model import Principal, resource, segment
from tests.proof import oracle

MODEL = Path(__file__).parent.parent.parent / "policies" / "model.conf"
CASES = int(os.environ.get("PROVE_CASES", "10000"))
QUESTIONS = 40
"""Of each policy."""

SUBJECTS = ("user:ann", "user:bob, jr", "service:ci", "group:a", "group:b", "role:x", "role:y", "role:z", "owner")
CALLERS = (
    "user:ann",
    "user:bob, jr",
    "service:ci",
    "user:nobody",
    "user:role:x",
    "user:*",
    "user:owner",
    "service:set:s",
)
GROUPS = ("group:a", "group:b", "group:none", "group:role:x", "group:*")
NAMES = ("a", "ab", "b", "*", "a*", "role:x", "set:s", "owner")
REGISTRIES = ("main", "other")
ACTIONS = ("model:read", "model:update", "model:rename", "alias:set", "audit:read")
BELOW = ("", "/versions", "/aliases/a", "/aliases/ab", "/tags/*", "/versions/tags/a", "/environments/production")
RESOURCES = (
    *(resource("models", name) + below.replace("*", "%2A") for name in NAMES for below in BELOW),
    *(resource("experiments", name) for name in NAMES),
    "audit",
    "models",
)
SEGMENTS = (*(segment(name) for name in NAMES), "*", "*", "a*", "ab*", "b*", "%2A*", "role%3A*")
PATTERNS = (
    "*",
    "audit",
    *(f"{kind}/{name}" for kind in ("models", "experiments") for name in SEGMENTS),
    *(
        f"models/{name}/{below}"
        for name in SEGMENTS
        for below in (
            "*",
            "versions",
            "aliases/*",
            "aliases/a*",
            "aliases/a",
            "versions/*",
            "versions/tags/*",
            "*/a",
            "ver*",
        )
    ),
)
SETS = tuple(
    f"set:{name}{below}" for name in "stu" for below in ("", "", "/*", "/versions", "/aliases/*", "/aliases/a*", "/*/a")
)
NESTED = (("set:t", "set:s"), ("set:u", "set:t"), ("set:u", "set:s"))
MEMBERS = tuple(resource(kind, name) for kind in ("models", "experiments") for name in NAMES)

pattern = (
    st.sampled_from(PATTERNS) | st.sampled_from(SETS) | st.sampled_from(("*", "models/*", "models/a*", "models/*/*"))
)
link = st.tuples(st.sampled_from(SUBJECTS), st.sampled_from(SUBJECTS[3:-1]))
member = st.sampled_from(NESTED) | st.tuples(st.sampled_from(MEMBERS), st.sampled_from(("set:s", "set:t", "set:u")))


@st.composite
def policies(draw):
    """Draw rows over few subjects, patterns and actions, so that several are about the same question and disagree."""
    subjects = draw(st.lists(st.sampled_from(SUBJECTS), min_size=1, max_size=4, unique=True))
    patterns = draw(st.lists(pattern, min_size=1, max_size=5, unique=True))
    actions = draw(st.lists(st.sampled_from((*ACTIONS, "model:*", "alias:*")), min_size=1, max_size=2, unique=True))
    row = st.tuples(
        st.sampled_from(subjects),
        st.sampled_from((*REGISTRIES, "*", "*", "*")),
        st.sampled_from(patterns),
        st.sampled_from((*actions, "*")),
        st.sampled_from(("allow", "allow", "deny")),
    )
    return (
        draw(st.lists(row, min_size=2, max_size=12, unique=True)),
        draw(st.lists(link, max_size=6, unique=True)),
        draw(st.lists(member, min_size=1, max_size=5, unique=True)),
    )


caller = st.builds(
    Principal, st.sampled_from(("user:ann", "user:ann", *CALLERS)), st.frozensets(st.sampled_from(GROUPS), max_size=3)
)
tally = {"cases": 0, "allowed": 0, "denied by a row": 0, "a deny beat an allow": 0, "owner": 0, "set": 0}


def without_empty_sets(rows: Iterable[tuple[str, ...]], members: list[tuple[str, str]]) -> tuple[list, list]:
    """Leave out what no policy may say: sets that nothing is in."""
    models = {name for name, _ in members if not name.startswith("set:")}
    full = {name for start in models for name in oracle.reached([start], members)}
    return (
        [item for item in rows if not item[2].startswith("set:") or item[2].split("/")[0] in full],
        [item for item in members if item[0] in full],
    )


def written(
    rows: Iterable[tuple[str, ...]], links: Iterable[tuple[str, ...]], sets: Iterable[tuple[str, ...]]
) -> bytes:
    text = io.StringIO()
    kinds = (("p", rows), ("g", links), ("g2", sets))
    csv.writer(text).writerows((kind, *item) for kind, items in kinds for item in items)
    return text.getvalue().encode()


def stock_enforcer(rows, links, sets) -> casbin.Enforcer:
    enforcer = casbin.Enforcer(str(MODEL))
    for name, function in FUNCTIONS.items():
        enforcer.add_function(name, function)
    enforcer.add_policies(rows)
    enforcer.add_named_grouping_policies("g", [list(item) for item in links])
    enforcer.add_named_grouping_policies("g2", [list(item) for item in sets])
    return enforcer


def question_near(chance: random.Random, near: tuple[str, ...], sets: list[tuple[str, str]]) -> tuple[str, str, str]:
    """Ask for what the row *near* is about, or nearly: most questions by pure chance meet no row."""
    _, where, pattern, act, _ = near
    segments = pattern.split("/")
    if segments[0].startswith("set:"):
        inside = [name for name, _ in sets if not name.startswith("set:")]
        segments[0] = chance.choice(inside)
    filled = [_named(chance, part[:-1]) if part.endswith("*") else part for part in segments]
    about = "/".join(filled) + chance.choice(("", "", "", "/versions", "/aliases/a"))
    return (
        where if where != "*" and chance.random() < 0.9 else chance.choice(REGISTRIES),
        about if pattern != "*" and chance.random() < 0.8 else chance.choice(RESOURCES),
        act if not act.endswith("*") and chance.random() < 0.9 else chance.choice(ACTIONS),
    )


def _named(chance: random.Random, prefix: str) -> str:
    """Name something that begins with *prefix*, or is it."""
    return prefix if prefix and chance.random() < 0.3 else prefix + segment(chance.choice(NAMES))


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("casbin"), "disabled", True)


@hypothesis.settings(
    max_examples=max(1, CASES // QUESTIONS), deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(policies(), st.lists(caller, min_size=2, max_size=2), st.integers(0, 2**32), st.booleans())
def check(drawn, callers: list[Principal], seed: int, owns: bool) -> None:
    rows, links, sets = drawn
    rows, sets = without_empty_sets(rows, sets)
    rows = rows or [("user:ann", "*", "*", "*", "allow")]
    content = Content(MODEL.read_bytes(), written(rows, links, sets))
    ours = Snapshot(MODEL, Path("policy.csv"), REGISTRIES, content=content)
    chance = random.Random(seed)
    for principal in callers:
        names = [principal.subject, *principal.groups, *(["owner"] if owns else [])]
        stock = stock_enforcer(rows, sorted({*links, *((principal.subject, name) for name in names[1:])}), sets)
        for _ in range(QUESTIONS // 2):
            question = question_near(chance, chance.choice(rows), sets)
            decision = ours.decide(principal, *question, owns=owns)
            assert decision.allowed is stock.enforce(principal.subject, *question), ("stock", principal, question)
            assert decision.allowed is oracle.allowed(rows, links, sets, names, *question), (
                "oracle",
                principal,
                question,
            )
            if decision.row is not None:
                at = int(decision.row.rpartition(":")[2]) - 1
                deciding = rows[at]
                assert deciding[4] == ("allow" if decision.allowed else "deny")
                alone = [(*item[:4], "allow") for item in rows[: at + 1] if item[4] == deciding[4]]
                assert oracle.allowed(alone[-1:], links, sets, names, *question), "the deciding row matches"
                assert not oracle.allowed(alone[:-1], links, sets, names, *question), "it is the first that does"
                tally["owner"] += deciding[0] == "owner"
                tally["set"] += deciding[2].startswith("set:")
            tally["cases"] += 1
            tally["allowed"] += decision.allowed
            tally["denied by a row"] += decision.denied_by_row
            if decision.denied_by_row:
                allowing = [item for item in rows if item[4] == "allow"]
                tally["a deny beat an allow"] += oracle.allowed(allowing, links, sets, names, *question)


def test_decides_as_the_stock_enforcer_and_the_oracle_do(capfd: pytest.CaptureFixture[str]) -> None:
    for name in tally:
        tally[name] = 0
    mismatches = 0
    try:
        check()
    except AssertionError:
        mismatches = 1
        raise
    finally:
        with capfd.disabled():
            print(f"\naccess: {tally['cases']} cases, {mismatches} mismatches; {tally}")
    assert tally["cases"] > CASES / 2
    assert min(tally.values()) > 0, "each kind of question was asked"
