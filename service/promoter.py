"""Carries a promotion through: read the target, judge, record, write every mark, read back, record."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from service.audit import Operation, Trail
from service.backend import Backend
from service.effects import Effect, MadeLive, TakenDown
from service.errors import Conflict, GateClosed, GatewayError, OutcomeUnknown, RegistryUnavailable, Stale
from service.gather import Gatherer
from service.guard import live_version, marked_versions
from service.model import Principal, PromotionResult, Verdict
from service.promotion.environments import Environments
from service.promotion.gate import Environment, Mark
from service.provenance import Origin, behind, find_origin
from service.records import LivePeriod, ModelVersion, RegisteredModel
from service.seals import Seals


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asks to make live."""

    model: str
    version: str
    principal: Principal
    reason: str = ""
    dry_run: bool = False
    if_match: str | None = None


Retire = Callable[[Environment], Awaitable[None]]
"""Raises Denied unless the caller may take down what marks this environment."""


def etag(version: ModelVersion | None) -> str:
    """Name what is live, for If-Match (RFC 9110, section 8.8.3)."""
    text = "nothing" if version is None else f"{version.version}\n{version.binding}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


@dataclass(frozen=True, slots=True)
class Marking:
    """Which marks are written on which version, and the model as it was before."""

    marks: list[Mark]
    model: RegisteredModel
    candidate: ModelVersion


