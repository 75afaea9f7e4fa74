"""Says which environments a change touches: the gate belongs to the target, not to the endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.backend import Backend
from service.change import (
    AliasDelete,
    AliasSet,
    Change,
    ModelDelete,
    ModelRename,
    Promotion,
    Retirement,
    StageSet,
    VersionDelete,
)
from service.errors import Conflict, InvalidRequest, NotFound
from service.promotion.environments import Environments
from service.promotion.gate import Environment, Mark
from service.records import ModelVersion, RegisteredModel


@dataclass(frozen=True, slots=True)
class Retired:
    """A change takes a mark of *environment* away; *ends* if nothing is live there afterwards."""

    environment: Environment
    ends: bool

    @property
    def enforced(self) -> bool:
        """Whether the right to retire is asked; elsewhere it is only recorded."""
        return self.environment.enforced


@dataclass(frozen=True, slots=True)
class Carried:
    """A rename brings *version*'s marks into *environment* of the new name."""

    environment: Environment
    version: str
    lives: bool
    """It is live there; otherwise it has lesser marks only, which are judged all the same."""


class Guard:
    """Finds promotions and retirements in changes."""

    def __init__(self, environments: Environments) -> None:
        """Guard the marks of *environments*."""
        self.environments = environments

    def promotes(self, registry: str, change: Change | None) -> Environment | None:
        """Return the environment a change makes a version live in, whatever endpoint it came by.

        One that is not enforced is only found for our own route; see `observes` for the others.

        Raises:
            NotFound: our own route names an environment the model does not have.
            InvalidRequest: an alias that differs from a mark in case only, or a guarded stage without archiving.
        """
        if isinstance(change, Promotion | Retirement):
            found = self.environments.get(registry, change.model, change.environment)
            if found is None:
                known = ", ".join(item.name for item in self.environments.of(registry, change.model)) or "none"
                message = f"The model has no environment {change.environment!r}; it has: {known}."
                raise NotFound(message)
            return found
        if isinstance(change, AliasSet):
            self._refuse_case_variant(registry, change.model, change.alias)
        found = self._target(registry, change)
        if found is None or not found.enforced:
            return None
        if isinstance(change, StageSet) and not change.archive:
            message = (
                f"The stage {change.stage} marks the environment {found.name!r}, which has one live version: "
                "send archive_existing_versions."
            )
            raise InvalidRequest(message)
        return found

    def observes(self, registry: str, change: Change | None) -> Environment | None:
        """Return the environment that a change makes a version live in where that is recorded and not enforced."""
        found = self._target(registry, change)
        return found if found is not None and not found.enforced else None

    def _target(self, registry: str, change: Change | None) -> Environment | None:
        if isinstance(change, AliasSet):
            return self._marked(registry, change.model, "alias", change.alias)
        if isinstance(change, StageSet):
            return self._marked(registry, change.model, "stage", change.stage)
        return None

    async def retires(self, backend: Backend, change: Change | None) -> list[Retired]:
        """List the environments whose mark a change takes away. Asks the registry what is marked now."""
        registry = backend.name
        if isinstance(change, AliasDelete):
            self._refuse_case_variant(registry, change.model, change.alias)
            found = self._marked(registry, change.model, "alias", change.alias)
            return [Retired(found, ends=found.marks[0].value == change.alias)] if found else []
        if not isinstance(change, StageSet | VersionDelete | ModelDelete | ModelRename):
            return []
        model = await backend.get_model(change.model)
        if isinstance(change, ModelDelete | ModelRename):
            return [
                Retired(item, ends=True)
                for item in self._any(registry, change.model, tuple(model.aliases), tuple(model.stages))
            ]
        version = await backend.get_version(change.model, change.version)
        if isinstance(change, StageSet):
            found = self._marked(registry, change.model, "stage", version.stage)
            if found is None or version.stage == change.stage:
                return []
            ends = found.marks[0].kind == "stage" and live_version(model, found) == change.version
            return [Retired(found, ends)]
        return [
            Retired(item, ends=live_version(model, item) == change.version)
            for item in self._any(registry, change.model, version.aliases, (version.stage,))
        ]

    def could_retire(self, registry: str, change: Change | None) -> list[Environment]:
        """List the environments of which *change* took a mark away, or may have: what was marked then is not known."""
        if isinstance(change, AliasDelete):
            found = self._marked(registry, change.model, "alias", change.alias)
            return [found] if found is not None and found.enforced else []
        if not isinstance(change, StageSet):
            return []
        known = self.environments.of(registry, change.model)
        return [item for item in known if item.enforced and any(mark.kind == "stage" for mark in item.marks)]

    async def check_uncovered(self, backend: Backend, change: Change | None, retired: Iterable[Retired]) -> None:
        """Refuse to take the newest version out of a guarded stage where older ones are: one would be live unjudged.

        Raises:
            Conflict: there are older ones. Nothing was forwarded.
        """
        if not isinstance(change, StageSet | VersionDelete):
            return
        version = await backend.get_version(change.model, change.version)
        if any(item.enforced and item.environment.marked_by("stage", version.stage) for item in retired):
            await check_older(backend, version)

    async def carries(self, backend: Backend, change: Change | None) -> list[Carried]:
        """List every version that a rename brings a mark of under the new name."""
        if not isinstance(change, ModelRename):
            return []
        model = await backend.get_model(change.model)
        carried = []
        for environment in self.environments.of(backend.name, change.new_name):
            live = live_version(model, environment)
            marked = dict.fromkeys(version for mark in environment.marks for version in marked_versions(model, mark))
            carried += [Carried(environment, version, version == live) for version in marked]
        return carried

    def _marked(self, registry: str, model: str, kind: str, value: str) -> Environment | None:
        return next((item for item in self.environments.of(registry, model) if item.marked_by(kind, value)), None)

    def _any(self, registry: str, model: str, aliases: tuple[str, ...], stages: tuple[str, ...]) -> list[Environment]:
        return [
            environment
            for environment in self.environments.of(registry, model)
            if any(environment.marked_by("alias", alias) for alias in aliases)
            or any(environment.marked_by("stage", stage) for stage in stages)
        ]

    def _refuse_case_variant(self, registry: str, model: str, alias: str) -> None:
        found = self.case_variant(registry, model, alias)
        if found is not None and found[0].enforced:
            message = f"The alias {alias!r} differs only in case from {found[1].value!r}, which marks an environment."
            raise InvalidRequest(message)

    def case_variant(self, registry: str, model: str, alias: str) -> tuple[Environment, Mark] | None:
        """Return the mark that *alias* differs from in case only; an enforced environment's before others."""
        found = [
            (environment, mark)
            for environment in self.environments.of(registry, model)
            for mark in environment.marks
            if mark.kind == "alias" and mark.value != alias and mark.value.lower() == alias.lower()
        ]
        return min(found, key=lambda item: not item[0].enforced, default=None)


