"""The enforcement point: the only way from a request to a registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from service.audit import Effect, Operation, Registered, Renamed, TakenDown, Trail
from service.backend import Backend
from service.changes import Changes
from service.errors import (
    Denied,
    GatewayError,
    InvalidRequest,
    JournalUnavailable,
    NotFound,
    OperationPending,
    OutcomeUnknown,
)
from service.guard import Guard
from service.model import (
    AliasSet,
    Answer,
    Call,
    Creation,
    Decision,
    ModelDelete,
    ModelRename,
    ModelVersion,
    Need,
    OutsideSource,
    Principal,
    Promotion,
    Record,
    StageSet,
    VersionCreate,
    resource,
)
from service.ownership import Ownership
from service.promoter import Asked, Promoter
from service.promotion.gate import Environment
from service.searching import search

Decide = Callable[[Principal, str, str, str], Decision]


class Gateway:
    """Takes each call down one path: decide, gate, record, forward, record."""

    def __init__(
        self,
        *,
        backends: Mapping[str, Backend],
        decide: Decide,
        guard: Guard,
        promoter: Promoter,
        trail: Trail,
        changes: Changes,
        sources: Mapping[str, tuple[str, ...]],
        record_reads: bool = False,
    ) -> None:
        """Guard *backends*; *sources* are the outside prefixes each registry accepts for new versions."""
        self.backends = backends
        self.trail = trail
        self._decide = decide
        self._guard = guard
        self._promoter = promoter
        self._changes = changes
        self._sources = sources
        self._record_reads = record_reads
        self._ownership = Ownership()
        self.unsettled: dict[str, str] = {}
        """Digest of a call whose outcome is unknown -> its operation."""
        self.active: set[str] = set()
        """Operations this process is carrying out; the reconciler leaves them alone."""

    async def handle(self, call: Call) -> Answer:
        """Take *call* to its registry, or refuse it.

        Raises:
            Denied: no policy allows it. Nothing was forwarded.
            GateClosed: a promotion rule failed. Nothing was forwarded.
            JournalUnavailable: a write could not be recorded first. Nothing was forwarded.
            RegistryUnavailable: the registry cannot be reached. Nothing was changed.
            RegistryRefused: it was forwarded, and the registry refused.
            OutcomeUnknown: it was forwarded, and no answer came. It is read back.
        """
        operation = Operation.opened(call, self.trail.now())
        backend = self.backend(call.registry)
        if call.record is Record.EACH:
            return await self._changes.run(self._change(backend, call, operation))
        await self.authorize(backend, call.needs, operation)
        if call.listing is not None or call.experiments:
            answer = await search(backend, call, self._ownership, self._may(backend, call.principal))
        else:
            answer = await self._forward_telemetry_or_read(backend, call)
        if self._record_reads and call.record is Record.NONE:
            await self.trail.observed(operation)
        return dataclasses.replace(answer, revision=operation.decision.revision)

    def backend(self, registry: str) -> Backend:
        """Return the registry's adapter.

        Raises:
            NotFound: no such registry is configured.
        """
        found = self.backends.get(registry)
        if found is None:
            message = f"No registry is named {registry!r}."
            raise NotFound(message)
        return found

    async def authorize(self, backend: Backend, needs: tuple[Need, ...], operation: Operation) -> None:
        """Decide every need; the first refusal is recorded.

        Raises:
            Denied: a policy row forbids it, or none allows it.
        """
        for index, need in enumerate(needs):
            where = await self._resource_of(backend, need)
            decision = (
                Decision(allowed=True, row="sources")
                if isinstance(need.resource, OutsideSource)
                else self._decide(operation.principal, backend.name, where, need.action)
            )
            if index == 0 or not decision.allowed:
                operation.action, operation.resource, operation.decision = need.action, where, decision
            if not decision.allowed:
                message = f"{operation.principal.subject} may not {need.action} on {where} of {backend.name}."
                await self.trail.refused(operation, "denied")
                raise Denied(message, operation=operation.id)

    async def _resource_of(self, backend: Backend, need: Need) -> str:
        if isinstance(need.resource, str):
            return need.resource
        if isinstance(need.resource, OutsideSource):
            if not need.resource.uri.startswith(self._sources.get(backend.name, ()) or "\0"):
                message = (
                    "The source is outside the registry. Log the model through the gateway, or have its prefix added "
                    f"to registries.{backend.name}.sources."
                )
                raise InvalidRequest(message)
            return need.resource.uri
        return await self._ownership.resource_of(backend, need.resource)

    def decides(self, principal: Principal, registry: str, where: str, action: str) -> Decision:
        """Decide without a call, for answers that are cut down to what the caller may read."""
        return self._decide(principal, registry, where, action)

    def _may(self, backend: Backend, principal: Principal) -> Callable[[str, str], bool]:
        return lambda where, action: self._decide(principal, backend.name, where, action).allowed

    async def _forward_telemetry_or_read(self, backend: Backend, call: Call) -> Answer:
        assert call.request is not None  # only our own promotions have none, and they are recorded each
        writes = call.record is not Record.NONE
        try:
            return await backend.forward(call.request, writes=writes, trace=call.trace)
        finally:
            if writes and call.name == "updateExperiment":
                self._ownership.forget_names(backend.name)

    async def _change(self, backend: Backend, call: Call, operation: Operation) -> Answer:
        """One change, from decision to outcome; every refusal before the intent leaves one ``rejected`` event."""
        try:
            self.active.add(operation.id)
            environment = self._guard.promotes(backend.name, call.change)
            if environment is not None:
                await self._authorize_promotion(backend, call, environment, operation)
            else:
                await self.authorize(backend, call.needs, operation)
            self._refuse_unsettled(call)
            async with self._changes.lock(backend.name, _models(call)):
                if environment is not None:
                    return await self._promote(backend, call, environment, operation)
                retired = await self._retired(backend, call, operation)
                await self.trail.intent(operation)
                return await self._forward_change(backend, call, operation, retired)
        except GatewayError as error:
            if error.operation is None and not isinstance(error, JournalUnavailable):
                operation.detail = error.detail
                await self.trail.refused(operation, "rejected")
                error.operation = operation.id
            if isinstance(error, OutcomeUnknown):
                self.unsettled[operation.digest] = operation.id
            raise
        finally:
            self.active.discard(operation.id)

    async def _authorize_promotion(
        self, backend: Backend, call: Call, environment: Environment, operation: Operation
    ) -> None:
        """On a guarded target only the promotion is asked; a deny row on the alias or stage counts too."""
        for need in call.needs:
            if isinstance(need.resource, str):
                decision = self._decide(call.principal, backend.name, need.resource, need.action)
                if decision.denied_by_row:
                    operation.action, operation.resource, operation.decision = need.action, need.resource, decision
                    await self.trail.refused(operation, "denied")
                    message = f"A policy row forbids {call.principal.subject} {need.action} on {need.resource}."
                    raise Denied(message, operation=operation.id)
        model = getattr(call.change, "model", "")
        operation.environment = environment.name
        need = Need("environment:promote", resource("models", model, "environments", environment.name))
        await self.authorize(backend, (need,), operation)

    async def _promote(self, backend: Backend, call: Call, environment: Environment, operation: Operation) -> Answer:
        change = call.change
        if isinstance(change, Promotion):
            asked = Asked(change.model, change.version, call.principal, change.reason, change.dry_run, change.if_match)
        else:
            assert isinstance(change, AliasSet | StageSet)  # Guard.promotes knows no others
            asked = Asked(change.model, change.version, call.principal)
        result = await self._promoter.promote(backend, environment, asked, operation)
        return Answer(200, promotion=result, operation=operation.id, revision=operation.decision.revision)

    async def _retired(self, backend: Backend, call: Call, operation: Operation) -> list[Environment]:
        """Ask for the right to take down what a change takes down, and judge what a rename carries along."""
        retired = await self._guard.retires(backend, call.change)
        model = getattr(call.change, "model", "")
        for environment in retired:
            operation.environment = environment.name
            need = Need("environment:retire", resource("models", model, "environments", environment.name))
            await self.authorize(backend, (need,), operation)
        for carried in await self._guard.carries(backend, call.change):
            name = getattr(call.change, "new_name", "")
            need = Need("environment:promote", resource("models", name, "environments", carried.environment.name))
            await self.authorize(backend, (need,), operation)
            asked = Asked(model, carried.version, call.principal)
            await self._promoter.judge_carried(backend, carried.environment, asked, operation)
        return retired

    def _refuse_unsettled(self, call: Call) -> None:
        pending = self.unsettled.get(call.digest())
        if pending is not None:
            message = f"The same call is unsettled as operation {pending}; it was not forwarded again."
            raise OperationPending(message)

    async def _forward_change(
        self, backend: Backend, call: Call, operation: Operation, retired: list[Environment]
    ) -> Answer:
        assert call.request is not None  # promotions went the other way
        try:
            answer = await backend.forward(call.request, writes=True, trace=call.trace)
        except OutcomeUnknown as error:
            operation.detail, error.operation = error.detail, operation.id
            await self.trail.outcome(operation, "unknown")
            raise
        except GatewayError as error:
            operation.detail, error.operation = error.detail, operation.id
            operation.status = getattr(error, "status", None)
            await self.trail.outcome(operation, "failed")
            raise
        if call.name == "updateExperiment":
            self._ownership.forget_names(backend.name)
        operation.status = answer.status
        effects = effects_of(call, answer, operation, retired, self.trail.now())
        await self.trail.outcome(operation, "succeeded", effects)
        return dataclasses.replace(answer, operation=operation.id, revision=operation.decision.revision)


def effects_of(
    call: Call, answer: Answer, operation: Operation, retired: list[Environment], now: float
) -> list[Effect]:
    """Say what a successful change means for the journal's own tables."""
    change = call.change
    effects: list[Effect] = []
    if isinstance(change, VersionCreate):
        effects.append(_registered(call, change, answer.document().get("model_version", {}), operation, now))
    if isinstance(change, ModelDelete):
        effects.append(TakenDown(call.registry, change.model, (), now))
    elif isinstance(change, ModelRename):
        effects.append(Renamed(call.registry, change.model, change.new_name))
    elif retired:
        names = tuple(item.name for item in retired if _ends(change, item))
        if names:
            effects.append(TakenDown(call.registry, getattr(change, "model", ""), names, now))
    return effects


def _ends(change: object, environment: Environment) -> bool:
    """Tell whether *change* takes away the first mark, which says what is live."""
    first = environment.marks[0]
    if isinstance(change, StageSet):
        return first.kind == "stage"
    alias = getattr(change, "alias", None)
    return alias is None or (first.kind == "alias" and first.value == alias)


def _registered(
    call: Call, change: VersionCreate, native: Mapping[str, object], operation: Operation, now: float
) -> Registered:
    version = ModelVersion(
        model=change.model,
        version=str(native.get("version", "")),
        status="",
        stage="",
        source=str(native.get("source", change.source)),
        run_id="",
        aliases=(),
        tags={},
        created_ms=int(str(native.get("creation_timestamp", 0))),
        description="",
        native=native,
    )
    operation.version = version.version
    persons = tuple(sorted(call.principal.persons))
    return Registered(
        call.registry,
        Creation(change.model, version.version, version.binding, call.principal.subject, persons, now),
    )


def _models(call: Call) -> tuple[str, ...]:
    change = call.change
    names = (getattr(change, "model", None), getattr(change, "new_name", None))
    return tuple(name for name in names if name)
