"""Which shapes resources have, and which actions are asked on each: what a row or a question can mean at all."""

from __future__ import annotations

from collections.abc import Iterator

from service.model import ACTIONS, STAGES

Shape = tuple[str | tuple[str, ...], ...]
"""Segments: a word, one of several words, or ``{…}`` for a name."""

_SHAPES: dict[Shape, str] = {
    ("models", "{model}"): "model",
    ("models", "{model}", "versions"): "version",
    ("models", "{model}", "aliases", "{alias}"): "alias",
    ("models", "{model}", "tags", "{key}"): "tag",
    ("models", "{model}", "versions", "tags", "{key}"): "tag",
    ("models", "{model}", "versions", "evidence", "{kind}"): "evidence",
    ("models", "{model}", "stages", STAGES): "stage",
    ("models", "{model}", "environments", "{environment}"): "environment approval model:read",
    ("experiments", "{experiment}"): "experiment run artifact",
    ("locations", "{experiment}"): "experiment:create",
    ("audit",): "audit",
    ("access",): "access",
    ("grants",): "grant",
    ("webhooks", "{webhook}"): "webhook",
}
"""Each shape, and the objects or actions that are asked on it."""


def possible(pattern: str) -> bool:
    """Tell whether any resource can match *pattern*."""
    segments = pattern.split("/")
    return segments[0] in ("*", "grants") or any(_fits(segments, shape) for shape in _SHAPES)


def asked_on(pattern: str, action: str) -> bool:
    """Tell whether *action*, if it names one, is ever asked on what *pattern* matches."""
    segments = pattern.split("/")
    if "*" in action or segments[0] in ("*", "grants"):
        return True
    return any(_fits(segments, shape) for shape in _shapes_of(action))


def shapes_of(action: str) -> list[str]:
    """List on what *action* is asked, as the guide writes it."""
    return [_written(shape) for shape in _shapes_of(action)]


def all_shapes() -> list[str]:
    """List every shape, as the guide writes it."""
    return [_written(shape) for shape in _SHAPES]


def known_actions(pattern: str) -> list[str]:
    """List the actions that are asked on what *pattern* matches."""
    return sorted(action for action in ACTIONS if asked_on(pattern, action))


def _shapes_of(action: str) -> Iterator[Shape]:
    for shape, asked in _SHAPES.items():
        if {action, action.partition(":")[0]} & set(asked.split()):
            yield shape


def _fits(segments: list[str], shape: Shape) -> bool:
    if len(segments) > len(shape) or (len(segments) < len(shape) and segments[-1] != "*"):
        return False
    return all(_may_be(given, expected) for given, expected in zip(segments, shape, strict=False))


def _may_be(given: str, expected: str | tuple[str, ...]) -> bool:
    words = (expected,) if isinstance(expected, str) else expected
    if words[0].startswith("{"):
        return True
    return any(word.startswith(given[:-1]) if given.endswith("*") else word == given for word in words)


def _written(shape: Shape) -> str:
    return "/".join(part if isinstance(part, str) else "{stage}" for part in shape)
