"""Which facts an expression needs, and which of them are not there.

CEL short-circuits: ``missing > 0.5 || true`` is true. A gate must not pass on a fact that is not there, so the facts
an expression names are resolved first; what stands behind ``has()`` or a null guard is needed only where the guard
lets it be reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from service.promotion.syntax import Path, children, null_comparison, path_of

Facts = Mapping[str, Any]
Needs = Callable[[Facts], Iterable[Path]]
"""Gives the paths that an expression needs and that are not there."""
_Guard = Callable[[Facts], bool | None]
"""Gives what the guards in an expression say (Kleene logic): None where something else decides."""


def needs_of(tree: Any, bound: frozenset[str] = frozenset()) -> Needs:
    """Prepare the search for missing facts: once for an expression, since it is asked for each verdict."""
    if tree.WhichOneof("expr_kind") == "select_expr" and tree.select_expr.test_only:
        return _nothing  # has(): asking is not needing
    path = path_of(tree, bound)
    if path is not None:
        return lambda facts: (path,) if _is_unusable(_resolve(path, facts)) else ()
    function, args = tree.call_expr.function, tree.call_expr.args
    if function in ("_&&_", "_||_"):
        return _of_either(args, bound, deciding=function == "_||_")
    if function == "_?_:_":
        return _of_choice(args, bound)
    if null_comparison(tree, bound) is not None:
        return _nothing
    parts = [part for child, names in children(tree, bound) if (part := needs_of(child, names)) is not _nothing]
    return (lambda facts: [path for part in parts for path in part(facts)]) if parts else _nothing


def _nothing(_: Facts) -> Iterable[Path]:
    return ()


def _of_either(args: Sequence[Any], bound: frozenset[str], *, deciding: bool) -> Needs:
    left, right = (needs_of(side, bound) for side in args)
    guard = _guard(args[0], bound)

    def needs(facts: Facts) -> Iterable[Path]:
        return left(facts) if guard(facts) is deciding else [*left(facts), *right(facts)]

    return needs


def _of_choice(args: Sequence[Any], bound: frozenset[str]) -> Needs:
    condition, then, otherwise = (needs_of(part, bound) for part in args)
    guard = _guard(args[0], bound)

    def needs(facts: Facts) -> Iterable[Path]:
        decided = guard(facts)
        reached = [part for part, kept in ((then, decided is not False), (otherwise, decided is not True)) if kept]
        return [*condition(facts), *(path for part in reached for path in part(facts))]

    return needs


def _guard(tree: Any, bound: frozenset[str]) -> _Guard:
    """Prepare the evaluation of the guards in *tree*: ``has()``, null comparisons, and their combinations."""
    if tree.WhichOneof("expr_kind") == "select_expr" and tree.select_expr.test_only:
        path = path_of(tree, bound)
        return _undecided if path is None else (lambda facts: _resolve(path, facts) is not _ABSENT)
    compared = null_comparison(tree, bound)
    if compared is not None:
        fact, equal = compared
        return lambda facts: (resolve(fact, facts) is None) is equal
    function, args = tree.call_expr.function, tree.call_expr.args
    if function == "!_":
        inner = _guard(args[0], bound)
        return lambda facts: None if (said := inner(facts)) is None else not said
    if function in ("_&&_", "_||_"):
        deciding: bool = function == "_||_"
        sides = [_guard(side, bound) for side in args]

        def guard(facts: Facts) -> bool | None:
            said = [side(facts) for side in sides]
            if deciding in said:
                return deciding
            return None if None in said else not deciding

        return guard
    return _undecided


def _undecided(_: Facts) -> None:
    return None


_ABSENT = object()


def _resolve(path: Path, facts: Facts) -> Any:
    value: Any = facts
    for key in path:
        if isinstance(value, list | tuple):
            value = value[key] if isinstance(key, int) and 0 <= key < len(value) else _ABSENT
        elif isinstance(value, dict | Mapping):  # the first is told much faster
            value = value.get(key, _ABSENT)
        else:
            return _ABSENT
        if value is _ABSENT:
            break
    return value


def resolve(path: Path, facts: Mapping[str, Any]) -> Any:
    """Return the fact at *path*, or None."""
    value = _resolve(path, facts)
    return None if value is _ABSENT else value


def _is_unusable(value: Any) -> bool:
    if value is None or value is _ABSENT:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, dict | Mapping):
        return any(isinstance(item, float) and math.isnan(item) for item in value.values())
    return False
