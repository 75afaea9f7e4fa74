"""An MLflow registry in memory, for tests and for trying policies: speaks the same RPCs, keeps nothing.

It is held to the same contract suite as a real server. It does not prove: MLflow's SQL, its filter language
beyond a few ``=`` and ``LIKE``, artifact storage, or anything about HTTP.
"""

from __future__ import annotations

import itertools
import json
import re
import time
import uuid
from typing import Any
from urllib.parse import quote, unquote

from service.errors import RegistryRefused
from service.model import Answer, Request

_CLAUSE = re.compile(r"""(name|run_id|source_path)\s*(=|LIKE)\s*(['"])(.*)\3""", re.DOTALL)
_RUN_FILTER = re.compile(r"^\s*source_run_id\s*=\s*'(.*)'\s*$")
_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
_LIST = re.compile(r"name IN \((.*)\)", re.DOTALL)
Document = dict[str, Any]


class MemoryTransport:
    """Answers MLflow's registry RPCs and the few tracking ones that promotion needs."""

    def __init__(self) -> None:
        """Begin empty, with the experiment ``Default`` as MLflow does."""
        self.models: dict[str, Document] = {}
        self.experiments: dict[str, Document] = {"0": {"experiment_id": "0", "name": "Default"}}
        self.runs: dict[str, Document] = {}
        self.logged_models: dict[str, Document] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        """MLmodel files by (model, version)."""
        self.artifacts: dict[str, bytes] = {}
        self._ids = itertools.count(1)

    async def send(self, request: Request, *, writes: bool, trace: str = "") -> Answer:
        """Answer one RPC."""
        del writes, trace
        name = request.rpc.rpartition(".")[2]
        if name == "uploadArtifact" and request.body is not None:
            self.artifacts[request.path] = b"".join([part async for part in request.body])
            return Answer.of({})
        if name == "downloadArtifact":
            return self._download(request)
        if request.rpc == "MlflowArtifactsService.listArtifacts":
            return Answer.of({"files": self._list_artifacts(request.message["path"])})
        rpc = getattr(self, f"_{name}", None)
        if rpc is None:
            raise RegistryRefused(f"{name} is not kept in memory", status=404, error_code="ENDPOINT_NOT_FOUND")
        return Answer.of(rpc({**request.message, **_path_fields(request)}))

    async def get(self, path: str, query: list[tuple[str, str]], limit: int) -> bytes | None:
        """Read an MLmodel file."""
        del path
        wanted = dict(query)
        raw = self.files.get((wanted["name"], wanted["version"]))
        return raw if raw is None or len(raw) <= limit else None

    async def close(self) -> None:
        """Nothing to close."""

    def _download(self, request: Request) -> Answer:
        raw = self.artifacts.get(request.path)
        if raw is None:
            raise _absent("artifact", request.path)

        async def stream() -> Any:
            yield raw

        return Answer(200, b"", "application/octet-stream", stream=stream())

    def _list_artifacts(self, folder: str) -> list[Document]:
        prefix = f"{_ARTIFACTS}/{quote(folder, safe='/')}/"
        below = {path.removeprefix(prefix): raw for path, raw in self.artifacts.items() if path.startswith(prefix)}
        folders = {path.partition("/")[0] for path in below if "/" in path}
        files = [{"path": unquote(path), "file_size": len(raw)} for path, raw in below.items() if "/" not in path]
        return [*({"path": unquote(name), "is_dir": True} for name in sorted(folders)), *files]

    # registered models

    def _model(self, name: str) -> Document:
        if name not in self.models:
            raise _absent("Registered Model", name)
        return self.models[name]

    def _createRegisteredModel(self, m: Document) -> Document:  # noqa: N802  # the RPC's own name, as all below
        if m["name"] in self.models:
            message = f"Registered Model (name={m['name']}) already exists."
            raise RegistryRefused(message, status=400, error_code="RESOURCE_ALREADY_EXISTS")
        now = _now()
        self.models[m["name"]] = {
            "name": m["name"],
            "creation_timestamp": now,
            "last_updated_timestamp": now,
            "description": m.get("description", ""),
            "tags": _tags(m),
            "aliases": {},
            "versions": {},
            "next": 1,
        }
        return {"registered_model": self._native(m["name"])}

    def _renameRegisteredModel(self, m: Document) -> Document:  # noqa: N802
        model = self._model(m["name"])
        if m["new_name"] in self.models:
            message = f"Registered Model (name={m['new_name']}) already exists."
            raise RegistryRefused(message, status=400, error_code="RESOURCE_ALREADY_EXISTS")
        del self.models[m["name"]]
        self.models[m["new_name"]] = model
        model["name"] = m["new_name"]
        for version in model["versions"].values():
            version["name"] = m["new_name"]
        return {"registered_model": self._native(m["new_name"])}

    def _updateRegisteredModel(self, m: Document) -> Document:  # noqa: N802
        self._model(m["name"])["description"] = m.get("description", "")
        return {"registered_model": self._native(m["name"])}

    def _deleteRegisteredModel(self, m: Document) -> Document:  # noqa: N802
        self._model(m["name"])
        del self.models[m["name"]]
        return {}

    def _getRegisteredModel(self, m: Document) -> Document:  # noqa: N802
        return {"registered_model": self._native(m["name"])}

    def _searchRegisteredModels(self, m: Document) -> Document:  # noqa: N802
        names = sorted(self.models)
        names = [name for name in names if _fits({"name": name}, m.get("filter", ""))]
        return _page([self._native(name) for name in names], m, "registered_models", 100)

    def _native(self, name: str) -> Document:
        model = self._model(name)
        latest: dict[str, Document] = {}
        for version in model["versions"].values():
            latest[version["current_stage"]] = self._version_native(model, version)
        return {
            **{key: model[key] for key in ("name", "creation_timestamp", "last_updated_timestamp", "description")},
            "tags": _tag_list(model["tags"]),
            "aliases": [{"alias": alias, "version": version} for alias, version in sorted(model["aliases"].items())],
            "latest_versions": list(latest.values()),
        }

    # versions

    def _version(self, m: Document) -> Document:
        model = self._model(m["name"])
        if m["version"] not in model["versions"]:
            raise _absent("Model Version", f"{m['name']}, version={m['version']}")
        found: Document = model["versions"][m["version"]]
        return found

    @staticmethod
    def _version_native(model: Document, version: Document) -> Document:
        aliases = sorted(alias for alias, number in model["aliases"].items() if number == version["version"])
        native = {key: value for key, value in version.items() if key != "storage"}
        return {**native, "tags": _tag_list(version["tags"]), "aliases": aliases}

    def _answer(self, m: Document) -> Document:
        return {"model_version": self._version_native(self._model(m["name"]), self._version(m))}

    def _createModelVersion(self, m: Document) -> Document:  # noqa: N802
        model = self._model(m["name"])
        number = str(model["next"])
        model["next"] += 1
        now = _now()
        model["versions"][number] = {
            "name": m["name"],
            "version": number,
            "creation_timestamp": now,
            "last_updated_timestamp": now,
            "current_stage": "None",
            "description": m.get("description", ""),
            "source": m["source"],
            "run_id": m.get("run_id", ""),
            "status": "READY",
            "tags": _tags(m),
        }
        if m["source"].startswith("models:/"):
            model["versions"][number]["storage"] = self._storage(m["source"])
        return self._answer({"name": m["name"], "version": number})

    def _storage(self, source: str) -> str:
        name, _, version = source.removeprefix("models:/").rpartition("/")
        if name:
            return str(self._getModelVersionDownloadUri({"name": name, "version": version})["artifact_uri"])
        return str(self._getLoggedModel({"model_id": version})["model"]["info"]["artifact_uri"])

    def _updateModelVersion(self, m: Document) -> Document:  # noqa: N802
        self._version(m)["description"] = m.get("description", "")
        return self._answer(m)

    def _transitionModelVersionStage(self, m: Document) -> Document:  # noqa: N802
        version = self._version(m)
        stage = m["stage"].capitalize()
        if m.get("archive_existing_versions"):
            for other in self._model(m["name"])["versions"].values():
                if other["current_stage"] == stage and other is not version:
                    other["current_stage"] = "Archived"
        version["current_stage"] = stage
        return self._answer(m)

    def _deleteModelVersion(self, m: Document) -> Document:  # noqa: N802
        self._version(m)
        model = self._model(m["name"])
        del model["versions"][m["version"]]
        model["aliases"] = {alias: number for alias, number in model["aliases"].items() if number != m["version"]}
        return {}

    def _getModelVersion(self, m: Document) -> Document:  # noqa: N802
        return self._answer(m)

    def _getModelVersionDownloadUri(self, m: Document) -> Document:  # noqa: N802
        """As MLflow: a ``models:`` source is followed when the version is made."""
        version = self._version(m)
        return {"artifact_uri": version.get("storage") or version["source"]}

    def _searchModelVersions(self, m: Document) -> Document:  # noqa: N802
        rows = [
            self._version_native(model, version)
            for _, model in sorted(self.models.items())
            for version in sorted(model["versions"].values(), key=lambda item: -int(item["version"]))
            if _fits({"name": model["name"], **version}, m.get("filter", ""))
        ]
        return _page(rows, m, "model_versions", 10_000)

    def _getLatestVersions(self, m: Document) -> Document:  # noqa: N802
        wanted = [stage.capitalize() for stage in m.get("stages", ())]
        latest = self._native(m["name"])["latest_versions"]
        return {"model_versions": [item for item in latest if not wanted or item["current_stage"] in wanted]}

    # tags and aliases

    def _setRegisteredModelTag(self, m: Document) -> Document:  # noqa: N802
        self._model(m["name"])["tags"][m["key"]] = m.get("value", "")
        return {}

    def _deleteRegisteredModelTag(self, m: Document) -> Document:  # noqa: N802
        self._model(m["name"])["tags"].pop(m["key"], None)
        return {}

    def _setModelVersionTag(self, m: Document) -> Document:  # noqa: N802
        self._version(m)["tags"][m["key"]] = m.get("value", "")
        return {}

    def _deleteModelVersionTag(self, m: Document) -> Document:  # noqa: N802
        self._version(m)["tags"].pop(m["key"], None)
        return {}

    def _setRegisteredModelAlias(self, m: Document) -> Document:  # noqa: N802
        self._version(m)
        self._model(m["name"])["aliases"][m["alias"]] = m["version"]
        return {}

    def _deleteRegisteredModelAlias(self, m: Document) -> Document:  # noqa: N802
        self._model(m["name"])["aliases"].pop(m["alias"], None)
        return {}

    def _getModelVersionByAlias(self, m: Document) -> Document:  # noqa: N802
        version = self._model(m["name"])["aliases"].get(m["alias"])
        if version is None:
            message = f"Registered model alias {m['alias']} not found."
            raise RegistryRefused(message, status=400, error_code="INVALID_PARAMETER_VALUE")
        return self._answer({"name": m["name"], "version": version})

    # tracking

    def _createExperiment(self, m: Document) -> Document:  # noqa: N802
        identifier = str(next(self._ids))
        self.experiments[identifier] = {"experiment_id": identifier, "name": m["name"]}
        return {"experiment_id": identifier}

    def _getExperiment(self, m: Document) -> Document:  # noqa: N802
        if m["experiment_id"] not in self.experiments:
            raise _absent("experiment", m["experiment_id"])
        return {"experiment": self.experiments[m["experiment_id"]]}

    def _getExperimentByName(self, m: Document) -> Document:  # noqa: N802
        for experiment in self.experiments.values():
            if experiment["name"] == m["experiment_name"]:
                return {"experiment": experiment}
        raise _absent("experiment", m["experiment_name"])

    def _searchExperiments(self, m: Document) -> Document:  # noqa: N802
        rows = [item for item in self.experiments.values() if _fits(item, m.get("filter", ""))]
        return _page(rows, m, "experiments", 1000)

    def _createRun(self, m: Document) -> Document:  # noqa: N802
        identifier = uuid.uuid4().hex
        info = {
            "run_id": identifier,
            "experiment_id": m["experiment_id"],
            "status": "RUNNING",
            "artifact_uri": f"mlflow-artifacts:/{m['experiment_id']}/{identifier}/artifacts",
        }
        self.runs[identifier] = {"info": info, "data": {"metrics": {}, "params": {}, "tags": _tags(m)}}
        return self._getRun({"run_id": identifier})

    def _run(self, m: Document) -> Document:
        if m["run_id"] not in self.runs:
            raise _absent("Run", m["run_id"])
        return self.runs[m["run_id"]]

    def _getRun(self, m: Document) -> Document:  # noqa: N802
        run = self._run(m)
        data = {kind: _tag_list(values) for kind, values in run["data"].items()}
        return {"run": {"info": run["info"], "data": data, "inputs": {}}}

    def _logBatch(self, m: Document) -> Document:  # noqa: N802
        data = self._run(m)["data"]
        data["metrics"].update({item["key"]: item["value"] for item in m.get("metrics", ())})
        return {}

    def _logMetric(self, m: Document) -> Document:  # noqa: N802
        self._run(m)["data"]["metrics"][m["key"]] = m["value"]
        return {}

    def _setTag(self, m: Document) -> Document:  # noqa: N802
        self._run(m)["data"]["tags"][m["key"]] = m.get("value", "")
        return {}

    def _searchRuns(self, m: Document) -> Document:  # noqa: N802
        here = [run for run in self.runs.values() if run["info"]["experiment_id"] in m["experiment_ids"]]
        return _page(here, m, "runs", 1000)

    def _deleteExperiment(self, m: Document) -> Document:  # noqa: N802
        self._getExperiment(m)["experiment"]["lifecycle_stage"] = "deleted"
        return {}

    def _deleteRun(self, m: Document) -> Document:  # noqa: N802
        self._run(m)["info"]["lifecycle_stage"] = "deleted"
        return {}

    def _createLoggedModel(self, m: Document) -> Document:  # noqa: N802
        identifier = f"m-{uuid.uuid4().hex}"
        info = {
            "model_id": identifier,
            "experiment_id": m["experiment_id"],
            "name": m.get("name", ""),
            "artifact_uri": f"mlflow-artifacts:/{m['experiment_id']}/models/{identifier}/artifacts",
            "source_run_id": m.get("source_run_id", ""),
        }
        self.logged_models[identifier] = {"info": info}
        return {"model": self.logged_models[identifier]}

    def _getLoggedModel(self, m: Document) -> Document:  # noqa: N802
        if m["model_id"] not in self.logged_models:
            raise _absent("Logged model", m["model_id"])
        return {"model": self.logged_models[m["model_id"]]}

    def _deleteLoggedModel(self, m: Document) -> Document:  # noqa: N802
        self._getLoggedModel(m)
        del self.logged_models[m["model_id"]]
        return {}

    def _searchLoggedModels(self, m: Document) -> Document:  # noqa: N802
        match = _RUN_FILTER.match(m.get("filter", ""))
        rows = [
            item
            for item in self.logged_models.values()
            if item["info"]["experiment_id"] in m["experiment_ids"]
            and (match is None or item["info"]["source_run_id"] == match[1])
        ]
        return _page(rows, m, "models", 100)

    def _updateRun(self, m: Document) -> Document:  # noqa: N802
        info = self._run(m)["info"]
        info["status"] = m.get("status", info["status"])
        return {"run_info": info}


