"""Delivers the journal to all sinks, each on its own: one that hangs or fails delays no request and no other sink."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from service.delivery.dispatch import Dispatcher
from service.delivery.ports import Patience, Receiver, Stream
from service.delivery.streams import StreamFollower
from service.errors import GatewayError
from service.keeping import Journal

GRACE_SECONDS = 2.0
"""How long a stop waits for sinks; what they have not got by then they get after the next start."""


@dataclass(frozen=True, slots=True)
class State:
    """How a sink does, by the journal."""

    state: str
    """``up``; ``failing``: something waits to be delivered again, or nothing can be; ``unknown``: not looked yet."""
    behind: int
    pending: int
    parked: int


class Deliverer:
    """All sinks. The journal is the outbox: what a sink gets is in it, and so is how far the sink has come."""

    def __init__(
        self,
        streams: Iterable[Stream],
        receivers: Iterable[Receiver],
        journal: Journal,
        leads: Callable[[], bool] = lambda: True,
        patience: Patience | None = None,
    ) -> None:
        """Deliver to *streams* and *receivers* while this replica *leads*: one of all replicas delivers."""
        self._journal = journal
        self.receivers: Mapping[str, Receiver] = {receiver.name: receiver for receiver in receivers}
        self._streams = tuple(StreamFollower(stream, journal, leads) for stream in streams)
        self._dispatchers = tuple(
            Dispatcher(receiver, journal, leads, patience) for receiver in self.receivers.values()
        )
        self.states = {one.name: State("unknown", 0, 0, 0) for one in (*self._streams, *self._dispatchers)}
        """As the journal last told."""

    @property
    def attempts(self) -> dict[tuple[str, str], int]:
        """Attempts of this process to send an event, by sink and how they ended."""
        return {(one.name, result): count for one in self._dispatchers for result, count in one.attempts.items()}

    async def start(self) -> None:
        """Begin to deliver; a sink that is new gets what comes from now on.

        Raises:
            JournalUnavailable: it cannot be written down from where on.
        """
        for one in (*self._streams, *self._dispatchers):
            await one.begin()
        for one in (*self._streams, *self._dispatchers):
            one.start()

    async def close(self) -> None:
        """Deliver what can be delivered soon, and stop."""
        await asyncio.gather(*(one.close(GRACE_SECONDS) for one in (*self._streams, *self._dispatchers)))
        await asyncio.gather(*(_closed(one.stream) for one in self._streams))

    async def look(self) -> None:
        """Learn from the journal how the sinks do."""
        for one in (*self._streams, *self._dispatchers):
            try:
                backlog = await self._journal.backlog(one.name)
            except GatewayError:
                continue  # that the journal is down is told elsewhere
            if backlog is not None:
                failing = bool(backlog.pending or one.problem)
                state = "failing" if failing else "up"
                self.states[one.name] = State(state, backlog.behind, backlog.pending, backlog.parked)


async def _closed(stream: Stream) -> None:
    """Close *stream*; one that hangs is left to the end of the process."""
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(GRACE_SECONDS):
            await stream.close()
