"""How far each sink has read the journal, and what it is to be given again."""

from __future__ import annotations

import dataclasses
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from service import effects as f
from service.journal import tables as t
from service.journal.reads import Reads
from service.keeping import Backlog
from service.records import Delivery

KEPT_SECONDS = 7 * 86_400.0
"""So long a delivery that succeeded is shown; one that is pending or parked stays."""
_PENDING, _DELIVERED = "pending", "delivered"
_d, _w = t.deliveries.c, t.followers.c
_LAST = select(func.max(t.events.c.sequence))
_FOLLOWED = select(_w.sequence).where(_w.name == bindparam("of_name"))
_REACH = (
    update(t.followers)
    .where(_w.name == bindparam("of_name"), _w.sequence < bindparam("new_sequence"))
    .values(sequence=bindparam("new_sequence"), at=bindparam("new_at"))
)
_AGAIN = (
    update(t.deliveries)
    .where(_d.id == bindparam("of_id"))
    .values(
        **{name: bindparam(f"new_{name}") for name in ("state", "attempts", "due", "status", "problem", "ended_at")}
    )
)
_FORGET = delete(t.deliveries).where(
    _d.sink == bindparam("of_sink"), _d.state == _DELIVERED, _d.due < bindparam("older")
)  # what was delivered was due before it ended
_OF_SINK = _d.sink == bindparam("of_sink")
_IS_PENDING = _d.state == _PENDING
_PLACES = select(_d.place, func.count().label("pending")).where(_OF_SINK, _IS_PENDING).group_by(_d.place)
_PARKED = select(func.count()).where(_OF_SINK, _d.state == "parked")
_HEADS = (
    select(_d.place.label("place"), func.min(_d.sequence).label("sequence"))
    .where(_OF_SINK, _IS_PENDING)
    .group_by(_d.place)
    .subquery()
)
_NEXT = (
    select(t.deliveries)
    .join(_HEADS, (_HEADS.c.place == _d.place) & (_HEADS.c.sequence == _d.sequence))
    .where(_OF_SINK, _IS_PENDING)
    .order_by(_d.due)
)


def apply(connection: Connection, effect: f.Follows | f.Reached | f.Redelivered) -> None:
    """Change what is kept of a sink."""
    match effect:
        case f.Follows():
            if connection.execute(_FOLLOWED, {"of_name": effect.name}).first() is None:
                last = connection.execute(_LAST).scalar() or 0
                connection.execute(insert(t.followers).values(name=effect.name, sequence=last, at=effect.at))
        case f.Reached():
            reached = {"of_name": effect.name, "new_sequence": effect.sequence, "new_at": effect.at}
            connection.execute(_REACH, reached)
            _keep(connection, effect)
        case f.Redelivered():
            fresh = {"state": _PENDING, "attempts": 0, "due": effect.at, "at": effect.at, "ended_at": None}
            connection.execute(update(t.deliveries).where(_d.id == effect.delivery_id).values(**fresh))


def _keep(connection: Connection, effect: f.Reached) -> None:
    """Store deliveries; those of the same identifier are one."""
    if not effect.deliveries:
        return
    identifiers = [item.id for item in effect.deliveries]
    known = set(connection.execute(select(_d.id).where(_d.id.in_(identifiers))).scalars())
    fresh = {item.id: dataclasses.asdict(item) for item in effect.deliveries if item.id not in known}
    if fresh:
        connection.execute(insert(t.deliveries), list(fresh.values()))
    for item in effect.deliveries:
        if item.id in known:
            values = dataclasses.asdict(item)
            changed = {f"new_{name}": values[name] for name in ("attempts", "due", "status", "problem", "ended_at")}
            connection.execute(_AGAIN, {"of_id": item.id, "new_state": item.state, **changed})
    connection.execute(_FORGET, {"of_sink": effect.name, "older": effect.at - KEPT_SECONDS})


class OutboxReads(Reads):
    """What sinks and their API read of the journal."""

    async def backlog(self, sink: str) -> Backlog | None:
        """Say how far a sink is; None for one that never followed."""
        names = {"of_name": sink, "of_sink": sink}
        followed, last, places, parked = await self._all([_FOLLOWED, _LAST, _PLACES, _PARKED], names)
        if not followed:
            return None
        sequence, newest = int(followed[0][0]), int(last[0][0] or 0)
        return Backlog(
            sequence,
            max(0, newest - sequence),
            sum(int(row.pending) for row in places),
            int(parked[0][0]),
            frozenset(row.place for row in places),
        )

    async def next_pending(self, sink: str, limit: int) -> list[Delivery]:
        """List the pending deliveries of *sink* that come next in their place, by when they are due."""
        return [_delivery(row) for row in await self._rows(_NEXT.limit(limit), of_sink=sink)]

    async def pending_in(self, sink: str, place: str, limit: int) -> list[Delivery]:
        """List the pending deliveries of one place, in order."""
        query = select(t.deliveries).where(_OF_SINK, _IS_PENDING, _d.place == place).order_by(_d.sequence)
        return [_delivery(row) for row in await self._rows(query.limit(limit), of_sink=sink)]

    async def deliveries(self, sink: str, state: str | None, before: int | None, limit: int) -> list[Delivery]:
        """List deliveries of events before the sequence *before*, newest event first."""
        query = select(t.deliveries).where(_OF_SINK).order_by(_d.sequence.desc()).limit(limit)
        if state is not None:
            query = query.where(_d.state == state)
        if before is not None:
            query = query.where(_d.sequence < before)
        return [_delivery(row) for row in await self._rows(query, of_sink=sink)]

    async def delivery(self, delivery_id: str) -> Delivery | None:
        """Get one delivery."""
        rows = await self._rows(select(t.deliveries).where(_d.id == delivery_id))
        return _delivery(rows[0]) if rows else None


def _delivery(row: Any) -> Delivery:
    return Delivery(**row._mapping)  # noqa: SLF001  # SQLAlchemy's public name for it
