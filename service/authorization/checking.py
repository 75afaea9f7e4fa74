"""Says what is wrong with one row, or with one question, so that the writer can put it right."""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Sequence
from urllib.parse import unquote, unquote_to_bytes

from service.authorization.patterns import SET
from service.model import ACTIONS
from service.resources import all_shapes, asked_on, possible, shapes_of

OWNER = "owner"
"""The subject of rows for whoever created the model that is asked about."""
EFFECTS = ("allow", "deny")
SHAPES = {
    "p": ("p", "subject", "registry", "resource", "action", "effect"),
    "g": ("g", "member", "role"),
    "g2": ("g2", "models/{name}, experiments/{name} or set:{name}", "set:{name}"),
}
"""The rows there are, and their fields."""
_SUBJECT = re.compile(r"(user|service|group|role):[^\s:][^:]*")
_SET = re.compile(SET + r"[A-Za-z0-9._@-]+")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._@ -]|%[0-9A-F]{2})*\*?")
_NEEDLESS = re.compile(r"%(2[0DE]|3[0-9]|4[0-9A-F]|5[0-9AF]|6[1-9A-F]|7[0-9A])")
"""Encodings of what stands for itself: the registry's names are never asked about in this spelling."""
_KINDS = frozenset({"models", "experiments", "locations", "audit", "access", "grants", "webhooks", "*"})
_OBJECTS = frozenset(action.partition(":")[0] for action in ACTIONS)

Problem = tuple[int, str]
"""Which field it is, from 0, and what is wrong with it."""


def row_problem(cells: Sequence[str], registries: Collection[str]) -> Problem | None:
    """Say what is wrong with the row *cells*; it may name only *registries* or ``*``."""
    shape = SHAPES.get(cells[0])
    if shape is None:
        return 0, f"unknown row type {cells[0]!r}; there are p, g and g2"
    if len(cells) != len(shape):
        return min(len(cells), len(shape)), f"{len(cells)} fields instead of {len(shape)}: {', '.join(shape)}"
    if cells[0] == "g":
        return _link_problem(*cells[1:])
    if cells[0] == "g2":
        return _member_problem(*cells[1:])
    return _permission_problem(*cells[1:], registries=registries)


def _permission_problem(
    subject: str, registry: str, resource: str, action: str, effect: str, *, registries: Collection[str]
) -> Problem | None:
    if subject != OWNER and not _SUBJECT.fullmatch(subject):
        return 1, _not_a_subject(subject, "user:, service:, group: or role:, and is not owner")
    if registry != "*" and registry not in registries:
        return 2, f"the registry {registry!r} is not configured; there are: {', '.join(sorted(registries))}"
    if problem := _set_pattern_problem(resource) if resource.startswith(SET) else _resource_problem(resource):
        return 3, problem
    if action not in ACTIONS and action != "*" and not (action.endswith(":*") and action[:-2] in _OBJECTS):
        return 4, f"unknown action {action!r}{_near(action)}"
    if effect not in EFFECTS:
        return 5, f"the effect {effect!r} is neither allow nor deny (lower case)"
    return None


def _link_problem(member: str, role: str) -> Problem | None:
    if role == OWNER:
        return 2, "nobody is made owner by a row: the owner of a model is who created it"
    if member != OWNER and not _SUBJECT.fullmatch(member):
        return 1, _not_a_subject(member, "user:, service:, group: or role:, and is not owner")
    if not _SUBJECT.fullmatch(role):
        return 2, _not_a_subject(role, "user:, service:, group: or role:")
    return None


def _member_problem(member: str, name: str) -> Problem | None:
    if member.startswith(SET):
        if not _SET.fullmatch(member):
            return 1, f"the set {member!r} is not set: and a name of A-Z a-z 0-9 . _ @ -"
    elif "*" in member:
        return 1, f"the member {member!r} is a pattern; a set has exact members, or is not needed"
    else:
        kind, _, rest = member.partition("/")
        if kind not in ("models", "experiments") or not rest or "/" in rest or not _SEGMENT.fullmatch(rest):
            return 1, f"the member {member!r} is not models/{{name}} or experiments/{{name}} (percent-encoded) or a set"
        if problem := _spelling_problem(member, rest):
            return 1, problem
    if not _SET.fullmatch(name):
        return 2, f"the set {name!r} is not set: and a name of A-Z a-z 0-9 . _ @ -"
    return None


