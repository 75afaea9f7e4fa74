"""Who created each model, by the journal: what `owner` means in rows of the access policy.

Nobody is made owner by a row or by a name. Who is not on record owns nothing.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

import structlog

from service.errors import GatewayError
from service.event import Event
from service.keeping import Journal
from service.tasks import end

NOBODY = ""
"""Owns what was created, or can be created again, against the policy."""
TELLING = ("ModelCreate", "ModelRename", "ModelDelete")
"""Kinds of changes after which a model has another owner; an adoption may name one, too."""
_PACE_SECONDS = 1.0
_log = structlog.get_logger()


class Owners:
    """The owner of each model, in memory; events of the journal are followed in their order."""

    def __init__(self, journal: Journal) -> None:
        """Follow *journal*, once it is asked to."""
        self._journal = journal
        self._of: dict[tuple[str, str], str] = {}
        self._owned: dict[tuple[str, str], set[str]] = {}
        self._sequence = 0
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.loaded = False
        """Whether all was read once; from then on the last known state serves while the journal is down."""

    def owns(self, subject: str, registry: str, resource: str) -> bool:
        """Tell whether *subject* created the model that *resource* is or is inside of."""
        return self.owner_of(registry, resource) == subject

    def owner_of(self, registry: str, resource: str) -> str | None:
        """Return who created the model that *resource* is or is inside of, if that is on record."""
        return self._of.get((registry, model_of(resource))) or None

    def models_of(self, subject: str, registry: str) -> frozenset[str]:
        """Return the models of *registry* that *subject* created."""
        return frozenset(self._owned.get((registry, subject), ()))

    async def load(self) -> None:
        """Read the journal to its end, and follow it from now on.

        Raises:
            JournalUnavailable: it cannot be read, so it is not known who owns what.
        """
        await self._read_to_end()
        self.loaded = True
        if self._task is None:
            self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        await end(self._task)

    async def recorded(self, event: Event) -> None:
        """Take note that this process has recorded *event*, so that its answer finds the new owner. Never raises."""
        if self.loaded and _is_told(event):
            await self._catch_up()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_PACE_SECONDS)
            await self._catch_up()

    async def _catch_up(self) -> None:
        try:
            await self._read_to_end()
        except GatewayError as error:
            _log.warning("owners of models are as they were", problem=error.detail)
        except Exception as error:  # noqa: BLE001  # it must never end, nor fail what is recorded
            _log.error("owners of models are as they were", problem=f"{type(error).__name__}: {error}")

    async def _read_to_end(self) -> None:
        async with self._lock:  # in the order of the journal, whoever asks
            while True:
                until, events = await self._journal.model_changes(self._sequence)
                for event in events:
                    self._apply(event["data"])
                if until == self._sequence:
                    return
                self._sequence = until

    def _apply(self, data: Mapping[str, Any]) -> None:
        for model, owner in changes_in(data, self._of):
            self._set(data["registry"], model, owner)

    def _set(self, registry: str, model: str, owner: str | None) -> None:
        before = self._of.pop((registry, model), None)
        if before is not None:
            self._owned[registry, before].discard(model)
            if not self._owned[registry, before]:
                del self._owned[registry, before]
        if owner is not None:
            self._of[registry, model] = owner
            self._owned.setdefault((registry, owner), set()).add(model)


def changes_in(data: Mapping[str, Any], of: Mapping[tuple[str, str], str | None]) -> list[tuple[str, str | None]]:
    """List the models of which an event changes the owner, each with the new one; *of* says who owned what before.

    Where access is only observed, nobody becomes owner by what the policy denies: not by creating a model, and not by
    creating it under a name that was freed so.
    """
    registry, model, change = data["registry"], data["model"], data.get("change") or {}
    denied = {item["action"] for item in data.get("would_deny", ())}
    match change.get("kind"):
        case "ModelCreate" if data["phase"] == "outcome":
            taken = "model:create" in denied or of.get((registry, model)) == NOBODY
            return [(model, NOBODY if taken else data["actor"]["subject"])]
        case "ModelCreate":
            return []  # read back, it shows that the model exists, and not who made it
        case "ModelDelete":
            return [(model, NOBODY if denied else None)]
        case "ModelRename":
            return [(model, NOBODY if denied else None), (change["new_name"], of.get((registry, model)))]
        case _ if (owner := _named_in_baseline(data)) is not None and not of.get((registry, model)):
            return [(model, owner)]  # who adopts takes a model from nobody
    return []


class OwnersOverTime:
    """Who owned which model when, by the events of a journal."""

    def __init__(self, events: Iterable[Event]) -> None:
        """Read *events* that succeeded, oldest first."""
        self._changes: dict[tuple[str, str], list[tuple[str, str | None]]] = {}
        of: dict[tuple[str, str], str | None] = {}
        for event in events:
            data = event["data"]
            for model, owner in changes_in(data, of):
                of[data["registry"], model] = owner
                self._changes.setdefault((data["registry"], model), []).append((event["time"], owner))

    def owned(self, subject: str, registry: str, resource: str, time: str) -> bool:
        """Tell whether *subject* owned the model of *resource* before an event of this *time*."""
        changes = self._changes.get((registry, model_of(resource)), [])
        at = bisect_left(changes, time, key=lambda change: change[0])
        return at > 0 and changes[at - 1][1] == subject


def model_of(resource: str) -> str:
    """Return the name of the model that *resource* is or is inside of; nothing where it is in none."""
    kind, _, rest = resource.partition("/")
    return unquote(rest.partition("/")[0]) if kind == "models" else ""


def _named_in_baseline(data: Mapping[str, Any]) -> str | None:
    after = data.get("after")
    return after.get("owner") if isinstance(after, dict) and after.get("kind") == "baseline" else None


def _is_told(event: Event) -> bool:
    data = event["data"]
    kind = (data.get("change") or {}).get("kind")
    told = kind in TELLING or _named_in_baseline(data) is not None
    return bool(told and data.get("outcome") == "succeeded")
