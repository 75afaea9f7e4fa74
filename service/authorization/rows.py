"""Reads the rows of a policy from bytes: every problem of the file at once, each with line and column."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from service.authorization.checking import row_problem
from service.authorization.roles import Link
from service.errors import BadConfiguration

MAX_ROWS = 100_000
MAX_BYTES = 16 << 20
_MAX_LINE = 16 << 10
_MAX_PROBLEMS = 100
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Row(msgspec.Struct, frozen=True, gc=False):
    """One permission row and where it stands."""

    subject: str
    registry: str
    resource: str
    action: str
    effect: str
    file: str
    line: int

    @property
    def where(self) -> str:
        """The row as decisions name it, ``file:line``."""
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a policy may be."""

    max_rows: int = MAX_ROWS
    max_bytes: int = MAX_BYTES


@dataclass(slots=True)
class Rows:
    """All rows of a file."""

    permissions: list[Row] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    """Who is a member of which role."""
    members: list[Link] = field(default_factory=list)
    """What is a member of which set."""
    lacks_members: bool = False
    """Whether a row that says so was bad."""


class Problems:
    """Collects what is wrong with one file; beyond the first hundred it only counts."""

    def __init__(self, path: Path) -> None:
        """Begin with nothing wrong in *path*."""
        self._path = path
        self._said: list[tuple[int, int, str]] = []
        self._count = 0

    def __bool__(self) -> bool:
        """Tell whether anything is wrong."""
        return self._count > 0

    @property
    def are_many(self) -> bool:
        """Whether further ones are only counted."""
        return self._count >= _MAX_PROBLEMS

    def add(self, line: int, column: int, problem: str) -> None:
        """Note that *problem* stands at *line* and *column*, both from 1."""
        self._count += 1
        if self._count <= _MAX_PROBLEMS:  # all at once, and yet short enough to read
            self._said.append((line, column, problem))

    def refuse(self) -> None:
        """Refuse the file if anything was noted.

        Raises:
            BadConfiguration: all that was noted.
        """
        lines = [f"{self._path}:{line}:{column}: {problem}" for line, column, problem in sorted(self._said)]
        if self._count > _MAX_PROBLEMS:
            lines.append(f"{self._path}: and {self._count - _MAX_PROBLEMS} more problems")
        if lines:
            raise BadConfiguration("\n".join(lines))


def parse_rows(
    path: Path,
    raw: bytes,
    registries: Collection[str],
    limits: Limits,
    problems: Problems,
    pace: Callable[[], None] = lambda: None,
) -> Rows:
    """Parse the content *raw* of *path*, and note every problem in *problems*; call *pace* at each line.

    Raises:
        BadConfiguration: there are too many rows. The rest is not read.
    """
    rows = Rows()
    if raw and not raw.endswith(b"\n"):
        last = raw.rpartition(b"\n")[2]
        problem = "the last line does not end: the file may have been cut; end it with a newline"
        problems.add(raw.count(b"\n") + 1, len(last.decode(errors="replace")) + 1, problem)
    same: dict[str, str] = {}
    for count, (number, line) in enumerate(_lines(raw, problems, pace), 1):
        if count > limits.max_rows:
            problem = f"more than {limits.max_rows} rows; access.max_rows allows more"
            raise BadConfiguration(f"{path}:{number}:1: {problem}")
        cells = _cells(line, number, problems)
        if cells is None:
            continue
        found = row_problem(cells, registries)
        if found is not None:
            problems.add(number, 1 if problems.are_many else _column(line, found[0]), found[1])
            rows.lacks_members = rows.lacks_members or cells[0] == "g2"
        elif cells[0] == "p":
            subject, registry, resource, action, effect = (same.setdefault(cell, cell) for cell in cells[1:])
            rows.permissions.append(Row(subject, registry, resource, action, effect, path.name, number))
        else:
            target = rows.links if cells[0] == "g" else rows.members
            target.append((same.setdefault(cells[1], cells[1]), same.setdefault(cells[2], cells[2]), number))
    if not rows.permissions and not problems:
        problems.add(1, 1, "an empty policy allows nobody anything; write at least one row")
    return rows


def _lines(raw: bytes, problems: Problems, pace: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """Give the lines that hold a row, each with its number."""
    for number, line in enumerate(io.BytesIO(raw), 1):
        pace()
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            problems.add(number, len(line[: error.start].decode()) + 1, "not UTF-8")
            continue
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        if len(text) > _MAX_LINE:
            problems.add(number, _MAX_LINE + 1, f"a row of {len(text)} characters; at most {_MAX_LINE} are read")
        elif (control := _CONTROL.search(text)) is not None:
            what = "NUL" if control[0] == "\0" else f"the control character U+{ord(control[0]):04X}"
            problems.add(number, control.start() + 1, f"the row holds {what}")
        else:
            yield number, text


def _cells(line: str, number: int, problems: Problems) -> list[str] | None:
    """Split *line*, which is read for itself: a quote left open must not swallow the rows that follow."""
    if '"' not in line:
        return [cell.strip() for cell in line.split(",")]
    try:
        return [cell.strip() for cell in next(csv.reader((line,), strict=True, skipinitialspace=True))]
    except csv.Error as error:
        problems.add(number, _bad_quote(line), f"not valid CSV: {error}")
        return None


_FIELD = re.compile(r' *(?:"(?:[^"]|"")*"[^,]*|[^,]*)(?:,|$)')
_QUOTED = re.compile(r' *"(?:[^"]|"")*"')


def _starts(line: str) -> Iterator[int]:
    at = 0
    while at <= len(line) and (field := _FIELD.match(line, at)) is not None:
        yield at
        if not field[0].endswith(",") or field.end() == at:
            break
        at = field.end()


def _column(line: str, index: int) -> int:
    """Return where the field *index* begins, from 1; behind the line, if it has no such field."""
    starts = list(_starts(line))
    if index >= len(starts):
        return len(line) + 1
    start = starts[index]
    return start + len(line[start:]) - len(line[start:].lstrip()) + 1


def _bad_quote(line: str) -> int:
    """Return the column of the field whose quote is not closed, or of what stands behind a closed one."""
    for start in _starts(line):
        column = start + len(line[start:]) - len(line[start:].lstrip(" "))
        if line[column : column + 1] != '"':
            continue
        quoted = _QUOTED.match(line, start)
        if quoted is None:
            return column + 1
        if line[quoted.end() : quoted.end() + 1] not in ("", ","):
            return quoted.end() + 1
    return 1
