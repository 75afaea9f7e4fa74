"""Adopts what was live before the gateway came: one baseline event for each mark, in one recorded act."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from service.audit import Operation
from service.backend import Backend
from service.drift import marked_models
from service.effects import MadeLive
from service.errors import InvalidRequest, NotFound
from service.governance.desk import Desk
from service.guard import live_version, marked_versions
from service.marking import made_live
from service.model import Caller, Need, resource
from service.promotion.gate import Environment, matches
from service.records import LivePeriod, ModelVersion, RegisteredModel

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Adopted:
    """One mark that was looked at."""

    model: str
    environment: str
    mark: str
    version: str
    state: str
    """``adopted``, ``recorded`` (the record knows it already) or, in a dry run, ``to-adopt``."""


class AdoptionDesk:
    """Takes over what is live."""

    def __init__(self, desk: Desk) -> None:
        """Decide and record through *desk*."""
        self._desk = desk

    async def adopt(
        self, caller: Caller, registry: str, *, models: str, environment: str | None, reason: str, dry_run: bool
    ) -> list[Adopted]:
        """Record what is live in *environment* (None: in each) of *models* (exact, or a prefix that ends in ``*``).

        Idempotent: what the record knows stays as it is. A dry run lists what would be adopted. What the caller can
        neither read nor adopt is left out.

        Raises:
            NotFound: no such registry or environment. InvalidRequest: *models* is no name or prefix.
            Denied: one of them may not be adopted. Nothing is stored.
            RegistryUnavailable, JournalUnavailable: what was adopted stays; run it again.
        """
        backend = self._desk.gateway.backend(registry)
        if "*" in models[:-1]:
            message = "models: a name, or a prefix that ends in *."
            raise InvalidRequest(message)
        known = [item.name for _, item in self._desk.environments_of(registry)]
        if environment is not None and environment not in known:
            message = f"The registry has no environment {environment!r}; it has: {', '.join(known) or 'none'}."
            raise NotFound(message)
        found = [
            (model, item)
            async for model in marked_models(backend, self._desk.environments)
            for item in self._desk.environments.of(registry, model.name)
            if matches(models, model.name)
            and environment in (None, item.name)
            and live_version(model, item) is not None
            and self._may_know(caller, registry, model.name, item)  # before a denial can name it
        ]
        for model, item in found:  # all are asked before one is written
            need = Need("environment:adopt", resource("models", model.name, "environments", item.name))
            await self._desk.open(caller, registry, "adopt", need)
        if not found and not dry_run:
            return []
        recorded = {
            (name, period.environment): period
            for where, name, period in await self._desk.journal.live()
            if where == registry
        }
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(model: RegisteredModel, item: Environment) -> list[Adopted]:
            async with gate:
                return await self._one(
                    caller, backend, model, item, recorded.get((model.name, item.name)), reason, dry_run=dry_run
                )

        rows = await asyncio.gather(*(one(model, item) for model, item in found))
        return [row for several in rows for row in several]

    def _may_know(self, caller: Caller, registry: str, model: str, environment: Environment) -> bool:
        """Tell whether the caller may read what is live there, or its model, or adopt it."""
        live = resource("models", model, "environments", environment.name)
        asked = ((live, "model:read"), (resource("models", model), "model:read"), (live, "environment:adopt"))
        decide = self._desk.gateway.access.decide
        return any(decide(caller.principal, registry, *item).allowed for item in asked)

    async def _one(
        self,
        caller: Caller,
        backend: Backend,
        model: RegisteredModel,
        environment: Environment,
        period: LivePeriod | None,
        reason: str,
        *,
        dry_run: bool,
    ) -> list[Adopted]:
        known = period is not None and period.kind != "drift" and period.version == live_version(model, environment)
        if known or dry_run:
            return _rows(model, environment, "recorded" if known else "to-adopt")

        async def locked() -> list[Adopted]:
            present = await backend.get_model(model.name)
            live = live_version(present, environment)
            if live is None:
                return []
            version = await backend.get_version(model.name, live)
            await self._record(caller, backend, present, environment, version, reason)
            return _rows(present, environment, "adopted")

        return await self._desk.gateway.alone(backend.name, model.name, locked)

    async def _record(
        self,
        caller: Caller,
        backend: Backend,
        model: RegisteredModel,
        environment: Environment,
        version: ModelVersion,
        reason: str,
    ) -> None:
        """Write one baseline event for each mark; the first, which says what is live, begins the period."""
        effect: list[MadeLive] = []
        for index, row in enumerate(_rows(model, environment, "adopted")):
            operation = await self._operation(caller, backend, model, environment)
            operation.version, operation.reason = row.version, reason
            operation.after = {"version": row.version, "mark": row.mark, "kind": "baseline"}
            operation.detail = f"baseline: {row.mark} is on version {row.version}"
            if index == 0:
                effect = [
                    await made_live(
                        backend,
                        environment,
                        version,
                        since=self._desk.now(),
                        by=caller.principal.subject,
                        operation=operation.id,
                        reason=reason,
                        kind="baseline",
                    )
                ]
            await self._desk.gateway.trail.stored(operation, effect if index == 0 else [])
        self._desk.gateway.follow(effect)

    async def _operation(
        self, caller: Caller, backend: Backend, model: RegisteredModel, environment: Environment
    ) -> Operation:
        need = Need("environment:adopt", resource("models", model.name, "environments", environment.name))
        _, operation = await self._desk.open(caller, backend.name, "adopt", need)
        operation.model, operation.environment = model.name, environment.name
        return operation


def _rows(model: RegisteredModel, environment: Environment, state: str) -> list[Adopted]:
    return [
        Adopted(model.name, environment.name, f"{mark.kind} {mark.value}", version, state)
        for mark in environment.marks
        for version in marked_versions(model, mark)
    ]
