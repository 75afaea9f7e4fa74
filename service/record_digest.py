"""What events say of the records that are stored with them, so that an edited record shows. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from service.chain import digest_of
from service.effects import Effect, Held, Posted, Quarantined, Signed
from service.event import canonical_json
from service.masking import Masks

NAMES = {
    "approvals": ("id", "registry", "binding", "version", "behind", "body"),
    "evidence": ("id", "registry", "binding", "body"),
    "quarantines": ("id", "registry", "binding", "version", "reason", "by", "at", "behind"),
    "holds": ("id", "registry", "model", "reason", "by", "at"),
}
"""By table, what is covered: all that stays as it is. The model is not, where it can be renamed."""


def digest_of_record(table: str, row: Mapping[str, Any]) -> str:
    """Give the SHA-256 of the canonical JSON of *row* of *table*, of what of it stays as it is."""
    return digest_of(canonical_json({name: row[name] for name in NAMES[table]}))


def record_of(effects: Iterable[Effect], masks: Masks) -> dict[str, str] | None:
    """Say which record is stored, with its digest; without one where it holds what could be guessed by it."""
    for effect in effects:
        found = _row_of(effect)
        if found is not None:
            table, row = found
            digest = digest_of_record(table, row)
            guessable = masks.digest(digest, row) != digest
            return {"table": table, "id": row["id"], **({} if guessable else {"sha256": digest})}
    return None


def _row_of(effect: Effect) -> tuple[str, dict[str, Any]] | None:
    match effect:
        case Signed():
            row = {"registry": effect.registry, "binding": effect.binding, "body": dataclasses.asdict(effect.approval)}
            more = {"version": effect.version, "behind": effect.behind}
            return "approvals", {"id": effect.approval.id, **row, **more}
        case Posted():
            row = {"registry": effect.registry, "binding": effect.binding, "body": dataclasses.asdict(effect.evidence)}
            return "evidence", {"id": effect.evidence.id, **row}
        case Quarantined():
            return "quarantines", {"registry": effect.registry, **dataclasses.asdict(effect.quarantine)}
        case Held():
            return "holds", dataclasses.asdict(effect.hold)
    return None
