"""What rules can say beside CEL's own functions."""

from __future__ import annotations

import pytest

from service.promotion.expression import ExpressionError
from service.promotion.facts import LANGUAGE

FACTS = {
    "candidate": {"tags": {"lib": "1.10.0"}},
    "evidence": [{"kind": "bias", "result": "passed"}, {"kind": "load", "result": "failed"}],
}


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("passed(evidence, 'bias')", True),
        ("passed(evidence, 'load')", False),
        ("passed(evidence, 'none')", False),
        ("at_least(candidate.tags.lib, '1.9')", True),
        ("at_least(candidate.tags.lib, '1.10.1')", False),
        ("compare_semver('1.0.0-rc.1', '1.0.0') < 0", True),  # SemVer 2.0.0, section 11.3
        ("compare_semver('1.0.0+a', '1.0.0+b') == 0", True),  # section 10
        ("compare_semver('1.0.0-2', '1.0.0-10') < 0", True),  # numbers by value, section 11.4.1
    ],
)
def test_functions(rule: str, value: bool) -> None:
    assert LANGUAGE.compile(rule).evaluate(FACTS).value is value


NO_VERSIONS = ["'one'", "''", "'1.2.3.4'", "'01.2.3'", f"'{'1' * 300}'"]


@pytest.mark.parametrize("text", NO_VERSIONS)
def test_a_constant_that_is_no_version_is_refused_at_load(text: str) -> None:
    with pytest.raises(ExpressionError, match="can never be evaluated"):
        LANGUAGE.compile(f"at_least({text}, '1.0.0')")


@pytest.mark.parametrize("text", [*(f"{text} + ''" for text in NO_VERSIONS), "candidate.tags.lib + '/'"])
def test_what_is_no_version_fails_the_rule_and_says_so(text: str) -> None:
    outcome = LANGUAGE.compile(f"at_least({text}, '1.0.0')").evaluate(FACTS)
    assert (outcome.value, outcome.missing) == (None, ())
    assert outcome.problem


def test_a_missing_fact_is_missing_in_a_function_too() -> None:
    assert LANGUAGE.compile("at_least(candidate.tags.other, '1.0.0')").evaluate(FACTS).missing == (
        "candidate.tags.other",
    )


@pytest.mark.parametrize(
    "rule", ["at_least(candidate.tags, '1.0.0')", "passed(evidence)", "compare_semver('1.0.0', '1.0.0')"]
)
def test_wrong_use_is_refused_at_load(rule: str) -> None:
    with pytest.raises(ExpressionError):
        LANGUAGE.compile(rule)


def test_the_digest_is_of_what_is_written_not_of_how() -> None:
    one = LANGUAGE.compile("passed(evidence, 'bias') && candidate.metrics.a > 0.5")
    same = LANGUAGE.compile("passed( evidence,'bias' )\n  && // why\n (candidate.metrics.a > 0.5)")
    other = LANGUAGE.compile("passed(evidence, 'bias') && candidate.metrics.a > 0.6")
    assert one.digest == same.digest
    assert one.digest != other.digest
