"""Collects rows and what cannot be said in rows, and prints both as policy.csv."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from service.authorization.checking import question_problem
from service.estates.rows import comment, row
from service.model import segment

_INSIDE_MODEL = {
    "READ": (
        ("model:read", ""),
        ("version:read", "/versions"),
        ("alias:read", "/aliases/*"),
    ),
    "EDIT": (
        ("model:update", ""),
        ("model:rename", ""),
        ("version:create", "/versions"),
        ("version:update", "/versions"),
        ("tag:set", "/tags/*"),
        ("tag:delete", "/tags/*"),
        ("tag:set", "/versions/tags/*"),
        ("alias:set", "/aliases/*"),
        ("stage:set", "/stages/*"),
    ),
    "MANAGE": (
        ("model:delete", ""),
        ("version:delete", "/versions"),
        ("tag:delete", "/versions/tags/*"),
        ("alias:delete", "/aliases/*"),
    ),
}
_INSIDE_EXPERIMENT = {
    "READ": (("experiment:read", ""), ("run:read", ""), ("artifact:read", "")),
    "EDIT": (("experiment:update", ""), ("run:create", ""), ("run:update", ""), ("artifact:write", "")),
    "MANAGE": (("experiment:delete", ""), ("run:delete", ""), ("artifact:delete", "")),
}
LEVELS = ("READ", "EDIT", "MANAGE")
_KINDS = {"models": _INSIDE_MODEL, "experiments": _INSIDE_EXPERIMENT}


@dataclass(slots=True)
class Grants:
    """Rows by subject, memberships, and comments."""

    registry: str
    head: list[str] = field(default_factory=list)
    rows: dict[str, dict[tuple[str, str, str], None]] = field(default_factory=dict)
    members: dict[tuple[str, str], None] = field(default_factory=dict)
    notes: dict[str, dict[str, None]] = field(default_factory=dict)

    def level(self, subject: str, kind: str, name: str, level: str) -> None:
        """Allow what the *level* means on the model or experiment *name* (``*`` for all, a prefix with one)."""
        where = pattern(kind, name)
        for step in LEVELS[: LEVELS.index(level) + 1]:
            for action, inside in _KINDS[kind][step]:
                self.allow(subject, where + inside, action)

    def allow(self, subject: str, where: str, action: str) -> None:
        """Add one row that allows."""
        self.rows.setdefault(subject, {})[where, action, "allow"] = None

    def deny(self, subject: str, kind: str, name: str) -> None:
        """Deny everything on a model or experiment."""
        where = pattern(kind, name)
        for place in dict.fromkeys((where, *([f"{where}/*"] if kind == "models" and name != "*" else []))):
            self.rows.setdefault(subject, {})[place, "*", "deny"] = None

    def member(self, member: str, role: str) -> None:
        """Add a membership."""
        self.members[member, role] = None

    def note(self, subject: str, text: str) -> None:
        """Say what no row says."""
        self.notes.setdefault(subject, {})[text] = None

    def text(self) -> str:
        """Print it, in an order that depends on nothing but what is in it."""
        lines = [comment(line) for line in self.head]
        for subject in sorted({*self.rows, *self.notes}):
            lines += ["", comment(subject)]
            lines += [comment(f"  not said by a row: {note}") for note in sorted(self.notes.get(subject, ()))]
            lines += [
                row("p", subject, self.registry, where, action, effect)
                for where, action, effect in sorted(self.rows.get(subject, ()))
            ]
        lines += [""] if self.members else []
        lines += [row("g", member, role) for member, role in sorted(self.members)]
        return "\n".join(lines) + "\n"


def pattern(kind: str, name: str) -> str:
    """Name what *name* stands for: all, a prefix that ends in ``*``, or one."""
    if name.endswith("*"):
        return f"{kind}/{segment(name[:-1])}*"
    return f"{kind}/{segment(name)}"


def can_be(subject: str) -> bool:
    """Tell whether a row can name *subject*."""
    return not question_problem((subject,), "r", "audit", "audit:read", ("r",))


def listed(names: Iterable[str]) -> str:
    """Name a few of *names*."""
    found = sorted(names)
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
