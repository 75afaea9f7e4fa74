"""The mechanism of a dialect: MLflow's own protobuf descriptors give routes, parsing and canonical JSON.

A message is checked here against its descriptor field by field, because protobuf's JSON parser accepts more
than one spelling of a value (``"+1"``, ``"012"``, ``run_id`` beside ``runId``), and what is judged must be
what is forwarded.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from google.protobuf.descriptor import FieldDescriptor as F
from google.protobuf.message_factory import GetMessageClass

from service.errors import InvalidRequest

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

PREFIXES = ("/api", "/ajax-api")
"""MLflow serves each RPC under both; they are one and the same table entry."""
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,19})")
_INT32 = frozenset({F.CPPTYPE_INT32, F.CPPTYPE_UINT32})
_INTEGERS = _INT32 | {F.CPPTYPE_INT64, F.CPPTYPE_UINT64}
_FLOATS = frozenset({F.CPPTYPE_DOUBLE, F.CPPTYPE_FLOAT})
_MAX_ITEMS = 100_000


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method and path of an RPC."""

    method: str
    path: str
    """``/api/2.0/mlflow/...``; a parameter is ``{field}``, the rest of the path ``<path:field>``."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC of a protobuf service."""

    key: str
    """``Service.name``."""
    name: str
    endpoints: tuple[Endpoint, ...]
    """The first one is where it is forwarded to."""
    request: type[Message]


def load_services(*services: tuple[str, str]) -> dict[str, Rpc]:
    """Read the RPCs of *services*, pairs of (module below ``mlflow.protos``, service name).

    The protos are loaded without running ``mlflow/__init__`` (0.2 s and 34 MB instead of 2 to 5 s and 175 MB).
    """
    with _protos_only():
        options = importlib.import_module("mlflow.protos.databricks_pb2").rpc
        modules = [(importlib.import_module(f"mlflow.protos.{module}"), name) for module, name in services]
    rpcs = {}
    for module, service_name in modules:
        for method in module.DESCRIPTOR.services_by_name[service_name].methods:
            endpoints = tuple(
                Endpoint(endpoint.method, f"{prefix}/{endpoint.since.major}.0/{endpoint.path.lstrip('/')}")
                for prefix in PREFIXES
                for endpoint in method.GetOptions().Extensions[options].endpoints
            )
            key = f"{service_name}.{method.name}"
            rpcs[key] = Rpc(key, method.name, endpoints, GetMessageClass(method.input_type))
    return rpcs


