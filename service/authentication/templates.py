"""Claims -> names, by strict templates such as ``user:{sub}``: what a claim says never leaves its place in the name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.model import MAX_NAME_CHARACTERS
from service.strict import has_control

MAX_CLAIM_CHARACTERS = 255
MAX_GROUPS = 500
_FIELD = re.compile(r"\{([^{}]*)\}")
_LITERAL = re.compile(r"[^:{}]*")
_KINDS = ("user:", "service:", "group:")


class ClaimError(Exception):
    """A claim that may not become a part of a name; it says which and why."""


def claim(claims: Mapping[str, Any], name: str) -> Any:
    """Return the claim *name*, or what the JSON pointer *name* (RFC 6901, ``/kubernetes.io/namespace``) leads to.

    Raises:
        KeyError: there is none.
    """
    if not name.startswith("/"):
        return claims[name]
    found: Any = claims
    for part in name[1:].split("/"):
        if not isinstance(found, Mapping):
            raise KeyError(name)
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


@dataclass(frozen=True, slots=True)
class Template:
    """A name with claims in braces: a literal, then claims, each with the literal that follows it."""

    text: str
    start: str
    fields: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str, *kinds: str) -> Template:
        """Read *text*, which begins with one of *kinds* (``user:``).

        Raises:
            ValueError: it names no claim, none of *kinds*, or two claims with nothing between them.
        """
        kind = next((kind for kind in kinds or _KINDS if text.startswith(kind)), None)
        if kind is None:
            message = f"{text!r} does not begin with {' or '.join(kinds or _KINDS)}"
            raise ValueError(message)
        parts = _FIELD.split(text.removeprefix(kind))
        literals, names = parts[::2], parts[1::2]
        if not names or not all(names):
            message = f"{text!r} names no claim in braces, such as {kind}{{sub}}"
            raise ValueError(message)
        if any(not _LITERAL.fullmatch(literal) or has_control(literal) for literal in literals):
            message = f"{text!r} holds a colon, a brace or a control character beside its claims"
            raise ValueError(message)
        if not all(literals[1:-1]):
            message = f"{text!r} has two claims with nothing between them"
            raise ValueError(message)
        if literals[0][:1].isspace() or literals[-1][-1:].isspace():
            message = f"{text!r} has white space at an end"
            raise ValueError(message)
        return cls(text, kind + literals[0], tuple(zip(names, literals[1:], strict=True)))

    def names(self) -> tuple[str, ...]:
        """Return the claims that it names."""
        return tuple(name for name, _ in self.fields)

    def fill(self, claims: Mapping[str, Any]) -> str:
        """Return the name that *claims* make.

        Raises:
            ClaimError: a claim is missing, no text, empty, or holds what would make another name of it.
        """
        values = []
        for name, _ in self.fields:
            try:
                values.append(claim(claims, name))
            except KeyError:
                message = f"the claim {name!r} is missing, which {self.text!r} needs"
                raise ClaimError(message) from None
        return self._join(values)

    def fill_each(self, claims: Mapping[str, Any]) -> frozenset[str]:
        """Return the names that *claims* make, one for each text of a list; none where a claim is missing.

        Raises:
            ClaimError: a claim that is there may not be a part of a name. It is not left out: a deny row may be
                about it.
        """
        several: list[list[Any]] = []
        for name, _ in self.fields:
            try:
                found = claim(claims, name)
            except KeyError:
                return frozenset()
            several.append(found if isinstance(found, list) else [found])
        if sum(len(values) != 1 for values in several) > 1:
            message = f"more than one claim of {self.text!r} is a list"
            raise ClaimError(message)
        if any(len(values) > MAX_GROUPS for values in several):
            message = f"a claim of {self.text!r} lists over {MAX_GROUPS} names"
            raise ClaimError(message)
        return frozenset(self._join(list(values)) for values in itertools.product(*several))

    def _join(self, values: list[Any]) -> str:
        text = self.start
        for (name, after), value in zip(self.fields, values, strict=True):
            problem = _problem(value, after)
            if problem:
                message = f"the claim {name!r} {problem}, so it does not become a part of {self.text!r}"
                raise ClaimError(message)
            text += value + after
        if len(text) > MAX_NAME_CHARACTERS:
            message = f"{self.text!r} becomes a name of {len(text)} characters, over {MAX_NAME_CHARACTERS}"
            raise ClaimError(message)
        return text

    def meets(self, other: Template) -> bool:
        """Tell whether this template and *other* could make the same name; in doubt, yes."""
        begin = sorted((self.start, other.start), key=len)
        end = sorted((self.fields[-1][1], other.fields[-1][1]), key=len)
        return begin[1].startswith(begin[0]) and end[1].endswith(end[0])


def _problem(value: Any, after: str) -> str | None:
    """Say why *value* may not stand in a name where *after* follows it."""
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not text"
    if not value or len(value) > MAX_CLAIM_CHARACTERS:
        return f"is empty or over {MAX_CLAIM_CHARACTERS} characters"
    if ":" in value or has_control(value):
        return "holds a colon or a control or format character"
    if value.strip() != value:
        return "begins or ends with white space"
    if after and after[0] in value:  # so that a name can be read in one way only
        return f"holds {after[0]!r}, which separates it from what follows"
    return None