def _fits(row: Document, text: str) -> bool:
    """Tell whether *row* meets a filter: clauses ``field = '…'`` and ``field LIKE '…%'`` joined by AND."""
    for clause in filter(None, re.split(r"\s+AND\s+", text.strip())):
        if listed := _LIST.fullmatch(clause):
            if row.get("name") not in re.findall(r"'([^']*)'", listed[1]):
                return False
            continue
        found = _CLAUSE.fullmatch(clause)
        if found is None:
            message = f"Invalid clause(s) in filter string: {clause!r}"
            raise RegistryRefused(message, status=400, error_code="INVALID_PARAMETER_VALUE")
        field, comparator, _, wanted = found.groups()
        value = str(row.get("source" if field == "source_path" else field, ""))
        pattern = "".join({"%": ".*", "_": "."}.get(character) or re.escape(character) for character in wanted)
        if (value != wanted) if comparator == "=" else not re.fullmatch(pattern, value, re.DOTALL):
            return False
    return True


def _absent(what: str, name: str) -> RegistryRefused:
    return RegistryRefused(f"{what} with name={name} not found", status=404, error_code="RESOURCE_DOES_NOT_EXIST")


def _now() -> int:
    return int(time.time() * 1000)


def _tags(message: Document) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in message.get("tags", ())}


def _tag_list(tags: dict[str, Any]) -> list[Document]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def _page(rows: list[Document], message: Document, field: str, default: int) -> Document:
    start = int(json.loads(message.get("page_token") or "0"))
    size = int(message.get("max_results") or default)
    document: Document = {field: rows[start : start + size]}
    if start + size < len(rows):
        document["next_page_token"] = str(start + size)
    return document


def _path_fields(request: Request) -> Document:
    parts = request.path.split("/")
    return {"model_id": parts[5]} if len(parts) > 5 and parts[4] == "logged-models" else {}
