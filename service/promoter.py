"""Carries a promotion through: read the target, judge, record, write every mark, read back, record."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from service.audit import Effect, MadeLive, Operation, Trail
from service.backend import Backend
from service.errors import Conflict, GateClosed, GatewayError, OutcomeUnknown, Stale
from service.gather import Gatherer
from service.guard import live_version, marked_versions
from service.model import LivePeriod, ModelVersion, Principal, PromotionResult, RegisteredModel
from service.promotion.environments import Environments
from service.promotion.gate import Environment, Mark


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asks to make live."""

    model: str
    version: str
    principal: Principal
    reason: str = ""
    dry_run: bool = False
    if_match: str | None = None


def etag(version: ModelVersion | None) -> str:
    """Name what is live, for If-Match (RFC 9110, section 8.8.3)."""
    text = "nothing" if version is None else f"{version.version}\n{version.binding}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


class Promoter:
    """Makes versions live. The caller holds the model's lock."""

    def __init__(self, environments: Environments, gatherer: Gatherer, trail: Trail) -> None:
        """Judge with *gatherer*'s facts and write phases to *trail*."""
        self._environments = environments
        self._gatherer = gatherer
        self._trail = trail

    async def promote(
        self, backend: Backend, environment: Environment, asked: Asked, operation: Operation
    ) -> PromotionResult:
        """Make ``asked.version`` live in *environment* if its gate is open.

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
        if asked.if_match is not None and asked.if_match not in ("*", etag(incumbent)):
            message = f"What is live in {environment.name!r} is not what If-Match names; nothing was written."
            raise Stale(message)
        operation.environment, operation.version = environment.name, asked.version
        operation.before = {"version": live}
        facts = await self._gatherer.facts(backend, environment, candidate, incumbent, asked.principal, asked.reason)
        verdict = await asyncio.to_thread(environment.judge, facts, backend.name)
        operation.verdict = verdict
        marks = self._marks_to_write(backend.name, model, candidate, environment)
        if asked.dry_run or (not marks and live == asked.version):
            state = "evaluated" if asked.dry_run else "unchanged"
            return PromotionResult(operation.id, state, asked.dry_run, live, live, verdict, candidate)
        if not verdict.allowed:
            message = (
                f"The gate of {environment.name!r} is closed for version {asked.version} of {asked.model!r}; "
                "nothing was written."
            )
            raise GateClosed(message, verdict)
        operation.after = {"version": asked.version}
        await self._trail.intent(operation)
        return await self._write(backend, environment, asked, operation, marks, live)

    async def judge_carried(
        self, backend: Backend, environment: Environment, asked: Asked, operation: Operation
    ) -> None:
        """Judge a version that a rename would carry into *environment*; the new name has no incumbent.

        Raises:
            GateClosed: a rule failed.
        """
        candidate = await backend.get_version(asked.model, asked.version)
        facts = await self._gatherer.facts(backend, environment, candidate, None, asked.principal, asked.reason)
        verdict = await asyncio.to_thread(environment.judge, facts, backend.name)
        operation.verdict, operation.environment = verdict, environment.name
        if not verdict.allowed:
            message = f"The new name is in {environment.name!r}, whose gate is closed for version {asked.version}."
            raise GateClosed(message, verdict)

    @staticmethod
    async def _incumbent(backend: Backend, candidate: ModelVersion, live: str | None) -> ModelVersion | None:
        if live is None:
            return None
        return candidate if live == candidate.version else await backend.get_version(candidate.model, live)

    def _marks_to_write(
        self, registry: str, model: RegisteredModel, candidate: ModelVersion, environment: Environment
    ) -> list[Mark]:
        """List the marks that are not on the candidate yet.

        A version has one stage: one that marks another environment where the version is live stays.
        """
        keeps_stage = any(
            other.name != environment.name
            and other.marked_by("stage", candidate.stage)
            and live_version(model, other) == candidate.version
            for other in self._environments.of(registry, candidate.model)
        )
        return [
            mark
            for mark in environment.marks
            if marked_versions(model, mark)[-1:] != (candidate.version,) and not (mark.kind == "stage" and keeps_stage)
        ]

    async def _write(
        self,
        backend: Backend,
        environment: Environment,
        asked: Asked,
        operation: Operation,
        marks: list[Mark],
        live: str | None,
    ) -> PromotionResult:
        try:
            await self._write_marks(backend, asked, marks, live, operation)
            model, version = await asyncio.gather(
                backend.get_model(asked.model), backend.get_version(asked.model, asked.version)
            )
            found = live_version(model, environment)
            if found != asked.version:
                message = f"After the write {found!r} is live; something else writes beside the gateway."
                raise Conflict(message, operation=operation.id)
        except OutcomeUnknown as error:
            operation.detail = error.detail
            await self._trail.outcome(operation, "unknown")
            error.operation = operation.id
            raise
        except GatewayError as error:
            operation.detail = error.detail
            await self._trail.outcome(operation, "failed")
            error.operation = operation.id
            raise
        await self._trail.outcome(operation, "succeeded", [self._made_live(backend, environment, version, operation)])
        verdict = operation.verdict
        assert verdict is not None  # promote() set it
        return PromotionResult(
            operation.id, "succeeded", dry_run=False, before=live, after=asked.version, verdict=verdict, version=version
        )

    async def _write_marks(
        self, backend: Backend, asked: Asked, marks: list[Mark], live: str | None, operation: Operation
    ) -> None:
        written: list[Mark] = []
        for mark in marks:
            try:
                if mark.kind == "alias":
                    await backend.set_alias(asked.model, mark.value, asked.version)
                else:
                    await backend.set_stage(asked.model, asked.version, mark.value)
            except OutcomeUnknown:
                raise
            except GatewayError:
                await self._restore(backend, asked.model, written, live, operation)
                raise
            written.append(mark)

    @staticmethod
    async def _restore(
        backend: Backend, model: str, written: list[Mark], live: str | None, operation: Operation
    ) -> None:
        """Take written aliases back, so that an environment's marks move together or not at all."""
        for mark in written:
            if mark.kind != "alias":
                continue
            if live is None:
                await backend.delete_alias(model, mark.value)
            else:
                await backend.set_alias(model, mark.value, live)
            operation.notes.append(f"compensated: the alias {mark.value} is on {live or 'nothing'} again")

    def _made_live(
        self, backend: Backend, environment: Environment, version: ModelVersion, operation: Operation
    ) -> Effect:
        return MadeLive(
            backend.name,
            version.model,
            LivePeriod(
                environment=environment.name,
                version=version.version,
                binding=version.binding,
                since=self._trail.now(),
                until=None,
                by=operation.principal.subject,
                operation=operation.id,
                reason=operation.reason,
            ),
        )
