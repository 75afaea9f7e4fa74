"""Suggests rows of least privilege from what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix

from service.authorization.checking import question_problem
from service.authorization.snapshot import Snapshot
from service.errors import BadConfiguration
from service.estates.history import Past, Right
from service.estates.rows import comment, row
from service.model import Principal
from service.resources import shapes_of

_MIN_PREFIX = 3
_NAMED = 8
"""Principals and names that a comment lists."""
_KEYED = ("tags", "aliases", "evidence")
"""What has names of its own below a model."""
_READS = frozenset({"model:read", "version:read", "alias:read", "experiment:read", "run:read", "artifact:read"})
Actor = tuple[str, frozenset[str]]
_Row = tuple[str, str, str]
"""Registry, resource, action."""


@dataclass(slots=True)
class _Use:
    """How often a right was used, and when last."""

    count: int = 0
    last: str = ""

    def add(self, count: int, time: str) -> None:
        self.count, self.last = self.count + count, max(self.last, time)


_Rows = dict[_Row, tuple[_Use, list[str]]]


@dataclass(slots=True)
class _Seen:
    """What was done, by whom."""

    uses: dict[Actor, dict[Right, _Use]] = field(default_factory=dict)
    forbidden: dict[tuple[str, Right, str], _Use] = field(default_factory=dict)
    many: dict[tuple[str, Right], _Use] = field(default_factory=dict)
    not_whole: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    first: str = ""
    last: str = ""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A policy, and what it was made from."""

    text: str
    rights: Mapping[Actor, frozenset[Right]]
    """What each actor did, and the policy must allow."""
    rows: int

    def check(self, snapshot: Snapshot) -> None:
        """See to it that *snapshot*, which is this policy, allows all that it was made from.

        Raises:
            BadConfiguration: it does not; it must not be used.
        """
        for (subject, groups), rights in self.rights.items():
            principal = Principal(subject, groups)
            for right in rights:
                if not snapshot.decide_whole(principal, right.registry, right.resource, right.action).allowed:
                    message = f"the suggestion does not allow {subject} {right.action} on {right.resource}; report this"
                    raise BadConfiguration(message)


def suggest(past: Iterable[Past], generalise: int | None = None) -> Suggestion:
    """Make rows that allow what was done, and as little else as can be said.

    A right that every principal seen in a group used becomes a row of the group. From *generalise* names on, one
    pattern stands for them.
    """
    seen = _seen(past)
    granted = _granted(seen.uses)
    lines = _head(seen)
    count = 0
    for subject in sorted(granted, key=lambda name: (not name.startswith("group:"), name)):
        rows = _patterns(granted[subject], generalise)
        who = _members(subject, seen.uses)
        lines += ["", comment(f"{subject}{who}")]
        for (registry, resource, action), (use, names) in sorted(rows.items()):
            lines.append(comment(_said(use, names, resource, action)))
            lines.append(row("p", subject, registry, resource, action, "allow"))
            count += 1
    lines += _tail(seen)
    return Suggestion("\n".join(lines) + "\n", {actor: frozenset(uses) for actor, uses in seen.uses.items()}, count)


def _seen(past: Iterable[Past]) -> _Seen:
    seen = _Seen()
    for item in past:
        if not item.done:
            continue
        seen.calls += item.done
        seen.first = min(seen.first or item.time, item.time)
        seen.last = max(seen.last, item.time)
        if not item.whole:
            seen.not_whole[item.subject] += item.done
        forbidden = {Right(item.registry, d.resource, d.action): d.row for d in item.denials if d.row}
        missing = [Right(item.registry, d.resource, d.action) for d in item.denials if not d.row]
        for right in dict.fromkeys((*item.rights, *missing, *forbidden)):
            if "*" in right.resource:
                seen.many.setdefault((item.subject, right), _Use()).add(item.done, item.time)
            elif right in forbidden:
                key = (item.subject, right, forbidden[right])
                seen.forbidden.setdefault(key, _Use()).add(item.done, item.time)
            elif _can_be_asked(item.subject, right):
                uses = seen.uses.setdefault((item.subject, item.groups), {})
                uses.setdefault(right, _Use()).add(item.done, item.time)
            else:
                seen.not_whole[item.subject] += item.done
    return seen


def _can_be_asked(subject: str, right: Right) -> bool:
    """Tell whether a row can name it; names that were cut cannot."""
    return not question_problem((subject,), right.registry, right.resource, right.action, (right.registry,))


def _granted(uses: Mapping[Actor, Mapping[Right, _Use]]) -> dict[str, dict[Right, _Use]]:
    """Give each right to a group where all that were seen in it used it, else to who used it."""
    granted: dict[str, dict[Right, _Use]] = {}
    left = {actor: dict(rights) for actor, rights in uses.items()}
    members: dict[str, list[Actor]] = {}
    for actor in uses:
        for group in actor[1]:
            members.setdefault(group, []).append(actor)
    for group in sorted(members, key=lambda name: (-len(members[name]), name)):
        actors = members[group]
        if len({subject for subject, _ in actors}) == 1:
            continue  # a row of its own says the same, and gives nobody else anything
        common = set.intersection(*(set(uses[actor]) for actor in actors))
        for right in sorted(common):
            if not any(right in left[actor] for actor in actors):
                continue
            total = granted.setdefault(group, {}).setdefault(right, _Use())
            for actor in actors:
                total.add(uses[actor][right].count, uses[actor][right].last)
                left[actor].pop(right, None)
    for (subject, _), rights in left.items():
        for right, use in rights.items():
            granted.setdefault(subject, {}).setdefault(right, _Use()).add(use.count, use.last)
    return {subject: rights for subject, rights in granted.items() if rights}


