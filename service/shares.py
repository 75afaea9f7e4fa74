"""Keeps one principal from taking everything: so many at once, and no more."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from service.errors import Busy


class Shares:
    """Counts what each principal holds at this moment."""

    def __init__(self, each: int, what: str) -> None:
        """Let each principal hold *each* of *what* (a plural, for the refusal) at once."""
        self._each = each
        self._what = what
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, subject: str) -> Iterator[None]:
        """Hold one until the end of the block.

        Raises:
            Busy: the principal holds its share already. Nothing was forwarded; try again.
        """
        if self._held[subject] >= self._each:
            message = f"{subject} has {self._each} {self._what} under way, which is its share; try again."
            raise Busy(message)
        self._held[subject] += 1
        try:
            yield
        finally:
            self._held[subject] -= 1
            if not self._held[subject]:
                del self._held[subject]
