"""What a credential is narrowed to: it never gives a right, it only leaves some out."""

from __future__ import annotations

import re
from collections.abc import Iterable

from service.model import ACTIONS

_ITEM = re.compile(r"(\*|[A-Za-z0-9_-]+)/(\*|[a-z]+:\*|[a-z]+:[a-z-]+)")
_OBJECTS = frozenset(action.partition(":")[0] for action in ACTIONS)
MAX_ITEMS = 50


def item_problem(item: str) -> str | None:
    """Say what is wrong with one item of a scope, ``<registry>/<action>``; each may be ``*``, an action ``model:*``."""
    match = _ITEM.fullmatch(item)
    if match is None:
        return f"{item!r} is not <registry>/<action>, such as main/model:read, main/alias:* or */model:read"
    action = match[2]
    if action != "*" and action not in ACTIONS and not (action.endswith(":*") and action[:-2] in _OBJECTS):
        kind = action.partition(":")[0]
        known = sorted(one for one in ACTIONS if one.startswith(f"{kind}:")) or sorted(f"{one}:*" for one in _OBJECTS)
        return f"{item!r} names the unknown action {action!r}; there are: {', '.join(known)}"
    return None


def covers(scope: Iterable[str] | None, registry: str, action: str) -> bool:
    """Tell whether *scope* lets *action* on *registry* through to the policy; None, which narrows nothing, does."""
    return scope is None or any(_covers(item, registry, action) for item in scope)


def reaches(scope: Iterable[str] | None, registry: str) -> bool:
    """Tell whether *scope* leaves anything of *registry*; None leaves all."""
    return scope is None or any(item.partition("/")[0] in ("*", registry) for item in scope)


def within(narrower: Iterable[str], scope: Iterable[str]) -> bool:
    """Tell whether each item of *narrower* is covered by one item of *scope*."""
    held = tuple(scope)
    return all(any(_covers(item, *asked.split("/", 1)) for item in held) for asked in narrower)


def _covers(item: str, registry: str, action: str) -> bool:
    given_registry, _, given = item.partition("/")
    if given_registry not in ("*", registry):
        return False
    return given in ("*", action) or (given.endswith(":*") and action.startswith(given[:-1]))
