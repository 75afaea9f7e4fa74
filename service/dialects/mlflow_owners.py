"""Who made it, in a message of MLflow's: what the client says is replaced by who really calls.

MLflow's own client sends the local account's name, which anybody can choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from service.errors import InvalidRequest
from service.strict import folded

USER = "mlflow.user"
_NAMES = frozenset(folded(key) for key in (USER, "mlflow.auth.username", "mlflow.auth.userId"))
"""Tags and trace metadata that name a user (mlflow/utils/mlflow_tags.py, mlflow/tracing/constant.py), folded."""
_MAX_USER_ID = 256
"""As wide as MLflow's column is."""
_LISTS = ("tags", "request_metadata")
_MAPS = ("tags", "trace_metadata")

Message = dict[str, Any]


def names_owner(key: object) -> bool:
    """Tell whether a tag of this key names a user; some databases tell no case, accents or end spaces apart."""
    return isinstance(key, str) and folded(key.strip()) in _NAMES


def with_owner(rpc: str, message: Message, subject: str) -> Message:
    """Return *message* of the RPC *rpc* with *subject* wherever it names who made something.

    Raises:
        InvalidRequest: it takes such a tag away. Nothing was forwarded.
    """
    change = _CHANGES.get(rpc)
    return change(message, subject) if change is not None else message


def _listed(message: Message, subject: str) -> Message:
    """Replace in the lists of tags and metadata."""
    lists = {name: message[name] for name in _LISTS if isinstance(message.get(name), list)}
    named = {
        name: [{**tag, "value": subject} if names_owner(tag.get("key")) else tag for tag in tags]
        for name, tags in lists.items()
    }
    return {**message, **named} if named else message


def _run(message: Message, subject: str) -> Message:
    """A new run has an owner, whether its client says one or not."""
    message = _listed(message, subject)
    tags = message.get("tags", [])
    if not any(tag.get("key") == USER for tag in tags):
        tags = [*tags, {"key": USER, "value": subject}]
    return {**message, "user_id": subject[:_MAX_USER_ID], "tags": tags}


def _one(message: Message, subject: str) -> Message:
    return {**message, "value": subject} if names_owner(message.get("key")) else message


def _deleted(field: str) -> Callable[[Message, str], Message]:
    def check(message: Message, _: str) -> Message:
        if names_owner(message.get(field)):
            problem = f"The tag {message[field]!r} says who made it; it is not deleted."
            raise InvalidRequest(problem)
        return message

    return check


def _trace(message: Message, subject: str) -> Message:
    """A new trace has maps."""
    info = message.get("trace", {}).get("trace_info")
    if not isinstance(info, dict):
        return message
    maps = {
        name: {key: subject if names_owner(key) else value for key, value in info[name].items()}
        for name in _MAPS
        if isinstance(info.get(name), dict)
    }
    return {**message, "trace": {**message["trace"], "trace_info": {**info, **maps}}}


_SETS = ("setExperimentTag", "setTag", "setTraceTag", "setTraceTagV3")
_WITH_LISTS = ("createExperiment", "createLoggedModel", "endTrace", "logBatch", "setLoggedModelTags", "startTrace")
_DELETES = ("deleteExperimentTag", "deleteTag", "deleteTraceTag", "deleteTraceTagV3")
_CHANGES: Mapping[str, Callable[[Message, str], Message]] = {
    "MlflowService.createRun": _run,
    "MlflowService.startTraceV3": _trace,
    **{f"MlflowService.{name}": _one for name in _SETS},
    **{f"MlflowService.{name}": _listed for name in _WITH_LISTS},
    **{f"MlflowService.{name}": _deleted("key") for name in _DELETES},
    "MlflowService.deleteLoggedModelTag": _deleted("tag_key"),
    "ModelRegistryService.createRegisteredModel": _listed,
    "ModelRegistryService.createModelVersion": _listed,
    "ModelRegistryService.setRegisteredModelTag": _one,
    "ModelRegistryService.setModelVersionTag": _one,
    "ModelRegistryService.deleteRegisteredModelTag": _deleted("key"),
    "ModelRegistryService.deleteModelVersionTag": _deleted("key"),
}
"""Each served RPC that writes tags or metadata. One that is missing turns a test red."""
