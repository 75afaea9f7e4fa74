"""Sends events to a receiver: in order for each place, each place on its own, and again where it failed."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from service.delivery.following import LOOK_SECONDS, PAGE, Follower
from service.delivery.ports import Patience, Receiver, Sent
from service.errors import GatewayError
from service.event import Event
from service.keeping import Journal
from service.records import Delivery
from service.tasks import end

_AT_ONCE = 8
"""Attempts at one receiver at a time."""
_WINDOW = 500
"""Events that are under way to one receiver."""
MAX_PENDING = 10_000
"""With more waiting to be delivered again, a receiver's new events stay in the journal."""
_HEADS = 64
_NAMESPACE = uuid.UUID("6f0c4ba1-94c5-4b1c-9e55-0f4d1f1d8f5e")
_log = structlog.get_logger()


def place_of(event: Event) -> str:
    """Name what *event* is about: events of one place are delivered in order."""
    data = event["data"]
    return f"{data['registry']}/{data['model'] or data['resource']}"


def delivery_of(sink: str, sequence: int, event: Event, now: float) -> Delivery:
    """Begin the delivery of *event*; that of the same event to the same sink is the same one."""
    identifier = str(uuid.uuid5(_NAMESPACE, f"{sink}\n{event['id']}"))
    place = place_of(event)
    return Delivery(identifier, sink, sequence, event["id"], place, "pending", 0, now, None, "", now)


def ended(delivery: Delivery, sent: Sent, patience: Patience, now: float) -> Delivery:
    """Say what an attempt made of *delivery*: delivered, pending again, or parked."""
    tried = replace(delivery, attempts=delivery.attempts + 1, status=sent.status, problem=sent.problem, due=now)
    if not sent.problem:
        return replace(tried, state="delivered", ended_at=now)
    due = now + patience.pause(tried.attempts, sent.retry_after_seconds)
    if sent.gone or due > delivery.at + patience.give_up_seconds:
        return replace(tried, state="parked", ended_at=now)
    return replace(tried, due=due)


@dataclass(slots=True)
class _Place:
    """What is under way in one place."""

    queue: deque[tuple[Delivery, Event]] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None
    blocked: bool = False
    """Something is pending in the journal or about to be, so that what comes later waits behind it."""


