"""The facts rules may name, where each comes from, and their shape for the rules' language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from service.model import Principal
from service.promotion.expression import OPEN, Environment, Path
from service.records import Approval, Creation, Evidence, LivePeriod, ModelVersion, Run


class Source(Enum):
    """Where a fact is fetched from; only what a rule names is fetched."""

    RUN = "run"
    FILES = "files"
    RECORD = "record"
    DIGEST = "digest"


VERSION_SCHEMA: Mapping[str, Any] = {
    "name": None,
    "version": None,
    "status": None,
    "stage": None,
    "description": None,
    "tags": OPEN,
    "aliases": OPEN,
    "created": None,
    "source": {"uri": None, "run_id": None, "commit": None},
    "run": {"id": None, "status": None, "experiment_id": None, "tags": OPEN},
    "metrics": OPEN,
    "params": OPEN,
    "datasets": OPEN,
    "signature": {"inputs": None, "outputs": None, "params": None},
    "flavors": OPEN,
    "created_by": None,
    "environments": OPEN,
    "artifact_digest": None,
}
"""The fields of ``candidate`` and ``incumbent``; `OPEN` ones hold what the registry holds."""

SCHEMA: Mapping[str, Any] = {
    "candidate": VERSION_SCHEMA,
    "incumbent": {name: fields for name, fields in VERSION_SCHEMA.items() if name != "artifact_digest"},
    "evidence": OPEN,
    "approvals": OPEN,
    "environment": {"name": None, "registry": None},
    "request": {"principal": None, "acting_for": None, "groups": OPEN, "reason": None, "time": None},
    "now": None,
}

_SOURCES = {
    "run": Source.RUN,
    "metrics": Source.RUN,
    "params": Source.RUN,
    "datasets": Source.RUN,
    "signature": Source.FILES,
    "flavors": Source.FILES,
    "created_by": Source.RECORD,
    "environments": Source.RECORD,
    "artifact_digest": Source.DIGEST,
}

LANGUAGE = Environment(SCHEMA)
_MAX_SIGNATURE_CHARACTERS = 256 << 10


def sources_of(paths: Iterable[Path], side: str) -> frozenset[Source]:
    """Return where the facts of *side* (``candidate`` or ``incumbent``) that *paths* name are fetched from."""
    found: set[Source] = set()
    for path in paths:
        if path[0] != side:
            continue
        if len(path) == 1:
            continue  # a null comparison: whether it exists is always known
        if path[1] == "source" and path[2:3] in ((), ("commit",)):
            found.add(Source.RUN)
        elif path[1] in _SOURCES:
            found.add(_SOURCES[str(path[1])])
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What was fetched about one version."""

    version: ModelVersion
    run: Run | None = None
    mlmodel: Mapping[str, Any] | None = None
    creation: Creation | None = None
    periods: Sequence[LivePeriod] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a gate judges. Pure data: the same facts give the same verdict."""

    candidate: VersionFacts
    incumbent: VersionFacts | None
    evidence: Sequence[Evidence]
    approvals: Sequence[Approval]
    principal: Principal
    reason: str
    now: float
    artifact_digest: str | None = None
    """Of the candidate's files as they are; None where nothing can be bound to them."""

    def document(self, environment: str, registry: str, rules_digest: str) -> dict[str, Any]:
        """Give the facts as the rules' variables."""
        return {
            "candidate": {**version_document(self.candidate), "artifact_digest": self.artifact_digest},
            "incumbent": version_document(self.incumbent) if self.incumbent else None,
            "evidence": [
                {"kind": item.kind, "result": item.result, "by": item.by, "facts": dict(item.facts)}
                for item in newest_evidence(self.evidence)
                if item.artifact_digest == self.artifact_digest
            ],
            "approvals": [
                {"by": item.by, "groups": list(item.groups), "reason": item.reason, "at": _time(item.at)}
                for item in self.valid_approvals(environment, rules_digest)
            ],
            "environment": {"name": environment, "registry": registry},
            "request": {
                "principal": self.principal.subject,
                "acting_for": self.principal.acting_for or "",
                "groups": sorted(self.principal.groups),
                "reason": self.reason,
                "time": _time(self.now),
            },
            "now": _time(self.now),
        }

    def in_force(self, environment: str, rules_digest: str) -> list[Approval]:
        """List decisions for *environment* that are not revoked or expired; the newest of each person counts.

        An approval holds for these rules and these files only.
        """
        newest: dict[str, Approval] = {}
        for item in self.approvals:
            if item.environment == environment and not item.revoked:
                newest[item.by] = item
        return [
            item
            for item in newest.values()
            if (item.expires is None or item.expires > self.now)
            and (
                item.decision == "reject"  # a no holds whatever changes, until it is taken back
                or (item.rules_digest == rules_digest and item.artifact_digest == self.artifact_digest)
            )
        ]

    def valid_approvals(self, environment: str, rules_digest: str) -> list[Approval]:
        """List approvals that count: nobody approves what they registered or what they ask to promote."""
        registrants = set(self.candidate.creation.persons) if self.candidate.creation else set()
        own = registrants | self.principal.persons
        return [
            item
            for item in self.in_force(environment, rules_digest)
            if item.decision == "approve" and not own & {item.by, *item.persons}
        ]


def newest_evidence(evidence: Sequence[Evidence]) -> list[Evidence]:
    """Keep the newest evidence of each kind: a later ``failed`` supersedes an earlier ``passed``."""
    return list({item.kind: item for item in evidence}.values())


def version_document(facts: VersionFacts) -> dict[str, Any]:
    """Give one version's facts as the rules' variable; what was not fetched or does not exist is left out."""
    version, run = facts.version, facts.run
    document: dict[str, Any] = {
        "name": version.model,
        "version": version.version,
        "status": version.status,
        "stage": version.stage,
        "description": version.description,
        "tags": dict(version.tags),
        "aliases": list(version.aliases),
        "created": _time(version.created_ms / 1000),
        "source": {"uri": version.source, "run_id": version.run_id, "commit": ""},
        "metrics": {},
        "params": {},
        "datasets": [],
        "signature": None,
        "flavors": [],
        "environments": {},
    }
    if run is not None:
        document["run"] = {
            "id": run.run_id,
            "status": run.status,
            "experiment_id": run.experiment_id,
            "tags": dict(run.tags),
        }
        document["metrics"] = dict(run.metrics)
        document["params"] = dict(run.params)
        document["datasets"] = [dict(item) for item in run.datasets]
        document["source"]["commit"] = run.tags.get("mlflow.source.git.commit", "")
    if facts.mlmodel is not None:
        document["signature"] = _signature(facts.mlmodel.get("signature"))
        flavors = facts.mlmodel.get("flavors")
        document["flavors"] = sorted(str(name)[:100] for name in flavors) if isinstance(flavors, dict) else []
    if facts.creation is not None:
        document["created_by"] = facts.creation.by
    for period in facts.periods:
        if period.binding == version.binding and period.environment not in document["environments"]:
            document["environments"][period.environment] = {"since": _time(period.since)}
    return document


def _signature(signature: Any) -> dict[str, str] | None:
    if not isinstance(signature, dict):
        return None
    texts = {key: signature.get(key) or "" for key in ("inputs", "outputs", "params")}
    known = all(isinstance(text, str) and len(text) <= _MAX_SIGNATURE_CHARACTERS for text in texts.values())
    return texts if known and texts["inputs"] else None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
