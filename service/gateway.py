"""The enforcement point: the only way from a request to a registry."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from service.audit import Operation, Trail
from service.backend import Backend
from service.change import (
    AliasDelete,
    AliasSet,
    ModelRename,
    OfArtifact,
    OfTraces,
    OutsideSource,
    Promotion,
    Retirement,
    StageSet,
    VersionCreate,
)
from service.changes import Changes
from service.effects import Deleted, Effect, MadeLive, Registered, Renamed, TakenDown
from service.errors import (
    Denied,
    GatewayError,
    IdempotencyKeyReused,
    InvalidRequest,
    JournalUnavailable,
    NotFound,
    OperationPending,
    OutcomeUnknown,
)
from service.guard import Guard, live_version, marked_versions
from service.joining import read_back
from service.marking import take_marks
from service.model import STAGES, Answer, Call, Decision, Need, Principal, Record, Verdict, resource
from service.ownership import Ownership
from service.promoter import Asked, Promoter
from service.promotion.environments import Environments
from service.promotion.gate import Environment, Mark, Purpose
from service.provenance import check_run
from service.records import Creation, RegisteredModel, binding_of
from service.references import IDENTIFIER, check_deletion
from service.seals import Seals, written
from service.searching import Searches
from service.spelling import Spelling
from service.tally import Measured, Tally
from service.unsettled import Outcome, Pending, Unsettled
from service.watching import Watch

T = TypeVar("T")
WOULD_REFUSE = "would_refuse: "
"""Begins the note of a right that was missing where rights are not enforced."""
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
        ownership: Ownership,
        seals: Seals,
        spelling: Spelling,
        tally: Tally,
        searches: Searches,
        watch: Watch,
        sources: Mapping[str, tuple[str, ...]],
        record_reads: bool = False,
        join_seconds: float = 10.0,
    ) -> None:
        """Guard *backends*; *sources* are the outside prefixes each registry accepts for new versions.

        A call equal to an unsettled one waits at most *join_seconds* for its outcome.
        """
        self.backends = backends
        self.trail = trail
        self._decide = decide
        self._guard = guard
        self._promoter = promoter
        self._changes = changes
        self._sources = sources
        self._record_reads = record_reads
        self._ownership = ownership
        self.seals = seals
        self._spelling = spelling
        self.tally = tally
        self._searches = searches
        self._watch = watch
        self.unsettled = Unsettled()
        self._join_seconds = join_seconds
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
        await self._spelling.check(backend, call)
        if call.listing is not None or call.experiments or call.traces:
            answer = await self._searches.search(backend, call, self._may(backend, call.principal))
        else:
            answer = await self._forward_telemetry_or_read(backend, call, operation)
        if self._record_reads and call.record is Record.NONE:
            await self.trail.noted(operation)
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
            for where, action in await self._asked(backend, need):
                decision = (
                    Decision(allowed=True, row="sources")
                    if isinstance(need.resource, OutsideSource)
                    else self._decide(operation.principal, backend.name, where, action)
                )
                if (index == 0 and action == need.action) or not decision.allowed:
                    operation.action, operation.resource, operation.decision = action, where, decision
                if not decision.allowed:
                    message = f"{operation.principal.subject} may not {action} on {where} of {backend.name}."
                    await self.trail.refused(operation, "denied")
                    raise Denied(message, operation=operation.id)

    async def _asked(self, backend: Backend, need: Need) -> list[tuple[str, str]]:
        """List the resources and actions that a need means."""
        if isinstance(need.resource, OfTraces) and need.resource.experiment_id:
            where, exists = await self._ownership.of_new_traces(backend, need.resource)
            also = [(where, "run:update")] if exists else []  # MLflow writes over a trace that is there
            return [(where, need.action), *also]
        return [(where, need.action) for where in await self._resources_of(backend, need)]

    async def _resources_of(self, backend: Backend, need: Need) -> list[str]:
        if isinstance(need.resource, str):
            return [need.resource]
        if isinstance(need.resource, OutsideSource):
            if not need.resource.uri.startswith(self._sources.get(backend.name, ()) or "\0"):
                message = (
                    "The source is outside the registry. Log the model through the gateway, or have its prefix added "
                    f"to registries.{backend.name}.sources."
                )
                raise InvalidRequest(message)
            return [need.resource.uri]
        return await self._ownership.resources_of(backend, need.resource)

    def lock(self, registry: str, models: tuple[str, ...]) -> AbstractAsyncContextManager[None]:
        """Hold the locks of *models*, as a change does."""
        return self._changes.lock(registry, models)

    async def alone(self, registry: str, model: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run *work* to its end, even if the caller hangs up, while no change of *model* is under way.

        Raises:
            Busy: the lock was not had in time. Nothing was done.
        """

        async def locked() -> T:
            async with self.lock(registry, (model,)):
                return await work()

        return await self._changes.run(locked())

    def follow(self, effects: Iterable[Effect]) -> None:
        """Follow in memory what was just recorded: seals, and those who wait for what is live."""
        effects = list(effects)
        self.seals.apply(effects)
        self._watch.apply(effects)

    def decides(self, principal: Principal, registry: str, where: str, action: str) -> Decision:
        """Decide without a call, for answers that are cut down to what the caller may read."""
        return self._decide(principal, registry, where, action)

    def _may(self, backend: Backend, principal: Principal) -> Callable[[str, str], bool]:
        return lambda where, action: self._decide(principal, backend.name, where, action).allowed

    async def _forward_telemetry_or_read(self, backend: Backend, call: Call, operation: Operation) -> Answer:
        request = call.request
        assert request is not None  # only our own promotions have none, and they are recorded each
        if call.record is Record.NONE:
            return await backend.forward(request, writes=False, trace=call.trace)
        await self.seals.check(backend, call)
        measured, file = None, call.needs[0].resource
        if request.body is not None and isinstance(file, OfArtifact):
            measured = Measured(file.path, request.body)
            request = dataclasses.replace(request, body=aiter(measured))
        identifier = next(iter(written(call)), "")
        with self.seals.writing(backend, call):
            try:
                answer = await backend.forward(request, writes=True, trace=call.trace)
            except OutcomeUnknown as error:
                self.tally.count(operation, identifier, failed=True)
                message = f"The registry {backend.name!r} gave no answer; it may have been done."
                raise OutcomeUnknown(message) from error
            except GatewayError:
                self.tally.count(operation, identifier, failed=True)
                raise
        self.tally.count(operation, identifier, failed=False, upload=measured.upload() if measured else None)
        return answer

    async def _change(self, backend: Backend, call: Call, operation: Operation) -> Answer:
        """One change, from decision to outcome; every refusal before the intent leaves one ``rejected`` event."""
        self.active.add(operation.id)
        try:
            environment = self._guard.promotes(backend.name, call.change)
            if isinstance(call.change, Retirement):
                assert environment is not None  # Guard.promotes found it, or refused
                await self._authorize_retirement(backend, call, environment, operation)
            elif environment is not None:
                await self._authorize_promotion(backend, call, environment, operation)
            return await self._carry_out_or_join(backend, call, environment, operation)
        except GatewayError as error:
            if error.operation is None and not isinstance(error, JournalUnavailable):
                await self._reject(operation, error.detail)
                error.operation = operation.id
            raise
        except Exception as error:
            await self._reject(operation, f"unexpected: {type(error).__name__}")
            raise
        finally:
            self.active.discard(operation.id)

    async def _carry_out_or_join(
        self, backend: Backend, call: Call, environment: Environment | None, operation: Operation
    ) -> Answer:
        pending = self.unsettled.get(operation.digest)
        if pending is not None:  # who comes while it is unsettled gets its outcome, however long a lock takes
            return await self._join(pending, backend, call, environment, operation)
        async with self._changes.lock(backend.name, _lock_names(call, operation)):
            pending = self.unsettled.get(operation.digest)
            if pending is None:
                try:
                    if (
                        operation.key
                        and (answer := await self._done_before(backend, call, environment, operation)) is not None
                    ):
                        return answer
                    if isinstance(call.change, Retirement) and environment is not None:
                        return await self._retire(backend, call.change, environment, operation)
                    if environment is not None:
                        return await self._promote(backend, call, environment, operation)
                    return await self._change_otherwise(backend, call, operation)
                except OutcomeUnknown:
                    self.unsettled.add(operation.digest, operation.id)
                    raise
        return await self._join(pending, backend, call, environment, operation)  # the reconciler needs the lock

    async def _join(
        self, pending: Pending, backend: Backend, call: Call, environment: Environment | None, operation: Operation
    ) -> Answer:
        """Wait for the outcome of an equal, unsettled operation; only what was surely not done is forwarded again.

        Raises:
            OperationPending: the outcome is still unknown. Nothing was forwarded again.
        """
        await self._authorize_again(backend, call, environment, operation)
        outcome = await pending.outcome(self._join_seconds)
        if outcome.state == "unknown":
            message = f"The same call is unsettled as operation {pending.operation}; it was not forwarded again."
            raise OperationPending(message)
        if outcome.state == "succeeded":
            answer = await read_back(backend, self.trail.journal, call.change, pending.operation, outcome)
            answer = dataclasses.replace(answer, operation=pending.operation)
        elif pending.again is None:  # the first that waited is forwarded for all of them
            pending.again = asyncio.create_task(self._carry_out_or_join(backend, call, environment, operation))
            return await asyncio.shield(pending.again)
        else:
            answer = await asyncio.shield(pending.again)
        operation.detail = f"The outcome of operation {answer.operation}, which was waited for."
        await self.trail.noted(operation)
        return dataclasses.replace(answer, revision=operation.decision.revision)

    async def _authorize_again(
        self, backend: Backend, call: Call, environment: Environment | None, operation: Operation
    ) -> None:
        """Decide what a call needs that is answered by an equal one."""
        if environment is None and isinstance(call.change, AliasDelete | StageSet):  # retiring may have been enough
            await self._refuse_denied_by_row(backend, call, call.needs, operation)
        elif environment is None:
            await self.authorize(backend, call.needs, operation)

    async def _done_before(
        self, backend: Backend, call: Call, environment: Environment | None, operation: Operation
    ) -> Answer | None:
        """Answer what this Idempotency-Key did already, where its answer was lost; None if it did nothing.

        Raises:
            OperationPending: it is not known yet. Nothing was forwarded again.
        """
        known = await self.trail.journal.operation_by_key(operation.key)
        if known is None or known.state == "failed":
            return None
        await self._authorize_again(backend, call, environment, operation)
        if known.digest != operation.digest:
            message = "This Idempotency-Key was sent with another route or body; take a new one."
            raise IdempotencyKeyReused(message)
        if known.state != "succeeded":
            message = f"The operation {known.id} of this Idempotency-Key is unsettled; it was not forwarded again."
            raise OperationPending(message)
        events = await self.trail.journal.operation_events(known.id)
        done = Outcome("succeeded", str(events[-1]["data"]["version"] or ""))
        answer = await read_back(backend, self.trail.journal, call.change, known.id, done)
        operation.detail = f"The outcome of operation {known.id}, which this Idempotency-Key began."
        await self.trail.noted(operation)
        return dataclasses.replace(answer, operation=known.id, revision=operation.decision.revision)

    async def _reject(self, operation: Operation, detail: str) -> None:
        """Leave the event of a refusal; where an intent stands already, it stays open for the reconciler."""
        if not operation.intended:
            operation.detail = detail
            await self.trail.refused(operation, "rejected")

    async def _authorize_promotion(
        self, backend: Backend, call: Call, environment: Environment, operation: Operation
    ) -> None:
        """On a guarded target only the promotion is asked; a deny row on the alias or stage counts too."""
        model = getattr(call.change, "model", "")
        marks = [_need_of(model, mark) for mark in environment.marks]
        await self._refuse_denied_by_row(backend, call, (*call.needs, *marks), operation)
        operation.environment = environment.name
        purpose = getattr(call.change, "purpose", "promotion")
        action = {"rollback": "environment:rollback", "emergency": "environment:emergency"}.get(
            purpose, "environment:promote"
        )
        need = Need(action, resource("models", model, "environments", environment.name))
        await self.authorize(backend, (need,), operation)

    async def _refuse_denied_by_row(
        self, backend: Backend, call: Call, needs: Iterable[Need], operation: Operation
    ) -> None:
        for need in needs:
            if not isinstance(need.resource, str):
                continue
            decision = self._decide(call.principal, backend.name, need.resource, need.action)
            if decision.denied_by_row:
                operation.action, operation.resource, operation.decision = need.action, need.resource, decision
                await self.trail.refused(operation, "denied")
                message = f"A policy row forbids {call.principal.subject} {need.action} on {need.resource}."
                raise Denied(message, operation=operation.id)

    async def _promote(self, backend: Backend, call: Call, environment: Environment, operation: Operation) -> Answer:
        change = call.change
        if isinstance(change, Promotion):
            asked = Asked(
                change.model,
                change.version,
                call.principal,
                change.reason,
                change.dry_run,
                change.if_match,
                Purpose(change.purpose),
                change.ticket,
                change.record,
            )
        else:
            assert isinstance(change, AliasSet | StageSet)  # Guard.promotes knows no others
            asked = Asked(change.model, change.version, call.principal)

        async def retire(other: Environment) -> None:
            asked_for = (operation.environment, operation.action, operation.resource, operation.decision)
            await self._authorize_retirement(backend, call, other, operation)
            operation.environment, operation.action, operation.resource, operation.decision = asked_for

        result = await self._promoter.promote(backend, environment, asked, operation, retire)
        self.follow(result.effects)
        return Answer(
            200,
            headers=_warning(result.verdict),
            promotion=result,
            operation=operation.id,
            revision=operation.decision.revision,
        )

    async def _retire(
        self, backend: Backend, change: Retirement, environment: Environment, operation: Operation
    ) -> Answer:
        """Take down what is live. Rules are not asked; the model's lock is held.

        Raises:
            NotFound: nothing is live in the environment.
        """
        model = await backend.get_model(change.model)
        live = live_version(model, environment)
        if live is None and not any(marked_versions(model, mark) for mark in environment.marks):
            message = f"Nothing is live in {environment.name!r}."
            raise NotFound(message)
        operation.before, operation.after = {"version": live}, {"version": None}
        operation.change = {**(operation.change or {}), "ended": (environment.name,)}
        await self.trail.intent(operation)
        try:
            operation.notes += [f"taken: {mark}" for mark in await take_marks(backend, model, environment)]
        except GatewayError as error:
            operation.detail, error.operation = error.detail, operation.id
            await self.trail.outcome(operation, "unknown" if isinstance(error, OutcomeUnknown) else "failed")
            raise
        effects = [TakenDown(backend.name, change.model, (environment.name,), self.trail.now())]
        await self.trail.outcome(operation, "succeeded", effects)
        self.follow(effects)
        return dataclasses.replace(Answer.of({"before": live}), operation=operation.id)

    async def _change_otherwise(self, backend: Backend, call: Call, operation: Operation) -> Answer:
        """Carry out a change that promotes nothing by itself. The model's lock is held."""
        try:
            retired = await self._guard.retires(backend, call.change)
        except NotFound:
            retired = []  # nothing is marked; the registry will say so to those who may ask
        asked = [item for item in retired if item.enforced]
        if asked and isinstance(call.change, AliasDelete | StageSet):
            await self._refuse_denied_by_row(backend, call, call.needs, operation)
        else:  # deleting or renaming is more than taking down: both are asked
            await self.authorize(backend, call.needs, operation)
        for item in asked:
            await self._authorize_retirement(backend, call, item.environment, operation)
        if isinstance(call.change, ModelRename):
            await self._refuse_gain(backend, call.change, operation)
        operation.notes += [
            f"{item.environment.name}: taken down, not enforced" for item in retired if item not in asked
        ]
        observed = await self._observe(backend, call, operation)
        await self._spelling.check(backend, call)
        with self.seals.writing(backend, call):  # from before the check: nothing is judged in between
            await self.seals.check(backend, call)
            may = self._may(backend, call.principal)
            await check_deletion(backend, call, self._ownership, may, self._guard.environments, operation.notes)
            if isinstance(call.change, VersionCreate):
                model_id = str(call.request.message.get("model_id", "")) if call.request else ""
                await check_run(backend, call.change, model_id)
            follows = [*await self._judge_carried(backend, call, operation), *observed]
            ended = tuple(item.environment.name for item in retired if item.ends)
            if operation.change is not None:  # so that the reconciler knows what follows from it
                carried = [dataclasses.asdict(e) for e in follows]
                operation.change = {**operation.change, "ended": ended, "carried": carried}
            await self.trail.intent(operation)
            return await self._forward_change(backend, call, operation, ended, follows)

    async def _refuse_gain(self, backend: Backend, change: ModelRename, operation: Operation) -> None:
        """A rename cannot shed a deny or inherit a grant: what the caller may do must not grow with the new name.

        Raises:
            Denied: it would. Nothing was forwarded.
            NotFound: no such model.
        """
        try:
            model = await backend.get_model(change.model)
        except NotFound:
            return  # the registry says so itself
        gained = []
        for action, *inside in _rights_on(model, self._guard.environments):
            old, new = resource("models", change.model, *inside), resource("models", change.new_name, *inside)
            before = self._decide(operation.principal, backend.name, old, action)
            after = self._decide(operation.principal, backend.name, new, action)
            if after.allowed and not before.allowed:
                gained.append((action, old, before))
        if gained:
            action, old, before = gained[0]
            operation.action, operation.resource, operation.decision = action, old, before
            await self.trail.refused(operation, "denied")
            message = (
                f"{operation.principal.subject} may not {action} on {old} of {backend.name}, and could after the "
                "rename. Somebody who may do under both names all that they may do under the new one can rename it."
            )
            raise Denied(message, operation=operation.id)

    async def _observe(self, backend: Backend, call: Call, operation: Operation) -> list[MadeLive]:
        """Judge for the record what an environment that is not enforced would have said; change no answer."""
        environment = self._guard.observes(backend.name, call.change)
        if environment is None:
            return []
        assert isinstance(call.change, AliasSet | StageSet)  # Guard.observes knows no others
        change = call.change
        need = Need("environment:promote", resource("models", change.model, "environments", environment.name))
        assert isinstance(need.resource, str)  # built from parts
        if not self._decide(call.principal, backend.name, need.resource, need.action).allowed:
            operation.notes.append(f"{WOULD_REFUSE}no policy allows {need.action} on {need.resource}")
        operation.change = {**(operation.change or {}), "observed": True}
        asked = Asked(change.model, change.version, call.principal)
        await self._promoter.observe(backend, environment, asked, operation)
        first = environment.marks[0]
        if (first.kind, first.value) not in (
            ("alias", getattr(change, "alias", "")),
            ("stage", getattr(change, "stage", "")),
        ):
            return []  # another mark: what is live stays
        operation.after = {"version": change.version}
        try:
            version = await backend.get_version(change.model, change.version)
            return [await self._promoter.made_live(backend, environment, version, operation)]
        except GatewayError:
            return []  # the registry will say so

    async def _authorize_retirement(
        self, backend: Backend, call: Call, environment: Environment, operation: Operation
    ) -> None:
        """Taking down what is live is decided as ``environment:retire``."""
        operation.environment = environment.name
        model = getattr(call.change, "model", "")
        need = Need("environment:retire", resource("models", model, "environments", environment.name))
        await self.authorize(backend, (need,), operation)

    async def _judge_carried(self, backend: Backend, call: Call, operation: Operation) -> list[MadeLive]:
        """A rename that carries a mark into an environment's scope is a promotion of that version."""
        follows = []
        for item in await self._guard.carries(backend, call.change):
            assert isinstance(call.change, ModelRename)  # only renames carry
            name = call.change.new_name
            if item.environment.enforced:
                marks = [_need_of(name, mark) for mark in item.environment.marks]
                await self._refuse_denied_by_row(backend, call, marks, operation)
                need = Need("environment:promote", resource("models", name, "environments", item.environment.name))
                await self.authorize(backend, (need,), operation)
            asked = Asked(call.change.model, item.version, call.principal)
            version = await self._promoter.judge_carried(backend, item.environment, asked, operation)
            if item.lives:
                live = await self._promoter.made_live(backend, item.environment, version, operation)
                follows.append(dataclasses.replace(live, model=name))
        return follows

    async def _forward_change(
        self, backend: Backend, call: Call, operation: Operation, ended: tuple[str, ...], follows: list[MadeLive]
    ) -> Answer:
        assert call.request is not None  # promotions went the other way
        try:
            answer = await backend.forward(call.request, writes=True, trace=call.trace)
            now = self.trail.now()  # what ends and what begins meet in one moment
            begun = [dataclasses.replace(e, period=dataclasses.replace(e.period, since=now)) for e in follows]
            effects = [*effects_of(call, answer, operation, ended, now), *begun]
        except GatewayError as error:
            operation.detail, error.operation = error.detail, operation.id
            operation.status = getattr(error, "status", None)
            await self.trail.outcome(operation, "unknown" if isinstance(error, OutcomeUnknown) else "failed")
            raise
        finally:
            if call.name == "updateExperiment":  # also where nobody knows whether it was done
                self._ownership.forget_names(backend.name)
        operation.status = answer.status
        await self.trail.outcome(operation, "succeeded", effects)
        self.follow(effects)
        headers = {**answer.headers, **_warning(operation.verdict)}
        return dataclasses.replace(
            answer, headers=headers, operation=operation.id, revision=operation.decision.revision
        )


