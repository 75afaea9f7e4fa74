"""What is sent to whom, what became of it, and sending it again, for those who may."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from service.audit import Operation
from service.delivery.deliverer import Deliverer, State
from service.delivery.ports import Receiver, Sent
from service.effects import Redelivered
from service.errors import Conflict, GatewayError, NotFound
from service.governance.desk import Desk
from service.model import Caller, Need, resource
from service.records import Delivery


@dataclass(frozen=True, slots=True)
class Tried:
    """What became of a test message."""

    sent: Sent
    milliseconds: float
    operation: str


class WebhookDesk:
    """Shows endpoints and their deliveries; a webhook itself is configuration."""

    def __init__(self, desk: Desk, deliverer: Deliverer) -> None:
        """Decide and record through *desk*; *deliverer* sends."""
        self._desk = desk
        self._deliverer = deliverer
        self._testing: set[str] = set()
        self._receivers = {name.partition(":")[2]: one for name, one in deliverer.receivers.items()}

    async def all(self, caller: Caller) -> list[tuple[Receiver, State]]:
        """List the endpoints that the caller may read about."""
        await self._deliverer.look()
        decides = self._desk.gateway.access.decide
        return [
            (one, self._deliverer.states[one.name])
            for name, one in self._receivers.items()
            if all(
                decides(caller.principal, registry, resource("webhooks", name), "webhook:read").allowed
                for registry in self._desk.gateway.backends
            )
        ]

    async def get(self, caller: Caller, name: str) -> tuple[Receiver, State]:
        """Get one endpoint.

        Raises:
            Denied. NotFound: none of this id is configured.
        """
        _, receiver = await self._open(caller, name, "getWebhook", "webhook:read")
        await self._deliverer.look()
        return receiver, self._deliverer.states[receiver.name]

    async def test(self, caller: Caller, name: str) -> Tried:
        """Send one message about this very test, now and once; to its end, even if the caller hangs up.

        Raises:
            Denied, NotFound. Conflict: another test of the endpoint is under way: tests must not take the connections
            of deliveries. JournalUnavailable: it could not be recorded, so nothing was sent.
        """
        operation, receiver = await self._open(caller, name, "testWebhook", "webhook:test")
        operation.after = {"webhook": name, "test": True}
        if name in self._testing:
            error = Conflict("A test of this endpoint is under way; wait for its answer.")
            await self._desk.rejecting(operation, error)
            raise error
        self._testing.add(name)
        return await self._desk.gateway.whole(lambda: self._test(operation, receiver, name))

    async def _test(self, operation: Operation, receiver: Receiver, name: str) -> Tried:
        trail = self._desk.gateway.trail
        try:
            await self._desk.journal.ping()
            begun = time.monotonic()
            sent = await receiver.send(trail.sample(operation))
            milliseconds = round((time.monotonic() - begun) * 1000, 3)
            operation.status, operation.detail = sent.status, sent.problem
            await trail.outcome(operation, "failed" if sent.problem else "succeeded")
        finally:
            self._testing.discard(name)
        return Tried(sent, milliseconds, operation.id)

    async def deliveries(
        self, caller: Caller, name: str, state: str | None, before: int | None, limit: int
    ) -> list[Delivery]:
        """List what was sent to an endpoint, or is to be sent again, newest event first.

        Raises:
            Denied, NotFound, JournalUnavailable.
        """
        _, receiver = await self._open(caller, name, "listDeliveries", "webhook:read")
        return await self._desk.journal.deliveries(receiver.name, state, before, limit)

    async def redeliver(self, caller: Caller, name: str, delivery_id: str) -> Delivery:
        """Have an event sent again, as if for the first time.

        Raises:
            Denied, NotFound. Conflict: it is still to be delivered, or its event is archived. JournalUnavailable.
        """
        operation, receiver = await self._open(caller, name, "redeliver", "webhook:redeliver")
        try:
            found = await self._desk.journal.delivery(delivery_id)
            if found is None or found.sink != receiver.name:
                message = "The endpoint has no delivery of this id."
                raise NotFound(message)
            if found.state == "pending":
                message = "It is still to be delivered."
                raise Conflict(message)
            events = await self._desk.journal.events({}, found.sequence - 1, 1)
            if not events or events[0][0] != found.sequence:
                message = "The event is not in the journal any more; it is in an archive."
                raise Conflict(message)
            operation.before = {"webhook": name, "delivery": found.id, "event": found.event, "state": found.state}
            operation.after = {**operation.before, "state": "pending"}
            now = self._desk.now()
            await self._desk.gateway.trail.stored(operation, [Redelivered(found.id, now)])
        except GatewayError as error:
            await self._desk.rejecting(operation, error)
            raise
        return replace(found, state="pending", attempts=0, due=now, at=now, ended_at=None)

    async def _open(self, caller: Caller, name: str, call: str, action: str) -> tuple[Operation, Receiver]:
        """Decide *action* on the endpoint, on every registry: what it is sent is of all of them."""
        need = Need(action, resource("webhooks", name))
        first, *others = self._desk.gateway.backends
        _, operation = await self._desk.open(caller, first, call, need)
        for registry in others:
            operation.registry = registry
            await self._desk.gateway.access.authorize(self._desk.gateway.backend(registry), (need,), operation)
        operation.registry = ""
        receiver = self._receivers.get(name)
        if receiver is None:
            message = "No webhook of this id is configured."
            raise NotFound(message)
        return operation, receiver
