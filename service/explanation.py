"""What explains a decision: the row, the way to it, the rows that nearly matched; and how that is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A permission row as it is shown."""

    where: str
    """``file:line``."""
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


JOURNAL = "journal"
"""Where it is known from who created a model."""


@dataclass(frozen=True, slots=True)
class Step:
    """One membership on the way from a subject to the row that decides."""

    member: str
    role: str
    where: str | None
    """The ``g`` or ``g2`` row as ``file:line``; `JOURNAL` for an owner; None for a group of the credential."""


@dataclass(frozen=True, slots=True)
class Near:
    """A row that did not decide, and why not."""

    where: str
    text: str
    differs: tuple[str, ...]
    """Of ``subject``, ``registry``, ``resource`` and ``action``; nothing where it matches too."""
    because: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and what led to it. The API answers it as it stands, the command says it in words."""

    subject: str
    groups: tuple[str, ...]
    registry: str
    resource: str
    action: str
    allowed: bool
    revision: str
    beyond_scope: bool = False
    """The credential is narrowed to other things; no row was asked."""
    row: PolicyRow | None = None
    """The row that decides; None where none matches, or where the reader may not know it."""
    decided_on: str = ""
    """The resource that the row decides on: an environment is read as part of its model."""
    path: tuple[Step, ...] = ()
    """From the subject to the row's own subject; nothing where they are the same."""
    sets: tuple[Step, ...] = ()
    """From the model or experiment to the set that the row names."""
    roles: tuple[str, ...] = ()
    near: tuple[Near, ...] = ()
    hidden: str = ""
    """What the reader may not see, and which right shows it."""

    def bare(self, hidden: str) -> Explanation:
        """Leave out everything about rows."""
        return replace(self, row=None, decided_on="", path=(), sets=(), roles=(), near=(), hidden=hidden)

    def own(self, hidden: str) -> Explanation:
        """Leave out the rows that are for others."""
        near = tuple(item for item in self.near if "subject" not in item.differs)
        return replace(self, near=near, hidden=hidden)

    def document(self) -> dict[str, Any]:
        """Give the JSON shape."""
        return asdict(self)

    def text(self) -> str:
        """Say it in lines: the decision, the way to the row, the roles, what nearly matched, the revision."""
        lines = [f"{'allowed' if self.allowed else 'denied'} {self._by()}"]
        if self.decided_on and self.decided_on != self.resource:
            lines.append(f"on: {self.decided_on}, which {self.resource} is read as part of")
        for name, way in (("path", self.path), ("sets", self.sets)):
            if way:
                steps = [f"{step.role} ({step.where or 'of the credential'})" for step in way]
                lines.append(f"{name}: {' -> '.join([way[0].member, *steps])}")
        if self.roles:
            lines.append(f"roles: {', '.join(self.roles)}")
        if self.near:
            lines.append("nearly:")
            lines += [f"  {item.where}: {item.text}: {item.because}" for item in self.near]
        if self.hidden:
            lines.append(self.hidden)
        lines.append(f"revision: {self.revision}")
        return "\n".join(lines)

    def _by(self) -> str:
        if self.beyond_scope:
            return "by the credential, which is narrowed to other things"
        if self.row is None and self.hidden:
            return "by the policy"
        return f"by {self.row or 'no row'}"


@dataclass(frozen=True, slots=True)
class Holder:
    """A subject of the policy that a row decides for."""

    subject: str
    row: PolicyRow


@dataclass(frozen=True, slots=True)
class WhoCan:
    """Who of the policy may do something, and who is kept from it by name."""

    registry: str
    resource: str
    action: str
    revision: str
    allowed: tuple[Holder, ...]
    denied: tuple[Holder, ...]
    """By a ``deny`` row. Who is in neither list is denied because no row allows it."""
    left_out: int = 0
    """How many further holders are not listed."""

    def document(self) -> dict[str, Any]:
        """Give the JSON shape."""
        return asdict(self)

    def text(self) -> str:
        """Say it in lines."""
        lines = [f"{self.action} on {self.resource} of {self.registry}"]
        lines += [*_listed("allowed", self.allowed), *_listed("denied by a row", self.denied)]
        if self.left_out:
            lines.append(f"and {self.left_out} more")
        return "\n".join([*lines, f"revision: {self.revision}"])


def _listed(what: str, holders: Iterable[Holder]) -> list[str]:
    found = [f"  {holder.subject} by {holder.row}" for holder in holders]
    return [f"{what}:", *found] if found else [f"{what}: nobody"]
