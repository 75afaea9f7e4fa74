"""Rules' language: what may be written, and that no verdict passes on a fact that is not there."""

from __future__ import annotations

import math
import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.promotion.expression import MAX_CHARACTERS, OPEN, Environment, ExpressionError, Outcome
from service.promotion.needs import resolve

LANGUAGE = Environment(
    {
        "candidate": {
            "metrics": OPEN,
            "tags": OPEN,
            "source": {"uri": None},
            "created": None,
            "signature": None,
            "name": None,
        },
        "incumbent": {"metrics": OPEN, "tags": OPEN},
        "evidence": OPEN,
        "approvals": OPEN,
        "now": None,
    }
)
NAN = math.nan
NOW = datetime(2026, 1, 2, tzinfo=UTC)


def facts(incumbent: dict[str, Any] | None = None, **metrics: object) -> dict[str, Any]:
    candidate = {
        "metrics": metrics,
        "tags": {"team": "a"},
        "signature": None,
        "created": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return {"candidate": candidate, "incumbent": incumbent, "evidence": [], "approvals": [], "now": NOW}


def evaluate(text: str, given_facts: dict[str, Any]) -> Outcome:
    return LANGUAGE.compile(text).evaluate(given_facts)


A = "candidate.metrics.a"


@pytest.mark.parametrize(
    "text",
    [
        f"{A} > 0.5",
        f"{A} <= 0.5",
        f"{A} > 0.5 || true",
        f"true || {A} > 0.5",
        f"false && {A} > 0.5",
        f"{A} > 0.5 ? true : true",
        f"true ? true : {A} > 0.5",
        f"!({A} > 0.5)",
        f"!(!({A} > 0.5) && false)",
        f"{A} == {A} || {A} != {A}",
        f"{A} in [0.1] || true",
        f"[{A}].size() == 1",
        f"{{'x': {A}}}.size() == 1",
        f"string({A}) != ''",
        f"dyn({A}) > 0.5 || true",
        "candidate.metrics['a'] > 0.5 || true",
        "candidate['metrics'].a > 0.5 || true",
        ".candidate.metrics.a > 0.5 || true",
        f"[1, 2].exists(i, {A} > 0.5 || true)",
        f"evidence.all(e, {A} > 0.5)",
        f"has(candidate.tags.team) && ({A} > 0.5 || true)",
    ],
)
@pytest.mark.parametrize("absent", [facts(), facts(a=None), facts(b=1.0)], ids=["absent", "null", "another"])
def test_a_missing_fact_never_passes(text: str, absent: dict[str, Any]) -> None:
    assert evaluate(text, absent) == Outcome(None, ("candidate.metrics.a",))


@pytest.mark.parametrize(
    "text",
    [
        f"has(candidate.metrics.a) || {A} > 0.5 || true",
        f"{A} > 0.5 && has(candidate.metrics.a) || true",
        f"!has(candidate.metrics.a) && ({A} > 0.5 || true)",
        f"{A} == null && ({A} > 0.5 || true)",
        f"has(candidate.metrics.b) ? true : {A} > 0.5 || true",
    ],
)
def test_a_guard_that_lets_a_missing_fact_be_reached_does_not_excuse_it(text: str) -> None:
    assert evaluate(text, facts()) == Outcome(None, ("candidate.metrics.a",))


@pytest.mark.parametrize(
    "text",
    [
        f"{A} > 0.5", f"{A} != 0.5", f"!({A} < 0.5)", f"{A} != {A}", f"{A} > 0.5 || true", f"true || {A} > 0.5",
        f"has(candidate.metrics.a) && {A} != 0.5", f"{A} == null || {A} != 0.5", f"{A} in [0.5] || true",
        "candidate.metrics.all(k, candidate.metrics[k] != 0.5)", "candidate.metrics.exists(k, k == 'b')",
    ],
)  # fmt: skip
def test_nan_never_passes(text: str) -> None:
    outcome = evaluate(text, facts(a=NAN, b=1.0))
    assert outcome.value is None
    assert outcome.missing in (("candidate.metrics.a",), ("candidate.metrics",))


INCUMBENT = {"metrics": {"a": 0.4}, "tags": {}}
BETTER = "candidate.metrics.a > incumbent.metrics.a"


@pytest.mark.parametrize(
    ("text", "given_facts", "value"),
    [
        (f"has(candidate.metrics.a) && {A} > 0.5", facts(), False),
        (f"has(candidate.metrics.a) && {A} > 0.5", facts(a=0.9), True),
        (f"has(candidate.metrics.a) && {A} > 0.5", facts(a=0.1), False),
        (f"!has(candidate.metrics.a) || {A} > 0.5", facts(), True),
        (f"!has(candidate.metrics.a) || {A} > 0.5", facts(a=0.1), False),
        (f"has(candidate.metrics.a) ? {A} > 0.5 : true", facts(), True),
        (f"has(candidate.metrics.a) ? {A} > 0.5 : true", facts(a=0.1), False),
        (f"!has(candidate.metrics.a) ? true : {A} > 0.5", facts(), True),
        (f"has(candidate.metrics.a) && has(candidate.metrics.b) && {A} > candidate.metrics.b", facts(a=1.0), False),
        (f"!(has(candidate.metrics.a) && has(candidate.metrics.b)) || {A} > candidate.metrics.b", facts(a=1.0), True),
        (f"incumbent == null || {BETTER}", facts(a=0.1), True),
        (f"null == incumbent || {BETTER}", facts(a=0.1), True),
        (f"!(incumbent != null) || {BETTER}", facts(a=0.1), True),
        (f"incumbent == null || {BETTER}", facts(INCUMBENT, a=0.1), False),
        (f"incumbent == null || {BETTER}", facts(INCUMBENT, a=0.9), True),
        (f"incumbent != null && {BETTER}", facts(a=0.9), False),
        (f"incumbent != null ? {BETTER} : true", facts(a=0.1), True),
        (f"incumbent == null ? {A} > 0.5 : {BETTER}", facts(INCUMBENT, a=0.45), True),
        ("candidate.signature != null", facts(), False),
        ("candidate.signature == null", facts(), True),
        ("has(candidate.metrics.a)", facts(), False),
    ],
)
def test_a_guard_says_where_a_fact_is_not_needed(text: str, given_facts: dict[str, Any], value: bool) -> None:
    assert evaluate(text, given_facts) == Outcome(value, ())


@pytest.mark.parametrize(
    ("text", "given_facts", "missing"),
    [
        (f"incumbent == null || {BETTER}", facts(), None),
        (f"incumbent == null || {BETTER}", facts({"metrics": {}, "tags": {}}, a=1.0), ("incumbent.metrics.a",)),
        (
            f"incumbent == null || {BETTER}",
            facts({"metrics": {}, "tags": {}}),
            ("candidate.metrics.a", "incumbent.metrics.a"),
        ),
        (f"incumbent != null || {BETTER}", facts(a=1.0), ("incumbent.metrics.a",)),
        (f"has(candidate.metrics.b) || {A} > 0.5", facts(), ("candidate.metrics.a",)),
        (f"has(candidate.metrics.b) ? true : {A} > 0.5", facts(), ("candidate.metrics.a",)),
        (f"!has(candidate.metrics.b) && {A} > 0.5", facts(), ("candidate.metrics.a",)),
        ("candidate.metrics['a b'] > 0.5", facts(), ("candidate.metrics['a b']",)),
        ("approvals[0].by == 'x' || true", facts(), ("approvals[0].by",)),
        (f"{A} > 0.5 && {A} < 0.9", facts(), ("candidate.metrics.a",)),
    ],
)
def test_what_is_missing_is_named_once(text: str, given_facts: dict[str, Any], missing: tuple[str, ...] | None) -> None:
    outcome = evaluate(text, given_facts)
    assert outcome.missing == (missing or ())
    assert outcome.value is (None if missing else True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metrics.a > 0.5", "undeclared reference to 'metrics.a'"),
        ("true || foo", "undeclared reference to 'foo'"),
        ("nope(candidate.name)", "undeclared reference to 'nope'"),
        ("candidate.metric.a > 0.5", "unknown fact 'candidate.metric'; candidate has: created, metrics"),
        ("true || candidate.nam == ''", "unknown fact 'candidate.nam'"),
        ("candidate['nam'] == ''", "unknown fact 'candidate.nam'"),
        ("has(candidate.nam)", "unknown fact 'candidate.nam'"),
        ("evidence.exists(e, e.kind == candidate.kind)", "unknown fact 'candidate.kind'"),
        ("candidate.source.url == ''", "unknown fact 'candidate.source.url'; candidate.source has: uri"),
        ("incumbent == null || incumbent.name == ''", "unknown fact 'incumbent.name'"),
        (f"{A}", "gives DYN, not a boolean"),
        ("1 + 1", "gives INT, not a boolean"),
        ("'true'", "gives STRING, not a boolean"),
        ("evidence", "not a boolean"),
        ("now", "not a boolean"),
        ("", "Syntax error"),
        ("true and false", "Syntax error"),
        ("true;", "Syntax error"),
        ("\0", "Syntax error"),
        ("1 == '1'", "no matching overload"),
        ("now > 5", "no matching overload"),
        ("now.foo == 1", "select"),
        ("x" * 10_000, "10000 characters"),
        ("candidate.tags.team.matches('(')", r"matches\('\('\) can never be evaluated"),
        (
            "now - candidate.created > duration('1d')",
            r"duration\('1d'\) can never be evaluated: .*; its units are h, m and s",
        ),
        ("now > timestamp('2026')", r"timestamp\('2026'\) can never be evaluated"),
        ("evidence.exists(e, duration('1w') > duration('1h'))", "its units are"),
        (f"{A} > '0.9'", "candidate.metrics.a is a number and '0.9' is text: write the number without quotes"),
        (f"'0.9' == {A}", "is a number and '0.9' is text"),
        ("candidate.tags.depth > 3", r"is text and 3 is a number: write double\(candidate.tags.depth\)"),
        ("1" + "+1" * 20_000 + " > 0", "at most 2000 are read"),
        ("true" + " " * MAX_CHARACTERS, "at most 2000 are read"),
        ("1" + "+1" * 900 + " > 0", "recursion"),
        ("(" * 500 + "true" + ")" * 500, "recursion"),
        ("[" * 300 + "]" * 300 + " == []", "recursion"),
        ("true ? true : " * 100 + "false", "recursion"),
        ("candidate.tags" + ".a" * 900 + " == 'x'", "recursion"),
        ("candidate.tags" + "['a']" * 300 + " == 'x'", "recursion"),
    ],
)
def test_an_expression_that_may_not_be_used_is_refused(text: str, says: str) -> None:
    with pytest.raises(ExpressionError, match=f"(?i){says}") as caught:
        LANGUAGE.compile(text)
    assert "\n" not in str(caught.value)


