"""environments.yaml: what is refused, with its line, and which models an environment covers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import jsonschema_rs
import pytest
import yaml

from service.errors import BadConfiguration
from service.promotion.environments import Environments, load_environments
from service.promotion.gate import Environment, Mark, Sealing
from service.promotion.schema import json_schema
from service.records import Capabilities
from tests.conftest import ROOT

MLFLOW = Capabilities(aliases=True, stages=True, tags=True)
ALIASES_ONLY = Capabilities(aliases=True, stages=False, tags=True)
STAGING = """\
environments:
  staging:
    where: {registry: main, models: "*"}
    marks: [{alias: challenger}, {stage: Staging}]
    rules: []
"""
PRODUCTION = """\
  production:
    where: {registry: main, models: "*"}
    marks: [{alias: champion}]
    after: staging
    rules:
      - name: floor
        require: candidate.metrics.a > 0.5
        because: too low
"""
BOTH = STAGING + PRODUCTION
MORE = "    rules: []\n"
Load = Callable[[str], tuple[Environment, ...]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> tuple[Environment, ...]:
        path = tmp_path / "environments.yaml"
        path.write_text(text, encoding="utf-8")
        return load_environments(path, {"main": MLFLOW, "other": ALIASES_ONLY})

    return load


def test_loads_what_is_written(load: Load) -> None:
    staging, production = load(BOTH)
    assert (staging.name, staging.marks, staging.after, staging.rules) == (
        "staging", (Mark("alias", "challenger"), Mark("stage", "Staging")), None, (),
    )  # fmt: skip
    assert production.after == "staging"
    assert [(rule.name, rule.require.text, rule.because) for rule in production.rules] == [
        ("floor", "candidate.metrics.a > 0.5", "too low")
    ]
    assert production.marked_by("alias", "champion")
    assert not production.marked_by("alias", "Champion")
    assert not production.marked_by("stage", "champion")


def test_a_rule_without_a_because_says_what_is_needed(load: Load) -> None:
    production = load(BOTH.replace("        because: too low\n", ""))[1]
    assert production.rules[0].because == "needed: candidate.metrics.a > 0.5"


RULE = "candidate.metrics.a > 0.5"


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (BOTH.replace("after: staging", "after: testing"), 9, "no environment is named 'testing'"),
        (BOTH.replace("after: staging", "after: production"), 9, "'production' comes after itself"),
        (BOTH.replace("    rules: []", "    after: production\n    rules: []"), 5, "'staging' comes after itself"),
        (BOTH.replace("alias: champion", "alias: challenger"), 8, "both have the alias 'challenger' as a mark"),
        (BOTH.replace("alias: champion", "alias: Challenger"), 8, "both have the alias 'challenger'"),
        (BOTH.replace("alias: champion", "stage: Staging"), 8, "both have the stage 'staging'"),
        (BOTH.replace("alias: champion", "alias: latest"), 8, "reserved"),
        (BOTH.replace("alias: champion", "alias: v1"), 8, "reserved"),
        (BOTH.replace("alias: champion", "alias: a b"), 8, "The alias 'a b'"),
        (BOTH.replace("alias: champion", "stage: production"), 8, "the stage 'production' is none of"),
        (BOTH.replace("alias: champion", "stage: None"), 8, "the stage 'None' is none of"),
        (BOTH.replace("alias: champion", "tag: x"), 8, "a mark is {alias: NAME} or {stage: NAME}"),
        (BOTH.replace("alias: champion", "alias: a, stage: Production"), 8, "a mark is {alias: NAME} or {stage: NAME}"),
        (BOTH.replace("[{alias: champion}]", "[]"), 8, "at least one mark"),
        (BOTH.replace("  production:", "  Production:"), 6, "the environment name 'Production'"),
        (BOTH.replace("  production:", "  a/b:"), 6, "the environment name 'a/b'"),
        (BOTH.replace("  production:", "  staging:"), 6, "'staging' stands twice"),
        (STAGING.replace("registry: main", "registry: third"), 3, "no registry is named 'third'"),
        (STAGING.replace('"*"', '"a*b"'), 3, "prefix that ends"),
        (STAGING.replace('"*"', '""'), 3, "prefix that ends"),
        (STAGING.replace("registry: main", "registry: other"), 4, "the registry 'other' has no stage"),
        (STAGING.replace("registry: main, ", ""), 4, "the registry 'other' has no stage"),
        (BOTH.replace(RULE, "candidate.metric.a > 0.5"), 12, "rule 'floor': unknown fact 'candidate.metric'"),
        (BOTH.replace(RULE, "metrics.a > 0.5"), 12, "undeclared reference to 'metrics.a'"),
        (BOTH.replace(RULE, "candidate.metrics.a >"), 12, "rule 'floor'"),
        (BOTH.replace(RULE, "candidate.metrics.a"), 12, "not a boolean"),
        (BOTH.replace(RULE, "'" + "x" * 3000 + "'"), 12, "3000 characters"),
        (BOTH + "      - name: floor\n        require: 'true'\n", 14, "two rules are named 'floor'"),
        (BOTH + "environment: {}\n", 14, "unknown key 'environment'"),
        (STAGING.replace("[{alias: challenger}", "[&m {alias: challenger}, *m"), 4, "aliases are not read"),
        (STAGING.replace("rules: []", "rules: " + "[" * 40 + "]" * 40), 5, "more than 32 levels"),
        ("environments: [", 2, "not valid YAML"),
        ("", 1, "missing required field `environments`"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(load: Load, text: str, line: int, says: str) -> None:
    with pytest.raises(BadConfiguration, match=rf"environments\.yaml:{line}: .*{re.escape(says)}"):
        load(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (STAGING.replace("    rules: []\n", ""), "missing required field `rules`"),
        (STAGING.replace("rules: []", "rules:"), "Expected `array`, got `null`"),
        (re.sub(r"    marks: .*\n", "", STAGING), "missing required field `marks`"),
        (STAGING.replace("rules: []", "rules: []\n    ruels: []"), "ruels"),
        (BOTH.replace("require:", "requires:"), "require"),
        (
            BOTH.replace("because: too low", "because: too low\n        severity: wran"),
            "severity: Invalid enum value 'wran'; it is one of: block, warn",
        ),
        (BOTH.replace("where: {registry", "where: {registri"), "registri"),
        (BOTH.replace("alias: champion", "alias: 1"), "Expected `str`"),
    ],
)
def test_what_is_unknown_or_missing_inside_an_environment_is_refused(load: Load, text: str, says: str) -> None:
    with pytest.raises(BadConfiguration, match=re.escape(says)):
        load(text)


@pytest.mark.parametrize(
    ("one", "two", "clash"),
    [
        (("main", "*"), ("main", "*"), True),
        (("main", "*"), ("*", "iris"), True),
        (("main", "iris"), ("main", "iris"), True),
        (("main", "team-*"), ("main", "team-a-*"), True),
        (("main", "team-a-*"), ("main", "team-a-x"), True),
        (("main", "team-a-x"), ("*", "team-*"), True),
        (("main", "team-a-*"), ("main", "team-b-*"), False),
        (("main", "team-a-*"), ("main", "team-b"), False),
        (("main", "iris"), ("main", "iris2"), False),
        (("main", "*"), ("other", "*"), False),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_two_environments_share_a_mark_only_where_no_model_has_both(
    load: Load, one: tuple[str, str], two: tuple[str, str], clash: bool, turned: bool
) -> None:
    pairs = [two, one] if turned else [one, two]
    text = "environments:\n" + "".join(
        f"  e{index}:\n    where: {{registry: '{registry}', models: '{models}'}}\n"
        "    marks: [{alias: live}]\n    rules: []\n"
        for index, (registry, models) in enumerate(pairs)
    )
    if clash:
        with pytest.raises(BadConfiguration, match=r":8: 'e1' and 'e0' both have the alias 'live' as a mark"):
            load(text)
    else:
        assert len(load(text)) == 2


@pytest.mark.parametrize(
    ("registry", "models", "covered", "not_covered"),
    [
        ("*", "*", [("main", "iris"), ("other", "x")], []),
        ("main", "*", [("main", "iris")], [("other", "iris")]),
        ("main", "iris", [("main", "iris")], [("main", "iris2"), ("main", "Iris"), ("main", "")]),
        ("main", "team-*", [("main", "team-"), ("main", "team-a")], [("main", "team"), ("main", "a-team-x")]),
    ],
)
def test_an_environment_covers_its_models(
    registry: str, models: str, covered: list[tuple[str, str]], not_covered: list[tuple[str, str]]
) -> None:
    one = Environment("e", registry, models, (Mark("alias", "a"),), None, ())
    all_ = Environments((one,))
    for where in covered:
        assert all_.of(*where) == (one,)
        assert all_.get(*where, "e") is one
        assert all_.get(*where, "f") is None
    for where in not_covered:
        assert all_.of(*where) == ()
        assert all_.get(*where, "e") is None


def test_the_shipped_file_loads() -> None:
    path = Path(__file__).parent.parent.parent / "policies" / "environments.yaml"
    loaded = load_environments(path, {"main": MLFLOW})
    assert [item.name for item in loaded] == ["staging", "production"]
    assert loaded[1].names("approvals")


@pytest.mark.parametrize(
    ("staging", "production", "expected"),
    [
        ("", "", (Sealing.NEVER, Sealing.APPROVED)),
        ("    seal: live\n", "    seal: never\n", (Sealing.LIVE, Sealing.NEVER)),
        ("    seal: approved\n", "    seal: live\n", (Sealing.APPROVED, Sealing.LIVE)),
    ],
)
def test_sealing_is_by_default_where_something_is_asked(load: Load, staging: str, production: str, expected) -> None:
    found = load(STAGING + staging + PRODUCTION.replace("    after: staging\n", f"    after: staging\n{production}"))
    assert tuple(item.sealing for item in found) == expected
    assert tuple(item.seals for item in found) == tuple(item is not Sealing.NEVER for item in expected)


def test_what_only_stands_after_another_is_sealed_too(load: Load) -> None:
    text = BOTH[: BOTH.index("    rules:\n      - name: floor")] + "    rules: []\n"
    assert load(text)[1].sealing is Sealing.APPROVED


@pytest.mark.parametrize(
    ("more", "line", "says"),
    [
        ("    seal: always\n", 14, "seal: Invalid enum value 'always'; it is one of: approved, live, never"),
        ("    seal: true\n", 14, "seal"),
        ("    sealed_tags: [a, 'b*c']\n", 14, "sealed_tags: a tag's key, or a prefix that ends in *"),
        ("    sealed_tags: [' ']\n", 14, "sealed_tags: a tag's key, or a prefix that ends in *"),
        ("    sealed_tags: a\n", 14, "sealed_tags"),
        ("    sealed_tags: [1]\n", 14, "sealed_tags"),
        ("    seal: never\n    sealed_tags: [a]\n", 15, "nothing is sealed here"),
    ],
)
def test_a_wrong_seal_is_refused_with_its_line(load: Load, more: str, line: int, says: str) -> None:
    with pytest.raises(BadConfiguration, match=re.escape(says)) as raised:
        load(BOTH + more)
    assert f"environments.yaml:{line}:" in raised.value.detail


def test_tags_may_not_be_listed_where_nothing_is_asked(load: Load) -> None:
    with pytest.raises(BadConfiguration, match="nothing is sealed here"):
        load(STAGING + "    sealed_tags: [a]\n")
    assert load(STAGING + "    seal: live\n    sealed_tags: [a, 'b/*']\n")[0].sealed_tags == ("a", "b/*")


def test_a_seal_does_not_change_what_approvals_are_bound_to(load: Load) -> None:
    sealed = load(BOTH + "    seal: live\n    sealed_tags: [a]\n")
    assert [item.rules_digest for item in sealed] == [item.rules_digest for item in load(BOTH)]


RULES = """\
rule_sets:
  baseline:
    - {name: floor, require: candidate.metrics.a > environment.parameters.floor}
