"""Evidence: facts about a version, posted by who may, append-only; the newest of a kind counts."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

from service.effects import Posted
from service.governance.desk import Desk
from service.model import Caller, Need, resource
from service.provenance import artifact_digest, origin_of_version
from service.records import Evidence


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """What is posted as evidence."""

    kind: str
    result: str
    """``passed`` or ``failed``."""
    facts: dict[str, Any]
    source: str = ""
    expires: float | None = None


class EvidenceDesk:
    """Takes evidence and lists it."""

    def __init__(self, desk: Desk) -> None:
        """Decide and record through *desk*."""
        self._desk = desk

    async def post(self, caller: Caller, registry: str, model: str, version: str, claim: Claim) -> Evidence:
        """Store evidence about a version, bound to its files as they are.

        Raises:
            Denied, NotFound, JournalUnavailable: nothing is stored.
        """
        need = Need("evidence:post", resource("models", model, "versions", "evidence", claim.kind))
        backend, operation = await self._desk.open(caller, registry, "postEvidence", need)
        evidence = Evidence(
            id=str(uuid.uuid4()),
            kind=claim.kind,
            result=claim.result,
            by=caller.principal.subject,
            groups=tuple(sorted(caller.principal.groups)),
            facts=claim.facts,
            source=claim.source,
            at=self._desk.now(),
            persons=tuple(sorted(caller.principal.persons)),
            expires=claim.expires,
        )
        operation.after = {"kind": evidence.kind, "result": evidence.result, "id": evidence.id}

        async def make() -> Posted:
            found = await backend.get_version(model, version)
            digest = await artifact_digest(backend, await origin_of_version(backend, found))
            return Posted(registry, model, found.binding, dataclasses.replace(evidence, artifact_digest=digest))

        return (await self._desk.store(operation, model, version, make)).evidence

    async def list(self, caller: Caller, registry: str, model: str, version: str) -> list[Evidence]:
        """List the evidence about a version, oldest first."""
        found = await self._desk.read_version(caller, registry, model, version, "listEvidence")
        return [*(await self._desk.journal.version(registry, model, found.binding)).evidence]
