"""Resolves sets of models and experiments when a snapshot is built."""

from __future__ import annotations

from collections.abc import Callable

from service.authorization.patterns import SET, set_of
from service.authorization.roles import MembershipError, closure
from service.authorization.rows import Problems, Rows

_Sets = dict[str, frozenset[str]]


def resolve_sets(rows: Rows, problems: Problems, pace: Callable[[], None]) -> tuple[_Sets, _Sets]:
    """Return the sets of each model or experiment that is a member of one, and the members of each set.

    In *problems* it notes each set that has no members, is a member of itself, or is nested too deep, with its row.
    """
    try:
        reached = closure(rows.members, "sets", pace)
    except MembershipError as error:
        problems.add(error.line, 1, error.problem)
        return {}, {}
    sets: _Sets = {}
    members: dict[str, set[str]] = {}
    for member, found in reached.items():
        pace()
        if not member.startswith(SET):
            sets[member] = found - {member}
            for name in sets[member]:
                members.setdefault(name, set()).add(member)
    for member, name, line in rows.members:
        pace()
        if member.startswith(SET):
            if member == name or member in reached.get(name, ()):
                problems.add(line, 1, f"a circle of sets: {member} is in {name}, which is in {member}")
            elif member not in members and not rows.lacks_members:
                problems.add(line, 1, f"no model or experiment is in {member}; add one, or leave the row out")
    for row in rows.permissions:
        pace()
        name = set_of(row.resource)
        if name != SET and name not in members and not rows.lacks_members:
            problems.add(row.line, 1, f"no model or experiment is in {name}; a g2 row says what is")
    frozen: _Sets = {}
    for name, inside in members.items():
        pace()
        frozen[name] = frozenset(inside)
    return sets, frozen
