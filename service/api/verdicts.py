"""Verdicts in the forms that pipelines read: JUnit XML (each rule a test case) and Markdown."""

from __future__ import annotations

import re
import unicodedata
from xml.sax.saxutils import escape, quoteattr

from service.api.schemas import FindingBody, VerdictBody

JUNIT, MARKDOWN = "application/xml", "text/markdown"
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold (section 2.2)."""
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def render(accept: str, verdict: VerdictBody, what: str) -> tuple[str, str] | None:
    """Give *verdict* about *what* in the form that *accept* names first: media type and text; None for JSON."""
    for item in accept.split(","):
        kind = item.partition(";")[0].strip().lower()
        if kind in ("application/json", "*/*"):
            return None
        if kind in (JUNIT, "text/xml", "application/junit+xml"):
            return JUNIT, junit(verdict, what)
        if kind == MARKDOWN:
            return MARKDOWN, markdown(verdict, what)
    return None


def junit(verdict: VerdictBody, what: str) -> str:
    """Give the verdict as a JUnit test suite: a blocking finding fails, a warning or a waived one is skipped."""
    blocking = [item for item in verdict.findings if _blocks(item)]
    skipped = [item for item in verdict.findings if not item.passed and not _blocks(item)]
    counts = f'tests="{len(verdict.findings)}" failures="{len(blocking)}"'
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites {counts}>",
        f'<testsuite name={_attribute(what)} {counts} errors="0" skipped="{len(skipped)}">',
    ]
    for item in verdict.findings:
        lines.append(f'<testcase classname="promotion" name={_attribute(item.rule)}>')
        if not item.passed:
            tag = "failure" if _blocks(item) else "skipped"
            facts = "\n".join(f"{name} = {value}" for name, value in item.facts.items())
            lines.append(f"<{tag} message={_attribute(item.because)}>{escape(_plain(facts))}</{tag}>")
        lines.append("</testcase>")
    if verdict.stale_approvals:
        said = "\n".join(f"{_stale(item.by)}: {item.because}" for item in verdict.stale_approvals)
        lines.append(f"<system-out>{escape(_plain(said))}</system-out>")
    lines += ["</testsuite>", "</testsuites>"]
    return "\n".join(lines) + "\n"


def junit_error(what: str, detail: str) -> str:
    """Give a JUnit test suite that says why there is no verdict: one case, an error and no failure."""
    counts = 'tests="1" failures="0" errors="1"'
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f"<testsuites {counts}>",
            f'<testsuite name={_attribute(what)} {counts} skipped="0">',
            f'<testcase classname="promotion" name="verdict"><error message={_attribute(detail)}/></testcase>',
            "</testsuite>",
            "</testsuites>",
        ]
    )


def markdown_error(what: str, detail: str) -> str:
    """Say in Markdown why there is no verdict."""
    return f"### {_cell(what)}: no verdict\n\n{_cell(detail)}"


def markdown(verdict: VerdictBody, what: str) -> str:
    """Give the verdict as a table for a pull request's comment."""
    head = "may be promoted" if verdict.allowed else "may **not** be promoted"
    lines = [f"### {_cell(what)} {head}", ""]
    if verdict.would_refuse:
        lines += [f"The environment's mode is `{verdict.mode}`: it is promoted all the same.", ""]
    lines += ["| | rule | because |", "|---|---|---|"]
    for item in verdict.findings:
        sign = "✅" if item.passed else "❌" if _blocks(item) else "⚠️"
        note = " *(waived)*" if item.waived else ""
        lines.append(f"| {sign} | {_cell(item.rule)} | {'met' if item.passed else _cell(item.because)}{note} |")
    if verdict.stale_approvals:
        lines += ["", *(f"- {_cell(f'{_stale(item.by)}: {item.because}')}" for item in verdict.stale_approvals)]
    lines += ["", f"Rules `{verdict.rules_digest[:12]}`."]
    return "\n".join(lines) + "\n"


def _stale(by: str) -> str:
    return f"the approval of {by} does not count any more"


def _blocks(item: FindingBody) -> bool:
    return not item.passed and item.severity == "block" and not item.waived


def _plain(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)


def _attribute(text: str) -> str:
    return quoteattr(_plain(text))


def _cell(text: str) -> str:
    """Give *text* as code: whoever wrote it, it is no link, mention, HTML or further cell, and nothing is hidden.

    In a table a pipe is escaped in code as well (GitHub Flavored Markdown, section 4.10).
    """
    seen = "".join("\ufffd" if unicodedata.category(item) in _HIDDEN else item for item in " ".join(text.split()))
    if not seen:
        return ""
    seen = re.sub(r"(\\*)\|", lambda found: f"{found[1]} \\|" if found[1] else "\\|", seen)  # not an escaped backslash
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", seen)), default=0))
    space = " " if seen[0] in " `" or seen[-1] in " `" else ""
    return f"{fence}{space}{seen}{space}{fence}"