def _patterns(rights: Mapping[Right, _Use], generalise: int | None) -> _Rows:
    """Map each row to its use and the names that its pattern stands for."""
    rows: _Rows = {(right.registry, right.resource, right.action): (use, []) for right, use in rights.items()}
    if generalise is not None:
        for place in (1, -1):
            rows = _generalised(rows, place, generalise)
    return rows


def _generalised(rows: _Rows, place: int, least: int) -> _Rows:
    """Put one pattern in the *place* of at least so many names."""
    alike: dict[tuple[str, ...], list[_Row]] = {}
    for key in rows:
        alike.setdefault(_frame(key, place), []).append(key)
    merged: _Rows = {}
    for keys in alike.values():
        registry, resource, action = keys[0]
        parts = resource.split("/")
        names = sorted({key[1].split("/")[place] for key in keys}) if _named_at(resource, place) else []
        if len(names) < least:
            merged.update({key: rows[key] for key in keys})
            continue
        parts[place] = _pattern(names)
        use = _Use()
        for key in keys:
            use.add(rows[key][0].count, rows[key][0].last)
        covered = {*names, *(name for key in keys for name in rows[key][1])}
        merged[registry, "/".join(parts), action] = (use, sorted(covered))
    return merged


def _frame(key: _Row, place: int) -> tuple[str, ...]:
    """Give what rows have in common that differ in one name only."""
    parts = key[1].split("/")
    if not _named_at(key[1], place):
        return ("alone", *key)
    parts[place] = ""
    return (key[0], key[2], *parts)


def _named_at(resource: str, place: int) -> bool:
    parts = resource.split("/")
    if place == 1:
        return len(parts) > 1 and not parts[1].endswith("*")
    return len(parts) > 3 and parts[-2] in _KEYED and not parts[-1].endswith("*")


def _pattern(names: list[str]) -> str:
    """Return the pattern of a segment that covers *names*: their common beginning, if that says anything."""
    prefix = commonprefix(names)  # noqa: RUF071  # character by character
    for length in (1, 2):  # an encoded character is not cut
        if prefix[-length:].startswith("%"):
            prefix = prefix[:-length]
            break
    return f"{prefix}*" if len(prefix) >= _MIN_PREFIX else "*"


def _members(subject: str, uses: Mapping[Actor, object]) -> str:
    if not subject.startswith("group:"):
        return ""
    names = sorted({who for who, groups in uses if subject in groups})
    return f": what all of its {len(names)} did: {_listed(names)}"


def _said(use: _Use, names: Sequence[str] = (), resource: str = "", action: str = "") -> str:
    times = f"{use.count} call{'s' if use.count > 1 else ''}, last {use.last}"
    if not names:
        return times
    deep = resource.endswith("/*") and any(shape.count("/") > resource.count("/") for shape in shapes_of(action))
    below = "; covers what is below them, too" if deep else ""
    return f"{times}; stands for {len(names)} names: {_listed(names)}{below}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _head(seen: _Seen) -> list[str]:
    subjects = {subject for subject, _ in seen.uses}
    reads = any(right.action in _READS for rights in seen.uses.values() for right in rights)
    lines = [
        f"Rows for what was done from {seen.first} to {seen.last}: {seen.calls} calls of {len(subjects)} principals.",
        "They replace rows that allow; add your deny rows again. What was never done is not allowed.",
        "Reads are in the journal where audit.reads is on, and those that no row allowed where access is observed;",
        "some are in these rows." if reads else "there are none here, so these rows let nobody read anything.",
    ]
    return [comment(line) for line in lines]


def _tail(seen: _Seen) -> list[str]:
    lines = [
        f"{who}: {right.action} on {right.resource} of {right.registry}: {_said(use)}; {where} denies it"
        for (who, right, where), use in sorted(seen.forbidden.items(), key=lambda item: item[0])
    ]
    if lines:
        lines.insert(0, "Not suggested, because a row denies it:")
    many = [
        f"{who}: {right.action} on {right.resource} of {right.registry}: {_said(use)}"
        for (who, right), use in sorted(seen.many.items(), key=lambda item: item[0])
    ]
    if many:
        lines += ["Not suggested, because the names are not known; searches show less when access is enforced:", *many]
    if seen.not_whole:
        lines += ["Not suggested in full, because the events were cut or merged:"]
        lines += [f"{who}: {count} calls" for who, count in sorted(seen.not_whole.items())]
    return ["", *map(comment, lines)] if lines else []
