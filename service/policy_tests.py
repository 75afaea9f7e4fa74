"""Runs the users' own tests of their access policy: YAML tables beside the rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from service.authorization.checking import question_problem
from service.authorization.coverage import Coverage
from service.authorization.snapshot import Snapshot
from service.errors import BadConfiguration
from service.files import YamlFile
from service.model import Principal
from service.outcomes import Outcome
from service.settings import Configuration

MAX_QUESTIONS = 10_000
NO_ROW = "none"
_Names = str | Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Questions and the answer that each of them must have: every principal, action and resource with every other."""

    principal: _Names
    action: _Names
    resource: _Names
    expect: Literal["allow", "deny"]
    groups: tuple[str, ...] = ()
    registry: str = "main"
    owns: bool = False
    """The principals created the models."""
    by: str | None = None
    """The row that must decide, as ``policy.csv:12``, or ``none``."""

    @property
    def questions(self) -> Iterator[tuple[str, str, str]]:
        """Principal, action and resource of each question."""
        principals, actions, resources = self._names
        return product(principals, actions, resources)

    @property
    def count(self) -> int:
        """How many questions there are."""
        return prod(len(names) for names in self._names)

    @property
    def words(self) -> str:
        """Say as whom the principal asks, so that no two questions have one name in a report."""
        groups = f" of {', '.join(self.groups)}" if self.groups else ""
        return f"{groups}{' as owner' if self.owns else ''}{f' in {self.registry}' if self.registry != 'main' else ''}"

    @property
    def _names(self) -> list[tuple[str, ...]]:
        return [(item,) if isinstance(item, str) else item for item in (self.principal, self.action, self.resource)]


def tables_in(directory: Path) -> tuple[list[Path], list[Path]]:
    """Find the ``*.yaml`` tables in *directory*: those of access, and those of rules, also in ``environments/``.

    Raises:
        BadConfiguration: there are none, or one cannot be read.
    """
    beside = sorted(directory.glob("*.yaml"))
    rules = [path for path in beside if _is_of_rules(YamlFile(path).data)]
    access = [path for path in beside if path not in rules]
    rules += sorted((directory / "environments").glob("*.yaml"))
    if not access and not rules:
        message = f"{directory}: there are no *.yaml tables here, nor in environments/ below; name where they are"
        raise BadConfiguration(message)
    return access, rules


def _is_of_rules(table: Any) -> bool:
    return isinstance(table, list) and bool(table) and isinstance(table[0], dict) and "environment" in table[0]


def snapshot_of(configuration: Configuration) -> Snapshot:
    """Load the configured policy.

    Raises:
        BadConfiguration: it is wrong.
    """
    access = configuration.settings.access
    return Snapshot(
        configuration.path(access.model),
        configuration.path(access.rows),
        configuration.settings.registries,
        access.limits,
    )


def run_tables(snapshot: Snapshot, registries: Iterable[str], files: Iterable[Path]) -> tuple[list[Outcome], Coverage]:
    """Run the tables *files*; return what became of each question, and which rows they exercised.

    Raises:
        BadConfiguration: a table that cannot be read, or that asks what nobody can ask.
    """
    registries = tuple(registries)
    outcomes: list[Outcome] = []
    coverage = Coverage(snapshot)
    for path in files:
        file = YamlFile(path)
        for index, case in enumerate(file.convert(tuple[Case, ...])):
            outcomes += _run(case, file, index, registries, coverage)
    return outcomes, coverage


def _run(case: Case, file: YamlFile, index: int, registries: tuple[str, ...], coverage: Coverage) -> Iterator[Outcome]:
    if case.count > MAX_QUESTIONS:
        raise file.error(f"{case.count} questions in one case; {MAX_QUESTIONS} at most", index)
    if case.by not in (None, NO_ROW) and not coverage.has(case.by):
        raise file.error(f"no permission row is at {case.by!r}; write file:line, or {NO_ROW}", index, "by")
    where = f"{file.path}:{file.line(index)}"
    for subject, action, resource in case.questions:
        problem = question_problem((subject, *case.groups), case.registry, resource, action, registries)
        if problem:
            raise file.error(problem, index)
        principal = Principal(subject, frozenset(case.groups))
        decision = coverage.snapshot.decide_whole(principal, case.registry, resource, action, owns=case.owns)
        coverage.note(principal, resource, decision, owns=case.owns)
        row, problems = decision.row or NO_ROW, []
        if decision.allowed is not (case.expect == "allow"):
            problems.append(f"expected {case.expect}, decided by {decision.row or 'no row'}")
        elif case.by not in (None, row):
            problems.append(f"expected to be decided by {case.by}, decided by {row}")
        yield Outcome(where, f"{subject}{case.words} {action} {resource}", tuple(problems))
