"""A thread of a sink's own: what hangs there takes no thread from requests, and does not hold up the end."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop]


class Beside:
    """Runs functions one after the other, beside the event loop, in a thread that ends with the process."""

    def __init__(self, name: str) -> None:
        """Name the thread; it is made when it is needed."""
        self._name = name
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Run *work* there. Who gives up waiting does not stop it."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop, name=self._name, daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put((work, done, loop))
        return await done

    def _loop(self) -> None:
        while True:
            work, done, loop = self._jobs.get()
            if done.cancelled():  # nobody waits any more
                continue
            try:
                result, error = work(), None
            except Exception as problem:  # noqa: BLE001  # it is the caller's
                result, error = None, problem
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_end, done, result, error)


def _end(done: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if done.done():
        return
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)
