"""The commands about policy and rules. Exit status: 0 good, 1 found wrong, 2 could not run."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.arguments import say, warn_of_pruned, with_config
from service.errors import BadConfiguration
from service.estates import commands as estates
from service.explanation import Explanation, WhoCan
from service.settings import Configuration, load

if TYPE_CHECKING:  # commands that do not decide start without Casbin
    from service.authorization.coverage import Coverage

GOOD, WRONG = 0, 1


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    policy = commands.add_parser("policy", help="try access policy and rules").add_subparsers(required=True)
    test = policy.add_parser("test", help="run the tables of access and of rules in policies/tests")
    with_config(test)
    test.add_argument(
        "directory", nargs="?", type=Path, help="where the *.yaml tables are (default: tests beside the rows)"
    )
    test.add_argument("--junit", type=Path, metavar="FILE", help="write a report as JUnit XML there")
    test.add_argument(
        "--min-coverage", type=_percentage, metavar="PERCENT", help="fail if the tables exercise fewer rows than this"
    )
    test.set_defaults(run=_policy_test)
    explain = policy.add_parser("explain", help="say whether something is allowed and by which row")
    with_config(explain)
    explain.add_argument("--group", action="append", default=[], help="a group of the subject; may be repeated")
    explain.add_argument("--owns", action="store_true", help="the subject created the model")
    for name in ("subject", "registry", "resource", "action"):
        explain.add_argument(name)
    explain.add_argument("--format", choices=("text", "json"), default="text")
    explain.set_defaults(run=_policy_explain)
    who_can = policy.add_parser("who-can", help="list who may do something, by which row, and who is kept from it")
    with_config(who_can)
    for name in ("action", "registry", "resource"):
        who_can.add_argument(name)
    who_can.add_argument("--format", choices=("text", "json"), default="text")
    who_can.set_defaults(run=_policy_who_can)
    again = policy.add_parser("replay", help="judge past promotions again under changed rules; say what would differ")
    with_config(again)
    again.add_argument("--environments", type=Path, help="the file with the new rules (default: the configured one)")
    again.add_argument("--since", default="30d", help="how long ago (30d), or a time (default: 30d)")
    again.add_argument("--until", help="the same; not included (default: now)")
    again.add_argument("--environment", help="only this one")
    again.add_argument("--model", default="*", help="only models of this name, or prefix that ends in *")
    again.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    again.set_defaults(run=_policy_replay)
    estates.add_commands(policy)


def _percentage(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        message = f"{text} is not between 0 and 100"
        raise argparse.ArgumentTypeError(message)
    return value


def _policy_test(options: argparse.Namespace) -> int:
    from service.outcomes import Outcome, counts, junit
    from service.policy_tests import run_tables, snapshot_of, tables_in
    from service.rule_tests import run_rule_tables

    configuration = load(options.config)
    directory = options.directory or configuration.path(configuration.settings.access.rows).parent / "tests"
    access, rules = tables_in(directory)
    suites: dict[str, list[Outcome]] = {}
    covered = options.min_coverage is None
    if access:
        suites["access"], coverage = run_tables(snapshot_of(configuration), configuration.settings.registries, access)
    elif not covered:
        message = f"{directory}: --min-coverage counts rows of access, and there are no tables of access here"
        raise BadConfiguration(message)
    if rules:
        suites["environments"] = run_rule_tables(configuration, rules)
    for what, outcomes in suites.items():
        for outcome in outcomes:
            for line in outcome.lines:
                say(line)
        passed, failed = counts(outcomes)
        say(f"{what}: {passed} passed, {failed} failed")
    if access:
        _say_coverage(coverage)
        covered = covered or coverage.percent >= options.min_coverage
        if not covered:
            say(f"the coverage is under {options.min_coverage:g}%")
    if options.junit is not None:
        _write(options.junit, junit(suites))
    return GOOD if covered and not any(counts(outcomes)[1] for outcomes in suites.values()) else WRONG


def _say_coverage(coverage: Coverage) -> None:
    from service.authorization.shadows import shadowed

    for where, text in coverage.missed:
        say(f"{where}: no test exercises it: {text}")
    for item in shadowed(coverage.snapshot):
        say(f"{item.row.where}: it changes no answer: {item.by.where} {item.why}")
    exercised, total = coverage.counts
    say(f"coverage: {exercised} of {total} rows, {int(coverage.percent)}%")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"--junit {path}: {error.strerror}"
        raise BadConfiguration(message) from None


def _policy_explain(options: argparse.Namespace) -> int:
    from service.authorization.explaining import explain
    from service.model import Principal
    from service.policy_tests import snapshot_of

    configuration = load(options.config)
    asked = (options.registry, options.resource, options.action)
    _check_question((options.subject, *options.group), *asked, configuration)
    principal = Principal(options.subject, frozenset(options.group))
    snapshot = snapshot_of(configuration)
    found = explain(snapshot, principal, *asked, owns=options.owns)
    _tell(found, options.format)
    if snapshot.names_owner and not options.owns and options.resource.startswith("models/"):
        print("registry-gateway: who owns the model is not looked up; --owns asks for its owner", file=sys.stderr)
    return GOOD if found.allowed else WRONG


def _policy_who_can(options: argparse.Namespace) -> int:
    from service.authorization.explaining import who_can
    from service.policy_tests import snapshot_of

    configuration = load(options.config)
    asked = (options.registry, options.resource, options.action)
    _check_question((), *asked, configuration)
    _tell(who_can(snapshot_of(configuration), *asked), options.format)
    return GOOD


def _check_question(
    subjects: Iterable[str], registry: str, resource: str, action: str, configuration: Configuration
) -> None:
    from service.authorization.checking import question_problem

    problem = question_problem(subjects, registry, resource, action, configuration.settings.registries)
    if problem:
        raise BadConfiguration(problem)


def _tell(found: Explanation | WhoCan, form: str) -> None:
    say(json.dumps(found.document(), indent=1) if form == "json" else found.text())


def _policy_replay(options: argparse.Namespace) -> int:
    from service.promotion.replay_forms import render
    from service.replay import Asked, replay

    asked = Asked(options.environments, options.since, options.until, options.environment, options.model)
    found = replay(load(options.config), asked)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(render(found, options.format))
    warn_of_pruned(found.pruned)
    return WRONG if found.differs else GOOD
