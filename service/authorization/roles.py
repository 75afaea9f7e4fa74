"""Follows memberships, of roles and of sets, to their end: once, when a snapshot is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

MAX_DEPTH = 9  # Casbin's role manager follows ten links; the first is the principal's own group

MAX_REACHED = 1_000_000
"""Memberships of all members together, followed to their end: a few rows through one role could make billions."""

Link = tuple[str, str, int]
"""Member, what it is a member of, and the line that says so."""


class MembershipError(Exception):
    """Memberships that are not followed."""

    def __init__(self, line: int, problem: str) -> None:
        """Say the *problem* and the *line* of the membership it begins with."""
        super().__init__(problem)
        self.line = line
        self.problem = problem


def closure(links: Iterable[Link], what: str, pace: Callable[[], None] = lambda: None) -> dict[str, frozenset[str]]:
    """Map each member to itself and all it is a member of (*what*: roles or sets), whatever the way.

    *pace* is called after each member and each row.

    Raises:
        MembershipError: a way is longer than `MAX_DEPTH`, or there are more than `MAX_REACHED` memberships.
    """
    parents: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    for member, whole, line in links:
        pace()
        parents.setdefault(member, set()).add(whole)
        first.setdefault(member, line)
    found: dict[str, frozenset[str]] = {}
    left = MAX_REACHED
    for member, line in first.items():
        found[member] = _reached(member, parents, line, what, pace)
        left -= len(found[member])
        if left < 0:
            problem = f"with {member!r} there are more than {MAX_REACHED} memberships, each member in all its {what}"
            raise MembershipError(line, problem)
    return found


def _reached(
    member: str, parents: Mapping[str, set[str]], line: int, what: str, pace: Callable[[], None]
) -> frozenset[str]:
    reached, frontier, depth = {member}, {member}, 0
    while frontier := {whole for name in frontier for whole in parents.get(name, ())} - reached:
        pace()
        reached |= frontier
        depth += 1
        if depth > MAX_DEPTH:
            raise MembershipError(line, f"{member!r} has {what} nested deeper than {MAX_DEPTH}")
    return frozenset(reached)
