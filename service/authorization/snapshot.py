"""Casbin -> Decision: an immutable snapshot of the access policy, validated whole before it answers.

Casbin's own matcher and effect decide; this module resolves roles and sets and finds the rows that can matter, because
Casbin alone reads every row for every request.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.authorization.checking import OWNER
from service.authorization.index import Index
from service.authorization.matcher import Matcher, Subject
from service.authorization.patterns import member_of
from service.authorization.reach import Reach
from service.authorization.roles import Link, MembershipError, closure
from service.authorization.rows import Limits, Problems, Row, parse_rows
from service.authorization.sets import resolve_sets
from service.errors import BadConfiguration
from service.files import read_bytes
from service.model import Decision, Principal, Scope

_READS = 3
_MAX_MODEL_BYTES = 64 << 10
_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of model and rows as they were read together."""

    model: bytes
    rows: bytes

    @classmethod
    def read(cls, model: Path, rows: Path, limits: Limits) -> Content:
        """Read both files as they stand together, although their directory may be swapped meanwhile.

        Raises:
            BadConfiguration: one cannot be read, or is larger than it may be; no more than that is read.
        """
        for _ in range(_READS):
            of_model = read_bytes(model, _MAX_MODEL_BYTES)
            content = cls(of_model, read_bytes(rows, limits.max_bytes, "access.max_bytes"))
            if read_bytes(model, _MAX_MODEL_BYTES) == of_model:
                break
        return content

    @property
    def revision(self) -> str:
        """The sha256 that names this policy."""
        return hashlib.sha256(self.model + b"\0" + self.rows).hexdigest()


class Snapshot:
    """One revision of the access policy. Immutable: a new file makes a new snapshot."""

    def __init__(
        self,
        model: Path,
        rows: Path,
        registries: Iterable[str],
        limits: Limits | None = None,
        *,
        content: Content | None = None,
        pace: Callable[[], None] = lambda: None,
    ) -> None:
        """Load and validate *model* and *rows* (or their *content*, read before).

        A row may name only *registries* or ``*``. *pace* is called after each row, so that others get their turn.

        Raises:
            BadConfiguration: every problem of the files, each with file, line and column.
        """
        limits = limits or Limits()
        content = content or Content.read(model, rows, limits)
        self.revision, self.file = content.revision, rows.name
        problems = Problems(rows)
        parsed = parse_rows(rows, content.rows, frozenset(registries), limits, problems, pace)
        self.rows = tuple(parsed.permissions)
        self.links = tuple(parsed.links)
        self.members = tuple(parsed.members)
        self._roles = _closure(parsed.links, problems, pace)
        self._sets, self.members_of = resolve_sets(parsed, problems, pace)
        problems.refuse()
        self._matcher = Matcher(model, content.model.decode(errors="replace"), self._sets)
        if self.members and not self._matcher.knows_sets:
            message = f"{model}:1: this model.conf knows no sets (g2 rows); put the one that is shipped in its place"
            raise BadConfiguration(message)
        self.names_owner = OWNER in self._roles
        """Whether it matters who created a model."""
        self._denying, self._allowing = Index(), Index()
        self._reach = Reach(self.members_of, pace)
        for row in self.rows:
            pace()
            self.names_owner = self.names_owner or row.subject == OWNER
            if row.effect == "deny":
                self._denying.add(row)
            else:
                self._allowing.add(row)
                self._reach.add(row)

    def decide_whole(
        self, principal: Principal, registry: str, resource: str, action: str, *, owns: bool = False
    ) -> Decision:
        """Decide as requests are: an environment is read as part of its model, so a row that denies that denies it too.

        `decide` is the policy alone, as Casbin has it.
        """
        decision = self.decide(principal, registry, resource, action, owns=owns)
        kind, *parts = resource.split("/")
        if decision.allowed and action == "model:read" and parts[1:2] == ["environments"]:
            of_model = self.decide(principal, registry, f"{kind}/{parts[0]}", action, owns=owns)
            return of_model if of_model.denied_by_row else decision
        return decision

    def decide(
        self, principal: Principal, registry: str, resource: str, action: str, *, owns: bool = False
    ) -> Decision:
        """Decide by Casbin's matcher and effect: by the first row that denies, else by the first that allows.

        Pure; an unknown principal leaves no trace. *owns* says that the principal created the model.
        """
        row = next(self.matching(principal, registry, resource, action, owns=owns), None)
        return Decision(self._matcher.allows(row), row.where if row else None, self.revision)

    def matching(
        self, principal: Principal, registry: str, resource: str, action: str, *, owns: bool = False
    ) -> Iterator[Row]:
        """Yield every row that matches, the deciding one first: those that deny, then those that allow."""
        roles = self.roles_of(principal, owns=owns)
        sets = self._sets.get(member_of(resource), _NONE) if self._sets else _NONE
        names = {"r_sub": Subject(principal.subject, roles), "r_reg": registry, "r_obj": resource, "r_act": action}
        for index in (self._denying, self._allowing):
            for row in index.candidates(roles, registry, resource, action, sets):
                if self._matcher.matches(names, row):
                    yield row

    def scope(
        self, principal: Principal, registry: str, kind: str, action: str, owned: frozenset[str] = _NONE
    ) -> Scope:
        """Return the names *n* for which *action* on ``{kind}/{n}`` or on something in it can be allowed at most.

        *owned* are the models of the registry that the principal created. Denials, and what stands behind the name in
        a pattern, are left out: each row is decided all the same.
        """
        roles = self.roles_of(principal)
        found = self._reach.scope(roles, registry, kind, action)
        if (
            owned
            and kind == "models"
            and self._reach.any(self.roles_of(principal, owns=True) - roles, registry, action)
        ):
            return Scope(found.names | owned, found.prefixes)
        return found

    def roles_of(self, principal: Principal, *, owns: bool = False) -> frozenset[str]:
        """Return the principal, its groups, and every role that any of them has; with *owns*, ``owner`` too."""
        given = [name for name in (principal.subject, *principal.groups) if name != OWNER]  # no name makes an owner
        if owns:
            given.append(OWNER)
        if len(given) == 1:
            return self._roles.get(given[0]) or frozenset(given)
        roles: set[str] = set()
        for name in given:
            roles |= self._roles.get(name) or {name}
        return frozenset(roles)

    def parts(self, pace: Callable[[], None]) -> list[object]:
        """List what this snapshot is made of, so that who replaces it can let go of it in small steps."""
        parts: list[object] = []
        memberships = (self.links, self.members, self._roles.values(), self._sets.values(), self.members_of.values())
        for several in (self.rows, *memberships, self._denying.parts(), self._allowing.parts(), self._reach.parts()):
            for part in several:
                parts.append(part)
                pace()
        return parts

    def row_at(self, where: str) -> Row:
        """Return the permission row that a decision names as *where*."""
        return self.rows[bisect_left(self.rows, int(where.rpartition(":")[2]), key=lambda row: row.line)]

    def closure_of(self, role: str) -> frozenset[str]:
        """Return *role* and all that it is a member of."""
        return self._roles.get(role, frozenset({role}))


def _closure(links: Iterable[Link], problems: Problems, pace: Callable[[], None]) -> dict[str, frozenset[str]]:
    try:
        return closure(links, "roles", pace)
    except MembershipError as error:
        problems.add(error.line, 1, error.problem)
        return {}
