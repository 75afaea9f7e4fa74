"""What the record says: promotions, audit events, rules by digest, environments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from service.errors import NotFound
from service.event import Event
from service.governance.desk import Desk
from service.keeping import ANY
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
        return [_public(event) for event in events]

    async def events(
        self, caller: Caller, filters: Mapping[str, Any], after: int, limit: int
    ) -> list[tuple[int, Event]]:
        """List audit events, oldest first; needs ``audit:read``.

        Raises:
            Denied: no row allows it.
        """
        names = list(self._desk.gateway.backends)
        decides = self._desk.gateway.access.decide
        readable = [name for name in names if decides(caller.principal, name, "audit", "audit:read").allowed]
        await self._desk.open(caller, (readable or names)[0], "listEvents", Need("audit:read", "audit"))
        scope = {} if len(readable) == len(names) else {"registry": readable}
        return await self._desk.journal.events({**filters, **scope}, after, limit)

    async def would_refuse(self, caller: Caller, filters: Mapping[str, Any]) -> list[Refusal]:
        """Sum what environments that do not enforce would have refused, by rule, model and principal.

        *filters* are ``since`` and ``until``. Needs ``audit:read``. At most `MAX_EVENTS` events are read, oldest first.

        Raises:
            Denied: no row allows it. JournalUnavailable.
        """
        sums: dict[tuple[str, ...], Refusal] = {}
        after = 0
        for _ in range(MAX_EVENTS // _PAGE):
            page = await self.events(caller, {**filters, "phase": "outcome", "environment": ANY}, after, _PAGE)
            for sequence, event in page:
                after = sequence
                for environment, rule in _would_refuse(event["data"]):
                    data = event["data"]
                    who = (data["registry"], environment, rule, str(data["model"]), data["actor"]["subject"])
                    known = sums.get(who, Refusal(*who, 0, event["time"], event["time"]))
                    sums[who] = replace(known, count=known.count + 1, last=event["time"])
            if len(page) < _PAGE:
                break
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


def _public(event: Event) -> Event:
    """Keep of a promotion's event what its readers need, not who may do what or from where they called."""
    kept = ("phase", "operation", "outcome", "verdict", "before", "after", "version", "environment", "reason", "notes")
    data = {name: event["data"][name] for name in (*kept, "registry", "model")}
    return {**event, "data": {**data, "actor": {"subject": event["data"]["actor"]["subject"]}}}
