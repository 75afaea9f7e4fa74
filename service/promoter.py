"""Carries a promotion through: read the target, judge, record, write every mark, read back, record."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, replace
from typing import Any

import structlog

from service.audit import Operation, Trail
from service.backend import Backend
from service.consequences import fulfilled
from service.effects import Effect, MadeLive
from service.errors import Conflict, GateClosed, GatewayError, NotFound, OutcomeUnknown, RegistryUnavailable, Stale
from service.gather import Gatherer, nothing
from service.guard import check_older, live_version
from service.judging import Asked, Judge, previous
from service.marking import Marking, ended_elsewhere, judged_as, made_live, missing_marks, staged, write_marks
from service.model import PromotionResult, Verdict
from service.promotion.environments import Environments
from service.promotion.gate import Environment, Purpose
from service.promotion.history import DRIFT, open_period
from service.provenance import Origin, behind, find_origin
from service.records import Debt, ModelVersion
from service.seals import Seals

_log = structlog.get_logger()
_SAID = ("registry", "model", "environment", "version", "reason", "ticket", "waived")
"""What the log says of an emergency."""


Retire = Callable[[Environment], Awaitable[None]]
"""Raises Denied unless the caller may take down what marks this environment."""


def etag(version: ModelVersion | None) -> str:
    """Name what is live, for If-Match (RFC 9110, section 8.8.3)."""
    text = "nothing" if version is None else f"{version.version}\n{version.binding}"
    return f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


class Promoter:
    """Makes versions live. The caller holds the model's lock."""

    def __init__(self, environments: Environments, gatherer: Gatherer, trail: Trail, seals: Seals) -> None:
        """Judge with *gatherer*'s facts, write phases to *trail*, and seal what is judged."""
        self._environments = environments
        self._gatherer = gatherer
        self._judge = Judge(gatherer, trail)
        self._trail = trail
        self._seals = seals

    async def promote(
        self, backend: Backend, environment: Environment, asked: Asked, operation: Operation, retire: Retire
    ) -> PromotionResult:
        """Make ``asked.version`` live in *environment* if its gate is open or not enforced.

        *retire* is asked before another environment loses a mark to this promotion.

        Raises:
            NotFound: no such version. Stale: If-Match names something else than what is live.
            GateClosed: a rule failed, or an emergency before it was not reviewed. Nothing was written.
            OutcomeUnknown: a mark was sent and no answer came; it is read back.
        """
        if asked.purpose is Purpose.ROLLBACK and not asked.version:
            live = live_version(await backend.get_model(asked.model), environment)
            before = await previous(backend, self._trail.journal, asked.model, environment, live)
            if before is None:
                message = f"No version that was live in {environment.name!r} before can be rolled back to."
                raise NotFound(message)
            asked = replace(asked, version=before)
            operation.version = asked.version
            operation.change = {**(operation.change or {}), "version": asked.version}
        candidate, model = await asyncio.gather(
            backend.get_version(asked.model, asked.version), backend.get_model(asked.model)
        )
        live = live_version(model, environment)
        needs_origin = environment.needs_origin or asked.purpose is not Purpose.PROMOTION
        judging = environment.judging(asked.purpose)
        looks = judging.needs_incumbent or asked.if_match is not None
        incumbent, origin = await asyncio.gather(
            self._incumbent(backend, candidate, live) if looks else nothing(None),
            find_origin(backend, candidate) if needs_origin else nothing(None),
        )
        wanted = asked.if_match
        if wanted is not None and (wanted != etag(incumbent) if wanted != "*" else incumbent is None):
            message = f"What is live in {environment.name!r} is not what If-Match names; nothing was written."
            raise Stale(message)
        operation.environment, operation.version = environment.name, asked.version
        operation.before = {"version": live}
        sealed: AbstractAsyncContextManager[None] = contextlib.nullcontext()
        if not asked.dry_run:  # to look is no reason to keep anybody from writing
            sealed = self._seals.provisional(
                operation.id, backend.name, asked.model, environment, asked.version, behind(candidate, origin)
            )
        async with sealed:
            verdict, facts = await self._judge.verdict(backend, judging, candidate, incumbent, asked, origin, operation)
            operation.verdict = verdict
            marks = missing_marks(self._environments, backend.name, model, candidate, environment)
            marking = Marking(marks, model, candidate)
            if asked.dry_run:
                return PromotionResult(operation.id, "evaluated", asked.dry_run, live, live, verdict, candidate)
            if not marking.marks and live == asked.version and await self._is_recorded(backend, environment, candidate):
                return await self._say_unchanged(operation, verdict, candidate)
            if verdict.refuses:
                message = (
                    f"The gate of {environment.name!r} is closed for version {asked.version} of {asked.model!r}; "
                    "nothing was written."
                )
                raise GateClosed(message, verdict)
            if any(mark.kind == "stage" for mark in marking.marks):
                others = staged(self._environments, backend.name, candidate, environment)
                for other in others:
                    if self._environments.later(other, environment):
                        await retire(other)
                if any(other.enforced for other in others):
                    await check_older(backend, candidate)
            operation.after = {"version": asked.version}
            if asked.purpose is Purpose.ROLLBACK:
                operation.after["commit"] = await self._gatherer.commit(backend, candidate, origin)
            operation.change = {
                **(operation.change or {}),
                **self._follows(backend.name, environment, asked, operation, marking),
                "completes": [item.id for item in facts.requests if item.environment == environment.name],
            }
            await self._trail.intent(operation)
            return await self._write(backend, environment, asked, operation, marking, origin)

    async def _is_recorded(self, backend: Backend, environment: Environment, version: ModelVersion) -> bool:
        """Tell whether the record knows that *version* is live, and not as drift."""
        period = open_period(await self._trail.journal.periods(backend.name, version.model), environment.name)
        return period is not None and period.kind != DRIFT and period.binding == version.binding

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
        origin = await find_origin(backend, candidate)
        verdict, _ = await self._judge.verdict(backend, environment, candidate, None, asked, origin, operation)
        operation.verdict, operation.environment = verdict, environment.name
        operation.verdicts[environment.name] = verdict
        if verdict.refuses:
            message = f"The new name is in {environment.name!r}, whose gate is closed for version {asked.version}."
            raise GateClosed(message, verdict)
        return candidate

    async def observe(self, backend: Backend, environment: Environment, asked: Asked, operation: Operation) -> None:
        """Judge a change that is not enforced, for the record only. Never raises: it must change no answer."""
        operation.environment = environment.name
        try:
            candidate, model = await asyncio.gather(
                backend.get_version(asked.model, asked.version), backend.get_model(asked.model)
            )
            live = live_version(model, environment)
            operation.before = {"version": live}
            incumbent = await self._incumbent(backend, candidate, live)
            origin = await find_origin(backend, candidate)
            operation.verdict, _ = await self._judge.verdict(
                backend, environment, candidate, incumbent, asked, origin, operation
            )
        except GatewayError as error:
            operation.notes.append(f"could not be judged: {error.detail}")

    @staticmethod
    async def _incumbent(backend: Backend, candidate: ModelVersion, live: str | None) -> ModelVersion | None:
        if live is None:
            return None
        return candidate if live == candidate.version else await backend.get_version(candidate.model, live)

    async def _write(
        self,
        backend: Backend,
        environment: Environment,
        asked: Asked,
        operation: Operation,
        marking: Marking,
        origin: Origin | None,
    ) -> PromotionResult:
        live = live_version(marking.model, environment)
        try:
            await write_marks(backend, marking, operation)
            effects, version = await self._read_back(backend, environment, asked, operation, marking, origin)
        except GatewayError as error:
            operation.detail, error.operation = error.detail, operation.id
            await self._trail.outcome(operation, "unknown" if isinstance(error, OutcomeUnknown) else "failed")
            raise
        effects += fulfilled(operation.change or {}, operation.id, self._trail.now(), operation.principal.subject)
        if asked.purpose is Purpose.EMERGENCY:
            debt = (operation.change or {})["debt"]
            said = {name: debt[name] for name in _SAID}
            _log.error("emergency promotion", operation=operation.id, principal=debt["by"], **said)
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

    def _follows(
        self, registry: str, environment: Environment, asked: Asked, operation: Operation, marking: Marking
    ) -> dict[str, Any]:
        """Say for the intent what follows from the promotion, so that whoever settles it knows: see `fulfilled`."""
        ends = [
            other.name
            for other in staged(self._environments, registry, marking.candidate, environment)
            if live_version(marking.model, other) == marking.candidate.version
        ]
        if asked.purpose is not Purpose.EMERGENCY:
            return {"ends": ends}
        assert operation.verdict is not None  # promote() set it
        debt = Debt(
            id=operation.id,
            registry=registry,
            model=asked.model,
            environment=environment.name,
            version=asked.version,
            by=asked.principal.subject,
            persons=tuple(sorted(asked.principal.persons)),
            reason=asked.reason,
            ticket=asked.ticket,
            waived=tuple(item.rule for item in operation.verdict.findings if item.waived),
            at=self._trail.now(),
        )
        return {"ends": ends, "debt": asdict(debt)}

    async def _read_back(
        self,
        backend: Backend,
        environment: Environment,
        asked: Asked,
        operation: Operation,
        marking: Marking,
        origin: Origin | None,
    ) -> tuple[list[Effect], ModelVersion]:
        try:
            model, version = await asyncio.gather(
                backend.get_model(asked.model), backend.get_version(asked.model, asked.version)
            )
            found = live_version(model, environment)
            if found != asked.version:
                message = f"After the write {found!r} is live; something else writes beside the gateway."
                raise Conflict(message)
            effects: list[Effect] = [
                await made_live(
                    backend,
                    environment,
                    version,
                    since=self._trail.now(),
                    by=operation.principal.subject,
                    operation=operation.id,
                    reason=operation.reason,
                    kind=asked.purpose.value,
                    known=behind(version, origin) if version.binding == marking.candidate.binding else None,
                    **judged_as(operation.verdict),
                )
            ]
        except RegistryUnavailable as error:  # written, but not seen to be
            raise OutcomeUnknown(error.detail) from error
        ends = (operation.change or {}).get("ends", ())
        return [*effects, *ended_elsewhere(self._environments, backend.name, model, ends, self._trail.now())], version

    async def made_live(
        self,
        backend: Backend,
        environment: Environment,
        version: ModelVersion,
        operation: Operation,
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
            **judged_as(operation.verdicts.get(environment.name, operation.verdict)),
        )
