"""Adopts what was live before the gateway came: one baseline event for each mark, in one recorded act."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from service.audit import Operation
from service.backend import Backend
from service.drift import is_unsettled, marked_models
from service.effects import MadeLive
from service.errors import Busy, InvalidRequest, NotFound
from service.governance.desk import Desk
from service.guard import live_version, marked_versions
from service.marking import made_live
from service.model import Caller, Need, resource
from service.promotion.gate import Environment, matches
from service.promotion.history import open_period
from service.records import ModelVersion, RegisteredModel
from service.strict import has_control

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Adopted:
    """One mark that was looked at."""

    model: str
    environment: str
    mark: str
    version: str
    state: str
    """``adopted``, ``recorded`` (the record knows it already), ``skipped`` or, in a dry run, ``to-adopt``."""
    because: str = ""
    """Why it was skipped."""


class AdoptionDesk:
    """Takes over what is live."""

    def __init__(self, desk: Desk) -> None:
        """Decide and record through *desk*."""
        self._desk = desk

    async def adopt(
        self,
        caller: Caller,
        registry: str,
        *,
        models: str,
        environment: str | None,
        reason: str,
        dry_run: bool,
        owner: str | None = None,
    ) -> list[Adopted]:
        """Record what is live in *environment* (None: in each) of *models* (exact, or a prefix that ends in ``*``).

        Idempotent: what the record knows stays as it is. A dry run lists what would be adopted. What the caller can
        neither read nor adopt is left out. What is in quarantine, or of a model that is being changed, is skipped.
        What is adopted belongs to *owner*, unless somebody created it through the gateway.

        Raises:
            NotFound: no such registry or environment. InvalidRequest: *models* is no name or prefix; *owner* is no
                principal, or the caller.
            Denied: one of them may not be adopted. Nothing is stored.
            RegistryUnavailable, JournalUnavailable: what was adopted stays; run it again.
        """
        backend = self._desk.gateway.backend(registry)
        if "*" in models[:-1]:
            message = "models: a name, or a prefix that ends in *."
            raise InvalidRequest(message)
        if owner is not None:
            _check_owner(owner, caller)
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
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(model: RegisteredModel, item: Environment) -> list[Adopted]:
            async with gate:
                return await self._one(caller, backend, model, item, reason, owner, dry_run=dry_run)

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
        reason: str,
        owner: str | None,
        *,
        dry_run: bool,
    ) -> list[Adopted]:
        async def locked() -> list[Adopted]:  # the record and the marks may have moved until here
            try:
                present = await backend.get_model(model.name)
                rows, version = await self._look(backend, present, environment)
            except NotFound:
                return []
            if version is None or rows[0].state != "to-adopt":
                return rows
            await self._record(caller, backend, rows, environment, version, reason, owner)
            return [replace(row, state="adopted") for row in rows]

        try:
            rows, _ = await self._look(backend, model, environment)
            if dry_run or not rows or rows[0].state == "recorded":
                return rows
            return await self._desk.gateway.alone(backend.name, model.name, locked)
        except NotFound:  # it was deleted meanwhile
            return []
        except Busy:
            return [replace(row, state="skipped", because="another change of the model is under way") for row in rows]

    async def _look(
        self, backend: Backend, model: RegisteredModel, environment: Environment
    ) -> tuple[list[Adopted], ModelVersion | None]:
        """Say of each mark what is to be done with it, and return what is live.

        Raises:
            NotFound: the live version was deleted meanwhile.
        """
        live = live_version(model, environment)
        if live is None:
            return [], None
        version = await backend.get_version(model.name, live)
        journal = self._desk.journal
        period = open_period(await journal.periods(backend.name, model.name), environment.name)
        state, because = "to-adopt", ""
        if period is not None and period.kind != "drift" and period.binding == version.binding:
            state = "recorded"
        elif await is_unsettled(journal, backend.name, model.name):
            state, because = "skipped", "a change of the model is being settled; run it again"
        elif (await journal.version(backend.name, model.name, version.binding)).quarantine is not None:
            state, because = "skipped", f"version {live} is in quarantine"
        rows = [
            Adopted(model.name, environment.name, f"{mark.kind} {mark.value}", marked, state, because)
            for mark in environment.marks
            for marked in marked_versions(model, mark)
        ]
        return rows, version

    async def _record(
        self,
        caller: Caller,
        backend: Backend,
        rows: list[Adopted],
        environment: Environment,
        version: ModelVersion,
        reason: str,
        owner: str | None,
    ) -> None:
        """Write one baseline event for each mark; the first, which says what is live, begins the period."""
        effect: list[MadeLive] = []
        for index, row in enumerate(rows):
            operation = await self._operation(caller, backend, row.model, environment)
            operation.version, operation.reason = row.version, reason
            operation.after = {"version": row.version, "mark": row.mark, "kind": "baseline"}
            operation.detail = f"baseline: {row.mark} is on version {row.version}"
            if index == 0:
                if owner is not None:
                    operation.after["owner"] = owner
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

    async def _operation(self, caller: Caller, backend: Backend, model: str, environment: Environment) -> Operation:
        need = Need("environment:adopt", resource("models", model, "environments", environment.name))
        _, operation = await self._desk.open(caller, backend.name, "adopt", need)
        operation.model, operation.environment = model, environment.name
        return operation


def _check_owner(owner: str, caller: Caller) -> None:
    """Nobody gains the rights of an owner by their own word.

    Raises:
        InvalidRequest: it is no principal, or the caller.
    """
    kind, _, name = owner.partition(":")
    if kind not in ("user", "service") or not name or ":" in name or name != name.strip() or has_control(name):
        message = "owner: user:… or service:…, as credentials name it."
        raise InvalidRequest(message)
    if owner in caller.principal.persons:
        message = "owner: somebody else; who adopts cannot make themselves owner."
        raise InvalidRequest(message)
