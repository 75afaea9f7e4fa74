"""The commands that come from a grown estate: policy suggest, report, diff and import.

Exit status: 0 nothing to say against it, 1 something, 2 could not run.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.arguments import with_config
from service.errors import BadConfiguration
from service.replay import moment
from service.settings import Configuration, load

if TYPE_CHECKING:
    from service.authorization.snapshot import Snapshot
    from service.estates.history import Past

GOOD, FOUND = 0, 1
_LEAST = 2
"""Names that one pattern can stand for."""
_MAX_LAST = 1_000_000


def add_commands(policy: Any) -> None:
    """Add the commands to those of `policy`."""
    suggest = policy.add_parser("suggest", help="print rows of least privilege for what was done")
    _with_past(suggest)
    suggest.add_argument("--generalise", type=_at_least_two, metavar="N", help="from N names on, print one pattern")
    suggest.set_defaults(run=_suggest)
    report = policy.add_parser("report", help="list what enforcement would refuse where access is not enforced")
    _with_past(report)
    report.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    report.set_defaults(run=_report)
    diff = policy.add_parser("diff", help="list the recorded decisions that another policy would change")
    with_config(diff)
    diff.add_argument("old", help="policy.csv, or current for the configured one, or - for standard input")
    diff.add_argument("new", help="the same")
    diff.add_argument("--last", type=_last, default=10_000, metavar="N", help="the last N events (default: 10000)")
    diff.add_argument("--format", choices=("text", "markdown", "json"), default="text")
    diff.set_defaults(run=_diff)


def _with_past(parser: argparse.ArgumentParser) -> None:
    with_config(parser)
    parser.add_argument("--since", default="14d", help="how long ago (14d), or a time (default: 14d)")
    parser.add_argument("--until", help="the same; not included (default: now)")
    parser.add_argument("--registry", help="only this one")


def _at_least_two(text: str) -> int:
    if not text.isdecimal() or int(text) < _LEAST:
        message = f"{text!r} is no number from 2 on"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _last(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MAX_LAST:
        message = f"{text!r} is no number from 1 to {_MAX_LAST}"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _suggest(options: argparse.Namespace) -> int:
    from service.estates.rows import load as load_rows
    from service.estates.suggesting import suggest

    configuration = load(options.config)
    found = suggest(_past(configuration, options), options.generalise)
    if not found.rows:
        print("registry-gateway: nothing that a row could allow was done in this time", file=sys.stderr)
        return FOUND
    settings = configuration.settings
    names = {*settings.registries, *(right.registry for rights in found.rights.values() for right in rights)}
    found.check(load_rows(found.text, configuration.path(settings.access.model), names))
    _print(found.text)
    return GOOD


def _report(options: argparse.Namespace) -> int:
    from service.estates.report import refusals, render

    found = refusals(_past(load(options.config), options))
    _print(render(found, options.format))
    return FOUND if found else GOOD


def _diff(options: argparse.Namespace) -> int:
    from service.estates.diff import compare, render
    from service.estates.history import read
    from service.journal.past import Past as PastEvents

    configuration = load(options.config)
    if options.old == options.new == "-":
        message = "only one of the two can be read from standard input"
        raise BadConfiguration(message)
    old, new = (_snapshot(configuration, name) for name in (options.old, options.new))
    events = PastEvents(configuration.journal_url()).newest()
    found = compare(old, new, islice(read(events), options.last))
    _print(render(found, options.format))
    return FOUND if found.changes else GOOD


def _snapshot(configuration: Configuration, name: str) -> Snapshot:
    from service.authorization.snapshot import Snapshot
    from service.estates.rows import load as load_rows

    access, registries = configuration.settings.access, configuration.settings.registries
    model = configuration.path(access.model)
    if name == "-":
        return load_rows(sys.stdin.read(), model, registries, "standard input")
    return Snapshot(
        model, configuration.path(access.rows) if name == "current" else Path(name), registries, access.limits
    )


def _past(configuration: Configuration, options: argparse.Namespace) -> Iterator[Past]:
    """Read what was done in the time that *options* say.

    Raises:
        BadConfiguration: an argument or the journal is wrong.
    """
    from service.estates.history import read
    from service.journal.past import Past as PastEvents

    now = time.time()
    since = moment(options.since, now, "--since")
    until = moment(options.until, now, "--until") if options.until is not None else now
    if since >= until:
        message = "--since: it is not before --until"
        raise BadConfiguration(message)
    registries = configuration.settings.registries
    if options.registry is not None and options.registry not in registries:
        message = f"--registry: none is named {options.registry!r}; there are: {', '.join(registries)}"
        raise BadConfiguration(message)
    past = read(PastEvents(configuration.journal_url()).ended(since, until))
    return (item for item in past if options.registry in (None, item.registry))


def _print(text: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(text)
