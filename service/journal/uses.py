"""Reads from the journal's file when each API key was last used."""

from __future__ import annotations

import sqlite3

from service.errors import BadConfiguration
from service.journal.schema import check_readable


def last_uses(url: str) -> dict[str, int]:
    """Map the id of each key that was ever used to the beginning of the hour it was last used in (Unix time).

    Raises:
        BadConfiguration: the journal is missing, or cannot be read.
    """
    path = check_readable(url)
    try:
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return dict(connection.execute("SELECT credential, hour FROM key_uses"))
        finally:
            connection.close()
    except sqlite3.Error as error:
        message = f"{path}: the journal cannot be read: {error}"
        raise BadConfiguration(message) from None
