"""The syntax tree of a CEL expression, and which facts are named in it.

It is read from the serialised form (cel/expr/syntax.proto), of which the few fields needed are declared here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, cast

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

Path = tuple[str | int, ...]

RANGE, STEP = 0, 3
"""Where `children` gives a comprehension's range and its step."""


def condition_of(loop: Any) -> Any:
    """Return the condition the author of a macro wrote: the step is ``accumulator || condition`` or the like."""
    step = loop.loop_step
    args = step.call_expr.args
    if step.call_expr.function in ("_||_", "_&&_") and args[0].ident_expr.name == loop.accu_var:
        return args[1]
    return step


def digest_of(tree: Any) -> str:
    """Name what is written, whatever its white space and comments."""
    plain = _EXPR()
    plain.CopyFrom(tree)
    plain.DiscardUnknownFields()  # identifiers and positions of nodes
    return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()


def named(tree: Any) -> Iterator[Path]:
    """Yield every fact path in *tree*, also those behind ``has()``."""
    yield from _paths(tree, frozenset())


def asks_items(tree: Any, bound: frozenset[str]) -> bool:
    """Tell whether *tree* reads an open field of a loop's item (``e.facts.auc``)."""
    if tree.WhichOneof("expr_kind") == "select_expr":
        inner = tree.select_expr.operand
        deep = inner.WhichOneof("expr_kind") == "select_expr" and not tree.select_expr.test_only
        if deep and path_of(tree, frozenset()) is not None and path_of(tree, bound) is None:
            return True
    if tree.call_expr.function == "_[_]" and path_of(tree, bound) is None:
        return True
    return any(asks_items(child, names) for child, names in children(tree, bound))


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


def path_of(tree: Any, bound: frozenset[str]) -> Path | None:
    """Return the fact path that *tree* is, or None if it is something else."""
    kind = tree.WhichOneof("expr_kind")
    if kind == "ident_expr":
        name = tree.ident_expr.name
        return None if name in bound else (name,)
    if kind == "select_expr":
        parent = path_of(tree.select_expr.operand, bound)
        return None if parent is None else (*parent, tree.select_expr.field)
    if kind == "call_expr" and tree.call_expr.function == "_[_]":
        parent = path_of(tree.call_expr.args[0], bound)
        key = tree.call_expr.args[1].const_expr
        constant = key.WhichOneof("constant_kind") if parent is not None else None
        if parent is not None and constant == "string_value":
            return (*parent, key.string_value)
        if parent is not None and constant == "int64_value":
            return (*parent, key.int64_value)
    return None


def children(tree: Any, bound: frozenset[str]) -> Iterator[tuple[Any, frozenset[str]]]:
    """Yield the direct parts of *tree*, each with the variables that loops bind there."""
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
    path = path_of(tree, bound)
    if path is not None:
        yield path
        return
    for child, names in children(tree, bound):
        yield from _paths(child, names)


def null_comparison(tree: Any, bound: frozenset[str]) -> tuple[Path, bool] | None:
    """Return the fact that *tree* compares with null, and whether for being equal; None if it is something else."""
    if tree.call_expr.function not in ("_==_", "_!=_"):
        return None
    left, right = tree.call_expr.args
    for fact, other in ((left, right), (right, left)):
        path = path_of(fact, bound)
        if path is not None and other.const_expr.WhichOneof("constant_kind") == "null_value":
            return path, tree.call_expr.function == "_==_"
    return None


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


def parse(serialised: bytes) -> Any:
    """Read the syntax tree out of a compiled program's serialised form."""
    checked = _CHECKED()
    checked.ParseFromString(any_pb2.Any.FromString(serialised).value)
    return cast("Any", checked.expr)
