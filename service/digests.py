"""Reads the files of versions for their digest: a few versions at once, and once for all who look at the same time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.backend import Backend
from service.provenance import FileDigest, Origin, digest_of_files, file_digests

AT_ONCE = 4
"""Versions whose files are read at once for what is judged or stored."""
LOOKS_AT_ONCE = 2
"""The same for those who only look; they keep no promotion waiting."""
_Key = tuple[bool, str, tuple[str, ...]]


@dataclass(eq=False, slots=True)
class _Reading:
    """One reading of a version's files, and how many wait for it."""

    task: asyncio.Task[list[FileDigest]]
    begun: bool = False
    waiting: int = 0


class Digests:
    """Bounds what callers can make the gateway read."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._slots = {False: asyncio.Semaphore(AT_ONCE), True: asyncio.Semaphore(LOOKS_AT_ONCE)}
        self._readings: dict[_Key, _Reading] = {}

    async def digest(self, backend: Backend, origin: Origin, *, looking: bool = False) -> str:
        """Return the one digest of a version's files (see `files`)."""
        return digest_of_files(origin, await self.files(backend, origin, looking=looking))

    async def files(self, backend: Backend, origin: Origin, *, looking: bool = False) -> list[FileDigest]:
        """Read the version's files like `file_digests`, together with others who ask for the same.

        Who only looks shares a reading that is under way. What is judged or stored shares only one that has not begun:
        a file could have been written over since it was read.

        Raises:
            Conflict: too many or too large to be read, so that nothing can be bound to them. NotFound.
        """
        key = (looking, backend.name, origin.files)
        reading = self._readings.get(key)
        if reading is None or (reading.begun and not looking):
            reading = _Reading(asyncio.create_task(self._read(key, backend, origin)))
            self._readings[key] = reading
        reading.waiting += 1
        try:
            return await asyncio.shield(reading.task)
        finally:
            reading.waiting -= 1
            if not reading.waiting:
                if self._readings.get(key) is reading:
                    del self._readings[key]
                reading.task.cancel()  # nobody waits any more

    async def _read(self, key: _Key, backend: Backend, origin: Origin) -> list[FileDigest]:
        reading = self._readings[key]
        async with self._slots[key[0]]:
            reading.begun = True
            return await file_digests(backend, origin)
