"""Casbin -> Decision: an immutable snapshot of the access policy, validated whole before it answers.

Casbin's own matcher and effect decide; this module resolves roles and finds the rows that can matter, because
Casbin alone reads every row for every request.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import casbin
from casbin.effect import Effector
from casbin.util import SimpleEval

from service.errors import BadConfiguration
from service.files import read_text
from service.model import ACTIONS, Decision, Principal, Scope
from service.resources import all_shapes, asked_on, possible, shapes_of
from service.scope import covers

MAX_ROWS = 100_000
MAX_ROLE_DEPTH = 9  # Casbin's role manager follows ten links; the first is the principal's own group
_SUBJECT = re.compile(r"(user|service|group|role):[^\s:][^:]*")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._@ -]|%[0-9A-F]{2})*\*?")
_KINDS = frozenset({"models", "experiments", "locations", "audit", "access", "grants", "*"})
_OBJECTS = frozenset(action.partition(":")[0] for action in ACTIONS)
_EFFECTS = {"allow": Effector.ALLOW, "deny": Effector.DENY}


def resource_match(asked: str, pattern: str) -> bool:
    """Tell whether the resource *asked* is covered by *pattern*, segment by segment."""
    segments, patterns = asked.split("/"), pattern.split("/")
    if len(segments) < len(patterns) or (len(segments) > len(patterns) and patterns[-1] != "*"):
        return False
    for given, expected in zip(segments, patterns, strict=False):
        if expected.endswith("*"):
            if not given.startswith(expected[:-1]):
                return False
        elif given != expected:
            return False
    return True


def action_match(asked: str, pattern: str) -> bool:
    """Tell whether the action *asked* is covered by *pattern*: exact, ``<object>:*`` or ``*``."""
    return pattern in ("*", asked) or (pattern.endswith(":*") and asked.startswith(pattern[:-1]))


@dataclass(frozen=True, slots=True)
class Row:
    """One permission row and where it stands."""

    subject: str
    registry: str
    resource: str
    action: str
    effect: str
    where: str


class _Subject(str):
    """A principal's name that carries every role it has, for the matcher's ``g``."""

    __slots__ = ("roles",)
    roles: frozenset[str]


def _has_role(subject: _Subject, role: str) -> bool:
    return role in subject.roles


class Snapshot:
    """One revision of the access policy. Immutable: a new file makes a new snapshot."""

    def __init__(self, model: Path, rows: Path, registries: Iterable[str]) -> None:
        """Load and validate *model* and *rows*; a row may name only *registries* or ``*``.

        Raises:
            BadConfiguration: every problem of the files, each with file and line.
        """
        model_text, rows_text = read_text(model), read_text(rows)
        digest = hashlib.sha256(model_text.encode() + b"\0" + rows_text.encode())
        self.revision = digest.hexdigest()
        self._effector, self._matcher = _compile(model, model_text)
        parsed, links = _parse(rows, rows_text, frozenset(registries))
        self.rows = tuple(parsed)
        self._links = tuple(links)
        self.links = tuple((member, role, f"{rows.name}:{line}") for member, role, line in links)
        self._roles = _closure(links, rows)
        self._index: dict[tuple[str, str, str, str], list[Row]] = {}
        self._allowing: dict[str, list[Row]] = {}
        for row in parsed:
            if row.effect == "allow":
                self._allowing.setdefault(row.subject, []).append(row)
            self._index.setdefault((row.subject, row.registry, row.action, _head(row.resource)), []).append(row)

    def decide_whole(self, principal: Principal, registry: str, resource: str, action: str) -> Decision:
        """Decide as requests are: an environment is read as part of its model, so a row that denies that denies it too.

        `decide` is the policy alone, as Casbin has it.
        """
        decision = self.decide(principal, registry, resource, action)
        kind, *parts = resource.split("/")
        if decision.allowed and action == "model:read" and parts[1:2] == ["environments"]:
            of_model = self.decide(principal, registry, f"{kind}/{parts[0]}", action)
            return of_model if of_model.denied_by_row else decision
        return decision

    def decide(self, principal: Principal, registry: str, resource: str, action: str) -> Decision:
        """Decide by Casbin's matcher and effect. Pure; an unknown principal leaves no trace."""
        subject = _Subject(principal.subject)
        subject.roles = self.roles_of(principal)
        names = {"r_sub": subject, "r_reg": registry, "r_obj": resource, "r_act": action}
        effects: set[int] = set()
        deciding: Row | None = None
        for row in self._candidates(subject.roles, registry, resource, action):
            if resource_match(resource, row.resource) and self._matches(names, row):
                effects.add(_EFFECTS[row.effect])
                if deciding is None or row.effect == "deny":
                    deciding = row
                if row.effect == "deny":
                    break
        allowed = self._effector.final_effect(effects or {Effector.INDETERMINATE}) == Effector.ALLOW
        return Decision(allowed, deciding.where if deciding else None, self.revision)

    def scope(self, principal: Principal, registry: str, kind: str, action: str) -> Scope:
        """Return the names *n* for which *action* on ``{kind}/{n}`` or on something in it can be allowed at most.

        Denials, and what stands behind the name in a pattern, are left out: each row is decided all the same.
        """
        names: set[str] = set()
        prefixes: set[str] = set()
        for role in self.roles_of(principal):
            for row in self._allowing.get(role, ()):
                if row.registry not in (registry, "*") or not action_match(action, row.action):
                    continue
                head, *rest = row.resource.split("/")
                if head == "*":
                    prefixes.add("")
                elif head == kind and rest and rest[0].endswith("*"):
                    prefixes.add(_decoded(rest[0][:-1]))
                elif head == kind and rest:
                    names.add(unquote(rest[0]))
        return Scope(frozenset(names), frozenset(prefixes))

    def doubts(self, path: Path, environments: Collection[str]) -> list[str]:
        """List what may be meant and probably is not, each with its line: rows of *path* that change no answer."""
        given = {role for _, role, _ in self._links}
        used = {row.subject for row in self.rows} | {member for member, _, _ in self._links}
        said: dict[int, str] = {}
        for row in self.rows:
            line = int(row.where.rpartition(":")[2])
            if row.subject.startswith("role:") and row.subject not in given:
                said[line] = f"nobody is in {row.subject}: no g row gives it, so this row changes no answer"
            elif not asked_on(row.resource, row.action):
                asked = ", ".join(shapes_of(row.action))
                said[line] = f"{row.action} is never asked on {row.resource}, but on {asked}: the row changes no answer"
            elif environments and (name := _environment_of(row.resource)) and name not in environments:
                said[line] = f"no environment is named {name!r}; there are: {', '.join(environments)}"
        for member, role, line in self._links:
            if role not in used:
                said[line] = f"no row gives {role} anything"
            elif member in self._roles.get(role, (role,)):
                said[line] = f"a circle: {member} is in {role}, which is in {member}; they count as one role"
        return [f"{path}:{line}: {said[line]}" for line in sorted(said)]

    def roles_of(self, principal: Principal) -> frozenset[str]:
        """Return the principal, its groups, and every role that any of them has."""
        roles: set[str] = set()
        for name in (principal.subject, *principal.groups):
            roles |= self._roles.get(name, frozenset({name}))
        return frozenset(roles)

    def _candidates(self, roles: frozenset[str], registry: str, resource: str, action: str) -> Iterable[Row]:
        wild, head = action.partition(":")[0] + ":*", _head(resource)
        for role in sorted(roles):
            for reg in (registry, "*"):
                for act in (action, wild, "*"):
                    yield from self._index.get((role, reg, act, head), ())
                    yield from self._index.get((role, reg, act, ""), ())

    def _matches(self, names: dict[str, str], row: Row) -> bool:
        return bool(
            self._matcher.eval(
                {**names, "p_sub": row.subject, "p_reg": row.registry, "p_obj": row.resource, "p_act": row.action}
            )
        )


