"""Compares what is live in the registries with the record: what was moved beside the gateway is drift."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import structlog

from service.audit import Operation
from service.backend import Backend
from service.change import Promotion
from service.effects import Effect, MadeLive, TakenDown
from service.errors import GatewayError, NotFound, OutcomeUnknown
from service.gateway import Gateway
from service.guard import live_version
from service.judging import good_version
from service.keeping import Journal
from service.marking import Marking, made_live, missing_marks, take_marks, write_marks
from service.model import ITSELF, Call, Need, Principal, Record, resource
from service.promotion.environments import Environments
from service.promotion.gate import Environment
from service.promotion.history import DRIFT, before_drift, open_period
from service.records import LivePeriod, ModelVersion, RegisteredModel
from service.tasks import end

SELF = Principal(ITSELF, issuer="registry-gateway")
_Key = tuple[str, str, str]
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Look:
    """What a comparison showed."""

    environment: str
    state: str
    """``agrees``, ``drifted`` (recorded before or just now), ``reverted``, or ``unsettled``: an operation is open."""
    recorded: str | None
    """The version that is live by record; before this look."""
    live: str | None


class Drift:
    """Looks for drift: when asked, and at a pace."""

    def __init__(
        self,
        gateway: Gateway,
        environments: Environments,
        interval_seconds: float,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Look at each of *gateway*'s registries every *interval_seconds*, if it *leads*; 0: only when asked."""
        self._leads = leads
        self._gateway = gateway
        self._environments = environments
        self._interval = interval_seconds
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[_Key, str] = {}
        """What is recorded of drift that is still to be reverted: the binding that was found."""
        self._checking: dict[_Key, asyncio.Task[Look]] = {}
        self._next: dict[_Key, asyncio.Task[Look]] = {}

    def start(self) -> None:
        """Begin to look."""
        if self._interval > 0 and self._environments.all:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop."""
        await end(self._task)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            for backend in self._gateway.backends.values():
                if not self._leads():
                    break
                try:
                    await self.sweep(backend)
                except GatewayError as error:
                    _log.warning("looking for drift is waiting", registry=backend.name, problem=error.detail)
                except Exception as error:  # noqa: BLE001  # it must never end
                    _log.error("looking for drift failed", problem=f"{type(error).__name__}: {error}")

    async def sweep(self, backend: Backend) -> list[Look]:
        """Compare every marked model of *backend*; return what does not agree.

        Raises:
            RegistryUnavailable, JournalUnavailable: it could not be compared.
        """
        recorded = {
            (model, period.environment): period
            for registry, model, period in await self._gateway.trail.journal.live()
            if registry == backend.name
        }
        odd: list[tuple[str, Environment]] = []
        async for model in backend.list_models():
            for environment in self._environments.of(backend.name, model.name):
                period = recorded.pop((model.name, environment.name), None)
                live = live_version(model, environment)
                waits = period is not None and period.kind == DRIFT and _reverts(environment)
                anew = period is not None and model.created_ms / 1000 > period.since  # deleted and made again
                if live != (period.version if period else None) or waits or anew:
                    odd.append((model.name, environment))
        for name, environment_name in recorded:  # models that are gone
            gone = self._environments.get(backend.name, name, environment_name)
            if gone is not None:
                odd.append((name, gone))
        return [await self.look(backend, name, environment) for name, environment in odd]

    async def check(self, backend: Backend, model: str, environment: Environment) -> Look:
        """Compare one environment as it is from now on; all who ask meanwhile share the next comparison.

        The model's lock is taken only where something differs.

        Raises:
            NotFound: no such model. RegistryUnavailable, JournalUnavailable.
            Busy: the model is being changed; try again.
        """
        key = (backend.name, model, environment.name)
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._check(key, backend, environment))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # all who asked may be gone
        return await asyncio.shield(task)

    async def _check(self, key: _Key, backend: Backend, environment: Environment) -> Look:
        before = self._checking.get(key)
        if before is not None:  # it may have looked before the change that this one is asked about
            await asyncio.wait((before,))
        own = self._checking[key] = self._next.pop(key)
        try:
            return await self._compare(backend, key[1], environment)
        finally:
            if self._checking[key] is own:
                del self._checking[key]

    async def _compare(self, backend: Backend, model: str, environment: Environment) -> Look:
        live = live_version(await backend.get_model(model), environment)
        try:
            version = None if live is None else await backend.get_version(model, live)
        except NotFound:
            version = None
        journal = self._gateway.trail.journal
        periods = await journal.periods(backend.name, model)
        found = _agreed(environment, open_period(periods, environment.name), version)
        if found is None and await is_unsettled(journal, backend.name, model):
            found = Look(environment.name, "unsettled", None, None)
        return found or await self.look(backend, model, environment)

    async def look(self, backend: Backend, model: str, environment: Environment) -> Look:
        """Compare one environment under the model's lock, and record or revert what drifted."""
        return await self._gateway.alone(backend.name, model, lambda: self._look(backend, model, environment))

    async def _look(self, backend: Backend, model: str, environment: Environment) -> Look:
        journal = self._gateway.trail.journal
        if await is_unsettled(journal, backend.name, model):
            return Look(environment.name, "unsettled", None, None)
        found, version = await _present(backend, model, environment)
        periods = await journal.periods(backend.name, model)
        period = open_period(periods, environment.name)
        agreed = _agreed(environment, period, version)
        if agreed is not None:
            self._seen.pop((backend.name, model, environment.name), None)
            return agreed
        recorded, live = (period.version if period else None), (version.version if version else None)
        if not _reverts(environment):
            await self._record(backend, model, environment, period, version)
            return Look(environment.name, "drifted", recorded, live)
        await self._note_once(backend, model, environment, period, version)
        wanted = before_drift(periods, environment.name) if period is not None and period.kind == DRIFT else period
        done = found is not None and await self._revert(backend, environment, found, wanted)
        if done:
            self._seen.pop((backend.name, model, environment.name), None)
        return Look(environment.name, "reverted" if done else "drifted", recorded, live)

    async def _note_once(
        self,
        backend: Backend,
        model: str,
        environment: Environment,
        period: LivePeriod | None,
        version: ModelVersion | None,
    ) -> None:
        """Record drift that is to be reverted: the record goes on saying what should be live, until it is."""
        place, found = (backend.name, model, environment.name), version.binding if version else ""
        if self._seen.get(place) != found:
            await self._record(backend, model, environment, period, version, follows=False)
            self._seen[place] = found

    async def _record(
        self,
        backend: Backend,
        model: str,
        environment: Environment,
        period: LivePeriod | None,
        version: ModelVersion | None,
        *,
        follows: bool = True,
    ) -> None:
        """Record what was found; *follows*: that is what the record says is live from now on."""
        operation = self._operation(backend, model, environment, "driftFound", "environment:drift")
        operation.version = version.version if version else None
        operation.before = {"version": period.version if period else None}
        operation.after = {"version": version.version if version else None}
        operation.detail = "The registry's mark was moved beside the gateway."
        effects: list[Effect] = []
        if follows and version is not None:
            effects = [await self._live(backend, environment, version, operation, DRIFT, passed=False)]
        elif follows:
            effects = [TakenDown(backend.name, model, (environment.name,), self._gateway.trail.now())]
        await self._gateway.trail.stored(operation, effects)
        self._gateway.follow(effects)
        _log.error(
            "drift",
            operation=operation.id,
            registry=backend.name,
            model=model,
            environment=environment.name,
            recorded=period.version if period else None,
            recorded_by=period.by if period else None,
            live=operation.version,
            reason=operation.detail,
            principal=operation.principal.subject,
        )

    def _operation(self, backend: Backend, model: str, environment: Environment, name: str, action: str) -> Operation:
        where = resource("models", model, "environments", environment.name)
        call = Call(principal=SELF, registry=backend.name, name=name, needs=(Need(action, where),), record=Record.EACH)
        operation = Operation.opened(call, self._gateway.trail.now())
        operation.environment, operation.model = environment.name, model
        return operation

    async def _live(
        self,
        backend: Backend,
        environment: Environment,
        version: ModelVersion,
        operation: Operation,
        kind: str,
        *,
        passed: bool,
        artifact_digest: str | None = None,
    ) -> MadeLive:
        return await made_live(
            backend,
            environment,
            version,
            since=self._gateway.trail.now(),
            by=operation.principal.subject,
            operation=operation.id,
            reason=operation.detail,
            kind=kind,
            passed=passed,
            artifact_digest=artifact_digest,
        )

    async def _revert(
        self, backend: Backend, environment: Environment, found: RegisteredModel, wanted: LivePeriod | None
    ) -> bool:
        """Move the marks back to what should be live; False if that must not be or could not be done."""
        version = None
        if wanted is not None:
            version = await good_version(backend, self._gateway.trail.journal, found.name, wanted)
            if version is None:
                _log.error("drift is not reverted: what should be live is gone or in quarantine", model=found.name)
                return False
        operation = self._operation(backend, found.name, environment, "driftReverted", "environment:revert")
        operation.detail = "Moved back to what the record says."
        operation.before = {"version": live_version(found, environment)}
        operation.version = version.version if version else None
        operation.after = {"version": operation.version}
        change = Promotion(found.name, environment.name, operation.version or "", purpose="revert")
        operation.change = {
            "kind": "Promotion" if version else "Retirement",
            "model": found.name,
            "environment": environment.name,
            "version": change.version,
            "purpose": "revert",
            "passed": wanted is not None and wanted.passed,
            "artifact_digest": wanted.artifact_digest if wanted else None,
        }
        effect: Effect = TakenDown(backend.name, found.name, (environment.name,), self._gateway.trail.now())
        if version is not None and wanted is not None:
            effect = await self._live(
                backend,
                environment,
                version,
                operation,
                "revert",
                passed=wanted.passed,
                artifact_digest=wanted.artifact_digest,
            )
        await self._gateway.trail.intent(operation)
        try:
            if version is None:
                await take_marks(backend, found, environment)
            else:
                marks = missing_marks(self._environments, backend.name, found, version, environment)
                await write_marks(backend, Marking(marks, found, version), operation)
        except GatewayError as error:
            operation.detail = error.detail
            await self._gateway.trail.outcome(operation, "unknown" if isinstance(error, OutcomeUnknown) else "failed")
            return False
        await self._gateway.trail.outcome(operation, "succeeded", [effect])
        self._gateway.follow([effect])
        return True


