"""Users' tests of rules: what differs is said with its line, what does not exist is refused."""

from __future__ import annotations

import pytest

from service.errors import BadConfiguration
from service.outcomes import counts
from service.rule_tests import run_rule_tables
from service.settings import load
from tests.conftest import ROOT, write_configuration

CASE = (ROOT / "policies/tests/environments/demo.yaml").read_text()


@pytest.fixture
def run(tmp_path):
    configuration = load(write_configuration(tmp_path), environ={})

    def run(text):
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables/a.yaml").write_text(text)
        outcomes = run_rule_tables(configuration, [tmp_path / "tables/a.yaml"])
        return counts(outcomes), [line for outcome in outcomes for line in outcome.lines]

    return run


def test_the_shipped_tables_pass_and_name_every_rule(run):
    assert run(CASE) == ((4, 0), [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("accuracy: 0.95}, signature", "accuracy: 0.5}, signature"), "accuracy-floor: expected passed, found failed"),
        (("expect: open", "expect: closed"), "expected closed, the rules are open"),
        (("reproducible: failed", "reproducible: missing"), "reproducible: expected missing, found failed"),
    ],
)
def test_what_differs_is_said(run, change, says):
    (passed, failed), said = run(CASE.replace(*change, 1))
    assert (passed, failed) == (3, 1)
    assert any("a.yaml:" in line and says in line for line in said)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("environment: production", "environment: prod"), "3: no environment is named 'prod'"),
        (("accuracy-floor: passed", "accuracy: passed"), "no rule is named 'accuracy'; there are: accuracy-floor"),
        (("metrics: {accuracy: 0.95}", "metric: {accuracy: 0.95}"), "unknown fact 'candidate.metric'"),
        (("expect: open", "expect: maybe"), "it is one of: closed, open"),
        (("evidence:", "evidences:"), "unknown key"),
    ],
)
def test_what_does_not_exist_is_refused(run, change, says):
    with pytest.raises(BadConfiguration, match=says):
        run(CASE.replace(*change, 1))