def marked_versions(model: RegisteredModel, mark: Mark) -> tuple[str, ...]:
    """Return the versions that *mark* is on (several only for a stage)."""
    if mark.kind == "alias":
        return (model.aliases[mark.value],) if mark.value in model.aliases else ()
    return model.stages.get(mark.value, ())


async def check_older(backend: Backend, version: ModelVersion) -> None:
    """Refuse to take *version* out of its stage if it is the newest there and others are behind it.

    Raises:
        Conflict: one of the others would become live unjudged. Nothing was forwarded.
    """
    if live_of_stage(await backend.get_model(version.model), version.stage) != version.version:
        return
    others = [
        other.version
        for other in await backend.list_versions(version.model)
        if other.stage == version.stage and other.version != version.version
    ]
    if others:
        message = (
            f"Also in the stage {version.stage}, which marks an environment: version {', '.join(others[:10])}. "
            "One of them would become live unjudged; archive them first."
        )
        raise Conflict(message)


def live_of_stage(model: RegisteredModel, stage: str) -> str | None:
    """Return the newest version in *stage*."""
    found = model.stages.get(stage, ())
    return found[-1] if found else None


def live_version(model: RegisteredModel, environment: Environment) -> str | None:
    """Return what is live: the version that the environment's first mark is on."""
    marked = marked_versions(model, environment.marks[0])
    return marked[-1] if marked else None
