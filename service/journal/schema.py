"""Creates and upgrades the journal's schema with Alembic, as a step of its own."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from service.errors import BadConfiguration

HEAD = "0006"
"""The schema this version reads and writes."""
_PREFIX = "sqlite:///"


def upgrade(url: str) -> None:
    """Bring the journal at *url* to `HEAD`; an up-to-date one is left alone. The file is made with mode 0600.

    Raises:
        BadConfiguration: the place cannot be written.
    """
    from alembic import command
    from alembic.config import Config

    path = Path(url.removeprefix(_PREFIX))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        message = f"{path}: the journal cannot be written: {error.strerror}"
        raise BadConfiguration(message) from None
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")


def exists(url: str) -> bool:
    """Tell whether there is a file at *url*, journal or not."""
    return Path(url.removeprefix(_PREFIX)).exists()


def check(url: str) -> None:
    """Return if the journal at *url* has the schema `HEAD` and can be written.

    Raises:
        BadConfiguration: it is missing, unreadable or of another version; the message says what to run.
    """
    path = check_readable(url)
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        message = f"{path}: the journal cannot be written"
        raise BadConfiguration(message)


def check_readable(url: str) -> Path:
    """Return the file of the journal at *url*, which has the schema `HEAD`; it is not changed.

    Raises:
        BadConfiguration: it is missing, unreadable or of another version; the message says what to run.
    """
    path = Path(url.removeprefix(_PREFIX))
    found = revision(path)
    if found is None:
        message = f"{path}: there is no journal yet; run: registry-gateway journal upgrade"
        raise BadConfiguration(message)
    if found != HEAD:
        message = (
            f"{path}: the journal has schema {found!r}, this version needs {HEAD!r}; "
            "run: registry-gateway journal upgrade (or the version of the gateway that made it)"
        )
        raise BadConfiguration(message)
    return path


def revision(path: Path) -> str | None:
    """Return the schema revision of the SQLite file *path*, or None where there is none yet.

    Raises:
        BadConfiguration: the file is not a journal.
    """
    try:
        if not path.exists() or path.stat().st_size == 0:
            return None
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        finally:
            connection.close()
    except OSError as error:
        message = f"{path}: the journal cannot be read: {error.strerror}"
        raise BadConfiguration(message) from None
    except sqlite3.Error as error:
        message = f"{path}: not a journal of the gateway: {error}"
        raise BadConfiguration(message) from None
    return str(row[0]) if row else None