def effects_of(call: Call, answer: Answer, operation: Operation, ended: tuple[str, ...], now: float) -> list[Effect]:
    """Say what a successful change means for the journal's own tables."""
    change = call.change
    if isinstance(change, VersionCreate):
        return [_registered(call, change, _made(call, answer), operation, now)]
    return consequences(operation.change or {}, call.registry, ended, now)


def consequences(change: Mapping[str, Any], registry: str, ended: tuple[str, ...], now: float) -> list[Effect]:
    """Say what a change that was carried out ends, deletes and renames; *change* is as the intent recorded it."""
    kind, model = change.get("kind"), change.get("model", "")
    if kind == "ModelDelete":
        return [TakenDown(registry, model, (), now), Deleted(registry, model, "", now)]
    if kind == "ModelRename":  # what the new name is live in was judged anew
        return [TakenDown(registry, model, (), now), Renamed(registry, model, change["new_name"])]
    effects: list[Effect] = [TakenDown(registry, model, ended, now)] if ended else []
    if kind == "VersionDelete":
        effects.append(Deleted(registry, model, change["version"], now))
    return effects


def _made(call: Call, answer: Answer) -> Mapping[str, Any]:
    """Return the version that an answer says was made.

    Raises:
        OutcomeUnknown: it does not say.
    """
    try:
        made = answer.document().get("model_version")
    except ValueError:
        made = None
    if not isinstance(made, dict):
        message = f"The registry {call.registry!r} answered without saying which version it made; it is read back."
        raise OutcomeUnknown(message)
    return made