environments:
  production:
    marks: [{alias: champion}]
    use: [baseline]
    parameters: {floor: 0.5}
    rules: []
    overrides:
      - {models: "fraud-*", rules: [{name: bias, require: "passed(evidence, 'bias')"}]}
"""


def test_rules_come_from_sets_and_overrides_add(load: Load) -> None:
    (production,) = load(RULES)
    environments = Environments((production,))
    names = {
        model: [rule.name for rule in environments.of("main", model)[0].rules] for model in ("iris", "fraud-1", "fraud")
    }
    assert names == {"iris": ["floor"], "fraud-1": ["floor", "bias"], "fraud": ["floor"]}
    digests = {environments.of("main", model)[0].rules_digest for model in names}
    assert len(digests) == 2


def test_an_override_that_relaxes_says_so_in_each_verdict_of_its_models(load: Load) -> None:
    more = """\
      - models: fraud-old*
        relax: true
        reason: until they are retrained in May
        rules: [{name: floor, require: candidate.metrics.a > 0.1}]
      - {models: toy, relax: true, reason: nobody uses it, without: [floor]}
"""
    environments = Environments(load(RULES + more))
    found = {model: environments.of("main", model)[0] for model in ("fraud-1", "fraud-old-1", "toy", "iris")}
    assert {model: [rule.name for rule in item.rules] for model, item in found.items()} == {
        "fraud-1": ["floor", "bias"], "fraud-old-1": ["floor", "bias"], "toy": [], "iris": ["floor"],
    }  # fmt: skip
    assert found["fraud-old-1"].rules[0].require.text == "candidate.metrics.a > 0.1"
    assert found["fraud-old-1"].relaxed == ("floor (fraud-old*: until they are retrained in May)",)
    assert found["toy"].rules_document()["relaxed"] == ["floor (toy: nobody uses it)"]
    assert (found["iris"].relaxed, "relaxed" in found["iris"].rules_document()) == ((), False)
    assert len({item.rules_digest for item in found.values()}) == 4


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("use: [baseline]", "use: [base]"), 7, "no rule set is named 'base'; rule_sets has: baseline"),
        (("{name: bias", "{name: floor"), 11, "the override names 'floor' again: it only adds, unless `relax: true`"),
        (("rules: [{name: bias", "without: [floor], rules: [{name: bias"), 11, "the override has `without`: it only"),
        (("rules: [{name: bias", "reason: r, rules: [{name: bias"), 11, "reason: it belongs to `relax: true`"),
        (("rules: [{name: bias", "relax: true, rules: [{name: floor"), 11, "a `reason` must say why"),
        (("rules: [{name: bias", "relax: true, reason: r, rules: [{name: bias"), 11, "nothing here replaces a rule"),
        (
            ("rules: [{name: bias", "relax: true, reason: r, without: [flor], rules: [{name: bias"),
            11,
            "without: no rule is named 'flor'; there are: floor",
        ),
        (
            (RULES[-10:], RULES[-10:] + "      - {models: fraud-1, rules: [{name: bias, require: 'true'}]}\n"),
            12,
            "two overrides of the same models both name the rule 'bias'",
        ),
        (("fraud-*", "fr*ud"), 11, "prefix that ends"),
        (("{floor: 0.5}", "{flor: 0.5}"), 5, "reads the parameter 'floor'; parameters has: flor"),
        (("name: bias", "name: ready"), 11, "belongs to a finding that every gate has"),
        (("name: bias", "name: approvals-x"), 11, "belongs to a finding that every gate has"),
        ((MORE, MORE + "    mode: watch\n"), 10, "it is one of: enforce, observe, warn"),
        ((MORE, MORE + "    freezes: [{from: 2026-01-02, until: 2026-01-03, because: x}]\n"), 10, "from"),
        (
            (MORE, MORE + "    freezes: [{from: 2026-01-02T00:00:00Z, until: 2026-01-01T00:00:00Z, because: x}]\n"),
            10,
            "the freeze ends before it begins",
        ),
        ((MORE, MORE + "    allowed_times: [{days: [mon], time_zone: Mars/Base}]\n"), 10, "no time zone"),
        ((MORE, MORE + "    allowed_times: [{days: [mon], time_zone: ../UTC}]\n"), 10, "no time zone"),
        (
            (MORE, MORE + "    allowed_times: [{days: [mon], time_zone: UTC, from: '9:00'}]\n"),
            10,
            "is not a time such as 09:30",
        ),
        ((MORE, MORE + "    approvals: {expire_after: 1w}\n"), 10, "approvals.expire_after"),
        ((MORE, MORE + "    approvals: {required: [{group: leads}]}\n"), 10, "group"),
        (
            (MORE, MORE + "    approvals: {required: [{group: 'group:a'}, {group: 'group:a'}]}\n"),
            10,
            "a group stands twice",
        ),
        ((MORE, MORE + "    evidence: {bias: {keys: [none.pem]}}\n"), 10, "none.pem: No such file"),
        ((MORE, MORE + "    on_drft: report\n"), 10, "on_drft'; there are: marks, rules, where"),
        ((MORE, MORE + "    waivable: [ready]\n"), 10, "it is one of: after, allowed-times, approvals, freeze"),
        ((MORE, MORE + "    on_drift: repair\n"), 10, "it is one of: report, revert"),
    ],
)  # fmt: skip
def test_a_wrong_key_of_the_larger_file_is_refused_with_its_line(
    load: Load, change: tuple[str, str], line: int | None, says: str
) -> None:
    with pytest.raises(BadConfiguration, match=re.escape(says)) as raised:
        load(RULES.replace(*change))
    if line is not None:
        assert f"environments.yaml:{line}:" in str(raised.value)


def test_the_json_schema_takes_what_the_loader_takes() -> None:
    schema = jsonschema_rs.validator_for(json.loads(json_schema()))
    for text in (BOTH, RULES, (ROOT / "policies/environments.yaml").read_text()):
        assert schema.is_valid(yaml.safe_load(text))
    for bad in (RULES.replace("use:", "uses:"), RULES.replace(MORE, MORE + "    mode: watch\n")):
        assert not schema.is_valid(yaml.safe_load(bad))


@pytest.mark.parametrize("clock", ["00:00", "07:30", "08:15", "09:00", "10:00", "12:34", "19:59", "23:00"])
def test_a_time_of_day_is_read_with_and_without_quotes(load: Load, clock: str) -> None:
    line = "    allowed_times: [{days: [mon], time_zone: UTC, from: CLOCK, until: '23:59'}]\n"
    texts = [RULES.replace(MORE, MORE + line.replace("CLOCK", written)) for written in (clock, f"'{clock}'")]
    bare, quoted = (load(text)[-1].allowed_times for text in texts)
    assert bare == quoted
    assert f"{bare[0].since:%H:%M}" == clock
