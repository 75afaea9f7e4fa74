"""Promotion requests: somebody asks that a version be promoted by whoever has the right."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from service.effects import Requested, RequestEnded
from service.errors import Conflict, NotFound
from service.gather import Question, judge
from service.governance.desk import MAX_LISTED, Desk
from service.model import Caller, Need, Verdict, resource
from service.records import PromotionRequest

DEFAULT_EXPIRY_SECONDS = 14 * 86400.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for."""

    environment: str
    version: str
    reason: str = ""
    expires: float | None = None
    change: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placed:
    """A request and where it is about."""

    registry: str
    model: str
    request: PromotionRequest


class RequestDesk:
    """Takes requests, lists them, and cancels them; a promotion completes them."""

    def __init__(self, desk: Desk) -> None:
        """Decide and record through *desk*."""
        self._desk = desk

    async def ask(self, caller: Caller, registry: str, model: str, wish: Wish) -> tuple[Placed, Verdict]:
        """Store a request, and give the verdict as it stands.

        Raises:
            Denied, NotFound. Conflict: the same version is asked for already.
            RegistryUnavailable, JournalUnavailable: it cannot be judged. Nothing is stored.
        """
        environment = self._desk.environment(registry, model, wish.environment)
        need = Need("environment:request", resource("models", model, "environments", environment.name))
        backend, operation = await self._desk.open(caller, registry, "requestPromotion", need)
        operation.environment, operation.reason = environment.name, wish.reason
        now = self._desk.now()
        request = PromotionRequest(
            id=str(uuid.uuid4()),
            environment=environment.name,
            version=wish.version,
            binding="",
            by=caller.principal.subject,
            persons=tuple(sorted(caller.principal.persons)),
            reason=wish.reason,
            at=now,
            expires=wish.expires if wish.expires is not None else now + DEFAULT_EXPIRY_SECONDS,
            change=dict(wish.change),
        )
        operation.after = {"request": request.id}
        async with self._desk.about(operation, model, wish.version):  # before it is stored, so that it can be repeated
            verdict = await self.verdict(caller, Placed(registry, model, request))

        async def make() -> Requested:
            found = await backend.get_version(model, wish.version)
            records = await self._desk.journal.version(registry, model, found.binding)
            for item in records.requests:
                if item.environment == environment.name and item.state == "open" and item.expires > now:
                    message = f"The request {item.id} asks for the same version already."
                    raise Conflict(message)
            return Requested(registry, model, replace(request, binding=found.binding))

        stored = await self._desk.store(operation, model, wish.version, make, alone=True)
        return Placed(registry, model, stored.request), verdict

    async def verdict(self, caller: Caller, placed: Placed) -> Verdict:
        """Judge what is asked for as it stands, for the caller.

        Raises:
            NotFound: the version is gone. RegistryUnavailable, JournalUnavailable.
        """
        request = placed.request
        environment = self._desk.environment(placed.registry, placed.model, request.environment)
        backend = self._desk.gateway.backend(placed.registry)
        found = await backend.get_version(placed.model, request.version)
        question = Question(caller.principal, request.reason, request.change, looking=True)
        facts = await self._desk.gatherer.about(backend, environment, found, question)
        return await judge(environment, facts, placed.registry)

    async def list(self, caller: Caller, *, awaiting_me: bool) -> list[Placed]:
        """List the open requests whose model the caller may read; or those that wait for something they may do.

        Oldest first; the newest `MAX_LISTED`.
        """
        found = [Placed(*item) for item in await self._desk.journal.requests(self._desk.now())]
        return [
            item
            for item in found
            if self._may(caller, item, "model:read") and (not awaiting_me or self._awaits(caller, item))
        ][-MAX_LISTED:]

    def _may(self, caller: Caller, item: Placed, action: str) -> bool:
        parts = ("models", item.model, "environments", item.request.environment)
        return self._desk.gateway.access.decide(caller.principal, item.registry, resource(*parts), action).allowed

    def _awaits(self, caller: Caller, item: Placed) -> bool:
        """Tell whether the caller may promote it, or approve what somebody else asked for."""
        if self._may(caller, item, "environment:promote"):
            return True
        own = caller.principal.persons & {item.request.by, *item.request.persons}
        return not own and self._may(caller, item, "approval:create")

    async def get(self, caller: Caller, request_id: str) -> Placed:
        """Get a request, ended ones too.

        Raises:
            NotFound: there is none of this id, or the caller may not read its model.
        """
        found = await self._desk.journal.request(request_id)
        if found is None or not self._may(caller, Placed(*found), "model:read"):
            message = "There is no promotion request of this id."
            raise NotFound(message)
        item = Placed(*found)
        if item.request.state == "open" and item.request.expires <= self._desk.now():
            return replace(item, request=replace(item.request, state="expired"))
        return item

    async def cancel(self, caller: Caller, request_id: str) -> None:
        """Cancel one's own request; with ``environment:promote`` anybody's.

        Raises:
            NotFound. Conflict: it has ended. Denied.
        """
        item = await self.get(caller, request_id)
        request = item.request
        own = bool(caller.principal.persons & {request.by, *request.persons})
        action = "environment:request" if own else "environment:promote"
        need = Need(action, resource("models", item.model, "environments", request.environment))
        _, operation = await self._desk.open(caller, item.registry, "cancelPromotionRequest", need)
        operation.environment, operation.before = request.environment, {"request": request.id}

        async def make() -> RequestEnded:
            present = await self.get(caller, request_id)
            if present.request.state != "open":
                message = f"The request is {present.request.state}."
                raise Conflict(message)
            return RequestEnded(request.id, "cancelled", self._desk.now(), caller.principal.subject)

        await self._desk.store(operation, item.model, request.version, make, alone=True)