def test_a_long_flat_expression_is_read() -> None:
    text = "true" + " && true" * 240
    assert len(text) <= MAX_CHARACTERS
    assert evaluate(text, {}).value is True
    assert evaluate("!" * 1000 + "true", {}).value is True


_THIRTY = str(list(range(30)))


@pytest.mark.parametrize(
    ("text", "given_facts", "problem"),
    [
        (f"{_THIRTY}.all(a, {_THIRTY}.all(b, {_THIRTY}.all(c, {_THIRTY}.all(d, true))))", facts(), "budget"),
        ("1 / 0 == 1", facts(), "zero"),
        ("9223372036854775807 + 1 > 0", facts(), "overflow"),
        (f"{A} > 0.5", facts(a="high"), "overload"),
        ("candidate.tags.team.matches('(' + '')", facts(), "."),
        ("evidence.exists(e, e.facts.auc > 0.5)", {**facts(), "evidence": [{"facts": {}}]}, "auc"),
        ("has(incumbent.metrics.a)", facts(), "."),
        (f"{A} ? true : false", facts(a=1.0), "."),
    ],
)
def test_what_cannot_be_evaluated_is_a_problem_and_no_exception(
    text: str, given_facts: dict[str, Any], problem: str
) -> None:
    began = time.perf_counter()
    outcome = evaluate(text, given_facts)
    assert time.perf_counter() - began < 2
    assert (outcome.value, outcome.missing) == (None, ())
    assert re.search(problem, outcome.problem)
    assert "\n" not in outcome.problem


