"""Quarantine: a version that must not become live again, until it is lifted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from service.effects import Quarantined, Released
from service.errors import Conflict, NotFound
from service.governance.desk import Desk
from service.guard import live_version
from service.model import Caller, Need, resource
from service.records import Quarantine


@dataclass(frozen=True, slots=True)
class Placed:
    """A quarantine, and where the version is live all the same."""

    quarantine: Quarantine
    live_in: dict[str, str | None]
    """Environment -> the version to roll back to, or None where there is none."""


class QuarantineDesk:
    """Puts versions into quarantine and takes them out."""

    def __init__(self, desk: Desk) -> None:
        """Decide and record through *desk*."""
        self._desk = desk

    async def place(self, caller: Caller, registry: str, model: str, version: str, reason: str) -> Placed:
        """Put a version into quarantine. What is live stays live: the answer says what to roll back to.

        Raises:
            Denied, NotFound. Conflict: it is in quarantine. Nothing is stored.
        """
        need = Need("version:quarantine", resource("models", model, "versions"))
        backend, operation = await self._desk.open(caller, registry, "quarantine", need)
        operation.reason = reason
        placed = Quarantine(str(uuid.uuid4()), version, reason, caller.principal.subject, self._desk.now())
        operation.after = {"quarantine": placed.id}

        async def make() -> Quarantined:
            found = await backend.get_version(model, version)
            records = await self._desk.journal.version(registry, model, found.binding)
            if records.quarantine is not None:
                message = f"The version is in quarantine already: {records.quarantine.reason}"
                raise Conflict(message)
            return Quarantined(registry, model, found.binding, placed)

        await self._desk.store(operation, model, version, make, alone=True)
        return Placed(placed, await self._live_in(registry, model, version))

    async def _live_in(self, registry: str, model: str, version: str) -> dict[str, str | None]:
        backend = self._desk.gateway.backend(registry)
        found = await backend.get_model(model)
        periods = await self._desk.journal.periods(registry, model)
        live: dict[str, str | None] = {}
        for environment in self._desk.environments.of(registry, model):
            if live_version(found, environment) != version:
                continue
            earlier = [
                item.version
                for item in reversed(periods)
                if item.environment == environment.name and item.version != version and item.kind != "drift"
            ]
            live[environment.name] = earlier[0] if earlier else None
        return live

    async def lift(self, caller: Caller, registry: str, model: str, version: str) -> None:
        """Take a version out of quarantine.

        Raises:
            Denied. NotFound: it is not in quarantine.
        """
        need = Need("version:quarantine", resource("models", model, "versions"))
        backend, operation = await self._desk.open(caller, registry, "liftQuarantine", need)

        async def make() -> Released:
            found = await backend.get_version(model, version)
            records = await self._desk.journal.version(registry, model, found.binding)
            if records.quarantine is None:
                message = "The version is not in quarantine."
                raise NotFound(message)
            operation.before = {"quarantine": records.quarantine.id}
            return Released(records.quarantine.id, self._desk.now())

        await self._desk.store(operation, model, version, make, alone=True)
