"""The commands that come from a grown estate: policy suggest, report and diff.

Exit status: 0 nothing to say against it, 1 something, 2 could not run.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from service.arguments import warn_of_pruned, with_config
from service.errors import BadConfiguration
from service.files import read_text
from service.replay import moment
from service.settings import Configuration, load

if TYPE_CHECKING:
    from service.authorization.snapshot import Snapshot
    from service.estates.granting import Grants
    from service.estates.history import Past

GOOD, FOUND = 0, 1
_LEAST = 2
"""Names that one pattern can stand for."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_MAX_LAST = 1_000_000
PERMISSIONS = ("READ", "USE", "EDIT", "MANAGE", "NO_PERMISSIONS")
"""What MLflow's default_permission can be."""


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
    source = policy.add_parser("import", help="print rows for a registry's own permissions").add_subparsers(
        required=True
    )
    mlflow = source.add_parser("mlflow", help="those of MLflow's basic-auth app")
    with_config(mlflow)
    mlflow.add_argument("--registry", required=True, help="a configured registry; its credential is an administrator's")
    mlflow.add_argument("--users", type=Path, metavar="FILE", help="names, one a line, where the server lists none")
    mlflow.add_argument(
        "--default-permission",
        choices=PERMISSIONS,
        default="NO_PERMISSIONS",
        help="the server's default_permission, which it does not tell (default: NO_PERMISSIONS)",
    )
    mlflow.set_defaults(run=_import_mlflow)
    unity = source.add_parser("unity-catalog", help="the grants of a Unity Catalog server")
    with_config(unity)
    unity.add_argument("--registry", required=True, help="the registry that the rows name")
    where = unity.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", help="the server; needs --token-file where it asks for a token")
    where.add_argument("--export", type=Path, metavar="FILE", help="an export in JSON instead of a server")
    unity.add_argument("--token-file", type=Path, help="a file with the token of an administrator")
    unity.set_defaults(run=_import_unity)


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
    from service.owners import OwnersOverTime

    configuration = load(options.config)
    if options.old == options.new == "-":
        message = "only one of the two can be read from standard input"
        raise BadConfiguration(message)
    old, new = (_snapshot(configuration, name) for name in (options.old, options.new))
    past = PastEvents(configuration.journal_url())
    owners = OwnersOverTime(past.model_changes()) if old.names_owner or new.names_owner else None
    found = compare(old, new, islice(read(past.newest()), options.last), owners)
    _print(render(found, options.format))
    warn_of_pruned(past.pruned())
    return FOUND if found.changes else GOOD


def _import_mlflow(options: argparse.Namespace) -> int:
    from service.backends.http import HttpTransport
    from service.estates import mlflow_permissions
    from service.estates.reading import ask_all
    from service.parts import authorization_of, tls_of

    configuration = load(options.config)
    registries = configuration.settings.registries
    found = registries.get(options.registry)
    if found is None or found.kind != "mlflow":
        message = f"--registry: no MLflow registry is named {options.registry!r}; there are: {', '.join(registries)}"
        raise BadConfiguration(message)
    users = None
    if options.users is not None:
        lines = (line.strip() for line in read_text(options.users).splitlines())
        users = [line for line in lines if line and not line.startswith("#")]
    authorization = authorization_of(options.registry, found, configuration)
    tls = tls_of(options.registry, found, configuration)
    transport = HttpTransport(options.registry, found.url, authorization=authorization, tls=tls)
    workspace = found.workspace or "default"
    estate = ask_all(transport, lambda ask: mlflow_permissions.read(ask, workspace, users))
    made = mlflow_permissions.grants_of(estate, options.registry, options.default_permission)
    return _print_rows(configuration, made)


def _import_unity(options: argparse.Namespace) -> int:
    from service.backends.credentials import Secret, bearer, tls_context
    from service.backends.http import HttpTransport
    from service.estates import unity_permissions
    from service.estates.reading import ask_all

    configuration = load(options.config)
    if options.export is not None:
        try:
            found = unity_permissions.exported(json.loads(read_text(options.export)))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            message = f"{options.export}: not an export of grants ({type(error).__name__}: {error})"
            raise BadConfiguration(message) from None
    else:
        if not options.url.startswith(("http://", "https://")):
            message = f"--url: {options.url!r} is not an http or https URL"
            raise BadConfiguration(message)
        token: Callable[[], str | None] | None = None
        if options.token_file is not None:
            if options.url.startswith("http:") and urlsplit(options.url).hostname not in _LOOPBACK:
                message = "--token-file: a token goes over https, or to this machine"
                raise BadConfiguration(message)
            token = bearer(Secret("--token-file", options.token_file.absolute()))
        tls = tls_context("--url", None, None, None) if options.url.startswith("https:") else None
        transport = HttpTransport(options.registry, options.url, authorization=token or (lambda: None), tls=tls)
        found = ask_all(transport, unity_permissions.read)
    return _print_rows(configuration, unity_permissions.grants_of(found, options.registry))


def _print_rows(configuration: Configuration, made: Grants) -> int:
    """Print rows that load; say so where there are none."""
    from service.estates.rows import load as load_rows

    text = made.text()
    if not made.rows:
        print("registry-gateway: no permission was found that a row could say", file=sys.stderr)
        return FOUND
    load_rows(text, configuration.path(configuration.settings.access.model), {made.registry})
    _print(text)
    return GOOD


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
    journal = PastEvents(configuration.journal_url())
    warn_of_pruned(journal.pruned(since))
    past = read(journal.ended(since, until))
    return (item for item in past if options.registry in (None, item.registry))


def _print(text: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a letter is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout.write(text)
