"""The policy in force: a snapshot that is replaced whole, or kept."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from service.authorization.rows import Limits
from service.authorization.snapshot import Content, Snapshot
from service.model import Decision, Principal, Scope
from service.scope import covers


class Authorizer:
    """Decides by the snapshot in force."""

    def __init__(self, model: Path, rows: Path, registries: Iterable[str], limits: Limits | None = None) -> None:
        """Load the first snapshot.

        Raises:
            BadConfiguration: the policy is wrong.
        """
        self._sources = (model, rows, frozenset(registries))
        self._limits = limits or Limits()
        self.snapshot = Snapshot(*self._sources, self._limits)

    def reload(self) -> bool:
        """Swap in the files' present content; True if it changed. Build beside, swap by one assignment.

        Raises:
            BadConfiguration: the new files are wrong. The old snapshot stays in force.
        """
        model, rows, _ = self._sources
        content = Content.read(model, rows, self._limits)
        if content.revision == self.snapshot.revision:
            return False
        self.snapshot = Snapshot(*self._sources, self._limits, content=content)
        return True

    def scope(self, principal: Principal, registry: str, kind: str, action: str) -> Scope:
        """Return what can be read at most, by the snapshot in force and what the credential is narrowed to."""
        if principal.scope is not None and not covers(principal.scope, registry, action):
            return Scope()
        return self.snapshot.scope(principal, registry, kind, action)

    def decide(self, principal: Principal, registry: str, resource: str, action: str) -> Decision:
        """Decide by the snapshot in force, for what the credential is narrowed to."""
        if principal.scope is not None and not covers(principal.scope, registry, action):
            return Decision(revision=self.snapshot.revision, beyond_scope=True)
        return self.snapshot.decide_whole(principal, registry, resource, action)
