"""Compares what reached the registry, the journal and each sink: the promises of the record, counted."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.journal.database import SQLITE
from service.journal.looking import Look
from service.journal.verify import verify
from tests.faults.proxy import Seen

_INTENTS = "SELECT body FROM events WHERE phase = 'intent' AND model = :model"
_EVENTS = "SELECT sequence, body FROM events WHERE sequence > :after ORDER BY sequence"
_OPEN = "SELECT id, state FROM operations WHERE state IN ('open', 'unknown')"
_SPELT = {
    "registered-models/create": ("ModelCreate", {"name": "model"}),
    "registered-models/set-tag": ("TagSet", {"name": "model", "key": "key", "value": "value"}),
    "registered-models/alias": ("AliasSet", {"name": "model", "alias": "alias", "version": "version"}),
    "model-versions/create": ("VersionCreate", {"name": "model", "source": "source"}),
}
"""How the requests of `tests.faults.traffic` are spelt in an intent."""


@dataclass
class Counts:
    """What was found of one fault on one database."""

    trials: int = 0
    calls: int = 0
    changes: int = 0
    """Requests for changes that reached the registry."""
    without_intent: int = 0
    """Of them, those whose intent was not durable before: must be 0."""
    open: int = 0
    """Operations without an outcome, 30 s after the last restart: must be 0."""
    double: int = 0
    """Operations with more than one terminal outcome: must be 0."""
    untold: int = 0
    """Changes that were answered 200 and have no outcome succeeded: must be 0."""
    only_in_sinks: int = 0
    """Events that a sink has and the journal has not: must be 0."""
    not_intact: int = 0
    """Journals in which `audit verify` finds something: must be 0."""
    reads_failed: int = 0
    """Reads that were not answered while the journal was gone: must be 0."""
    slowest_refusal: float = 0.0
    """Seconds until a change was refused while the journal was gone."""
    slowest_recovery: float = 0.0
    """Seconds from the end of the fault (a restart counts) until a change was made."""

    def add(self, other: Mapping[str, Any]) -> None:
        for name, value in other.items():
            mine = getattr(self, name)
            setattr(self, name, max(mine, value) if name.startswith("slowest") else mine + value)

    def broken(self) -> dict[str, int]:
        """Name the promises that do not hold."""
        must_be_zero = ("without_intent", "open", "double", "untold", "only_in_sinks", "not_intact", "reads_failed")
        return {name: getattr(self, name) for name in must_be_zero if getattr(self, name)}

    def document(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _event(line: bytes) -> Any:
    """Return the event of a line; None for what is no event, and for a line that broke off on a full disk."""
    try:
        return json.loads(line) if line.startswith(b'{"') else None
    except ValueError:
        return None


@dataclass
class Checker:
    """Follows one journal; *url* leads to it without any proxy."""

    url: str
    settled: int = 0
    """Up to this sequence events were checked before."""
    _doubtful: list[Seen] = field(default_factory=list)
    _changes: int = 0
    _without: int = 0
    _file: int | None = None
    """The inode of a journal in a file, as it was last seen with the intent of a change."""

    async def witness(self, seen: Seen) -> None:
        """Look for the intent of a change before the registry can act on its last byte."""
        self._changes += 1
        try:
            found = await asyncio.to_thread(self._has_intent, seen)
        except Exception:  # noqa: BLE001  # the journal is gone: it is looked for when it is back
            self._doubtful.append(seen)
            return
        file = self._inode()
        if found:
            self._file = file
        elif self._file is not None and file != self._file:
            self._doubtful.append(seen)  # another file is in its place: the journal is asked when it is back
        else:
            print("WITHOUT INTENT", seen)
            self._without += 1

    def _inode(self) -> int | None:
        if not self.url.startswith(SQLITE):
            return None
        try:
            return Path(self.url.removeprefix(SQLITE)).stat().st_ino
        except OSError:
            return None

    def _has_intent(self, seen: Seen) -> bool:
        _, _, path = seen.line.partition("/api/2.0/mlflow/")
        kind, spelt = _SPELT[path]
        wanted = {ours: seen.message[theirs] for theirs, ours in spelt.items()}
        for (body,) in self._rows(_INTENTS, model=wanted["model"]):
            change = json.loads(body)["data"]["change"]
            if change["kind"] == kind and all(str(change[name]) == str(value) for name, value in wanted.items()):
                return True
        return False

    def open_operations(self) -> list[tuple[Any, ...]]:
        return self._rows(_OPEN)

    def end(self) -> int:
        return int(self._rows("SELECT max(sequence) FROM events")[0][0] or 0)

    def _rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        with Look(self.url) as journal:
            return journal.rows(query, **parameters)

    async def count(self, told: Iterable[str], sinks: Iterable[bytes] = ()) -> dict[str, int]:
        """Compare everything since the last time; *told* are operations whose callers were told 200."""
        doubtful, self._doubtful = self._doubtful, []
        for seen in doubtful:
            self._without += not await asyncio.to_thread(self._has_intent, seen)
        rows = await asyncio.to_thread(self._rows, _EVENTS, after=self.settled)
        events = [json.loads(body) for _, body in rows]
        self.settled = rows[-1][0] if rows else self.settled
        ended: Counter[str] = Counter()
        succeeded, intents = set(), set()
        for event in events:
            data = event["data"]
            if data["phase"] == "intent":
                intents.add(data["operation"])
            if data["phase"] in ("outcome", "reconciled") and data["outcome"] in ("succeeded", "failed"):
                ended[data["operation"]] += 1
            if data["outcome"] == "succeeded":
                succeeded.add(data["operation"])
        identifiers = {event["id"] for event in events}
        printed = [event for lines in sinks for line in lines.splitlines() if (event := _event(line))]
        still_open = {row[0] for row in await asyncio.to_thread(self.open_operations)}
        _, problem = await asyncio.to_thread(verify, self.url)
        if problem:
            print("NOT INTACT", problem)
        found = {
            "changes": self._changes,
            "without_intent": self._without,
            "open": len(still_open),
            "double": sum(times > 1 for times in ended.values()),
            "untold": sum(operation in intents and operation not in succeeded for operation in told),
            "only_in_sinks": sum(event["id"] not in identifiers for event in printed if "specversion" in event),
            "not_intact": int(problem is not None),
        }
        self._changes = self._without = 0
        return found