def _reverts(environment: Environment) -> bool:
    return environment.on_drift == "revert" and environment.enforced


def _agreed(environment: Environment, period: LivePeriod | None, version: ModelVersion | None) -> Look | None:
    """Say how record and registry agree; None if they do not, or if drift of before is to be reverted."""
    if (period.binding if period else None) != (version.binding if version else None):
        return None
    known = period is not None and period.kind == DRIFT
    if known and _reverts(environment):
        return None
    state = "drifted" if known else "agrees"
    number = version.version if version else None
    return Look(environment.name, state, period.version if period else None, number)


async def is_unsettled(journal: Journal, registry: str, model: str) -> bool:
    """Tell whether nobody knows yet what became of a change of *model*."""
    changes = [item.change or {} for item in await journal.unsettled() if item.registry == registry]
    return any(model in (change.get("model"), change.get("new_name")) for change in changes)


async def _present(
    backend: Backend, model: str, environment: Environment
) -> tuple[RegisteredModel | None, ModelVersion | None]:
    try:
        found = await backend.get_model(model)
        live = live_version(found, environment)
        return found, None if live is None else await backend.get_version(model, live)
    except NotFound:
        return None, None


async def marked_models(backend: Backend, environments: Environments) -> AsyncIterator[RegisteredModel]:
    """Yield the models in which something is live."""
    async for model in backend.list_models():
        if any(live_version(model, item) is not None for item in environments.of(backend.name, model.name)):
            yield model
