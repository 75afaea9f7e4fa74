"""Pages of events by what they are about: each query reads a bounded part of one index, whatever is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, insert, select, text, update

from service.journal import tables as t
from service.keeping import ANY, Page

CLOCK = "clock_back_seconds"
CLOCK_SLACK_SECONDS = 60.0
"""Times of events may go back by so much unnoticed; the table `about` says by how much more they did."""
_LOOKED_AT = 2_500
"""So many events of an index are looked at for one page; the next page goes on from there."""
END = 1 << 62
"""Beyond any sequence."""
_c = t.events.c
_BACK = select(t.about.c.value).where(t.about.c.name == CLOCK)
_CUSTOM = text("SET LOCAL plan_cache_mode = force_custom_plan")
"""A plan for any value would go through the whole journal for a value that is rare."""
_NEXT = text("SELECT sequence, time FROM events WHERE sequence >= :at ORDER BY sequence LIMIT 1")
_ENDS = text("SELECT (SELECT min(sequence) FROM events), (SELECT max(sequence) FROM events)")


def read_page(filters: Mapping[str, Any], after: int, limit: int, newest_first: bool, connection: Connection) -> Page:
    """Read at most *limit* events beyond the sequence *after* (see `service.keeping.Journal.page`)."""
    low, high = _bounds(connection, filters)
    if newest_first:
        high = min(high, after - 1)
    else:
        low = max(low, after + 1)
    if low > high:
        return Page([], None)
    exact = {name: value for name, value in filters.items() if name not in ("since", "until")}
    within = _c.sequence.between(low, high)
    order = _c.sequence.desc() if newest_first else _c.sequence
    remote = connection.dialect.name == "postgresql"
    if remote:
        connection.execute(_CUSTOM)
    driver = _driver(connection, exact, within)
    looked_at = select(_c.sequence).where(within, *(_condition(name, exact[name]) for name in driver))
    seen = looked_at.order_by(order).limit(_LOOKED_AT).subquery("seen")
    rest = [_condition(name, value) for name, value in exact.items() if name not in driver]
    rest += [_c.time >= filters["since"]] if "since" in filters else []
    rest += [_c.time < filters["until"]] if "until" in filters else []
    found = select(_c.sequence, _c.body).join_from(seen, t.events, _c.sequence == seen.c.sequence).where(*rest)
    if remote:  # SQLite keeps the order of what was seen, and would read all of it before it gives the first
        found = found.order_by(order)
    rows = connection.execute(found.limit(limit + 1)).all()
    bodies = [(row.sequence, row.body) for row in rows[:limit]]
    if len(rows) > limit:
        return Page(bodies, bodies[-1][0])
    last = func.min(seen.c.sequence) if newest_first else func.max(seen.c.sequence)
    count, reached = connection.execute(select(func.count(), last).select_from(seen)).one()
    return Page(bodies, reached if count == _LOOKED_AT else None, incomplete=count == _LOOKED_AT)


def note_clock(connection: Connection, back: float) -> None:
    """Keep that the time of an event is *back* seconds before the latest one, unless one is further back."""
    known = connection.execute(_BACK).scalar()
    if known is None:
        connection.execute(insert(t.about).values(name=CLOCK, value=str(back)))
    elif float(known) < back:
        connection.execute(update(t.about).where(t.about.c.name == CLOCK).values(value=str(back)))


def _condition(name: str, value: Any, columns: Any = _c) -> Any:
    if value is ANY:
        return columns[name].is_not(None)
    if isinstance(value, list):
        return columns[name].in_(value)
    return columns[name] == value


def _driver(connection: Connection, exact: Mapping[str, Any], within: Any) -> tuple[str, ...]:
    """Name the filter that leaves the fewest events; none where each leaves many, or an index cannot serve it."""
    served = [name for name, value in exact.items() if value is not ANY and not isinstance(value, list)]
    if len(served) < 2:
        return tuple(served)
    sizes = {}
    for name in served:
        few = select(_c.sequence).where(_condition(name, exact[name]), within).limit(_LOOKED_AT).subquery()
        sizes[name] = connection.execute(select(func.count()).select_from(few)).scalar_one()
    return (min(sizes, key=lambda name: (sizes[name], name)),)


def _bounds(connection: Connection, filters: Mapping[str, Any]) -> tuple[int, int]:
    """Return sequences between which everything of the times asked for lies.

    Times grow with sequences, but for clocks that were set back; by how much at most, the journal keeps.
    """
    low, high = connection.execute(_ENDS).one()
    if low is None:
        return 1, 0
    back = max(CLOCK_SLACK_SECONDS, float(connection.execute(_BACK).scalar() or 0))
    since = _search(connection, low, high, filters["since"] - back)[0] if "since" in filters else low
    until = _search(connection, low, high, filters["until"] + back)[1] if "until" in filters else high
    return since, until


def _search(connection: Connection, low: int, high: int, time: float) -> tuple[int, int]:
    """Return a sequence before which there is an event before *time*, and one at or after which one is not."""
    while low < high:
        middle = (low + high) // 2
        found = connection.execute(_NEXT, {"at": middle}).one()
        low, high = (found.sequence + 1, high) if found.time < time else (low, middle)
    return low, high
