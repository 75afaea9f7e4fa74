"""Remembers what this process let through while no other replica waited for it, within bounds."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict

_MOST = 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Write:
    """Writes to one run or logged model."""

    registry: str
    identifier: str
    subject: str
    """Who wrote first."""
    count: int
    first: float
    last: float


class Unseen:
    """The writes that are to be compared with the seals of meanwhile."""

    def __init__(self) -> None:
        """Begin with none."""
        self._writes: OrderedDict[tuple[str, str], Write] = OrderedDict()
        self.forgotten = 0
        """Runs and logged models that were written to and are not remembered: there were too many."""

    def note(self, place: tuple[str, str], subject: str, now: float) -> None:
        """Remember a write to *place*, a registry and an identifier."""
        found = self._writes.get(place)
        if found is None:
            self._writes[place] = Write(*place, subject, 1, now, now)
        else:
            self._writes[place] = dataclasses.replace(found, count=found.count + 1, last=now)
        if len(self._writes) > _MOST:
            self._writes.popitem(last=False)
            self.forgotten += 1

    def take(self) -> list[Write]:
        """Return what is remembered, and remember it no more."""
        writes, self._writes = list(self._writes.values()), OrderedDict()
        return writes
