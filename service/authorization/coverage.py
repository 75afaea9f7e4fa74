"""Which rows the tests of a policy exercise: those that decided a case, and the memberships that led to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from service.authorization.explaining import path_to, sets_to, shown
from service.authorization.snapshot import Snapshot
from service.model import Decision, Principal


class Coverage:
    """Notes what was decided; says which rows no case needed."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Begin with no row exercised."""
        self.snapshot = snapshot
        self._permissions = {row.where: row for row in snapshot.rows}
        self._exercised: set[str] = set()

    def note(self, principal: Principal, resource: str, decision: Decision, *, owns: bool = False) -> None:
        """Note the row that decided, and the ``g`` and ``g2`` rows by which principal and *resource* came to it."""
        if decision.row is None:
            return
        self._exercised.add(decision.row)
        row = self._permissions[decision.row]
        steps = path_to(self.snapshot, principal, row.subject, owns=owns)
        steps += sets_to(self.snapshot, resource, row.resource)
        self._exercised |= {step.where for step in steps if step.where is not None}

    def has(self, where: str) -> bool:
        """Tell whether a permission row is at *where*."""
        return where in self._permissions

    @property
    def missed(self) -> list[tuple[str, str]]:
        """The rows that no case exercised, in the order of the file: ``file:line`` and text."""
        return [(where, text) for where, text in self._rows.items() if where not in self._exercised]

    @property
    def counts(self) -> tuple[int, int]:
        """How many rows were exercised, and how many there are."""
        total = len(self._rows)
        return total - len(self.missed), total

    @property
    def percent(self) -> float:
        """The part that was exercised."""
        exercised, total = self.counts
        return 100 * exercised / total

    @cached_property
    def _rows(self) -> dict[str, str]:
        return dict(sorted(self._all(), key=lambda item: int(item[0].rpartition(":")[2])))

    def _all(self) -> Iterator[tuple[str, str]]:
        for row in self.snapshot.rows:
            yield row.where, shown(row).text
        file = self.snapshot.rows[0].file
        for kind, links in (("g", self.snapshot.links), ("g2", self.snapshot.members)):
            for member, whole, line in links:
                yield f"{file}:{line}", f"{kind}, {member}, {whole}"
