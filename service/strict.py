"""Reads hostile text strictly: JSON, percent-encoded segments and names."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from typing import Any
from urllib.parse import unquote_to_bytes

from service.errors import InvalidRequest

_MAX_CONTAINERS, _MAX_ITEMS_OF_JSON = 200_000, 1_000_000
"""Counted in the text, also inside of strings: parsed values take up to ninety times the memory of their text."""
MAX_DEPTH = 64
MAX_NAME_CHARACTERS = 1_000
_MAX_NEW_NAME = 255
_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_ALIAS = re.compile(r"[A-Za-z0-9_-]{1,255}")
_RESERVED_ALIAS = re.compile(r"latest|v[0-9]+", re.IGNORECASE)
_FORBIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")


def parse_json(raw: bytes) -> Any:
    """Parse *raw* as RFC 8259 JSON in UTF-8; refuse what parsers disagree about.

    Raises:
        InvalidRequest: not UTF-8, a byte order mark, a duplicate key, NaN or Infinity, a lone surrogate,
            nested deeper than 64, or of very many values. The caller changes nothing.
    """
    if raw.count(b"[") + raw.count(b"{") > _MAX_CONTAINERS or raw.count(b",") > _MAX_ITEMS_OF_JSON:
        message = f"The body has more than {_MAX_CONTAINERS} objects and lists or {_MAX_ITEMS_OF_JSON} items."
        raise InvalidRequest(message)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8 (byte {error.start})."
        raise InvalidRequest(message) from None
    try:
        parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        _check(parsed, 0)
    except json.JSONDecodeError as error:
        message = f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise InvalidRequest(message) from None
    except (RecursionError, ValueError):
        message = "The body is not acceptable JSON: nested too deeply or a number with too many digits."
        raise InvalidRequest(message) from None
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # adds
        message = f"The key {twice!r} stands twice in one object."
        raise InvalidRequest(message)
    return document


def _refuse_constant(name: str) -> None:
    message = f"{name} is not JSON."
    raise InvalidRequest(message)


def _check(value: Any, depth: int) -> None:
    if depth >= MAX_DEPTH and isinstance(value, dict | list):
        message = f"The body is nested deeper than {MAX_DEPTH} levels."
        raise InvalidRequest(message)
    if isinstance(value, str):
        if not value.isascii() and any(0xD800 <= ord(character) <= 0xDFFF for character in value):
            message = "The body holds a lone surrogate."
            raise InvalidRequest(message)
    elif isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            message = "The body holds a number out of range."
            raise InvalidRequest(message)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)


def check_numbers(value: Any) -> None:
    """Return if each number in *value* is one that rules can calculate with.

    Raises:
        InvalidRequest: an integer has more than 64 bits (signed), or a number is not finite.
    """
    if isinstance(value, dict):
        for item in value.values():
            check_numbers(item)
    elif isinstance(value, list):
        for item in value:
            check_numbers(item)
    elif isinstance(value, float) and not math.isfinite(value):
        message = "A number is not finite; nothing was done."
        raise InvalidRequest(message)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        message = f"The integer {str(value)[:30]} has more than 64 bits; send it as text. Nothing was done."
        raise InvalidRequest(message)


def decode_segment(raw: str) -> str:
    """Percent-decode one path segment once.

    Raises:
        InvalidRequest: not UTF-8, a slash, a backslash or a control character inside, or encoded twice.
    """
    try:
        decoded = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        message = "A path segment is not UTF-8."
        raise InvalidRequest(message) from None
    if "/" in decoded or "\\" in decoded or has_control(decoded) or _ENCODED.search(decoded):
        message = "A path segment holds a slash, a backslash, a control character or is encoded twice."
        raise InvalidRequest(message)
    return decoded


def has_control(text: str) -> bool:
    """Tell whether *text* holds a control, format, surrogate or line-separating character."""
    return any(unicodedata.category(character) in _FORBIDDEN for character in text)


def check_name(name: str, what: str, *, separators: str = "/:") -> str:
    """Return *name* if it may be given to a new model or experiment.

    Raises:
        InvalidRequest: empty, over 255 characters, not stable under NFKC, a control or format character,
            white space at an end, one of *separators*, or ``*``, ``.`` or ``..``; the message names the code point.
    """
    check_text(name, what)
    if name in ("*", ".", ".."):
        code_points = " ".join(f"U+{ord(character):04X}" for character in name)
        message = f"The {what} {name!r} ({code_points}) reads as a pattern or a path."
        raise InvalidRequest(message)
    if len(name) > _MAX_NEW_NAME:
        message = f"The {what} has more than {_MAX_NEW_NAME} characters."
        raise InvalidRequest(message)
    if name.strip() != name:
        space = name[0] if name[0].isspace() else name[-1]
        message = f"The {what} begins or ends with white space (U+{ord(space):04X})."
        raise InvalidRequest(message)
    stable = unicodedata.normalize("NFKC", name)
    if stable != name:
        first = next((c for c in name if unicodedata.normalize("NFKC", c) != c), name[-1])
        message = f"The {what} has a compatibility character (U+{ord(first):04X}); write it as {stable!r}."
        raise InvalidRequest(message)
    for character in separators:
        if character in name:
            message = f"The {what} holds {character!r} (U+{ord(character):04X})."
            raise InvalidRequest(message)
    return name


def check_length(text: str, what: str) -> str:
    """Return *text* if it is there and not over 1,000 characters."""
    if not text:
        message = f"The {what} is missing."
        raise InvalidRequest(message)
    if len(text) > MAX_NAME_CHARACTERS:
        message = f"The {what} has more than {MAX_NAME_CHARACTERS} characters."
        raise InvalidRequest(message)
    return text


def check_text(text: str, what: str) -> str:
    """Return *text* if it is there, not over 1,000 characters, and without control and format characters."""
    check_length(text, what)
    for character in text:
        if unicodedata.category(character) in _FORBIDDEN:
            message = f"The {what} holds a control or format character (U+{ord(character):04X})."
            raise InvalidRequest(message)
    return text


def no_traversal(path: str) -> None:
    """Refuse a path that leaves its place: a ``.`` or ``..`` segment, or anything percent-encoded."""
    if any(part in (".", "..") for part in path.replace("\\", "/").split("/")) or "%" in path:
        problem = "The path goes upwards or is percent-encoded."
        raise InvalidRequest(problem)


def check_version(version: str) -> str:
    """Return *version* if it is a model version number: ``[1-9][0-9]{0,9}``, ASCII."""
    if not _VERSION.fullmatch(version):
        message = f"The version {version[:40]!r} is not a number written as 1 to 10 digits without a leading zero."
        raise InvalidRequest(message)
    return version


def check_alias(alias: str) -> str:
    """Return *alias* if it may be set: ``[A-Za-z0-9_-]{1,255}``, not ``latest`` and not ``v<digits>``."""
    if not _ALIAS.fullmatch(alias) or _RESERVED_ALIAS.fullmatch(alias):
        message = f"The alias {alias[:40]!r} is not 1 to 255 of A-Z a-z 0-9 _ -, or is reserved (latest, v<digits>)."
        raise InvalidRequest(message)
    return alias


def folded(text: str) -> str:
    """Give what databases compare at their loosest: without case, accents and trailing space."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(character for character in decomposed if not unicodedata.combining(character)).rstrip()
