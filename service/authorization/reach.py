"""Finds the names that somebody can read at most, without reading rows: what each subject's rows are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from urllib.parse import unquote

import msgspec

from service.authorization.patterns import SET, decoded, set_of
from service.authorization.rows import Row
from service.model import Scope

_KINDS = ("models", "experiments")


class _About(msgspec.Struct, gc=False):
    """What rows of one subject, registry and action are about."""

    names: dict[str, set[str]]
    prefixes: dict[str, set[str]]
    sets: set[str]


class Reach:
    """Rows that allow, by subject. Denials, and what stands behind a name in a pattern, are no matter here."""

    def __init__(self, members_of: Mapping[str, Iterable[str]], pace: Callable[[], None]) -> None:
        """Begin without rows; *members_of* says what is in each set."""
        self._of: dict[str, dict[tuple[str, str], _About]] = {}
        self._in_set: dict[tuple[str, str], set[str]] = {}
        for name, members in members_of.items():
            for member in members:
                pace()
                kind, _, written = member.partition("/")
                self._in_set.setdefault((name, kind), set()).add(unquote(written))

    def add(self, row: Row) -> None:
        """Take in a *row* that allows."""
        about = self._of.setdefault(row.subject, {}).setdefault((row.registry, row.action), _About({}, {}, set()))
        head, *rest = row.resource.split("/")
        if head == "*":
            for kind in _KINDS:
                about.prefixes.setdefault(kind, set()).add("")
        elif set_of(row.resource) != SET:
            about.sets.add(head)
        elif rest and rest[0].endswith("*"):
            about.prefixes.setdefault(head, set()).add(decoded(rest[0][:-1]))
        elif rest:
            about.names.setdefault(head, set()).add(unquote(rest[0]))

    def scope(self, roles: Iterable[str], registry: str, kind: str, action: str) -> Scope:
        """Return the names of *kind* that rows of *roles* can be about."""
        names: set[str] = set()
        prefixes: set[str] = set()
        for about in self._about(roles, registry, action):
            names.update(about.names.get(kind, ()), *(self._in_set.get((name, kind), ()) for name in about.sets))
            prefixes.update(about.prefixes.get(kind, ()))
        return Scope(frozenset(names), frozenset(prefixes))

    def any(self, roles: Iterable[str], registry: str, action: str) -> bool:
        """Tell whether *roles* have a row that allows *action* on anything of *registry*."""
        return next(self._about(roles, registry, action), None) is not None

    def _about(self, roles: Iterable[str], registry: str, action: str) -> Iterator[_About]:
        keys = [(where, act) for where in (registry, "*") for act in (action, f"{action.partition(':')[0]}:*", "*")]
        for role in roles:
            found = self._of.get(role)
            if found is not None:
                yield from (found[key] for key in keys if key in found)

    def parts(self) -> Iterator[object]:
        """Give each part, so that it can be let go of part by part."""
        yield from self._in_set.values()
        for found in self._of.values():
            yield from found.values()
            yield found
