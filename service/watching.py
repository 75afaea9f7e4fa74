"""Looks at what is live for many that wait: one read of the registry a second, and at once after our own changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from service.backend import Backend
from service.effects import Effect, MadeLive, Renamed, TakenDown
from service.guard import live_version
from service.promotion.gate import Environment
from service.records import ModelVersion

PACE_SECONDS = 0.8
_Place = tuple[str, str]


class Watch:
    """Shared looks at what is live, and who waits for a change of it."""

    def __init__(self) -> None:
        """Nobody waits yet."""
        self._changed: dict[_Place, asyncio.Event] = {}
        self._waiting: dict[_Place, int] = {}
        self._looks: dict[tuple[str, str, str], tuple[float, asyncio.Task[ModelVersion | None]]] = {}

    def apply(self, effects: Iterable[Effect]) -> None:
        """Wake those who wait for what just changed."""
        for effect in effects:
            if isinstance(effect, MadeLive | TakenDown | Renamed):
                place = (effect.registry, effect.model)
                for key in [key for key in self._looks if key[:2] == place]:
                    del self._looks[key]
                changed = self._changed.pop(place, None)
                if changed is not None:
                    changed.set()

    async def wait(self, registry: str, model: str, seconds: float) -> None:
        """Return after a change of *model*, or when it is time to look again, at most after *seconds*."""
        place = (registry, model)
        changed = self._changed.setdefault(place, asyncio.Event())
        self._waiting[place] = self._waiting.get(place, 0) + 1
        try:
            async with asyncio.timeout(min(seconds, PACE_SECONDS)):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting[place] -= 1
            if not self._waiting[place]:
                del self._waiting[place]
                self._changed.pop(place, None)

    async def look(self, backend: Backend, model: str, environment: Environment) -> ModelVersion | None:
        """Return what is live as it was at most `PACE_SECONDS` ago, and never before our own last change.

        Raises:
            NotFound: no such model. RegistryUnavailable.
        """
        key = (backend.name, model, environment.name)
        at, task = self._looks.get(key, (0.0, None))
        if task is None or time.monotonic() - at >= PACE_SECONDS / 2:
            task = asyncio.create_task(_live(backend, model, environment))
            self._looks[key] = (time.monotonic(), task)
            task.add_done_callback(lambda _: self._forget(key))
        return await asyncio.shield(task)

    def _forget(self, key: tuple[str, str, str]) -> None:
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
