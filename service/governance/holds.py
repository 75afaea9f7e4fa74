"""Legal holds: the events of a model, or of a whole registry, stay in the journal until the hold is lifted."""

from __future__ import annotations

import uuid

from service.effects import Held, HoldLifted
from service.errors import NotFound
from service.governance.desk import Desk
from service.model import Caller, Need
from service.records import Hold

_MAY_PLACE = Need("audit:hold", "audit")
_MAY_SEE = Need("audit:read", "audit")


class HoldDesk:
    """Places and lifts legal holds."""

    def __init__(self, desk: Desk) -> None:
        """Decide and record through *desk*."""
        self._desk = desk

    async def place(self, caller: Caller, registry: str, model: str, reason: str) -> Hold:
        """Hold the events of *model*, or of all of *registry* if it is empty. What is pruned already stays pruned.

        Raises:
            Denied, NotFound: no such registry. JournalUnavailable: there is no hold.
        """
        _, operation = await self._desk.open(caller, registry, "placeHold", _MAY_PLACE)
        by, now = caller.principal.subject, self._desk.now()
        hold = Hold(str(uuid.uuid4()), registry, model, reason, by, now)
        operation.model, operation.reason, operation.after = model or None, reason, {"hold": hold.id}
        await self._desk.gateway.trail.stored(operation, [Held(hold)])
        return hold

    async def list(self, caller: Caller) -> list[Hold]:
        """List the holds that are in force, of the registries whose trail the caller may read, oldest first.

        Raises:
            Denied: no row allows it anywhere.
        """
        decides = self._desk.gateway.access.decide
        names = list(self._desk.gateway.backends)
        may = [name for name in names if decides(caller.principal, name, "audit", "audit:read").allowed]
        if not may:
            await self._desk.open(caller, names[0], "listHolds", _MAY_SEE)
        return [hold for hold in await self._desk.journal.holds() if hold.registry in may]

    async def lift(self, caller: Caller, hold_id: str) -> None:
        """Lift a hold.

        Raises:
            Denied. NotFound: there is none, it was lifted, or the caller may not see it.
        """
        hold = next((item for item in await self._desk.journal.holds() if item.id == hold_id), None)
        decides = self._desk.gateway.access.decide
        if hold is None or not decides(caller.principal, hold.registry, "audit", "audit:read").allowed:
            message = "There is no hold of this id."
            raise NotFound(message)
        _, operation = await self._desk.open(caller, hold.registry, "liftHold", _MAY_PLACE)
        operation.model, operation.before = hold.model or None, {"hold": hold.id}
        await self._desk.gateway.trail.stored(
            operation, [HoldLifted(hold.id, self._desk.now(), caller.principal.subject)]
        )
