"""Feeds a stream: every event, in order, a batch at a time; what fails is written again until it is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from service.delivery.following import LOOK_SECONDS, PAGE, Follower
from service.delivery.ports import Patience, SinkFailed, Stream
from service.event import Event
from service.keeping import Journal

_PATIENCE = Patience(first_seconds=0.2, most_seconds=10.0)


class StreamFollower(Follower):
    """Follows the journal for a stream."""

    def __init__(self, stream: Stream, journal: Journal, leads: Callable[[], bool]) -> None:
        """Feed *stream*."""
        super().__init__(stream.name, journal, leads)
        self.stream = stream

    async def _serve(self, places: frozenset[str]) -> None:
        del places  # nothing of a stream is ever passed over
        while self._leads():
            rings = self._journal.rings
            page = await self._journal.events({}, self._position, PAGE)
            self.trouble("")
            if page:
                if not await self._write([event for _, event in page]):
                    return
                self._position = page[-1][0]
            elif self._closing:
                return
            if self._flush_in() <= 0:
                await self._flush()
            if not page:
                await self._listen(rings, min(self._flush_in(), LOOK_SECONDS))

    async def _write(self, events: list[Event]) -> bool:
        """Write until it is taken; False when that is another replica's business now."""
        attempts = 0
        while self._leads():
            try:
                await self.stream.write(events)
            except SinkFailed as error:
                attempts += 1
                self.note(str(error))
                await asyncio.sleep(_PATIENCE.pause(attempts))
            else:
                self.note("")
                return True
        return False
