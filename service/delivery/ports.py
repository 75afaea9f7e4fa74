"""What a sink is: a stream that takes all events in order, or a receiver that is sent those it wants, one by one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.event import Event


class SinkFailed(Exception):
    """A stream did not take events; some may be there all the same."""


class Stream(Protocol):
    """A place that takes all events, in order."""

    name: str

    async def write(self, events: Sequence[Event]) -> None:
        """Return when the events are there.

        Raises:
            SinkFailed: they may not be. They are written again, all of them.
        """

    async def close(self) -> None:
        """Give back what is held."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one attempt."""

    status: int | None = None
    """The HTTP status of the answer, where there was one."""
    problem: str = ""
    """Why it was not taken; empty where it was."""
    gone: bool = False
    """It will never be taken."""
    retry_after_seconds: float = 0.0
    """What the receiver asks for."""


@dataclass(frozen=True, slots=True)
class About:
    """What may be told of a receiver: nothing secret, and a path can be one."""

    origin: str
    events: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()


class Receiver(Protocol):
    """Somebody who is sent events."""

    name: str
    about: About

    def wants(self, event: Event) -> bool:
        """Tell whether *event* is sent at all."""

    async def send(self, event: Event) -> Sent:
        """Make one attempt, within the receiver's own deadline. Never raises."""

    async def close(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long a delivery is tried."""

    first_seconds: float = 5.0
    most_seconds: float = 3600.0
    give_up_seconds: float = 86_400.0
    """Counted from when the event was to be delivered first."""

    def pause(self, attempts: int, asked_seconds: float = 0.0) -> float:
        """Return how long to wait after so many attempts: twice as long each time, and never all at once."""
        pause = min(self.most_seconds, self.first_seconds * 2.0 ** min(attempts - 1, 30))
        jittered = pause * random.uniform(0.5, 1.0)  # noqa: S311  # spreads attempts, guards nothing
        return max(jittered, min(asked_seconds, self.most_seconds))
