"""Which recorded decisions another policy would change."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from service.authorization.snapshot import Snapshot
from service.estates.forms import code, printable, table
from service.estates.history import Past, Right
from service.model import Decision


@dataclass(frozen=True, slots=True)
class Change:
    """Something that one principal was asked about, and that two policies decide differently."""

    registry: str
    subject: str
    action: str
    resource: str
    allowed: bool
    """By the new policy."""
    old_row: str
    new_row: str
    """The rows that decide; nothing where none does."""
    count: int = 0
    last: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """What two policies say to the same questions."""

    events: int
    left_out: int
    """Events that name no right, as searches, or were cut, or that rows did not decide."""
    changes: tuple[Change, ...]


class Owned(Protocol):
    """Who owned what."""

    def owned(self, subject: str, registry: str, resource: str, time: str) -> bool:
        """Tell whether *subject* owned the model of *resource* before an event of this *time*."""


def compare(old: Snapshot, new: Snapshot, past: Iterable[Past], owners: Owned | None = None) -> Difference:
    """Decide what was asked in *past* by both policies; *owners* is needed where one of them names `owner`."""
    sums: dict[Change, Change] = {}
    events = left_out = 0
    for item in past:
        events += 1
        if not (item.by_policy and item.whole and item.rights):
            left_out += 1
            continue
        found = _changed(old, new, item, owners)
        if found is not None:
            known = sums.get(found, found)
            sums[found] = dataclasses.replace(known, count=known.count + item.asked, last=max(known.last, item.time))
    changes = sorted(sums.values(), key=lambda one: (one.allowed, -one.count, dataclasses.astuple(one)))
    return Difference(events, left_out, tuple(changes))


def _changed(old: Snapshot, new: Snapshot, item: Past, owners: Owned | None) -> Change | None:
    """Return what makes the answer of one call another; all its rights have to be there."""
    before, after = (_refused(snapshot, item, owners) for snapshot in (old, new))
    right = after or before
    if right is None or (before and after):
        return None
    decisions = [_decide(snapshot, item, right, owners) for snapshot in (old, new)]
    return Change(
        right.registry,
        item.subject,
        right.action,
        right.resource,
        after is None,
        decisions[0].row or "",
        decisions[1].row or "",
    )


def _refused(snapshot: Snapshot, item: Past, owners: Owned | None) -> Right | None:
    """Return the first right that is missing, or what a row denies; None where the call is let through."""
    for right in item.rights:
        if not _decide(snapshot, item, right, owners).allowed:
            return right
    return next((right for right in item.unforbidden if _decide(snapshot, item, right, owners).denied_by_row), None)


def _decide(snapshot: Snapshot, item: Past, right: Right, owners: Owned | None) -> Decision:
    owns = (
        owners is not None
        and snapshot.names_owner
        and owners.owned(item.subject, right.registry, right.resource, item.time)
    )
    return snapshot.decide_whole(item.principal, right.registry, right.resource, right.action, owns=owns)


def render(found: Difference, form: str) -> str:
    """Give *found* as text, Markdown or JSON."""
    if form == "json":
        document = {
            "events": found.events,
            "left_out": found.left_out,
            "changes": [dataclasses.asdict(change) for change in found.changes],
        }
        return json.dumps(document, indent=2) + "\n"
    summary = _summary(found)
    if form == "markdown":
        cells = [
            (
                "✅ allowed" if item.allowed else "❌ denied",
                code(item.subject),
                code(item.action),
                code(f"{item.registry}/{item.resource}"),
                str(item.count),
                item.last[:16].replace("T", " "),
                code(item.old_row) if item.old_row else "no row",
                code(item.new_row) if item.new_row else "no row",
            )
            for item in found.changes
        ]
        names = ("now", "who", "action", "resource", "times", "last", "old row", "new row")
        return f"{summary}\n" + (f"\n{table(names, cells)}" if cells else "")
    lines = [summary]
    for allowed, title in ((False, "would be denied now"), (True, "would be allowed now")):
        chosen = [item for item in found.changes if item.allowed is allowed]
        lines += ["", f"{title}:"] if chosen else []
        for item in chosen:
            rows = f"old: {item.old_row or 'no row'}, new: {item.new_row or 'no row'}"
            what = f"{item.subject}  {item.action} on {item.registry}/{item.resource}"
            lines.append(printable(f"{item.count:>6}  {what}  ({rows}; last {item.last})"))
    return "\n".join(lines) + "\n"


def _summary(found: Difference) -> str:
    denied = sum(item.count for item in found.changes if not item.allowed)
    allowed = sum(item.count for item in found.changes if item.allowed)
    left = f"; {found.left_out} events left out: nothing was decided for them" if found.left_out else ""
    return f"{found.events} events: {denied} calls would be denied now, {allowed} allowed now{left}."
