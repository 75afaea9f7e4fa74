"""Runs the users' own tests of their access policy: YAML tables beside the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from service.authorization.snapshot import Snapshot
from service.errors import BadConfiguration
from service.files import YamlFile
from service.model import Principal
from service.settings import Configuration


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One question and its expected answer."""

    principal: str
    action: str
    resource: str
    expect: Literal["allow", "deny"]
    groups: tuple[str, ...] = ()
    registry: str = "main"


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


def run_tables(configuration: Configuration, files: Iterable[Path], say: Callable[[str], None]) -> tuple[int, int]:
    """Run the tables *files*; say what differs; return how many cases passed and failed.

    Raises:
        BadConfiguration: a table that cannot be read, or that asks what nobody can ask.
    """
    access = configuration.settings.access
    snapshot = Snapshot(
        configuration.path(access.model), configuration.path(access.rows), configuration.settings.registries
    )
    passed = failed = 0
    for path in files:
        file = YamlFile(path)
        for index, case in enumerate(file.convert(tuple[Case, ...])):
            principal = Principal(case.principal, frozenset(case.groups))
            decision = snapshot.decide_whole(principal, case.registry, case.resource, case.action)
            if decision.allowed is (case.expect == "allow"):
                passed += 1
                continue
            failed += 1
            say(
                f"{path}:{file.line(index)}: {case.principal} {case.action} {case.resource}: "
                f"expected {case.expect}, decided by {decision.row or 'no row'}"
            )
    return passed, failed
