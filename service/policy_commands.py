"""The commands about policy and rules. Exit status: 0 good, 1 found wrong, 2 could not run."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from service.arguments import say, with_config
from service.errors import BadConfiguration
from service.settings import load

GOOD, WRONG = 0, 1


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    policy = commands.add_parser("policy", help="try access policy and rules").add_subparsers(required=True)
    test = policy.add_parser("test", help="run the tables of access and of rules in policies/tests")
    with_config(test)
    test.add_argument(
        "directory", nargs="?", type=Path, help="where the *.yaml tables are (default: tests beside the rows)"
    )
    test.set_defaults(run=_policy_test)
    explain = policy.add_parser("explain", help="say whether something is allowed and by which row")
    with_config(explain)
    explain.add_argument("--group", action="append", default=[], help="a group of the subject; may be repeated")
    for name in ("subject", "registry", "resource", "action"):
        explain.add_argument(name)
    explain.set_defaults(run=_policy_explain)
    again = policy.add_parser("replay", help="judge past promotions again under changed rules; say what would differ")
    with_config(again)
    again.add_argument("--environments", type=Path, help="the file with the new rules (default: the configured one)")
    again.add_argument("--since", default="30d", help="how long ago (30d), or a time (default: 30d)")
    again.add_argument("--until", help="the same; not included (default: now)")
    again.add_argument("--environment", help="only this one")
    again.add_argument("--model", default="*", help="only models of this name, or prefix that ends in *")
    again.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    again.set_defaults(run=_policy_replay)


def _policy_test(options: argparse.Namespace) -> int:
    from service.policy_tests import run_tables, tables_in
    from service.rule_tests import run_rule_tables

    configuration = load(options.config)
    directory = options.directory or configuration.path(configuration.settings.access.rows).parent / "tests"
    access, rules = tables_in(directory)
    failures = 0
    for what, tables, run in (("access", access, run_tables), ("environments", rules, run_rule_tables)):
        if tables:
            passed, failed = run(configuration, tables, say)
            say(f"{what}: {passed} passed, {failed} failed")
            failures += failed
    return WRONG if failures else GOOD


def _policy_explain(options: argparse.Namespace) -> int:
    from service.authorization.snapshot import Snapshot, question_problem
    from service.model import Principal

    configuration = load(options.config)
    access, registries = configuration.settings.access, configuration.settings.registries
    asked = (options.registry, options.resource, options.action)
    problem = question_problem((options.subject, *options.group), *asked, registries)
    if problem:
        raise BadConfiguration(problem)
    snapshot = Snapshot(configuration.path(access.model), configuration.path(access.rows), registries)
    principal = Principal(options.subject, frozenset(options.group))
    decision = snapshot.decide_whole(principal, *asked)
    say(f"{'allowed' if decision.allowed else 'denied'} by {decision.row or 'no row'}")
    say(f"roles: {', '.join(sorted(snapshot.roles_of(principal)))}")
    return GOOD if decision.allowed else WRONG


def _policy_replay(options: argparse.Namespace) -> int:
    from service.promotion.replay_forms import render
    from service.replay import Asked, replay

    asked = Asked(options.environments, options.since, options.until, options.environment, options.model)
    found = replay(load(options.config), asked)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(render(found, options.format))
    return WRONG if found.differs else GOOD
