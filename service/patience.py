"""How long a change waits for the journal in all, before anything of it is forwarded: many questions, one deadline."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar


class Patience:
    """What is left of one deadline. Only waiting for the journal uses it up."""

    def __init__(self, seconds: float) -> None:
        """Begin with *seconds*."""
        self.begun = time.monotonic()
        self.taken = False
        """A change goes on with it; the next change of the same request has its own."""
        self._left = seconds
        self._questions = 0
        self._asked = 0.0

    def left(self) -> float:
        """Return the seconds that are left."""
        used = time.monotonic() - self._asked if self._questions else 0.0
        return max(0.0, self._left - used)

    def lift(self) -> None:
        """Bound nothing any more: what follows is under way, and must be recorded."""
        self._left = math.inf

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Count the time; of questions at the same time once."""
        if not self._questions:
            self._asked = time.monotonic()
        self._questions += 1
        try:
            yield
        finally:
            self._questions -= 1
            if not self._questions:
                self._left -= time.monotonic() - self._asked


_PRESENT: ContextVar[Patience | None] = ContextVar("patience", default=None)


@contextlib.contextmanager
def patient(seconds: float, *, change: bool = False) -> Iterator[None]:
    """Wait for the journal at most *seconds* in all. The first *change* of a request goes on with what is left."""
    present = _PRESENT.get()
    if not change or present is None or present.taken:
        present = Patience(seconds)
    present.taken = change
    token = _PRESENT.set(present)
    try:
        yield
    finally:
        _PRESENT.reset(token)


@contextlib.contextmanager
def asking(seconds: float) -> Iterator[float]:
    """Ask the journal, and count the time; give how long the answer may take, at most *seconds*."""
    present = _PRESENT.get()
    if present is None:
        yield seconds
        return
    with present.asking():
        yield min(seconds, present.left())


@contextlib.asynccontextmanager
async def waiting(seconds: float) -> AsyncIterator[None]:
    """Wait for the journal at most *seconds*, and no longer than the present change may.

    Raises:
        TimeoutError: it did not answer in time.
    """
    with asking(seconds) as most:
        async with asyncio.timeout(most):
            yield


def left(seconds: float) -> float:
    """Return *seconds*, or what is left to the present change if that is less."""
    present = _PRESENT.get()
    return seconds if present is None else min(seconds, present.left())


def begun() -> float:
    """Return when the present change began, by the monotonic clock; now, if there is none."""
    present = _PRESENT.get()
    return time.monotonic() if present is None else present.begun


def lift() -> None:
    """Bound nothing any more in the present change: its intent is durable."""
    present = _PRESENT.get()
    if present is not None:
        present.lift()
