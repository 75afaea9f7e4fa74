"""Judges a rename: it gains its caller no right, and what it carries into an environment is a promotion."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from service.access import Access, marks_of
from service.audit import Operation, Trail
from service.backend import Backend
from service.change import ModelRename
from service.effects import MadeLive
from service.errors import Denied, GatewayError, NotFound
from service.guard import Carried, Guard
from service.judging import Asked
from service.model import STAGES, Call, Need, resource
from service.modes import always_enforced
from service.observing import Observer
from service.promoter import Promoter
from service.promotion.environments import Environments
from service.records import ModelVersion, RegisteredModel


class Renames:
    """Looks at a rename before it is forwarded. The caller holds the locks of both names."""

    def __init__(self, access: Access, guard: Guard, promoter: Promoter, observer: Observer, trail: Trail) -> None:
        """Decide by *access*, find what is carried by *guard*, judge it by *promoter*."""
        self._access = access
        self._guard = guard
        self._promoter = promoter
        self._observer = observer
        self._trail = trail

    async def refuse_gain(self, backend: Backend, change: ModelRename, operation: Operation) -> None:
        """A rename cannot shed a deny or inherit a grant: what the caller may do must not grow with the new name.

        That is what its principal may do, who has other credentials than the one that is narrowed.
        Where access is only observed, that holds for what our own routes ask: an approval would count otherwise.

        Raises:
            Denied: it would. Nothing was forwarded.
        """
        try:
            model = await backend.get_model(change.model)
        except NotFound:
            return  # the registry says so itself
        for action, *inside in _rights_on(model, self._guard.environments):
            old, new = resource("models", change.model, *inside), resource("models", change.new_name, *inside)
            before = self._access.decide(operation.principal.whole, backend.name, old, action)
            after = self._access.decide(operation.principal.whole, backend.name, new, action, owned_as=old)
            if after.allowed and not before.allowed:
                if not always_enforced(action) and self._access.lets_pass(operation, old, action, before):
                    continue
                operation.action, operation.resource, operation.decision = action, old, before
                await self._trail.refused(operation, "denied")
                message = (
                    f"{operation.principal.subject} may not {action} on {old} of {backend.name}, and could after the "
                    "rename. Somebody who may do under both names all that they may do under the new one can rename it."
                )
                raise Denied(message, operation=operation.id)

    async def judge(self, backend: Backend, call: Call, operation: Operation) -> list[MadeLive]:
        """Judge every version whose mark a rename carries into an environment; say what is live there afterwards.

        Raises:
            Denied: the caller may not promote under the new name. GateClosed: a rule failed. Nothing was forwarded.
        """
        follows = []
        for item in await self._guard.carries(backend, call.change):
            assert isinstance(call.change, ModelRename)  # only renames carry
            version = await self._judge_one(backend, call, call.change, item, operation)
            if item.lives and version is not None:
                live = await self._promoter.made_live(backend, item.environment, version, operation)
                follows.append(dataclasses.replace(live, model=call.change.new_name))
        return follows

    async def _judge_one(
        self, backend: Backend, call: Call, change: ModelRename, item: Carried, operation: Operation
    ) -> ModelVersion | None:
        """Judge one version; None if it cannot be looked at where nothing is enforced."""
        environment = item.environment
        asked = Asked(change.model, item.version, call.principal)
        if not environment.enforced:
            self._observer.note_promotion(backend, call, change.new_name, environment, operation)
            try:
                return await self._promoter.judge_carried(backend, environment, asked, operation)
            except GatewayError as error:  # to observe changes no answer
                operation.notes.append(f"could not be judged for {environment.name}: {error.detail}")
                return None
        await self._access.refuse_denied_by_row(backend, marks_of(change.new_name, environment), operation)
        need = Need("environment:promote", resource("models", change.new_name, "environments", environment.name))
        await self._access.authorize(backend, (need,), operation)
        return await self._promoter.judge_carried(backend, environment, asked, operation)


def _rights_on(model: RegisteredModel, environments: Environments) -> Iterator[tuple[str, ...]]:
    """Yield each action on a model, and the segments below its name on which it is asked."""
    for action in ("model:read", "model:update", "model:delete", "model:rename"):
        yield (action,)
    for action in ("version:create", "version:read", "version:update", "version:delete", "version:quarantine"):
        yield (action, "versions")
    for alias in {*model.aliases, "any"}:
        yield from ((action, "aliases", alias) for action in ("alias:read", "alias:set", "alias:delete"))
    for key in {*model.tags, "any"}:
        for action in ("tag:set", "tag:delete"):
            yield (action, "tags", key)
            yield (action, "versions", "tags", key)
    yield from (("stage:set", "stages", stage) for stage in STAGES)
    yield ("evidence:post", "versions", "evidence", "any")
    for name in {*(item.name for item in environments.all), "any"}:
        for verb in ("promote", "rollback", "retire", "adopt", "emergency", "request"):
            yield (f"environment:{verb}", "environments", name)
        yield from ((action, "environments", name) for action in ("approval:create", "approval:revoke"))
