"""What is live, now and then, and whether the registry agrees with the record."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.backend import Backend
from service.drift import Drift, Look
from service.errors import JournalUnavailable, NotFound
from service.governance.desk import Desk
from service.model import Caller, Need, resource
from service.promoter import etag
from service.promotion.gate import Environment
from service.promotion.history import open_period
from service.provenance import UNVERIFIABLE
from service.records import Approval, Evidence, LivePeriod, ModelVersion
from service.shares import Shares
from service.watching import Watch

MAX_WAIT_SECONDS = 60
MAX_WAITS = 100
"""Of one principal at once."""


@dataclass(frozen=True, slots=True)
class Live:
    """What is or was live in an environment, and all a service needs to load it."""

    version: str
    found: ModelVersion | None
    """As the registry has it; None where it was deleted since."""
    period: LivePeriod | None
    """By record; None where the record does not know it."""
    mlmodel: Mapping[str, Any] | None
    artifact_digest: str | None
    etag: str
    drifted: bool
    """The registry and the record differ: a mark was moved beside the gateway."""


class LiveDesk:
    """Tells what is live."""

    def __init__(self, desk: Desk, watch: Watch, drift: Drift) -> None:
        """Read through *desk*; *watch* is shared by all who wait."""
        self._desk = desk
        self._watch = watch
        self._drift = drift
        self._waits = Shares(MAX_WAITS, "waiting requests")

    async def _open(
        self, caller: Caller, registry: str, model: str, name: str, call: str
    ) -> tuple[Backend, Environment]:
        need = Need("model:read", resource("models", model, "environments", name))
        backend, _ = await self._desk.open(caller, registry, call, need)
        return backend, self._desk.environment(registry, model, name)

    async def now(
        self, caller: Caller, registry: str, model: str, name: str, known: str | None, wait_seconds: float
    ) -> Live | None:
        """Get what is live; None if it is still what the ETag *known* names after *wait_seconds*.

        Raises:
            NotFound: no such environment, or nothing is live in it. Denied, Unauthenticated: also while it was waited.
            Busy: the caller waits `MAX_WAITS` times already.
        """
        with self._waits.hold(caller.principal.subject) if wait_seconds else contextlib.nullcontext():
            return await self._now(caller, registry, model, name, known, wait_seconds)

    async def _now(
        self, caller: Caller, registry: str, model: str, name: str, known: str | None, wait_seconds: float
    ) -> Live | None:
        backend, environment = await self._open(caller, registry, model, name, "getEnvironment")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_seconds
        while True:
            version = await self._watch.look(backend, model, environment, waiting=wait_seconds > 0)
            left = deadline - loop.time()
            if version is not None and etag(version) != known:
                return await self._live(backend, environment, version)
            if left <= 0 or not (known or wait_seconds):
                break
            await self._watch.wait(registry, model, environment, left)
            caller = await caller.again()  # a credential may have been taken back meanwhile, or a right
            await self._open(caller, registry, model, name, "getEnvironment")
        if version is None:
            message = f"Nothing is live in {name!r}."
            raise NotFound(message)
        return None

    async def _live(self, backend: Backend, environment: Environment, version: ModelVersion) -> Live:
        mlmodel, periods, digest = await asyncio.gather(
            self._watch.mlmodel(backend, version),
            self._periods(backend.name, version.model),
            self._digest(backend, version),
        )
        period = open_period(periods or [], environment.name)
        same = period is not None and period.binding == version.binding
        drifted = periods is not None and not (same and period is not None and period.kind != "drift")
        found = period if same else None
        digest = _judged(found) or digest
        return Live(version.version, version, found, mlmodel, digest, etag(version), drifted=drifted)

    async def _periods(self, registry: str, model: str) -> list[LivePeriod] | None:
        try:
            return await self._desk.journal.periods(registry, model)
        except JournalUnavailable:  # reads stand without the journal; only who and since are unknown then
            return None

    async def _digest(self, backend: Backend, version: ModelVersion) -> str | None:
        """Return the digest that the newest record about the version is bound to; reading the files takes too long."""
        try:
            found = await self._desk.journal.version(backend.name, version.model, version.binding)
        except JournalUnavailable:
            return None
        records: list[Evidence | Approval] = [*found.evidence, *found.approvals]
        digest = max(records, key=lambda item: item.at).artifact_digest if records else ""
        return digest if digest not in ("", UNVERIFIABLE) else None

    async def at(self, caller: Caller, registry: str, model: str, name: str, moment: float) -> Live:
        """Get what was live at *moment*, by record.

        Raises:
            NotFound: no such environment, or nothing was live in it then. JournalUnavailable.
        """
        backend, environment = await self._open(caller, registry, model, name, "getEnvironment")
        periods = await self._desk.journal.periods_named(registry, model)
        period = next(
            (
                item
                for item in reversed(periods)
                if item.environment == environment.name
                and _shown(item.since) <= moment
                and (item.until is None or moment < _shown(item.until))
            ),
            None,
        )
        if period is None:
            message = f"By record nothing was live in {name!r} then."
            raise NotFound(message)
        try:
            found: ModelVersion | None = await backend.get_version(model, period.version)
        except NotFound:
            found = None
        if found is None or found.binding != period.binding:
            return Live(period.version, None, period, None, _judged(period), "", drifted=period.kind == "drift")
        mlmodel, digest = await asyncio.gather(backend.get_mlmodel(model, period.version), self._digest(backend, found))
        digest = _judged(period) or digest
        return Live(period.version, found, period, mlmodel, digest, etag(found), drifted=period.kind == "drift")

    async def history(
        self, caller: Caller, registry: str, model: str, name: str
    ) -> list[tuple[LivePeriod, Mapping[str, Any] | None]]:
        """List what was live in an environment by record, newest first, each with the verdict that let it in."""
        await self._open(caller, registry, model, name, "getHistory")
        periods = await self._desk.journal.periods(registry, model)
        found = [item for item in reversed(periods) if item.environment == name]
        verdicts = await self._desk.journal.verdicts([item.operation for item in found if item.operation], name)
        return [(item, verdicts.get(item.operation)) for item in found]

    async def check(self, caller: Caller, registry: str, model: str, name: str) -> Look:
        """Compare the registry with the record now; what differs is recorded as drift, and reverted where configured.

        Raises:
            Denied, NotFound, RegistryUnavailable, JournalUnavailable.
            Busy: the model is being changed; try again.
        """
        backend, environment = await self._open(caller, registry, model, name, "checkEnvironment")
        return await self._drift.check(backend, model, environment)


def _judged(period: LivePeriod | None) -> str | None:
    """Return the digest of the files that a version became live with, where they were looked at."""
    return period.artifact_digest if period and period.artifact_digest != UNVERIFIABLE else None


def _shown(at: float) -> float:
    """Return a time as answers show it, in whole milliseconds: who asks about a time that was shown gets what began."""
    return math.floor(at * 1000) / 1000
