"""The commands for API keys: new, list, rotate, revoke. A key is shown once; a hash never."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from service.arguments import say, with_config
from service.errors import BadConfiguration
from service.settings import CONFIG, Configuration, load

GOOD = 0
_DEFAULT_OVERLAP = "7d"


def add_commands(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    key = commands.add_parser("key", help="API keys").add_subparsers(required=True)
    new = key.add_parser("new", help="make a key; only its hash goes into the key file")
    new.add_argument("principal", help="user:… or service:…")
    new.add_argument("--group", action="append", default=[], help="group:…; may be repeated")
    new.add_argument("--acting-for", metavar="PERSON", help="user:…; who is behind it where four eyes are asked")
    new.add_argument("--id", help="names the key in events (default: made from the principal)")
    new.add_argument(
        "--scope",
        action="append",
        default=[],
        metavar="ITEM",
        help="narrow the key to <registry>/<action>, such as main/model:read or main/alias:*; may be repeated",
    )
    new.add_argument("--expires", metavar="WHEN", help="in 90d or 12h, or at a date and time (ISO 8601)")
    new.add_argument("--not-before", metavar="WHEN", help="valid from then on; the same forms")
    new.add_argument("--file", type=Path, help="append the entry to this key file (default: print it)")
    with_config(new)
    new.set_defaults(run=_new)

    known = key.add_parser("list", help="list the keys, and when each was last used")
    known.add_argument("--format", choices=("text", "json"), default="text")
    _with_files(known, "list this key file")
    known.set_defaults(run=_list)

    rotate = key.add_parser("rotate", help="make another key with the same rights; the old one ends after an overlap")
    rotate.add_argument("id", help="the old key's")
    rotate.add_argument("--new-id", help="names the new key in events (default: made from the principal)")
    rotate.add_argument(
        "--overlap", default=_DEFAULT_OVERLAP, help=f"both are valid for this long (default: {_DEFAULT_OVERLAP})"
    )
    rotate.add_argument("--expires", metavar="WHEN", help="end of the new key; needed where the old one has one")
    _with_files(rotate, "change this key file")
    rotate.set_defaults(run=_rotate)

    revoke = key.add_parser("revoke", help="end a key at once; its entry stays")
    revoke.add_argument("id")
    _with_files(revoke, "change this key file")
    revoke.set_defaults(run=_revoke)


def _with_files(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--file", type=Path, help=f"{what} (default: the configured one)")
    with_config(parser)


def _configuration(options: argparse.Namespace) -> Configuration | None:
    """Read the configuration, unless a file is named and no configuration is."""
    named = options.config or os.environ.get(CONFIG)
    return load(options.config) if named or options.file is None else None


def _file_and_registries(options: argparse.Namespace) -> tuple[Path, Collection[str] | None]:
    configuration = _configuration(options)
    registries = configuration.settings.registries if configuration else None
    if options.file is not None:
        return options.file, registries
    assert configuration is not None
    file = configuration.settings.authentication.api_keys
    if file is None:
        message = "authentication.api_keys is not set; --file names a key file"
        raise BadConfiguration(message)
    return configuration.path(file), registries


def _new(options: argparse.Namespace) -> int:
    import msgspec
    import yaml

    from service.authentication.api_keys import entry_for, new_key
    from service.authentication.key_edits import edit, with_entry
    from service.authentication.key_file import KeyEntry, entry_problem

    now = time.time()
    key = new_key()
    entry = entry_for(
        key, options.principal, tuple(options.group), identifier=options.id or "", acting_for=options.acting_for
    )
    if options.scope:
        entry["scopes"] = list(options.scope)
    begins = now if options.not_before is None else _when(options.not_before, now, "--not-before")
    if options.not_before is not None:
        entry["not_before"] = _written(begins)
    if options.expires is not None:
        entry["expires"] = _written(_end(options.expires, now, begins))
    named = options.config or os.environ.get(CONFIG)
    registries = load(options.config).settings.registries if named else None
    problem = entry_problem(msgspec.convert(entry, KeyEntry), registries)
    if problem:
        raise BadConfiguration(problem)
    if options.file is None:
        say(f"add this to the key file:\n{yaml.safe_dump([entry], sort_keys=False)}and keep the key, shown once:")
    else:
        edit(options.file, lambda text: with_entry(text, entry), registries, make=True)
        say(f"added to {options.file}; the key, shown once:")
    say(key)
    return GOOD


def _list(options: argparse.Namespace) -> int:
    from service.authentication.key_file import Key, checked
    from service.files import read_text
    from service.journal import schema
    from service.journal.uses import last_uses

    file, registries = _file_and_registries(options)
    configuration = _configuration(options)
    journal = configuration.journal_url() if configuration else ""
    uses = last_uses(journal) if journal and schema.exists(journal) else {}
    now = time.time()

    def row(key: Key) -> dict[str, Any]:
        entry, used = key.entry, uses.get(key.entry.id)
        return {
            "id": entry.id,
            "principal": entry.principal,
            "groups": list(entry.groups),
            "acting_for": entry.acting_for,
            "scopes": list(entry.scopes) if entry.scopes else None,
            "not_before": _written(key.begins),
            "expires": _written(key.ends),
            "state": key.state(now),
            "last_used": _written(None if used is None else float(used)),
        }

    rows = [row(key) for key in checked(file, read_text(file), registries)]
    if options.format == "json":
        say(json.dumps({"keys": rows}, indent=1))
        return GOOD
    heads = ("id", "principal", "groups", "scopes", "state", "expires", "last used")
    table = [heads, *(tuple(_cell(item[head.replace(" ", "_")]) for head in heads) for item in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(heads))]
    for line in table:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    return GOOD


def _rotate(options: argparse.Namespace) -> int:
    from service.authentication.api_keys import entry_for, new_key
    from service.authentication.key_edits import edit, with_entry, with_fields
    from service.authentication.key_file import checked

    file, registries = _file_and_registries(options)
    now = time.time()
    ends = _when(options.overlap, now, "--overlap")
    key = new_key()

    def change(text: str) -> str:
        old = next((item for item in checked(file, text, registries) if item.entry.id == options.id), None)
        if old is None:
            message = f"{file}: no key has the id {options.id!r}; `registry-gateway key list` lists them"
            raise BadConfiguration(message)
        if old.state(now) in ("revoked", "expired"):
            message = f"{file}: the key {options.id!r} is {old.state(now)}; make a new one: registry-gateway key new"
            raise BadConfiguration(message)
        entry = entry_for(
            key,
            old.entry.principal,
            old.entry.groups,
            identifier=options.new_id or "",
            acting_for=old.entry.acting_for,
        )
        if old.entry.scopes:
            entry["scopes"] = list(old.entry.scopes)
        if old.begins is not None and now < old.begins:  # it is valid no sooner than the old one
            entry["not_before"] = _written(old.begins)
        if options.expires is not None:
            entry["expires"] = _written(_end(options.expires, now, old.begins or now))
        elif old.ends is not None:
            message = f"the key {options.id!r} has an end; say when the new one ends, as with --expires 90d"
            raise BadConfiguration(message)
        if old.ends is None or ends < old.ends:
            text = with_fields(text, options.id, expires=_written(ends))
        return with_entry(text, entry)

    keys = edit(file, change, registries)
    ended = next(item for item in keys if item.entry.id == options.id)
    say(f"{options.id} ends {_written(ended.ends)}; {keys[-1].entry.id} was added to {file}; its key, shown once:")
    say(key)
    return GOOD


def _revoke(options: argparse.Namespace) -> int:
    from service.authentication.key_edits import edit, with_fields

    file, registries = _file_and_registries(options)
    edit(file, lambda text: with_fields(text, options.id, revoked=True), registries)
    say(f"revoked {options.id} in {file}; a running gateway follows within 5 seconds")
    return GOOD


def _end(text: str, now: float, begins: float) -> float:
    """Read when a key ends that is valid from *begins* on.

    Raises:
        BadConfiguration: it is no time, or the key would never be valid.
    """
    ends = _when(text, now, "--expires")
    if ends <= max(now, begins):
        message = f"--expires: the key would end at {_written(ends)}, before it is valid"
        raise BadConfiguration(message)
    return ends


def _when(text: str, now: float, option: str) -> float:
    """Read ``90d`` from now on, or a date and time.

    Raises:
        BadConfiguration: it is neither.
    """
    from service.authentication.key_file import moment
    from service.promotion.schedule import parse_duration

    try:
        return now + parse_duration(text)
    except ValueError:
        pass
    try:
        found = moment(text)
        assert found is not None  # of a text
    except ValueError:
        message = f"{option}: {text!r} is neither a duration such as 90d or 12h, nor a date and time (ISO 8601)"
        raise BadConfiguration(message) from None
    return found


def _written(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(value) or "-"
    return "-" if value is None else str(value)