def _environment_of(resource: str) -> str | None:
    """Return the environment that *resource* names, if it names one exactly."""
    parts = resource.split("/")
    exact = parts[0] == "models" and parts[2:3] == ["environments"] and len(parts) > 3 and not parts[3].endswith("*")
    return unquote(parts[3]) if exact else None


def _decoded(prefix: str) -> str:
    """Decode the beginning of a segment; a character of several bytes that it cuts is left off."""
    return unquote_to_bytes(prefix).decode("utf-8", errors="ignore")


def _head(resource: str) -> str:
    """Return the first two segments, which rows are indexed by, or nothing where one of them is a pattern."""
    head = "/".join(resource.split("/", 2)[:2])
    return "" if "*" in head else head


def _compile(path: Path, text: str) -> tuple[Effector, SimpleEval]:
    try:
        model = casbin.Enforcer.new_model(text=text)
        tokens = model["r"]["r"].tokens, model["p"]["p"].tokens
        if tokens != (["r_sub", "r_reg", "r_obj", "r_act"], ["p_sub", "p_reg", "p_obj", "p_act", "p_eft"]):
            raise KeyError("tokens")  # noqa: TRY301  # one message for every way a model can be wrong
        enforcer = casbin.Enforcer(model)
        functions = {
            "g": _has_role,
            "resourceMatch": resource_match,
            "actionMatch": action_match,
        }
        matcher = enforcer._get_expression(model["m"]["m"].value, functions)  # noqa: SLF001  # no public way
        asked = _Subject("user:nobody")
        asked.roles = frozenset({"role:tried"})
        tried = {"p_sub": "role:tried", "p_reg": "*", "p_obj": "models/*", "p_act": "*"}
        matcher.eval({**tried, "r_sub": asked, "r_reg": "main", "r_obj": "models/x", "r_act": "model:read"})
    except Exception as error:  # noqa: BLE001  # casbin raises many kinds; a broken model fails the load
        message = f"{path}:1: not the access model (r = sub, reg, obj, act; p = sub, reg, obj, act, eft): {error}"
        raise BadConfiguration(message) from None
    return enforcer.eft, matcher


