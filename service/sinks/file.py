"""The sink that appends each event as one line of JSON to a file that others may rotate."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from service.delivery.ports import SinkFailed
from service.event import MAX_EVENT_BYTES, Event, canonical_json
from service.sinks.threads import Beside


class FileSink:
    """Appends to the file that has the path now: one that was moved away or deleted is made anew, mode 0600.

    A batch is on disk (``fsync``) before the journal hears that it was delivered.
    """

    def __init__(self, path: Path) -> None:
        """Append to *path*; it is opened at the first event."""
        self.name = f"file:{path}"[:200]
        self._path = path
        self._beside = Beside("sink-file")
        self._file: int | None = None

    async def write(self, events: Sequence[Event]) -> None:
        """Return when the lines are on disk.

        Raises:
            SinkFailed: they are not, for instance because the disk is full.
        """
        lines = b"".join(canonical_json(event) + b"\n" for event in events)
        try:
            await self._beside.run(lambda: self._append(lines))
        except OSError as error:
            message = f"{self._path}: {error.strerror or error}"
            raise SinkFailed(message) from None

    def _append(self, lines: bytes) -> None:
        file = self._opened()
        size = os.fstat(file).st_size
        try:
            left = memoryview(lines)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)  # no half line stays
            raise

    def _opened(self) -> int:
        if self._file is not None and not self._is_the_file(self._file):
            os.close(self._file)
            self._file = None
        if self._file is None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.open(self._path, flags, 0o600)
            try:
                _make_ready(file)
            except OSError:
                os.close(file)
                raise
            self._file = file
        return self._file

    def _is_the_file(self, file: int) -> bool:
        """Tell whether the path still leads to *file*."""
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            return False
        here = os.fstat(file)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    async def close(self) -> None:
        """Close the file."""

        def close() -> None:
            if self._file is not None:
                os.close(self._file)
                self._file = None

        await self._beside.run(close)


def _make_ready(file: int) -> None:
    """Make *file* one that events are appended to.

    Raises:
        OSError: it is something else, and is left as it is.
    """
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "it is not a file, but a device or a pipe")
    _cut_half_line(file)
    os.fchmod(file, 0o600)


def _cut_half_line(file: int) -> None:
    """Cut what a kill left in the middle of a line; that event comes again, whole."""
    size = os.fstat(file).st_size
    begin = max(0, size - 2 * MAX_EVENT_BYTES)
    tail = os.pread(file, size - begin, begin)
    whole = tail.rfind(b"\n") + 1
    if whole == len(tail):
        return
    if (begin and not whole) or not tail.startswith(b"{", whole):
        raise OSError(errno.EINVAL, "it holds no lines of events")
    os.ftruncate(file, begin + whole)
