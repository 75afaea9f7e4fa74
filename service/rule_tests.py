"""Runs the users' own tests of their promotion rules: YAML tables of facts and the findings they must give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from service.errors import BadConfiguration
from service.files import YamlFile
from service.model import Finding
from service.outcomes import Outcome
from service.promotion.environments import load_environments
from service.promotion.facts import SCHEMA
from service.promotion.gate import Environment
from service.records import Capabilities
from service.settings import Configuration

_ALL = Capabilities(aliases=True, stages=True, tags=True)
_NOW = datetime.fromisoformat("2026-01-01T12:00:00+00:00")


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Facts, and what each rule must find; a rule that is not named may find anything."""

    environment: str
    findings: dict[str, Literal["passed", "failed", "missing"]]
    expect: Literal["open", "closed"] | None = None
    model: str = "model"
    candidate: dict[str, Any] = {}
    incumbent: dict[str, Any] | None = None
    evidence: list[dict[str, Any]] = []
    approvals: list[dict[str, Any]] = []
    request: dict[str, Any] = {}
    now: Annotated[datetime, msgspec.Meta(tz=True)] = _NOW


def run_rule_tables(configuration: Configuration, files: Iterable[Path]) -> list[Outcome]:
    """Run the tables *files*; return what became of each case.

    Raises:
        BadConfiguration: a table that cannot be read, or names an environment, rule or fact that does not exist.
    """
    settings = configuration.settings
    if settings.environments is None:
        message = (
            "there are tables of rules, and no `environments` are configured; --config names a configuration with them"
        )
        raise BadConfiguration(message)
    path = configuration.path(settings.environments)
    environments = {item.name: item for item in load_environments(path, dict.fromkeys(settings.registries, _ALL))}
    outcomes: list[Outcome] = []
    for table in files:
        file = YamlFile(table)
        for index, case in enumerate(file.convert(tuple[Case, ...])):
            environment = environments.get(case.environment)
            if environment is None:
                problem = f"no environment is named {case.environment!r}; there are: {', '.join(environments)}"
                raise file.error(problem, index, "environment")
            _check_facts(case, file, index)
            problems = tuple(_differences(environment.of_model(case.model), case, file, index))
            outcomes.append(Outcome(f"{table}:{file.line(index)}", case.environment, problems))
    return outcomes


def _check_facts(case: Case, file: YamlFile, index: int) -> None:
    given: Mapping[str, Mapping[str, Any] | None] = {
        "candidate": case.candidate, "incumbent": case.incumbent, "request": case.request
    }  # fmt: skip
    for name, facts in given.items():
        for key in facts or ():
            if key not in SCHEMA[name]:
                raise file.error(f"unknown fact '{name}.{key}'; {name} has: {', '.join(SCHEMA[name])}", index, name)


def _differences(environment: Environment, case: Case, file: YamlFile, index: int) -> list[str]:
    document = {
        "candidate": {"environments": {}, **_filled(case.candidate), "evidence": case.evidence},
        "incumbent": None if case.incumbent is None else _filled(case.incumbent),
        "evidence": case.evidence,
        "approvals": case.approvals,
        "environment": {"name": environment.name, "registry": "", "parameters": dict(environment.parameters)},
        "request": {"principal": "", "acting_for": "", "groups": [], "reason": "", "time": case.now, **case.request},
        "now": case.now,
    }
    found = {finding.rule: finding for finding in environment.judge_rules(document)}
    for name in case.findings:
        if name not in found:
            raise file.error(f"no rule is named {name!r}; there are: {', '.join(found)}", index, "findings", name)
    problems = [
        f"{name}: expected {wanted}, found {_said(found[name])}: {found[name].because}"
        for name, wanted in case.findings.items()
        if _said(found[name]) != wanted
    ]
    if case.expect is not None:
        outcome = "closed" if any(finding.blocks for finding in found.values()) else "open"
        if outcome != case.expect:
            problems.append(f"expected {case.expect}, the rules are {outcome}")
    return problems


def _filled(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Complete facts as the gateway gives them: empty where a version has none."""
    empty: dict[str, Any] = {
        "tags": {},
        "metrics": {},
        "params": {},
        "datasets": [],
        "flavors": [],
        "requirements": [],
        "aliases": [],
    }
    source = {"uri": "", "run_id": "", "commit": "", **facts.get("source", {})}
    return {"signature": None, "status": "READY", **empty, **facts, "source": source}


def _said(finding: Finding) -> str:
    return "missing" if finding.missing else "passed" if finding.passed else "failed"
