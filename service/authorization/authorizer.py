"""The policy in force: a snapshot that is replaced whole, or kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from pathlib import Path

from service.authorization.rows import Limits
from service.authorization.snapshot import Content, Snapshot
from service.errors import BadConfiguration
from service.model import Decision, Principal, Scope
from service.owners import Owners
from service.scope import covers

_WORK_SECONDS = 0.0005
_REST_SECONDS = 0.0002


class Note:
    """Which revision decided in one request; empty while nothing was decided."""

    __slots__ = ("revision",)

    def __init__(self) -> None:
        """Begin with nothing decided."""
        self.revision = ""


_NOTE: ContextVar[Note | None] = ContextVar("note", default=None)


class Pace:
    """Rests after each half millisecond of work, so that the event loop gets the interpreter.

    Python lets a thread keep the interpreter for 5 ms before another may have it, which is all that a reload may cost.
    """

    def __init__(self) -> None:
        """Begin to work now."""
        self._since = time.perf_counter()

    def __call__(self) -> None:
        """Rest if it is time to."""
        if time.perf_counter() - self._since > _WORK_SECONDS:
            time.sleep(_REST_SECONDS)
            self._since = time.perf_counter()


class Authorizer:
    """Decides by the snapshot in force."""

    def __init__(
        self,
        model: Path,
        rows: Path,
        registries: Iterable[str],
        limits: Limits | None = None,
        *,
        owners: Owners | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Load the first snapshot; *owners* says who created which model, *now* is for `loaded_at`.

        If rows name `owner`, *owners* has to be loaded before anything is decided.

        Raises:
            BadConfiguration: the policy is wrong.
        """
        self._sources = (model, rows, frozenset(registries))
        self._limits = limits or Limits()
        self._owners = owners
        self._now = now
        self._refused: tuple[str, str] | None = None
        self.snapshot = Snapshot(*self._sources, self._limits)
        self.loaded_at = now()
        """When the snapshot in force was loaded, in seconds since the epoch."""

    @property
    def revision(self) -> str:
        """The revision in force."""
        return self.snapshot.revision

    async def follow(self) -> bool:
        """Swap in the files' present content, beside the event loop; True if it changed.

        If it is the first that names `owner`, it is learned first who created what.

        Raises:
            BadConfiguration: the new files are wrong. JournalUnavailable: it is not known who owns what. The old
                snapshot stays in force.
        """
        fresh = await asyncio.to_thread(self._built)
        if fresh is None:
            return False
        if fresh.names_owner and self._owners is not None and not self._owners.loaded:
            await self._owners.load()
        await asyncio.to_thread(self._swap, fresh)
        return True

    def reload(self) -> bool:
        """Do the same in this thread, for a policy that does not begin to name `owner`.

        Raises:
            BadConfiguration: the new files are wrong, or name `owner`. The old snapshot stays in force.
        """
        fresh = self._built()
        if fresh is None:
            return False
        if fresh.names_owner and self._owners is not None and not self._owners.loaded:
            message = f"{self._sources[1]}: rows name owner, and who created which model is not loaded"
            raise BadConfiguration(message)
        self._swap(fresh)
        return True

    def _built(self) -> Snapshot | None:
        """Build a snapshot of what the files hold, if it is new; what was read before is not parsed again."""
        model, rows, _ = self._sources
        content = Content.read(model, rows, self._limits)
        revision = content.revision
        if revision == self.snapshot.revision:
            self._refused = None
            return None
        if self._refused is not None and self._refused[0] == revision:
            raise BadConfiguration(self._refused[1])
        try:
            return Snapshot(*self._sources, self._limits, content=content, pace=Pace())
        except BadConfiguration as error:
            self._refused = (revision, error.detail)
            raise

    def _swap(self, fresh: Snapshot) -> None:
        pace = Pace()
        parts = self.snapshot.parts(pace)
        self.snapshot, self._refused, self.loaded_at = fresh, None, self._now()
        while parts:  # to free all at once holds the interpreter: 3 ms at 10,000 rows, 38 at 100,000
            parts.pop()
            pace()

    @staticmethod
    def noting() -> Note:
        """Begin a request: whatever is decided for it, in tasks of its own too, is noted in what is returned."""
        note = Note()
        _NOTE.set(note)
        return note

    def scope(self, principal: Principal, registry: str, kind: str, action: str) -> Scope:
        """Return what can be read at most, by the snapshot in force and what the credential is narrowed to."""
        snapshot = self._in_force()
        if not covers(principal.scope, registry, action):
            return Scope()
        owned = frozenset[str]()
        if snapshot.names_owner and self._owners is not None:
            owned = self._owners.models_of(principal.subject, registry)
        return snapshot.scope(principal, registry, kind, action, owned)

    def decide(
        self, principal: Principal, registry: str, resource: str, action: str, *, owned_as: str | None = None
    ) -> Decision:
        """Decide by the snapshot in force, for what the credential is narrowed to.

        Who created the model of *owned_as*, if it is given, counts as owner: a model is renamed with its owner.
        """
        snapshot = self._in_force()
        if not covers(principal.scope, registry, action):
            return Decision(revision=snapshot.revision, beyond_scope=True)
        owns = snapshot.names_owner and self.owns(principal, registry, owned_as or resource)
        return snapshot.decide_whole(principal, registry, resource, action, owns=owns)

    def owns(self, principal: Principal, registry: str, resource: str) -> bool:
        """Tell whether *principal* itself, not one of its groups, created the model of *resource*."""
        return self._owners is not None and self._owners.owns(principal.subject, registry, resource)

    def _in_force(self) -> Snapshot:
        snapshot = self.snapshot
        note = _NOTE.get()
        if note is not None:
            note.revision = snapshot.revision
        return snapshot
