"""All that is known about a version, in one answer."""

from __future__ import annotations

import asyncio

from service.governance.desk import Desk
from service.model import Caller
from service.promotion.facts import Source, VersionFacts, newest_evidence
from service.records import Approval, Evidence

_SHOWN = frozenset(Source) - {Source.DIGEST}


class VersionDesk:
    """Shows versions."""

    def __init__(self, desk: Desk) -> None:
        """Read through *desk*."""
        self._desk = desk

    async def get(
        self, caller: Caller, registry: str, model: str, version: str
    ) -> tuple[VersionFacts, list[Evidence], list[Approval], str | None]:
        """Get the facts rules see, the newest evidence, the approvals, and why it is in quarantine, if it is.

        Raises:
            Denied, NotFound, RegistryUnavailable, JournalUnavailable.
        """
        found = await self._desk.read_version(caller, registry, model, version, "getVersion")
        backend = self._desk.gateway.backend(registry)
        facts, records = await asyncio.gather(
            self._desk.gatherer.version(backend, found, _SHOWN),
            self._desk.journal.version(registry, model, found.binding),
        )
        reason = await self._desk.gatherer.quarantine(backend, found, records)
        return facts, newest_evidence(records.evidence), [*records.approvals], reason
