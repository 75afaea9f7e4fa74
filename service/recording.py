"""The settings of the record: the journal, and where its events go besides."""

from __future__ import annotations

import re
import socket
import uuid
from urllib.parse import urlsplit

import msgspec

from service.files import YamlFile
from service.outlets import Outlet, check_outlets

_MAX_SECONDS = 600.0
_MAX_EVENTS = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9._-]{1,63}")
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]")
_MAX_NAME = 63
_MAX_REFUSALS = 100_000
_MAX_DAYS = 36_500


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where audit events, evidence and approvals are stored."""

    url: str
    password_file: str | None = None
    """The password of the PostgreSQL role that the URL names."""
    deadline_seconds: float = 2.0
    """A write that cannot be recorded within this is answered 503 and not forwarded."""


class Checkpoints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Signed events that say how far the chain is, so that a cut or a rewritten one shows."""

    key: str
    """The file of an Ed25519 key in PEM (PKCS #8)."""
    kid: str
    seconds: float = 60.0
    events: int = 1000


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When events leave the journal for the archive."""

    keep_days: int
    archive: str
    """The directory of the archive."""
    max_lag_days: int | None = None
    """A follower that has not moved for so long holds nothing back; left out: it does."""


class Audit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where events go besides the journal, and whether reads are recorded too."""

    sinks: tuple[str | Outlet, ...] = ("stdout",)
    reads: bool | str = False
    sum_seconds: float = 60.0
    """How often the sums of telemetry are written; a kill loses those of this long."""
    refusals_per_minute: int = 300
    """So many refusals of one kind are an event each; the rest of the minute is one sum."""
    cluster: str = "default"
    """What uses one journal together; with the replica it names the source of events."""
    replica: str = ""
    """This process's machine; left out, its host name."""
    checkpoints: Checkpoints | None = None
    sensitive_tags: tuple[str, ...] = ()
    """Keys of tags whose values are kept as HMAC only: exact, or with ``*`` for any characters."""
    hmac_key_file: str | None = None
    retention: Retention | None = None
    """Left out: events stay in the journal."""

    def new_source(self) -> str:
        """Name this process in its events: another one at each start."""
        return f"/registry-gateway/{self.cluster}/{self.replica_name}/{uuid.uuid4()}"

    @property
    def replica_name(self) -> str:
        """The configured name, or one made of the host's."""
        return self.replica or _NO_NAME.sub("-", socket.gethostname())[:_MAX_NAME] or "unnamed"


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
    if not 1 <= audit.refusals_per_minute <= _MAX_REFUSALS:
        raise file.error("audit.refusals_per_minute: 1 to 100000", "audit", "refusals_per_minute")
    for key in ("cluster", "replica"):
        if not _NAME.fullmatch(getattr(audit, key)) and (key, audit.replica) != ("replica", ""):
            raise file.error(f"audit.{key}: 1 to 63 of A-Z a-z 0-9 . _ -", "audit", key)
    if audit.checkpoints is not None:
        _check_checkpoints(audit.checkpoints, file)
    if "" in audit.sensitive_tags:
        raise file.error("audit.sensitive_tags: the key of a tag is not empty", "audit", "sensitive_tags")
    if bool(audit.sensitive_tags) != (audit.hmac_key_file is not None):
        problem = "audit.sensitive_tags and audit.hmac_key_file go together"
        raise file.error(problem, "audit", "sensitive_tags" if audit.sensitive_tags else "hmac_key_file")
    if audit.retention is not None:
        _check_retention(audit.retention, file)


def _check_checkpoints(checkpoints: Checkpoints, file: YamlFile) -> None:
    if not _NAME.fullmatch(checkpoints.kid):
        raise file.error("audit.checkpoints.kid: 1 to 63 of A-Z a-z 0-9 . _ -", "audit", "checkpoints", "kid")
    if not 0 < checkpoints.seconds <= _MAX_SECONDS:
        raise file.error("audit.checkpoints.seconds: more than 0, at most 600", "audit", "checkpoints", "seconds")
    if not 1 <= checkpoints.events <= _MAX_EVENTS:
        raise file.error(f"audit.checkpoints.events: 1 to {_MAX_EVENTS}", "audit", "checkpoints", "events")


def _check_retention(retention: Retention, file: YamlFile) -> None:
    for key in ("keep_days", "max_lag_days"):
        value = getattr(retention, key)
        if value is not None and not 1 <= value <= _MAX_DAYS:
            raise file.error(f"audit.retention.{key}: 1 to {_MAX_DAYS}", "audit", "retention", key)
    if not retention.archive or "://" in retention.archive:
        raise file.error("audit.retention.archive: the path of a directory", "audit", "retention", "archive")
