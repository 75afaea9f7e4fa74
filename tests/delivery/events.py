"""Events as the trail makes them."""

from __future__ import annotations

from typing import Any

from service.audit import Operation
from service.change import AliasSet
from service.event import Event
from service.model import Call, Need, Principal

CALLER = Principal("service:ci", frozenset({"group:ci"}), credential="ci")


def event_about(model: str, alias: str = "blue", version: str = "1", *, phase: str = "outcome", **fields: Any) -> Event:
    """Build an event about an alias of *model* that was set."""
    need = Need("alias:set", f"models/{model}/aliases/{alias}")
    change = AliasSet(model, alias, version)
    call = Call(principal=CALLER, registry="main", name="setAlias", needs=(need,), change=change)
    operation = Operation.opened(call, 1000.0)
    for name, value in fields.items():
        setattr(operation, name, value)
    return operation.event(phase, None if phase == "intent" else "succeeded", "/test", 1000.0)
