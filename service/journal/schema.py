"""Creates and upgrades the journal's schema with Alembic, as a step of its own."""

from __future__ import annotations

import os
from pathlib import Path

from service.errors import BadConfiguration
from service.journal.database import FAILURES, SQLITE, shown
from service.journal.looking import Look

HEAD = "0008"
"""The schema this version reads and writes."""
_MIGRATIONS = Path(__file__).parent / "migrations"
_USABLE_FROM = "SELECT value FROM about WHERE name = 'usable_from'"


def upgrade(url: str) -> None:
    """Bring the journal at *url* to `HEAD`; an up-to-date one is left alone. A file is made with mode 0600.

    A newer one that this version can use is left alone too.

    Raises:
        BadConfiguration: the place cannot be written, or a newer version made it and this one cannot use it.
    """
    from alembic import command
    from alembic.config import Config

    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            message = f"{path}: the journal cannot be written: {error.strerror}"
            raise BadConfiguration(message) from None
    if (revision(url) or "") > HEAD:
        check_readable(url)
        return
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    try:
        command.upgrade(config, "head")
    except FAILURES as error:
        if url.startswith(SQLITE):
            raise
        message = f"{shown(url)}: the journal cannot be upgraded: {getattr(error, 'orig', None) or error}"
        raise BadConfiguration(message) from None


def exists(url: str) -> bool:
    """Tell whether there is a file at *url*, journal or not; a database on a server is never made by itself."""
    return not url.startswith(SQLITE) or Path(url.removeprefix(SQLITE)).exists()


def trace_of(url: str) -> Path | None:
    """Return a file that tells that there was a journal at *url*, where there is none; None where nothing tells so."""
    path = Path(url.removeprefix(SQLITE))
    beside = (path.resolve().with_name(f"{path.resolve().name}.lock"), path.with_name(f"{path.name}-wal"))
    return next((item for item in beside if item.exists()), None)


def check(url: str) -> None:
    """Return if the journal at *url* has the schema `HEAD` and can be written.

    Raises:
        BadConfiguration: it is missing, unreadable or of another version; the message says what to run.
    """
    check_readable(url)
    if not url.startswith(SQLITE):
        return  # who may write there is the server's to say, and readiness tells
    path = Path(url.removeprefix(SQLITE))
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        message = f"{path}: the journal cannot be written"
        raise BadConfiguration(message)


def check_readable(url: str) -> None:
    """Return if the journal at *url* has the schema `HEAD`, or a newer one that this version can use; change nothing.

    Raises:
        BadConfiguration: it is missing, unreadable or of another version; the message says what to run.
    """
    found = revision(url)
    if found is None:
        message = (
            f"{shown(url)}: there is no journal yet; run: registry-gateway journal upgrade, with the same --config"
        )
        raise BadConfiguration(message)
    if found > HEAD >= _usable_from(url):
        return  # a newer gateway runs beside this one, and its migration says that this one may
    if found != HEAD:
        message = (
            f"{shown(url)}: the journal has schema {found!r}, this version needs {HEAD!r}; "
            "run: registry-gateway journal upgrade, with the same --config (or the version of the gateway that made it)"
        )
        raise BadConfiguration(message)


def revision(url: str) -> str | None:
    """Return the schema revision of the journal at *url*, or None where there is none yet.

    Raises:
        BadConfiguration: it cannot be read, or is no journal.
    """
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE))
        try:
            if not path.exists() or path.stat().st_size == 0:
                return None
        except OSError as error:
            message = f"{path}: the journal cannot be read: {error.strerror}"
            raise BadConfiguration(message) from None
    with Look(url) as journal:
        if not url.startswith(SQLITE) and journal.rows("SELECT to_regclass('alembic_version')") == [(None,)]:
            return None
        try:
            rows = journal.rows("SELECT version_num FROM alembic_version")
        except BadConfiguration as error:
            message = f"{shown(url)}: not a journal of the gateway: {error.detail.rpartition(': ')[2]}"
            raise BadConfiguration(message) from None
    return str(rows[0][0]) if rows else None


def _usable_from(url: str) -> str:
    """Return the oldest schema whose gateways can use the journal at *url*, as its last migration says."""
    with Look(url) as journal:
        rows = journal.rows(_USABLE_FROM)
    return str(rows[0][0]) if rows else "9999"
