"""The port every registry adapter meets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, Protocol

from service.model import Answer, Request
from service.records import Capabilities, LoggedModel, ModelVersion, RegisteredModel, Run


class Backend(Protocol):
    """One registry.

    Every method raises RegistryUnavailable if the registry could not be reached (nothing was changed),
    RegistryRefused with the registry's own status and code if it said no, and a writing one OutcomeUnknown
    if it was sent and no answer came. Reads of one thing raise NotFound if it does not exist, and InvalidRequest
    if the registry stores it in another spelling than the one asked for.
    """

    name: str
    capabilities: Capabilities

    async def forward(self, request: Request, *, writes: bool, trace: str = "") -> Answer:
        """Send one canonical request; *writes* says whether a lost answer leaves the outcome unknown."""

    async def get_model(self, model: str) -> RegisteredModel:
        """Get a registered model with its aliases and stages."""

    def list_models(self) -> AsyncIterator[RegisteredModel]:
        """Yield every registered model with its aliases and stages."""

    async def names_like(self, prefix: str, limit: int) -> list[str] | None:
        """List the names of models that begin with *prefix* (``_`` matches any letter); None if more than *limit*."""

    async def get_version(self, model: str, version: str) -> ModelVersion:
        """Get a model version."""

    async def list_versions(self, model: str) -> list[ModelVersion]:
        """List the versions of a model, newest first, at most 200."""

    async def versions_naming(self, identifier: str) -> list[ModelVersion]:
        """List every version, of any model, whose run is *identifier* or whose source has it in it."""

    async def all_versions(self, source_prefix: str = "") -> list[ModelVersion]:
        """List every version, of any model, whose source begins with *source_prefix*."""

    async def contents(self, experiment_id: str, limit: int) -> list[str] | None:
        """List the identifiers of an experiment's runs and logged models; None if there are more than *limit*."""

    async def set_alias(self, model: str, alias: str, version: str) -> None:
        """Set an alias. Idempotent."""

    async def delete_alias(self, model: str, alias: str) -> None:
        """Delete an alias. Idempotent."""

    async def set_stage(self, model: str, version: str, stage: str) -> None:
        """Move a version to a stage and archive what was there. Idempotent."""

    async def get_run(self, run_id: str) -> Run:
        """Get a run."""

    async def get_logged_model(self, model_id: str) -> LoggedModel:
        """Get a logged model."""

    async def models_of_run(self, run_id: str, experiment_id: str) -> list[LoggedModel]:
        """List the logged models that a run made."""

    async def trace_experiments(self, trace_ids: Collection[str]) -> Mapping[str, str]:
        """Map those of *trace_ids* that exist to the identifiers of their experiments."""

    async def download_uri(self, model: str, version: str) -> str:
        """Return where the registry itself says a version's files are."""

    async def experiment_name(self, experiment_id: str) -> str:
        """Get the name of an experiment."""

    async def experiment_named(self, name: str) -> str:
        """Get the identifier of the experiment that is stored as *name*."""

    async def get_mlmodel(self, model: str, version: str) -> dict[str, Any] | None:
        """Read the version's ``MLmodel`` file; None if it has none or it cannot be understood."""

    async def get_requirements(self, model: str, version: str) -> list[str] | None:
        """Read the lines of the version's ``requirements.txt``, comments left out; None if it has none."""

    async def list_files(self, path: str, limit: int) -> list[tuple[str, int]] | None:
        """List the files below *path* of the artifact root with their sizes; None if there are more than *limit*."""

    def read_file(self, path: str) -> AsyncIterator[bytes]:
        """Stream a file below the artifact root."""

    async def ping(self) -> None:
        """Return if the registry answers."""

    async def close(self) -> None:
        """Close the connections."""
