"""Explains what a snapshot decides: by which row, by which memberships, and which rows nearly matched."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from service.authorization.authorizer import Authorizer, Pace
from service.authorization.checking import OWNER, question_problem
from service.authorization.patterns import SET, action_match, below_match, member_of, resource_match, set_of
from service.authorization.roles import Link
from service.authorization.rows import Row
from service.authorization.snapshot import Snapshot
from service.explanation import JOURNAL, Explanation, Holder, Near, PolicyRow, Step, WhoCan
from service.model import Decision, Principal
from service.scope import covers

MAX_NEAR = 10
MAX_HOLDERS = 1_000
_MAX_DIFFERENCES = 2
_ORDER = ("resource", "registry", "action", "subject", "object")
"""What the rows that nearly matched differ in, nearest first; ``object``: an action on another kind of thing."""


def explain(
    snapshot: Snapshot,
    principal: Principal,
    registry: str,
    resource: str,
    action: str,
    *,
    owns: bool = False,
    pace: Callable[[], None] = lambda: None,
) -> Explanation:
    """Explain the decision of `Snapshot.decide_whole`.

    Takes time that grows with the rows: not on the event loop. *pace* is called at each row.
    """
    asked = (registry, resource, action)
    decision = snapshot.decide_whole(principal, *asked, owns=owns)
    deciding = snapshot.row_at(decision.row) if decision.row else None
    return replace(
        _decided(principal, asked, decision),
        row=shown(deciding) if deciding else None,
        decided_on=_decided_on(snapshot, deciding, resource) if deciding else "",
        path=tuple(path_to(snapshot, principal, deciding.subject, owns=owns)) if deciding else (),
        sets=tuple(sets_to(snapshot, resource, deciding.resource)) if deciding else (),
        roles=tuple(sorted(snapshot.roles_of(principal, owns=owns))),
        near=tuple(_near(snapshot, principal, asked, deciding, pace, owns=owns)),
    )


def who_can(
    snapshot: Snapshot, registry: str, resource: str, action: str, pace: Callable[[], None] = lambda: None
) -> WhoCan:
    """Decide for each subject that the policy names. Takes time that grows with the rows: not on the event loop.

    Groups that only credentials name are listed as groups, not by their members; `owner` stands for who created it.
    *pace* is called at each subject.
    """
    names = {row.subject for row in snapshot.rows} | {name for link in snapshot.links for name in link[:2]}
    found: dict[bool, list[Holder]] = {True: [], False: []}
    for name in sorted(names, key=lambda name: (name.startswith("role:"), name)):
        pace()
        decision = snapshot.decide_whole(Principal(name), registry, resource, action, owns=name == OWNER)
        if decision.row is not None:
            found[decision.allowed].append(Holder(name, shown(snapshot.row_at(decision.row))))
    return WhoCan(
        registry,
        resource,
        action,
        snapshot.revision,
        tuple(found[True][:MAX_HOLDERS]),
        tuple(found[False][:MAX_HOLDERS]),
        sum(max(0, len(holders) - MAX_HOLDERS) for holders in found.values()),
    )


class PolicyExplainer:
    """Explains the policy in force, for what a credential is narrowed to."""

    def __init__(self, authorizer: Authorizer, registries: Iterable[str]) -> None:
        """Explain *authorizer*, whose rows name *registries*."""
        self._authorizer = authorizer
        self._registries = tuple(registries)

    def problem(self, subjects: Iterable[str], registry: str, resource: str, action: str) -> str:
        """Say why nobody can ever ask this; nothing for a question that can be asked."""
        return question_problem(subjects, registry, resource, action, self._registries)

    def decide(self, principal: Principal, registry: str, resource: str, action: str) -> Explanation:
        """Say what is decided, without any row. Takes microseconds."""
        asked = (registry, resource, action)
        return _decided(principal, asked, self._authorizer.decide(principal, *asked))

    def explain(self, principal: Principal, registry: str, resource: str, action: str) -> Explanation:
        """Explain a decision; of what the credential is narrowed from no row is named."""
        snapshot = self._authorizer.snapshot
        owns = snapshot.names_owner and self._authorizer.owns(principal, registry, resource)
        found = explain(snapshot, principal, registry, resource, action, owns=owns, pace=Pace())
        if covers(principal.scope, registry, action):
            return found
        return replace(found, allowed=False, beyond_scope=True, row=None, decided_on="", path=(), sets=(), near=())

    def who_can(self, registry: str, resource: str, action: str) -> WhoCan:
        """Decide for every subject of the policy."""
        return who_can(self._authorizer.snapshot, registry, resource, action, Pace())


def _decided(principal: Principal, asked: tuple[str, str, str], decision: Decision) -> Explanation:
    """Say what was decided, without any row."""
    groups = tuple(sorted(principal.groups))
    allowed, revision, beyond = decision.allowed, decision.revision, decision.beyond_scope
    return Explanation(principal.subject, groups, *asked, allowed, revision, beyond_scope=beyond)


def shown(row: Row) -> PolicyRow:
    """Give a row as it is shown."""
    text = f"p, {row.subject}, {row.registry}, {row.resource}, {row.action}, {row.effect}"
    return PolicyRow(row.where, text)


def path_to(snapshot: Snapshot, principal: Principal, wanted: str, *, owns: bool = False) -> list[Step]:
    """Return the shortest way of memberships from *principal* to *wanted*; nothing where they are the same."""
    ways: dict[str, tuple[Step, ...]] = {principal.subject: ()}
    for group in sorted(principal.groups - {principal.subject, OWNER}):
        ways[group] = (Step(principal.subject, group, None),)
    if owns:
        ways[OWNER] = (Step(principal.subject, OWNER, JOURNAL),)
    return _way(snapshot, snapshot.links, ways, wanted)


def sets_to(snapshot: Snapshot, resource: str, pattern: str) -> list[Step]:
    """Return the shortest way from the model or experiment of *resource* to the set of *pattern*, if it names one."""
    return _way(snapshot, snapshot.members, {member_of(resource): ()}, set_of(pattern))


def _way(snapshot: Snapshot, links: Iterable[Link], ways: dict[str, tuple[Step, ...]], wanted: str) -> list[Step]:
    file = snapshot.rows[0].file
    parents: dict[str, list[tuple[str, int]]] = {}
    for member, whole, line in links:
        parents.setdefault(member, []).append((whole, line))
    frontier = list(ways)
    while wanted not in ways and frontier:
        reached = []
        for member in frontier:
            for whole, line in parents.get(member, ()):
                if whole not in ways:
                    ways[whole] = (*ways[member], Step(member, whole, f"{file}:{line}"))
                    reached.append(whole)
        frontier = reached
    return list(ways.get(wanted, ()))


def _covers(snapshot: Snapshot, pattern: str, resource: str) -> bool:
    of_set = set_of(pattern)
    if of_set == SET:
        return resource_match(resource, pattern) if "*" in pattern else resource == pattern
    return member_of(resource) in snapshot.members_of[of_set] and below_match(resource, pattern)


def _decided_on(snapshot: Snapshot, row: Row, resource: str) -> str:
    return resource if _covers(snapshot, row.resource, resource) else member_of(resource)


def _near(
    snapshot: Snapshot,
    principal: Principal,
    asked: tuple[str, str, str],
    deciding: Row | None,
    pace: Callable[[], None],
    *,
    owns: bool,
) -> list[Near]:
    """List the nearest rows that did not decide: those that match too, and those that differ in one thing.

    Of the principal's own rows those that differ in two count as well, if their action is on the same kind of thing.
    """
    roles = snapshot.roles_of(principal, owns=owns)
    nearest = heapq.nsmallest(MAX_NEAR, _ranked(snapshot, roles, asked, deciding, pace), key=lambda item: item[0])
    near = []
    for _, row, differs in nearest:
        reasons = [_reason(kind, row, principal, asked) for kind in differs]
        because = "; ".join(reasons) or _matches_too(row, deciding)
        near.append(Near(row.where, shown(row).text, differs, because))
    return near


def _ranked(
    snapshot: Snapshot,
    roles: frozenset[str],
    asked: tuple[str, str, str],
    deciding: Row | None,
    pace: Callable[[], None],
) -> Iterator[tuple[tuple[int, ...], Row, tuple[str, ...]]]:
    for index, row in enumerate(snapshot.rows):
        pace()
        if row is deciding:
            continue
        differs = _differences(snapshot, row, roles, asked)
        if differs is None:
            continue
        kinds = tuple(sorted(_rank(kind, row, asked) for kind in differs))
        if len(differs) <= 1 or max(kinds) <= _ORDER.index("action"):
            yield (len(differs), *kinds, -_common(row.resource, asked[1]), index), row, differs


def _rank(kind: str, row: Row, asked: tuple[str, str, str]) -> int:
    other = kind == "action" and row.action.partition(":")[0] != asked[2].partition(":")[0]
    return _ORDER.index("object" if other else kind)


def _differences(
    snapshot: Snapshot, row: Row, roles: frozenset[str], asked: tuple[str, str, str]
) -> tuple[str, ...] | None:
    """Say what a row differs in; None where that is too much. Most rows are for others: what is cheap comes first."""
    registry, resource, action = asked
    differs = []
    if row.registry not in (registry, "*"):
        differs.append("registry")
    if not action_match(action, row.action):
        differs.append("action")
    if row.subject not in roles:
        differs.append("subject")
    if len(differs) > (1 if "subject" in differs else _MAX_DIFFERENCES):
        return None
    if not _covers(snapshot, row.resource, resource):
        differs.insert(0, "resource")
    return tuple(differs) if len(differs) <= (1 if "subject" in differs else _MAX_DIFFERENCES) else None


def _reason(kind: str, row: Row, principal: Principal, asked: tuple[str, str, str]) -> str:
    registry, resource, action = asked
    if kind == "action":
        return f"its action {row.action} is not {action}"
    if kind == "registry":
        return f"its registry {row.registry} is not {registry}"
    if kind == "subject":
        return f"{principal.subject} {'is not in ' + row.subject if row.subject != OWNER else 'did not create it'}"
    if row.resource == f"{resource}/*":
        return f"{row.resource} covers what is below {resource}, not {resource} itself"
    if resource.startswith(f"{row.resource}/"):
        return f"{row.resource} covers nothing below itself; {row.resource}/* does"
    return f"its resource {row.resource} does not cover {resource}"


def _matches_too(row: Row, deciding: Row | None) -> str:
    if deciding is not None and deciding.effect == "deny" and row.effect == "allow":
        return f"it matches, and the deny of {deciding.where} beats it"
    return "it matches too"


def _common(pattern: str, resource: str) -> int:
    """Count how far a pattern and a resource agree: whole segments first, then characters of the next one."""
    score = 0
    for expected, given in zip(pattern.split("/"), resource.split("/"), strict=False):
        if expected != given and not (expected.endswith("*") and given.startswith(expected[:-1])):
            same = next((at for at, pair in enumerate(zip(expected, given, strict=False)) if len({*pair}) > 1), None)
            return score + (same if same is not None else min(len(expected), len(given)))
        score += 1_000
    return score
