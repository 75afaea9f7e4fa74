"""Reads the YAML files users write, with the line of every key, so that errors can name it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from service.errors import BadConfiguration

T = TypeVar("T")
MAX_BYTES = 16 << 20


_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_TEXT, _MAP, _LIST = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))
MAX_DEPTH = 32
_MAX_NODES = 200_000
_MAX_ITEM_NODES = 2_000
_ITEMS_AT_A_TIME = 4


def check_yaml(text: str | bytes) -> None:
    """Refuse YAML that would exhaust its reader: deep nesting (libyaml recurses), aliases, very many nodes.

    Raises:
        yaml.YAMLError: it does, or it is no YAML.
    """
    depth = 0
    for nodes, item in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        if isinstance(item, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="YAML aliases are not read", problem_mark=item.start_mark)  # type: ignore[arg-type]  # C or Python mark
        if isinstance(item, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(item, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or nodes > _MAX_NODES:
            problem = f"more than {MAX_DEPTH} levels or {_MAX_NODES} nodes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=item.start_mark)  # type: ignore[arg-type]  # C or Python mark


class YamlFile:
    """A parsed YAML file that knows where each of its keys stands."""

    def __init__(self, path: Path, text: str | None = None, *, item: yaml.Node | None = None) -> None:
        """Parse *path* (or *text*, read before; or take *item*, the part of it that was parsed already).

        Raises:
            BadConfiguration: unreadable, not YAML, a key twice, or an alias; the message names file and line.
        """
        self.path = path
        if item is not None:
            self._node: yaml.Node | None = item
            self.data: Any = self._plain(item, set())
            return
        if text is None:
            text = read_text(path)
        try:
            check_yaml(text)
            node = yaml.compose(text, Loader=yaml.CSafeLoader)
            self._node = node
            self.data = self._plain(node, set()) if node is not None else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            message = f"{where}: not valid YAML: {error.problem}"
            raise BadConfiguration(message) from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            message = f"{path}: not valid YAML: {error}"
            raise BadConfiguration(message) from None

    def _plain(self, node: yaml.Node, seen: set[int]) -> Any:
        if id(node) in seen:
            raise self._error(node, "YAML aliases are not read")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            document: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = str(key_node.value)
                if key in document:
                    raise self._error(key_node, f"the key {key!r} stands twice")
                document[key] = self._plain(value_node, seen)
            return document
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(item, seen) for item in node.value]
        if node.tag == _TEXT:
            return str(node.value)
        if node.tag in _NUMBERS and ":" in str(node.value):  # 10:30 is a time to everybody but YAML 1.1
            return str(node.value)
        loader = yaml.CSafeLoader("")
        try:
            return loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise self._error(node, str(error)) from None
        except (AttributeError, LookupError, TypeError):  # what PyYAML raises of "!!bool maybe"
            raise self._error(node, f"{node.value[:100]!r} is no {node.tag.rpartition(':')[2]}") from None

    def _error(self, node: yaml.Node, problem: str) -> BadConfiguration:
        return BadConfiguration(f"{self.path}:{node.start_mark.line + 1}: {problem}")

    def line(self, *keys: str | int) -> int:
        """Return the line (from 1) of the value at *keys*, or of the deepest part of them that exists."""
        node = self._node
        line = node.start_mark.line + 1 if node is not None else 1
        for key in keys:
            child = None
            if isinstance(node, yaml.MappingNode):
                for key_node, value_node in node.value:
                    if str(key_node.value) == str(key):
                        child, line = value_node, key_node.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
                child = node.value[key]
                line = child.start_mark.line + 1
            if child is None:
                break
            node = child
        return line

    def error(self, problem: str, *keys: str | int) -> BadConfiguration:
        """Build the error that says *problem* at the line of *keys*."""
        return BadConfiguration(f"{self.path}:{self.line(*keys)}: {problem}")

    def convert(self, kind: type[T]) -> T:
        """Convert the whole file to *kind*.

        Raises:
            BadConfiguration: an unknown key, a missing one or a wrong type, with its line.
        """
        return convert(self.data if self.data is not None else {}, kind, self)


def yaml_items(path: Path, text: str) -> Iterator[YamlFile]:
    """Yield the items of *path*, a list, one by one.

    A long list is never in memory as a tree, and threads that wait are let run between the items.

    Raises:
        BadConfiguration: as of a `YamlFile`; the items before it were given.
    """
    try:
        events: Iterator[Any] = yaml.parse(text, Loader=yaml.CSafeLoader)
        next(events)
        if isinstance(next(events), yaml.StreamEndEvent):
            return
        first = next(events)
        if isinstance(first, yaml.ScalarEvent) and first.value in ("", "~", "null"):
            return
        if not isinstance(first, yaml.SequenceStartEvent):
            message = f"{path}:{first.start_mark.line + 1}: Expected `array`: the file is a list"
            raise BadConfiguration(message)
        for number, event in enumerate(events):
            if isinstance(event, yaml.SequenceEndEvent):
                break
            yield YamlFile(path, item=_Composer(events).node(event))
            if number % _ITEMS_AT_A_TIME == 0:
                time.sleep(0)
        next(events)
        another = next(events)
        if not isinstance(another, yaml.StreamEndEvent):
            message = f"{path}:{another.start_mark.line + 1}: not valid YAML: a second document"
            raise BadConfiguration(message)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        message = f"{where}: not valid YAML: {error.problem}"
        raise BadConfiguration(message) from None
    except (yaml.YAMLError, ValueError) as error:
        message = f"{path}: not valid YAML: {error}"
        raise BadConfiguration(message) from None


class _Composer:
    """Makes the tree of one item from the parser's events, as PyYAML's own composer does, within bounds."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._nodes = 0

    def node(self, event: Any, depth: int = 1) -> yaml.Node:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > _MAX_ITEM_NODES:
            problem = f"more than {MAX_DEPTH} levels or {_MAX_ITEM_NODES} nodes in one item"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            alias: Any = event.start_mark  # C or Python mark
            raise yaml.MarkedYAMLError(problem="YAML aliases are not read", problem_mark=alias)
        begin, end = event.start_mark, event.end_mark
        if isinstance(event, yaml.ScalarEvent):
            tag = event.tag
            if tag is None or tag == "!":
                tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]  # PyYAML's
            return yaml.ScalarNode(tag, event.value, begin, end)
        inside: list[Any] = []
        for child in self._events:
            if isinstance(child, yaml.CollectionEndEvent):
                end = child.end_mark
                break
            if isinstance(event, yaml.SequenceStartEvent):
                inside.append(self.node(child, depth + 1))
            else:
                inside.append((self.node(child, depth + 1), self.node(next(self._events), depth + 1)))
        if isinstance(event, yaml.SequenceStartEvent):
            return yaml.SequenceNode(event.tag or _LIST, inside, begin, end)
        return yaml.MappingNode(event.tag or _MAP, inside, begin, end)