def test_a_regular_expression_cannot_hang() -> None:
    hostile = {**facts(), "candidate": {"tags": {"team": "a" * 50_000 + "b"}}}
    began = time.perf_counter()
    assert evaluate("candidate.tags.team.matches('^(a+)+$')", hostile).value is False
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("now - candidate.created >= duration('24h')", True),
        ("now - candidate.created > duration('24h')", False),
        ("candidate.created.getHours('Europe/Berlin') == 1", True),
        ("candidate.created > timestamp('2025-12-31T23:59:59Z')", True),
        ("candidate.tags.team == 'a'", True),
        ("'team' in candidate.tags && !('x' in candidate.tags)", True),
    ],
)
def test_times_and_maps(text: str, value: bool) -> None:
    assert evaluate(text, facts()) == Outcome(value, ())


def test_a_bound_name_is_no_fact() -> None:
    with_evidence = {**facts(), "evidence": [{"kind": "validation"}]}
    expression = LANGUAGE.compile("evidence.exists(now, now.kind == 'validation')")
    assert expression.paths == (("evidence",),)
    assert expression.evaluate(with_evidence).value is True
    both = LANGUAGE.compile(
        f"evidence.exists(e, e.kind == candidate.tags.team) || {A} > 0.5 || has(candidate.metrics.b)"
    )
    assert set(both.paths) == {
        ("evidence",), ("candidate", "tags", "team"), ("candidate", "metrics", "a"), ("candidate", "metrics", "b"),
    }  # fmt: skip