def _parse(path: Path, text: str, registries: frozenset[str]) -> tuple[list[Row], list[tuple[str, str, int]]]:
    rows: list[Row] = []
    links: list[tuple[str, str, int]] = []
    problems: list[str] = []
    # a comment is not CSV: a quote in it must not swallow the rows that follow
    lines = ["" if line.lstrip().startswith("#") else line for line in text.replace("\0", "\ufffd").split("\n")]
    reader = csv.reader(io.StringIO("\n".join(lines)), strict=True, skipinitialspace=True)
    try:
        for fields in reader:
            cells = [cell.strip() for cell in fields]
            if not any(cells):
                continue
            line = reader.line_num
            if "\n" in "".join(fields):
                problems.append(f"{path}:{line}: a quoted field runs over several lines")
                continue
            problem = _problem(cells, registries)
            if problem:
                problems.append(f"{path}:{line}: {problem}")
            elif cells[0] == "p":
                _, subject, registry, resource, action, effect = cells
                rows.append(Row(subject, registry, resource, action, effect, f"{path.name}:{line}"))
            else:
                links.append((cells[1], cells[2], line))
    except csv.Error as error:
        problems.append(f"{path}:{reader.line_num}: not valid CSV: {error}")
    if len(rows) + len(links) > MAX_ROWS:
        problems.append(f"{path}: more than {MAX_ROWS} rows")
    if not problems and not rows:
        problems.append(f"{path}:1: an empty policy allows nobody anything; write at least one row")
    if problems:
        raise BadConfiguration("\n".join(problems))
    return rows, links


def question_problem(
    subjects: Iterable[str], registry: str, resource: str, action: str, registries: Iterable[str]
) -> str:
    """Say why nobody can ever ask this, with what is known instead; nothing for a question that can be asked."""
    for subject in subjects:
        if not _SUBJECT.fullmatch(subject):
            return f"the subject {subject!r} does not begin with user:, service:, group: or role:"
    if registry not in registries:
        return f"no registry is named {registry!r}; there are: {', '.join(registries)}"
    if action not in ACTIONS:
        return f"unknown action {action!r}{_near(action)}"
    if "*" in resource:
        return f"the resource {resource!r} is a pattern; name one resource"
    problem = _resource_problem(resource)
    if problem is None and not asked_on(resource, action):
        return f"{action} is never asked on {resource!r}, but on: {', '.join(shapes_of(action))}"
    return problem or ""


