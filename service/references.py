"""Finds the registered versions behind which something stands that is to be deleted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable

from service.backend import Backend
from service.change import OfArtifact, OfExperiment, OfLoggedModel, OfRun
from service.errors import Conflict, NotFound
from service.guard import live_version
from service.model import Call, Need, resource
from service.ownership import Ownership, parse_artifact_path
from service.promotion.environments import Environments
from service.provenance import Origin, find_origin
from service.records import ModelVersion, RegisteredModel

DELETE_REFERENCED = "run:delete-referenced"
_DELETES = frozenset({"run:delete", "artifact:delete"})
_NAMED = 10
_AT_ONCE = 10
_MAX_CONTENTS = 10_000
IDENTIFIER = re.compile(r"\bm-[0-9a-z]+|\b[0-9a-f]{32}\b")
May = Callable[[str, str], bool]
"""Tells whether the caller may do an action on a resource."""


async def check_deletion(
    backend: Backend,
    call: Call,
    ownership: Ownership,
    may: May,
    passes: May,
    environments: Environments,
    notes: list[str],
) -> None:
    """Refuse to delete what stands behind registered versions, unless `DELETE_REFERENCED` ``passes``.

    *may* says which versions the caller may read; they are said in *notes*. What stands behind a version that is live
    in one of *environments* is not deleted by anybody; what is sealed was refused before.

    Raises:
        Conflict: it stands behind versions; those the caller may read are named. Nothing was forwarded.
        RegistryUnavailable: it cannot be told. Nothing was forwarded.
    """
    if call.name.startswith("restore"):  # asks the same right, and takes nothing away
        return
    for need in call.needs:
        deleted = _deleted(need)
        if deleted is None:
            continue
        try:
            behind = await _behind(backend, deleted)
        except NotFound:
            continue  # the registry will say so
        if not behind:
            continue
        live = await _live_in(backend, behind, environments)
        if live:
            message = f"It stands behind {live}; take that down first. Nothing was forwarded."
            raise Conflict(message)
        named = _named(behind, may) if isinstance(behind, list) else behind
        where = await ownership.resource_of(backend, deleted)
        if not passes(where, DELETE_REFERENCED):
            message = f"It stands behind {named}. That needs {DELETE_REFERENCED} on {where}; nothing was forwarded."
            raise Conflict(message)
        notes.append(f"{DELETE_REFERENCED}: it stands behind {named}")


def _deleted(need: Need) -> OfExperiment | OfRun | OfLoggedModel | OfArtifact | None:
    where = need.resource
    if isinstance(where, OfExperiment):  # deleting its traces is decided on it too
        return where if need.action == "experiment:delete" else None
    return where if isinstance(where, OfRun | OfLoggedModel | OfArtifact) and need.action in _DELETES else None


async def _behind(
    backend: Backend, where: OfExperiment | OfRun | OfLoggedModel | OfArtifact
) -> list[ModelVersion] | str:
    """List the versions behind which *where* stands; a sentence where it cannot be told."""
    if not isinstance(where, OfExperiment):
        return await versions_behind(backend, where)
    inside, versions = await asyncio.gather(
        backend.contents(where.experiment_id, _MAX_CONTENTS), backend.all_versions()
    )
    if inside is None:
        return f"versions that cannot be told (the experiment has more than {_MAX_CONTENTS} runs and logged models)"
    return await _made_of(backend, versions, frozenset(inside))


async def _live_in(backend: Backend, behind: list[ModelVersion] | str, environments: Environments) -> str:
    """Name a version of these that is live somewhere; empty if none is."""
    models: dict[str, RegisteredModel] = {}
    for item in behind if isinstance(behind, list) else ():
        for environment in environments.of(backend.name, item.model):
            if not environment.enforced:
                continue
            if item.model not in models:
                models[item.model] = await backend.get_model(item.model)
            if live_version(models[item.model], environment) == item.version:
                return f"version {item.version} of {item.model!r}, which is live in {environment.name!r}"
    return ""


async def _made_of(backend: Backend, versions: list[ModelVersion], identifiers: frozenset[str]) -> list[ModelVersion]:
    """Keep the versions whose run or source is of *identifiers*, and the copies without a run that lead there."""
    named = [item for item in versions if not _named_by(item).isdisjoint(identifiers)]
    copies = [item for item in versions if _is_copy_without_run(item)]
    return [
        *named,
        *await _keep(backend, copies, lambda _, origin: not origin.identifiers.isdisjoint(identifiers)),
    ]


def _named_by(item: ModelVersion) -> frozenset[str]:
    return frozenset({item.run_id, *IDENTIFIER.findall(item.source)})


def _is_copy_without_run(item: ModelVersion) -> bool:
    """Tell whether only the registry knows what a version was made from."""
    return not item.run_id and item.source.startswith("models:/") and "/" in item.source.removeprefix("models:/")


async def versions_behind(backend: Backend, where: OfRun | OfLoggedModel | OfArtifact) -> list[ModelVersion]:
    """List the registered versions that were made from *where*: by their run, their source, or as a copy of such a one.

    Raises:
        NotFound: there is no such run or logged model.
    """
    owner = parse_artifact_path(where.path)[1] if isinstance(where, OfArtifact) else where
    if not isinstance(owner, OfRun | OfLoggedModel):
        return []  # no version is made from a trace
    identifiers = await _identifiers(backend, owner)
    candidates = await _candidates(backend, identifiers)
    if isinstance(where, OfArtifact):
        path = where.path.rstrip("/")
        return await _keep(backend, candidates, lambda _, origin: any(_overlap(path, file) for file in origin.files))
    first = identifiers[0]
    if isinstance(where, OfRun):
        models = frozenset(identifiers[1:])
        return await _keep(backend, candidates, lambda item, origin: _is_of_run(item, origin, first, models))
    return await _keep(backend, candidates, lambda item, origin: first in item.source or first in origin.model_ids)


def _is_of_run(item: ModelVersion, origin: Origin, run_id: str, models: frozenset[str]) -> bool:
    named = item.run_id == run_id or run_id in item.source or any(model in item.source for model in models)
    return named or origin.run_id == run_id or not models.isdisjoint(origin.model_ids)


def _overlap(path: str, file: str) -> bool:
    """Tell whether deleting *path*, a file or a folder, takes away something of *file*, a file or a folder."""
    file = file.rstrip("/")
    return path == file or path.startswith(f"{file}/") or file.startswith(f"{path}/")


async def _identifiers(backend: Backend, where: OfRun | OfLoggedModel) -> tuple[str, ...]:
    """Return *where* first, then a run's logged models, or a logged model's run."""
    if isinstance(where, OfRun):
        run = await backend.get_run(where.run_id)
        return (run.run_id, *(item.model_id for item in await backend.models_of_run(run.run_id, run.experiment_id)))
    logged = await backend.get_logged_model(where.model_id)
    return (logged.model_id, logged.source_run_id) if logged.source_run_id else (logged.model_id,)


async def _candidates(backend: Backend, identifiers: Iterable[str]) -> list[ModelVersion]:
    """List the versions that could be made of *identifiers*: a few too many, never one too few."""
    copied, *named = await asyncio.gather(backend.all_versions("models:/"), *map(backend.versions_naming, identifiers))
    found = [item for items in named for item in items]
    found += filter(_is_copy_without_run, copied)
    return list({(item.model, item.version): item for item in found}.values())


_NOTHING = Origin(None, (), ())


async def _keep(
    backend: Backend, candidates: Iterable[ModelVersion], keep: Callable[[ModelVersion, Origin], bool]
) -> list[ModelVersion]:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(item: ModelVersion) -> bool:
        if keep(item, _NOTHING):  # its own fields say enough
            return True
        async with slots:
            return keep(item, await find_origin(backend, item) or _NOTHING)

    candidates = list(candidates)
    kept = await asyncio.gather(*map(one, candidates))
    return [item for item, keeps in zip(candidates, kept, strict=True) if keeps]


def _named(found: list[ModelVersion], may: May) -> str:
    """Name the versions the caller may read, up to ten, and count the others."""
    readable = [item for item in found if may(resource("models", item.model, "versions"), "version:read")]
    names = [f"version {item.version} of {item.model!r}" for item in readable[:_NAMED]]
    left = len(found) - len(names)
    if left:
        names.append(f"{left} {'more' if names else 'registered'} version{'s' if left > 1 else ''}")
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
