"""Sets of models and experiments: what g2 rows mean, and which of them are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.authorization.snapshot import Content, Snapshot
from service.errors import BadConfiguration
from service.model import Principal, resource

MODEL = Path(__file__).parent.parent.parent / "policies" / "model.conf"
ANN = Principal("user:ann")
OLD_MODEL = (
    MODEL.read_text().split("[matchers]")[0].replace("g2 = _, _\n", "")
    + '[matchers]\nm = g(r.sub, p.sub) && (p.reg == "*" || r.reg == p.reg) && resourceMatch(r.obj, p.obj) && '
    "actionMatch(r.act, p.act)\n"
)


def load(rows: str, model: str = MODEL.read_text()) -> Snapshot:
    return Snapshot(MODEL, Path("policy.csv"), ["main"], content=Content(model.encode(), rows.encode()))


NESTED = """\
g2, models/fraud, set:risk
g2, models/a%2Cb, set:risk
g2, experiments/fraud, set:risk
g2, set:credit, set:risk
g2, models/loans, set:credit
"""


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        (
            "set:risk",
            ["models/fraud", "models/loans", "experiments/fraud", resource("models", "a,b")],
            ["models/fraud/versions", "models/other", "experiments/loans", "models/fraud2", "audit"],
        ),
        (
            "set:risk/*",
            ["models/fraud/versions", "models/loans/aliases/x", "models/fraud/versions/tags/k"],
            ["models/fraud", "models/other/versions", "experiments/fraud"],
        ),
        ("set:risk/aliases/*", ["models/fraud/aliases/x"], ["models/fraud/versions", "models/fraud/aliases"]),
        ("set:risk/aliases/ch*", ["models/loans/aliases/champion"], ["models/fraud/aliases/x"]),
        ("set:risk/*/x", ["models/fraud/aliases/x"], ["models/fraud/aliases/y", "models/fraud/versions/tags/x"]),
        ("set:credit", ["models/loans"], ["models/fraud"]),
    ],
)
@pytest.mark.parametrize("effect", ["allow", "deny"])
def test_a_set_means_its_members_or_what_is_below_them(
    pattern: str, covered: list[str], not_covered: list[str], effect: str
) -> None:
    other = "" if effect == "allow" else "p, user:ann, *, *, *, allow\n"
    policy = load(f"{NESTED}{other}p, user:ann, main, {pattern}, *, {effect}\ng2, models/unused, set:other\n")
    row = f"policy.csv:{6 if not other else 7}"
    for where in covered:
        assert policy.decide(ANN, "main", where, "model:read").row == row, where
    for where in not_covered:
        assert policy.decide(ANN, "main", where, "model:read").row != row, where


def test_a_search_can_find_the_members_of_a_set() -> None:
    policy = load(NESTED + "p, user:ann, main, set:risk, model:read, allow\np, user:bob, *, set:risk/*, *, allow\n")
    for who in ("user:ann", "user:bob"):
        found = policy.scope(Principal(who), "main", "models", "model:read")
        assert found.names == {"fraud", "a,b", "loans"}
        assert not found.prefixes
    assert policy.scope(Principal("user:bob"), "main", "experiments", "run:read").names == {"fraud"}
    assert policy.scope(ANN, "main", "experiments", "run:read").is_empty


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("p, user:ann, *, set:riks, *, deny\ng2, models/a, set:risk\n", "1:1: no model or experiment is in set:riks"),
        (
            "g2, set:empty, set:risk\np, user:ann, *, set:risk, *, allow\n",
            "1:1: no model or experiment is in set:empty",
        ),
        ("g2, set:a, set:b\ng2, set:b, set:a\ng2, models/x, set:a\n", "1:1: a circle of sets: set:a is in set:b"),
        ("g2, set:a, set:a\ng2, models/x, set:a\n", "1:1: a circle of sets: set:a is in set:a"),
        (
            "g2, models/x, set:s0\n" + "".join(f"g2, set:s{i}, set:s{i + 1}\n" for i in range(9)),
            "1:1: 'models/x' has sets nested deeper than 9",
        ),
    ],
)
def test_a_set_that_can_mean_nothing_is_refused_by_name(rows: str, says: str) -> None:
    with pytest.raises(BadConfiguration, match=rf"policy\.csv:{says}"):
        load(rows + "p, user:ann, main, models/*, *, allow\n")


def test_sets_may_be_nested_as_deep_as_roles() -> None:
    nested = "g2, models/x, set:s0\n" + "".join(f"g2, set:s{i}, set:s{i + 1}\n" for i in range(8))
    policy = load(nested + "p, user:ann, main, set:s8, model:read, allow\n")
    assert policy.decide(ANN, "main", "models/x", "model:read").allowed


def test_a_model_conf_of_the_older_form_works_until_there_are_sets() -> None:
    row = "p, user:ann, main, models/a*, model:read, allow\n"
    older = load(row, OLD_MODEL)
    assert older.decide(ANN, "main", "models/ab", "model:read").allowed
    assert not older.decide(ANN, "main", "models/b", "model:read").allowed
    with pytest.raises(BadConfiguration, match=r"model\.conf:1: this model\.conf knows no sets"):
        load(row + "g2, models/a, set:s\n", OLD_MODEL)


@pytest.mark.parametrize(
    "name", ["set:risk", "set:risk/*", "*", "models/fraud", "fraud/versions"], ids=lambda name: name.replace("/", "-")
)
def test_no_name_of_a_model_puts_it_into_a_set(name: str) -> None:
    policy = load(NESTED + "p, user:ann, *, set:risk, *, allow\np, user:ann, *, set:risk/*, *, allow\n")
    asked: Callable[..., bool] = lambda *parts: policy.decide(ANN, "main", resource(*parts), "model:read").allowed  # noqa: E731
    assert not asked("models", name)
    assert not asked("models", name, "versions")
    assert not asked("experiments", name)
