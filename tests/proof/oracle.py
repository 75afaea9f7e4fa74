"""The access model in a few lines, written from the text of the guide and not from the code: slow and plain."""

from __future__ import annotations

import re
from collections.abc import Iterable


def reached(start: Iterable[str], links: Iterable[tuple[str, str]]) -> set[str]:
    found = set(start)
    while more := {whole for member, whole in links if member in found} - found:
        found |= more
    return found


def expression(pattern: str) -> str:
    below = "/[^/]+(/[^/]+)*" if pattern.endswith("/*") else ""
    written = re.escape(pattern[:-2] if below else pattern)
    return (".+" if pattern == "*" else written.replace(r"\*", "[^/]*")) + below


def allowed(rows, links, sets, names, registry: str, resource: str, action: str) -> bool:
    subjects, member = reached(names, links), "/".join(resource.split("/")[:2])
    of_member = reached([member], sets)
    effects = set()
    for subject, where, pattern, act, effect in rows:
        head = pattern.partition("/")[0]
        meant = pattern.replace(head, member, 1) if head.startswith("set:") and head in of_member else pattern
        acts = {action, action.split(":", maxsplit=1)[0] + ":*", "*"}
        if (
            subject in subjects
            and where in (registry, "*")
            and act in acts
            and re.fullmatch(expression(meant), resource)
        ):
            effects.add(effect)
    return effects == {"allow"}
