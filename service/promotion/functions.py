"""Functions that rules have besides CEL's own: semantic versions, and evidence by its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import semver
from cel_expr_python import cel

_MAX_CHARACTERS = 256


def compare_semver(left: str, right: str) -> int:
    """Order two semantic versions (SemVer 2.0.0, section 11): -1, 0 or 1.

    Raises:
        ValueError: one of them is no semantic version; the rule fails and says so.
    """
    return _version(left).compare(_version(right))


def at_least(version: str, floor: str) -> bool:
    """Tell whether *version* is *floor* or a later one."""
    return compare_semver(version, floor) >= 0


def _version(text: str) -> semver.Version:
    if len(text) > _MAX_CHARACTERS:
        message = "a version of that length is not read"
        raise ValueError(message)
    return semver.Version.parse(text, optional_minor_and_patch=True)


def passed(evidence: Sequence[Mapping[str, Any]], kind: str) -> bool:
    """Tell whether the evidence of *kind* that counts has passed."""
    return any(item["kind"] == kind and item["result"] == "passed" for item in evidence)


_STRING, _EVIDENCE = cel.Type.STRING, cel.Type.List(cel.Type.DYN)
_TABLE: Sequence[tuple[str, Callable[..., Any], Any, Sequence[Any]]] = (
    ("compare_semver", compare_semver, cel.Type.INT, [_STRING, _STRING]),
    ("at_least", at_least, cel.Type.BOOL, [_STRING, _STRING]),
    ("passed", passed, cel.Type.BOOL, [_EVIDENCE, _STRING]),
)
DECLARED = [cel.FunctionDecl(name, [cel.Overload(name, gives, takes, False)]) for name, _, gives, takes in _TABLE]  # noqa: FBT003  # positional only
IMPLEMENTED = {name: work for name, work, _, _ in _TABLE}
