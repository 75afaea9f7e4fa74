"""The enforcement point: the only way from a request to a registry."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from service.access import Access
from service.audit import Operation, Trail
from service.backend import Backend
from service.change import (
    AliasDelete,
    AliasSet,
    ModelRename,
    OfArtifact,
    Promotion,
    Retirement,
    StageSet,
    VersionCreate,
)
from service.changes import Changes
from service.consequences import effects_of
from service.effects import Effect, MadeLive, TakenDown
from service.errors import (
    GatewayError,
    IdempotencyKeyReused,
    JournalUnavailable,
    NotFound,
    OperationPending,
    OutcomeUnknown,
)
from service.guard import Guard, Retired, live_version, marked_versions
from service.joining import read_back
from service.judging import Asked
from service.marking import take_marks
from service.model import Answer, Call, Record, Verdict
from service.modes import header_of
from service.observing import Observer
from service.promoter import Promoter
from service.promotion.gate import Environment, Purpose
from service.provenance import check_run
from service.references import IDENTIFIER, check_deletion
from service.renaming import Renames
from service.seal import written
from service.seals import Seals
from service.searching import Searches
from service.spelling import Spelling
from service.tally import Measured, Tally
from service.unsettled import Outcome, Pending, Unsettled
from service.watching import Watch

T = TypeVar("T")


class Gateway:
    """Takes each call down one path: decide, gate, record, forward, record."""

    def __init__(
        self,
        *,
        backends: Mapping[str, Backend],
        access: Access,
        guard: Guard,
        promoter: Promoter,
        trail: Trail,
        changes: Changes,
        seals: Seals,
        spelling: Spelling,
        tally: Tally,
        searches: Searches,
        watch: Watch,
        record_reads: bool = False,
        join_seconds: float = 10.0,
    ) -> None:
        """Guard *backends*.

        A call equal to an unsettled one waits at most *join_seconds* for its outcome.
        """
        self.backends = backends
        self.trail = trail
        self.access = access
        self._guard = guard
        self._observer = Observer(access, guard, promoter)
        self._renames = Renames(access, guard, promoter, self._observer, trail)
        self._promoter = promoter
        self._changes = changes
        self._record_reads = record_reads
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
        operation.digest = self.trail.masks.digest(operation.digest, operation.message)
        backend = self.backend(call.registry)
        if call.request is not None:  # of the registry's own API; our own operations are enforced in every mode
            operation.mode = self.access.modes.of(backend.name)
        try:
            answer = await self._take(backend, call, operation)
        except GatewayError as error:
            error.headers = header_of(operation.mode, operation.would_deny)
            raise
        headers = header_of(operation.mode, operation.would_deny)
        return dataclasses.replace(answer, headers={**answer.headers, **headers}) if headers else answer

    async def _take(self, backend: Backend, call: Call, operation: Operation) -> Answer:
        if call.record is Record.EACH:
            return await self._changes.run(self._change(backend, call, operation))
        await self.access.authorize(backend, call.needs, operation)
        await self._spelling.check(backend, call)
        if call.listing is not None or call.experiments or call.traces:
            answer = await self._search(backend, call, operation)
        else:
            answer = await self._forward_telemetry_or_read(backend, call, operation)
        if self._record_reads and call.record is Record.NONE:
            await self.trail.noted(operation)
        elif operation.would_deny and call.record is Record.NONE:
            self.tally.count(operation, "", failed=False)
        return answer

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

    def lock(
        self, registry: str, models: tuple[str, ...], seconds: float | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Hold the locks of *models*, as a change does; wait for them at most *seconds*."""
        return self._changes.lock(registry, models, seconds)

    async def alone(self, registry: str, model: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run *work* to its end, even if the caller hangs up, while no change of *model* is under way.

        Raises:
            Busy: the lock was not had in time. Nothing was done.
        """

        async def locked() -> T:
            async with self.lock(registry, (model,)):
                return await work()

        return await self._changes.run(locked())

    async def whole(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run *work* to its end, even if the caller hangs up."""
        return await self._changes.run(work())

    def follow(self, effects: Iterable[Effect]) -> None:
        """Follow in memory what was just recorded: seals, and those who wait for what is live."""
        effects = list(effects)
        self.seals.apply(effects)
        self._watch.apply(effects)

    def wake(self, place: tuple[str, str] | None) -> None:
        """Have those look again who wait for what is live in the model at *place*, or in any."""
        self._watch.wake(place)

    async def _search(self, backend: Backend, call: Call, operation: Operation) -> Answer:
        answer = await self._searches.search(backend, call, self.access.shows(backend, operation))
        self.access.note_left_out(operation)
        return answer

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
                await self.access.retirement(backend, call.change.model, environment, operation)
            elif environment is not None:
                await self.access.promotion(backend, call, environment, operation)
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
                except OperationPending as error:
                    if error.operation is None:
                        raise
                    self.unsettled.add(operation.digest, error.operation)  # another replica began it
                    pending = self.unsettled.get(operation.digest)
        assert pending is not None  # every other way has returned or raised
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
        return answer

    async def _authorize_again(
        self, backend: Backend, call: Call, environment: Environment | None, operation: Operation
    ) -> None:
        """Decide what a call needs that is answered by an equal one."""
        if environment is not None:
            return  # it was decided before it came here
        retired = self._guard.could_retire(backend.name, call.change)
        if retired and self.access.may_retire(backend, getattr(call.change, "model", ""), retired, operation):
            await self.access.refuse_denied_by_row(backend, call.needs, operation)  # retiring was enough
        else:
            await self.access.authorize(backend, call.needs, operation)

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
            message = "This Idempotency-Key was sent with another request; take a new one."
            raise IdempotencyKeyReused(message)
        if known.state != "succeeded":
            message = f"The operation {known.id} of this Idempotency-Key is unsettled; it was not forwarded again."
            raise OperationPending(message)
        events = await self.trail.journal.operation_events(known.id)
        if not events:
            message = f"This Idempotency-Key began the operation {known.id}, which is archived; take a new one."
            raise IdempotencyKeyReused(message)
        done = Outcome("succeeded", str(events[-1]["data"]["version"] or ""))
        answer = await read_back(backend, self.trail.journal, call.change, known.id, done)
        operation.detail = f"The outcome of operation {known.id}, which this Idempotency-Key began."
        await self.trail.noted(operation)
        return dataclasses.replace(answer, operation=known.id)

    async def _reject(self, operation: Operation, detail: str) -> None:
        """Leave the event of a refusal; where an intent stands already, it stays open for the reconciler."""
        if not operation.intended:
            operation.detail = detail
            await self.trail.refused(operation, "rejected")

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
            if not other.enforced:
                self._observer.note_retirements(backend, call, [Retired(other, ends=False)], operation)
                return
            asked_for = (operation.environment, operation.action, operation.resource, operation.decision)
            await self.access.retirement(backend, asked.model, other, operation)
            operation.environment, operation.action, operation.resource, operation.decision = asked_for

        result = await self._promoter.promote(backend, environment, asked, operation, retire)
        self.follow(result.effects)
        return Answer(
            200,
            headers=_warning(result.verdict),
            promotion=result,
            operation=operation.id,
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
            await self.access.refuse_denied_by_row(backend, call.needs, operation)
        else:  # deleting or renaming is more than taking down: both are asked
            await self.access.authorize(backend, call.needs, operation)
        for item in asked:
            await self.access.retirement(backend, getattr(call.change, "model", ""), item.environment, operation)
        await self._guard.check_uncovered(backend, call.change, asked)
        if isinstance(call.change, ModelRename):
            await self._renames.refuse_gain(backend, call.change, operation)
        self._observer.note_retirements(backend, call, [item for item in retired if item not in asked], operation)
        observed = await self._observer.observe(backend, call, operation)
        await self._spelling.check(backend, call)
        with self.seals.writing(backend, call):  # from before the check: nothing is judged in between
            await self.seals.check(backend, call)
            may = self.access.may(backend, call.principal)
            passes = self.access.passes(backend, operation)
            owners, environments = self.access.ownership, self._guard.environments
            await check_deletion(backend, call, owners, may, passes, environments, operation.notes)
            if isinstance(call.change, VersionCreate):
                model_id = str(call.request.message.get("model_id", "")) if call.request else ""
                await check_run(backend, call.change, model_id)
            follows = [*await self._renames.judge(backend, call, operation), *observed]
            ended = tuple(item.environment.name for item in retired if item.ends)
            if operation.change is not None:  # so that the reconciler knows what follows from it
                carried = [dataclasses.asdict(e) for e in follows]
                operation.change = {**operation.change, "ended": ended, "carried": carried}
            await self.trail.intent(operation)
            return await self._forward_change(backend, call, operation, ended, follows)

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
                self.access.ownership.forget_names(backend.name)
        operation.status = answer.status
        await self.trail.outcome(operation, "succeeded", effects)
        self.follow(effects)
        headers = {**answer.headers, **_warning(operation.verdict)}
        return dataclasses.replace(answer, headers=headers, operation=operation.id)


def _warning(verdict: Verdict | None) -> dict[str, str]:
    """Say which rules would have refused, where the environment's mode is to warn."""
    if verdict is None or not verdict.would_refuse or verdict.mode != "warn":
        return {}
    return {"registry-gateway-would-refuse": ", ".join(item.rule for item in verdict.findings if item.blocks)}


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
    if isinstance(call.change, Promotion) and call.change.purpose == Purpose.EMERGENCY.value:
        names.append(f"\0emergency in {call.change.environment}")  # one at a time, of whatever model
    return tuple(sorted({name for name in names if name})) or (f"\0{operation.digest}",)
