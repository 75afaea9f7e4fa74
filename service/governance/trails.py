"""What the record says: promotions, audit events, rules by digest, environments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from service.errors import NotFound
from service.event import Event
from service.governance.desk import Desk
from service.keeping import ANY, Page, UnsettledOperation
from service.model import Caller, Need, resource
from service.observing import WOULD_REFUSE
from service.promotion.gate import Environment

MAX_EVENTS = 100_000
_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """What enforcement would have refused, summed."""

    registry: str
    environment: str
    rule: str
    """The rule, or the action that no policy allows."""
    model: str
    principal: str
    count: int
    first: str
    last: str


class TrailDesk:
    """Reads the record for those who may."""

    def __init__(self, desk: Desk) -> None:
        """Read through *desk*."""
        self._desk = desk

    async def promotion(self, caller: Caller, operation_id: str) -> list[Event]:
        """List the events of a promotion the caller may read about.

        Raises:
            NotFound: no such promotion, or none the caller may see.
        """
        events = await self._desk.journal.operation_events(operation_id)
        message = "There is no promotion of this id."
        if not events or not events[0]["data"]["environment"]:
            raise NotFound(message)
        data = events[0]["data"]
        decides = self._desk.gateway.access.decide
        begun = datetime.fromisoformat(events[0]["time"]).timestamp()
        model = await self._desk.journal.present_name(data["registry"], data["model"], begun)
        may = decides(caller.principal, data["registry"], resource("models", model), "model:read")
        if not may.allowed:
            raise NotFound(message)
        if decides(caller.principal, data["registry"], "audit", "audit:read").allowed:
            return events
        return [public_event(event) for event in events]

    async def page(
        self, caller: Caller, filters: Mapping[str, Any], after: int | None, limit: int, *, newest_first: bool = False
    ) -> tuple[Page, bool]:
        """Read a page of events, and tell whether the caller may see them whole; needs ``audit:read``.

        Without it, who may read the model that *filters* name sees `public_event` of its events, not of those of what
        had its name before.

        Raises:
            Denied: no row allows it. NotFound: no such registry. JournalUnavailable.
        """
        names = self._names(filters)
        readable = self._where(caller, names, Need("audit:read", "audit"))
        whole = bool(readable)
        if not readable and "model" in filters:
            readable = self._where(caller, names, Need("model:read", resource("models", filters["model"])))
            since = max([await self._desk.journal.named_since(name, filters["model"]) for name in readable], default=0)
            if since > filters.get("since", 0):
                filters = {**filters, "since": since}
        if not readable:
            await self._desk.open(caller, names[0], "listEvents", Need("audit:read", "audit"))
        return await self._read(filters, readable, after, limit, newest_first=newest_first), whole

    async def export_page(self, caller: Caller, filters: Mapping[str, Any], after: int | None, limit: int) -> Page:
        """Read a page of whole events; needs ``audit:read``, which is asked for each page.

        Raises:
            Denied: no row allows it. NotFound: no such registry. JournalUnavailable.
        """
        names = self._names(filters)
        readable = self._where(caller, names, Need("audit:read", "audit"))
        if not readable:
            await self._desk.open(caller, names[0], "exportEvents", Need("audit:read", "audit"))
        return await self._read(filters, readable, after, limit)

    def _names(self, filters: Mapping[str, Any]) -> list[str]:
        """List the registries that *filters* are about."""
        if "registry" in filters:
            self._desk.gateway.backend(filters["registry"])
            return [filters["registry"]]
        return list(self._desk.gateway.backends)

    def _where(self, caller: Caller, names: list[str], need: Need) -> list[str]:
        """List the registries in which *caller* may do what *need* says."""
        decides = self._desk.gateway.access.decide
        assert isinstance(need.resource, str)
        return [name for name in names if decides(caller.principal, name, need.resource, need.action).allowed]

    async def _read(
        self,
        filters: Mapping[str, Any],
        readable: list[str],
        after: int | None,
        limit: int,
        *,
        newest_first: bool = False,
    ) -> Page:
        every = len(readable) == len(self._desk.gateway.backends)
        scope: dict[str, Any] = {} if every or "registry" in filters else {"registry": readable}
        if len(readable) == 1 and scope:
            scope = {"registry": readable[0]}
        return await self._desk.journal.page({**filters, **scope}, after, limit, newest_first=newest_first)

    async def unsettled(self, caller: Caller, after: str, limit: int) -> tuple[list[UnsettledOperation], str | None]:
        """List operations without a proven outcome, of the registries whose trail the caller may read; and the cursor.

        Raises:
            Denied: no row allows it anywhere. JournalUnavailable.
        """
        names = list(self._desk.gateway.backends)
        readable = self._where(caller, names, Need("audit:read", "audit"))
        if not readable:
            await self._desk.open(caller, names[0], "listUnsettled", Need("audit:read", "audit"))
        found = await self._desk.journal.unsettled_page(after, limit)
        cursor = found[-1].operation if len(found) == limit else None
        return [item for item in found if item.registry in readable], cursor

    async def would_refuse(self, caller: Caller, filters: Mapping[str, Any]) -> list[Refusal]:
        """Sum what environments that do not enforce would have refused, by rule, model and principal.

        *filters* are ``since`` and ``until``. Needs ``audit:read``. At most `MAX_EVENTS` events are read, oldest first.

        Raises:
            Denied: no row allows it. JournalUnavailable.
        """
        sums: dict[tuple[str, ...], Refusal] = {}
        after: int | None = None
        read = 0
        while read < MAX_EVENTS:
            wanted = {**filters, "phase": "outcome", "environment": ANY}
            page = await self.export_page(caller, wanted, after, _PAGE)
            read += len(page.rows)
            for _, body in page.rows:
                event = json.loads(body)
                for environment, rule in _would_refuse(event["data"]):
                    data = event["data"]
                    who = (data["registry"], environment, rule, str(data["model"]), data["actor"]["subject"])
                    known = sums.get(who, Refusal(*who, 0, event["time"], event["time"]))
                    sums[who] = replace(known, count=known.count + 1, last=event["time"])
            if page.cursor is None:
                break
            after = page.cursor
        return sorted(sums.values(), key=lambda item: -item.count)

    async def rules(self, digest: str) -> dict[str, Any]:
        """Return rules that judged once, as they were written.

        Raises:
            NotFound: nothing was judged by rules of this digest.
        """
        found = await self._desk.journal.document("rules", digest)
        if found is None:
            message = "No rules of this digest are in the archive."
            raise NotFound(message)
        return dict(found.document)

    def environments(self) -> list[tuple[str, Environment]]:
        """List the environments with each registry they are of; they are no secret to those who must satisfy them."""
        return [item for registry in self._desk.gateway.backends for item in self._desk.environments_of(registry)]


def _would_refuse(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List environments with the rules and missing rights for which what was let through would have been refused."""
    verdicts = data.get("verdicts") or {data["environment"]: data["verdict"] or {}}
    rules = [
        (environment, item["rule"])
        for environment, verdict in verdicts.items()
        for item in verdict.get("findings", ())
        if verdict.get("would_refuse") and not item["passed"] and item["severity"] == "block" and not item["waived"]
    ]
    rights = [note for note in data["notes"] if note.startswith(WOULD_REFUSE)]
    kinds = [note.removeprefix(WOULD_REFUSE).split(" on ")[0].strip() for note in rights]
    return rules + [(data["environment"], kind) for kind in kinds]


def public_event(event: Event) -> Event:
    """Keep of a promotion's event what its readers need, not who may do what or from where they called."""
    kept = ("phase", "operation", "outcome", "verdict", "before", "after", "version", "environment", "reason", "notes")
    data = {name: event["data"].get(name) for name in (*kept, "registry", "model")}
    return {**event, "data": {**data, "actor": {"subject": event["data"]["actor"]["subject"]}}}
