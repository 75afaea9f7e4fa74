"""The table of the MLflow dialect: each served RPC -> what it needs, what it changes, how it is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from service.change import (
    AliasDelete,
    AliasSet,
    Located,
    ModelCreate,
    ModelDelete,
    ModelRename,
    ModelUpdate,
    OfArtifact,
    OfExperiment,
    OfLoggedModel,
    OfRun,
    OutsideSource,
    StageSet,
    TagDelete,
    TagSet,
    VersionCreate,
    VersionDelete,
    VersionUpdate,
)
from service.dialects.mlflow_row import EACH, SUMMED, Body, Message, Row, existing, nothing, text
from service.dialects.mlflow_traces import TRACES
from service.errors import InvalidRequest
from service.model import STAGES, Listing, Need, resource
from service.strict import check_alias, check_name, check_text, check_version, no_traversal


def _version(message: Message) -> str:
    return check_version(text(message, "version"))


def _stage(message: Message) -> str:
    given = text(message, "stage")
    for stage in STAGES:
        if stage.lower() == given.lower():
            return stage
    problem = f"The stage {given[:40]!r} is none of {', '.join(STAGES)}."
    raise InvalidRequest(problem)


_MAX_TAGS = 100
"""As in a batch of MLflow's (mlflow/utils/validation.py, MAX_PARAMS_TAGS_PER_BATCH). Each tag is a decision."""


def _tags(message: Message, *where: str) -> tuple[Need, ...]:
    tags = message.get("tags", ())
    if len(tags) > _MAX_TAGS:
        problem = f"tags: at most {_MAX_TAGS} in one call; set the others afterwards."
        raise InvalidRequest(problem)
    return tuple(Need("tag:set", resource(*where, "tags", text(tag, "key"))) for tag in tags)


def _model(action: str) -> Callable[[Message], tuple[Need, ...]]:
    return lambda message: (Need(action, resource("models", existing(message, "name", action))),)


def _versions(action: str) -> Callable[[Message], tuple[Need, ...]]:
    def needs(message: Message) -> tuple[Need, ...]:
        if "version" in message:
            _version(message)
        return (Need(action, resource("models", existing(message, "name", action), "versions")),)

    return needs


def _one_version(action: str) -> Callable[[Message], tuple[Need, ...]]:
    def needs(message: Message) -> tuple[Need, ...]:
        _version(message)
        return (Need(action, resource("models", existing(message, "name", action), "versions")),)

    return needs


def _create_model(message: Message) -> tuple[Need, ...]:
    name = check_name(text(message, "name"), "model name")
    return (Need("model:create", resource("models", name)), *_tags(message, "models", name))


def _rename_model(message: Message) -> tuple[Need, ...]:
    new_name = check_name(text(message, "new_name"), "new model name")
    return (
        Need("model:rename", resource("models", existing(message, "name", "model:rename"))),
        Need("model:rename", resource("models", new_name)),
    )


def _create_version(message: Message) -> tuple[Need, ...]:
    name = check_name(text(message, "name"), "model name")
    needs = [Need("version:create", resource("models", name, "versions"))]
    if not _is_prompt(message):
        needs += source_needs(text(message, "source"))
    if message.get("run_id"):
        needs.append(Need("run:read", OfRun(text(message, "run_id"))))
    if message.get("model_id"):
        needs.append(Need("artifact:read", OfLoggedModel(text(message, "model_id"))))
    return (*needs, *_tags(message, "models", name, "versions"))


def _is_prompt(message: Message) -> bool:
    """A prompt is a version whose text is a tag; its source is a placeholder without files."""
    return message.get("source") == _PROMPT_SOURCE and any(
        tag.get("key") == IS_PROMPT for tag in message.get("tags", ())
    )


def source_needs(source: str) -> tuple[Need, ...]:
    """Say what a caller must be allowed to read before *source* may become a version.

    Raises:
        InvalidRequest: a ``models:`` source that names an alias or stage, or a path that goes upwards.
    """
    scheme, _, rest = source.partition(":")
    if any(character in source for character in "?#\\"):  # MLflow reads a URI: it would drop what follows
        problem = "The source holds ?, # or a backslash."
        raise InvalidRequest(problem)
    if scheme in ("models", "runs", "mlflow-artifacts"):
        if not rest.startswith("/") or rest.startswith("//"):
            problem = f"A {scheme}: source has exactly one slash after the colon."
            raise InvalidRequest(problem)
        return (_inner_source(scheme, rest[1:]),)
    no_traversal(rest)
    return (Need("version:create", OutsideSource(source)),)


