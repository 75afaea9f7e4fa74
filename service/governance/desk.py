"""What every operation of the governance API needs: a decision, an environment, a record with its event."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar
from urllib.parse import unquote

from service.audit import Operation
from service.backend import Backend
from service.effects import Effect
from service.errors import GatewayError, JournalUnavailable, NotFound
from service.gateway import Gateway
from service.gather import Gatherer
from service.keeping import Journal
from service.model import Call, Caller, Need, resource
from service.promotion.environments import Environments
from service.promotion.gate import Environment
from service.records import ModelVersion
from service.strict import check_text, check_version

E = TypeVar("E", bound=Effect)
MAX_LISTED = 1000
"""How many requests or emergencies are listed at most, of those the caller may read."""


class Desk:
    """Decides and records through the gateway; forwards nothing."""

    def __init__(self, gateway: Gateway, environments: Environments, gatherer: Gatherer) -> None:
        """Serve the environments of *gateway*'s registries."""
        self.gateway = gateway
        self.environments = environments
        self.gatherer = gatherer

    @property
    def journal(self) -> Journal:
        """The durable store."""
        return self.gateway.trail.journal

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self.gateway.trail.now()

    async def open(self, caller: Caller, registry: str, name: str, *needs: Need) -> tuple[Backend, Operation]:
        """Decide *needs* for the operation *name* and begin its record.

        Raises:
            NotFound: no such registry. Denied: a need is not allowed. InvalidRequest: a name that nothing can have.
        """
        backend = self.gateway.backend(registry)
        for need in needs:
            if isinstance(need.resource, str):
                check_text(unquote(need.resource), "name")
        call = Call(
            principal=caller.principal,
            registry=registry,
            name=name,
            needs=needs,
            address=caller.address,
            key=caller.key,
        )
        operation = Operation.opened(call, self.now())
        await self.gateway.access.authorize(backend, needs, operation)
        return backend, operation

    def environment(self, registry: str, model: str, name: str) -> Environment:
        """Return an environment of *model*.

        Raises:
            NotFound: it has none of this name; the message lists those it has.
        """
        found = self.environments.get(registry, model, name)
        if found is None:
            known = ", ".join(item.name for item in self.environments.of(registry, model)) or "none"
            message = f"The model has no environment {name!r}; it has: {known}."
            raise NotFound(message)
        return found

    def environments_of(self, registry: str) -> list[tuple[str, Environment]]:
        """List the environments that models of *registry* can have."""
        return [(registry, item) for item in self.environments.all if item.registry in ("*", registry)]

    async def read_version(self, caller: Caller, registry: str, model: str, version: str, name: str) -> ModelVersion:
        """Get a version that the caller may read.

        Raises:
            Denied, NotFound.
        """
        check_version(version)
        need = Need("version:read", resource("models", model, "versions"))
        backend, _ = await self.open(caller, registry, name, need)
        return await backend.get_version(model, version)

    async def rejecting(self, operation: Operation, error: GatewayError) -> None:
        """Leave the event of a refusal, once."""
        if error.operation is None and not isinstance(error, JournalUnavailable):
            operation.detail = error.detail
            await self.gateway.trail.refused(operation, "rejected")
            error.operation = operation.id

    async def store(
        self,
        operation: Operation,
        model: str,
        version: str,
        make: Callable[[], Awaitable[E]],
        *,
        alone: bool = False,
        held: contextlib.AsyncExitStack | None = None,
    ) -> E:
        """Make a record about a version and store it with its event; a refusal leaves a ``rejected`` one.

        *alone*: while no change of the model is under way, and to its end even if the caller hangs up. What *make*
        enters into *held* ends when it is stored.
        """

        async def work() -> E:
            async with held or contextlib.AsyncExitStack():
                effect = await make()
                await self.gateway.trail.stored(operation, [effect])
                self.gateway.follow([effect])
                return effect

        async with self.about(operation, model, version):
            return await (self.gateway.alone(operation.registry, model, work) if alone else work())

    @contextlib.asynccontextmanager
    async def about(self, operation: Operation, model: str, version: str) -> AsyncIterator[None]:
        """Do something about a version; a refusal leaves a ``rejected`` event."""
        operation.model, operation.version = model, version
        try:
            check_version(version)
            yield
        except GatewayError as error:
            await self.rejecting(operation, error)
            raise
