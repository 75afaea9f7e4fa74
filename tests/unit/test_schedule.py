"""Allowed times and freezes, by the clocks of a time zone."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from service.promotion.schedule import AllowedTimes, Freeze, parse_clock, parse_duration

ZURICH = ZoneInfo("Europe/Zurich")


def at(text: str, zone: ZoneInfo = ZURICH) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


def times(days: str, since: str, until: str) -> AllowedTimes:
    return AllowedTimes(tuple(days.split()), parse_clock(since), parse_clock(until), ZURICH)


@pytest.mark.parametrize(
    ("window", "moment", "holds"),
    [
        (times("mon", "09:00", "17:00"), "2026-11-23T09:00", True),
        (times("mon", "09:00", "17:00"), "2026-11-23T08:59:59", False),
        (times("mon", "09:00", "17:00"), "2026-11-23T17:00", False),
        (times("mon", "09:00", "17:00"), "2026-11-24T12:00", False),
        (times("mon", "00:00", "24:00"), "2026-11-23T23:59:59.999999", True),
        (times("mon", "00:00", "24:00"), "2026-11-24T00:00", False),
        (times("fri", "22:00", "02:00"), "2026-11-27T23:00", True),  # a night that began on Friday
        (times("fri", "22:00", "02:00"), "2026-11-28T01:59", True),
        (times("fri", "22:00", "02:00"), "2026-11-27T01:00", False),  # that one began on Thursday
        (times("sun", "01:00", "04:00"), "2026-03-29T03:30", True),  # the hour from two to three is not there
        (times("sun", "01:00", "04:00"), "2026-10-25T02:30", True),  # it is there twice
    ],
)
def test_a_window(window: AllowedTimes, moment: str, holds: bool) -> None:
    assert window.holds(at(moment)) is holds


def test_a_window_is_of_its_own_zone() -> None:
    noon = at("2026-11-23T12:00", ZoneInfo("UTC"))
    night = AllowedTimes(("mon",), parse_clock("20:00"), parse_clock("24:00"), ZoneInfo("Asia/Tokyo"))
    assert night.holds(noon)
    assert str(night) == "mon 20:00-24:00 Asia/Tokyo"


def test_a_freeze_has_a_first_and_no_last_moment() -> None:
    freeze = Freeze(10.0, 20.0, "year end")
    assert [freeze.holds(moment) for moment in (9.99, 10.0, 19.99, 20.0)] == [False, True, True, False]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("24h", 86400), ("30d", 2592000)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "1", "h", "-1h", "1.5h", "1w", "1h ", "9999999s", "١h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "9:00", "24:01", "25:00", "12:60", "noon", "١٢:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_clock(text)
