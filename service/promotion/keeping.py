"""Turns the facts that a gate judged by into a document that is kept by its digest, and back. Pure.

The time is no part of it: who asks again and again, while nothing moves, is judged by the same document.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

import msgspec

from service.promotion.facts import Facts, VersionFacts, flavors_of, signature_of
from service.records import ModelVersion

MAX_BYTES = 256 << 10
_FORM = 1
_FLOAT = "float"
"""The only key of what stands for a number that JSON has not; a mapping with only this key is wrapped in another."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """Facts as they are kept, or the reason why they are not."""

    digest: str
    document: Mapping[str, Any]
    problem: str = ""


def keep(facts: Facts, mask: Callable[[Any], Any] = lambda document: document) -> Kept:
    """Give *facts* as they are kept, without what *mask* hides. Never raises: to keep must not fail a promotion."""
    try:
        document = mask({"form": _FORM, "facts": _plain(facts)})
        text = _canonical(document)
    except (TypeError, ValueError, RecursionError) as error:
        return Kept("", {}, f"the facts are not kept: {type(error).__name__}")
    if len(text) > MAX_BYTES:
        return Kept("", {}, f"the facts are not kept: {len(text)} bytes, at most {MAX_BYTES}")
    return Kept(hashlib.sha256(text).hexdigest(), document)


def restore(document: Mapping[str, Any], digest: str, now: float) -> Facts:
    """Give the facts back, as at the time *now*.

    Raises:
        ValueError: they are not those of *digest*, or not in a form that this version reads.
    """
    if hashlib.sha256(_canonical(document)).hexdigest() != digest:
        message = "the kept facts are not those that the event names"
        raise ValueError(message)
    if document.get("form") != _FORM or not isinstance(document.get("facts"), dict):
        message = f"the facts are kept in a form that this version does not read: {document.get('form')!r}"
        raise ValueError(message)
    try:
        return msgspec.convert({**_numbers(document["facts"]), "now": now}, Facts)
    except msgspec.ValidationError as error:
        message = f"the kept facts cannot be read: {error}"
        raise ValueError(message) from None


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {_FLOAT: str(value)}
    if isinstance(value, Mapping):
        plain = {_text(key): _plain(item) for key, item in value.items()}
        return {_FLOAT: plain} if plain.keys() == {_FLOAT} else plain
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Enum):
        return value.value
    fields = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, ModelVersion):
        fields["native"] = {}  # the registry's own form, which no rule sees
    elif isinstance(value, VersionFacts) and value.mlmodel is not None:  # of the file only what rules see
        flavors = dict.fromkeys(flavors_of(value.mlmodel))
        fields["mlmodel"] = {"signature": signature_of(value.mlmodel), "flavors": flavors}
    elif isinstance(value, Facts):
        del fields["now"]
    return {name: _plain(item) for name, item in fields.items()}


def _text(key: object) -> str:
    if not isinstance(key, str):
        message = "a key is no string"
        raise TypeError(message)
    return key


def _numbers(value: Any) -> Any:
    """Undo what `_plain` did to numbers that JSON has not."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_FLOAT}:
        inner = value[_FLOAT]
        return {_FLOAT: _numbers(inner[_FLOAT])} if isinstance(inner, dict) else float(inner)
    return {key: _numbers(item) for key, item in value.items()}
