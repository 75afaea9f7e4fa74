"""The settings of the record: the journal, and where its events go besides."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

from service.files import YamlFile
from service.outlets import Outlet, check_outlets

_MAX_SECONDS = 600.0


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where audit events, evidence and approvals are stored."""

    url: str
    password_file: str | None = None
    """The password of the PostgreSQL role that the URL names."""
    deadline_seconds: float = 2.0
    """A write that cannot be recorded within this is answered 503 and not forwarded."""


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where events go besides the journal, and whether reads are recorded too."""

    sinks: tuple[str | Outlet, ...] = ("stdout",)
    reads: bool | str = False
    sum_seconds: float = 60.0
    """How often the sums of telemetry are written; a kill loses those of this long."""


def check_journal(journal: Journal, file: YamlFile) -> None:
    """Refuse what cannot be a journal.

    Raises:
        BadConfiguration: it names file, line and key.
    """
    try:
        url = urlsplit(journal.url)
        _ = url.port
    except ValueError as error:
        raise file.error(f"journal.url: {error}", "journal", "url") from None
    if url.scheme not in ("sqlite", "postgresql") or not journal.url.startswith(f"{url.scheme}://"):
        raise file.error("journal.url: sqlite:///path or postgresql://user@host/database", "journal", "url")
    if url.scheme == "sqlite" and (url.netloc or journal.password_file):
        raise file.error("journal.url: a file has three slashes (sqlite:///path) and no password", "journal", "url")
    if url.password:
        raise file.error("journal.url: no password here; use journal.password_file", "journal", "url")
    if not 0 < journal.deadline_seconds <= _MAX_SECONDS:
        raise file.error("journal.deadline_seconds: more than 0, at most 600", "journal", "deadline_seconds")


def check_audit(audit: Audit, file: YamlFile) -> None:
    """Refuse what cannot be done with events.

    Raises:
        BadConfiguration: it names file, line and key.
    """
    check_outlets(audit.sinks, file)
    if audit.reads not in (True, False, "off", "on"):
        raise file.error("audit.reads: on or off", "audit", "reads")
    if not 0 < audit.sum_seconds <= _MAX_SECONDS:
        raise file.error("audit.sum_seconds: more than 0, at most 600", "audit", "sum_seconds")
