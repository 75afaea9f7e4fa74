"""What became of the cases of users' tests, and their report as JUnit XML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold (section 2.2)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: where it stands, what it asks, and what was wrong with the answer."""

    where: str
    """``file:line``."""
    name: str
    problems: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """What is said about it: nothing where it passed."""
        return [f"{self.where}: {self.name}: {problem}" for problem in self.problems]


def counts(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    """Return how many passed and how many failed."""
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    return len(outcomes) - failed, failed


def junit(suites: Mapping[str, Sequence[Outcome]]) -> str:
    """Give the report: one test suite a kind of table, one test case a case."""
    total, failures = (sum(item) for item in zip(*map(_counted, suites.values()), strict=True))
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<testsuites tests="{total}" failures="{failures}" errors="0">']
    for name, outcomes in suites.items():
        tests, failed = _counted(outcomes)
        lines.append(f'<testsuite name={_attribute(name)} tests="{tests}" failures="{failed}" errors="0" skipped="0">')
        for item in outcomes:
            file, _, line = item.where.rpartition(":")
            at = f'classname={_attribute(file)} file={_attribute(file)} line="{line}"'
            lines.append(f"<testcase name={_attribute(item.name)} {at}>")
            if item.problems:
                first, text = _attribute(item.problems[0]), escape(_plain("\n".join(item.problems)))
                lines.append(f"<failure message={first}>{text}</failure>")
            lines.append("</testcase>")
        lines.append("</testsuite>")
    return "\n".join([*lines, "</testsuites>", ""])


def _counted(outcomes: Sequence[Outcome]) -> tuple[int, int]:
    return len(outcomes), counts(outcomes)[1]


def _attribute(text: str) -> str:
    return quoteattr(_plain(text), {"\n": "&#10;", "\t": "&#9;", "\r": "&#13;"})


def _plain(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)
