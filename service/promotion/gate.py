"""A gate guards an environment: each rule gives a finding, all findings are one verdict. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.model import Finding, Verdict
from service.promotion.expression import Expression, Path, resolve
from service.promotion.facts import Facts, Source, sources_of

_MAX_FACT_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Rule:
    """One requirement, in CEL, and the sentence that says why."""

    name: str
    require: Expression
    because: str


@dataclass(frozen=True, slots=True)
class Mark:
    """What in the registry says that a version is live: an alias or one of MLflow's stages."""

    kind: str
    """``alias`` or ``stage``."""
    value: str


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment of the models it covers, how it is marked, and what guards it."""

    name: str
    registry: str
    models: str
    """Exact, or a prefix followed by ``*``."""
    marks: tuple[Mark, ...]
    """The first one says what is live."""
    after: str | None
    rules: tuple[Rule, ...]

    def covers(self, registry: str, model: str) -> bool:
        """Tell whether *model* of *registry* has this environment."""
        if self.registry not in ("*", registry):
            return False
        return model.startswith(self.models[:-1]) if self.models.endswith("*") else model == self.models

    def marked_by(self, kind: str, value: str) -> bool:
        """Tell whether *value* of *kind* marks this environment."""
        return any(mark.kind == kind and mark.value == value for mark in self.marks)

    @property
    def seals(self) -> bool:
        """Tell whether what is live here must not be rewritten: wherever something was asked of it."""
        return bool(self.rules) or self.after is not None

    @property
    def rules_digest(self) -> str:
        """Name the rules: an approval given under others is stale."""
        text = json.dumps([self.after, [[rule.name, rule.require.text, rule.because] for rule in self.rules]])
        return hashlib.sha256(text.encode()).hexdigest()

    def sources(self, side: str) -> frozenset[Source]:
        """Return what must be fetched about *side* to judge."""
        found = sources_of((path for rule in self.rules for path in rule.require.paths), side)
        needs_record = side == "candidate" and (self.after is not None or self.names("approvals"))
        return found | {Source.RECORD} if needs_record else found

    def names(self, variable: str) -> bool:
        """Tell whether any rule names *variable*."""
        return any(path[0] == variable for rule in self.rules for path in rule.require.paths)

    def judge(self, facts: Facts, registry: str) -> Verdict:
        """Judge *facts*: every finding, not the first failure. A rule that cannot be evaluated fails."""
        digest = self.rules_digest
        document = facts.document(self.name, registry, digest)
        findings = [_ready(document), *self._after(document), *self._rejections(facts, digest)]
        findings += [_find(rule, document) for rule in self.rules]
        return Verdict(all(finding.passed for finding in findings), digest, tuple(findings))

    def _after(self, document: Mapping[str, Any]) -> Sequence[Finding]:
        if self.after is None:
            return ()
        been = self.after in document["candidate"]["environments"]
        because = f"was live in {self.after}" if been else f"was never live in {self.after} by record"
        return (Finding(f"after-{self.after}", been, because),)

    def _rejections(self, facts: Facts, digest: str) -> Sequence[Finding]:
        return [
            Finding("not-rejected", passed=False, because=f"rejected by {item.by}: {item.reason or 'no reason given'}")
            for item in facts.in_force(self.name, digest)
            if item.decision == "reject"
        ]


def _ready(document: Mapping[str, Any]) -> Finding:
    status = document["candidate"]["status"]
    passed = status == "READY"
    because = "the version is READY" if passed else f"the version is {status or 'without a status'}, not READY"
    return Finding("ready", passed, because, facts={"candidate.status": status})


def _find(rule: Rule, document: Mapping[str, Any]) -> Finding:
    outcome = rule.require.evaluate(document)
    facts = {".".join(str(part) for part in path): _shown(path, document) for path in rule.require.paths}
    because = rule.because
    if outcome.missing:
        because = f"{rule.because} (missing: {', '.join(outcome.missing)})"
    elif outcome.problem:
        because = f"{rule.because} (could not be evaluated: {outcome.problem})"
    return Finding(rule.name, outcome.value is True, because, outcome.missing, facts)


def _shown(path: Path, document: Mapping[str, Any]) -> Any:
    value = resolve(path, document)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"  # JSON has none of them
    if isinstance(value, bool | int | float) or value is None:
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MAX_FACT_CHARACTERS else text[:_MAX_FACT_CHARACTERS] + "…"
