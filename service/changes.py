"""Runs each change in a task that the application owns, one at a time for each model."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from service.errors import Busy

T = TypeVar("T")


class Changes:
    """From intent to outcome a change must not be cancelled: neither by a client that hangs up nor by a stop."""

    def __init__(self, lock_seconds: float = 10.0) -> None:
        """Wait at most *lock_seconds* for another change of the same model."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._locks: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}
        self._lock_seconds = lock_seconds

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* to its end, even if the caller is cancelled meanwhile."""
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

    @contextlib.asynccontextmanager
    async def lock(self, registry: str, models: tuple[str, ...]) -> AsyncIterator[None]:
        """Hold the locks of *models* (sorted, so that two renames cannot block each other).

        Raises:
            Busy: not had in time. Nothing was forwarded.
        """
        async with contextlib.AsyncExitStack() as held:
            for model in sorted(set(models)):
                await held.enter_async_context(self._one(registry, model))
            yield

    @contextlib.asynccontextmanager
    async def _one(self, registry: str, model: str) -> AsyncIterator[None]:
        key = (registry, model)
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = (lock, users + 1)
        try:
            try:
                async with asyncio.timeout(self._lock_seconds):
                    await lock.acquire()
            except TimeoutError:
                what = f"the model {model!r}" if not model.startswith("\0") else "what this call touches"
                message = f"Another change of {what} is under way; nothing was forwarded. Try again."
                raise Busy(message) from None
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