def _inner_source(scheme: str, rest: str) -> Need:
    if scheme == "mlflow-artifacts":
        no_traversal(rest)
        return Need("artifact:read", OfArtifact(rest))
    if scheme == "runs":
        run_id, _, path = rest.partition("/")
        no_traversal(path)
        return Need("artifact:read", OfRun(check_text(run_id, "run of the source")))
    parts = rest.split("/")
    if len(parts) == 1 and parts[0].startswith("m-"):
        return Need("artifact:read", OfLoggedModel(parts[0]))
    if len(parts) == 2 and "@" not in rest:
        check_version(parts[1])
        return Need("version:read", resource("models", parts[0], "versions"))
    problem = "A models: source must be models:/<name>/<version> or models:/m-<id>; an alias or stage can move."
    raise InvalidRequest(problem)


def _alias(action: str) -> Callable[[Message], tuple[Need, ...]]:
    def needs(message: Message) -> tuple[Need, ...]:
        alias = existing(message, "alias", action)
        if action == "alias:set":
            check_alias(alias)
            _version(message)
        return (Need(action, resource("models", existing(message, "name", action), "aliases", alias)),)

    return needs


def _transition(message: Message) -> tuple[Need, ...]:
    _version(message)
    return (Need("stage:set", resource("models", text(message, "name"), "stages", _stage(message))),)


_MAX_RUNS = 100
"""MLflow's own bound for a history of several runs."""
IS_PROMPT = "mlflow.prompt.is_prompt"
_PROMPT_SOURCE = "dummy-source"
"""mlflow/prompt/constants.py"""


def _model_tag(action: str) -> Callable[[Message], tuple[Need, ...]]:
    def needs(message: Message) -> tuple[Need, ...]:
        _refuse_prompt_tag(message)
        return (Need(action, _tag_of(message, action)),)

    return needs


def _tag_of(message: Message, action: str, *inside: str) -> str:
    return resource("models", existing(message, "name", action), *inside, "tags", existing(message, "key", action))


def _refuse_prompt_tag(message: Message) -> None:
    if str(message.get("key", "")).lower() == IS_PROMPT:
        problem = f"The tag {IS_PROMPT} says whether it is a model or a prompt; it is set when it is created only."
        raise InvalidRequest(problem)


def _version_tag(action: str) -> Callable[[Message], tuple[Need, ...]]:
    def needs(message: Message) -> tuple[Need, ...]:
        _refuse_prompt_tag(message)
        _version(message)
        return (Need(action, _tag_of(message, action, "versions")),)

    return needs


def run_of(message: Message) -> OfRun:
    """Return the run a message names; the old spelling ``run_uuid`` was merged into ``run_id`` when it was read."""
    return OfRun(text(message, "run_id"))


def _run(action: str) -> Callable[[Message], tuple[Need, ...]]:
    return lambda message: (Need(action, run_of(message)),)


def _artifacts_of(where: Callable[[Message], Located], field: str) -> Callable[[Message], tuple[Need, ...]]:
    def needs(message: Message) -> tuple[Need, ...]:
        no_traversal(str(message.get(field, "")))
        return (Need("artifact:read", where(message)),)

    return needs


def _run_and_models(message: Message) -> tuple[Need, ...]:
    """The run, and each logged model that a metric, an input or an output of it names."""
    named = [message, *message.get("metrics", ()), *message.get("models", ())]
    models = {str(item["model_id"]): None for item in named if item.get("model_id")}
    return (Need("run:update", run_of(message)), *(Need("run:update", OfLoggedModel(key)) for key in models))


def _runs(field: str) -> Callable[[Message], tuple[Need, ...]]:
    def needs(message: Message) -> tuple[Need, ...]:
        run_ids = dict.fromkeys(check_text(str(item), "run") for item in message.get(field, ()))
        if not 0 < len(run_ids) <= _MAX_RUNS:
            problem = f"{field} must name 1 to {_MAX_RUNS} runs."
            raise InvalidRequest(problem)
        return tuple(Need("run:read", OfRun(run_id)) for run_id in run_ids)

    return needs


def _version_artifact(message: Message) -> tuple[Need, ...]:
    no_traversal(text(message, "path"))
    return _one_version("version:read")(message)


