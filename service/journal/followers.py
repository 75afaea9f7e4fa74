"""Who follows the journal and how far they are, as the commands see and change it."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, delete, select

from service.errors import BadConfiguration
from service.journal import tables as t
from service.journal.database import FAILURES, open_database, shown
from service.journal.looking import Look

_SECONDS = 10.0
_ALL = """
SELECT name, sequence, at,
  (SELECT count(*) FROM events WHERE events.sequence > followers.sequence),
  (SELECT count(*) FROM deliveries WHERE sink = name AND state = 'pending'),
  (SELECT count(*) FROM deliveries WHERE sink = name AND state = 'parked')
FROM followers ORDER BY sequence, name
"""


class Follower(NamedTuple):
    """How far one follower of the journal is."""

    name: str
    sequence: int
    """The last event that it has come to."""
    at: float
    """When it moved last."""
    behind: int
    pending: int
    parked: int


def followers(url: str) -> list[Follower]:
    """List who follows the journal at *url*, the slowest first.

    Raises:
        BadConfiguration: the journal cannot be read.
    """
    with Look(url) as journal:
        return [Follower(*row) for row in journal.rows(_ALL)]


async def forget(url: str, name: str) -> None:
    """Forget a follower, with what it was still to be given: it holds no event back any more.

    Raises:
        BadConfiguration: there is no such follower, or the journal cannot be written.
    """

    def work(connection: Connection) -> bool:
        connection.execute(delete(t.deliveries).where(t.deliveries.c.sink == name))
        found = connection.execute(select(t.followers.c.name).where(t.followers.c.name == name)).first()
        connection.execute(delete(t.followers).where(t.followers.c.name == name))
        return found is not None

    database = open_database(url, _SECONDS)
    try:
        found = await database.write(work)
    except FAILURES as error:
        message = f"{shown(url)}: the journal cannot be written: {getattr(error, 'orig', None) or error}"
        raise BadConfiguration(message) from None
    finally:
        await database.close()
    if not found:
        message = f"{name!r} does not follow the journal; registry-gateway audit followers lists who does"
        raise BadConfiguration(message)
