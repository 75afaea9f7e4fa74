"""What a write changes, and where a tracking object belongs. The gate looks at these and at nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelCreate:
    """A registered model is created."""

    model: str


@dataclass(frozen=True, slots=True)
class ModelUpdate:
    """A registered model's description changes."""

    model: str
    description: str


@dataclass(frozen=True, slots=True)
class ModelRename:
    """A registered model gets another name; its versions, aliases and stages go along."""

    model: str
    new_name: str


@dataclass(frozen=True, slots=True)
class ModelDelete:
    """A registered model is deleted with all its versions."""

    model: str


@dataclass(frozen=True, slots=True)
class VersionCreate:
    """A version is registered; the registry gives its number."""

    model: str
    source: str
    run_id: str


@dataclass(frozen=True, slots=True)
class VersionUpdate:
    """A version's description changes."""

    model: str
    version: str
    description: str


@dataclass(frozen=True, slots=True)
class VersionDelete:
    """A version is deleted."""

    model: str
    version: str


@dataclass(frozen=True, slots=True)
class AliasSet:
    """An alias is set to a version."""

    model: str
    alias: str
    version: str


@dataclass(frozen=True, slots=True)
class AliasDelete:
    """An alias is taken away."""

    model: str
    alias: str


@dataclass(frozen=True, slots=True)
class StageSet:
    """A version moves to one of MLflow's stages."""

    model: str
    version: str
    stage: str
    archive: bool


@dataclass(frozen=True, slots=True)
class TagSet:
    """A tag of a model (``version`` empty) or of a version is set."""

    model: str
    version: str
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class TagDelete:
    """A tag of a model (``version`` empty) or of a version is taken away."""

    model: str
    version: str
    key: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """A version is made live in an environment by the gateway's own route."""

    model: str
    environment: str
    version: str
    reason: str = ""
    dry_run: bool = False
    if_match: str | None = None
    purpose: str = "promotion"
    """``promotion``, ``rollback`` (``version`` may be empty: what was live before) or ``emergency``."""
    ticket: str = ""
    record: Mapping[str, str] = field(default_factory=dict)
    """The change record it belongs to: ``id``, ``window``, ``fallback``."""


@dataclass(frozen=True, slots=True)
class Retirement:
    """What is live in an environment is taken down by the gateway's own route."""

    model: str
    environment: str
    reason: str = ""


Change = (
    ModelCreate
    | ModelUpdate
    | ModelRename
    | ModelDelete
    | VersionCreate
    | VersionUpdate
    | VersionDelete
    | AliasSet
    | AliasDelete
    | StageSet
    | TagSet
    | TagDelete
    | Promotion
    | Retirement
)


@dataclass(frozen=True, slots=True)
class OfExperiment:
    """The experiment with this identifier."""

    experiment_id: str


@dataclass(frozen=True, slots=True)
class OfRun:
    """The experiment of this run."""

    run_id: str


@dataclass(frozen=True, slots=True)
class OfLoggedModel:
    """The experiment of this logged model."""

    model_id: str


@dataclass(frozen=True, slots=True)
class OfTraces:
    """The experiments of these traces."""

    trace_ids: tuple[str, ...]
    experiment_id: str = ""
    """Where those that do not exist yet will be; empty where all must exist."""


@dataclass(frozen=True, slots=True)
class OfArtifact:
    """The experiment that owns this path below the registry's artifact root."""

    path: str


@dataclass(frozen=True, slots=True)
class OutsideSource:
    """A version source outside the registry, which only the registry's list of prefixes can allow."""

    uri: str


Located = OfExperiment | OfRun | OfLoggedModel | OfTraces | OfArtifact | OutsideSource