_RESOLVER = yaml.SafeLoader("")
_ANY = "\0any"


def convert(data: Any, kind: type[T], file: YamlFile) -> T:
    """Convert *data*, read from *file*, to the msgspec type *kind*; errors name the line."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        keys = _keys(where.rstrip("`"))
        while _ANY in keys:
            keys = _named(data, kind, keys)
        if "unknown field `" in problem:
            known = ", ".join(name for name, _ in fields_at(kind, keys))
            keys = (*keys, problem.split("`")[1])
            problem = f"unknown key {'.'.join(str(key) for key in keys)!r}; there are: {known}"
        elif keys:
            if problem == "Expected `str`, got `bool`":
                problem += "; YAML reads on, off, yes and no as true and false: put text in quotes"
            if problem.startswith("Invalid enum value"):
                problem += f"; it is one of: {', '.join(choices_at(kind, keys))}"
            problem = f"{'.'.join(str(key) for key in keys)}: {problem}"
        raise file.error(problem, *keys) from None


def _named(data: Any, kind: Any, keys: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Replace the first ``...`` of *keys*, which msgspec writes for a key of a mapping, by the key that is wrong."""
    at = keys.index(_ANY)
    mapping = data
    for key in keys[:at]:
        mapping = mapping[key]
    for key, value in mapping.items():
        alone: Any = {key: value}
        for outer in reversed(range(at)):
            inside = data
            for step in keys[:outer]:
                inside = inside[step]
            alone = {**inside, keys[outer]: alone} if isinstance(inside, dict) else alone
        try:
            msgspec.convert(alone, kind)
        except msgspec.ValidationError:
            return (*keys[:at], key, *keys[at + 1 :])
    return (*keys[:at], *keys[at + 1 :])


def choices_at(kind: Any, keys: tuple[str | int, ...]) -> list[str]:
    """List what msgspec would have taken at *keys* of *kind*."""
    kinds = _kinds_at(kind, keys)
    return [str(value) for item in kinds if isinstance(item, msgspec.inspect.LiteralType) for value in item.values]


def fields_at(kind: Any, keys: tuple[str | int, ...]) -> list[tuple[str, bool]]:
    """List the fields of the mapping at *keys* of *kind*, each with whether it is required."""
    kinds = _kinds_at(kind, keys)
    structs = [item for item in kinds if isinstance(item, msgspec.inspect.StructType)]
    return [(field.encode_name, field.required) for item in structs for field in item.fields]


def _kinds_at(kind: Any, keys: tuple[str | int, ...]) -> list[Any]:
    kinds: list[Any] = [msgspec.inspect.type_info(kind)]
    for key in (*keys, None):
        kinds = [outer.type if isinstance(outer, msgspec.inspect.Metadata) else outer for outer in kinds]
        kinds = [inner for outer in kinds for inner in (outer.types if hasattr(outer, "types") else [outer])]
        if key is None:
            break
        found: list[Any] = []
        for outer in kinds:
            if isinstance(outer, msgspec.inspect.StructType):
                found += [field.type for field in outer.fields if field.encode_name == key]
            elif isinstance(outer, msgspec.inspect.DictType):
                found.append(outer.value_type)
            elif isinstance(outer, msgspec.inspect.CollectionType | msgspec.inspect.VarTupleType):
                found.append(outer.item_type)
        kinds = found
    return kinds


def _keys(where: str) -> tuple[str | int, ...]:
    keys: list[str | int] = []
    for part in where.replace("[...]", f".{_ANY}").replace("[", ".[").split("."):
        if part.startswith("["):
            inner = part.strip("[]")
            keys.append(int(inner) if inner.isdigit() else inner)
        elif part:
            keys.append(part)
    return tuple(keys)


def read_bytes(path: Path, most: int = MAX_BYTES, setting: str = "") -> bytes:
    """Read a file of at most *most* bytes, which *setting* can change.

    Raises:
        BadConfiguration: it cannot be read; the message names it. Of a larger one no more than that is read.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        raise BadConfiguration(message) from None
    if len(raw) > most:
        message = f"{path}: larger than {most} bytes{f'; {setting} allows more' if setting else ''}"
        raise BadConfiguration(message)
    return raw


def read_text(path: Path) -> str:
    """Read a UTF-8 file of at most 16 MiB.

    Raises:
        BadConfiguration: it cannot be read; the message names it.
    """
    raw = read_bytes(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"{path}:{line}: not UTF-8"
        raise BadConfiguration(message) from None
