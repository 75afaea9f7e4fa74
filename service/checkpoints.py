"""Writes checkpoints: signed events of the chain that say how far it is, so that a cut or a rewritten one shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from service.audit import Trail
from service.chain import with_signature
from service.errors import GatewayError
from service.event import Event, of_the_record
from service.tasks import end

ACTION = "audit:checkpoint"
_LOOK_SECONDS = 0.2
_log = structlog.get_logger()
Sign = Callable[[bytes], bytes]


class Checkpoints:
    """Writes one at the start, after so many seconds or events, and at the stop."""

    def __init__(
        self,
        trail: Trail,
        sign: Sign,
        *,
        cluster: str,
        kid: str,
        seconds: float,
        events: int,
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to *trail*, signed by *sign* with the key *kid*.

        Of several processes the one that *leads* writes those after *seconds* and *events*; each those of its own
        start and stop.
        """
        self._trail = trail
        self._sign = sign
        self._cluster = cluster
        self._kid = kid
        self._seconds = seconds
        self._events = events
        self._leads = leads
        self._clock = clock
        self.failed = 0
        """Those that could not be written since the start."""
        self._covered = 0
        """The sequence of the last checkpoint that this process knows of."""
        self._written = clock()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Write the first one, and begin to follow the journal."""
        await self._try("start")
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Write the last one; what is recorded after it is covered by the next start."""
        await end(self._task)
        await self._try("stop")

    async def look(self) -> str | None:
        """Write one if it is time; return why, or None where it is not."""
        if not self._covered:  # the journal was down at the start
            await self.write("start")
            return "start"
        head, covered = await self._trail.journal.heads(self._covered)
        if covered > self._covered:  # another process has written one meanwhile
            self._covered, self._written = covered, self._clock()
        if head <= self._covered or not self._leads():
            return None
        if head - self._covered >= self._events:
            because = "events"
        elif self._clock() - self._written >= self._seconds:
            because = "time"
        else:
            return None
        await self.write(because)
        return because

    async def write(self, because: str) -> Event:
        """Write one now.

        Raises:
            JournalUnavailable: it is not recorded.
        """
        data = of_the_record(ACTION, "checkpoint", because)
        event = await self._trail.checkpoint(data, self._finish)
        self._covered, self._written = event["data"]["sequence"], self._clock()
        return event

    def _finish(self, event: Event) -> Event:
        return with_signature(event, self._cluster, self._kid, self._sign)

    async def _try(self, because: str) -> None:
        try:
            await self.write(because)
        except GatewayError as error:
            self._note_failure(because, error)

    def _note_failure(self, because: str, error: GatewayError) -> None:
        self.failed += 1
        _log.error("no checkpoint was written", because=because, problem=error.detail)

    async def _follow(self) -> None:
        journal = self._trail.journal
        while True:
            rings = journal.rings
            try:
                await self.look()
            except GatewayError as error:
                self._note_failure("the journal", error)
            await asyncio.sleep(min(_LOOK_SECONDS, self._seconds))  # a busy journal is not asked at each event
            await journal.more(rings, max(0.0, self._written + self._seconds - self._clock()) or self._seconds)
