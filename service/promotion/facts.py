"""The facts rules may name, where each comes from, and their shape for the rules' language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from service.model import Principal
from service.promotion.expression import OPEN, Environment
from service.promotion.syntax import Path
from service.records import Approval, Creation, Evidence, LivePeriod, ModelVersion, PromotionRequest, Run


class Source(Enum):
    """Where a fact is fetched from; only what a rule names is fetched."""

    RUN = "run"
    FILES = "files"
    RECORD = "record"
    DIGEST = "digest"
    SIZE = "size"
    REQUIREMENTS = "requirements"


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
    "requirements": OPEN,
    "size": None,
    "created_by": None,
    "environments": OPEN,
    "artifact_digest": None,
    "evidence": OPEN,
}
"""The fields of ``candidate`` and ``incumbent``; `OPEN` ones hold what the registry holds."""

SCHEMA: Mapping[str, Any] = {
    "candidate": VERSION_SCHEMA,
    "incumbent": {
        name: fields for name, fields in VERSION_SCHEMA.items() if name not in ("artifact_digest", "evidence")
    },
    "evidence": OPEN,
    "approvals": OPEN,
    "environment": {"name": None, "registry": None, "parameters": OPEN},
    "request": {
        "principal": None,
        "acting_for": None,
        "groups": OPEN,
        "issuer": None,
        "claims": OPEN,
        "reason": None,
        "change": {"id": None, "window": None, "fallback": None},
        "time": None,
    },
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
    "size": Source.SIZE,
    "requirements": Source.REQUIREMENTS,
}
_SELF_REPORTED = frozenset(
    {"metrics", "params", "tags", "run", "datasets", "description", "signature", "flavors", "requirements"}
)

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


def is_self_reported(path: Path) -> bool:
    """Tell whether the fact at *path* is written by whoever made the version, and by nobody else."""
    if path[0] not in ("candidate", "incumbent") or len(path) == 1:
        return False
    return path[1] in _SELF_REPORTED or path[1:3] == ("source", "commit")


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What was fetched about one version."""

    version: ModelVersion
    run: Run | None = None
    mlmodel: Mapping[str, Any] | None = None
    creation: Creation | None = None
    periods: Sequence[LivePeriod] = ()
    size: int | None = None
    """Of its files, in bytes."""
    requirements: Sequence[str] | None = None
    """The lines of its requirements.txt."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was looked up, and so is known not to be there where it is not there."""

    candidate: frozenset[Source]
    incumbent: frozenset[Source] | None
    """None where nobody looked at the facts of what is live."""
    digest: bool
    """Of the candidate's files."""
    registrants: bool = False
    """Of what is the same as the candidate."""


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
    incumbent_binding: str | None = None
    """Of what is live, ``""`` for nothing; None where nobody looked."""
    requests: Sequence[PromotionRequest] = ()
    """Those that are open."""
    askers: frozenset[str] = frozenset()
    """Everyone who ever asked that the candidate be promoted, besides the principal."""
    registrants: frozenset[str] = frozenset()
    """Everyone who registered what is the same as the candidate, besides its own registrant."""
    quarantine: str | None = None
    """Why the candidate is in quarantine; None if it is not."""
    debt: str = ""
    """For an emergency: the one before it that nobody has reviewed."""
    change: Mapping[str, str] = field(default_factory=dict)
    """The change record of the request: ``id``, ``window``, ``fallback``."""
    fetched: Fetched | None = None
    """What was looked up; None where it does not matter. No rule sees it."""

    def document(
        self, environment: Mapping[str, Any], evidence: Sequence[Evidence], approvals: Sequence[Approval]
    ) -> dict[str, Any]:
        """Give the facts as the rules' variables; *evidence* and *approvals* are those that count."""
        counted = [
            {
                "kind": item.kind,
                "result": item.result,
                "by": item.by,
                "facts": dict(item.facts),
                "at": _time(item.at),
                "proof": dict(item.proof or {}),
            }
            for item in evidence
        ]
        candidate = {**version_document(self.candidate), "artifact_digest": self.artifact_digest, "evidence": counted}
        return {
            "candidate": candidate,
            "incumbent": version_document(self.incumbent) if self.incumbent else None,
            "evidence": counted,
            "approvals": [
                {"by": item.by, "groups": list(item.groups), "reason": item.reason, "at": _time(item.at)}
                for item in approvals
            ],
            "environment": environment,
            "request": {
                "principal": self.principal.subject,
                "acting_for": self.principal.acting_for or "",
                "groups": sorted(self.principal.groups),
                "issuer": self.principal.issuer,
                "claims": dict(self.principal.claims),
                "reason": self.reason,
                "change": dict(self.change),
                "time": _time(self.now),
            },
            "now": _time(self.now),
        }


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
        "requirements": [],
        "environments": {},
    }
    if facts.size is not None:
        document["size"] = facts.size
    if facts.requirements is not None:
        document["requirements"] = list(facts.requirements)
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
        document["signature"] = signature_of(facts.mlmodel)
        document["flavors"] = flavors_of(facts.mlmodel)
    if facts.creation is not None:
        document["created_by"] = facts.creation.by
    for period in facts.periods:
        known = period.environment in document["environments"]
        if period.binding == version.binding and period.kind != "drift" and not known:
            document["environments"][period.environment] = {"since": _time(period.since)}
    return document


def flavors_of(mlmodel: Mapping[str, Any]) -> list[str]:
    """List the names of the flavors, sorted."""
    flavors = mlmodel.get("flavors")
    return sorted({str(name)[:100] for name in flavors}) if isinstance(flavors, dict) else []


def signature_of(mlmodel: Mapping[str, Any]) -> dict[str, str] | None:
    """Give the signature, each part as JSON; None if there is none or it has no inputs."""
    signature = mlmodel.get("signature")
    if not isinstance(signature, dict):
        return None
    texts = {key: signature.get(key) or "" for key in ("inputs", "outputs", "params")}
    known = all(isinstance(text, str) and len(text) <= _MAX_SIGNATURE_CHARACTERS for text in texts.values())
    return texts if known and texts["inputs"] else None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
