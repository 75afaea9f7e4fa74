"""Reads the command line strictly: whole names only, and no word of it repeated where it could be a key."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SECRETS = frozenset({"--token", "--key", "--api-key", "--password"})
_KEYS = "a key is no argument, which others on this machine could see: set $REGISTRY_GATEWAY_TOKEN or --token-file FILE"


class Parser(argparse.ArgumentParser):
    """A parser, like those of its subcommands, that says what is wrong with its own usage."""

    def __init__(self, **options: Any) -> None:
        """Take no abbreviations: `--token` is not `--token-file`."""
        super().__init__(**{**options, "allow_abbrev": False})

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and refuse what is unknown here, where the usage is that of the subcommand."""
        options, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(_refused(unknown))
        return options, unknown


def with_config(parser: argparse.ArgumentParser) -> None:
    """Add the option of all commands that read the configuration."""
    text = "configuration file (default: $REGISTRY_GATEWAY_CONFIG, else embedded)"
    parser.add_argument("--config", type=Path, help=text)


def warn_of_pruned(before: str | None) -> None:
    """Say on standard error that events *before* a time are missing from what was read, if that is so."""
    if before is not None:
        message = "are pruned, but for those still asked for: what is only in the archive was not looked at"
        print(f"registry-gateway: events from before {before} {message}", file=sys.stderr)


def say(text: str) -> None:
    """Print *text*, at once."""
    print(text, flush=True)


def _refused(unknown: Sequence[str]) -> str:
    """Name unknown options without their values, and other words not at all: one of them may be a key."""
    names = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if _SECRETS & set(names):
        return _KEYS
    if not names:
        return f"{len(unknown)} more arguments than there should be; quote what has spaces"
    return f"no option is named {', '.join(names)}; --help lists those there are"
