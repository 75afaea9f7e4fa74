"""When promotions may happen: allowed times of the week in a time zone, and freezes. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def parse_duration(text: str) -> float:
    """Read ``90m``, ``24h`` or ``30d`` as seconds.

    Raises:
        ValueError: it is none of these; the message is for the author of the file.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        message = f"{text!r} is not a duration such as 90m, 24h or 30d"
        raise ValueError(message)
    return float(int(found[1]) * _SECONDS[found[2]])


def written_duration(seconds: float) -> str:
    """Write seconds as `parse_duration` reads them, in the largest unit that needs no fraction."""
    for unit, size in reversed(_SECONDS.items()):
        if seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds}s"


def parse_clock(text: str) -> time:
    """Read ``09:30``; ``24:00`` is the end of a day.

    Raises:
        ValueError: it is no time of a day.
    """
    if text == "24:00":
        return time.max
    found = _CLOCK.fullmatch(text)
    if found is None:
        message = f"{text!r} is not a time such as 09:30"
        raise ValueError(message)
    return time(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True)
class AllowedTimes:
    """A part of the week, by the clocks of one time zone. One that ends before it begins ends on the next day."""

    days: tuple[str, ...]
    since: time
    until: time
    zone: ZoneInfo

    def holds(self, now: float) -> bool:
        """Tell whether *now* is in it: from its beginning, up to but without its end."""
        local = datetime.fromtimestamp(now, UTC).astimezone(self.zone)
        clock = local.time()
        if self.since < self.until:
            return self._on(local) and self.since <= clock and (clock < self.until or self.until == time.max)
        began = local if clock >= self.since else local - timedelta(days=1)
        return self._on(began) and (clock >= self.since or clock < self.until)

    def _on(self, day: datetime) -> bool:
        return DAYS[day.weekday()] in self.days

    def __str__(self) -> str:
        written = self.document()
        return f"{' '.join(self.days)} {written['from']}-{written['until']} {self.zone.key}"

    def document(self) -> dict[str, Any]:
        """Give it as the file writes it."""
        until = "24:00" if self.until == time.max else f"{self.until:%H:%M}"
        return {"days": list(self.days), "from": f"{self.since:%H:%M}", "until": until, "time_zone": self.zone.key}


@dataclass(frozen=True, slots=True)
class Freeze:
    """A time in which nothing is promoted; seconds since the epoch."""

    since: float
    until: float
    because: str

    def holds(self, now: float) -> bool:
        """Tell whether *now* is in it."""
        return self.since <= now < self.until

    def document(self) -> dict[str, str]:
        """Give it as the file writes it, in UTC."""
        since, until = (datetime.fromtimestamp(moment, UTC) for moment in (self.since, self.until))
        return {"from": f"{since:%Y-%m-%dT%H:%M:%SZ}", "until": f"{until:%Y-%m-%dT%H:%M:%SZ}", "because": self.because}
