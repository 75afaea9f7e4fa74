"""Follows memberships, of roles and of sets, to their end: once, when a snapshot is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MAX_DEPTH = 9  # Casbin's role manager follows ten links; the first is the principal's own group

Link = tuple[str, str, int]
"""Member, what it is a member of, and the line that says so."""


class TooDeepError(Exception):
    """Memberships are nested deeper than Casbin follows them."""

    def __init__(self, member: str, line: int) -> None:
        """Name the *member* and the *line* of its first membership."""
        super().__init__(member)
        self.member = member
        self.line = line


def closure(links: Iterable[Link]) -> dict[str, frozenset[str]]:
    """Map each member to itself and all it is a member of, whatever the way.

    Raises:
        TooDeepError: a way is longer than `MAX_DEPTH`.
    """
    parents: dict[str, set[str]] = {}
    first: dict[str, int] = {}
    for member, whole, line in links:
        parents.setdefault(member, set()).add(whole)
        first.setdefault(member, line)
    return {member: _reached(member, parents, line) for member, line in first.items()}


def _reached(member: str, parents: Mapping[str, set[str]], line: int) -> frozenset[str]:
    reached, frontier, depth = {member}, {member}, 0
    while frontier := {whole for name in frontier for whole in parents.get(name, ())} - reached:
        reached |= frontier
        depth += 1
        if depth > MAX_DEPTH:
            raise TooDeepError(member, line)
    return frozenset(reached)
