"""Finds in a rule what cannot work whatever the facts are: calls that fail for their constants, kinds never equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from service.promotion.syntax import Path, children, dotted, path_of

_COMPARISONS = {"_<_": "<", "_<=_": "<=", "_>_": ">", "_>=_": ">=", "_==_": "==", "_!=_": "!="}
_HINTS = {
    "duration": "its units are h, m and s: duration('24h')",
    "timestamp": "write timestamp('2026-01-01T00:00:00Z')",
}
_NUMBERS = frozenset({"int64_value", "uint64_value", "double_value"})


def slip_of(tree: Any, evaluate: Callable[[str], str]) -> str | None:
    """Return what is wrong in *tree*, in a sentence; *evaluate* gives the problem of a constant, or ""."""
    return _slip(tree, frozenset(), evaluate)


def _slip(tree: Any, bound: frozenset[str], evaluate: Callable[[str], str]) -> str | None:
    call = tree.call_expr
    problem = _wrong_kinds(call, bound) or _wrong_constants(call, evaluate)
    return problem or next(
        (found for part, names in children(tree, bound) if (found := _slip(part, names, evaluate))), None
    )


def _wrong_kinds(call: Any, bound: frozenset[str]) -> str | None:
    """Say that a number is compared with text, or text with a number."""
    if call.function not in _COMPARISONS:
        return None
    left, right = call.args
    for fact, other in ((left, right), (right, left)):
        path, kind = path_of(fact, bound), other.const_expr.WhichOneof("constant_kind")
        if path is None:
            continue
        if _is_number(path) and kind == "string_value":
            return f"{dotted(path)} is a number and {_literal(other)} is text: write the number without quotes"
        if _is_text(path) and kind in _NUMBERS:
            return f"{dotted(path)} is text and {_literal(other)} is a number: write double({dotted(path)})"
    return None


def _wrong_constants(call: Any, evaluate: Callable[[str], str]) -> str | None:
    if not call.function.isidentifier():
        return None
    target = _literal(call.target) if call.HasField("target") else ""
    arguments = [_literal(argument) for argument in call.args]
    if call.function == "matches":  # the pattern is wrong whatever is looked for in it
        target, arguments = "''", arguments[-1:]
    if not arguments or None in arguments or target is None:
        return None
    written = f"{call.function}({', '.join(map(str, arguments))})"
    problem = evaluate(f"{target}.{written}" if target else written).rpartition("ARGUMENT: ")[2]
    hint = f"; {_HINTS[call.function]}" if call.function in _HINTS else ""
    return f"{written} can never be evaluated: {problem}{hint}" if problem else None


def _literal(tree: Any) -> str | None:
    """Write a constant as a rule does; None for anything else."""
    kind = tree.const_expr.WhichOneof("constant_kind") if tree.WhichOneof("expr_kind") == "const_expr" else None
    if kind == "string_value":
        text = tree.const_expr.string_value
        return f"'{text}'" if text.isprintable() and not {"'", "\\"} & set(text) else json.dumps(text)
    if kind in _NUMBERS or kind == "bool_value":
        return json.dumps(getattr(tree.const_expr, kind)) + ("u" if kind == "uint64_value" else "")
    return None


def _is_number(path: Path) -> bool:
    return path[0] in ("candidate", "incumbent") and (
        path[1:] == ("size",) or (path[1:2] == ("metrics",) and len(path) == 3)
    )


def _is_text(path: Path) -> bool:
    return path[0] in ("candidate", "incumbent") and path[1:2] in (("params",), ("tags",)) and len(path) == 3
