"""A gate guards an environment: each rule gives a finding, all findings are one verdict. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import cached_property
from typing import Any

from service.model import Finding, Verdict
from service.promotion.approving import Judged, Quorum, Seen, concerned_in, judge_approvals, missing_of
from service.promotion.expression import Expression
from service.promotion.facts import LANGUAGE, Facts, Source, is_self_reported, newest_evidence, sources_of
from service.promotion.history import DRIFT, passed_before
from service.promotion.needs import resolve
from service.promotion.proof import PROOF_TYPES, key_id
from service.promotion.schedule import AllowedTimes, Freeze, written_duration
from service.promotion.syntax import Path, dotted
from service.records import Evidence
from service.strict import folded

BUILT_IN = frozenset(
    {
        "ready",
        "not-rejected",
        "debts-closed",
        "not-quarantined",
        "allowed-times",
        "freeze",
        "relaxed",
        "reason-given",
        "was-live-before",
    }
)
"""Findings every gate has. No rule is named like one, or with ``after-`` or ``approvals-`` before its name."""
_MAX_FACT_CHARACTERS = 200
_VERSIONS = ("candidate", "incumbent")


@dataclass(frozen=True, slots=True)
class Rule:
    """One requirement, in CEL, and the sentence that says why."""

    name: str
    require: Expression
    because: str
    severity: str = "block"
    """``block``, or ``warn``: said, and it closes nothing."""
    waivable: bool = False
    """An emergency may pass it."""


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


class Purpose(Enum):
    """What a version is judged for."""

    PROMOTION = "promotion"
    ROLLBACK = "rollback"
    EMERGENCY = "emergency"


@dataclass(frozen=True, slots=True)
class EvidenceTerms:
    """What evidence of one kind must be to count."""

    expire_after: float | None = None
    """Seconds."""
    keys: tuple[str, ...] = ()
    """PEM texts of public keys; without any, no proof is asked."""
    proof: str = "dsse"
    """What proves it, by one of the keys: ``dsse`` or ``model_signing``."""

    def proved(self, item: Evidence) -> bool:
        """Tell whether *item* has the proof that is asked for."""
        if not self.keys:
            return True
        proof = item.proof or {}
        by_key = proof.get("key") in {key_id(key) for key in self.keys}
        return by_key and proof.get("type") == PROOF_TYPES[self.proof]


@dataclass(frozen=True, slots=True)
class Override:
    """Rules that some models have besides those of all; one that relaxes says why."""

    models: str
    rules: tuple[Rule, ...]
    without: tuple[str, ...] = ()
    """Names of rules that are not asked of these models."""
    reason: str = ""
    """Why less is asked of them: then `rules` replace those of the same name."""


@dataclass(frozen=True)  # without slots: what is derived from it is kept
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
    mode: str = "enforce"
    """``enforce``; in ``warn`` and ``observe`` a closed gate refuses nothing."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    quorums: tuple[Quorum, ...] = ()
    approvals_expire: float | None = None
    """Seconds after which an approval does not count any more."""
    review_needed: bool = False
    """An approval must name the review it is based on."""
    evidence: Mapping[str, EvidenceTerms] = field(default_factory=dict)
    allowed_times: tuple[AllowedTimes, ...] = ()
    freezes: tuple[Freeze, ...] = ()
    overrides: tuple[Override, ...] = ()
    relaxed: tuple[str, ...] = ()
    """Of a model of which less is asked: which rules are others or gone, and why."""
    rollback_rules: tuple[Rule, ...] = ()
    waivable: frozenset[str] = frozenset()
    """Which of ``after``, ``approvals``, ``allowed-times`` and ``freeze`` an emergency may pass."""
    on_drift: str = "report"
    """``report``, or ``revert``: a mark moved beside the gateway is moved back."""
    purpose: Purpose = Purpose.PROMOTION
    approved_under: str = ""
    """For a rollback: the digest of the promotion's rules, which approvals are bound to."""

    def covers(self, registry: str, model: str) -> bool:
        """Tell whether *model* of *registry* has this environment."""
        return self.registry in ("*", registry) and matches(self.models, model)

    def of_model(self, model: str) -> Environment:
        """Return it as *model* has it: with the rules that only some models have."""
        found = tuple(item for item in self.overrides if matches(item.models, model))
        return self._overridden(found) if found else self

    def _overridden(self, overrides: tuple[Override, ...]) -> Environment:
        """Return it with the rules of *overrides*; the same object for the same ones, as its digest is kept in it."""
        kept = self._variants.get(overrides)
        if kept is None:
            kept = self
            for item in overrides:
                kept = kept._with(item)  # another one of this class
            kept = dataclasses.replace(kept, overrides=())
            self._variants[overrides] = kept
        return kept

    def _with(self, override: Override) -> Environment:
        instead = {rule.name: rule for rule in override.rules}
        changed = [rule.name for rule in self.rules if rule.name in instead or rule.name in override.without]
        rules = [instead.pop(rule.name, rule) for rule in self.rules if rule.name not in override.without]
        said = (f"{', '.join(changed)} ({override.models}: {override.reason})",) if changed else ()
        return dataclasses.replace(self, rules=(*rules, *instead.values()), relaxed=(*self.relaxed, *said))

    @cached_property
    def _variants(self) -> dict[tuple[Override, ...], Environment]:
        return {}

    def judging(self, purpose: Purpose) -> Environment:
        """Return it as a version is judged for *purpose*.

        A rollback has its own rules; an emergency has the same ones, of which waivable ones are passed.
        """
        if purpose is Purpose.ROLLBACK:
            return dataclasses.replace(
                self,
                rules=self.rollback_rules,
                relaxed=(),
                purpose=purpose,
                after=None,
                quorums=(),
                allowed_times=(),
                freezes=(),
                approved_under=self.rules_digest,
            )
        return self if purpose is self.purpose else dataclasses.replace(self, purpose=purpose)

    def marked_by(self, kind: str, value: str) -> bool:
        """Tell whether *value* of *kind* marks this environment."""
        return any(mark.kind == kind and mark.value == value for mark in self.marks)

    @property
    def enforced(self) -> bool:
        """Whether a closed gate refuses; elsewhere it changes no answer."""
        return self.mode == "enforce"

    @property
    def sealing(self) -> Sealing:
        """Return from when on what stands behind a version must not be rewritten."""
        if not self.enforced:
            return Sealing.NEVER
        if self.seal is not None:
            return self.seal
        asks = self.rules or self.after is not None or self.quorums or self.overrides
        return Sealing.APPROVED if asks else Sealing.NEVER

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
        found = folded(key)
        return any(
            found.startswith(folded(item[:-1])) if item.endswith("*") else found == folded(item)
            for item in self.sealed_tags
        )

    def reads(self, *path: str) -> bool:
        """Tell whether a rule names this field of the candidate or of what is live."""
        return any(item[0] in _VERSIONS and item[1:] == path for item in self._paths())

    def _paths(self) -> Iterator[Path]:
        return (path for rule in self.rules for path in rule.require.paths)

    @cached_property
    def rules_digest(self) -> str:
        """Name what is asked: an approval given under other rules is stale. Formatting and comments do not count."""
        return hashlib.sha256(json.dumps(self._asked(texts=False), sort_keys=True).encode()).hexdigest()

    def rules_document(self) -> dict[str, Any]:
        """Give what `rules_digest` names, for the archive: the rules as they are written."""
        return {**self._asked(texts=True), **self.terms()}

    def terms(self) -> dict[str, Any]:
        """Give what is asked beside the rules, for people."""
        expire = self.approvals_expire
        return {
            "approvals": {
                "required": [{"group": item.group, "count": item.count} for item in self.quorums],
                "expire_after": None if expire is None else written_duration(expire),
                "review": self.review_needed,
            },
            "evidence": {
                kind: {
                    "expire_after": None if item.expire_after is None else written_duration(item.expire_after),
                    "keys": [key_id(key) for key in item.keys],
                }
                for kind, item in self.evidence.items()
            },
            "allowed_times": [item.document() for item in self.allowed_times],
            "freezes": [item.document() for item in self.freezes],
        }

    def _asked(self, *, texts: bool) -> dict[str, Any]:
        def said(rule: Rule) -> dict[str, Any]:
            what = {"require": rule.require.text, "because": rule.because} if texts else {"tree": rule.require.digest}
            return {"name": rule.name, "severity": rule.severity, "waivable": rule.waivable, **what}

        return {
            "purpose": "rollback" if self.purpose is Purpose.ROLLBACK else "promotion",
            "after": self.after,
            "rules": [said(rule) for rule in self.rules],
            "parameters": dict(self.parameters),
            "approvals": [[item.group, item.count] for item in self.quorums],
            "review_needed": self.review_needed,
            "approvals_expire": self.approvals_expire,
            "evidence": {
                kind: [
                    terms.expire_after,
                    sorted(hashlib.sha256(key.encode()).hexdigest() for key in terms.keys),
                    terms.proof,
                ]
                for kind, terms in self.evidence.items()
            },
            "allowed_times": [str(item) for item in self.allowed_times],
            "freezes": [[item.since, item.until] for item in self.freezes],
            "waivable": sorted(self.waivable),
            **({"relaxed": list(self.relaxed)} if texts and self.relaxed else {}),
        }

    def sources(self, side: str) -> frozenset[Source]:
        """Return what must be fetched about *side* to judge."""
        found = sources_of(self._paths(), side)
        needs_record = side == "candidate" and (self.after is not None or self.names("approvals") or self.quorums)
        return found | {Source.RECORD} if needs_record else found

    @property
    def reads_records(self) -> bool:
        """Whether evidence or approvals count here, and so the digest of the files that they are bound to."""
        named = self.names("evidence") or self.names("approvals") or self.names("candidate", "evidence")
        return named or bool(self.quorums)

    @property
    def needs_origin(self) -> bool:
        """Whether it matters what a candidate was made from: to judge it, or to seal it."""
        needs = self.sources("candidate") & {Source.RUN, Source.DIGEST, Source.SIZE}
        return self.seals or self.reads_records or bool(needs)

    @property
    def needs_incumbent(self) -> bool:
        """Whether it matters what is live: rules name it, or approvals count that are bound to it."""
        return self.names("incumbent") or self.names("approvals") or bool(self.quorums)

    def names(self, variable: str, *fields: str) -> bool:
        """Tell whether any rule names *variable*, or these fields of it."""
        return any(path[: len(fields) + 1] == (variable, *fields) for path in self._paths())

    def judge(self, facts: Facts, registry: str) -> Verdict:
        """Judge *facts*: every finding, not the first failure. A rule that cannot be evaluated fails."""
        digest = self.rules_digest
        evidence = self.counting(facts)
        judged = self._judge_approvals(facts, digest)
        about = {"name": self.name, "registry": registry, "parameters": dict(self.parameters)}
        document = facts.document(about, evidence, judged.approvals)
        findings = [_ready(document), *_quarantine(facts), *self._built_in(facts, document, judged)]
        findings += self.judge_rules(document)
        if self.purpose is Purpose.EMERGENCY:
            findings = [self._waive(item) for item in findings]
        stale = tuple({"by": item.by, "because": because} for item, because in judged.stale)
        allowed = not any(finding.blocks for finding in findings)
        return Verdict(allowed, digest, tuple(findings), self.mode, stale, facts.artifact_digest)

    def judge_rules(self, document: Mapping[str, Any]) -> list[Finding]:
        """Give the finding of each rule over *document*, the rules' variables; a dry test of rules needs no more."""
        activation = LANGUAGE.activation(document) if self.rules else None
        return [_find(rule, document, activation) for rule in self.rules]

    def counting(self, facts: Facts) -> list[Evidence]:
        """List the evidence that counts: the newest of each kind, if it is about these files and meets its terms."""
        return [item for item in newest_evidence(facts.evidence) if self._counts(item, facts)]

    def _counts(self, item: Evidence, facts: Facts) -> bool:
        terms = self.evidence.get(item.kind, EvidenceTerms())
        if item.artifact_digest != facts.artifact_digest:
            return False
        if item.expires is not None and item.expires <= facts.now:
            return False
        if terms.expire_after is not None and item.at + terms.expire_after <= facts.now:
            return False
        return terms.proved(item)

    def _judge_approvals(self, facts: Facts, digest: str) -> Judged:
        creation = facts.candidate.creation
        registrants = facts.registrants | ({creation.by, *creation.persons} if creation else set())
        concerned = concerned_in(registrants, facts.evidence, facts.askers | facts.principal.persons)
        seen = Seen(
            self.name,
            self.approved_under or digest,
            facts.artifact_digest,
            facts.incumbent_binding,
            facts.now,
            self.approvals_expire,
            self.review_needed,
        )
        return judge_approvals(facts.approvals, concerned, seen)

    def _built_in(self, facts: Facts, document: Mapping[str, Any], judged: Judged) -> Iterator[Finding]:
        if self.purpose is Purpose.ROLLBACK:
            yield from _rollback(facts, self.name)
        if facts.debt:
            because = f"the emergency {facts.debt} was not reviewed yet; somebody else than its author has to close it"
            yield Finding("debts-closed", passed=False, because=because)
        if self.relaxed:
            yield Finding("relaxed", passed=True, because=f"otherwise than of other models: {'; '.join(self.relaxed)}")
        yield from self._after(document)
        yield from self._times(facts.now)
        for item in judged.vetoes:
            because = f"rejected by {item.by}: {item.reason or 'no reason given'}"
            yield Finding("not-rejected", passed=False, because=because)
        for quorum in self.quorums:
            left = missing_of(quorum, judged.approvals)
            because = f"{quorum.count} of {quorum.group} must approve" + (f"; {left} more needed" if left else "")
            yield Finding(f"approvals-{quorum.group.removeprefix('group:')}", passed=not left, because=because)

    def _after(self, document: Mapping[str, Any]) -> Sequence[Finding]:
        if self.after is None:
            return ()
        been = self.after in document["candidate"]["environments"]
        because = f"was live in {self.after}" if been else f"was never live in {self.after} by record"
        return (Finding(f"after-{self.after}", been, because),)

    def _times(self, now: float) -> Iterator[Finding]:
        if self.allowed_times:
            passed = any(item.holds(now) for item in self.allowed_times)
            yield Finding("allowed-times", passed, f"allowed: {'; '.join(str(item) for item in self.allowed_times)}")
        for item in self.freezes:
            if item.holds(now):
                until = datetime.fromtimestamp(item.until, UTC).isoformat(timespec="minutes")
                yield Finding("freeze", passed=False, because=f"frozen until {until}: {item.because}")

    def _waive(self, finding: Finding) -> Finding:
        kind = finding.rule.split("-")[0] if finding.rule.startswith(("after-", "approvals-")) else finding.rule
        may = kind in self.waivable or any(rule.waivable for rule in self.rules if rule.name == finding.rule)
        return dataclasses.replace(finding, waived=True) if finding.blocks and may else finding


