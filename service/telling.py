"""Says a gateway's answers in words for people, and its refusals in the form that a report was asked in."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from service.api.verdicts import junit_error, markdown_error

_SIGNS = {(True, "block"): "pass", (True, "warn"): "pass", (False, "warn"): "warn", (False, "block"): "FAIL"}
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_COMMANDS = re.compile(r"^(\s*):(?=:)|(?<=#)#(?=\[|vso\[)", re.MULTILINE)
"""What CI systems obey in a log: GitHub's ``::error`` at the start of a line, ``##[`` and ``##vso[`` anywhere."""


def text(document: Mapping[str, Any]) -> str:
    """Say what became of a promotion, an approval or the like; a problem by its detail."""
    lines = []
    if "detail" in document:
        lines.append(line(str(document["detail"])))
    elif document.get("state") == "evaluated":
        lines.append(line(f"evaluated: {_would(document)}"))
    elif "state" in document:
        before, after = (document.get(name) or "nothing" for name in ("before", "after"))
        lines.append(line(f"{document['state']}: {before} -> {after}"))
    if document.get("verdict"):
        lines.append(verdict(document["verdict"]))
    if "decision" in document and "detail" not in document:  # a problem's decision is about access
        parts = (document["decision"], document["id"], "by", document["by"], "for", document["environment"])
        lines.append(line(" ".join(map(str, parts))))
    return "\n".join(lines) or json.dumps(document, indent=1)


def verdict(document: Mapping[str, Any]) -> str:
    """Say each finding, each approval that does not count any more, and whether the gate is open."""
    lines = [findings(document["findings"])]
    stale = document.get("stale_approvals", [])
    lines += [line(f"stale  approval of {item['by']} does not count: {item['because']}") for item in stale]
    end = "open" if document["allowed"] else "closed"
    if document.get("would_refuse"):
        end = f"closed, and changes nothing: the environment's mode is {document['mode']}, it is promoted all the same"
    return "\n".join([*lines, end])


def findings(found: Sequence[Mapping[str, Any]]) -> str:
    """Say what each rule found: one that is met by its name, for its sentence is about a failure."""
    rows = (("waived" if f["waived"] else _SIGNS[(f["passed"], f["severity"])], f) for f in found)
    return "\n".join(line(f"{sign:<6} {f['rule']}" + ("" if f["passed"] else f": {f['because']}")) for sign, f in rows)


def line(written: str) -> str:
    """Keep on one line what somebody else wrote."""
    return written.replace("\n", r"\n")


def visible(written: str) -> str:
    """Show what a terminal or a CI system would obey as JSON writes it, so that JSON stays what it is."""
    written = "".join(
        json.dumps(character)[1:-1]
        if character not in "\n\t" and unicodedata.category(character) in _UNSEEN
        else character
        for character in written
    )
    return _COMMANDS.sub(lambda found: f"{found[1] or ''}\\u{ord(found[0][-1]):04x}", written)


def problem(form: str, what: str, detail: str) -> str | None:
    """Give *detail*, why nothing can be said about *what*, as a report in *form*; None for the forms of people."""
    if form == "junit":
        return junit_error(what, detail)
    return markdown_error(what, detail) if form == "markdown" else None


def _would(document: Mapping[str, Any]) -> str:
    version, before = document.get("version"), document.get("before")
    found = document.get("verdict") or {}
    if not found.get("allowed") and not found.get("would_refuse"):
        return f"version {version} would be refused; {f'version {before}' if before else 'nothing'} stays live"
    if version == before:
        return f"version {version} is live already; nothing would change"
    return f"version {version} would become live" + (f" instead of version {before}" if before else ", the first one")
