"""What the record says: promotions, audit events, rules by digest, environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.audit import Event
from service.errors import NotFound
from service.governance.desk import Desk
from service.model import Caller, Need, resource
from service.promotion.gate import Environment


class TrailDesk:
    """Reads the record for those who may."""

    def __init__(self, desk: Desk) -> None:
        """Read through *desk*."""
        self._desk = desk

    async def promotion(self, caller: Caller, operation_id: str) -> list[Event]:
        """List the events of a promotion the caller may read about.

        Raises:
            NotFound: no such promotion, or none the caller may see.
        """
        events = await self._desk.journal.operation_events(operation_id)
        message = "There is no promotion of this id."
        if not events or not events[0]["data"]["environment"]:
            raise NotFound(message)
        data = events[0]["data"]
        decides = self._desk.gateway.decides
        may = decides(caller.principal, data["registry"], resource("models", data["model"]), "model:read")
        if not may.allowed:
            raise NotFound(message)
        if decides(caller.principal, data["registry"], "audit", "audit:read").allowed:
            return events
        return [_public(event) for event in events]

    async def events(
        self, caller: Caller, filters: Mapping[str, Any], after: int, limit: int
    ) -> list[tuple[int, Event]]:
        """List audit events, oldest first; needs ``audit:read``.

        Raises:
            Denied: no row allows it.
        """
        names = list(self._desk.gateway.backends)
        decides = self._desk.gateway.decides
        readable = [name for name in names if decides(caller.principal, name, "audit", "audit:read").allowed]
        await self._desk.open(caller, (readable or names)[0], "listEvents", Need("audit:read", "audit"))
        scope = {} if len(readable) == len(names) else {"registry": readable}
        return await self._desk.journal.events({**filters, **scope}, after, limit)

    async def rules(self, digest: str) -> dict[str, Any]:
        """Return rules that judged once, as they were written.

        Raises:
            NotFound: nothing was judged by rules of this digest.
        """
        found = await self._desk.journal.document("rules", digest)
        if found is None:
            message = "No rules of this digest are in the archive."
            raise NotFound(message)
        return dict(found)

    def environments(self) -> list[tuple[str, Environment]]:
        """List the environments with each registry they are of; they are no secret to those who must satisfy them."""
        return [item for registry in self._desk.gateway.backends for item in self._desk.environments_of(registry)]


def _public(event: Event) -> Event:
    """Keep of a promotion's event what its readers need, not who may do what or from where they called."""
    kept = ("phase", "operation", "outcome", "verdict", "before", "after", "version", "environment", "reason", "notes")
    data = {name: event["data"][name] for name in (*kept, "registry", "model")}
    return {**event, "data": {**data, "actor": {"subject": event["data"]["actor"]["subject"]}}}
