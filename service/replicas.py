"""The port of the other replicas: who is there, and what each of them judges just now."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

from service.held import Held


@dataclasses.dataclass(frozen=True, slots=True)
class Judging:
    """A version that is being judged, so that nothing behind it may change."""

    id: str
    operation: str
    registry: str
    model: str
    environment: str
    version: str
    behind: frozenset[str]
    """Identifiers of runs and logged models."""


class Published(Held, Protocol):
    """A judging that every replica knows of. `check` tells whether they still do."""

    def end(self, *, settled: bool) -> None:
        """Let go of it; where it is not *settled*, only when its operation is."""


Judged = Callable[[Collection[Judging], bool], Awaitable[None]]
"""Told of all that other replicas judge now, whenever that may have changed, and whether this process has just joined.

Where it raises JournalUnavailable, it has not joined.
"""


class Replicas(Protocol):
    """The processes that use one journal. Each has a lease, which it renews every second."""

    def lease(self) -> int:
        """Return the number of the lease in force, 0 if none is: then the others do not wait for this process.

        By its own clock, which is never late.
        """

    async def living(self) -> frozenset[str]:
        """Name the sources whose lease is in force, this one included.

        Raises:
            JournalUnavailable: they cannot be asked for.
        """

    async def publish(self, judging: Judging) -> Published:
        """Tell the others; return when each of them lets nothing behind it be written.

        Raises:
            Busy: somebody is writing there, or it cannot be told. Nothing was forwarded; try again.
        """

    async def answer(self, judging: Judging, *, busy: bool) -> None:
        """Tell who judges that nothing behind it is written from now on, or that something is still *busy* there."""

    async def claim(self, names: Sequence[str]) -> str | None:
        """Claim *names* for this process, all or none; return the first that is another's.

        Raises:
            JournalUnavailable: it cannot be told.
        """

    async def release(self, names: Sequence[str]) -> None:
        """Give back what was claimed."""

    async def start(self, source: str, judged: Judged) -> None:
        """Join them as *source*.

        Raises:
            JournalUnavailable: that cannot be done now; it is tried again every second.
        """

    async def close(self) -> None:
        """Leave them."""


class OneReplica:
    """The only process there is."""

    def __init__(self) -> None:
        """There is nobody to know of."""
        self._source = ""

    def lease(self) -> int:
        """Tell that nobody else decides it."""
        return 1

    async def living(self) -> frozenset[str]:
        """Name this process."""
        return frozenset({self._source})

    async def publish(self, judging: Judging) -> Published:  # noqa: ARG002  # the port's
        """Tell nobody."""
        return _Alone()

    async def answer(self, judging: Judging, *, busy: bool) -> None:
        """Nobody asked."""

    async def claim(self, names: Sequence[str]) -> str | None:  # noqa: ARG002  # the port's
        """Claim what nobody else wants."""
        return None

    async def release(self, names: Sequence[str]) -> None:
        """Give it back."""

    async def start(self, source: str, judged: Judged) -> None:  # noqa: ARG002  # the port's
        """Be there."""
        self._source = source

    async def close(self) -> None:
        """Nobody has to know."""


class _Alone:
    """What nobody else has to know."""

    async def check(self) -> None:
        """Nobody can have taken it."""

    def end(self, *, settled: bool) -> None:
        """Nobody waits for it."""
