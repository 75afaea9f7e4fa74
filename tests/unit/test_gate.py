"""The gate is pure: a table of facts in, findings out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from service.model import Finding, Principal
from service.promotion.facts import LANGUAGE, Facts, Source, VersionFacts, newest_evidence, version_document
from service.promotion.gate import Environment, Mark, Rule
from service.records import Approval, Creation, Evidence, LivePeriod, ModelVersion, Run

NOW = 1_000_000.0
CI = Principal("service:ci", frozenset({"group:ci"}))
LEADS = "approvals.exists(a, 'group:leads' in a.groups)"
VALIDATED = "evidence.exists(e, e.kind == 'validation' && e.result == 'passed')"

BY_ANN = Creation("iris", "2", "b", "user:ann", (), 1.0)


def version(number: str = "2", created_ms: int = 500_000, **fields: Any) -> ModelVersion:
    values: dict[str, Any] = {
        "model": "iris", "version": number, "status": "READY", "stage": "None", "source": "runs:/r/m", "run_id": "r",
        "aliases": (), "tags": {}, "created_ms": created_ms, "description": "", "native": {},
    }  # fmt: skip
    return ModelVersion(**{**values, **fields})


def run(**metrics: float) -> Run:
    return Run(
        "r", "1", "FINISHED", "", metrics, {"depth": "3"}, {"mlflow.source.git.commit": "abc"}, ({"name": "train"},)
    )


def environment(*rules: str, after: str | None = None, **fields: Any) -> Environment:
    compiled = tuple(Rule(f"rule-{index}", LANGUAGE.compile(text), "because") for index, text in enumerate(rules))
    values = {"registry": "*", "models": "*", "marks": (Mark("alias", "champion"),), **fields}
    return Environment("production", after=after, rules=compiled, **values)


def facts(candidate: VersionFacts | None = None, **fields: Any) -> Facts:
    values = {
        "artifact_digest": "",
        "incumbent": None,
        "evidence": (),
        "approvals": (),
        "principal": CI,
        "reason": "",
        "now": NOW,
        **fields,
    }
    return Facts(candidate or VersionFacts(version()), **values)


def judge(gate: Environment, given: Facts) -> tuple[bool, dict[str, Finding]]:
    verdict = gate.judge(given, "main")
    assert verdict.rules_digest == gate.rules_digest
    return verdict.allowed, {finding.rule: finding for finding in verdict.findings}


@pytest.mark.parametrize(
    ("status", "passed"),
    [("READY", True), ("PENDING_REGISTRATION", False), ("FAILED_REGISTRATION", False), ("", False)],
)
def test_only_a_ready_version_passes(status: str, passed: bool) -> None:
    allowed, findings = judge(environment(), facts(VersionFacts(version(status=status))))
    assert (allowed, findings["ready"].passed) == (passed, passed)
    assert findings["ready"].facts == {"candidate.status": status}


FLOOR = "candidate.metrics.accuracy >= 0.9"


@pytest.mark.parametrize(
    ("rule", "candidate", "passed", "missing"),
    [
        (FLOOR, VersionFacts(version(), run(accuracy=0.9)), True, ()),
        (FLOOR, VersionFacts(version(), run(accuracy=0.89)), False, ()),
        (FLOOR, VersionFacts(version(), run(accuracy=math.nan)), False, ("candidate.metrics.accuracy",)),
        (FLOOR, VersionFacts(version(), run()), False, ("candidate.metrics.accuracy",)),
        (FLOOR, VersionFacts(version()), False, ("candidate.metrics.accuracy",)),
        ("candidate.run.status == 'FINISHED'", VersionFacts(version(), run()), True, ()),
        ("candidate.run.status == 'FINISHED'", VersionFacts(version()), False, ("candidate.run.status",)),
        ("candidate.source.commit == 'abc' && candidate.params.depth == '3'", VersionFacts(version(), run()), True, ()),
        ("candidate.datasets.exists(d, d.name == 'train')", VersionFacts(version(), run()), True, ()),
        ("candidate.signature != null", VersionFacts(version()), False, ()),
        ("candidate.signature != null", VersionFacts(version(), mlmodel={"signature": {"inputs": "[]"}}), True, ()),
        ("candidate.signature != null", VersionFacts(version(), mlmodel={"signature": {"outputs": "[]"}}), False, ()),
        ("'sklearn' in candidate.flavors", VersionFacts(version(), mlmodel={"flavors": {"sklearn": {}}}), True, ()),
        ("'sklearn' in candidate.flavors", VersionFacts(version(), mlmodel={"flavors": "sklearn"}), False, ()),
        ("candidate.created_by != request.principal", VersionFacts(version()), False, ("candidate.created_by",)),
        ("candidate.created_by == 'user:ann'", VersionFacts(version(), creation=BY_ANN), True, ()),
        ("candidate.tags.team == 'a'", VersionFacts(version(tags={"team": "a"})), True, ()),
        ("candidate.created < now", VersionFacts(version()), True, ()),
        ("candidate.created > now", VersionFacts(version(created_ms=int(NOW * 1000) + 1)), True, ()),
        ("environment.name == 'production' && environment.registry == 'main'", VersionFacts(version()), True, ()),
        ("'group:ci' in request.groups && request.principal == 'service:ci'", VersionFacts(version()), True, ()),
    ],
)  # fmt: skip
def test_a_rule_gives_a_finding(rule: str, candidate: VersionFacts, passed: bool, missing: tuple[str, ...]) -> None:
    allowed, findings = judge(environment(rule), facts(candidate))
    assert (allowed, findings["rule-0"].passed, findings["rule-0"].missing) == (passed, passed, missing)


def test_every_finding_is_given_and_not_the_first_failure_only() -> None:
    gate = environment(FLOOR, "true", "1 / 0 == 1", "incumbent == null || incumbent.metrics.accuracy < 0.5")
    allowed, findings = judge(gate, facts(VersionFacts(version(), run(accuracy=0.5))))
    assert not allowed
    assert [finding.passed for finding in findings.values()] == [True, False, True, False, True]
    assert findings["rule-0"].facts == {"candidate.metrics.accuracy": 0.5}
    assert findings["rule-0"].because == "because"
    assert "could not be evaluated" in findings["rule-2"].because
    assert findings["rule-3"].facts == {"incumbent": None, "incumbent.metrics.accuracy": None}


def test_findings_show_facts_as_json_and_short() -> None:
    candidate = VersionFacts(version(description="x" * 500), run(a=math.nan))
    gate = environment("candidate.description != '' && candidate.created < now && candidate.metrics.a > 0.0")
    shown = judge(gate, facts(candidate))[1]["rule-0"]
    assert shown.facts["candidate.description"] == "x" * 200 + "\u2026"
    assert shown.facts["candidate.created"] == "1970-01-01T00:08:20+00:00"
    assert shown.facts["candidate.metrics.a"] == "NaN"
    assert "(missing: candidate.metrics.a)" in shown.because


def test_the_incumbent_is_compared_where_there_is_one() -> None:
    gate = environment("incumbent == null || candidate.metrics.a >= incumbent.metrics.a")
    better, worse = VersionFacts(version(), run(a=0.8)), VersionFacts(version("1"), run(a=0.9))
    assert judge(gate, facts(better))[0]
    assert not judge(gate, facts(better, incumbent=worse))[0]
    assert judge(gate, facts(worse, incumbent=better))[0]
    assert judge(gate, facts(better, incumbent=VersionFacts(version("1"))))[1]["rule-0"].missing == (
        "incumbent.metrics.a",
    )


def evidence(kind: str, result: str, at: float = 1.0) -> Evidence:
    return Evidence(f"{kind}-{at}", kind, result, "service:ci", (), {"auc": 0.7}, "", at)


@pytest.mark.parametrize(
    ("posted", "passed"),
    [
        ([], False),
        ([("validation", "passed")], True),
        ([("validation", "failed")], False),
        ([("validation", "failed"), ("validation", "passed")], True),
        ([("validation", "passed"), ("validation", "failed")], False),
        ([("validation", "passed"), ("bias", "failed")], True),
        ([("bias", "passed")], False),
    ],
)
def test_the_newest_evidence_of_a_kind_counts(posted: list[tuple[str, str]], passed: bool) -> None:
    given = [evidence(kind, result, at) for at, (kind, result) in enumerate(posted)]
    assert judge(environment(VALIDATED), facts(evidence=given))[0] is passed
    assert len(newest_evidence(given)) == len({kind for kind, _ in posted})


GATE = environment(LEADS)
SIGNED = Approval(
    "a1", "production", "approve", "user:lea", ("user:lea",), ("group:leads",), "fine", 10.0, None, GATE.rules_digest
)
REGISTERED = VersionFacts(version(), creation=Creation("iris", "2", "b", "user:ann", ("user:ann", "user:boss"), 1.0))


@pytest.mark.parametrize(
    ("changes", "principal", "passed"),
    [
        ({}, CI, True),
        ({"groups": ("group:readers",)}, CI, False),
        ({"environment": "staging"}, CI, False),
        ({"decision": "reject"}, CI, False),
        ({"revoked": True}, CI, False),
        ({"expires": NOW + 1}, CI, True),
        ({"expires": NOW}, CI, False),
        ({"expires": NOW - 1}, CI, False),
        ({"rules_digest": "other"}, CI, False),
        ({"by": "user:ann", "persons": ("user:ann",)}, CI, False),  # who registered it
        ({"by": "user:boss", "persons": ("user:boss",)}, CI, False),  # for whom it was registered
        ({"persons": ("user:lea", "user:ann")}, CI, False),  # signed for the one who registered it
        ({}, Principal("user:lea"), False),  # who promotes it
        ({}, Principal("service:bot", acting_for="user:lea"), False),  # for whom it is promoted
        ({"by": "service:bot", "persons": ("service:bot", "user:lea")}, Principal("user:lea"), False),
        ({}, Principal("service:bot", acting_for="user:kim"), True),
    ],
)
def test_an_approval_counts_or_not(changes: dict[str, Any], principal: Principal, passed: bool) -> None:
    approval = dataclasses.replace(SIGNED, **changes)
    assert judge(GATE, facts(REGISTERED, approvals=[approval], principal=principal))[0] is passed


def by(person: str, decision: str, **changes: Any) -> Approval:
    return dataclasses.replace(SIGNED, id=person + decision, by=person, persons=(person,), decision=decision, **changes)


@pytest.mark.parametrize(
    ("given", "passed", "rejected"),
    [
        ([by("user:lea", "approve"), by("user:kim", "reject")], False, ["user:kim"]),
        ([by("user:kim", "reject"), by("user:lea", "approve")], False, ["user:kim"]),
        ([by("user:lea", "reject"), by("user:lea", "approve")], True, []),
        ([by("user:lea", "approve"), by("user:lea", "reject")], False, ["user:lea"]),
        ([by("user:lea", "approve"), by("user:kim", "reject", revoked=True)], True, []),
        ([by("user:lea", "approve"), by("user:kim", "reject", expires=NOW)], True, []),
        ([by("user:lea", "approve"), by("user:kim", "reject", environment="staging")], True, []),
        ([by("user:lea", "approve"), by("user:lea", "approve", expires=NOW)], False, []),
        ([by("user:lea", "approve"), by("user:ann", "reject")], False, ["user:ann"]),  # a no counts from anyone
    ],
)
def test_a_rejection_closes_the_gate_until_it_is_taken_back(
    given: list[Approval], passed: bool, rejected: list[str]
) -> None:
    verdict = GATE.judge(facts(REGISTERED, approvals=given), "main")
    assert verdict.allowed is passed
    no = [finding for finding in verdict.findings if finding.rule == "not-rejected"]
    assert [finding.because for finding in no] == [f"rejected by {person}: fine" for person in rejected]
    assert not any(finding.passed for finding in no)


@pytest.mark.parametrize(
    ("name", "binding", "until", "passed"),
    [
        ("staging", "own", None, True),
        ("staging", "own", 90.0, True),
        ("staging", "another", None, False),
        ("testing", "own", None, False),
    ],
)
def test_after_asks_that_this_very_version_was_live_there(
    name: str, binding: str, until: float | None, passed: bool
) -> None:
    bound = version().binding if binding == "own" else version(created_ms=1).binding
    period = LivePeriod(name, "2", bound, 80.0, until, "user:ann", "op", "")
    allowed, findings = judge(environment(after="staging"), facts(VersionFacts(version(), periods=[period])))
    assert (allowed, findings["after-staging"].passed) == (passed, passed)


def test_the_first_time_live_is_told() -> None:
    periods = [LivePeriod("staging", "2", version().binding, since, None, "u", "op", "") for since in (80.0, 200.0)]
    document = version_document(VersionFacts(version(), periods=periods))
    assert document["environments"]["staging"]["since"].timestamp() == 80.0


def test_the_digest_names_rules_and_their_order() -> None:
    base = environment("true", FLOOR)
    assert base.rules_digest == environment("true", FLOOR, marks=(Mark("alias", "x"),), models="a*").rules_digest
    others = [environment("true"), environment(FLOOR, "true"), environment("true", FLOOR, after="staging")]
    assert len({base.rules_digest, *(other.rules_digest for other in others)}) == 4


@pytest.mark.parametrize(
    ("rules", "after", "candidate", "incumbent"),
    [
        (["true"], None, set(), set()),
        (["candidate.tags.x == ''"], None, set(), set()),
        (["incumbent == null"], None, set(), set()),
        ([FLOOR], None, {Source.RUN}, set()),
        (["incumbent == null || incumbent.params.x == ''"], None, set(), {Source.RUN}),
        (["candidate.source.uri == ''"], None, set(), set()),
        (["candidate.source.commit == ''"], None, {Source.RUN}, set()),
        (["has(candidate.signature.inputs)"], None, {Source.FILES}, set()),
        (["candidate.created_by == ''"], None, {Source.RECORD}, set()),
        ([LEADS], None, {Source.RECORD}, set()),
        ([VALIDATED], None, set(), set()),
        ([], "staging", {Source.RECORD}, set()),
    ],
)
def test_only_what_a_rule_names_is_fetched(
    rules: list[str], after: str | None, candidate: set[Source], incumbent: set[Source]
) -> None:
    gate = environment(*rules, after=after)
    assert (gate.sources("candidate"), gate.sources("incumbent")) == (candidate, incumbent)


def test_a_gate_without_facts_is_closed_and_a_verdict_has_json_shape() -> None:
    verdict = environment(FLOOR).judge(facts(), "main")
    document = verdict.document()
    assert document["allowed"] is False
    assert document["findings"][1]["missing"] == ["candidate.metrics.accuracy"]
    assert environment(FLOOR).judge(facts(), "main") == verdict
