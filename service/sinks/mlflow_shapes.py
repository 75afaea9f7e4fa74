"""Tells an event in MLflow's words: the names and bodies of its webhooks (mlflow/webhooks/types.py of MLflow 3.17)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from service.event import Event

NAMES = frozenset(
    {
        "registered_model.created",
        "model_version.created",
        "model_version_tag.set",
        "model_version_tag.deleted",
        "model_version_alias.created",
        "model_version_alias.deleted",
    }
)
"""What is told in MLflow's words."""
NOT_TOLD = frozenset(
    {
        *(f"prompt{part}.created" for part in ("", "_version", "_alias")),
        *(f"prompt{part}.{verb}" for part in ("_tag", "_version_tag") for verb in ("set", "deleted")),
        "prompt_alias.deleted",
        "budget_policy.exceeded",
    }
)
"""MLflow's further names: prompts are models here, and budgets are not the gateway's."""
Aliases = Callable[[str, str, str], tuple[str, ...]]
"""The aliases that mark an environment, by registry, model and environment."""
Message = tuple[str, Mapping[str, Any]]
"""One of `NAMES`, and MLflow's ``data`` of it."""


def messages_of(event: Event, aliases_of: Aliases) -> list[Message]:
    """List what MLflow would have told of *event*; nothing of what changed nothing, or has no name there."""
    data = event["data"]
    if data["phase"] not in ("outcome", "reconciled") or data["outcome"] != "succeeded":
        return []
    change = data.get("change")
    return list(_messages(change, data, aliases_of)) if isinstance(change, dict) else []


def _messages(change: Mapping[str, Any], data: Mapping[str, Any], aliases_of: Aliases) -> Iterator[Message]:
    name, version, kind = change.get("model"), data.get("version"), change.get("kind")
    marks = aliases_of(data["registry"], str(name), data["environment"]) if data["environment"] else ()
    match kind:
        case "ModelCreate":
            yield "registered_model.created", {"name": name, "tags": {}, "description": None}
        case "VersionCreate":
            made = {"source": change["source"], "run_id": change["run_id"] or None, "tags": {}, "description": None}
            yield "model_version.created", {"name": name, "version": version, **made}
        case "TagSet" if change["version"]:
            told = {"key": change["key"], "value": change["value"]}
            yield "model_version_tag.set", {"name": name, "version": change["version"], **told}
        case "TagDelete" if change["version"]:
            yield "model_version_tag.deleted", {"name": name, "version": change["version"], "key": change["key"]}
        case "AliasSet" | "StageSet" | "Promotion":
            if kind == "Promotion" and data["before"] == data["after"]:
                return  # it was live before
            own = (change["alias"],) if kind == "AliasSet" else ()
            for alias in dict.fromkeys((*own, *marks)):
                yield "model_version_alias.created", {"name": name, "alias": alias, "version": version}
        case "AliasDelete" | "Retirement":
            own = (change["alias"],) if kind == "AliasDelete" else ()
            for alias in dict.fromkeys((*own, *marks)):
                yield "model_version_alias.deleted", {"name": name, "alias": alias}
        case _:
            return


def body_of(event: Event, message: Message) -> dict[str, Any]:
    """Give the body that MLflow sends for *message*, and beside it what MLflow does not know."""
    name, told = message
    entity, _, action = name.partition(".")
    data = event["data"]
    return {
        "entity": entity,
        "action": action,
        "timestamp": event["time"],
        "data": dict(told),
        "id": event["id"],
        "source": event["source"],
        "type": event["type"],
        "registry": data["registry"],
        "environment": data["environment"],
        "operation": data["operation"],
        "actor": data["actor"],
        "before": data["before"],
        "after": data["after"],
    }
