"""Follows the journal for one sink, on the replica that does so for all, from where the sink has come to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from service.effects import Follows, Reached
from service.errors import GatewayError
from service.keeping import Journal
from service.records import Delivery
from service.tasks import end

PAGE = 50
"""Events read at a time: their JSON is parsed on the event loop, where requests must not wait for it."""
FLUSH_SECONDS = 1.0
"""How far a sink has come is written so often; a kill repeats what was delivered since."""
LOOK_SECONDS = 1.0
"""At least so often it is looked whether there is something to do, and whether this replica still leads."""
_GATHER_SECONDS = 0.02
"""So long events are gathered after a ring: the answer to who made them goes first."""
_AGAIN_SECONDS = 1.0
_log = structlog.get_logger()


class Follower:
    """One sink's way through the journal. `_serve` is the way itself."""

    def __init__(
        self, name: str, journal: Journal, leads: Callable[[], bool], now: Callable[[], float] = time.time
    ) -> None:
        """Follow *journal* as *name* while this replica *leads*."""
        self.name = name
        self.problem = ""
        """Why it does not get on, if it does not."""
        self._troubled = False
        """The problem is the journal's."""
        self._journal = journal
        self._leads = leads
        self._now = now
        self._position = 0
        self._written = 0
        self._results: list[Delivery] = []
        self._flushing = asyncio.Lock()
        self._unwritten_since: float | None = None
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Follow from now on, unless it was followed before.

        Raises:
            JournalUnavailable: nothing is known of the sink, so nothing may happen that it should hear of.
        """
        await self._journal.append([], [Follows(self.name, self._now())])

    def start(self) -> None:
        """Begin to deliver."""
        self._task = asyncio.create_task(self._run())

    async def close(self, grace_seconds: float) -> None:
        """Deliver what can be delivered in time, and write down how far it came."""
        self._closing = True
        if self._task is not None:
            self._stir()
            await asyncio.wait({self._task}, timeout=grace_seconds)
            await end(self._task)
        try:
            await self._flush()
        except GatewayError as error:
            _log.warning("a sink will get events again", sink=self.name, problem=error.detail)

    def _stir(self) -> None:
        """Wake `_serve` up."""

    async def _run(self) -> None:
        while True:
            try:
                if self._leads():
                    await self._follow()
                    if self._closing:
                        return
                else:  # how the sink does is the leader's to say
                    self.problem, self._troubled = "", False
            except GatewayError as error:
                self.trouble(error.detail)
            except Exception as error:  # noqa: BLE001  # whatever it was, the sink is begun again
                self.note(f"{type(error).__name__}: {error}")
                _log.error("a sink is begun again", sink=self.name, exc_info=error)
            if self._closing:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _follow(self) -> None:
        backlog = await self._journal.backlog(self.name)
        if backlog is None:  # its row was deleted by somebody
            await self.begin()
            return
        self._position = self._written = backlog.sequence
        await self._serve(backlog.places)
        await self._flush()

    async def _serve(self, places: frozenset[str]) -> None:
        """Deliver from `_position` on, until this replica does not lead any more; *places* have something pending."""
        raise NotImplementedError

    async def _listen(self, rings: int, seconds: float) -> None:
        """Return a moment after there is more in the journal than when it had rung *rings* times."""
        await self._journal.more(rings, seconds)
        await asyncio.sleep(min(_GATHER_SECONDS, seconds))

    def note(self, problem: str) -> None:
        """Say why it does not get on, once; nothing where it does."""
        if problem and problem != self.problem:
            _log.warning("a sink does not get on", sink=self.name, problem=problem)
        elif self.problem and not problem:
            _log.info("a sink gets on", sink=self.name)
        self.problem = problem

    def trouble(self, problem: str) -> None:
        """Say that the journal does not answer; nothing where it answers again."""
        if problem or self._troubled:
            self.note(problem)
        self._troubled = bool(problem)

    def _reached(self) -> int:
        """Return the last event up to which nothing is under way."""
        return self._position

    def _flush_in(self) -> float:
        """Say in how many seconds something is to be written; infinite where there is nothing."""
        if not self._results and self._reached() <= self._written:
            self._unwritten_since = None
            return float("inf")
        if self._unwritten_since is None:
            self._unwritten_since = time.monotonic()
        return max(0.0, self._unwritten_since + FLUSH_SECONDS - time.monotonic())

    async def _flush(self) -> None:
        """Write how far it has come, and what became of the deliveries since the last time.

        Raises:
            JournalUnavailable: it is tried again later.
        """
        async with self._flushing:
            reached, results = self._reached(), tuple(self._results)
            self._unwritten_since = None
            if not results and reached <= self._written:
                return
            await self._journal.append([], [Reached(self.name, reached, self._now(), results)])
            self._written = reached
            del self._results[: len(results)]
