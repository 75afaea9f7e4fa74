"""Fetches the facts that a gate's rules name, and no others; independent ones at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from service.backend import Backend
from service.digests import Digests
from service.errors import Conflict, NotFound
from service.guard import live_version
from service.keeping import Journal
from service.model import Principal, Verdict
from service.promotion.facts import Facts, Fetched, Source, VersionFacts
from service.promotion.gate import Environment
from service.provenance import Origin, find_origin, made_from, relatives, run_behind, size_of
from service.records import ModelVersion, Run, VersionRecords

T = TypeVar("T")
_ALL = frozenset(Source)


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks for a promotion, why, and under which change record."""

    principal: Principal
    reason: str = ""
    change: Mapping[str, str] = field(default_factory=dict)
    looking: bool = False
    """Nothing is asked for: somebody only looks."""


class Gatherer:
    """Reads the registry and the journal for a gate. What cannot be read is an error (503), never a failed rule."""

    def __init__(self, journal: Journal, now: Callable[[], float]) -> None:
        """Read records from *journal*."""
        self._journal = journal
        self._now = now
        self.digests = Digests()

    async def facts(
        self,
        backend: Backend,
        environment: Environment,
        candidate: ModelVersion,
        incumbent: ModelVersion | None,
        question: Question,
        origin: Origin | None,
        *,
        everything: bool = False,
        needs_digest: bool = False,
    ) -> Facts:
        """Fetch what *environment* needs to judge *candidate*, whose *origin* was found before; or *everything*.

        *needs_digest*: the digest of its files too, whatever the rules name.

        Raises:
            RegistryUnavailable, JournalUnavailable: a needed fact could not be read.
        """
        sources = _ALL if everything else environment.sources("candidate")
        records, judged, live = await asyncio.gather(
            self._journal.version(backend.name, candidate.model, candidate.binding),
            self._version(backend, candidate, sources, origin),
            self._incumbent(backend, environment, candidate, incumbent, origin, everything=everything),
        )
        bound = environment.reads_records and bool(records.evidence or records.approvals)
        hashed = everything or needs_digest or bound or Source.DIGEST in sources
        approved = (everything or environment.reads_records) and bool(records.approvals)
        digest, quarantine, registrants = await asyncio.gather(
            # A record is about the files its author saw.
            self._digest(backend, origin, looking=question.looking) if hashed else nothing(None),
            self.quarantine(backend, candidate, records, origin),
            self.registrants(backend, candidate, origin) if approved else nothing(frozenset[str]()),
        )
        now = self._now()
        return Facts(
            candidate=replace(judged, creation=records.creation, periods=records.periods),
            incumbent=live,
            evidence=records.evidence,
            approvals=records.approvals,
            principal=question.principal,
            reason=question.reason,
            now=now,
            artifact_digest=digest,
            incumbent_binding=incumbent.binding
            if incumbent is not None
            else ""
            if environment.needs_incumbent
            else None,
            requests=tuple(item for item in records.requests if item.state == "open" and item.expires > now),
            registrants=registrants,
            askers=records.askers,  # who asked and cancelled, or let it expire, has asked
            quarantine=quarantine,
            change=question.change,
            fetched=Fetched(
                candidate=sources | {Source.RECORD},
                incumbent=_ALL
                if everything
                else environment.sources("incumbent")
                if environment.names("incumbent")
                else None,
                digest=hashed,
                registrants=approved,
            ),
        )

    async def quarantine(
        self, backend: Backend, version: ModelVersion, records: VersionRecords, origin: Origin | None = None
    ) -> str | None:
        """Say why *version*, or another made from the same, is in quarantine; None if none is.

        Raises:
            RegistryUnavailable: it cannot be told what it was made from.
        """
        here = (version.model, version.binding)
        own = next((item for item in records.quarantines if (item.model, item.binding) == here), None)
        if own is not None:
            return own.reason
        others = [item for item in records.quarantines if item.behind]
        made = made_from(version, origin or await find_origin(backend, version)) if others else frozenset()
        found = next((item for item in others if not made.isdisjoint(item.behind)), None)
        if found is None:
            return None
        if found.model != version.model:  # whose readers may be others
            return "another model's version, made from the same run or files, is in quarantine"
        return f"version {found.version}, made from the same run or files, is in quarantine: {found.reason}"

    async def registrants(self, backend: Backend, version: ModelVersion, origin: Origin | None) -> frozenset[str]:
        """Name everyone who registered what is the same as *version*, as far as it is known (`relatives`).

        Raises:
            RegistryUnavailable, JournalUnavailable: it cannot be told.
        """
        same = {(item.model, item.version): item.binding for item in await relatives(backend, version, origin)}
        models, versions = {model for model, _ in same}, {version for _, version in same}
        known = await self._journal.creations(backend.name, models, versions)
        found = (item for item in known if same.get((item.model, item.version), "") in (None, item.binding))
        return frozenset(who for item in found for who in (item.by, *item.persons))

    async def about(
        self,
        backend: Backend,
        environment: Environment,
        version: ModelVersion,
        question: Question,
        *,
        everything: bool = False,
    ) -> Facts:
        """Fetch the same for a version alone: what is live and where it comes from are looked up first.

        Raises:
            RegistryUnavailable, JournalUnavailable: a needed fact could not be read.
        """
        model, origin = await asyncio.gather(backend.get_model(version.model), find_origin(backend, version))
        live, incumbent = live_version(model, environment), None
        if live is not None:
            incumbent = version if live == version.version else await backend.get_version(version.model, live)
        return await self.facts(backend, environment, version, incumbent, question, origin, everything=everything)

    async def _incumbent(
        self,
        backend: Backend,
        environment: Environment,
        candidate: ModelVersion,
        incumbent: ModelVersion | None,
        origin: Origin | None,
        *,
        everything: bool,
    ) -> VersionFacts | None:
        if incumbent is None or not (everything or environment.names("incumbent")):
            return None
        sources = _ALL if everything else environment.sources("incumbent")
        if incumbent.version == candidate.version and incumbent.model == candidate.model:
            facts = await self._version(backend, candidate, sources, origin)
            return await self._recorded(backend, facts) if Source.RECORD in sources else facts
        return await self.version(backend, incumbent, sources)

    async def version(self, backend: Backend, version: ModelVersion, sources: frozenset[Source]) -> VersionFacts:
        """Fetch *sources* of one version."""
        needs_origin = sources & {Source.RUN, Source.SIZE}
        origin = await find_origin(backend, version) if needs_origin else None
        facts = await self._version(backend, version, sources, origin)
        return await self._recorded(backend, facts) if Source.RECORD in sources else facts

    async def _recorded(self, backend: Backend, facts: VersionFacts) -> VersionFacts:
        version = facts.version
        records = await self._journal.version(backend.name, version.model, version.binding)
        return replace(facts, creation=records.creation, periods=records.periods)

    async def _version(
        self, backend: Backend, version: ModelVersion, sources: frozenset[Source], origin: Origin | None
    ) -> VersionFacts:
        """Fetch what the registry has; the records are added by who asks."""
        run: Run | None
        run, mlmodel, size, requirements = await asyncio.gather(
            _run(backend, version, origin) if Source.RUN in sources else nothing(None),
            backend.get_mlmodel(version.model, version.version) if Source.FILES in sources else nothing(None),
            size_of(backend, origin) if Source.SIZE in sources and origin is not None else nothing(None),
            backend.get_requirements(version.model, version.version)
            if Source.REQUIREMENTS in sources
            else nothing(None),
        )
        return VersionFacts(version, run, mlmodel, size=size, requirements=requirements)

    async def _digest(self, backend: Backend, origin: Origin | None, *, looking: bool) -> str | None:
        """Return the digest of a version's files; None where nothing can be bound to them."""
        if origin is None:
            return None
        try:
            return await self.digests.digest(backend, origin, looking=looking)
        except (Conflict, NotFound):
            return None

    async def commit(self, backend: Backend, version: ModelVersion, origin: Origin | None) -> str | None:
        """Return the git commit that made *version*, by its run; None where it is not known."""
        run = await _run(backend, version, origin)
        return (run.tags.get("mlflow.source.git.commit") or None) if run else None


async def _run(backend: Backend, version: ModelVersion, origin: Origin | None) -> Run | None:
    run_id = await run_behind(backend, version, origin)
    if run_id is None:
        return None
    try:
        return await backend.get_run(run_id)
    except NotFound:
        return None


async def judge(environment: Environment, facts: Facts, registry: str) -> Verdict:
    """Judge *facts* `apart`."""
    return await apart(environment, lambda: environment.judge(facts, registry))


async def apart(environment: Environment, work: Callable[[], T]) -> T:
    """Do what judges by *environment*'s rules in a thread: each may take milliseconds, and others are served."""
    return await asyncio.to_thread(work) if environment.rules else work()


async def nothing(value: T) -> T:
    """Stand in for a fact that nobody needs."""
    return value
