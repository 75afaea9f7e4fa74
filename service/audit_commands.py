"""The commands about the record. Exit status: 0 good, 1 found wrong, 2 could not run."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from service.arguments import say, with_config
from service.errors import BadConfiguration
from service.event import EVENT_ACTIONS, OUTCOMES, PHASES
from service.exports import FORMS, Form
from service.settings import Configuration, load

if TYPE_CHECKING:
    from service.chain_check import Report

GOOD, WRONG = 0, 1
_MAX_UNCOVERED = 2000
_FILTERS = ("registry", "model", "version", "environment", "actor", "action", "outcome", "phase", "operation")
_CHOICES = {"action": EVENT_ACTIONS, "outcome": OUTCOMES, "phase": PHASES}
_PAGE = 1000


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    audit = commands.add_parser("audit", help="check the record").add_subparsers(required=True)
    verify = audit.add_parser("verify", help="find what was edited, deleted, swapped or cut off in the record")
    with_config(verify)
    verify.add_argument("--file", type=Path, help="check this copy (JSON Lines, .gz too) instead of the journal")
    verify.add_argument("--any-order", action="store_true", help="the events of --file may stand in any order")
    verify.add_argument("--archive", type=Path, metavar="DIR", help="read the archive and the journal as one chain")
    verify.add_argument("--against", type=Path, metavar="FILE", help="compare the journal with this copy of a sink")
    verify.add_argument(
        "--public-key",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="trust checkpoints of this key (PEM); may be repeated (default: audit.checkpoints.key)",
    )
    verify.add_argument(
        "--max-uncovered",
        type=int,
        default=_MAX_UNCOVERED,
        metavar="EVENTS",
        help=f"with keys: so many events may follow the last checkpoint (default: {_MAX_UNCOVERED})",
    )
    verify.add_argument("--format", choices=("text", "json"), default="text")
    verify.set_defaults(run=_verify)
    _add_export(audit)
    _add_followers(audit)


def _verify(options: argparse.Namespace) -> int:
    from service.copies import hashes_of, verify_copy
    from service.journal.verify import examine, verifier

    if options.file is not None and (options.against is not None or options.archive is not None):
        message = "--against and --archive go with the journal: leave --file out"
        raise BadConfiguration(message)
    if options.any_order and options.file is None:
        message = "--any-order is about a copy: name it with --file"
        raise BadConfiguration(message)
    if options.archive is not None and not options.archive.is_dir():
        message = f"{options.archive}: there is no such directory; --archive names the one of audit.retention.archive"
        raise BadConfiguration(message)
    keys = _keys(options)
    if options.file is not None:
        report = verify_copy(options.file, verifier(keys), any_order=options.any_order)
    else:
        copy = hashes_of(options.against) if options.against is not None else None
        report = examine(load(options.config).journal_url(), keys, copy, archive=options.archive)
    report.judge_uncovered(options.max_uncovered, trusted=bool(keys))
    if options.format == "json":
        say(json.dumps(report.document()))
    else:
        _print(report)
    return WRONG if report.problems else GOOD


def _keys(options: argparse.Namespace) -> list[bytes]:
    from service.ed25519 import read_public
    from service.parts import checkpoint_key_of

    if options.public_key or options.file is not None:
        return [read_public(path).public_bytes_raw() for path in options.public_key]
    configuration: Configuration = load(options.config)
    if configuration.settings.audit.checkpoints is None:
        return []
    return [checkpoint_key_of(configuration).public_key().public_bytes_raw()]


def _print(report: Report) -> None:
    found = report.found
    for problem in report.problems:
        say(f"not intact: {problem}")
    if not report.problems:
        say(f"intact: {found.events} events")
    if found.first > 1:
        say(f"they begin with event {found.first}: those before are not looked at")
    if found.archived:
        names = ", ".join(sorted(set(found.archives)))
        say(f"{found.archived} events are in archives, which are not looked at: {names}")
    if report.duplicates:
        say(f"{report.duplicates} events are there again, the same")
    if report.compared:
        say(f"{report.compared} events are as in the copy")
    if found.checkpoint is not None:
        point = found.checkpoint
        checked = "signature verified" if point.verified else "signature not verified: no --public-key"
        say(f"last checkpoint: event {point.event} of {point.time}, key {point.kid}, {checked}")
        say(f"{report.after} events after it")


def _add_export(audit: Any) -> None:
    export = audit.add_parser("export", help="write events to a file, from the journal itself")
    with_config(export)
    export.add_argument("--format", choices=tuple(FORMS), default="jsonl")
    export.add_argument("--output", "-o", type=Path, metavar="FILE", help="write there (default: standard output)")
    export.add_argument("--since", type=_time, metavar="TIME", help="ISO 8601, such as 2026-11-01 or 2026-11-01T12:00Z")
    export.add_argument("--until", type=_time, metavar="TIME", help="the same; not included")
    for name in _FILTERS:
        export.add_argument(f"--{name}", type=partial(_known, name), help="only events of this one")
    export.set_defaults(run=_export)
    for name, text in (
        ("archive", "write old events into the archive; the journal is not changed"),
        ("prune", "write old events into the archive, then delete from the journal what nothing asks for"),
    ):
        command = audit.add_parser(name, help=text)
        with_config(command)
        command.add_argument("--older-than", type=_days, metavar="DAYS", help="default: audit.retention.keep_days")
        command.add_argument("--archive", type=Path, metavar="DIR", help="default: audit.retention.archive")
        command.set_defaults(run=partial(_retain, name))


def _add_followers(audit: Any) -> None:
    command = audit.add_parser("followers", help="list the sinks that follow the journal, and how far they are")
    with_config(command)
    command.add_argument("--forget", metavar="NAME", help="forget one that is no longer in audit.sinks")
    command.set_defaults(run=_follow)


def _time(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        message = f"{text!r} is no time; write one like 2026-11-24T12:00:00Z"
        raise argparse.ArgumentTypeError(message) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _known(name: str, text: str) -> str:
    known = _CHOICES.get(name)
    if known is not None and text not in known:
        message = f"{text!r} is unknown; there are: {', '.join(sorted(known))}"
        raise argparse.ArgumentTypeError(message)
    return text


def _days(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        message = f"{text!r} is no number of days, at least 1"
        raise argparse.ArgumentTypeError(message)
    return int(text)


def _retain(what: str, options: argparse.Namespace) -> int:
    from service.journal.retention import Retention
    from service.journal.schema import check

    configuration = load(options.config)
    settings = configuration.settings.audit.retention
    days = options.older_than or (settings and settings.keep_days)
    place = options.archive or (settings and configuration.path(settings.archive))
    if not days or not place:
        message = "audit.retention is not configured; give --older-than DAYS and --archive DIR"
        raise BadConfiguration(message)
    url = configuration.journal_url()
    check(url)
    lag = settings.max_lag_days if settings else None
    source = configuration.settings.audit.new_source()
    retention = Retention(url, place.absolute(), keep_days=days, now=time.time, source=source, max_lag_days=lag)
    if what == "archive":
        say(f"{place}: {retention.archive()} events archived")
        return GOOD
    done = asyncio.run(retention.run())
    say(f"{place}: {done.archived} events archived; {done.pruned} pruned from the journal")
    if waiting := retention.waiting_for():
        say(f"not pruned is what these have not read: {', '.join(waiting)} (see registry-gateway audit followers)")
    return GOOD


def _follow(options: argparse.Namespace) -> int:
    from service.journal.followers import followers, forget
    from service.journal.schema import check
    from service.parts import sinks_of

    configuration = load(options.config)
    url = configuration.journal_url()
    check(url)
    streams, receivers = sinks_of(configuration)
    configured = {sink.name for sink in streams} | {sink.name for sink in receivers}
    if options.forget is not None:
        if options.forget in configured:
            message = f"{options.forget!r} is in audit.sinks; take it out there and restart the gateway first"
            raise BadConfiguration(message)
        asyncio.run(forget(url, options.forget))
        say(f"{options.forget}: forgotten")
        return GOOD
    for item in followers(url):
        moved = datetime.fromtimestamp(item.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        left = "" if item.name in configured else "; not in audit.sinks"
        say(
            f"{item.name}: event {item.sequence} since {moved}, {item.behind} behind, "
            f"{item.pending} pending, {item.parked} parked{left}"
        )
    return GOOD


def _export(options: argparse.Namespace) -> int:
    filters = {name: value for name in (*_FILTERS, "since", "until") if (value := getattr(options, name)) is not None}
    url = load(options.config).journal_url()
    lines = _lines(url, filters, FORMS[options.format])
    if options.output is None:
        sys.stdout.reconfigure(newline="")  # type: ignore[union-attr]  # CSV has line ends of its own
        _write(lines, sys.stdout)
        return GOOD
    if options.output.is_symlink() or (options.output.exists() and not options.output.is_file()):
        message = f"{options.output}: it is no ordinary file, and would be replaced; leave --output out and redirect"
        raise BadConfiguration(message)
    part = options.output.with_name(options.output.name + ".part")
    try:
        with os.fdopen(
            os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline=""
        ) as file:
            count = _write(lines, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(options.output)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        message = f"{options.output}: the export cannot be written: {error.strerror}"
        raise BadConfiguration(message) from None
    say(f"{options.output}: {count} events")
    return GOOD


def _lines(url: str, filters: dict[str, Any], form: Form) -> Iterator[str]:
    """Give the events page by page, each of them a look of its own."""
    from service.journal.looking import Look
    from service.journal.queries import read_page
    from service.journal.schema import check_readable

    check_readable(url)
    after: int | None = 0
    yield form.head
    with Look(url) as journal:
        while after is not None:
            page = journal.run(partial(read_page, filters, after, _PAGE, False))  # noqa: FBT003  # oldest first
            yield from (form.line(body) for _, body in page.rows)
            after = page.cursor


def _write(lines: Iterator[str], file: TextIO) -> int:
    """Write *lines*; return how many events they are."""
    file.write(next(lines))
    count = 0
    for line in lines:
        file.write(line)
        count += 1
    return count
