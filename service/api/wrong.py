"""Says in sentences what msgspec and Litestar found wrong with a request: which field, and what to send instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from litestar import Request
from litestar.exceptions import HTTPException

from service.files import choices_at, fields_at

PATTERNS: Mapping[str, str] = {
    "^[1-9][0-9]{0,9}$": 'a version is a number such as "3": 1 to 10 digits, no zero before them',
    "^[0-9a-f]{64}$": "a digest is 64 digits of 0-9 a-f, as an answer of the gateway gave it",
    "^[A-Za-z0-9_-]{20,60}$": "a cursor is the `next_cursor` of the page before",
    "^[0-9]{1,18}$": "a cursor is the `next_cursor` of the page before",
    "^[0-9a-f-]{36}$": "a cursor is the `next_cursor` of the page before",
    "^[A-Za-z0-9._-]{1,100}$": "a kind is 1 to 100 of A-Z a-z 0-9 . _ -, such as `validation`",
    "^me$": "the only value is `me`",
    r"\S": "it must say something, not only white space",
}
"""What a value must be that does not match a pattern of the schemas; each pattern has its sentence."""
_KINDS = {
    "str": "text in quotes",
    "int": "a whole number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
}
_GOT = {"str": "text", "int": "a number", "float": "a number", "bool": "true or false", "null": "null"}


def sentence_of(request: Request[Any, Any, Any], error: HTTPException) -> str:
    """Give one sentence a problem, for the reader of a 400."""
    extra = error.extra if isinstance(error.extra, list) else []
    found = [_problem(request, item) for item in extra if isinstance(item, dict)]
    if found:
        return " ".join(found)
    missing = re.match(r"Missing required query parameter '([^']+)'", error.detail)
    if missing is not None:
        return f"The query field {missing[1]} is missing: add ?{missing[1]}=… to the path."
    return error.detail


def allowed_methods(request: Request[Any, Any, Any]) -> tuple[str, ...]:
    """List the methods with which the path of *request* is served."""
    path = request.scope["raw_path"].decode("latin-1")
    found = {
        method
        for route in request.app.routes
        if re.fullmatch(re.sub(r"\{[^}]*\}", "[^/]+", route.path_format), path)
        for method in getattr(route, "methods", ())
    }
    return tuple(sorted(found))


def _problem(request: Request[Any, Any, Any], item: Mapping[str, Any]) -> str:
    key, message = str(item.get("key", "data")), str(item.get("message", ""))
    kind = _body_of(request)
    keys = tuple(part for part in key.removeprefix("data").split(".") if part)
    if message == "'data'":
        return f"The body is missing: send a JSON object with {_listed(fields_at(kind, ()))}."
    named = re.search(r"(missing required|unknown) field `([^`]*)`", message)
    if named is not None:
        field = ".".join((*keys, named[2]))
        what = "is missing" if named[1] == "missing required" else "is unknown"
        return f"The field {field} {what}; the fields are: {_listed(fields_at(kind, keys))}."
    value = re.match(r"Invalid enum value (.*)", message, re.DOTALL)
    if value is not None:
        name, choices = _choices(request, keys)
        return f"{name} is {value[1][:100]}; it is one of: {', '.join(choices)}."
    if not keys and key == "data":
        return f"The body is no JSON object; send one with {_listed(fields_at(kind, ()))}."
    return f"{key}: {_said(message)}."


def _said(message: str) -> str:
    pattern = re.search(r"matching regex '(.*)'$", message)
    if pattern is not None:
        return PATTERNS.get(pattern[1].replace("\\\\", "\\"), message)
    if "RFC3339" in message or "datetime" in message:
        return "not a time; write one like 2026-11-24T12:00:00Z"
    length = re.search(r"of length (<=|>=) (\d+)", message)
    if length is not None:
        return f"at most {length[2]} characters" if length[1] == "<=" else "must not be empty"
    bound = re.search(r"`(?:int|float)` (<=|>=) (\d+)", message)
    if bound is not None:
        return f"at {'most' if bound[1] == '<=' else 'least'} {bound[2]}"
    wrong = re.match(r"Expected `([^`]*)`, got `(\w+)`", message)
    if wrong is not None:
        wanted = " or ".join(_KINDS.get(name.strip(), name.strip()) for name in wrong[1].split("|"))
        return f"send {wanted}, not {_GOT.get(wrong[2], wrong[2])}"
    return message


def _choices(request: Request[Any, Any, Any], keys: tuple[str, ...]) -> tuple[str, list[str]]:
    """Give the name, and what it may be, of what is at *keys* of the body, or of a query field."""
    parameter = request.route_handler.parsed_fn_signature.parameters.get(keys[0]) if len(keys) == 1 else None
    if parameter is None:
        return ".".join(keys), choices_at(_body_of(request), keys)
    renamed = request.route_handler.opt.get("query", {})
    return renamed.get(keys[0], keys[0]), choices_at(parameter.annotation, ())


def _body_of(request: Request[Any, Any, Any]) -> Any:
    data = request.route_handler.parsed_fn_signature.parameters.get("data")
    return data.annotation if data is not None else None


def _listed(fields: Iterable[tuple[str, bool]]) -> str:
    return ", ".join(f"{name} (required)" if required else name for name, required in fields)
