"""Approvals: a person's yes or no to a version for an environment, bound to what was seen."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid

from service.audit import Operation
from service.backend import Backend
from service.effects import Revoked, Signed
from service.errors import Conflict, Denied, NotFound, Stale
from service.governance.desk import Desk
from service.governance.reviews import ReviewDesk
from service.guard import live_version
from service.model import Caller, Need, Principal, resource
from service.promotion.approving import concerned_in
from service.promotion.gate import Environment
from service.provenance import Origin, behind, origin_of_version
from service.records import Approval, ModelVersion


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """What is signed."""

    environment: str
    decision: str
    """``approve`` or ``reject``."""
    reason: str = ""
    expires: float | None = None
    review: str = ""
    """The digest of the review it is based on."""


class ApprovalDesk:
    """Takes decisions, lists them and takes them back."""

    def __init__(self, desk: Desk, reviews: ReviewDesk) -> None:
        """Decide and record through *desk*; *reviews* says whether what was seen still is."""
        self._desk = desk
        self._reviews = reviews

    async def sign(self, caller: Caller, registry: str, model: str, version: str, signed: Signature) -> Approval:
        """Store an approval or a rejection of a version for an environment, under its present rules.

        Raises:
            Denied: no right to, or the caller registered, evidenced or asked to promote the version. NotFound.
            Stale: the review it names is not of the present facts.
            Busy: something behind the version is being written, or its model changed. Try again.
            In each case nothing is stored.
        """
        environment = self._desk.environment(registry, model, signed.environment)
        need = Need("approval:create", resource("models", model, "environments", environment.name))
        backend, operation = await self._desk.open(caller, registry, "createApproval", need)
        operation.environment, operation.reason = environment.name, signed.reason
        approval = Approval(
            id=str(uuid.uuid4()),
            environment=environment.name,
            decision=signed.decision,
            by=caller.principal.subject,
            persons=tuple(sorted(caller.principal.persons)),
            groups=tuple(sorted(caller.principal.groups)),
            reason=signed.reason,
            at=self._desk.now(),
            expires=signed.expires,
            rules_digest=environment.rules_digest,
            review=signed.review,
        )
        operation.after = {"decision": approval.decision, "id": approval.id, "review": signed.review or None}

        held = contextlib.AsyncExitStack()

        async def make() -> Signed:
            found = await backend.get_version(model, version)
            origin = await origin_of_version(backend, found)
            if approval.decision == "approve":
                await self._refuse_concerned(caller.principal, backend, found, origin, operation)
            stands = behind(found, origin)
            if approval.decision == "approve":  # what is signed must not change until it is sealed
                seals = self._desk.gateway.seals
                await held.enter_async_context(
                    seals.provisional(operation.id, backend.name, model, environment, version, stands)
                )
            if signed.review:
                await self._check_review(backend, environment, found, signed.review)
            digest = await self._desk.gatherer.digests.digest(backend, origin)
            incumbent = await self._incumbent(backend, environment, found)
            bound = dataclasses.replace(approval, artifact_digest=digest, incumbent=incumbent)
            return Signed(registry, model, found.binding, bound, version, tuple(sorted(stands)))

        return (await self._desk.store(operation, model, version, make, alone=True, held=held)).approval

    async def _refuse_concerned(
        self, principal: Principal, backend: Backend, version: ModelVersion, origin: Origin, operation: Operation
    ) -> None:
        records = await self._desk.journal.version(backend.name, version.model, version.binding)
        creation = records.creation
        roles = {
            "registered": {creation.by, *creation.persons} if creation else set(),
            "registered what is the same as": await self._desk.gatherer.registrants(backend, version, origin),
            "posted evidence about": concerned_in((), records.evidence, ()),
            "asked to promote": records.askers,
        }
        for what, people in roles.items():
            if principal.persons & people:
                message = f"You {what} this version; somebody else has to approve it."
                await self._desk.gateway.trail.refused(operation, "denied")
                raise Denied(message, operation=operation.id)

    async def _check_review(
        self, backend: Backend, environment: Environment, version: ModelVersion, review: str
    ) -> None:
        if not await self._reviews.is_present(backend, environment, version, review):
            message = "The review is not of the present facts; read it again. Nothing is stored."
            raise Stale(message)

    @staticmethod
    async def _incumbent(backend: Backend, environment: Environment, version: ModelVersion) -> str:
        live = live_version(await backend.get_model(version.model), environment)
        if live is None:
            return ""
        return version.binding if live == version.version else (await backend.get_version(version.model, live)).binding

    async def list(self, caller: Caller, registry: str, model: str, version: str) -> list[Approval]:
        """List the approvals of a version, revoked ones too, oldest first."""
        found = await self._desk.read_version(caller, registry, model, version, "listApprovals")
        return [*(await self._desk.journal.version(registry, model, found.binding)).approvals]

    async def revoke(self, caller: Caller, registry: str, model: str, version: str, approval_id: str) -> None:
        """Take an approval back: one's own, or with ``approval:revoke`` anybody's.

        Raises:
            NotFound: no such approval of this version. Conflict: it was revoked before. Denied.
        """
        approval = await self._find(caller, registry, model, version, approval_id)
        own = approval.by == caller.principal.subject
        action = "approval:create" if own else "approval:revoke"
        need = Need(action, resource("models", model, "environments", approval.environment))
        _, operation = await self._desk.open(caller, registry, "revokeApproval", need)
        operation.environment, operation.before = approval.environment, {"id": approval.id}

        async def take_back() -> Revoked:
            if approval.revoked:
                message = "This approval was revoked before."
                raise Conflict(message)
            return Revoked(approval.id, self._desk.now())

        await self._desk.store(operation, model, version, take_back, alone=True)

    async def _find(self, caller: Caller, registry: str, model: str, version: str, approval_id: str) -> Approval:
        """Find an approval, also of a version that was deleted beside the gateway: it still seals what stood behind."""
        here = (registry, model, version)
        approvals = [
            item.approval
            for item in await self._desk.journal.signed()
            if (item.registry, item.model, item.version) == here
        ]
        try:
            found = await self._desk.read_version(caller, registry, model, version, "revokeApproval")
            approvals += (await self._desk.journal.version(registry, model, found.binding)).approvals
        except NotFound:
            if not approvals:
                raise
        for item in approvals:
            if item.id == approval_id:
                return item
        message = "This version has no such approval."
        raise NotFound(message)
