"""Keeps refusals of who sends too much from filling the journal: each is recorded, up to a rate; the rest is summed."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from service.audit import Trail
from service.errors import GatewayError
from service.event import Event
from service.model import NOBODY

EACH_MINUTE = 60
"""So many failures of one address a minute are one event each."""
LIMITED_EACH_MINUTE = 1
"""So many refusals of one principal that sends too much."""
ALL_MINUTE = 600
"""So many of all addresses together."""
SUM_SECONDS = 60.0
"""So often sums are written."""
_WINDOW_SECONDS = 60.0
_MAX_ADDRESSES = 10_000
_MAX_SUMS = 600
"""So many senders have a sum of their own; those of all others are one."""
_log = structlog.get_logger()


class Floods:
    """Says which refusals are recorded one by one, and sums the others by sender and minute."""

    def __init__(
        self,
        trail: Trail,
        clock: Callable[[], float] = time.monotonic,
        *,
        each_minute: int = EACH_MINUTE,
        document: Callable[[str, int], Mapping[str, Any]] | None = None,
    ) -> None:
        """Record sums in *trail*, as *document* writes them; so many of one sender are an event each."""
        self._each = each_minute
        self._document = document or failures
        self._trail = trail
        self._clock = clock
        self._began = clock()
        self._all = 0
        self._by_address: OrderedDict[str, int] = OrderedDict()
        self._over: dict[str, int] = {}
        self._unwritten: list[Event] = []

    def admits(self, address: str) -> bool:
        """Tell whether a failure from *address* is recorded as an event of its own; otherwise it is counted."""
        if self._clock() - self._began >= _WINDOW_SECONDS:
            self._began, self._all = self._clock(), 0
            self._by_address.clear()
        seen = self._by_address.get(address, 0)
        if seen >= self._each or self._all >= ALL_MINUTE or len(self._by_address) >= _MAX_ADDRESSES:
            known = address if address in self._over or len(self._over) < _MAX_SUMS else "others"
            self._over[known] = self._over.get(known, 0) + 1
            return False
        self._by_address[address] = seen + 1
        self._all += 1
        return True

    async def flush(self) -> None:
        """Record what was counted, one event an address; what cannot be recorded now stays counted."""
        if not self._unwritten:
            counted, self._over = self._over, {}
            self._unwritten = self._trail.sums(self._document(address, count) for address, count in counted.items())
        if not self._unwritten:
            return
        try:
            if not await self._trail.journal.operation_events(self._unwritten[0]["data"]["operation"]):
                await self._trail.summed(self._unwritten)
        except GatewayError as error:
            _log.warning("sums of refusals are waiting for the journal", problem=error.detail)
        else:
            self._unwritten = []


def failures(address: str, count: int) -> Mapping[str, Any]:
    """Sum failed authentications of an address."""
    detail = f"{count} more failed authentications from this address, summed."
    return _document("denied", "authentication:fail", NOBODY, address, count, detail)


def limited(subject: str, count: int) -> Mapping[str, Any]:
    """Sum the requests of a principal that were over its rate."""
    detail = f"{count} more requests over the rate of this principal, summed."
    return _document("rejected", "request:limit", subject, "", count, detail)


def _document(phase: str, action: str, subject: str, address: str, count: int, detail: str) -> Mapping[str, Any]:
    actor: dict[str, Any] = {
        "subject": subject,
        "groups": [],
        "acting_for": None,
        "issuer": "",
        "credential": "",
    }
    return {
        "phase": phase,
        "operation": str(uuid.uuid4()),
        "outcome": phase,
        "actor": {**actor, "address": address},
        "call": "",
        "action": action,
        "resource": "",
        "registry": "",
        "model": None,
        "version": None,
        "environment": None,
        "count": count,
        "detail": detail,
    }
