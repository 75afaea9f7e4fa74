"""What was not fetched is not known, whatever else was."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from service.model import Principal
from service.promotion.approving import Quorum
from service.promotion.facts import LANGUAGE, Facts, Fetched, Source, VersionFacts
from service.promotion.gate import Environment, Mark, Purpose, Rule
from service.promotion.replaying import Past, State, judge_again
from service.records import Approval, ModelVersion

PAST = Past(
    "op", "2026-11-24T12:00:00Z", "main", "iris", "1", "production", Purpose.PROMOTION, "user:a", allowed=True,
    closing=(), approved_under="old", nothing_live=False,
)  # fmt: skip
ALL = Fetched(frozenset(Source), frozenset(Source), digest=True, registrants=True)
APPROVAL = Approval(
    "a", "production", "approve", "user:lead", (), ("group:leads",), "", 1.0, None, "old", incumbent="x"
)
VERSION = ModelVersion("iris", "1", "READY", "None", "s", "r", (), {}, 0, "", {})
FACTS = Facts(
    VersionFacts(VERSION), None, (), (APPROVAL,), Principal("user:a"), "", 2.0, "", incumbent_binding="x", fetched=ALL
)


def gate(text: str = "true", **more: Any) -> Environment:
    rules = (Rule("rule", LANGUAGE.compile(text), "because"),)
    return Environment("production", "*", "*", (Mark("alias", "champion"),), None, rules, **more)


SIGNED = gate("approvals.size() == 1")


@pytest.mark.parametrize(
    ("environment", "fetched", "more", "state"),
    [
        (SIGNED, {}, {}, State.SAME),
        (SIGNED, {"digest": False}, {}, State.NOT_KNOWN),
        (SIGNED, {"registrants": False}, {}, State.NOT_KNOWN),
        (SIGNED, {}, {"incumbent_binding": None}, State.NOT_KNOWN),
        (SIGNED, {"digest": False}, {"approvals": ()}, State.REFUSED),
        (SIGNED, {"digest": False}, {"approvals": (dataclasses.replace(APPROVAL, revoked=True),)}, State.REFUSED),
        (SIGNED, {"digest": False}, {"approvals": (dataclasses.replace(APPROVAL, environment="x"),)}, State.REFUSED),
        (SIGNED, {}, {"approvals": (dataclasses.replace(APPROVAL, rules_digest="older"),)}, State.REFUSED),
        (gate(quorums=(Quorum("group:leads", 1),)), {"registrants": False}, {}, State.NOT_KNOWN),
        (gate(quorums=(Quorum("group:leads", 1),)), {}, {}, State.SAME),
        (gate("candidate.artifact_digest == ''"), {}, {}, State.SAME),
        (gate("candidate.artifact_digest == ''"), {"digest": False}, {}, State.NOT_KNOWN),
        (gate("!has(candidate.run)"), {"candidate": frozenset()}, {}, State.NOT_KNOWN),
        (gate("!has(candidate.run)"), {}, {}, State.SAME),
        (gate("incumbent == null"), {"incumbent": None}, {}, State.NOT_KNOWN),
        (gate("incumbent == null"), {"incumbent": frozenset()}, {}, State.SAME),
        (gate("incumbent != null && incumbent.size < 1"), {"incumbent": frozenset()},
         {"incumbent": VersionFacts(VERSION)}, State.NOT_KNOWN),
        (gate("incumbent != null && incumbent.status == 'READY'"), {"incumbent": frozenset()},
         {"incumbent": VersionFacts(VERSION)}, State.SAME),
        (gate("evidence.size() == 0"), {"digest": False}, {}, State.SAME),
    ],
)  # fmt: skip
def test_what_is_known(environment: Environment, fetched: dict[str, Any], more: dict[str, Any], state: State) -> None:
    facts = dataclasses.replace(FACTS, fetched=dataclasses.replace(ALL, **fetched), **more)
    assert judge_again(PAST, environment, facts).state is state


def test_what_the_event_knows_is_known() -> None:
    facts = dataclasses.replace(FACTS, fetched=dataclasses.replace(ALL, incumbent=None), incumbent_binding=None)
    past = dataclasses.replace(PAST, nothing_live=True)
    assert judge_again(PAST, gate("incumbent == null"), facts).state is State.NOT_KNOWN
    assert judge_again(past, gate("incumbent == null"), facts).state is State.SAME
    given_for_another = judge_again(past, SIGNED, facts)
    assert (given_for_another.state, given_for_another.rules) == (State.REFUSED, ("rule",))


def test_a_rule_that_cannot_close_the_gate_decides_nothing() -> None:
    rule = dataclasses.replace(gate("candidate.size < 1").rules[0], waivable=True)
    facts = dataclasses.replace(FACTS, fetched=dataclasses.replace(ALL, candidate=frozenset()))
    warning = dataclasses.replace(gate(), rules=(dataclasses.replace(rule, severity="warn"),))
    emergency = dataclasses.replace(gate(), rules=(rule,)).judging(Purpose.EMERGENCY)
    for environment in (warning, emergency):
        again = judge_again(PAST, environment, facts)
        assert (again.state, dict(again.unknown)) == (State.SAME, {"rule": ("candidate.size",)})
    assert judge_again(PAST, dataclasses.replace(gate(), rules=(rule,)), facts).state is State.NOT_KNOWN
