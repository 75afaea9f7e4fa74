"""Runs each change in a task that the application owns, one at a time for each model."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from service.errors import Busy, JournalUnavailable
from service.held import Held, LockLost, holding
from service.patience import patient

T = TypeVar("T")


class Locks(Protocol):
    """Locks that other replicas see."""

    def hold(self, names: Sequence[str], seconds: float) -> AbstractAsyncContextManager[Held]:
        """Hold the locks *names*, taken in this order; wait for them at most *seconds*.

        Raises:
            TimeoutError: another one holds one of them. LockLost: nobody can tell.
        """

    async def close(self) -> None:
        """Give back what is held."""


class Changes:
    """From intent to outcome a change must not be cancelled: neither by a client that hangs up nor by a stop."""

    def __init__(
        self, lock_seconds: float = 10.0, locks: Locks | None = None, journal_seconds: float = math.inf
    ) -> None:
        """Wait at most *lock_seconds* for another change of the same model; *locks* are seen by other replicas.

        For the journal a change waits at most *journal_seconds* in all, until its intent is durable.
        """
        self._journal_seconds = journal_seconds
        self._tasks: set[asyncio.Task[Any]] = set()
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self._lock_seconds = lock_seconds
        self._shared = locks

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* to its end, even if the caller is cancelled meanwhile."""
        with patient(self._journal_seconds, change=True):
            task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone; the record is written

    async def drain(self, seconds: float) -> int:
        """Wait for running changes at most *seconds*; return how many were left (the reconciler settles those)."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        return len(self._tasks)

    async def close(self) -> None:
        """Give back what other replicas see."""
        if self._shared is not None:
            await self._shared.close()

    @contextlib.asynccontextmanager
    async def lock(self, registry: str, models: tuple[str, ...], seconds: float | None = None) -> AsyncIterator[None]:
        """Hold the locks of *models* (sorted, so that two renames cannot block each other).

        Raises:
            Busy: not had within *seconds*. Nothing was forwarded.
            JournalUnavailable: nobody can tell. Nothing was forwarded.
        """
        deadline = time.monotonic() + (self._lock_seconds if seconds is None else seconds)
        async with contextlib.AsyncExitStack() as stack:
            names = sorted(set(models))
            for model in names:
                await stack.enter_async_context(self._one(registry, model, deadline))
            held = () if self._shared is None else (await self._enter(stack, registry, names, deadline),)
            with holding(*held):
                yield

    async def _enter(
        self, stack: contextlib.AsyncExitStack, registry: str, models: Sequence[str], deadline: float
    ) -> Held:
        assert self._shared is not None
        names = [f"{registry}\n{model}" for model in models]
        try:
            return await stack.enter_async_context(self._shared.hold(names, max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            raise _busy(models[0]) from None
        except LockLost as error:
            message = f"The locks that replicas share cannot be had ({error}); nothing was forwarded. Try again."
            raise JournalUnavailable(message) from None

    @contextlib.asynccontextmanager
    async def _one(self, registry: str, model: str, deadline: float) -> AsyncIterator[None]:
        key = (registry, model)
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    await lock.acquire()
            except TimeoutError:
                raise _busy(model) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = (lock, users - 1)


def _busy(model: str) -> Busy:
    what = f"the model {model!r}" if not model.startswith("\0") else "what this call touches"
    return Busy(f"Another change of {what} is under way; nothing was forwarded. Try again.")