def test_resolve_gives_the_fact_or_none() -> None:
    document = {"a": {"b": [1, {"c": 2}]}}
    assert resolve(("a", "b", 1, "c"), document) == 2
    assert [
        resolve(path, document) for path in [("a", "x"), ("a", "b", 2), ("a", "b", -1), ("a", "b", "c"), ("x",)]
    ] == [None] * 5


_leaf = st.sampled_from([f"{A} > 0.5", "candidate.metrics.b < 0.5", "true", "false", "candidate.metrics.b == 1.0"])
_expressions = st.recursive(
    _leaf,
    lambda inner: (
        st.builds("({} || {})".format, inner, inner)
        | st.builds("({} && {})".format, inner, inner)
        | st.builds("!{}".format, inner.map("({})".format))
        | st.builds("({} ? {} : {})".format, inner, inner, inner)
    ),
    max_leaves=6,
)
_values = st.none() | st.just(NAN) | st.floats(0, 1)


@given(_expressions, _values, _values)
def test_without_guards_every_named_fact_is_needed(text: str, a: float | None, b: float | None) -> None:
    known = {name: value for name, value in (("a", a), ("b", b)) if value is not None}
    unusable = {name for name in "ab" if f"metrics.{name} " in text and (name not in known or math.isnan(known[name]))}
    outcome = evaluate(text, facts(**known))
    assert set(outcome.missing) == {f"candidate.metrics.{name}" for name in unusable}
    assert (outcome.value is None) is bool(unusable)
