"""Facts that are kept give the same verdict when they are restored."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.model import Principal
from service.promotion.approving import Quorum
from service.promotion.facts import LANGUAGE, Facts, Fetched, Source, VersionFacts
from service.promotion.gate import Environment, EvidenceTerms, Mark, Purpose, Rule
from service.promotion.keeping import MAX_BYTES, keep, restore
from service.records import Approval, Creation, Evidence, LivePeriod, ModelVersion, PromotionRequest, Run

NOW = 1_700_000_000.123456
TEXTS = (
    "candidate.metrics.accuracy >= 0.5",
    "!has(candidate.metrics.accuracy) || candidate.metrics.accuracy < 0.5",
    "incumbent == null || candidate.metrics.accuracy >= incumbent.metrics.accuracy",
    "size(candidate.metrics) > 0",
    "candidate.params.depth == '3' && candidate.tags.team != ''",
    "candidate.signature != null && candidate.signature.inputs != ''",
    "'sklearn' in candidate.flavors && candidate.flavors.size() < 3",
    "candidate.size < 1000",
    "'numpy' in candidate.requirements",
    "candidate.created_by != '' && candidate.created < now",
    "now - candidate.environments.staging.since >= duration('24h')",
    "candidate.datasets.exists(d, d.digest != '')",
    "evidence.exists(e, e.kind == 'a' && e.facts.gap < 0.5)",
    "passed(evidence, 'a')",
    "candidate.artifact_digest != 'x'",
    "approvals.exists(a, 'group:leads' in a.groups)",
    "'group:ci' in request.groups && request.claims.ref == 'main'",
    "request.change.id != '' && request.reason != ''",
)

words = st.sampled_from(["", "a", "b", "x", "é|`", "\ud800", "group:leads", "group:ci", "sklearn", "float"])
names = st.sampled_from(["accuracy", "team", "depth", "gap", "ref", "id", "float", "x"])
numbers = st.one_of(st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, 0.1, -0.0, 1e308]))
moments = st.floats(NOW - 1e6, NOW + 1e6)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), numbers, words)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=8,
)
tags = st.dictionaries(names, words, max_size=3)
versions = st.builds(
    ModelVersion, model=words, version=st.sampled_from(["1", "2"]), status=st.sampled_from(["READY", ""]), stage=words,
    source=names, run_id=words, aliases=st.lists(words, max_size=2).map(tuple), tags=tags,
    created_ms=st.integers(0, 10**13), description=words, native=st.just({"anything": object()}),
)  # fmt: skip
runs = st.builds(
    Run, run_id=words, experiment_id=words, status=words, artifact_uri=words,
    metrics=st.dictionaries(names, numbers, max_size=4), params=tags, tags=tags,
    datasets=st.lists(st.dictionaries(st.sampled_from(["name", "digest"]), words), max_size=2).map(tuple),
)  # fmt: skip
periods = st.builds(
    LivePeriod, environment=st.sampled_from(["staging", "production"]), version=words, binding=words, since=moments,
    until=st.none() | moments, by=words, operation=words, reason=words, behind=st.just(("r",)),
    kind=st.sampled_from(["promotion", "drift"]),
    artifact_digest=st.sampled_from([None, "", "d"]), passed=st.booleans(),
)  # fmt: skip
mlmodels = st.fixed_dictionaries({}, optional={
    "signature": st.none() | words | st.dictionaries(st.sampled_from(["inputs", "outputs"]), scalars, max_size=2),
    "flavors": st.none() | st.lists(words, max_size=2) | st.dictionaries(words | st.integers() | st.text(max_size=200),
                                                                       scalars, max_size=3),
    "utc_time_created": st.just(datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)),
})  # fmt: skip
persons = st.lists(words, max_size=2).map(tuple)


@st.composite
def judged(draw: st.DrawFn) -> Facts:
    version = draw(versions)

    def about(one: ModelVersion) -> VersionFacts:
        lived = [dataclasses.replace(item, binding=one.binding) for item in draw(st.lists(periods, max_size=2))]
        creation = draw(
            st.none() | st.builds(Creation, words, words, st.just(one.binding), words, persons, moments)
        )  # fmt: skip
        return VersionFacts(
            one, draw(st.none() | runs), draw(st.none() | mlmodels), creation, tuple(lived),
            draw(st.none() | st.integers(0, 10**12)), draw(st.none() | st.lists(words, max_size=2)),
        )  # fmt: skip

    digests = st.sampled_from(["", "d"])
    evidence = st.builds(
        Evidence, id=words, kind=st.sampled_from(["a", "b"]), result=st.sampled_from(["passed", "failed"]), by=words,
        groups=persons, facts=st.dictionaries(names, documents, max_size=3), source=words, at=moments,
        artifact_digest=digests, persons=persons, expires=st.none() | moments,
        proof=st.none() | st.just({"key": "k", "type": "dsse", "digest": "d"}),
    )  # fmt: skip
    approvals = st.builds(
        Approval, id=words, environment=st.just("production"), decision=st.sampled_from(["approve", "reject"]),
        by=words, persons=persons, groups=persons, reason=words, at=moments, expires=st.none() | moments,
        rules_digest=st.sampled_from([GATES[0].rules_digest, ""]), revoked=st.booleans(), artifact_digest=digests,
        incumbent=st.sampled_from([None, ""]), review=words,
    )  # fmt: skip
    requests = st.builds(
        PromotionRequest, id=words, environment=words, version=words, binding=words, by=words, persons=persons,
        reason=words, at=moments, expires=moments, change=tags,
    )  # fmt: skip
    return Facts(
        candidate=about(version),
        incumbent=about(draw(versions)) if draw(st.booleans()) else None,
        evidence=tuple(draw(st.lists(evidence, max_size=3))),
        approvals=tuple(draw(st.lists(approvals, max_size=3))),
        principal=Principal(
            "service:ci", draw(st.frozensets(words)), draw(st.none() | words), "api-key", "key",
            draw(st.dictionaries(names, documents, max_size=2)), draw(st.frozensets(words, max_size=2)),
        ),
        reason=draw(words), now=NOW, artifact_digest=draw(st.none() | digests),
        incumbent_binding=draw(st.none() | st.just("")), requests=tuple(draw(st.lists(requests, max_size=1))),
        quarantine=draw(st.none() | words), change=draw(tags),
        registrants=draw(st.frozensets(words)), askers=draw(st.frozensets(words)), debt=draw(words),
        fetched=draw(st.none() | st.builds(
            Fetched, st.frozensets(st.sampled_from(Source)), st.none() | st.frozensets(st.sampled_from(Source)),
            digest=st.booleans(), registrants=st.booleans(),
        )),
    )  # fmt: skip


def gate(purpose: Purpose) -> Environment:
    rules = tuple(Rule(f"rule-{index}", LANGUAGE.compile(text), "because") for index, text in enumerate(TEXTS))
    return Environment(
        "production", "*", "*", (Mark("alias", "champion"),), "staging", rules, rollback_rules=rules,
        quorums=(Quorum("group:leads", 1),), evidence={"b": EvidenceTerms(60.0)},
    ).judging(purpose)  # fmt: skip


GATES = [gate(purpose) for purpose in Purpose]


def stored(document: Any) -> Any:
    return json.loads(json.dumps(document, allow_nan=False))


@given(judged())
def test_restored_facts_give_the_same_verdict(facts: Facts) -> None:
    kept = keep(facts)
    assert not kept.problem
    restored = restore(stored(kept.document), kept.digest, NOW)
    for environment in GATES:
        assert environment.judge(restored, "main") == environment.judge(facts, "main")
    again = keep(restored)
    assert (again.digest, again.document) == (kept.digest, kept.document)
    assert (restored.fetched, restored.principal.persons) == (facts.fetched, facts.principal.persons)
    later = keep(dataclasses.replace(facts, now=NOW + 1))
    assert later.digest == kept.digest  # the time is no part of it


def plain(**run: Any) -> Facts:
    version = ModelVersion("iris", "1", "READY", "None", "s", "r", (), {}, 0, "", {"secret": "native"})
    made = Run("r", "0", "FINISHED", "", {}, {}, {}, ())
    return Facts(
        VersionFacts(version, dataclasses.replace(made, **run)), None, (), (), Principal("user:a"), "", NOW
    )  # fmt: skip


def test_the_registrys_own_form_is_not_kept() -> None:
    assert "native" not in json.dumps(keep(plain()).document).replace('"native": {}', "")


def test_facts_that_are_too_large_are_not_kept_and_it_is_said() -> None:
    kept = keep(plain(params={"p": "x" * MAX_BYTES}))
    assert (kept.digest, kept.document) == ("", {})
    assert f"at most {MAX_BYTES}" in kept.problem


def test_what_is_no_json_is_not_kept_and_fails_nothing() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    for odd in ({"a": object()}, {1: "a"}, {"a": nested}):
        claims = dataclasses.replace(plain(), principal=Principal("user:a", claims=odd))  # type: ignore[arg-type]
        assert keep(claims).problem.startswith("the facts are not kept: ")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"form": 2}, "in a form that this version does not read"),
        ({"facts": []}, "in a form that this version does not read"),
        ({"facts": {}}, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said(change: dict[str, Any], problem: str) -> None:
    kept = keep(plain())
    document = {**kept.document, **change}
    with pytest.raises(ValueError, match="not those that the event names"):
        restore(document, kept.digest, NOW)
    from service.promotion import keeping

    digest = keeping.hashlib.sha256(keeping._canonical(document)).hexdigest()
    with pytest.raises(ValueError, match=problem):
        restore(document, digest, NOW)