class Dispatcher(Follower):
    """Follows the journal for a receiver."""

    def __init__(
        self, receiver: Receiver, journal: Journal, leads: Callable[[], bool], patience: Patience | None = None
    ) -> None:
        """Send to *receiver*."""
        super().__init__(receiver.name, journal, leads)
        self.receiver = receiver
        self.attempts: Counter[str] = Counter()
        """By how they ended: ``delivered``, ``failed``."""
        self._patience = patience or Patience()
        self._places: dict[str, _Place] = {}
        self._window: set[int] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._stirred = asyncio.Event()
        self._pending = 0
        self._next_look = 0.0

    def _stir(self) -> None:
        self._stirred.set()

    def _reached(self) -> int:
        return min(self._window) - 1 if self._window else self._position

    async def _serve(self, places: frozenset[str]) -> None:
        self._places = {name: _Place(blocked=True) for name in places}
        self._window.clear()
        self._results.clear()
        self._next_look = 0.0
        try:
            while self._leads() and not self._closing:
                await self._step()
            if self._closing:  # what is under way may still end
                await asyncio.gather(*(place.task for place in self._places.values() if place.task is not None))
        finally:
            await end(*(place.task for place in self._places.values()))

    async def _step(self) -> None:
        self._stirred.clear()
        rings = self._journal.rings
        page: list[tuple[int, Event]] = []
        try:
            if time.monotonic() >= self._next_look:
                await self._look_for_pending()
            if len(self._window) < _WINDOW and self._pending < MAX_PENDING:
                page = await self._journal.events({}, self._position, PAGE)
            for sequence, event in page:
                self._take(sequence, event)
            if self._flush_in() <= 0:
                await self._flush()
            self.trouble("")
        except GatewayError as error:
            self.trouble(error.detail)
            await asyncio.sleep(LOOK_SECONDS)
            return
        if len(page) < PAGE:
            await self._wait(rings, listening=len(self._window) < _WINDOW)

    async def _wait(self, rings: int, *, listening: bool) -> None:
        """Return when there is something to do: more in the journal, an attempt that ended, a delivery that is due."""
        seconds = max(0.0, min(self._flush_in(), self._next_look - time.monotonic(), LOOK_SECONDS))
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(self._stirred.wait())]
        if listening:
            waiting.append(asyncio.create_task(self._listen(rings, seconds)))
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(*waiting)

    def _take(self, sequence: int, event: Event) -> None:
        """Begin the delivery of an event that is new."""
        self._position = sequence
        if not self._wants(event):
            return
        delivery = delivery_of(self.name, sequence, event, self._now())
        place = self._places.setdefault(delivery.place, _Place())
        if place.blocked:
            self._results.append(delivery)
            return
        place.queue.append((delivery, event))
        self._window.add(sequence)
        if place.task is None:
            place.task = asyncio.create_task(self._send_new(delivery.place, place))

    def _wants(self, event: Event) -> bool:
        """Tell whether *event* is sent; one that cannot be understood is, so that it fails and shows, alone."""
        try:
            return self.receiver.wants(event)
        except Exception as error:  # noqa: BLE001  # one event must not stop the others
            _log.error("it is not known whether an event is wanted", sink=self.name, id=event["id"], exc_info=error)
            return True

    async def _send_new(self, name: str, place: _Place) -> None:
        """Send what is queued in a place, in order; at the first failure the rest waits behind it in the journal."""
        while place.queue:
            delivery, event = place.queue[0]
            result = await self._attempt(delivery, event)
            place.queue.popleft()
            self._results.append(result)
            self._window.discard(result.sequence)
            if result.state == "pending":
                place.blocked = True
                for waiting, _ in place.queue:
                    self._results.append(waiting)
                    self._window.discard(waiting.sequence)
                place.queue.clear()
                self._look_by(result)
            self._stirred.set()
        place.task = None
        if not place.blocked:
            self._places.pop(name, None)

    def _look_by(self, delivery: Delivery) -> None:
        self._next_look = min(self._next_look, time.monotonic() + delivery.due - self._now())

    async def _look_for_pending(self) -> None:
        """Begin what is due, also what somebody asked to have delivered again."""
        if any(item.state == "pending" for item in self._results):
            await self._flush()
        heads = await self._journal.next_pending(self.name, _HEADS)
        now = self._now()
        later = [head.due - now for head in heads if head.due > now]
        self._next_look = time.monotonic() + min(later[0] if later else LOOK_SECONDS, LOOK_SECONDS)
        backlog = await self._journal.backlog(self.name)
        self._pending = backlog.pending if backlog is not None else 0
        for head in heads:
            place = self._places.setdefault(head.place, _Place())
            if head.due <= now and place.task is None:
                place.blocked = True
                place.task = asyncio.create_task(self._send_pending(head.place, place))

    async def _send_pending(self, name: str, place: _Place) -> None:
        """Send what is pending in a place, in order, until one fails again or nothing is left."""
        try:
            while rows := await self._pending_in(name):
                for delivery in rows:
                    result = await self._attempt_again(delivery)
                    self._results.append(result)
                    self._stirred.set()
                    if result.state == "pending":
                        self._look_by(result)
                        return
            if not any(item.place == name and item.state == "pending" for item in self._results):
                place.blocked = False
        except GatewayError as error:
            self.trouble(error.detail)
        finally:
            place.task = None
            if not place.blocked and self._places.get(name) is place:
                del self._places[name]
            self._stirred.set()

    async def _pending_in(self, name: str) -> list[Delivery]:
        """List what is pending in a place; what became of it so far is written first, or it would come again."""
        if any(item.place == name for item in self._results):
            await self._flush()
        return await self._journal.pending_in(self.name, name, PAGE)

    async def _attempt_again(self, delivery: Delivery) -> Delivery:
        found = await self._journal.events({}, delivery.sequence - 1, 1)
        if not found or found[0][0] != delivery.sequence:
            problem = "The event is not in the journal any more."
            return replace(delivery, state="parked", problem=problem, ended_at=self._now())
        if not self._wants(found[0][1]):
            problem = "The endpoint's filter leaves it out by now."
            return replace(delivery, state="parked", problem=problem, ended_at=self._now())
        return await self._attempt(delivery, found[0][1])

    async def _attempt(self, delivery: Delivery, event: Event) -> Delivery:
        async with self._slots:
            try:
                sent = await self.receiver.send(event)
            except Exception as error:  # noqa: BLE001  # one event must not stop the others
                _log.error("an attempt to deliver failed by itself", sink=self.name, exc_info=error)
                sent = Sent(problem=f"{type(error).__name__}: {error}"[:300])
        self.attempts["failed" if sent.problem else "delivered"] += 1
        if sent.problem or not any(place.blocked for place in self._places.values()):
            self.note(sent.problem)
        return ended(delivery, sent, self._patience, self._now())

    async def close(self, grace_seconds: float) -> None:
        """Let what is under way end in time, and write down what became of it."""
        await super().close(grace_seconds)
        with contextlib.suppress(Exception):
            await self.receiver.close()