def build_rpc(key: str, endpoints: tuple[Endpoint, ...], fields: Mapping[str, str]) -> Rpc:
    """Make an RPC of a route that has no descriptor; *fields* are ``name -> string|strings|int``."""
    service, _, name = key.partition(".")
    file = descriptor_pb2.FileDescriptorProto(name=f"{key}.proto", package=service, syntax="proto2")
    message = file.message_type.add(name=name)
    for number, (field, kind) in enumerate(fields.items(), start=1):
        message.field.add(
            name=field,
            number=number,
            type=F.TYPE_INT64 if kind == "int" else F.TYPE_STRING,
            label=F.LABEL_REPEATED if kind == "strings" else F.LABEL_OPTIONAL,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return Rpc(key, name, endpoints, GetMessageClass(pool.FindMessageTypeByName(f"{service}.{name}")))


class _protos_only:  # noqa: N801  # a context manager reads as a function
    """Make ``mlflow.protos`` importable without ``mlflow`` itself, and leave no trace in ``sys.modules``."""

    def __enter__(self) -> None:
        self._added: list[str] = []
        if "mlflow" in sys.modules:
            return
        spec = importlib.util.find_spec("mlflow")
        if spec is None or not spec.submodule_search_locations:
            message = "the package mlflow is not installed"
            raise ImportError(message)
        root = Path(next(iter(spec.submodule_search_locations)))
        for name, path in (("mlflow", root), ("mlflow.protos", root / "protos")):
            alias = types.ModuleType(name)
            alias.__path__ = [str(path)]
            sys.modules[name] = alias
            self._added.append(name)

    def __exit__(self, *_: object) -> None:
        for name in self._added:  # a later `import mlflow` must find the real package
            del sys.modules[name]


def read_body(document: Any, rpc: Rpc) -> tuple[dict[str, Any], list[str]]:
    """Conform a parsed JSON body to the request of *rpc*.

    Returns the canonical message and the names of fields the schema lacks, which are dropped as MLflow does.

    Raises:
        InvalidRequest: a value of another type than the schema's, or two spellings of one field.
    """
    if document is None:
        document = {}
    if not isinstance(document, dict):
        message = "The body must be a JSON object."
        raise InvalidRequest(message)
    dropped: list[str] = []
    clean = _conform_message(document, rpc.request.DESCRIPTOR, "", dropped)
    return canonical(clean, rpc), dropped


def read_query(pairs: Iterable[tuple[str, str]], rpc: Rpc) -> tuple[dict[str, Any], list[str]]:
    """Conform query parameters to the request of *rpc*; a repeated field may stand several times."""
    document: dict[str, Any] = {}
    for key, text in pairs:
        field = _field(rpc.request.DESCRIPTOR, key)
        value: Any = text
        if field is not None and field.cpp_type == F.CPPTYPE_BOOL and text.lower() in ("true", "false"):
            value = text.lower() == "true"
        if field is not None and field.is_repeated:
            document.setdefault(key, []).append(value)
        elif key in document:
            message = f"The query parameter {key!r} stands twice."
            raise InvalidRequest(message)
        else:
            document[key] = value
    return read_body(document, rpc)


def canonical(clean: Mapping[str, Any], rpc: Rpc) -> dict[str, Any]:
    """Build the protobuf message from *clean* and give its one JSON form.

    Field names are as in the proto, integers are numbers, and what was not set is left out.
    """
    try:
        message = json_format.ParseDict(dict(clean), rpc.request())
    except json_format.ParseError as error:
        text = f"The request does not fit {rpc.name}: {str(error)[:200]}."
        raise InvalidRequest(text) from None
    return _document_of(message)


def _conform_message(
    document: Mapping[str, Any], descriptor: Descriptor, at: str, dropped: list[str]
) -> dict[str, Any]:
    clean: dict[str, Any] = {}
    seen: set[str] = set()
    for key, value in document.items():
        field = _field(descriptor, key)
        if field is None:
            dropped.append(at + key)
            continue
        if field.name in seen:
            message = f"The field {at + field.name!r} stands in two spellings."
            raise InvalidRequest(message)
        seen.add(field.name)
        if value is None:
            continue
        clean[field.name] = _conform_field(value, field, at + field.name, dropped)
    return clean


def _field(descriptor: Descriptor, key: str) -> F | None:
    return descriptor.fields_by_name.get(key) or descriptor.fields_by_camelcase_name.get(key)


def _conform_field(value: Any, field: F, at: str, dropped: list[str]) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _conform_map(value, field, at, dropped)
    if not field.is_repeated:
        return _conform_value(value, field, at, dropped)
    if not isinstance(value, list):
        message = f"The field {at!r} must be a list."
        raise InvalidRequest(message)
    if len(value) > _MAX_ITEMS:
        message = f"The field {at!r} has more than {_MAX_ITEMS} items."
        raise InvalidRequest(message)
    return [_conform_value(item, field, f"{at}[{index}]", dropped) for index, item in enumerate(value)]


def _conform_map(value: Any, field: F, at: str, dropped: list[str]) -> Any:
    if not isinstance(value, dict):
        message = f"The field {at!r} must be an object."
        raise InvalidRequest(message)
    entry = field.message_type.fields_by_name["value"]
    return {key: _conform_value(item, entry, f"{at}.{key}", dropped) for key, item in value.items()}


def _conform_value(value: Any, field: F, at: str, dropped: list[str]) -> Any:
    kind = field.cpp_type
    if kind == F.CPPTYPE_MESSAGE:
        return _conform_nested(value, field, at, dropped)
    if kind == F.CPPTYPE_STRING and isinstance(value, str):
        if "\0" not in value:
            return value
    elif kind == F.CPPTYPE_BOOL and isinstance(value, bool):
        return value
    elif kind in _INTEGERS and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            return int(value)
    elif kind in _FLOATS and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _float_of(value, at)
    elif kind == F.CPPTYPE_ENUM and isinstance(value, str) and value in field.enum_type.values_by_name:
        return value
    elif kind == F.CPPTYPE_ENUM and type(value) is int and value in field.enum_type.values_by_number:
        return field.enum_type.values_by_number[value].name
    message = f"The field {at!r} has a value of the wrong type: {str(value)[:40]!r}."
    raise InvalidRequest(message)


def _conform_nested(value: Any, field: F, at: str, dropped: list[str]) -> Any:
    if field.message_type.full_name.startswith("google.protobuf."):
        return value  # well-known types have their own JSON, which protobuf checks
    if not isinstance(value, dict):
        message = f"The field {at!r} must be an object."
        raise InvalidRequest(message)
    return _conform_message(value, field.message_type, f"{at}.", dropped)


def _float_of(value: float | str, at: str) -> Any:
    if isinstance(value, str):
        if value in ("NaN", "Infinity", "-Infinity"):
            return value
        message = f"The field {at!r} must be a number."
        raise InvalidRequest(message)
    try:
        return float(value)
    except OverflowError:
        message = f"The field {at!r} is out of range."
        raise InvalidRequest(message) from None


def _document_of(message: Message) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            item_of = field.message_type.fields_by_name["value"]
            document[field.name] = {str(key): _json_of(value[key], item_of) for key in value}
        elif field.is_repeated:
            document[field.name] = [_json_of(item, field) for item in value]
        else:
            document[field.name] = _json_of(value, field)
    return document


def _json_of(value: Any, field: F) -> Any:
    if field.cpp_type == F.CPPTYPE_MESSAGE:
        if field.message_type.full_name.startswith("google.protobuf."):
            return json_format.MessageToDict(value)
        return _document_of(value)
    if field.cpp_type == F.CPPTYPE_ENUM:
        return field.enum_type.values_by_number[value].name
    if field.cpp_type in _FLOATS and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
