"""Finds the experiment that a run, a logged model or an artifact belongs to; caches only what cannot change."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.backend import Backend
from service.change import OfArtifact, OfExperiment, OfLoggedModel, OfRun, OfTraces
from service.errors import Conflict, InvalidRequest, NotFound
from service.model import resource

NAME_SECONDS = 30.0
_MAX_ENTRIES = 100_000
K = TypeVar("K")
V = TypeVar("V")


class _Cache(OrderedDict[K, V]):
    """The last used entries, up to a bound."""

    async def find(self, key: K, fetch: Callable[[], Awaitable[V]]) -> V:
        if key in self:
            self.move_to_end(key)
            return self[key]
        value = await fetch()
        self[key] = value
        if len(self) > _MAX_ENTRIES:
            self.popitem(last=False)
        return value


class Ownership:
    """Maps tracking objects to ``experiments/{name}``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with empty caches; *clock* ages experiment names."""
        self._clock = clock
        self._experiment_of: _Cache[tuple[str, str], str] = _Cache()
        self._names: _Cache[tuple[str, str], tuple[float, str]] = _Cache()
        self._generation = 0
        """Counts the changes of names that were seen."""

    async def resources_of(
        self, backend: Backend, where: OfExperiment | OfRun | OfLoggedModel | OfTraces | OfArtifact
    ) -> list[str]:
        """Return the resources of the experiments that own *where*: several only for several traces.

        Raises:
            NotFound: no such object. InvalidRequest: an artifact path that maps to no run or logged model.
        """
        if not isinstance(where, OfTraces):
            return [await self.resource_of(backend, where)]
        owners = await backend.trace_experiments(where.trace_ids)  # a trace can be deleted and made again: not cached
        for trace_id in where.trace_ids:
            if trace_id not in owners:
                message = f"Trace with ID {trace_id[:100]!r} not found."
                raise NotFound(message)
        return [await self.resource_of(backend, OfExperiment(item)) for item in dict.fromkeys(owners.values())]

    async def of_new_traces(self, backend: Backend, where: OfTraces) -> tuple[str, bool]:
        """Return the resource of the experiment where traces are to be made, and whether one of them exists there.

        Raises:
            Conflict: one exists in another experiment. NotFound: no such experiment.
        """
        owners = await backend.trace_experiments(where.trace_ids)
        for trace_id, experiment_id in owners.items():
            if experiment_id != where.experiment_id:  # MLflow would write over it and move it here
                message = f"The trace {trace_id[:100]!r} exists in another experiment."
                raise Conflict(message)
        return await self.resource_of(backend, OfExperiment(where.experiment_id)), bool(owners)

    async def resource_of(self, backend: Backend, where: OfExperiment | OfRun | OfLoggedModel | OfArtifact) -> str:
        """Return the resource of the experiment that owns *where*.

        Raises:
            NotFound: no such object. InvalidRequest: an artifact path that maps to no run or logged model.
        """
        experiment_id = (
            where.experiment_id if isinstance(where, OfExperiment) else await self.experiment_of(backend, where)
        )
        return resource("experiments", await self._name(backend, experiment_id))

    def forget_names(self, registry: str) -> None:
        """Drop the cached experiment names of *registry*, because one was changed through the gateway."""
        self._generation += 1
        for key in [key for key in self._names if key[0] == registry]:
            del self._names[key]

    async def _name(self, backend: Backend, experiment_id: str) -> str:
        key = (backend.name, experiment_id)
        cached = self._names.get(key)
        if cached is not None and cached[0] > self._clock():
            return cached[1]
        generation = self._generation
        name = await backend.experiment_name(experiment_id)
        if generation != self._generation:  # it may have been renamed since it was read: good for now, not to keep
            return name
        self._names.pop(key, None)

        async def fresh() -> tuple[float, str]:
            return self._clock() + NAME_SECONDS, name

        return (await self._names.find(key, fresh))[1]

    async def experiment_of(self, backend: Backend, where: OfRun | OfLoggedModel | OfTraces | OfArtifact) -> str:
        """Return the identifier of the experiment that owns *where* (same errors as `resource_of`)."""
        if isinstance(where, OfTraces):
            owners = await backend.trace_experiments(where.trace_ids)
            if len(set(owners.values())) != 1:
                message = "No such trace."
                raise NotFound(message)
            return next(iter(owners.values()))
        if isinstance(where, OfArtifact):
            experiment_id, inner = parse_artifact_path(where.path)
            owner = await self.experiment_of(backend, inner)
            if owner != experiment_id:
                message = "The artifact path names another experiment than its run or logged model has."
                raise NotFound(message)
            return owner
        if isinstance(where, OfRun):
            run_id = where.run_id

            async def of_run() -> str:
                return (await backend.get_run(run_id)).experiment_id

            return await self._experiment_of.find((backend.name, run_id), of_run)
        model_id = where.model_id

        async def of_model() -> str:
            return (await backend.get_logged_model(model_id)).experiment_id

        return await self._experiment_of.find((backend.name, model_id), of_model)


def parse_artifact_path(path: str) -> tuple[str, OfRun | OfLoggedModel | OfTraces]:
    """Read ``{experiment}/{run}/artifacts/…``, or the same with ``models/{model}`` or ``traces/{trace}`` for the run.

    Raises:
        InvalidRequest: it is none of these.
    """
    parts = path.split("/")
    if all(part not in ("", ".", "..") for part in parts[:-1]) and parts[-1] not in (".", ".."):
        if len(parts) >= 3 and parts[2] == "artifacts" and parts[1] not in ("models", "traces"):
            return parts[0], OfRun(parts[1])
        if len(parts) >= 4 and parts[1] == "traces" and parts[3] == "artifacts":
            return parts[0], OfTraces((parts[2],))
        if len(parts) >= 4 and parts[1] == "models" and parts[3] == "artifacts":
            return parts[0], OfLoggedModel(parts[2])
    message = (
        "The artifact path belongs to no run, logged model or trace; it must be {experiment}/{run}/artifacts/…, "
        "{experiment}/models/{logged model}/artifacts/… or {experiment}/traces/{trace}/artifacts/…."
    )
    raise InvalidRequest(message)
