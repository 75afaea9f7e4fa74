"""Routes about versions: what is known of them, evidence, approvals, reviews, quarantine."""

from __future__ import annotations

import json
from typing import Annotated, Any

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from service.api import schemas as s
from service.api import shapes
from service.api.shapes import BASE, Version
from service.errors import BodyTooLarge
from service.governance import Governance
from service.governance.approvals import Signature
from service.governance.evidence import Claim
from service.model import Caller
from service.promotion.facts import version_document

_MAX_FACTS_BYTES = 8192
EnvironmentName = Annotated[str, QueryParameter(min_length=1, max_length=100)]


class VersionController(Controller):
    """What is recorded about versions."""

    path = BASE + "/versions/{version:str}"
    tags = ("versions",)

    @get(operation_id="getVersion", opt={"action": "version:read"})
    async def version(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
    ) -> s.VersionBody:
        """Get a version with the facts rules see, its evidence and its approvals."""
        facts, evidence, approvals, quarantine = await governance.versions.get(caller, registry, model, version)
        document = json.loads(json.dumps(version_document(facts), default=shapes.iso), parse_constant=str)
        return s.VersionBody(
            registry,
            model,
            version,
            document,
            [shapes.evidence(item) for item in evidence],
            [shapes.approval(item) for item in approvals],
            dict(facts.version.native),
            quarantine,
        )

    @get("/review", operation_id="getReview", opt={"action": "version:read"})
    async def review(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
        environment: EnvironmentName,
    ) -> dict[str, Any]:
        """Get what an approver has to see, with the digest that an approval names."""
        return await governance.reviews.review(caller, registry, model, version, environment)

    @post("/evidence", operation_id="postEvidence", opt={"action": "evidence:post"})
    async def post_evidence(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
        data: JSONBody[s.EvidenceRequest],
    ) -> s.EvidenceBody:
        """Post evidence about a version: append-only; the newest of a kind counts."""
        if len(json.dumps(data.facts)) > _MAX_FACTS_BYTES:
            message = f"The facts are over {_MAX_FACTS_BYTES} bytes; keep a link in `source` instead."
            raise BodyTooLarge(message)
        claim = Claim(data.kind, data.result, data.facts, data.source, shapes.future(data.expires), data.proof)
        return shapes.evidence(await governance.evidence.post(caller, registry, model, version, claim))

    @get("/evidence", operation_id="listEvidence", opt={"action": "version:read"})
    async def list_evidence(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
    ) -> s.EvidencesBody:
        """List the evidence about a version, oldest first."""
        found = await governance.evidence.list(caller, registry, model, version)
        return s.EvidencesBody([shapes.evidence(item) for item in found])

    @post("/approvals", operation_id="createApproval", opt={"action": "approval:create"})
    async def approve(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
        data: JSONBody[s.ApprovalRequest],
    ) -> s.ApprovalBody:
        """Approve or reject a version for an environment, under its present rules."""
        signed = Signature(data.environment, data.decision, data.reason, shapes.future(data.expires), data.review or "")
        return shapes.approval(await governance.approvals.sign(caller, registry, model, version, signed))

    @get("/approvals", operation_id="listApprovals", opt={"action": "version:read"})
    async def list_approvals(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
    ) -> s.ApprovalsBody:
        """List the approvals of a version, oldest first."""
        found = await governance.approvals.list(caller, registry, model, version)
        return s.ApprovalsBody([shapes.approval(item) for item in found])

    @delete("/approvals/{approval_id:str}", operation_id="revokeApproval", opt={"action": "approval:revoke"})
    async def revoke(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
        approval_id: FromPath[str],
    ) -> None:
        """Take back an approval: one's own with `approval:create`, anybody's with `approval:revoke`."""
        await governance.approvals.revoke(caller, registry, model, version, approval_id)

    @post("/quarantine", operation_id="quarantine", opt={"action": "version:quarantine"})
    async def quarantine(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
        data: JSONBody[s.QuarantineRequest],
    ) -> s.QuarantineBody:
        """Keep a version from becoming live again. Where it is live, the answer says what to roll back to."""
        placed = await governance.quarantine.place(caller, registry, model, version, data.reason)
        it = placed.quarantine
        return s.QuarantineBody(it.id, it.version, it.reason, it.by, shapes.stamp(it.at), placed.live_in)

    @delete("/quarantine", operation_id="liftQuarantine", opt={"action": "version:quarantine"})
    async def lift(
        self,
        caller: NamedDependency[Caller],
        governance: NamedDependency[Governance],
        registry: FromPath[str],
        model: FromPath[str],
        version: Version,
    ) -> None:
        """Let a version become live again."""
        await governance.quarantine.lift(caller, registry, model, version)


HANDLERS = (VersionController,)
