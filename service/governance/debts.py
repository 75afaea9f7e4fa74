"""Debts: what an emergency leaves, to be looked at by somebody else afterwards."""

from __future__ import annotations

from dataclasses import replace

from service.effects import Paid
from service.errors import Conflict, Denied, NotFound
from service.governance.desk import MAX_LISTED, Desk
from service.model import Caller, Need, resource
from service.records import Debt


class DebtDesk:
    """Lists debts and closes them."""

    def __init__(self, desk: Desk) -> None:
        """Decide and record through *desk*."""
        self._desk = desk

    async def list(self, caller: Caller, *, open_only: bool) -> list[Debt]:
        """List the debts of models the caller may read, oldest first; the newest `MAX_LISTED`."""
        found = await self._desk.journal.debts(open_only=open_only)
        return [debt for _, debt in found if self._may_read(caller, debt)][-MAX_LISTED:]

    def _may_read(self, caller: Caller, debt: Debt) -> bool:
        where = resource("models", debt.model, "environments", debt.environment)
        return self._desk.gateway.access.decide(caller.principal, debt.registry, where, "model:read").allowed

    async def close(self, caller: Caller, debt_id: str, reason: str) -> Debt:
        """Close a debt by a review of somebody else than its author.

        Raises:
            NotFound. Conflict: it is closed. Denied: no right to approve there, or one's own emergency.
        """
        debt = await self._desk.journal.debt(debt_id)
        if debt is None or not self._may_read(caller, debt):
            message = "There is no emergency of this id."
            raise NotFound(message)
        need = Need("approval:create", resource("models", debt.model, "environments", debt.environment))
        _, operation = await self._desk.open(caller, debt.registry, "closeDebt", need)
        operation.environment, operation.reason, operation.before = debt.environment, reason, {"debt": debt.id}
        if caller.principal.persons & {debt.by, *debt.persons}:
            message = "This was your own emergency; somebody else has to review it."
            await self._desk.gateway.trail.refused(operation, "denied")
            raise Denied(message, operation=operation.id)

        async def make() -> Paid:
            present = await self._desk.journal.debt(debt_id)
            if present is None or present.closed_at is not None:
                message = "It was reviewed before."
                raise Conflict(message)
            return Paid(debt.id, self._desk.now(), caller.principal.subject, reason)

        paid = await self._desk.store(operation, debt.model, debt.version, make, alone=True)
        return replace(debt, closed_at=paid.at, closed_by=paid.by, closing_reason=paid.reason)
