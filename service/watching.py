"""Looks at what is live for many that wait: one read of the registry a second, and at once after our own changes.

However many wait for one model, they share its reads; where very many models are waited for, each is read less often.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from service.backend import Backend
from service.effects import Effect, MadeLive, Renamed, TakenDown
from service.guard import live_version
from service.promotion.gate import Environment
from service.records import ModelVersion

PACE_SECONDS = 0.8
LOOKS_A_SECOND = 50
"""At most, for all that wait together."""
T = TypeVar("T")
_Place = tuple[str, str]
_Key = tuple[str, str, str, str]


class Watch:
    """Shared looks at what is live, and who waits for a change of it."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._changed: dict[_Place, asyncio.Event] = {}
        self._waiting: dict[_Place, int] = {}
        self._looks: dict[_Key, tuple[float, asyncio.Task[Any]]] = {}

    def apply(self, effects: Iterable[Effect]) -> None:
        """Wake those who wait for what just changed."""
        for effect in effects:
            if isinstance(effect, MadeLive | TakenDown | Renamed):
                self.wake((effect.registry, effect.model))

    def wake(self, place: _Place | None) -> None:
        """Wake those who wait for a change of the model at *place*, or of any."""
        for key in [key for key in self._looks if place in (None, key[:2])]:
            del self._looks[key]
        for found in [found for found in self._changed if place in (None, found)]:
            self._changed.pop(found).set()

    async def wait(self, registry: str, model: str, environment: Environment, seconds: float) -> None:
        """Return after a change of *model*, or when it is time to look again, at most after *seconds*.

        All who wait for one environment return together, so that they share the next look.
        """
        place = (registry, model)
        changed = self._changed.setdefault(place, asyncio.Event())
        self._waiting[place] = self._waiting.get(place, 0) + 1
        now = time.monotonic()
        at, _ = self._looks.get((*place, "live", environment.name), (now, None))
        due = at + max(PACE_SECONDS, len(self._waiting) / LOOKS_A_SECOND)
        try:
            async with asyncio.timeout(min(seconds, due - now)):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting[place] -= 1
            if not self._waiting[place]:
                del self._waiting[place]
                self._changed.pop(place, None)

    async def look(
        self, backend: Backend, model: str, environment: Environment, *, waiting: bool
    ) -> ModelVersion | None:
        """Return what is live as it was at most `PACE_SECONDS` ago, and never before our own last change.

        For those who are not *waiting*, and so look only once, at most half as long ago.

        Raises:
            NotFound: no such model. RegistryUnavailable.
        """
        key = (backend.name, model, "live", environment.name)
        seconds = PACE_SECONDS if waiting else PACE_SECONDS / 2
        return await self._shared(key, seconds, lambda: _live(backend, model, environment))

    async def mlmodel(self, backend: Backend, version: ModelVersion) -> Mapping[str, Any] | None:
        """Return the MLmodel file of *version* as it was at most `PACE_SECONDS` ago; None if it has none.

        Raises:
            RegistryUnavailable.
        """
        key = (backend.name, version.model, "mlmodel", version.binding)
        return await self._shared(key, PACE_SECONDS, lambda: backend.get_mlmodel(version.model, version.version))

    async def _shared(self, key: _Key, seconds: float, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        at, task = self._looks.get(key, (0.0, None))
        if task is None or time.monotonic() - at >= seconds:
            task = asyncio.create_task(read())
            self._looks[key] = (time.monotonic(), task)
            task.add_done_callback(lambda _: self._forget(key))
        found: T = await asyncio.shield(task)
        return found

    def _forget(self, key: _Key) -> None:
        """Keep only looks that somebody may still share."""
        now = time.monotonic()
        for old in [old for old, (at, task) in self._looks.items() if task.done() and now - at > PACE_SECONDS]:
            del self._looks[old]
        found = self._looks.get(key)
        if found is not None and found[1].done() and not found[1].cancelled() and found[1].exception() is not None:
            del self._looks[key]


async def _live(backend: Backend, model: str, environment: Environment) -> ModelVersion | None:
    version = live_version(await backend.get_model(model), environment)
    return None if version is None else await backend.get_version(model, version)
