"""Says what a change that was carried out means for the journal's own tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.audit import Operation
from service.change import VersionCreate
from service.effects import Deleted, Effect, Owed, Registered, Renamed, RequestEnded, TakenDown
from service.errors import OutcomeUnknown
from service.model import Answer, Call
from service.records import Creation, Debt, binding_of


def effects_of(call: Call, answer: Answer, operation: Operation, ended: tuple[str, ...], now: float) -> list[Effect]:
    """Say what a successful change means for the journal's own tables."""
    change = call.change
    if isinstance(change, VersionCreate):
        return [_registered(call, change, _made(call, answer), operation, now)]
    return consequences(operation.change or {}, call.registry, ended, now)


def consequences(change: Mapping[str, Any], registry: str, ended: tuple[str, ...], now: float) -> list[Effect]:
    """Say what a change that was carried out ends, deletes and renames; *change* is as the intent recorded it."""
    kind, model = change.get("kind"), change.get("model", "")
    if kind == "ModelDelete":
        return [TakenDown(registry, model, (), now), Deleted(registry, model, "", now)]
    if kind == "ModelRename":  # what the new name is live in was judged anew
        return [TakenDown(registry, model, (), now), Renamed(registry, model, change["new_name"])]
    effects: list[Effect] = [TakenDown(registry, model, ended, now)] if ended else []
    if kind == "VersionDelete":
        effects.append(Deleted(registry, model, change["version"], now))
    return effects


def fulfilled(change: Mapping[str, Any], operation: str, at: float, by: str) -> list[Effect]:
    """Say which requests a promotion completes, and what an emergency owes; *change* is as the intent recorded it."""
    ended = [RequestEnded(item, "completed", at, by, operation) for item in change.get("completes", ())]
    return [*ended, *debt_of(change)]


def debt_of(change: Mapping[str, Any]) -> list[Effect]:
    """Say what an emergency owes; nothing for other changes."""
    debt = change.get("debt")
    if not debt:
        return []
    return [Owed(Debt(**{**debt, "persons": tuple(debt["persons"]), "waived": tuple(debt["waived"])}))]


def _made(call: Call, answer: Answer) -> Mapping[str, Any]:
    """Return the version that an answer says was made.

    Raises:
        OutcomeUnknown: it does not say.
    """
    try:
        made = answer.document().get("model_version")
    except ValueError:
        made = None
    if not isinstance(made, dict):
        message = f"The registry {call.registry!r} answered without saying which version it made; it is read back."
        raise OutcomeUnknown(message)
    return made


def _registered(
    call: Call, change: VersionCreate, native: Mapping[str, object], operation: Operation, now: float
) -> Registered:
    version, source = str(native.get("version", "")), str(native.get("source", change.source))
    created = str(native.get("creation_timestamp", 0))
    if not version or not created.isdigit():
        message = f"The registry {call.registry!r} answered without saying which version it made; it is read back."
        raise OutcomeUnknown(message)
    binding = binding_of(version, int(created), source)
    operation.version = version
    persons = tuple(sorted(call.principal.persons))
    return Registered(
        call.registry,
        Creation(change.model, version, binding, call.principal.subject, persons, now),
    )
