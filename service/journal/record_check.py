"""Compares the records that rules judge by with the events that say how they came: an edit beside the chain shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Table, select

from service.journal import tables as t
from service.journal.looking import Look
from service.record_digest import NAMES, digest_of_record

_TABLES = {"approvals": t.approvals, "evidence": t.evidence, "quarantines": t.quarantines, "holds": t.holds}
_ENDED = {"approvals": "revoked_at", "quarantines": "lifted_at", "holds": "lifted_at"}
"""The column that says that a record counts no more."""
_ENDING = {"revokeApproval": "approvals", "liftQuarantine": "quarantines", "liftHold": "holds"}
_KEYS = {"id": "approvals", "quarantine": "quarantines", "hold": "holds"}
"""How an event that ends a record names it, in ``before``."""
_SAYING = select(t.events.c.sequence, t.events.c.body).where(
    t.events.c.action.in_(("approval:create", "approval:revoke", "evidence:post", "version:quarantine", "audit:hold")),
    t.events.c.phase == "outcome",
)
_LAST = "SELECT max(sequence) FROM events"
_PERIODS = """
SELECT id, model, environment, version, operation FROM periods WHERE NOT EXISTS (
  SELECT 1 FROM events WHERE events.operation = periods.operation AND events.outcome = 'succeeded'
  AND events.registry = periods.registry)
ORDER BY id
"""
_CREATED = (
    "SELECT DISTINCT registry, version, actor FROM events WHERE action = 'version:create' AND outcome = 'succeeded'"
)
_CREATIONS = "SELECT registry, version, by, model FROM creations"
_Key = tuple[str, str]


class RecordCheck:
    """What the records are, and what events say of them. Look at the records first, then take the events."""

    def __init__(self, journal: Look) -> None:
        """Read the records of *journal*; what is recorded meanwhile is not looked at."""
        self._journal = journal
        self._last = int(journal.rows(_LAST)[0][0] or 0)
        self._rows = {(name, row["id"]): row for name, table in _TABLES.items() for row in _rows(journal, table)}
        self._made: dict[_Key, tuple[int, str | None]] = {}
        self._ended: dict[_Key, int] = {}
        self._failed: set[_Key] = set()
        """Those that were stored too late, and taken back."""

    def take(self, sequence: int, event: Mapping[str, Any]) -> None:
        """Take an event that says how a record came or ended."""
        data = event["data"]
        record = data.get("record")
        key = (record["table"], record["id"]) if record else None
        if key is not None and data["outcome"] == "failed":
            self._failed.add(key)
        elif key is not None and data["outcome"] == "succeeded":
            self._made[key] = (sequence, record.get("sha256"))
        table = _ENDING.get(data.get("call", ""))
        if table is not None and data["outcome"] == "succeeded":
            ((name, identifier),) = data["before"].items()
            self._ended[_KEYS[name], identifier] = sequence

    def take_all(self) -> None:
        """Take the events of the journal."""
        for sequence, body in self._journal.rows(_SAYING):
            self.take(sequence, json.loads(body))

    def problems(self, *, everything: bool, pruned: bool) -> Iterable[str]:
        """Say what is wrong; *everything*: all events were taken, so that a record without one is wrong too.

        Where nothing is *pruned*, what was live and who registered what is compared, too.
        """
        for (table, identifier), row in self._rows.items():
            yield from self._of_row(table, identifier, row, everything=everything)
        for (table, identifier), (sequence, _) in self._made.items():
            key = (table, identifier)
            if key not in self._rows and key not in self._failed and sequence <= self._last:
                yield f"{table}: {identifier}, which event {sequence} recorded, is missing"
        if not pruned:
            yield from self._unfounded()

    def _of_row(self, table: str, identifier: str, row: Mapping[str, Any], *, everything: bool) -> Iterable[str]:
        key, ended = (table, identifier), row.get(_ENDED.get(table, ""))
        made = self._made.get(key)
        if made is None:
            if everything and key not in self._failed:
                yield f"{table}: {identifier} was put in: no event recorded it"
            return
        sequence, digest = made
        if digest is not None and digest_of_record(table, row) != digest:
            yield f"{table}: {identifier} was edited: it is not what event {sequence} recorded"
        end = self._ended.get(key)
        if ended is None and end is not None and end <= self._last:
            yield f"{table}: {identifier} was edited: event {end} ended it, and it is in force"
        if ended is not None and end is None and everything and key not in self._failed:
            yield f"{table}: {identifier} was edited: no event ended it, and it is not in force"

    def _unfounded(self) -> Iterable[str]:
        """Say which versions are on record as live, or as somebody's, where no event says so."""
        for number, model, environment, version, operation in self._journal.rows(_PERIODS):
            what = f"version {version} of {model} in {environment}"
            yield f"periods: {number} ({what}) was edited or put in: no event of operation {operation} made it"
        creations = self._journal.rows(_CREATIONS)
        made = set(self._journal.rows(_CREATED))
        for registry, version, by, model in creations:
            if made.isdisjoint({(registry, version, by), (registry, None, by)}):  # read back, it names none
                yield f"creations: version {version} of {model} by {by} was edited or put in: no event says so"


def _rows(journal: Look, table: Table) -> Iterable[dict[str, Any]]:
    names = (*NAMES[table.name], *filter(None, (_ENDED.get(table.name),)))
    columns = [table.c[name] for name in names]
    return [dict(zip(names, row, strict=True)) for row in journal.rows(select(*columns))]
