"""One CEL expression: compiled, bounded, and with the facts it names known before it is evaluated.

CEL short-circuits: ``missing > 0.5 || true`` is true. A gate must not pass on a fact that is not there, so the
facts an expression names are found in its syntax tree and resolved first; what stands behind ``has()`` or a
null guard is needed only where the guard lets it be reached.

The runtime is `cel-expr-python`, the C++ implementation: types, an iteration budget, a depth limit.
Its syntax tree is read from the serialised form (cel/expr/syntax.proto), of which the few fields needed are
declared here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from cel_expr_python import cel
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.message import DecodeError

from service.promotion import functions

MAX_CHARACTERS = 2_000
OPEN: Mapping[str, Any] = {}
"""In a schema: any key may be asked for."""

Path = tuple[str | int, ...]


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
            tree = _tree(program.serialize())
        except (RuntimeError, ValueError, TypeError, DecodeError) as error:
            raise ExpressionError(_first_line(error)) from None
        if program.return_type() != cel.Type.BOOL:
            message = f"the expression gives {program.return_type().name()}, not a boolean"
            raise ExpressionError(message)
        for path in named(tree):
            self._check(path)
        self._check_use(tree, frozenset(), inside=False)
        return Expression(text, program, tree)

    def _check_use(self, tree: Any, bound: frozenset[str], *, inside: bool) -> None:
        """Refuse what would let a missing fact pass unseen, because its path is not known before evaluation.

        A group of facts (``candidate``, ``candidate.metrics``) may be counted, searched, looped over or compared
        with null, but not handed on; a key is a constant; *inside* a loop, ``||`` may not stand over an item's facts.
        """
        path = _path(tree, bound)
        if path is not None:
            if self._is_group(path) and not tree.select_expr.test_only:
                message = f"{dotted(path)!r} is a group of facts; name one of them"
                raise ExpressionError(message)
            return
        call = tree.call_expr
        if _null_comparison(tree, bound) is not None:
            return
        if call.function == "_[_]" and not inside:
            message = "the key of a fact must be a constant"
            raise ExpressionError(message)
        if inside and call.function in ("_||_", "_?_:_") and any(_asks_items(arg, bound) for arg in call.args):
            message = "inside a loop, || and ?: may not stand over an item's facts: one that is missing would pass"
            raise ExpressionError(message)
        loop = tree.comprehension_expr if tree.WhichOneof("expr_kind") == "comprehension_expr" else None
        for index, (child, names) in enumerate(_children(tree, bound)):
            counted = call.function in ("size", "@in", "_[_]", "passed") or (loop is not None and index == _RANGE)
            if counted and _path(child, names) is not None:
                continue
            is_step = loop is not None and index == _STEP
            self._check_use(_condition(loop) if is_step else child, names, inside=inside or loop is not None)

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

    def __init__(self, text: str, program: Any, tree: Any) -> None:
        """Keep what `Environment.compile` made."""
        self.text = text
        self._program = program
        self._tree = tree
        self.paths: tuple[Path, ...] = tuple(dict.fromkeys(named(tree)))
        """Every fact the expression names."""
        self.digest = _digest(tree)
        """Names what is written, whatever its white space and comments."""

    def evaluate(self, facts: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> Outcome:
        """Evaluate over *facts*. A fact that is needed and is absent, null or NaN is never evaluated around.

        *values* are the same facts as `cel_values` gives them, for those who evaluate several rules over them.
        """
        missing = tuple(dict.fromkeys(dotted(path) for path in _missing(self._tree, facts, frozenset())))
        if missing:
            return Outcome(None, missing)
        try:
            value = self._program.eval(data=values if values is not None else cel_values(facts))
        except (RuntimeError, ValueError, TypeError) as error:
            return Outcome(None, (), _first_line(error))
        if value.type() != cel.Type.BOOL:
            return Outcome(None, (), _first_line(value.value()))
        return Outcome(bool(value.value()), ())


_RANGE, _STEP = 0, 3
"""Where `_children` gives a comprehension's range and its step."""


def _condition(loop: Any) -> Any:
    """Return the condition the author of a macro wrote: the step is ``accumulator || condition`` or the like."""
    step = loop.loop_step
    args = step.call_expr.args
    if step.call_expr.function in ("_||_", "_&&_") and args[0].ident_expr.name == loop.accu_var:
        return args[1]
    return step


def _digest(tree: Any) -> str:
    plain = _EXPR()
    plain.CopyFrom(tree)
    plain.DiscardUnknownFields()  # identifiers and positions of nodes
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()


