"""One CEL expression: compiled, bounded, and with the facts it names known before it is evaluated.

CEL short-circuits: ``missing > 0.5 || true`` is true. A gate must not pass on a fact that is not there, so the
facts an expression names are found in its syntax tree (`syntax`) and resolved first (`needs`).

The runtime is `cel-expr-python`, the C++ implementation: types, an iteration budget, a depth limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cel_expr_python import cel
from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError

from service.promotion import functions
from service.promotion.needs import needs_of
from service.promotion.slips import slip_of
from service.promotion.syntax import (
    RANGE,
    STEP,
    Path,
    asks_items,
    children,
    condition_of,
    digest_of,
    dotted,
    named,
    null_comparison,
    parse,
    path_of,
)

MAX_CHARACTERS = 2_000
OPEN: Mapping[str, Any] = {}
"""In a schema: any key may be asked for."""


class ExpressionError(ValueError):
    """An expression that may not be used; the message is one sentence for the author."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What evaluating gave: ``value`` is None when it could not be evaluated."""

    value: bool | None
    missing: tuple[str, ...]
    problem: str = ""


class Environment:
    """The variables expressions may use, and which fields each of them has."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Declare *schema*: variable -> fields (nested), `OPEN` for any, None for a value without fields."""
        self.schema = schema
        special = {"now": cel.Type.TIMESTAMP, "evidence": _list(), "approvals": _list()}
        variables = {name: special.get(name, cel.Type.DYN) for name in schema}
        self._env = cel.NewEnv(variables=variables, functions=functions.DECLARED, function_impls=functions.IMPLEMENTED)

    def compile(self, text: str) -> Expression:
        """Compile *text*.

        Raises:
            ExpressionError: too long, not CEL, not boolean, or it names an unknown variable or fact.
        """
        if len(text) > MAX_CHARACTERS:
            message = f"the expression has {len(text)} characters; at most {MAX_CHARACTERS} are read"
            raise ExpressionError(message)
        try:
            program = self._env.compile(text)
            tree = parse(program.serialize())
        except (RuntimeError, ValueError, TypeError, DecodeError) as error:
            raise ExpressionError(_first_line(error)) from None
        if program.return_type() != cel.Type.BOOL:
            message = f"the expression gives {program.return_type().name()}, not a boolean"
            raise ExpressionError(message)
        for path in named(tree):
            self._check(path)
        self._check_use(tree, frozenset(), inside=False)
        slip = slip_of(tree, self._problem_of)
        if slip is not None:
            raise ExpressionError(slip)
        return Expression(self, text, program, tree)

    def _problem_of(self, constant: str) -> str:
        """Evaluate an expression of constants alone; return what is wrong with it, or nothing."""
        try:
            value = self._env.compile(constant).eval(data={})
        except (RuntimeError, ValueError, TypeError) as error:
            return _first_line(error)
        return _first_line(value.value()) if value.type() == cel.Type.ERROR else ""

    def activation(self, facts: Mapping[str, Any]) -> Any:
        """Give *facts* to the runtime, once for all expressions that are evaluated over them."""
        return self._env.Activation(data=_values(facts))

    def _check_use(self, tree: Any, bound: frozenset[str], *, inside: bool) -> None:
        """Refuse what would let a missing fact pass unseen, because its path is not known before evaluation.

        A group of facts (``candidate``, ``candidate.metrics``) may be counted, searched, looped over or compared
        with null, but not handed on; a key is a constant; *inside* a loop, ``||`` may not stand over an item's facts.
        """
        path = path_of(tree, bound)
        if path is not None:
            if self._is_group(path) and not tree.select_expr.test_only:
                message = f"{dotted(path)!r} is a group of facts; name one of them"
                raise ExpressionError(message)
            return
        call = tree.call_expr
        if null_comparison(tree, bound) is not None:
            return
        if call.function == "_[_]" and not inside:
            message = "the key of a fact must be a constant"
            raise ExpressionError(message)
        if inside and call.function in ("_||_", "_?_:_") and any(asks_items(arg, bound) for arg in call.args):
            message = "inside a loop, || and ?: may not stand over an item's facts: one that is missing would pass"
            raise ExpressionError(message)
        loop = tree.comprehension_expr if tree.WhichOneof("expr_kind") == "comprehension_expr" else None
        for index, (child, names) in enumerate(children(tree, bound)):
            counted = call.function in ("size", "@in", "_[_]", "passed") or (loop is not None and index == RANGE)
            if counted and path_of(child, names) is not None:
                continue
            is_step = loop is not None and index == STEP
            self._check_use(condition_of(loop) if is_step else child, names, inside=inside or loop is not None)

    def _is_group(self, path: Path) -> bool:
        fields: Any = self.schema
        for key in path:
            if fields is OPEN:
                return False
            fields = fields.get(key) if isinstance(fields, Mapping) else None
        return isinstance(fields, Mapping)

    def _check(self, path: Path) -> None:
        fields: Any = self.schema
        for depth, key in enumerate(path):
            if fields is OPEN or fields is None or isinstance(key, int):
                return
            if key not in fields:
                known = ", ".join(sorted(fields))
                message = f"unknown fact {dotted(path[: depth + 1])!r}; {dotted(path[:depth]) or 'there'} has: {known}"
                raise ExpressionError(message)
            fields = fields[key]


class Expression:
    """A compiled boolean expression."""

    def __init__(self, environment: Environment, text: str, program: Any, tree: Any) -> None:
        """Keep what `Environment.compile` made."""
        self.text = text
        self._environment = environment
        self._program = program
        self._needs = needs_of(tree)
        self.paths: tuple[Path, ...] = tuple(dict.fromkeys(named(tree)))
        """Every fact the expression names."""
        self.digest = digest_of(tree)
        """Names what is written, whatever its white space and comments."""

    def evaluate(self, facts: Mapping[str, Any], activation: Any = None) -> Outcome:
        """Evaluate over *facts*. A fact that is needed and is absent, null or NaN is never evaluated around.

        *activation* is what `Environment.activation` made of the same facts, for several expressions over them.
        """
        missing = tuple(dict.fromkeys(dotted(path) for path in self._needs(facts)))
        if missing:
            return Outcome(None, missing)
        try:
            value = self._program.eval(activation=activation or self._environment.activation(facts))
        except (RuntimeError, ValueError, TypeError) as error:
            return Outcome(None, (), _first_line(error))
        if value.type() != cel.Type.BOOL:
            return Outcome(None, (), _first_line(value.value()))
        return Outcome(bool(value.value()), ())


def _values(value: Any) -> Any:
    """Convert what the runtime does not take inside maps: times."""
    if isinstance(value, dict | Mapping):
        return {key: _values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_values(item) for item in value]
    if isinstance(value, datetime):
        stamp = timestamp_pb2.Timestamp()
        stamp.FromDatetime(value)
        return stamp
    return value


def _list() -> Any:
    return cel.Type.List(cel.Type.DYN)


def _first_line(error: object) -> str:
    return str(error).split(" [", maxsplit=1)[0].splitlines()[0][:300]
