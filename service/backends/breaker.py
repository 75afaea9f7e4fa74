"""Stops asking a registry that does not answer, so that its callers learn it at once."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 5
"""So many calls in a row without any answer open the circuit."""
OPEN_SECONDS = 2.0


class Breaker:
    """Counts calls that got no answer at all: *closed*, *open*, and *half-open* while one call tries.

    A registry that answers, whatever it says, is alive.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """Begin closed."""
        self._now = now
        self._failures = 0
        self._until = 0.0
        self._trying = False

    def look(self) -> str:
        """Say ``closed``, ``open`` or ``half-open``."""
        if self._failures < FAILURES:
            return "closed"
        return "half-open" if self._trying or self._now() >= self._until else "open"

    def refuses(self, *, long: bool = False) -> float | None:
        """Return for how many seconds a call is refused, or None: it may go, and tells `answered` or `failed`.

        A *long* one, such as a file, tries nothing: its client could keep it, and everybody else, waiting.
        """
        if self._failures < FAILURES:
            return None
        if long or self._trying or self._now() < self._until:
            return max(self._until - self._now(), 1.0)
        self._trying = True
        return None

    def answered(self) -> None:
        """Close: the registry answers."""
        self._failures, self._trying = 0, False

    def failed(self) -> None:
        """Count a call without an answer; stay open for a while after too many."""
        self._failures, self._trying = self._failures + 1, False
        if self._failures >= FAILURES:
            self._until = self._now() + OPEN_SECONDS

    def dropped(self) -> None:
        """Let another call try: this one was given up before it could show anything."""
        self._trying = False
