"""Finds rows that change no answer because one other row covers them: sound, and not complete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from service.authorization.patterns import SET, action_match, set_of
from service.authorization.rows import Row
from service.authorization.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Shadowed:
    """A row, and the one without which it would matter."""

    row: Row
    by: Row

    @property
    def why(self) -> str:
        """What the other row does."""
        return "covers it" if self.by.effect == self.row.effect else "denies all that it allows"


def pattern_covers(wider: str, pattern: str) -> bool:
    """Tell whether each resource that *pattern* covers is covered by *wider* too."""
    wide, narrow = wider.split("/"), pattern.split("/")
    open_end = wide[-1] == "*"
    if len(wide) > len(narrow) or (not open_end and (len(wide) < len(narrow) or narrow[-1] == "*")):
        return False
    for outer, inner in zip(wide, narrow, strict=False):
        if outer.endswith("*"):
            if not inner.removesuffix("*").startswith(outer[:-1]):
                return False
        elif outer != inner:
            return False
    return True


def _resource_covers(snapshot: Snapshot, wider: str, pattern: str) -> bool:
    """Tell the same of patterns that may name a set, which stands for each of its members."""
    of_wider, of_pattern = set_of(wider), set_of(pattern)
    rest = pattern.removeprefix(of_pattern)
    if of_wider == of_pattern == SET:
        return pattern_covers(wider, pattern)
    if of_wider == SET:
        return all(pattern_covers(wider, member + rest) for member in snapshot.members_of[of_pattern])
    below = wider.removeprefix(of_wider)
    if of_pattern == SET:
        member = "/".join(pattern.split("/")[:2])
        return member in snapshot.members_of[of_wider] and pattern_covers(member + below, pattern)
    wide, narrow = snapshot.members_of[of_wider], snapshot.members_of[of_pattern]
    return narrow <= wide and pattern_covers(f"models/x{below}", f"models/x{rest}")


def shadowed(snapshot: Snapshot) -> list[Shadowed]:
    """List the rows that one other row makes needless, in the order of the file.

    An ``allow`` is needless if another row of the same subject, or of a role that the subject has, allows as much or
    denies as much; a ``deny`` if another one denies as much. Not found: a row that several others cover together, and
    one whose subjects all have another role by the groups of their credentials alone.
    """
    index: dict[tuple[str, str, str], list[Row]] = {}
    for row in snapshot.rows:
        index.setdefault((row.subject, row.registry, row.action), []).append(row)
    found = []
    for row in snapshot.rows:
        other = next((other for other in _wider(index, snapshot, row) if _covers(snapshot, other, row)), None)
        if other is not None:
            found.append(Shadowed(row, other))
    return found


def _wider(index: dict[tuple[str, str, str], list[Row]], snapshot: Snapshot, row: Row) -> Iterator[Row]:
    kind = row.action.partition(":")[0] + ":*"
    for subject in sorted(snapshot.closure_of(row.subject)):
        for registry in dict.fromkeys((row.registry, "*")):
            for action in dict.fromkeys((row.action, kind, "*")):
                for other in index.get((subject, registry, action), ()):
                    if other.where != row.where and not (row.effect == "deny" and other.effect == "allow"):
                        yield other


def _covers(snapshot: Snapshot, other: Row, row: Row) -> bool:
    if not _resource_covers(snapshot, other.resource, row.resource):
        return False
    if not _as_wide(snapshot, row, other):
        return True
    return other.effect != row.effect or _line(other) < _line(row)  # of two that cover each other the first stays


def _as_wide(snapshot: Snapshot, row: Row, other: Row) -> bool:
    return (
        row.subject in snapshot.closure_of(other.subject)
        and row.registry == other.registry
        and action_match(other.action, row.action)
        and _resource_covers(snapshot, row.resource, other.resource)
    )


def _line(row: Row) -> int:
    return int(row.where.rpartition(":")[2])