def _asks_items(tree: Any, bound: frozenset[str]) -> bool:
    """Tell whether *tree* reads an open field of a loop's item (``e.facts.auc``)."""
    if tree.WhichOneof("expr_kind") == "select_expr":
        inner = tree.select_expr.operand
        deep = inner.WhichOneof("expr_kind") == "select_expr" and not tree.select_expr.test_only
        if deep and _path(tree, frozenset()) is not None and _path(tree, bound) is None:
            return True
    if tree.call_expr.function == "_[_]" and _path(tree, bound) is None:
        return True
    return any(_asks_items(child, names) for child, names in _children(tree, bound))


def cel_values(value: Any) -> Any:
    """Convert what the runtime does not take inside maps: times."""
    if isinstance(value, Mapping):
        return {key: cel_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [cel_values(item) for item in value]
    if isinstance(value, datetime):
        stamp = timestamp_pb2.Timestamp()
        stamp.FromDatetime(value)
        return stamp
    return value


def named(tree: Any) -> Iterator[Path]:
    """Yield every fact path in *tree*, also those behind ``has()``."""
    yield from _paths(tree, frozenset())


def _list() -> Any:
    return cel.Type.List(cel.Type.DYN)


def _first_line(error: object) -> str:
    return str(error).split(" [", maxsplit=1)[0].splitlines()[0][:300]


def dotted(path: Path) -> str:
    """Give the path as a rule writes it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.replace("_", "a").isalnum():
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def _path(tree: Any, bound: frozenset[str]) -> Path | None:
    """Return the fact path that *tree* is, or None if it is something else."""
    kind = tree.WhichOneof("expr_kind")
    if kind == "ident_expr":
        name = tree.ident_expr.name
        return None if name in bound else (name,)
    if kind == "select_expr":
        parent = _path(tree.select_expr.operand, bound)
        return None if parent is None else (*parent, tree.select_expr.field)
    if kind == "call_expr" and tree.call_expr.function == "_[_]":
        parent = _path(tree.call_expr.args[0], bound)
        key = tree.call_expr.args[1].const_expr
        constant = key.WhichOneof("constant_kind") if parent is not None else None
        if parent is not None and constant == "string_value":
            return (*parent, key.string_value)
        if parent is not None and constant == "int64_value":
            return (*parent, key.int64_value)
    return None


def _children(tree: Any, bound: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
    kind = tree.WhichOneof("expr_kind")
    if kind == "select_expr":
        yield tree.select_expr.operand, bound
    elif kind == "call_expr":
        if tree.call_expr.HasField("target"):
            yield tree.call_expr.target, bound
        for argument in tree.call_expr.args:
            yield argument, bound
    elif kind == "list_expr":
        for element in tree.list_expr.elements:
            yield element, bound
    elif kind == "struct_expr":
        for entry in tree.struct_expr.entries:
            if entry.HasField("map_key"):
                yield entry.map_key, bound
            yield entry.value, bound
    elif kind == "comprehension_expr":
        loop = tree.comprehension_expr
        yield loop.iter_range, bound
        yield loop.accu_init, bound
        inner = bound | {loop.iter_var, loop.iter_var2, loop.accu_var}
        for part in (loop.loop_condition, loop.loop_step, loop.result):
            yield part, inner


def _paths(tree: Any, bound: frozenset[str]) -> Iterator[Path]:
    path = _path(tree, bound)
    if path is not None:
        yield path
        return
    for child, names in _children(tree, bound):
        yield from _paths(child, names)


def _missing(tree: Any, facts: Mapping[str, Any], bound: frozenset[str]) -> Iterator[Path]:
    if tree.WhichOneof("expr_kind") == "select_expr" and tree.select_expr.test_only:
        return  # has(): asking is not needing
    path = _path(tree, bound)
    if path is not None:
        if _unusable(_resolve(path, facts)):
            yield path
        return
    function = tree.call_expr.function
    if function in ("_&&_", "_||_"):
        left, right = tree.call_expr.args
        yield from _missing(left, facts, bound)
        if _guard(left, facts, bound) is not (function == "_||_"):
            yield from _missing(right, facts, bound)
        return
    if function == "_?_:_":
        condition, then, otherwise = tree.call_expr.args
        yield from _missing(condition, facts, bound)
        decided = _guard(condition, facts, bound)
        if decided is not False:
            yield from _missing(then, facts, bound)
        if decided is not True:
            yield from _missing(otherwise, facts, bound)
        return
    if _null_comparison(tree, bound) is not None:
        return
    for child, names in _children(tree, bound):
        yield from _missing(child, facts, names)


def _guard(tree: Any, facts: Mapping[str, Any], bound: frozenset[str]) -> bool | None:
    """Evaluate the guards in *tree* (Kleene logic): None where something else than a guard decides."""
    if tree.WhichOneof("expr_kind") == "select_expr" and tree.select_expr.test_only:
        path = _path(tree, bound)
        return None if path is None else _resolve(path, facts) is not _ABSENT
    compared = _null_comparison(tree, bound)
    if compared is not None:
        path, equal = compared
        value = _resolve(path, facts)
        return (value is None or value is _ABSENT) is equal
    function, args = tree.call_expr.function, tree.call_expr.args
    if function == "!_":
        inner = _guard(args[0], facts, bound)
        return None if inner is None else not inner
    if function in ("_&&_", "_||_"):
        deciding: bool = function == "_||_"
        sides = [_guard(side, facts, bound) for side in args]
        if deciding in sides:
            return deciding
        return None if None in sides else not deciding
    return None


def _null_comparison(tree: Any, bound: frozenset[str]) -> tuple[Path, bool] | None:
    if tree.call_expr.function not in ("_==_", "_!=_"):
        return None
    left, right = tree.call_expr.args
    for fact, other in ((left, right), (right, left)):
        path = _path(fact, bound)
        if path is not None and other.const_expr.WhichOneof("constant_kind") == "null_value":
            return path, tree.call_expr.function == "_==_"
    return None


_ABSENT = object()


def _resolve(path: Path, facts: Mapping[str, Any]) -> Any:
    value: Any = facts
    for key in path:
        known: Any = value if isinstance(value, Mapping) else dict(enumerate(value)) if _is_list(value) else {}
        value = known.get(key, _ABSENT)
        if value is _ABSENT:
            break
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def resolve(path: Path, facts: Mapping[str, Any]) -> Any:
    """Return the fact at *path*, or None."""
    value = _resolve(path, facts)
    return None if value is _ABSENT else value


def _unusable(value: Any) -> bool:
    if value is None or value is _ABSENT:
        return True
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Mapping):
        return any(isinstance(item, float) and math.isnan(item) for item in value.values())
    return False


_SYNTAX = """
    Constant: null_value=1:int64! bool_value=2:bool! int64_value=3:int64! uint64_value=4:uint64! double_value=5:double!
    Constant: string_value=6:string! bytes_value=7:bytes!
    Ident: name=1:string
    Select: operand=1:Expr field=2:string test_only=3:bool
    Call: target=1:Expr function=2:string args=3:Expr*
    CreateList: elements=1:Expr*
    Entry: field_key=2:string map_key=3:Expr value=4:Expr
    CreateStruct: entries=2:Entry*
    Comprehension: iter_var=1:string iter_range=2:Expr accu_var=3:string accu_init=4:Expr loop_condition=5:Expr
    Comprehension: loop_step=6:Expr result=7:Expr iter_var2=8:string
    Expr: const_expr=3:Constant! ident_expr=4:Ident! select_expr=5:Select! call_expr=6:Call! list_expr=7:CreateList!
    Expr: struct_expr=8:CreateStruct! comprehension_expr=9:Comprehension!
    CheckedExpr: expr=4:Expr
"""
"""The part of cel/expr/syntax.proto and checked.proto that is read; ``*`` is repeated, ``!`` in the oneof."""


def _checked_class() -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="gateway_cel_syntax.proto", package="gateway.cel", syntax="proto3")
    messages: dict[str, Any] = {}
    for line in _SYNTAX.strip().splitlines():
        name, _, fields = line.strip().partition(": ")
        if name not in messages:
            messages[name] = file.message_type.add(name=name)
        message = messages[name]
        for spec in fields.split():
            left, _, kind = spec.partition(":")
            field_name, _, number = left.partition("=")
            field = message.field.add(name=field_name, number=int(number), label=kinds.LABEL_OPTIONAL)
            if kind.endswith("!"):
                if not message.oneof_decl:
                    message.oneof_decl.add(name="constant_kind" if name == "Constant" else "expr_kind")
                field.oneof_index = 0
            if kind.endswith("*"):
                field.label = kinds.LABEL_REPEATED
            kind = kind.rstrip("!*")
            if kind[0].isupper():
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".gateway.cel.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("gateway.cel.CheckedExpr"))


_CHECKED = _checked_class()
_EXPR = type(_CHECKED().expr)


def _tree(serialised: bytes) -> Any:
    checked = _CHECKED()
    checked.ParseFromString(any_pb2.Any.FromString(serialised).value)
    return cast("Any", checked.expr)
