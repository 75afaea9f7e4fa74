"""The review: what an approver is shown before they sign, kept by its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from service.backend import Backend
from service.effects import Reviewed
from service.errors import NotFound
from service.event import canonical_json
from service.gather import Question, judge
from service.governance.desk import Desk
from service.model import ITSELF, Caller, Principal, resource
from service.promotion.facts import Facts, version_document
from service.promotion.gate import Environment
from service.records import ModelVersion

_COMPARED = ("metrics", "params")


class ReviewDesk:
    """Puts reviews together."""

    def __init__(self, desk: Desk) -> None:
        """Read through *desk*."""
        self._desk = desk

    async def review(self, caller: Caller, registry: str, model: str, version: str, name: str) -> dict[str, Any]:
        """Show a version as an approver for the environment *name* has to see it, and keep it by its digest.

        Raises:
            Denied, NotFound.
            RegistryUnavailable, JournalUnavailable: it cannot be told or kept; try again.
        """
        environment = self._desk.environment(registry, model, name)
        found = await self._desk.read_version(caller, registry, model, version, "getReview")
        question = Question(caller.principal, looking=True)
        facts = await self._facts(self._desk.gateway.backend(registry), environment, found, question)
        seen = self._seen(registry, environment, facts)
        verdict = self._desk.gateway.trail.masks.document((await judge(environment, facts, registry)).document())
        shown = {
            **seen,
            "comparison": compare(seen["candidate"], seen["incumbent"]),
            "findings": verdict.pop("findings"),
            "verdict": verdict,
        }
        # Of all that is shown: findings differ with the time and with who reads, where the facts are the same.
        digest = hashlib.sha256(canonical_json(shown)).hexdigest()
        packet = {"digest": digest, **shown}
        await self._desk.gateway.trail.keep(Reviewed(digest, packet, self._desk.now()))
        return packet

    async def kept(self, caller: Caller, digest: str) -> dict[str, Any]:
        """Return a review that was shown, by its digest.

        Raises:
            NotFound: there is none, or the caller may not read its model.
        """
        found = await self._desk.journal.document("review", digest)
        message = "There is no review of this digest."
        if found is None:
            raise NotFound(message)
        registry, model = str(found.document["registry"]), str(found.document["model"])
        where = resource("models", await self._desk.journal.present_name(registry, model, found.at), "versions")
        if not self._desk.gateway.access.decide(caller.principal, registry, where, "version:read").allowed:
            raise NotFound(message)
        return dict(found.document)

    async def is_present(self, backend: Backend, environment: Environment, version: ModelVersion, digest: str) -> bool:
        """Tell whether a review of this digest was shown, of *version* with the facts that it has now."""
        kept = await self._desk.journal.document("review", digest)
        if kept is None:
            return False
        nobody = Question(Principal(ITSELF))
        present = self._seen(backend.name, environment, await self._facts(backend, environment, version, nobody))
        shown = {name: kept.document.get(name) for name in present}
        return canonical_json(shown) == canonical_json(present)

    def _seen(self, registry: str, environment: Environment, facts: Facts) -> dict[str, Any]:
        masked: dict[str, Any] = self._desk.gateway.trail.masks.document(_seen(registry, environment, facts))
        return masked

    async def _facts(
        self, backend: Backend, environment: Environment, version: ModelVersion, question: Question
    ) -> Facts:
        return await self._desk.gatherer.about(backend, environment, version, question, everything=True)


def _seen(registry: str, environment: Environment, facts: Facts) -> dict[str, Any]:
    """Give the facts that an approval holds for: what would move an approver's mind, and no clock."""
    version = facts.candidate.version
    document = {
        "registry": registry,
        "model": version.model,
        "version": version.version,
        "environment": environment.name,
        "binding": version.binding,
        "rules_digest": environment.rules_digest,
        "artifact_digest": facts.artifact_digest,
        "incumbent_binding": facts.incumbent_binding or None,
        "quarantine": facts.quarantine,
        "candidate": version_document(facts.candidate),
        "incumbent": version_document(facts.incumbent) if facts.incumbent else None,
        "evidence": [
            {"kind": item.kind, "result": item.result, "by": item.by, "facts": dict(item.facts), "id": item.id}
            for item in environment.counting(facts)
        ],
    }
    plain: dict[str, Any] = json.loads(json.dumps(document, default=_plain), parse_constant=str)
    return plain


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def compare(candidate: Mapping[str, Any], incumbent: Mapping[str, Any] | None) -> dict[str, Any]:
    """Say what differs between two versions: ``{field: {name: [candidate, incumbent]}}``; None where one has none."""
    other = incumbent or {}
    compared: dict[str, Any] = {}
    for field in _COMPARED:
        ours, theirs = candidate.get(field) or {}, other.get(field) or {}
        compared[field] = {
            name: [ours.get(name), theirs.get(name)]
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        }
    ours, theirs = set(candidate.get("requirements") or ()), set(other.get("requirements") or ())
    compared["requirements"] = {"added": sorted(ours - theirs), "removed": sorted(theirs - ours)}
    compared["same_signature"] = candidate.get("signature") == other.get("signature")
    return compared
