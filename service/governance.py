"""What the gateway itself keeps about versions: evidence, approvals, what is live, the trail. Decided like all else."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

from service.audit import Event, Operation
from service.backend import Backend
from service.effects import Posted, Revoked, Signed
from service.errors import Conflict, Denied, GatewayError, JournalUnavailable, NotFound
from service.gateway import Gateway
from service.gather import Gatherer
from service.guard import live_version
from service.model import Call, Caller, Need, resource
from service.promoter import etag
from service.promotion.environments import Environments
from service.promotion.facts import Source, VersionFacts, newest_evidence
from service.promotion.gate import Environment
from service.provenance import UNVERIFIABLE, artifact_digest, behind, origin_of_version
from service.records import Approval, Evidence, LivePeriod, ModelVersion
from service.strict import check_text, check_version

E = TypeVar("E", Posted, Signed, Revoked)


class Governance:
    """The operations of the governance API that forward nothing."""

    def __init__(self, gateway: Gateway, environments: Environments, gatherer: Gatherer) -> None:
        """Decide and record through *gateway*."""
        self._gateway = gateway
        self._environments = environments
        self._gatherer = gatherer

    @property
    def _journal(self) -> Any:
        return self._gateway.trail.journal

    async def _open(self, caller: Caller, registry: str, name: str, need: Need) -> tuple[Backend, Operation]:
        backend = self._gateway.backend(registry)
        if isinstance(need.resource, str):
            check_text(unquote(need.resource), "name")
        call = Call(principal=caller.principal, registry=registry, name=name, needs=(need,), address=caller.address)
        operation = Operation.opened(call, self._gateway.trail.now())
        await self._gateway.authorize(backend, call.needs, operation)
        return backend, operation

    def _environment(self, registry: str, model: str, name: str) -> Environment:
        found = self._environments.get(registry, model, name)
        if found is None:
            known = ", ".join(item.name for item in self._environments.of(registry, model)) or "none"
            message = f"The model has no environment {name!r}; it has: {known}."
            raise NotFound(message)
        return found

    async def _rejecting(self, operation: Operation, error: GatewayError) -> None:
        if error.operation is None and not isinstance(error, JournalUnavailable):
            operation.detail = error.detail
            await self._gateway.trail.refused(operation, "rejected")
            error.operation = operation.id

    async def _store(
        self,
        operation: Operation,
        model: str,
        version: str,
        make: Callable[[], Awaitable[E]],
        *,
        alone: bool = False,
    ) -> E:
        """Make a record about a version and store it with its event; a refusal leaves a ``rejected`` one.

        *alone*: while no change of the model is under way, and to its end even if the caller hangs up.
        """
        operation.model, operation.version = model, version

        async def work() -> E:
            effect = await make()
            await self._gateway.trail.stored(operation, [effect])
            self._gateway.seals.apply([effect])
            return effect

        try:
            check_version(version)
            return await (self._gateway.alone(operation.registry, model, work) if alone else work())
        except GatewayError as error:
            await self._rejecting(operation, error)
            raise

    async def post_evidence(
        self, caller: Caller, registry: str, model: str, version: str, posted: Mapping[str, Any]
    ) -> Evidence:
        """Store evidence of ``posted['kind']`` about a version; append-only, the newest of a kind counts.

        Raises:
            Denied, NotFound, JournalUnavailable: nothing is stored.
        """
        need = Need("evidence:post", resource("models", model, "versions", "evidence", posted["kind"]))
        backend, operation = await self._open(caller, registry, "postEvidence", need)
        evidence = Evidence(
            id=str(uuid.uuid4()),
            kind=posted["kind"],
            result=posted["result"],
            by=caller.principal.subject,
            groups=tuple(sorted(caller.principal.groups)),
            facts=dict(posted["facts"]),
            source=posted["source"],
            at=self._gateway.trail.now(),
        )
        operation.after = {"kind": evidence.kind, "result": evidence.result, "id": evidence.id}

        async def post() -> Posted:
            found = await backend.get_version(model, version)
            digest = await artifact_digest(backend, await origin_of_version(backend, found))
            return Posted(registry, model, found.binding, dataclasses.replace(evidence, artifact_digest=digest))

        return (await self._store(operation, model, version, post)).evidence

    async def evidence(self, caller: Caller, registry: str, model: str, version: str) -> list[Evidence]:
        """List the evidence about a version, oldest first."""
        found = await self._read_version(caller, registry, model, version, "listEvidence")
        evidence: list[Evidence] = await self._journal.evidence(registry, model, found.binding)
        return evidence

    async def approve(
        self, caller: Caller, registry: str, model: str, version: str, signed: Mapping[str, Any]
    ) -> Approval:
        """Store an approval or a rejection of a version for an environment, under its present rules.

        Raises:
            Denied: no right to, or the caller registered the version. NotFound. Nothing is stored.
            Busy: something behind the version is being written, or its model changed. Nothing is stored; try again.
        """
        environment = self._environment(registry, model, signed["environment"])
        need = Need("approval:create", resource("models", model, "environments", environment.name))
        backend, operation = await self._open(caller, registry, "createApproval", need)
        operation.environment, operation.reason = environment.name, signed["reason"]
        approval = Approval(
            id=str(uuid.uuid4()),
            environment=environment.name,
            decision=signed["decision"],
            by=caller.principal.subject,
            persons=tuple(sorted(caller.principal.persons)),
            groups=tuple(sorted(caller.principal.groups)),
            reason=signed["reason"],
            at=self._gateway.trail.now(),
            expires=signed["expires"],
            rules_digest=environment.rules_digest,
        )
        operation.after = {"decision": approval.decision, "id": approval.id}

        async def sign(held: contextlib.ExitStack) -> Signed:
            found = await backend.get_version(model, version)
            creation = await self._journal.creation(registry, model, found.binding)
            if creation is not None and caller.principal.persons & {creation.by, *creation.persons}:
                message = "You registered this version; somebody else has to approve it."
                await self._gateway.trail.refused(operation, "denied")
                raise Denied(message, operation=operation.id)
            origin = await origin_of_version(backend, found)
            stands = behind(found, origin)
            if approval.decision == "approve":  # what is signed must not change until it is sealed
                held.enter_context(self._gateway.seals.provisional(backend.name, model, environment, version, stands))
            digest = await artifact_digest(backend, origin)
            bound = dataclasses.replace(approval, artifact_digest=digest)
            return Signed(registry, model, found.binding, bound, version, tuple(sorted(stands)))

        with contextlib.ExitStack() as held:
            return (await self._store(operation, model, version, lambda: sign(held), alone=True)).approval

    async def approvals(self, caller: Caller, registry: str, model: str, version: str) -> list[Approval]:
        """List the approvals of a version, revoked ones too, oldest first."""
        found = await self._read_version(caller, registry, model, version, "listApprovals")
        approvals: list[Approval] = await self._journal.approvals(registry, model, found.binding)
        return approvals

    async def revoke(self, caller: Caller, registry: str, model: str, version: str, approval_id: str) -> None:
        """Take an approval back: one's own, or with ``approval:revoke`` anybody's.

        Raises:
            NotFound: no such approval of this version. Conflict: it was revoked before. Denied.
        """
        approval = await self._approval(caller, registry, model, version, approval_id)
        own = approval.by == caller.principal.subject
        action = "approval:create" if own else "approval:revoke"
        need = Need(action, resource("models", model, "environments", approval.environment))
        _, operation = await self._open(caller, registry, "revokeApproval", need)
        operation.environment, operation.before = approval.environment, {"id": approval.id}

        async def take_back() -> Revoked:
            if approval.revoked:
                message = "This approval was revoked before."
                raise Conflict(message)
            return Revoked(approval.id, self._gateway.trail.now())

        await self._store(operation, model, version, take_back, alone=True)

    async def _approval(self, caller: Caller, registry: str, model: str, version: str, approval_id: str) -> Approval:
        """Find an approval, also of a version that was deleted beside the gateway: it still seals what stood behind."""
        signed: list[Signed] = await self._journal.signed()
        here = (registry, model, version)
        approvals = [item.approval for item in signed if (item.registry, item.model, item.version) == here]
        try:
            found = await self._read_version(caller, registry, model, version, "revokeApproval")
            approvals += await self._journal.approvals(registry, model, found.binding)
        except NotFound:
            if not approvals:
                raise
        for item in approvals:
            if item.id == approval_id:
                return item
        message = "This version has no such approval."
        raise NotFound(message)

    async def _read_version(self, caller: Caller, registry: str, model: str, version: str, name: str) -> ModelVersion:
        check_version(version)
        need = Need("version:read", resource("models", model, "versions"))
        backend, _ = await self._open(caller, registry, name, need)
        return await backend.get_version(model, version)

    async def version(
        self, caller: Caller, registry: str, model: str, version: str
    ) -> tuple[VersionFacts, list[Evidence], list[Approval]]:
        """Get all that is known about a version."""
        found = await self._read_version(caller, registry, model, version, "getVersion")
        backend = self._gateway.backend(registry)
        facts, evidence, approvals = await asyncio.gather(
            self._gatherer.version(backend, found, frozenset(Source)),
            self._journal.evidence(registry, model, found.binding),
            self._journal.approvals(registry, model, found.binding),
        )
        return facts, newest_evidence(evidence), approvals

    async def live(
        self, caller: Caller, registry: str, model: str, name: str
    ) -> tuple[ModelVersion, LivePeriod | None, dict[str, Any] | None, str | None, str]:
        """Get what is live in an environment: the version, its period, its MLmodel, digest and ETag.

        Raises:
            NotFound: no such environment, or nothing is live in it.
        """
        need = Need("model:read", resource("models", model, "environments", name))
        backend, _ = await self._open(caller, registry, "getEnvironment", need)
        environment = self._environment(registry, model, name)
        version = live_version(await backend.get_model(model), environment)
        if version is None:
            message = f"Nothing is live in {name!r}."
            raise NotFound(message)
        found, mlmodel, period = await asyncio.gather(
            backend.get_version(model, version),
            backend.get_mlmodel(model, version),
            self._current(registry, model, name),
        )
        known = period if period is not None and period.binding == found.binding else None
        return found, known, mlmodel, await self._digest(backend, found), etag(found)

    async def _digest(self, backend: Backend, version: ModelVersion) -> str | None:
        """Return the digest that the newest record about the version is bound to; reading the files takes too long."""
        try:
            records = [
                *await self._journal.evidence(backend.name, version.model, version.binding),
                *await self._journal.approvals(backend.name, version.model, version.binding),
            ]
        except JournalUnavailable:
            return None
        digests = [item.artifact_digest for item in sorted(records, key=lambda item: item.at)]
        return digests[-1] if digests and digests[-1] not in ("", UNVERIFIABLE) else None

    async def _current(self, registry: str, model: str, environment: str) -> LivePeriod | None:
        try:
            periods: list[LivePeriod] = await self._journal.periods(registry, model)
        except JournalUnavailable:  # reads stand without the journal; only who and since are unknown then
            return None
        return next(
            (item for item in reversed(periods) if item.environment == environment and item.until is None), None
        )

    async def history(self, caller: Caller, registry: str, model: str, name: str) -> list[LivePeriod]:
        """List what was live in an environment by record, newest first."""
        need = Need("model:read", resource("models", model, "environments", name))
        await self._open(caller, registry, "getHistory", need)
        self._environment(registry, model, name)
        periods: list[LivePeriod] = await self._journal.periods(registry, model)
        return [item for item in reversed(periods) if item.environment == name]

    async def promotion(self, caller: Caller, operation_id: str) -> list[Event]:
        """List the events of a promotion the caller may read about.

        Raises:
            NotFound: no such promotion, or none the caller may see.
        """
        events: list[Event] = await self._journal.operation_events(operation_id)
        message = "There is no promotion of this id."
        if not events or not events[0]["data"]["environment"]:
            raise NotFound(message)
        data = events[0]["data"]
        may = self._gateway.decides(caller.principal, data["registry"], resource("models", data["model"]), "model:read")
        if not may.allowed:
            raise NotFound(message)
        if self._gateway.decides(caller.principal, data["registry"], "audit", "audit:read").allowed:
            return events
        return [_public(event) for event in events]

    async def events(
        self, caller: Caller, filters: Mapping[str, Any], after: int, limit: int
    ) -> list[tuple[int, Event]]:
        """List audit events, oldest first; needs ``audit:read``.

        Raises:
            Denied: no row allows it.
        """
        names = list(self._gateway.backends)
        readable = [
            name for name in names if self._gateway.decides(caller.principal, name, "audit", "audit:read").allowed
        ]
        await self._open(caller, (readable or names)[0], "listEvents", Need("audit:read", "audit"))
        scope = {} if len(readable) == len(names) else {"registry": readable}
        events: list[tuple[int, Event]] = await self._journal.events({**filters, **scope}, after, limit)
        return events

    def environments(self, caller: Caller) -> list[tuple[str, Environment]]:
        """List the configured environments with each registry they are of."""
        del caller  # what guards an environment is no secret to those who must satisfy it
        return [
            (registry, environment)
            for registry in self._gateway.backends
            for environment in self._environments.all
            if environment.registry in ("*", registry)
        ]


def _public(event: Event) -> Event:
    """Keep of a promotion's event what its readers need, not who may do what or from where they called."""
    kept = ("phase", "operation", "outcome", "verdict", "before", "after", "version", "environment", "reason", "notes")
    data = {name: event["data"][name] for name in (*kept, "registry", "model")}
    return {**event, "data": {**data, "actor": {"subject": event["data"]["actor"]["subject"]}}}
