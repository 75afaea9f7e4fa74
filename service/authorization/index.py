"""Finds the rows that match a question without reading the others: a tree of resource patterns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from service.authorization.rows import Row


class _Subjects(msgspec.Struct, gc=False):
    """Rows of one pattern, registry and action."""

    rows: dict[str, Row]
    """By subject: the first such row."""


_End = dict[str, _Subjects]
"""By registry and action as the row has them."""


class _Node(msgspec.Struct, gc=False):
    """One segment of patterns.

    A tree has no cycles, so the collector need not look at its parts. It does not look at a dictionary of strings and
    of structs that it does not look at either, which is why there are no tuples and no inner dictionaries.
    """

    exact: dict[str, _Node] | None = None
    prefixes: dict[str, _Node] | None = None
    """By what stands before the ``*``; a bare ``*`` is the empty prefix."""
    lengths: tuple[int, ...] = ()
    """Of the prefixes, each once, ascending: a name is cut to these and looked up."""
    here: _End | None = None
    below: _End | None = None
    """Of patterns that end in a bare ``*`` after this segment: one segment or more."""


class Index:
    """Rows of one effect. Rows that differ in nothing but their line count as the first of them."""

    def __init__(self) -> None:
        """Begin empty."""
        self._root = _Node()

    def add(self, row: Row) -> None:
        """Put *row* where `candidates` finds it."""
        *leading, last = row.resource.split("/")
        node = self._root
        for part in leading:
            node = _child(node, part)
        if last == "*":
            end = node.below = {} if node.below is None else node.below
        else:
            node = _child(node, last)
            end = node.here = {} if node.here is None else node.here
        key = f"{row.registry} {row.action}"
        if key not in end:
            end[key] = _Subjects({})
        end[key].rows.setdefault(row.subject, row)

    def parts(self) -> Iterator[object]:
        """Give each part of the tree, so that it can be let go of part by part."""
        nodes = [self._root]
        while nodes:
            node = nodes.pop()
            yield node
            yield from (part for part in (node.here, node.below) if part is not None)
            for children in (node.exact, node.prefixes):
                if children is not None:
                    nodes.extend(children.values())

    def candidates(
        self, roles: frozenset[str], registry: str, resource: str, action: str, sets: Iterable[str]
    ) -> list[Row]:
        """List the rows of *roles* that match, in the order of the file.

        *sets* are those that the model or experiment of *resource* is a member of.
        """
        segments = resource.split("/")
        ends = list(_ends(self._root, segments))
        if self._root.exact:
            for name in sets:
                node = self._root.exact.get(name)
                if node is not None:
                    ends.extend(_ends(node, segments[2:]))
        if not ends:
            return []
        acts = (action, action.partition(":")[0] + ":*", "*")
        keys = [f"{where} {act}" for where in (registry, "*") for act in acts]
        found: list[Row] = []
        for end in ends:
            for key in keys:
                subjects = end.get(key)
                if subjects is None:
                    continue
                by_subject = subjects.rows
                if len(by_subject) < len(roles):  # the fewer are asked about
                    found.extend(row for subject, row in by_subject.items() if subject in roles)
                else:
                    found.extend(by_subject[role] for role in roles if role in by_subject)
        if len(found) > 1:
            found.sort(key=_line)
        return found


def _line(row: Row) -> int:
    return row.line


def _child(node: _Node, part: str) -> _Node:
    if part.endswith("*"):
        prefix = part[:-1]
        if node.prefixes is None:
            node.prefixes = {}
        if prefix not in node.prefixes:
            node.prefixes[prefix] = _Node()
            if len(prefix) not in node.lengths:
                node.lengths = tuple(sorted((*node.lengths, len(prefix))))
        return node.prefixes[prefix]
    if node.exact is None:
        node.exact = {}
    if part not in node.exact:
        node.exact[part] = _Node()
    return node.exact[part]


def _ends(root: _Node, segments: list[str]) -> Iterator[_End]:
    nodes = [root]
    for segment in segments:
        following: list[_Node] = []
        for node in nodes:
            if node.below is not None:
                yield node.below
            if node.exact is not None and (child := node.exact.get(segment)) is not None:
                following.append(child)
            if node.prefixes is not None:
                for length in node.lengths:
                    if length > len(segment):
                        break
                    if (child := node.prefixes.get(segment[:length])) is not None:
                        following.append(child)
        nodes = following
        if not nodes:
            return
    for node in nodes:
        if node.here is not None:
            yield node.here
