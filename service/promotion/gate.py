"""A gate guards an environment: each rule gives a finding, all findings are one verdict. Pure."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from service.model import Finding, Verdict
from service.promotion.expression import Expression, Path, resolve
from service.promotion.facts import Facts, Source, sources_of

_MAX_FACT_CHARACTERS = 200
_VERSIONS = ("candidate", "incumbent")


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


class Sealing(Enum):
    """From when on what stands behind a version is sealed; always until it is neither approved nor live."""

    APPROVED = "approved"
    LIVE = "live"
    NEVER = "never"


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
    seal: Sealing | None = None
    """None: `Sealing.APPROVED` wherever something is asked of a version, else `Sealing.NEVER`."""
    listed_tags: tuple[str, ...] = ()
    """Keys of a version's tags that are evidence although no rule reads them: exact, or a prefix followed by ``*``."""

    def covers(self, registry: str, model: str) -> bool:
        """Tell whether *model* of *registry* has this environment."""
        if self.registry not in ("*", registry):
            return False
        return model.startswith(self.models[:-1]) if self.models.endswith("*") else model == self.models

    def marked_by(self, kind: str, value: str) -> bool:
        """Tell whether *value* of *kind* marks this environment."""
        return any(mark.kind == kind and mark.value == value for mark in self.marks)

    @property
    def sealing(self) -> Sealing:
        """Return from when on what stands behind a version must not be rewritten."""
        if self.seal is not None:
            return self.seal
        return Sealing.APPROVED if self.rules or self.after is not None else Sealing.NEVER

    @property
    def seals(self) -> bool:
        """Tell whether anything is ever sealed here."""
        return self.sealing is not Sealing.NEVER

    @property
    def sealed_tags(self) -> tuple[str, ...]:
        """Return the keys of a version's tags that are evidence: those that rules read, and the listed ones.

        A rule that names all tags (``'a' in candidate.tags``) makes it ``*``.
        """
        read = (
            str(path[2]) if len(path) > 2 else "*"
            for path in self._paths()
            if path[0] in _VERSIONS and path[1:2] == ("tags",)
        )
        return tuple(dict.fromkeys([*read, *self.listed_tags]))

    def seals_tag(self, key: str) -> bool:
        """Tell whether *key* is evidence, in any spelling that a database could take for the same key."""
        folded = _fold(key)
        return any(
            folded.startswith(_fold(item[:-1])) if item.endswith("*") else folded == _fold(item)
            for item in self.sealed_tags
        )

    def reads(self, *field: str) -> bool:
        """Tell whether a rule names *field* of the candidate or of what is live."""
        return any(path[0] in _VERSIONS and path[1:] == field for path in self._paths())

    def _paths(self) -> Iterator[Path]:
        return (path for rule in self.rules for path in rule.require.paths)

    @property
    def rules_digest(self) -> str:
        """Name the rules: an approval given under others is stale."""
        text = json.dumps([self.after, [[rule.name, rule.require.text, rule.because] for rule in self.rules]])
        return hashlib.sha256(text.encode()).hexdigest()

    def sources(self, side: str) -> frozenset[Source]:
        """Return what must be fetched about *side* to judge."""
        found = sources_of(self._paths(), side)
        needs_record = side == "candidate" and (self.after is not None or self.names("approvals"))
        return found | {Source.RECORD} if needs_record else found

    def names(self, variable: str) -> bool:
        """Tell whether any rule names *variable*."""
        return any(path[0] == variable for path in self._paths())

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


def _fold(key: str) -> str:
    """Give one form to keys that a case-insensitive or padding database takes for one."""
    return unicodedata.normalize("NFKC", key).casefold().rstrip()


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