def _problem(cells: list[str], registries: frozenset[str]) -> str | None:
    if cells[0] not in ("p", "g"):
        return f"unknown row type {cells[0]!r}; there are p and g"
    expected = 6 if cells[0] == "p" else 3
    if len(cells) != expected:
        shape = "p, subject, registry, resource, action, effect" if expected == 6 else "g, member, role"
        return f"{len(cells)} fields instead of {expected}: {shape}"
    for subject in cells[1:2] if cells[0] == "p" else cells[1:3]:
        if not _SUBJECT.fullmatch(subject):
            return f"the subject {subject!r} does not begin with user:, service:, group: or role:"
    if cells[0] == "g":
        return None
    _, _, registry, resource, action, effect = cells
    if effect not in _EFFECTS:
        return f"the effect {effect!r} is neither allow nor deny (lower case)"
    if registry != "*" and registry not in registries:
        return f"the registry {registry!r} is not configured"
    if action not in ACTIONS and action != "*" and not (action.endswith(":*") and action[:-2] in _OBJECTS):
        return f"unknown action {action!r}{_near(action)}"
    return _resource_problem(resource)


def _near(action: str) -> str:
    similar = sorted(known for known in ACTIONS if known.partition(":")[0] == action.partition(":")[0])
    return f"; there are: {', '.join(similar or sorted(ACTIONS))}"


def _resource_problem(resource: str) -> str | None:
    segments = resource.split("/")
    if segments[0] not in _KINDS:
        return f"the resource {resource!r} does not begin with {', '.join(sorted(_KINDS))}"
    for part in segments:
        if not part or not _SEGMENT.fullmatch(part):
            if "*" in part[:-1]:
                return f"the resource {resource!r} has a * that is not at the end of its segment"
            return f"the resource {resource!r} has an empty segment or a character to be percent-encoded"
    if not possible(resource):
        return f"no resource is like {resource!r}; there are: {', '.join(all_shapes())}"
    return None


def _closure(links: list[tuple[str, str, int]], path: Path) -> dict[str, frozenset[str]]:
    parents: dict[str, set[str]] = {}
    for member, role, _ in links:
        parents.setdefault(member, set()).add(role)
    roles: dict[str, frozenset[str]] = {}
    for member, _, line in links:
        if member in roles:
            continue
        reached, frontier, depth = {member}, {member}, 0
        while frontier := {role for name in frontier for role in parents.get(name, ())} - reached:
            reached |= frontier
            depth += 1
            if depth > MAX_ROLE_DEPTH:
                message = f"{path}:{line}: {member!r} has roles nested deeper than {MAX_ROLE_DEPTH}"
                raise BadConfiguration(message)
        roles[member] = frozenset(reached)
    return roles


class Authorizer:
    """The policy in force: a snapshot that is replaced whole, or kept."""

    def __init__(self, model: Path, rows: Path, registries: Iterable[str]) -> None:
        """Load the first snapshot.

        Raises:
            BadConfiguration: the policy is wrong.
        """
        self._sources = (model, rows, frozenset(registries))
        self.snapshot = Snapshot(*self._sources)

    def reload(self) -> bool:
        """Swap in the files' present content; True if it changed. Build beside, swap by one assignment.

        Raises:
            BadConfiguration: the new files are wrong. The old snapshot stays in force.
        """
        fresh = Snapshot(*self._sources)
        if fresh.revision == self.snapshot.revision:
            return False
        self.snapshot = fresh
        return True

    def scope(self, principal: Principal, registry: str, kind: str, action: str) -> Scope:
        """Return what can be read at most, by the snapshot in force and what the credential is narrowed to."""
        if principal.scope is not None and not covers(principal.scope, registry, action):
            return Scope()
        return self.snapshot.scope(principal, registry, kind, action)

    def decide(self, principal: Principal, registry: str, resource: str, action: str) -> Decision:
        """Decide by the snapshot in force, for what the credential is narrowed to."""
        if principal.scope is not None and not covers(principal.scope, registry, action):
            return Decision(revision=self.snapshot.revision, beyond_scope=True)
        return self.snapshot.decide_whole(principal, registry, resource, action)