def matches(pattern: str, model: str) -> bool:
    """Tell whether a model's name is *pattern*, or begins with what stands before its ``*``."""
    return model.startswith(pattern[:-1]) if pattern.endswith("*") else model == pattern


def _ready(document: Mapping[str, Any]) -> Finding:
    status = document["candidate"]["status"]
    passed = status == "READY"
    because = "the version is READY" if passed else f"the version is {status or 'without a status'}, not READY"
    return Finding("ready", passed, because, facts={"candidate.status": status})


def _quarantine(facts: Facts) -> Iterator[Finding]:
    if facts.quarantine is not None:
        yield Finding("not-quarantined", passed=False, because=f"the version is in quarantine: {facts.quarantine}")


def _rollback(facts: Facts, environment: str) -> Iterator[Finding]:
    yield Finding("reason-given", bool(facts.reason.strip()), "a rollback needs a reason")
    periods = facts.candidate.periods
    passed = passed_before(periods, environment, facts.candidate.version.binding)
    same = [item for item in passed if item.artifact_digest in (None, facts.artifact_digest)]
    if same:
        because = f"was live in {environment}"
    elif passed:
        because = f"its files are not those that were live in {environment}"
    elif any(item.environment == environment and item.kind != DRIFT for item in periods):
        because = f"was live in {environment}, but its gate was not open for it"
    else:
        because = f"was never live in {environment} by record"
    yield Finding("was-live-before", bool(same), because)


def _find(rule: Rule, document: Mapping[str, Any], activation: Any) -> Finding:
    outcome = rule.require.evaluate(document, activation)
    facts = {".".join(str(part) for part in path): _shown(path, document) for path in rule.require.paths}
    because = rule.because
    if outcome.missing:
        because = f"{rule.because} (missing: {', '.join(outcome.missing)})"
    elif outcome.problem:
        because = f"{rule.because} (could not be evaluated: {outcome.problem})"
    reported = tuple(dotted(path) for path in rule.require.paths if is_self_reported(path))
    return Finding(
        rule.name, outcome.value is True, because, outcome.missing, facts, rule.severity, self_reported=reported
    )


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