def _registered(
    call: Call, change: VersionCreate, native: Mapping[str, object], operation: Operation, now: float
) -> Registered:
    version, source = str(native.get("version", "")), str(native.get("source", change.source))
    created = str(native.get("creation_timestamp", 0))
    if not version or not created.isdigit():
        message = f"The registry {call.registry!r} answered without saying which version it made; it is read back."
        raise OutcomeUnknown(message)
    binding = binding_of(version, int(created), source)
    operation.version = version
    persons = tuple(sorted(call.principal.persons))
    return Registered(
        call.registry,
        Creation(change.model, version, binding, call.principal.subject, persons, now),
    )


def _warning(verdict: Verdict | None) -> dict[str, str]:
    """Say which rules would have refused, where the environment's mode is to warn."""
    if verdict is None or not verdict.would_refuse or verdict.mode != "warn":
        return {}
    return {"registry-gateway-would-refuse": ", ".join(item.rule for item in verdict.findings if item.blocks)}


def _rights_on(model: RegisteredModel, environments: Environments) -> Iterator[tuple[str, ...]]:
    """Yield each action on a model, and the segments below its name on which it is asked."""
    for action in ("model:read", "model:update", "model:delete", "model:rename"):
        yield (action,)
    for action in ("version:create", "version:read", "version:update", "version:delete", "version:quarantine"):
        yield (action, "versions")
    for alias in {*model.aliases, "any"}:
        yield from ((action, "aliases", alias) for action in ("alias:read", "alias:set", "alias:delete"))
    for key in {*model.tags, "any"}:
        for action in ("tag:set", "tag:delete"):
            yield (action, "tags", key)
            yield (action, "versions", "tags", key)
    yield from (("stage:set", "stages", stage) for stage in STAGES)
    yield ("evidence:post", "versions", "evidence", "any")
    for name in {*(item.name for item in environments.all), "any"}:
        for verb in ("promote", "rollback", "retire", "adopt", "emergency", "request"):
            yield (f"environment:{verb}", "environments", name)
        yield from ((action, "environments", name) for action in ("approval:create", "approval:revoke"))


def _need_of(model: str, mark: Mark) -> Need:
    """Say what writing a mark would need if it were not guarded: a row that denies it counts."""
    if mark.kind == "alias":
        return Need("alias:set", resource("models", model, "aliases", mark.value))
    return Need("stage:set", resource("models", model, "stages", mark.value))


def _lock_names(call: Call, operation: Operation) -> tuple[str, ...]:
    """Name the models a call changes, and what it registers or deletes; equal calls that touch none exclude each other.

    So no run is deleted while a version is registered from it.
    """
    names = [getattr(call.change, "model", None), getattr(call.change, "new_name", None)]
    if isinstance(call.change, VersionCreate):
        found = {call.change.run_id, *IDENTIFIER.findall(call.change.source)} - {""}
    else:
        found = set(written(call))
    names += [f"\0{identifier.lower()}" for identifier in found]
    return tuple(sorted({name for name in names if name})) or (f"\0{operation.digest}",)
