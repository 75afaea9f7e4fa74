"""Which events an endpoint is sent: by name, model and environment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from service.delivery.ports import About
from service.event import Event

_OURS = "registry-gateway."


@dataclass(frozen=True, slots=True)
class Filter:
    """What is sent; an empty list leaves nothing out."""

    events: tuple[str, ...] = ()
    """Names, of MLflow or ours; the last segment of ours may be ``*``."""
    models: tuple[str, ...] = ()
    """Names of models; a trailing ``*`` stands for any ending."""
    environments: tuple[str, ...] = ()

    def described(self, origin: str) -> About:
        """Say what is sent to *origin*."""
        return About(origin, self.events, self.models, self.environments)

    def about(self, event: Event) -> bool:
        """Tell whether model and environment are among those that are sent."""
        data = event["data"]
        if self.models and not _matches(self.models, data["model"] or ""):
            return False
        return not self.environments or data["environment"] in self.environments

    def named(self, event: Event) -> bool:
        """Tell whether the event is sent by its own name."""
        return not self.events or _matches(self.events, event["type"].removeprefix(_OURS))

    def names(self, name: str) -> bool:
        """Tell whether what MLflow calls *name* is sent as such."""
        return not self.events or name in self.events


def _matches(patterns: Iterable[str], name: str) -> bool:
    return bool(name) and any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )
