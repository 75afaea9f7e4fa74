"""Runs the users' own tests of their access policy: YAML tables beside the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from service.authorization import Snapshot
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


def run_tables(configuration: Configuration, directory: Path, say: Callable[[str], None]) -> int:
    """Run every ``*.yaml`` in *directory*; print failures and a count; return the exit status (0 or 1).

    Raises:
        BadConfiguration: no tables, or a table that cannot be read.
    """
    files = sorted(directory.glob("*.yaml"))
    if not files:
        message = f"{directory}: there are no *.yaml tables here"
        raise BadConfiguration(message)
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
    say(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
