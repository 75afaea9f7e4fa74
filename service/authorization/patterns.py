"""What a pattern in a row covers: pure functions, which Casbin's matcher calls by the names in `FUNCTIONS`."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

SET = "set:"
_MEMBERS = ("models", "experiments")


def resource_match(asked: str, pattern: str) -> bool:
    """Tell whether the resource *asked* is covered by *pattern*, segment by segment."""
    segments, patterns = asked.split("/"), pattern.split("/")
    if len(segments) < len(patterns) or (len(segments) > len(patterns) and patterns[-1] != "*"):
        return False
    for given, expected in zip(segments, patterns, strict=False):
        if expected.endswith("*"):
            if not given.startswith(expected[:-1]):
                return False
        elif given != expected:
            return False
    return True


def action_match(asked: str, pattern: str) -> bool:
    """Tell whether the action *asked* is covered by *pattern*: exact, ``<object>:*`` or ``*``."""
    return pattern in ("*", asked) or (pattern.endswith(":*") and asked.startswith(pattern[:-1]))


def member_of(asked: str) -> str:
    """Return the model or experiment that *asked* is or is below of, as sets have it for a member; else nothing."""
    parts = asked.split("/", 2)
    return "/".join(parts[:2]) if len(parts) > 1 and parts[0] in _MEMBERS else ""


def set_of(pattern: str) -> str:
    """Return the set that *pattern* names, or ``set:``, which is the name of none."""
    return pattern.split("/", 1)[0] if pattern.startswith(SET) else SET


def below_match(asked: str, pattern: str) -> bool:
    """Tell whether *asked* stands to its member as *pattern* stands to its set: itself, or what is below."""
    below, rest = asked.split("/", 2)[2:], pattern.split("/", 1)[1:]
    if not below or not rest:
        return not below and not rest
    return resource_match(below[0], rest[0])


def decoded(prefix: str) -> str:
    """Decode the beginning of a segment; a character of several bytes that it cuts is left off."""
    return unquote_to_bytes(prefix).decode("utf-8", errors="ignore")


FUNCTIONS = {
    "resourceMatch": resource_match,
    "actionMatch": action_match,
    "memberOf": member_of,
    "setOf": set_of,
    "belowMatch": below_match,
}
