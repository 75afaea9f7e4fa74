"""Whether access to a registry's own API is enforced, or only recorded.

Only what comes by a registry's own API is ever observed; what the gateway adds (approvals, evidence, promotions by our
own routes) is enforced in every mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ENFORCE, WARN, OBSERVE = MODES = ("enforce", "warn", "observe")
HEADER = "registry-gateway-would-deny"
NAMED = 10
"""A search that would leave out more than so many names is recorded without them."""
_ALWAYS_ENFORCED = ("environment:", "approval:", "evidence:", "version:quarantine")
_MAX_HEADER = 1000


@dataclass(frozen=True, slots=True, order=True)
class Denial:
    """What enforcement would have refused; a *resource* that ends in ``*`` stands for many that a search shows."""

    action: str
    resource: str
    row: str = ""
    """The row that denies it, or nothing where no row allows it."""


class Modes:
    """The mode of each registry; one that is not named is enforced."""

    def __init__(self, modes: Mapping[str, str] | None = None) -> None:
        """Take *modes* by registry."""
        self._modes = dict(modes or {})

    def of(self, registry: str) -> str:
        """Return the mode of *registry*."""
        return self._modes.get(registry, ENFORCE)

    def not_enforced(self) -> dict[str, str]:
        """Map the registries that are not enforced to their modes."""
        return {name: mode for name, mode in self._modes.items() if mode != ENFORCE}


def always_enforced(action: str) -> bool:
    """Tell whether our own routes ask *action*: who gained it otherwise would pass what is enforced in every mode."""
    return action.startswith(_ALWAYS_ENFORCED)


def header_of(mode: str, denials: list[Denial]) -> dict[str, str]:
    """Say in a header what would have been refused, where the mode is to warn."""
    if mode != WARN or not denials:
        return {}
    return {HEADER: ", ".join(f"{item.action} on {item.resource}" for item in denials)[:_MAX_HEADER]}
