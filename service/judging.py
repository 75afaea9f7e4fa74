"""Judges one version for one environment: fetches the facts, asks the gate, and keeps the rules by their digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from service.audit import Operation, Trail
from service.backend import Backend
from service.effects import Archived, Weighed
from service.errors import NotFound
from service.gather import Gatherer, Question, apart
from service.keeping import Journal
from service.model import Principal, Verdict
from service.promotion.facts import Facts
from service.promotion.gate import Environment, Purpose
from service.promotion.history import passed_before, way_back
from service.promotion.keeping import Kept, keep
from service.provenance import Origin
from service.records import LivePeriod, ModelVersion


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asks to make live."""

    model: str
    version: str
    """Empty for a rollback to what was live before."""
    principal: Principal
    reason: str = ""
    dry_run: bool = False
    if_match: str | None = None
    purpose: Purpose = Purpose.PROMOTION
    ticket: str = ""
    change: Mapping[str, str] = field(default_factory=dict)


class Judge:
    """Gives verdicts. The caller holds the model's lock."""

    def __init__(self, gatherer: Gatherer, trail: Trail) -> None:
        """Judge with *gatherer*'s facts; keep the rules through *trail*."""
        self._gatherer = gatherer
        self._trail = trail
        self._archived: set[str] = set()

    async def verdict(
        self,
        backend: Backend,
        environment: Environment,
        candidate: ModelVersion,
        incumbent: ModelVersion | None,
        asked: Asked,
        origin: Origin | None,
        operation: Operation,
    ) -> tuple[Verdict, Facts]:
        """Judge *candidate* for *environment*, which is as it is for the purpose asked; *operation* keeps the facts.

        Raises:
            RegistryUnavailable, JournalUnavailable: a needed fact could not be read.
        """
        question = Question(asked.principal, asked.reason, asked.change)
        lived: list[LivePeriod] = []
        if environment.purpose is Purpose.ROLLBACK:
            periods = await self._trail.journal.periods(backend.name, candidate.model)
            lived = [item for item in periods if item.binding == candidate.binding]
        digest = any(item.artifact_digest for item in passed_before(lived, environment.name, candidate.binding))
        facts = await self._gatherer.facts(
            backend, environment, candidate, incumbent, question, origin, needs_digest=digest
        )
        if environment.purpose is Purpose.ROLLBACK:
            facts = replace(facts, candidate=replace(facts.candidate, periods=lived))
        elif environment.purpose is Purpose.EMERGENCY:
            facts = replace(facts, debt=await self._open_debt(backend.name, environment))

        def work() -> tuple[Verdict, Kept | None]:
            return environment.judge(facts, backend.name), None if asked.dry_run else keep(
                facts, self._trail.masks.document
            )

        verdict, kept = await apart(environment, work)
        if kept is not None and kept.problem:
            operation.notes.append(f"{environment.name}: {kept.problem}")
        elif kept is not None:
            under = environment.approved_under or verdict.rules_digest
            operation.facts[environment.name] = Weighed(kept.digest, kept.document, facts.now, under)
        if not asked.dry_run and verdict.rules_digest not in self._archived:
            archived = Archived(verdict.rules_digest, environment.rules_document(), self._trail.now())
            await self._trail.keep(archived)
            self._archived.add(verdict.rules_digest)
        return verdict, facts

    async def _open_debt(self, registry: str, environment: Environment) -> str:
        """Return the emergency in *environment* that nobody has reviewed, also one whose outcome is not known yet."""
        for _, debt in await self._trail.journal.debts(registry):
            if debt.environment == environment.name:
                return debt.id
        for found in await self._trail.journal.unsettled():
            change = found.change or {}
            here = (found.registry, change.get("environment")) == (registry, environment.name)
            if here and change.get("purpose") == Purpose.EMERGENCY.value:
                return found.operation
        return ""


async def previous(
    backend: Backend, journal: Journal, model: str, environment: Environment, live: str | None
) -> str | None:
    """Find the version that was live before *live* and may be again; None if there is none."""
    for period in way_back(await journal.periods(backend.name, model), environment.name):
        if period.version != live and period.passed and await good_version(backend, journal, model, period):
            return period.version
    return None


async def good_version(backend: Backend, journal: Journal, model: str, period: LivePeriod) -> ModelVersion | None:
    """Return what was live then, if it is still there and not in quarantine."""
    try:
        found = await backend.get_version(model, period.version)
    except NotFound:
        return None
    records = await journal.version(backend.name, model, found.binding)
    good = found.binding == period.binding and found.status == "READY" and records.quarantine is None
    return found if good else None