class Promoter:
    """Makes versions live. The caller holds the model's lock."""

    def __init__(self, environments: Environments, gatherer: Gatherer, trail: Trail, seals: Seals) -> None:
        """Judge with *gatherer*'s facts, write phases to *trail*, and seal what is judged."""
        self._environments = environments
        self._gatherer = gatherer
        self._trail = trail
        self._seals = seals

    async def promote(
        self, backend: Backend, environment: Environment, asked: Asked, operation: Operation, retire: Retire
    ) -> PromotionResult:
        """Make ``asked.version`` live in *environment* if its gate is open.

        *retire* is asked before another environment loses a mark to this promotion.

        Raises:
            NotFound: no such version. Stale: If-Match names something else than what is live.
            GateClosed: a rule failed. Nothing was written in these cases.
            OutcomeUnknown: a mark was sent and no answer came; it is read back.
        """
        candidate, model = await asyncio.gather(
            backend.get_version(asked.model, asked.version), backend.get_model(asked.model)
        )
        live = live_version(model, environment)
        incumbent = await self._incumbent(backend, candidate, live)
        wanted = asked.if_match
        if wanted is not None and (wanted != etag(incumbent) if wanted != "*" else incumbent is None):
            message = f"What is live in {environment.name!r} is not what If-Match names; nothing was written."
            raise Stale(message)
        operation.environment, operation.version = environment.name, asked.version
        operation.before = {"version": live}
        origin = await find_origin(backend, candidate)
        sealed: AbstractContextManager[None] = contextlib.nullcontext()
        if not asked.dry_run:  # to look is no reason to keep anybody from writing
            sealed = self._seals.provisional(
                backend.name, asked.model, environment, asked.version, behind(candidate, origin)
            )
        with sealed:
            verdict = await self._judge(backend, environment, candidate, incumbent, asked, origin)
            operation.verdict = verdict
            marking = Marking(self.missing_marks(backend.name, model, candidate, environment), model, candidate)
            if asked.dry_run:
                return PromotionResult(operation.id, "evaluated", asked.dry_run, live, live, verdict, candidate)
            if not marking.marks and live == asked.version:
                return await self._say_unchanged(operation, verdict, candidate)
            if not verdict.allowed:
                message = (
                    f"The gate of {environment.name!r} is closed for version {asked.version} of {asked.model!r}; "
                    "nothing was written."
                )
                raise GateClosed(message, verdict)
            if any(mark.kind == "stage" for mark in marking.marks):
                for other in self._staged(backend.name, candidate, environment):
                    if self._later(other, environment):
                        await retire(other)
            operation.after = {"version": asked.version}
            await self._trail.intent(operation)
            return await self._write(backend, environment, asked, operation, marking)

    async def _judge(
        self,
        backend: Backend,
        environment: Environment,
        candidate: ModelVersion,
        incumbent: ModelVersion | None,
        asked: Asked,
        origin: Origin | None,
    ) -> Verdict:
        facts = await self._gatherer.facts(
            backend, environment, candidate, incumbent, asked.principal, asked.reason, origin
        )
        return await asyncio.to_thread(environment.judge, facts, backend.name)

    async def _say_unchanged(self, operation: Operation, verdict: Verdict, version: ModelVersion) -> PromotionResult:
        operation.after = {"version": version.version}
        operation.notes.append("unchanged: it was live already")
        await self._trail.noted(operation)
        live = version.version
        return PromotionResult(
            operation.id, "unchanged", dry_run=False, before=live, after=live, verdict=verdict, version=version
        )

    async def judge_carried(
        self, backend: Backend, environment: Environment, asked: Asked, operation: Operation
    ) -> ModelVersion:
        """Judge a version that a rename would carry into *environment*, and return it; the new name has no incumbent.

        Raises:
            GateClosed: a rule failed.
        """
        candidate = await backend.get_version(asked.model, asked.version)
        verdict = await self._judge(backend, environment, candidate, None, asked, await find_origin(backend, candidate))
        operation.verdict, operation.environment = verdict, environment.name
        if not verdict.allowed:
            message = f"The new name is in {environment.name!r}, whose gate is closed for version {asked.version}."
            raise GateClosed(message, verdict)
        return candidate

    @staticmethod
    async def _incumbent(backend: Backend, candidate: ModelVersion, live: str | None) -> ModelVersion | None:
        if live is None:
            return None
        return candidate if live == candidate.version else await backend.get_version(candidate.model, live)

    def _staged(self, registry: str, candidate: ModelVersion, environment: Environment) -> list[Environment]:
        """List the other environments that the candidate's present stage marks."""
        return [
            other
            for other in self._environments.of(registry, candidate.model)
            if other.name != environment.name and other.marked_by("stage", candidate.stage)
        ]

    def _later(self, one: Environment, other: Environment) -> bool:
        """Tell whether *one* stands after *other* in the file, which lists environments on the way to production."""
        return self._environments.all.index(one) > self._environments.all.index(other)

    def missing_marks(
        self, registry: str, model: RegisteredModel, candidate: ModelVersion, environment: Environment
    ) -> list[Mark]:
        """List the marks that are not on the candidate yet.

        A version has one stage: the one of a later environment in which it is live stays.
        """
        keeps_stage = any(
            self._later(other, environment) and live_version(model, other) == candidate.version
            for other in self._staged(registry, candidate, environment)
        )
        return [
            mark
            for mark in environment.marks
            if marked_versions(model, mark) != (candidate.version,) and not (mark.kind == "stage" and keeps_stage)
        ]

    async def _write(
        self, backend: Backend, environment: Environment, asked: Asked, operation: Operation, marking: Marking
    ) -> PromotionResult:
        live = live_version(marking.model, environment)
        try:
            await self._write_marks(backend, asked, marking, operation)
            effects, version = await self._read_back(backend, environment, asked, operation, marking)
        except GatewayError as error:
            operation.detail, error.operation = error.detail, operation.id
            await self._trail.outcome(operation, "unknown" if isinstance(error, OutcomeUnknown) else "failed")
            raise
        await self._trail.outcome(operation, "succeeded", effects)
        assert operation.verdict is not None  # promote() set it
        return PromotionResult(
            id=operation.id,
            state="succeeded",
            dry_run=False,
            before=live,
            after=asked.version,
            verdict=operation.verdict,
            version=version,
            effects=tuple(effects),
        )

    async def _read_back(
        self, backend: Backend, environment: Environment, asked: Asked, operation: Operation, marking: Marking
    ) -> tuple[list[Effect], ModelVersion]:
        try:
            model, version = await asyncio.gather(
                backend.get_model(asked.model), backend.get_version(asked.model, asked.version)
            )
            found = live_version(model, environment)
            if found != asked.version:
                message = f"After the write {found!r} is live; something else writes beside the gateway."
                raise Conflict(message)
            return await self.effects(backend, environment, version, model, marking, operation), version
        except RegistryUnavailable as error:  # written, but not seen to be
            raise OutcomeUnknown(error.detail) from error

    async def _write_marks(self, backend: Backend, asked: Asked, marking: Marking, operation: Operation) -> None:
        written: list[Mark] = []
        for mark in marking.marks:
            try:
                await write_mark(backend, asked.model, mark, asked.version)
            except OutcomeUnknown:
                raise
            except GatewayError as error:
                if written:
                    await self._restore(backend, marking, written, operation, error)
                raise
            written.append(mark)

    @staticmethod
    async def _restore(
        backend: Backend, marking: Marking, written: list[Mark], operation: Operation, cause: GatewayError
    ) -> None:
        """Take written marks back, so that an environment's marks move together or not at all.

        Raises:
            OutcomeUnknown: they could not be taken back; the reconciler looks at it.
        """
        name, candidate = marking.model.name, marking.candidate
        for mark in written:
            before = marked_versions(marking.model, mark)
            try:
                if before:
                    await write_mark(backend, name, mark, before[-1])
                elif mark.kind == "alias":
                    await backend.delete_alias(name, mark.value)
                if mark.kind == "stage":
                    await backend.set_stage(name, candidate.version, candidate.stage)
            except GatewayError as error:
                message = f"The {mark.kind} {mark.value} was written, another mark was not, and it was not taken back."
                raise OutcomeUnknown(message) from error
            operation.notes.append(f"compensated: the {mark.kind} {mark.value} is on {before or 'nothing'} again")
        operation.notes.append(f"because: {cause.detail}")

    async def effects(
        self,
        backend: Backend,
        environment: Environment,
        version: ModelVersion,
        model: RegisteredModel,
        marking: Marking,
        operation: Operation,
    ) -> list[Effect]:
        """Say what a written promotion means for the journal's own tables."""
        effects: list[Effect] = [await self.made_live(backend, environment, version, operation)]
        ended = tuple(
            other.name
            for other in self._staged(backend.name, marking.candidate, environment)
            if live_version(marking.model, other) == version.version and live_version(model, other) is None
        )
        if ended:
            effects.append(TakenDown(backend.name, version.model, ended, self._trail.now()))
        return effects

    async def made_live(
        self, backend: Backend, environment: Environment, version: ModelVersion, operation: Operation
    ) -> MadeLive:
        """Say for the journal that *version* is live in *environment* from now on."""
        return await made_live(
            backend,
            environment,
            version,
            since=self._trail.now(),
            by=operation.principal.subject,
            operation=operation.id,
            reason=operation.reason,
        )


async def made_live(
    backend: Backend,
    environment: Environment,
    version: ModelVersion,
    *,
    since: float,
    by: str,
    operation: str,
    reason: str,
) -> MadeLive:
    """Say for the journal that *version* is live in *environment*, and what stands behind it."""
    return MadeLive(
        backend.name,
        version.model,
        LivePeriod(
            environment=environment.name,
            version=version.version,
            binding=version.binding,
            since=since,
            until=None,
            by=by,
            operation=operation,
            reason=reason,
            behind=tuple(sorted(behind(version, await find_origin(backend, version)))),
        ),
    )


async def write_mark(backend: Backend, model: str, mark: Mark, version: str) -> None:
    """Put one mark on *version*. Idempotent."""
    if mark.kind == "alias":
        await backend.set_alias(model, mark.value, version)
    else:
        await backend.set_stage(model, version, mark.value)
