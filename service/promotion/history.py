"""Reads what was live when: what a rollback goes back to, and what drift is moved back to. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from service.records import LivePeriod

DRIFT = "drift"
_BACK = ("rollback", "revert")


def way_back(periods: Sequence[LivePeriod], environment: str) -> list[LivePeriod]:
    """List what *environment* can go back to, the nearest first; *periods* are the model's, oldest first.

    Each promotion goes one step forward; a rollback undoes the steps after what it made live again. So two rollbacks
    go two steps back, and none brings back what another one took down. What is live now is the first item, unless
    its mark was moved beside the gateway.
    """
    steps: list[LivePeriod] = []
    for period in periods:
        if period.environment != environment or period.kind == DRIFT:
            continue
        if period.kind in _BACK:
            known = [index for index, item in enumerate(steps) if item.binding == period.binding]
            if known:
                del steps[known[-1] :]
        steps.append(period)
    return steps[::-1]


def open_period(periods: Sequence[LivePeriod], environment: str) -> LivePeriod | None:
    """Return what is live in *environment* by record."""
    found = (item for item in reversed(periods) if item.environment == environment and item.until is None)
    return next(found, None)


def before_drift(periods: Sequence[LivePeriod], environment: str) -> LivePeriod | None:
    """Return what was live when the drift began that is live now; None if nothing was."""
    end: float | None = None
    for period in reversed(periods):
        if period.environment != environment:
            continue
        if period.kind != DRIFT:
            return period if period.until == end else None
        end = period.since
    return None


def passed_before(periods: Sequence[LivePeriod], environment: str, binding: str) -> list[LivePeriod]:
    """List the periods in which a version was live in *environment* by a gate that it passed."""
    return [item for item in periods if item.environment == environment and item.binding == binding and item.passed]
