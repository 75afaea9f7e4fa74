"""The files of a journal on SQLite: which process owns them, and whether they are still the same ones."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from service.errors import JournalUnavailable

_Identity = tuple[int, int]


class JournalFiles:
    """The database, its write-ahead log, and the lock beside them.

    The lock is one of its own: closing a second handle of the database would drop the locks that SQLite holds on it.
    """

    def __init__(self, journal: Path) -> None:
        """Name the files of *journal*; nothing is opened."""
        self._database = journal
        self._log = journal.with_name(f"{journal.name}-wal")
        real = journal.resolve()  # two names of one journal have one lock
        self._lock = real.with_name(f"{real.name}.lock")
        self._held: int | None = None
        self._opened: list[_Identity] = []

    def claim(self) -> None:
        """Own the journal until `release`; it ends with the process, however that ends.

        Raises:
            JournalUnavailable: another process owns it, or nobody can tell. Nothing may be written.
        """
        if self._held is not None and self._is_ours(self._held):
            return
        self.release()
        try:
            held = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            message = f"The lock of the journal, {self._lock}, cannot be opened: {error.strerror}."
            raise JournalUnavailable(message) from None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _owner(held)
            os.close(held)
            if isinstance(error, BlockingIOError):
                message = f"Another process{owner} uses the journal {self._database}. One at a time may; stop that one."
            else:
                message = f"The journal {self._database} cannot be locked here: {error.strerror}."
            raise JournalUnavailable(message) from None
        if not self._is_ours(held):  # it was taken away between opening and locking
            os.close(held)
            message = f"The lock of the journal, {self._lock}, was removed. Try again."
            raise JournalUnavailable(message)
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(held, 0)
            os.pwrite(held, b"%d\n" % os.getpid(), 0)
        self._held = held

    def release(self) -> None:
        """Let another process have it."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def remember_database(self) -> None:
        """Note which file is opened now.

        Raises:
            OSError: there is none.
        """
        self._opened = [_identity(self._database)]

    def remember_log(self) -> None:
        """Note which log is written; a transaction has begun, so there is one.

        Raises:
            OSError: it was taken away.
        """
        if len(self._opened) == 1:
            self._opened.append(_identity(self._log))

    def forget(self) -> None:
        """Note that nothing is open any more."""
        self._opened = []

    def check(self) -> None:
        """Return if the files that were opened are those that have the names now.

        Raises:
            OSError: one was deleted or replaced: what is written to it is lost when it is closed.
        """
        for path, opened in zip((self._database, self._log), self._opened, strict=False):
            if _identity(path) != opened:
                message = f"{path} was replaced"
                raise OSError(message)

    def database_is_kept(self) -> bool:
        """Tell whether the database of this name is still the one that was opened."""
        try:
            return _identity(self._database) == self._opened[0]
        except (OSError, IndexError):
            return False

    def _is_ours(self, held: int) -> bool:
        found = os.fstat(held)
        try:
            return (found.st_dev, found.st_ino) == _identity(self._lock)
        except OSError:
            return False


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return found.st_dev, found.st_ino


def _owner(held: int) -> str:
    with contextlib.suppress(OSError):
        text = os.pread(held, 20, 0).decode("ascii", "replace").strip()
        if text.isdigit():
            return f" ({text})"
    return ""
