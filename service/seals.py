"""Seals what stands behind a live version: its run, its logged model and its files cannot be rewritten.

Kept in memory, so that telemetry never waits for the journal; read from the journal once at the start.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from service.backend import Backend
from service.change import OfArtifact, OfExperiment, OfLoggedModel, OfRun, OfTraces
from service.errors import Busy, Conflict, GatewayError, OutcomeUnknown
from service.model import Call
from service.ownership import Ownership, parse_artifact_path
from service.promotion.gate import Environment
from service.records import LivePeriod

_WRITES = frozenset({"run:update", "run:delete", "artifact:write", "artifact:delete"})
_UNJUDGED = frozenset({"updateRun"})
"""A pipeline that promotes inside its run must be able to end the run."""


@dataclass(frozen=True, slots=True)
class Seal:
    """A live version of an environment with rules, and what stands behind it."""

    registry: str
    model: str
    environment: str
    version: str
    behind: frozenset[str]
    """Identifiers of runs and logged models."""
    judged: bool = False
    """Not live yet: it is being judged, and a write has to wait."""


class Seals:
    """The seals of this moment."""

    def __init__(self, ownership: Ownership) -> None:
        """Find the experiments of sealed runs through *ownership*."""
        self._ownership = ownership
        self._seals: dict[tuple[str, str, str], Seal] = {}
        self._writing: Counter[tuple[str, str]] = Counter()

    def load(self, live: Iterable[tuple[str, str, LivePeriod]], guarded: Mapping[str, bool]) -> None:
        """Begin with what is *live* by record; *guarded* says which environments have rules."""
        for registry, model, period in live:
            if guarded.get(period.environment):
                self.add(registry, model, period)

    def add(self, registry: str, model: str, period: LivePeriod) -> None:
        """Seal what stands behind a version that became live; what was live there before is free."""
        seal = Seal(registry, model, period.environment, period.version, frozenset(period.behind))
        self._seals[registry, model, period.environment] = seal

    @contextlib.contextmanager
    def provisional(
        self, registry: str, model: str, environment: Environment, version: str, behind: frozenset[str]
    ) -> Iterator[None]:
        """Seal what is being judged, so that what is judged is what becomes live; kept if the outcome is unknown.

        Raises:
            Busy: something behind it is being written just now. Nothing was forwarded; try again.
        """
        if not environment.seals:
            yield
            return
        if any(self._writing.get((registry, identifier)) for identifier in behind):
            message = "Something behind the version is being written just now; nothing was changed. Try again."
            raise Busy(message)
        key = (registry, model, f"{environment.name} (being judged)")
        self._seals[key] = Seal(registry, model, environment.name, version, behind, judged=True)
        try:
            yield
        except OutcomeUnknown:
            raise  # it may be live: the reconciler's proof replaces the seal
        except BaseException:
            self._seals.pop(key, None)
            raise
        else:
            self._seals.pop(key, None)

    @contextlib.contextmanager
    def writing(self, backend: Backend, call: Call) -> Iterator[None]:
        """Count a write while it is under way, so that nothing is judged that is still changing."""
        keys = [(backend.name, identifier) for identifier in written(call)]
        for key in keys:
            self._writing[key] += 1
        try:
            yield
        finally:
            for key in keys:
                self._writing[key] -= 1
                if not self._writing[key]:
                    del self._writing[key]

    def settle(self, registry: str, model: str) -> None:
        """Drop the provisional seals of *model*: what became of them is proved."""
        for key in [key for key, seal in self._seals.items() if seal.judged and key[:2] == (registry, model)]:
            del self._seals[key]

    def drop(self, registry: str, model: str, environments: Iterable[str]) -> None:
        """Break the seals of *environments* (none: of the whole model)."""
        names = set(environments)
        for key in [key for key in self._seals if key[:2] == (registry, model) and (not names or key[2] in names)]:
            del self._seals[key]

    def rename(self, registry: str, model: str, new_name: str) -> None:
        """Let the seals follow a model."""
        for key in [key for key in self._seals if key[:2] == (registry, model)]:
            seal = self._seals.pop(key)
            self._seals[registry, new_name, key[2]] = Seal(
                registry, new_name, seal.environment, seal.version, seal.behind
            )

    async def check(self, backend: Backend, call: Call) -> None:
        """Refuse a write to what is sealed.

        Raises:
            Conflict: it stands behind a live version, which is named. Nothing was forwarded.
            Busy: it stands behind a version that is being judged. Nothing was forwarded; try again.
        """
        if not self._seals or call.name in _UNJUDGED:
            return
        for identifier in written(call):
            self._refuse(backend.name, identifier)
        for need in call.needs:
            if need.action == "experiment:delete" and isinstance(need.resource, OfExperiment):
                await self._refuse_experiment(backend, need.resource.experiment_id)

    def _refuse(self, registry: str, identifier: str) -> None:
        for seal in self._seals.values():
            if seal.registry != registry or identifier not in seal.behind:
                continue
            what = f"It stands behind version {seal.version} of {seal.model!r}, which is"
            if seal.judged:
                message = f"{what} being judged for {seal.environment!r}; nothing was forwarded. Try again."
                raise Busy(message)
            message = f"{what} live in {seal.environment!r}, and is sealed."
            raise Conflict(message)

    async def _refuse_experiment(self, backend: Backend, experiment_id: str) -> None:
        for seal in [seal for seal in self._seals.values() if seal.registry == backend.name]:
            for identifier in seal.behind:
                where = OfLoggedModel(identifier) if identifier.startswith("m-") else OfRun(identifier)
                try:
                    owner = await self._ownership.experiment_of(backend, where)
                except GatewayError:
                    continue
                if owner == experiment_id:
                    self._refuse(backend.name, identifier)


def written(call: Call) -> list[str]:
    """List the runs and logged models that a call writes to."""
    return [
        _identifier(need.resource)
        for need in call.needs
        if need.action in _WRITES and isinstance(need.resource, OfRun | OfLoggedModel | OfArtifact)
    ]


def _identifier(where: OfRun | OfLoggedModel | OfArtifact) -> str:
    found = parse_artifact_path(where.path)[1] if isinstance(where, OfArtifact) else where
    if isinstance(found, OfTraces):
        return found.trace_ids[0]
    return found.run_id if isinstance(found, OfRun) else found.model_id