def _experiment(action: str) -> Callable[[Message], tuple[Need, ...]]:
    return lambda message: (Need(action, OfExperiment(text(message, "experiment_id"))),)


def _create_experiment(message: Message) -> tuple[Need, ...]:
    name = check_name(text(message, "name"), "experiment name", separators="")
    needs = [Need("experiment:create", resource("experiments", name))]
    if message.get("artifact_location"):
        needs.append(Need("experiment:create", resource("locations", name)))
    return tuple(needs)


def _update_experiment(message: Message) -> tuple[Need, ...]:
    needs = _experiment("experiment:update")(message)
    if message.get("new_name"):
        new_name = check_name(text(message, "new_name"), "new experiment name", separators="")
        needs += (Need("experiment:update", resource("experiments", new_name)),)
    return needs


def _create_logged_model(message: Message) -> tuple[Need, ...]:
    needs: tuple[Need, ...] = (Need("run:create", OfExperiment(text(message, "experiment_id"))),)
    if message.get("source_run_id"):
        needs += (Need("run:update", OfRun(text(message, "source_run_id"))),)
    return needs


def _logged_model(action: str) -> Callable[[Message], tuple[Need, ...]]:
    return lambda message: (Need(action, OfLoggedModel(text(message, "model_id"))),)


def _artifact(action: str) -> Callable[[Message], tuple[Need, ...]]:
    def needs(message: Message) -> tuple[Need, ...]:
        where: Located = OfArtifact(text(message, "path"))
        return (Need(action, where),)

    return needs


_MODELS = Listing("registered_models", "model:read", lambda item: resource("models", str(item["name"])))
_VERSIONS = Listing("model_versions", "version:read", lambda item: resource("models", str(item["name"]), "versions"))
_EXPERIMENTS = Listing("experiments", "experiment:read", lambda item: resource("experiments", str(item["name"])))


_REGISTRY = {
    "createRegisteredModel": Row(_create_model, EACH, lambda m: ModelCreate(m["name"])),
    "renameRegisteredModel": Row(_rename_model, EACH, lambda m: ModelRename(m["name"], m["new_name"])),
    "updateRegisteredModel": Row(
        _model("model:update"), EACH, lambda m: ModelUpdate(m["name"], m.get("description", ""))
    ),
    "deleteRegisteredModel": Row(_model("model:delete"), EACH, lambda m: ModelDelete(m["name"])),
    "getRegisteredModel": Row(_model("model:read")),
    "searchRegisteredModels": Row(nothing, listing=_MODELS),
    "getLatestVersions": Row(_versions("version:read")),
    "createModelVersion": Row(
        _create_version, EACH, lambda m: VersionCreate(m["name"], m["source"], m.get("run_id", ""))
    ),
    "updateModelVersion": Row(
        _one_version("version:update"),
        EACH,
        lambda m: VersionUpdate(m["name"], m["version"], m.get("description", "")),
    ),
    "transitionModelVersionStage": Row(
        _transition,
        EACH,
        lambda m: StageSet(m["name"], m["version"], _stage(m), bool(m.get("archive_existing_versions"))),
    ),
    "deleteModelVersion": Row(_one_version("version:delete"), EACH, lambda m: VersionDelete(m["name"], m["version"])),
    "getModelVersion": Row(_one_version("version:read")),
    "searchModelVersions": Row(nothing, listing=_VERSIONS),
    "getModelVersionDownloadUri": Row(_one_version("version:read")),
    "setRegisteredModelTag": Row(
        _model_tag("tag:set"), EACH, lambda m: TagSet(m["name"], "", m["key"], m.get("value", ""))
    ),
    "setModelVersionTag": Row(
        _version_tag("tag:set"), EACH, lambda m: TagSet(m["name"], m["version"], m["key"], m.get("value", ""))
    ),
    "deleteRegisteredModelTag": Row(_model_tag("tag:delete"), EACH, lambda m: TagDelete(m["name"], "", m["key"])),
    "deleteModelVersionTag": Row(
        _version_tag("tag:delete"), EACH, lambda m: TagDelete(m["name"], m["version"], m["key"])
    ),
    "setRegisteredModelAlias": Row(_alias("alias:set"), EACH, lambda m: AliasSet(m["name"], m["alias"], m["version"])),
    "deleteRegisteredModelAlias": Row(_alias("alias:delete"), EACH, lambda m: AliasDelete(m["name"], m["alias"])),
    "getModelVersionByAlias": Row(_alias("alias:read")),
}

