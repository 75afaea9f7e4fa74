"""Fetches the facts that a gate's rules name, and no others; independent ones at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from service.audit import Journal
from service.backend import Backend
from service.errors import Conflict, NotFound
from service.model import Principal
from service.promotion.facts import Facts, Source, VersionFacts
from service.promotion.gate import Environment
from service.provenance import Origin, artifact_digest, find_origin, run_behind
from service.records import Creation, Evidence, LivePeriod, ModelVersion, Run

T = TypeVar("T")


class Gatherer:
    """Reads the registry and the journal for a gate. What cannot be read is an error (503), never a failed rule."""

    def __init__(self, journal: Journal, now: Callable[[], float]) -> None:
        """Read records from *journal*."""
        self._journal = journal
        self._now = now

    async def facts(
        self,
        backend: Backend,
        environment: Environment,
        candidate: ModelVersion,
        incumbent: ModelVersion | None,
        principal: Principal,
        reason: str,
        origin: Origin | None,
    ) -> Facts:
        """Fetch what *environment* needs to judge *candidate*, whose *origin* was found before.

        Raises:
            RegistryUnavailable, JournalUnavailable: a needed fact could not be read.
        """
        records = self._journal
        here = (backend.name, candidate.model, candidate.binding)
        judged, live, evidence, approvals = await asyncio.gather(
            self._version(backend, candidate, environment.sources("candidate"), origin),
            self._incumbent(backend, environment, candidate, incumbent, origin),
            records.evidence(*here) if environment.names("evidence") else _nothing(list[Evidence]()),
            records.approvals(*here),
        )
        digest = None
        if evidence or approvals or Source.DIGEST in environment.sources("candidate"):
            digest = await _digest(backend, origin)  # a record is about the files its author saw
        return Facts(judged, live, evidence, approvals, principal, reason, self._now(), digest)

    async def _incumbent(
        self,
        backend: Backend,
        environment: Environment,
        candidate: ModelVersion,
        incumbent: ModelVersion | None,
        origin: Origin | None,
    ) -> VersionFacts | None:
        if incumbent is None or not environment.names("incumbent"):
            return None
        sources = environment.sources("incumbent")
        if incumbent.version == candidate.version and incumbent.model == candidate.model:
            return await self._version(backend, candidate, sources, origin)
        return await self.version(backend, incumbent, sources)

    async def version(self, backend: Backend, version: ModelVersion, sources: frozenset[Source]) -> VersionFacts:
        """Fetch *sources* of one version."""
        origin = await find_origin(backend, version) if Source.RUN in sources else None
        return await self._version(backend, version, sources, origin)

    async def _version(
        self, backend: Backend, version: ModelVersion, sources: frozenset[Source], origin: Origin | None
    ) -> VersionFacts:
        run: Run | None
        creation: Creation | None
        periods: list[LivePeriod]
        run, mlmodel, creation, periods = await asyncio.gather(
            _run(backend, version, origin) if Source.RUN in sources else _nothing(None),
            backend.get_mlmodel(version.model, version.version) if Source.FILES in sources else _nothing(None),
            self._journal.creation(backend.name, version.model, version.binding)
            if Source.RECORD in sources
            else _nothing(None),
            self._journal.periods(backend.name, version.model)
            if Source.RECORD in sources
            else _nothing(list[LivePeriod]()),
        )
        return VersionFacts(version, run, mlmodel, creation, periods)


async def _run(backend: Backend, version: ModelVersion, origin: Origin | None) -> Run | None:
    run_id = await run_behind(backend, version, origin)
    if run_id is None:
        return None
    try:
        return await backend.get_run(run_id)
    except NotFound:
        return None


async def _digest(backend: Backend, origin: Origin | None) -> str | None:
    if origin is None:
        return None
    try:
        return await artifact_digest(backend, origin)
    except (Conflict, NotFound):
        return None


async def _nothing(value: T) -> T:
    return value
