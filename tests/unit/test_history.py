"""The way back: what a rollback and what a revert go back to."""

from __future__ import annotations

import pytest

from service.promotion.history import before_drift, passed_before, way_back
from service.records import LivePeriod


def lived(text: str) -> list[LivePeriod]:
    """Read ``1 2 r1 d3 -``: promotions, rollbacks, drift, and a retirement, one after the other."""
    kinds = {"r": "rollback", "d": "drift", "v": "revert", "e": "emergency", "b": "baseline"}
    periods: list[LivePeriod] = []
    for at, word in enumerate(text.split()):
        if periods and periods[-1].until is None:
            last = periods.pop()
            periods.append(LivePeriod(last.environment, last.version, last.binding, last.since, at, "u", "op", "",
                                      kind=last.kind, passed=last.passed))  # fmt: skip
        if word == "-":
            continue
        kind = kinds.get(word[0], "promotion")
        version = word.lstrip("".join(kinds))
        periods.append(LivePeriod("production", version, f"b{version}", at, None, "u", "op", "", kind=kind,
                                  passed=kind not in ("drift", "emergency")))  # fmt: skip
    return periods


@pytest.mark.parametrize(
    ("history", "back"),
    [
        ("", ""),
        ("1", "1"),
        ("1 2 3", "3 2 1"),
        ("1 2 3 r2", "2 1"),  # the next rollback goes on to 1, not forward to 3
        ("1 2 3 r2 r1", "1"),
        ("1 2 3 r1", "1"),
        ("1 2 r1 3", "3 1"),
        ("1 2 1", "1 2 1"),  # promoted again: one step forward
        ("1 2 1 r2", "2 1"),
        ("1 2 3 r2 r3", "3 2 1"),  # forward again, by name
        ("1 2 -", "2 1"),  # taken down: back to what was live
        ("1 2 d3", "2 1"),  # moved beside the gateway: that is no step
        ("1 2 d3 v2", "2 1"),
        ("b1 2", "2 1"),
    ],
)
def test_each_rollback_goes_one_step_further_back(history: str, back: str) -> None:
    assert " ".join(item.version for item in way_back(lived(history), "production")) == back
    assert way_back(lived(history), "staging") == []


@pytest.mark.parametrize(
    ("history", "version"), [("1 d2", "1"), ("1 2 d3 d4", "2"), ("d1", None), ("1 - d2", None), ("1 d2 d3", "1")]
)
def test_drift_is_moved_back_to_what_was_live_when_it_began(history: str, version: str | None) -> None:
    found = before_drift(lived(history), "production")
    assert (found.version if found else None) == version


def test_only_what_passed_its_gate_was_live_for_a_rollback() -> None:
    periods = lived("1 e2 d3 b4")
    found = [bool(passed_before(periods, "production", f"b{version}")) for version in "1234"]
    assert found == [True, False, False, True]
    assert passed_before(periods, "staging", "b1") == []