def question_problem(
    subjects: Iterable[str], registry: str, resource: str, action: str, registries: Iterable[str]
) -> str:
    """Say why nobody can ever ask this, with what is known instead; nothing for a question that can be asked."""
    for subject in subjects:
        if not _SUBJECT.fullmatch(subject):
            return _not_a_subject(subject, "user:, service:, group: or role:")
    if registry not in registries:
        return f"no registry is named {registry!r}; there are: {', '.join(registries)}"
    if action not in ACTIONS:
        return f"unknown action {action!r}{_near(action)}"
    if "*" in resource:
        return f"the resource {resource!r} is a pattern; name one resource"
    if resource.startswith(SET):
        return f"the resource {resource!r} is a set; name one of its members"
    problem = _resource_problem(resource)
    if problem is None and not asked_on(resource, action):
        return f"{action} is never asked on {resource!r}, but on: {', '.join(shapes_of(action))}"
    return problem or ""


def below_shapes(rest: str) -> list[str]:
    """Return what *rest*, which follows a set, is as a pattern of each kind of member; a set has no other."""
    return [f"{kind}/x/{rest}" if rest else f"{kind}/x" for kind in ("models", "experiments")]


def environment_of(resource: str) -> str | None:
    """Return the environment that *resource* names, if it names one exactly."""
    parts = resource.split("/")
    if parts[0].startswith(SET):
        parts.insert(0, "models")
    exact = parts[0] == "models" and parts[2:3] == ["environments"] and len(parts) > 3 and not parts[3].endswith("*")
    return unquote(parts[3]) if exact else None


def _not_a_subject(subject: str, known: str) -> str:
    if subject.startswith(("user:", "service:", "group:", "role:")):
        return f"the subject {subject!r} has no name, another colon in it, or white space where it begins"
    return f"the subject {subject!r} does not begin with {known}"


def _near(action: str) -> str:
    similar = sorted(known for known in ACTIONS if known.partition(":")[0] == action.partition(":")[0])
    return f"; there are: {', '.join(similar or sorted(ACTIONS))}"


def _set_pattern_problem(resource: str) -> str | None:
    name, *below = resource.split("/")
    if not _SET.fullmatch(name):
        return f"the set {name!r} is not set: and a name of A-Z a-z 0-9 . _ @ -"
    if problem := _segments_problem(resource, below):
        return problem
    if not any(possible(shape) for shape in below_shapes("/".join(below))):
        return f"nothing below a model or experiment is like {resource!r}; there are: {', '.join(all_shapes())}"
    return None


def _resource_problem(resource: str) -> str | None:
    segments = resource.split("/")
    if segments[0] not in _KINDS:
        return f"the resource {resource!r} does not begin with {', '.join(sorted(_KINDS))} or set:"
    if problem := _segments_problem(resource, segments):
        return problem
    if not possible(resource):
        return f"no resource is like {resource!r}; there are: {', '.join(all_shapes())}"
    return None


def _segments_problem(resource: str, segments: Iterable[str]) -> str | None:
    for part in segments:
        if not part or not _SEGMENT.fullmatch(part):
            if "*" in part[:-1]:
                return f"the resource {resource!r} has a * that is not at the end of its segment"
            return f"the resource {resource!r} has an empty segment or a character to be percent-encoded"
        if problem := _spelling_problem(resource, part):
            return problem
    return None


def _spelling_problem(resource: str, part: str) -> str | None:
    """Refuse what no name is ever written as: a row that denies it would deny nothing."""
    if needless := _NEEDLESS.search(part):
        return f"the resource {resource!r} encodes {unquote(needless[0])!r} as {needless[0]}; write it as it is"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(
            unquote_to_bytes(part.removesuffix("*")), final=not part.endswith("*")
        )
    except UnicodeDecodeError:
        return f"the resource {resource!r} has bytes that are not UTF-8"
    return None
