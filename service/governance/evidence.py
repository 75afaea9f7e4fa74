"""Evidence: facts about a version, posted by who may, append-only; the newest of a kind counts."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from service.backend import Backend
from service.effects import Posted
from service.errors import Busy, Conflict, InvalidRequest
from service.governance.desk import Desk
from service.model import Caller, Need, resource
from service.promotion.proof import PROOF_TYPES, check_evidence, check_model_signature, verify
from service.provenance import FileDigest, digest_of_files, origin_of_version
from service.records import Evidence
from service.strict import check_numbers


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """What is posted as evidence."""

    kind: str
    result: str
    """``passed`` or ``failed``."""
    facts: dict[str, Any]
    source: str = ""
    expires: float | None = None
    proof: Mapping[str, Any] | None = None
    """``{dsse: envelope}`` or ``{model_signing: bundle}``."""


class EvidenceDesk:
    """Takes evidence and lists it."""

    def __init__(self, desk: Desk) -> None:
        """Decide and record through *desk*."""
        self._desk = desk

    async def post(self, caller: Caller, registry: str, model: str, version: str, claim: Claim) -> Evidence:
        """Store evidence about a version, bound to its files as they are.

        Raises:
            InvalidRequest: its proof does not hold, or rules cannot read its facts.
            Conflict: its proof was posted before.
            Busy: the model is being changed, try again. Denied, NotFound, JournalUnavailable.
            In each case nothing is stored.
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
            source=self._desk.gateway.trail.masks.document(claim.source),
            at=self._desk.now(),
            persons=tuple(sorted(caller.principal.persons)),
            expires=claim.expires,
        )
        operation.after = {"kind": evidence.kind, "result": evidence.result, "id": evidence.id}

        async with self._desk.about(operation, model, version):
            binding, posted = await self._bound(backend, model, version, evidence, claim)

        async def make() -> Posted:
            found = await backend.get_version(model, version)
            if found.binding != binding:
                message = "The version was made anew meanwhile; nothing is stored. Try again."
                raise Busy(message)
            if posted.proof is not None:
                records = await self._desk.journal.version(registry, model, binding)
                _refuse_replay(posted.proof, records.evidence)
            return Posted(registry, model, binding, posted)

        # With the lock: what a promotion did not see is stored after it.
        return (await self._desk.store(operation, model, version, make, alone=True)).evidence

    async def _bound(
        self, backend: Backend, model: str, version: str, evidence: Evidence, claim: Claim
    ) -> tuple[str, Evidence]:
        """Bind *evidence* to the version and its files, and verify its proof; that takes long and needs no lock."""
        check_numbers(claim.facts)  # one that rules cannot read would fail every rule that reads evidence
        found = await backend.get_version(model, version)
        origin = await origin_of_version(backend, found)
        files = await self._desk.gatherer.digests.files(backend, origin)
        digest = digest_of_files(origin, files)
        proof = None
        if claim.proof is not None:
            keys = self._keys(backend.name, model, claim)
            proof = await asyncio.to_thread(_verified, claim, keys, files, digest)
        return found.binding, dataclasses.replace(evidence, artifact_digest=digest, proof=proof)

    def _keys(self, registry: str, model: str, claim: Claim) -> tuple[str, ...]:
        """List the keys that prove this kind of evidence by this kind of proof, in any environment."""
        kinds = (item.evidence.get(claim.kind) for item in self._desk.environments.of(registry, model))
        return tuple(key for terms in kinds if terms and {terms.proof} == set(claim.proof or ()) for key in terms.keys)

    async def list(self, caller: Caller, registry: str, model: str, version: str) -> list[Evidence]:
        """List the evidence about a version, oldest first."""
        found = await self._desk.read_version(caller, registry, model, version, "listEvidence")
        return [*(await self._desk.journal.version(registry, model, found.binding)).evidence]


def _refuse_replay(proof: Mapping[str, str], evidence: Sequence[Evidence]) -> None:
    """Refuse what was signed once and is posted again: it would supersede what was found later.

    Raises:
        Conflict: the statement was posted before.
    """
    for item in evidence:
        if (item.proof or {}).get("digest") == proof["digest"]:
            message = f"The proof was posted before, as evidence {item.id}; sign a new statement. Nothing is stored."
            raise Conflict(message)


def _verified(claim: Claim, keys: Sequence[str], files: Sequence[FileDigest], digest: str) -> dict[str, str]:
    """Verify the proof of a claim about *files*; say which key signed it and what.

    Raises:
        InvalidRequest: it does not hold.
    """
    proof = claim.proof or {}
    if set(proof) not in ({"dsse"}, {"model_signing"}):
        message = "proof is {dsse: envelope} or {model_signing: bundle}; nothing is stored."
        raise InvalidRequest(message)
    (form,) = proof
    if not keys:
        message = f"No key is configured for evidence of the kind {claim.kind!r} by {form}; nothing is stored."
        raise InvalidRequest(message)
    if form == "dsse":
        statement = verify(proof[form], keys)
        check_evidence(statement, kind=claim.kind, result=claim.result, facts=claim.facts, artifact_digest=digest)
    else:  # it names the files and nothing else, so it proves nothing else
        bundle = proof[form]
        statement = verify(bundle.get("dsseEnvelope") if isinstance(bundle, dict) else None, keys)
        if claim.result != "passed" or claim.facts or len({file.root for file in files}) != 1:
            message = "A model's signature proves `passed` without facts, about files in one place; nothing is stored."
            raise InvalidRequest(message)
        check_model_signature(statement, [(file.name, file.sha256) for file in files])
    return {"type": PROOF_TYPES[form], "key": statement.key, "digest": statement.digest}
