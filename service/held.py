"""What the present task holds and other replicas respect, and whether it still does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from service.errors import Busy

_HELD: ContextVar[tuple[Held, ...]] = ContextVar("held", default=())


class LockLost(Exception):
    """A lock that other replicas see cannot be had, or may be somebody else's by now."""


class Held(Protocol):
    """Something that is held."""

    async def check(self) -> None:
        """Return if it still is.

        Raises:
            LockLost: it may not be.
        """


@contextlib.contextmanager
def holding(*held: Held) -> Iterator[None]:
    """Have `still_held` ask about *held* too, in this task and in those it begins."""
    token = _HELD.set((*_HELD.get(), *held))
    try:
        yield
    finally:
        _HELD.reset(token)


async def still_held() -> None:
    """Return if every lock that this task holds is still its own: asked last before something is written.

    Raises:
        Busy: one may be somebody else's by now. Nothing may be written.
    """
    for held in _HELD.get():
        try:
            await held.check()
        except LockLost as error:
            message = f"The lock that replicas share was lost ({error}); nothing was forwarded. Try again."
            raise Busy(message) from None
