"""Reads from the journal when each API key was last used."""

from __future__ import annotations

from service.journal.looking import Look
from service.journal.schema import check_readable


def last_uses(url: str) -> dict[str, int]:
    """Map the id of each key that was ever used to the beginning of the hour it was last used in (Unix time).

    Raises:
        BadConfiguration: the journal is missing, or cannot be read.
    """
    check_readable(url)
    with Look(url) as journal:
        return dict(journal.rows("SELECT credential, hour FROM key_uses"))
