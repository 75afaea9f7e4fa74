"""The adapter for MLflow servers: typed reads and mark writes over one transport."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar
from urllib.parse import quote

import yaml

from service.errors import InvalidRequest, NotFound, OutcomeUnknown, RegistryRefused, RegistryUnavailable
from service.files import check_yaml
from service.model import Answer, Request
from service.records import Capabilities, LoggedModel, ModelVersion, RegisteredModel, Run

_API = "/api/2.0/mlflow"
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_REGISTRY = "ModelRegistryService"
_TRACKING = "MlflowService"
_MODELS_PAGE = 1_000
_MAX_LINE, _MAX_LINES = 300, 1_000
_MAX_MLMODEL_BYTES = 1 << 20
_MODEL_ID = re.compile(r"m-[A-Za-z0-9]{1,64}")
_IDENTIFIER = re.compile(r"[A-Za-z0-9-]{1,80}")
_PAGE = 10_000
_ABSENT = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})


P = ParamSpec("P")
T = TypeVar("T")


def _reads(method: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn an answer of another shape than MLflow's into "cannot tell"."""

    @functools.wraps(method)
    async def read(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await method(*args, **kwargs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = "The registry answered something that is not MLflow's."
            raise RegistryUnavailable(message) from error

    return read


class Transport(Protocol):
    """Carries requests to an MLflow server."""

    async def send(self, request: Request, *, writes: bool, trace: str = "") -> Answer:
        """Send one RPC."""

    async def get(self, path: str, query: list[tuple[str, str]], limit: int) -> bytes | None:
        """Read a small file outside the RPCs."""

    async def close(self) -> None:
        """Close the connections."""


class MlflowBackend:
    """One MLflow server as a registry (see `service.backend.Backend`)."""

    capabilities = Capabilities(aliases=True, stages=True, tags=True)

    def __init__(self, name: str, transport: Transport) -> None:
        """Name the registry as configured."""
        self.name = name
        self._transport = transport

    async def forward(self, request: Request, *, writes: bool, trace: str = "") -> Answer:
        """Send one canonical request."""
        return await self._transport.send(request, writes=writes, trace=trace)

    @_reads
    async def get_model(self, model: str) -> RegisteredModel:
        """Get a registered model with its aliases and stages."""
        native = (await self._get(_REGISTRY, "getRegisteredModel", "registered-models/get", name=model))[
            "registered_model"
        ]
        _check_spelling("model", model, native["name"])
        return _model(native)

    async def list_models(self) -> AsyncIterator[RegisteredModel]:
        """Yield every registered model, page by page."""
        token = ""
        while True:
            page, token = await self._page_of_models(token)
            for model in page:
                yield model
            if not token:
                return

    @_reads
    async def _page_of_models(self, token: str) -> tuple[list[RegisteredModel], str]:
        more = {"page_token": token} if token else {}
        answer = await self._get(
            _REGISTRY, "searchRegisteredModels", "registered-models/search", max_results=_MODELS_PAGE, **more
        )
        return [_model(item) for item in answer.get("registered_models", ())], str(answer.get("next_page_token", ""))

    @_reads
    async def names_like(self, prefix: str, limit: int) -> list[str] | None:
        """List the names of models that begin with *prefix*."""
        found = await self._get(
            _REGISTRY,
            "searchRegisteredModels",
            "registered-models/search",
            filter=f"name LIKE '{prefix}%'",
            max_results=limit + 1,
        )
        names = [str(item["name"]) for item in found.get("registered_models", ())]
        return names if len(names) <= limit else None

    @_reads
    async def get_version(self, model: str, version: str) -> ModelVersion:
        """Get a model version."""
        answer = await self._get(_REGISTRY, "getModelVersion", "model-versions/get", name=model, version=version)
        _check_spelling("model", model, answer["model_version"]["name"])
        return _version(answer["model_version"])

    @_reads
    async def list_versions(self, model: str) -> list[ModelVersion]:
        """List the versions of a model, newest first, at most 200."""
        quote = '"' if "'" in model else "'"
        if quote in model:
            return []
        answer = await self._get(
            _REGISTRY,
            "searchModelVersions",
            "model-versions/search",
            filter=f"name = {quote}{model}{quote}",
            max_results=200,
            order_by=["version_number DESC"],
        )
        return [_version(item) for item in answer.get("model_versions", ()) if item["name"] == model]

    async def versions_naming(self, identifier: str) -> list[ModelVersion]:
        """List every version whose run is *identifier* or whose source has it in it."""
        if not _IDENTIFIER.fullmatch(identifier):  # it stands in a filter
            return []
        by_run, by_source = await asyncio.gather(
            self._search_versions(f"run_id = '{identifier}'"),
            self._search_versions(f"source_path LIKE '%{identifier}%'"),
        )
        return list({(item.model, item.version): item for item in (*by_run, *by_source)}.values())

    async def all_versions(self, source_prefix: str = "") -> list[ModelVersion]:
        """List every version whose source begins with *source_prefix*."""
        return await self._search_versions(f"source_path LIKE '{source_prefix}%'" if source_prefix else "")

    async def contents(self, experiment_id: str, limit: int) -> list[str] | None:
        """List the identifiers of an experiment's runs and logged models; None if there are more than *limit*."""
        found: list[str] = []
        for rpc, path, field, identifier, more in (
            ("searchRuns", "runs/search", "runs", "run_id", {"run_view_type": "ALL", "max_results": 1000}),
            ("searchLoggedModels", "logged-models/search", "models", "model_id", {"max_results": 100}),
        ):
            message: dict[str, Any] = {"experiment_ids": [experiment_id], **more}
            while True:
                answer = await self._get(_TRACKING, rpc, path, method="POST", **message)
                found += [item["info"][identifier] for item in answer.get(field, ())]
                if len(found) > limit:
                    return None
                if not answer.get("next_page_token"):
                    break
                message["page_token"] = answer["next_page_token"]
        return found

    async def _search_versions(self, text: str) -> list[ModelVersion]:
        found: list[ModelVersion] = []
        more: dict[str, str] = {}
        while True:
            answer = await self._get(
                _REGISTRY, "searchModelVersions", "model-versions/search", filter=text, max_results=_PAGE, **more
            )
            found += [_version(item) for item in answer.get("model_versions", ())]
            if not answer.get("next_page_token"):
                return found
            more = {"page_token": str(answer["next_page_token"])}

    async def set_alias(self, model: str, alias: str, version: str) -> None:
        """Set an alias."""
        await self._write(
            "setRegisteredModelAlias", "POST", "registered-models/alias", name=model, alias=alias, version=version
        )

    async def delete_alias(self, model: str, alias: str) -> None:
        """Delete an alias."""
        await self._write("deleteRegisteredModelAlias", "DELETE", "registered-models/alias", name=model, alias=alias)

    async def set_stage(self, model: str, version: str, stage: str) -> None:
        """Move a version to a stage and archive what was there."""
        await self._write(
            "transitionModelVersionStage",
            "POST",
            "model-versions/transition-stage",
            name=model,
            version=version,
            stage=stage,
            archive_existing_versions=stage in ("Staging", "Production"),
        )

    @_reads
    async def get_run(self, run_id: str) -> Run:
        """Get a run."""
        native = (await self._get(_TRACKING, "getRun", "runs/get", run_id=run_id))["run"]
        info, data = native["info"], native.get("data", {})
        _check_spelling("run", run_id, info["run_id"])
        inputs = native.get("inputs", {}).get("dataset_inputs", ())
        return Run(
            run_id=info["run_id"],
            experiment_id=str(info["experiment_id"]),
            status=str(info.get("status", "")),
            artifact_uri=info.get("artifact_uri", ""),
            metrics={item["key"]: float(item["value"]) for item in data.get("metrics", ())},
            params=_pairs(data.get("params")),
            tags=_pairs(data.get("tags")),
            datasets=tuple(
                {key: str(item["dataset"].get(key, "")) for key in ("name", "digest", "source_type", "source")}
                for item in inputs
            ),
        )

    @_reads
    async def get_logged_model(self, model_id: str) -> LoggedModel:
        """Get a logged model."""
        native = (
            await self._send(
                Request(f"{_TRACKING}.getLoggedModel", "GET", f"{_API}/logged-models/{_checked(model_id)}"),
                writes=False,
            )
        )["model"]["info"]
        _check_spelling("logged model", model_id, native["model_id"])
        return _logged_model(native)

    @_reads
    async def models_of_run(self, run_id: str, experiment_id: str) -> list[LoggedModel]:
        """List the logged models that a run made."""
        if not run_id.isalnum():
            return []
        found: list[LoggedModel] = []
        message = {"experiment_ids": [experiment_id], "filter": f"source_run_id = '{run_id}'", "max_results": 100}
        while True:
            request = Request(f"{_TRACKING}.searchLoggedModels", "POST", f"{_API}/logged-models/search", message)
            answer = await self._send(request, writes=False)
            found += [_logged_model(item["info"]) for item in answer.get("models", ())]
            if not answer.get("next_page_token"):
                return found
            message = {**message, "page_token": str(answer["next_page_token"])}

    @_reads
    async def trace_experiments(self, trace_ids: Collection[str]) -> Mapping[str, str]:
        """Map those of *trace_ids* that exist to the identifiers of their experiments."""
        path = "/api/3.0/mlflow/traces/batchGetInfos"
        request = Request(f"{_TRACKING}.batchGetTraceInfos", "POST", path, {"trace_ids": sorted(trace_ids)})
        infos = (await self._send(request, writes=False)).get("trace_infos", ())
        found = {
            str(info["trace_id"]): str(info["trace_location"]["mlflow_experiment"]["experiment_id"]) for info in infos
        }
        for trace_id in set(found) - set(trace_ids):
            _check_spelling("trace", "one of them", trace_id)
        return found

    @_reads
    async def download_uri(self, model: str, version: str) -> str:
        """Return where the registry itself says a version's files are."""
        answer = await self._get(
            _REGISTRY, "getModelVersionDownloadUri", "model-versions/get-download-uri", name=model, version=version
        )
        return str(answer.get("artifact_uri", ""))

    @_reads
    async def experiment_name(self, experiment_id: str) -> str:
        """Get the name of an experiment."""
        answer = await self._get(_TRACKING, "getExperiment", "experiments/get", experiment_id=experiment_id)
        _check_spelling("experiment", experiment_id, str(answer["experiment"]["experiment_id"]))
        return str(answer["experiment"]["name"])

    @_reads
    async def experiment_named(self, name: str) -> str:
        """Get the identifier of the experiment that is stored as *name*."""
        answer = await self._get(_TRACKING, "getExperimentByName", "experiments/get-by-name", experiment_name=name)
        _check_spelling("experiment", name, answer["experiment"]["name"])
        return str(answer["experiment"]["experiment_id"])

    async def get_mlmodel(self, model: str, version: str) -> dict[str, Any] | None:
        """Read the version's ``MLmodel`` file."""
        raw = await self._file(model, version, "MLmodel")
        return await asyncio.to_thread(_parse_mlmodel, raw) if raw else None

    async def get_requirements(self, model: str, version: str) -> list[str] | None:
        """Read the version's ``requirements.txt``."""
        raw = await self._file(model, version, "requirements.txt")
        if raw is None:
            return None
        lines = (line.partition("#")[0].strip() for line in raw.decode("utf-8", "replace").splitlines())
        return [line[:_MAX_LINE] for line in lines if line][:_MAX_LINES]

    async def _file(self, model: str, version: str, path: str) -> bytes | None:
        query = [("name", model), ("version", version), ("path", path)]
        return await self._transport.get("/model-versions/get-artifact", query, _MAX_MLMODEL_BYTES)

    @_reads
    async def list_files(self, path: str, limit: int) -> list[tuple[str, int]] | None:
        """List the files below *path* with their sizes; None if there are more than *limit*."""
        found: list[tuple[str, int]] = []
        folders = [path.rstrip("/")]
        while folders:
            folder = folders.pop()
            request = Request("MlflowArtifactsService.listArtifacts", "GET", f"{_ARTIFACTS}", {"path": folder})
            for item in (await self._send(request, writes=False)).get("files", ()):
                inner = f"{folder}/{item['path']}"
                if item.get("is_dir"):
                    folders.append(inner)
                else:
                    found.append((inner, int(item.get("file_size", 0))))
            if len(found) + len(folders) > limit:
                return None
        return found

    async def read_file(self, path: str) -> AsyncIterator[bytes]:
        """Stream a file below the artifact root."""
        path = f"{_ARTIFACTS}/{quote(path, safe='/')}"
        request = Request("MlflowArtifactsService.downloadArtifact", "GET", path, streams=True, own=True)
        try:
            answer = await self._transport.send(request, writes=False)
        except RegistryRefused as error:
            if error.status == 404:
                raise NotFound(error.detail) from error
            raise
        if answer.stream is not None:
            async with contextlib.aclosing(answer.stream):
                async for part in answer.stream:
                    yield part

    async def ping(self) -> None:
        """Return if the registry answers a real query."""
        await self._get(_TRACKING, "searchExperiments", "experiments/search", method="POST", max_results=1)

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def _get(self, service: str, rpc: str, path: str, *, method: str = "GET", **message: Any) -> dict[str, Any]:
        return await self._send(Request(f"{service}.{rpc}", method, f"{_API}/{path}", message), writes=False)

    async def _write(self, rpc: str, method: str, path: str, **message: Any) -> None:
        await self._send(Request(f"{_REGISTRY}.{rpc}", method, f"{_API}/{path}", message), writes=True)

    async def _send(self, request: Request, *, writes: bool) -> dict[str, Any]:
        try:
            return (await self._transport.send(request, writes=writes)).document()
        except ValueError as error:
            message = f"The registry {self.name!r} answered something that is not MLflow's."
            raise (OutcomeUnknown if writes else RegistryUnavailable)(message) from error
        except RegistryRefused as error:
            if error.error_code in _ABSENT and not writes:
                raise NotFound(error.detail) from error
            raise


def _check_spelling(what: str, asked: str, stored: str) -> None:
    """Refuse a name that the registry answers to and does not store: what is judged must be what is meant."""
    if asked != stored:
        message = f"The registry stores the {what} {asked[:100]!r} as {stored[:100]!r}; name it so."
        raise InvalidRequest(message)


def _checked(model_id: str) -> str:
    if not _MODEL_ID.fullmatch(model_id):  # it stands in a path
        message = f"The logged model {model_id[:60]!r} is not m- and letters or digits."
        raise InvalidRequest(message)
    return model_id


def _parse_mlmodel(raw: bytes) -> dict[str, Any] | None:
    try:
        check_yaml(raw)
        document = yaml.load(raw, Loader=yaml.CSafeLoader)  # CSafeLoader is the safe one, in C
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _logged_model(native: Mapping[str, Any]) -> LoggedModel:
    return LoggedModel(
        model_id=native["model_id"],
        experiment_id=str(native["experiment_id"]),
        artifact_uri=native.get("artifact_uri", ""),
        source_run_id=native.get("source_run_id", ""),
    )


def _model(native: Mapping[str, Any]) -> RegisteredModel:
    stages: dict[str, tuple[str, ...]] = {}
    for version in native.get("latest_versions", ()):
        stage = version.get("current_stage", "None")
        if stage != "None":
            stages[stage] = (*stages.get(stage, ()), str(version["version"]))
    return RegisteredModel(
        name=native["name"],
        aliases={item["alias"]: str(item["version"]) for item in native.get("aliases", ())},
        stages=stages,
        created_ms=int(native.get("creation_timestamp", 0)),
        tags=_pairs(native.get("tags")),
        description=native.get("description", ""),
        native=native,
    )


def _version(native: Mapping[str, Any]) -> ModelVersion:
    return ModelVersion(
        model=native["name"],
        version=str(native["version"]),
        status=native.get("status", ""),
        stage=native.get("current_stage", "None"),
        source=native.get("source", ""),
        run_id=native.get("run_id", ""),
        aliases=tuple(native.get("aliases", ())),
        tags=_pairs(native.get("tags")),
        created_ms=int(native.get("creation_timestamp", 0)),
        description=native.get("description", ""),
        native=native,
    )


def _pairs(items: Any) -> dict[str, str]:
    return {item["key"]: item.get("value", "") for item in items or ()}