_BATCH_BYTES = 16 << 20

_TRACKING = {
    "getExperimentByName": Row(
        lambda m: (Need("experiment:read", resource("experiments", existing(m, "experiment_name", "experiment:read"))),)
    ),
    "createExperiment": Row(_create_experiment, EACH),
    "searchExperiments": Row(nothing, listing=_EXPERIMENTS),
    "getExperiment": Row(_experiment("experiment:read")),
    "deleteExperiment": Row(_experiment("experiment:delete"), EACH),
    "restoreExperiment": Row(_experiment("experiment:delete"), EACH),
    "updateExperiment": Row(_update_experiment, EACH),
    "setExperimentTag": Row(_experiment("experiment:update"), SUMMED),
    "deleteExperimentTag": Row(_experiment("experiment:update"), SUMMED),
    "createRun": Row(_experiment("run:create"), SUMMED),
    "updateRun": Row(_run("run:update"), SUMMED),
    "deleteRun": Row(_run("run:delete"), EACH),
    "restoreRun": Row(_run("run:delete"), EACH),
    "getRun": Row(_run("run:read")),
    "searchRuns": Row(nothing, experiments="experiment_ids"),
    "logMetric": Row(_run_and_models, SUMMED),
    "logParam": Row(_run("run:update"), SUMMED),
    "setTag": Row(_run("run:update"), SUMMED),
    "deleteTag": Row(_run("run:update"), SUMMED),
    "logBatch": Row(_run_and_models, SUMMED, max_body_bytes=_BATCH_BYTES),
    "logModel": Row(_run("run:update"), SUMMED),
    "logInputs": Row(_run_and_models, SUMMED, max_body_bytes=_BATCH_BYTES),
    "logOutputs": Row(_run_and_models, SUMMED),
    "getMetricHistory": Row(_run("run:read")),
    "getMetricHistoryBulkInterval": Row(_runs("run_ids")),
    "searchDatasets": Row(nothing, experiments="experiment_ids"),
    "listArtifacts": Row(_artifacts_of(run_of, "path")),
    "createLoggedModel": Row(_create_logged_model, SUMMED),
    "finalizeLoggedModel": Row(_logged_model("run:update"), SUMMED),
    "getLoggedModel": Row(_logged_model("run:read")),
    "deleteLoggedModel": Row(_logged_model("run:delete"), EACH),
    "searchLoggedModels": Row(nothing, experiments="experiment_ids"),
    "setLoggedModelTags": Row(_logged_model("run:update"), SUMMED),
    "deleteLoggedModelTag": Row(_logged_model("run:update"), SUMMED),
    "listLoggedModelArtifacts": Row(
        _artifacts_of(lambda m: OfLoggedModel(text(m, "model_id")), "artifact_directory_path")
    ),
    "LogLoggedModelParams": Row(_logged_model("run:update"), SUMMED, max_body_bytes=_BATCH_BYTES),
}

_ARTIFACTS = {
    "downloadArtifact": Row(_artifact("artifact:read"), streams=True),
    "uploadArtifact": Row(_artifact("artifact:write"), SUMMED, body=Body.BYTES),
    "listArtifacts": Row(_artifact("artifact:read")),
    "deleteArtifact": Row(_artifact("artifact:delete"), EACH),
}

_ROUTES = {
    "getArtifact": Row(_artifacts_of(run_of, "path"), streams=True),
    "getModelVersionArtifact": Row(_version_artifact, streams=True),
    "getLoggedModelArtifact": Row(
        _artifacts_of(lambda m: OfLoggedModel(text(m, "model_id")), "artifact_file_path"), streams=True
    ),
    "getMetricHistoryBulk": Row(_runs("run_id")),
}

ROWS: Mapping[str, Row] = {
    **{f"ModelRegistryService.{name}": row for name, row in _REGISTRY.items()},
    **{f"MlflowService.{name}": row for name, row in _TRACKING.items()},
    **{f"MlflowArtifactsService.{name}": row for name, row in _ARTIFACTS.items()},
    **{f"MlflowRoutes.{name}": row for name, row in _ROUTES.items()},
    **TRACES,
}
"""Served RPCs by ``Service.name``. An RPC that is neither here nor in `mlflow_refused` turns a test red."""
