"""Operations whose outcome is unknown, and the equal calls that wait for it instead of being forwarded again."""

from __future__ import annotations

import asyncio
import dataclasses

from service.model import Answer


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended: ``succeeded``, ``failed``, or ``unknown`` if it cannot be proved."""

    state: str = "unknown"
    version: str = ""
    """The version that was registered, if one was."""


class Pending:
    """One such operation."""

    def __init__(self, operation: str) -> None:
        """Begin without an outcome."""
        self.operation = operation
        self.again: asyncio.Task[Answer] | None = None
        """The one call that is forwarded after all, if this was not done; the others that wait share its answer."""
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: Outcome) -> None:
        """Tell those who wait."""
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    async def outcome(self, seconds: float) -> Outcome:
        """Wait for the outcome at most *seconds*; ``unknown`` if it is not there by then."""
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(self._outcome)
        except TimeoutError:
            return Outcome()


class Unsettled:
    """Finds a pending operation by the digest of its call: principal, registry, RPC and canonical message."""

    def __init__(self) -> None:
        """Begin with none."""
        self._pending: dict[str, Pending] = {}

    def __len__(self) -> int:
        """Count them."""
        return len(self._pending)

    def get(self, digest: str) -> Pending | None:
        """Return the pending operation of an equal call."""
        return self._pending.get(digest)

    def add(self, digest: str, operation: str) -> None:
        """Keep equal calls from being forwarded until *operation* is settled. Idempotent."""
        found = self._pending.get(digest)
        if found is None or found.operation != operation:
            self._pending[digest] = Pending(operation)

    def items(self) -> list[tuple[str, str]]:
        """List digest and operation of each."""
        return [(digest, pending.operation) for digest, pending in self._pending.items()]

    def ended(self, operation: str, outcome: Outcome) -> None:
        """End *operation*, whatever its call, and tell those who wait; one that is not pending is left alone."""
        for digest in [digest for digest, pending in self._pending.items() if pending.operation == operation]:
            self.settle(digest, operation, outcome)

    def settle(self, digest: str, operation: str, outcome: Outcome) -> None:
        """End *operation* and tell those who wait; one that is not pending is left alone."""
        found = self._pending.get(digest)
        if found is not None and found.operation == operation:
            del self._pending[digest]
            found.settle(outcome)
