"""When each API key was last used, by the hour: kept in memory, written to the journal where nobody waits for it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

import structlog

from service.effects import KeysUsed
from service.errors import GatewayError
from service.keeping import Journal
from service.tasks import end

PACE_SECONDS = 10.0
_AT_ONCE = 200
"""So many rows are one transaction: the journal writes other things too."""
_HOUR = 3600
_log = structlog.get_logger()


class Uses:
    """What is not in the journal yet; a journal that is down gets it later."""

    def __init__(self, journal: Journal, now: Callable[[], float] = time.time) -> None:
        """Write to *journal*."""
        self._journal = journal
        self._now = now
        self._hour = 0
        self._seen: set[str] = set()
        self._unwritten: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, credential: str) -> None:
        """Remember that the key with the id *credential* let somebody in; the first time in an hour counts."""
        hour = int(self._now()) // _HOUR * _HOUR
        if hour != self._hour:
            self._hour = hour
            self._seen.clear()
        if credential not in self._seen:
            self._seen.add(credential)
            self._unwritten[credential] = hour

    def start(self) -> None:
        """Write every ten seconds what is new."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write what is left, and stop."""
        await end(self._task)
        while self._unwritten and await self.flush():
            pass

    async def flush(self) -> bool:
        """Write some of what is new; what cannot be written now stays, and False is returned."""
        taken = dict(itertools.islice(self._unwritten.items(), _AT_ONCE))
        if not taken:
            return True
        for credential in taken:
            del self._unwritten[credential]
        try:
            await self._journal.append((), [KeysUsed(taken)])
        except GatewayError as error:
            self._unwritten = taken | self._unwritten
            _log.warning("when keys were last used waits for the journal", problem=error.detail)
            return False
        return True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PACE_SECONDS)
            await self.flush()
