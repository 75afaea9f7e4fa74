"""Quarantine: a version that must not become live again, nor what is made from the same, until it is lifted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from service.backend import Backend
from service.effects import Quarantined, Released
from service.errors import Conflict, NotFound
from service.governance.desk import Desk
from service.guard import live_version
from service.judging import previous
from service.model import Caller, Need, resource
from service.provenance import find_origin, made_from
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
        identifier, by, now = str(uuid.uuid4()), caller.principal.subject, self._desk.now()
        operation.after = {"quarantine": identifier}

        async def make() -> Quarantined:
            found = await backend.get_version(model, version)
            for item in await self._desk.journal.quarantines(registry):
                if (item.model, item.binding) == (model, found.binding):
                    message = f"The version is in quarantine already: {item.reason}"
                    raise Conflict(message)
            made = tuple(sorted(made_from(found, await find_origin(backend, found))))
            return Quarantined(registry, Quarantine(identifier, model, version, found.binding, reason, by, now, made))

        placed = (await self._desk.store(operation, model, version, make, alone=True)).quarantine
        return Placed(placed, await self._live_in(registry, placed))

    async def _live_in(self, registry: str, placed: Quarantine) -> dict[str, str | None]:
        model, version = placed.model, placed.version
        backend = self._desk.gateway.backend(registry)
        found = await backend.get_model(model)
        live: dict[str, str | None] = {}
        for environment in self._desk.environments.of(registry, model):
            if live_version(found, environment) == version:
                live[environment.name] = await previous(backend, self._desk.journal, model, environment, version)
        return live

    async def lift(self, caller: Caller, registry: str, model: str, version: str) -> None:
        """Take a version out of quarantine.

        Raises:
            Denied. NotFound: it is not in quarantine, or only because another version made from the same is.
        """
        need = Need("version:quarantine", resource("models", model, "versions"))
        backend, operation = await self._desk.open(caller, registry, "liftQuarantine", need)

        async def make() -> Released:
            present = await self._binding(backend, model, version)
            here = [
                q for q in await self._desk.journal.quarantines(registry) if (q.model, q.version) == (model, version)
            ]
            if not here:
                message = "The version is not in quarantine itself."
                raise NotFound(message)
            lifted = next((item for item in here if item.binding == present), here[0])
            operation.before = {"quarantine": lifted.id}
            return Released(lifted.id, self._desk.now())

        await self._desk.store(operation, model, version, make, alone=True)

    @staticmethod
    async def _binding(backend: Backend, model: str, version: str) -> str | None:
        """Return which very version it is; None for one that was deleted, of which copies may be left."""
        try:
            return (await backend.get_version(model, version)).binding
        except NotFound:
            return None
