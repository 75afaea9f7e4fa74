"""Says what is allowed in a policy and is probably not what was meant."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from service.authorization.checking import OWNER, below_shapes, environment_of
from service.authorization.patterns import SET, set_of
from service.authorization.rows import Row
from service.authorization.snapshot import Snapshot
from service.resources import asked_on, shapes_of


def doubts(snapshot: Snapshot, path: Path, environments: Collection[str]) -> list[str]:
    """List what changes no answer, each with its line in *path*; *environments* are those that are configured."""
    said = dict((*_of_rows(snapshot, environments), *_of_links(snapshot), *_of_sets(snapshot)))
    return [f"{path}:{line}:1: {said[line]}" for line in sorted(said)]


def _of_rows(snapshot: Snapshot, environments: Collection[str]) -> Iterator[tuple[int, str]]:
    given = {role for _, role, _ in snapshot.links}
    for row in snapshot.rows:
        if row.subject.startswith("role:") and row.subject not in given:
            yield row.line, f"nobody is in {row.subject}: no g row gives it, so this row changes no answer"
        elif not any(asked_on(resource, row.action) for resource in _meant(snapshot, row)):
            asked = ", ".join(shapes_of(row.action))
            problem = f"{row.action} is never asked on {row.resource}, but on {asked}: the row changes no answer"
            yield row.line, problem
        elif row.subject == OWNER and not row.resource.startswith(("*", "models/", SET)):
            yield row.line, f"only models have an owner: nobody is asked for as owner on {row.resource}"
        elif environments and (name := environment_of(row.resource)) and name not in environments:
            yield row.line, f"no environment is named {name!r}; there are: {', '.join(environments)}"


def _meant(snapshot: Snapshot, row: Row) -> list[str]:
    """Return the pattern of *row*, or what a set means for the kinds of its members."""
    name = set_of(row.resource)
    if name == SET:
        return [row.resource]
    kinds = {member.partition("/")[0] for member in snapshot.members_of[name]}
    return [shape for shape in below_shapes(row.resource.partition("/")[2]) if shape.partition("/")[0] in kinds]


def _of_links(snapshot: Snapshot) -> Iterator[tuple[int, str]]:
    used = {row.subject for row in snapshot.rows} | {member for member, _, _ in snapshot.links}
    for member, role, line in snapshot.links:
        if role not in used:
            yield line, f"no row gives {role} anything"
        elif member in snapshot.closure_of(role):
            yield line, f"a circle: {member} is in {role}, which is in {member}; they count as one role"


def _of_sets(snapshot: Snapshot) -> Iterator[tuple[int, str]]:
    used = {set_of(row.resource) for row in snapshot.rows} | {member for member, _, _ in snapshot.members}
    for _, name, line in snapshot.members:
        if name not in used:
            yield line, f"no row is about {name}"
