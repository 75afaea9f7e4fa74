"""Decides what a call needs: on the resources that a need means, the first refusal recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from service.audit import Operation, Trail
from service.backend import Backend
from service.change import OfTraces, OutsideSource
from service.errors import Denied, InvalidRequest
from service.event import Asked
from service.model import Call, Decision, Need, Principal, resource
from service.modes import ENFORCE, NAMED, Denial, Modes
from service.ownership import Ownership
from service.promotion.gate import Environment, Mark


class Decide(Protocol):
    """The policy."""

    def __call__(
        self, principal: Principal, registry: str, resource: str, action: str, *, owned_as: str | None = None
    ) -> Decision:
        """Decide; who created the model of *owned_as*, if it is given, counts as owner."""


_PROMOTING = {
    "promotion": "environment:promote",
    "rollback": "environment:rollback",
    "emergency": "environment:emergency",
}


@dataclass(frozen=True, slots=True)
class Right:
    """What was decided for a call before it was answered."""

    registry: str
    resource: str
    action: str
    unless_forbidden: bool = False
    """Only a row that denies it refuses; none has to allow it."""
    observed: bool = False
    """It was asked where access is not enforced."""

    @property
    def reads(self) -> bool:
        """Whether it changes nothing."""
        return self.action.endswith((":read", ":evaluate", ":explain", ":assume"))


class Access:
    """May they? The policy itself is behind *decide*."""

    def __init__(
        self,
        decide: Decide,
        ownership: Ownership,
        sources: Mapping[str, tuple[str, ...]],
        trail: Trail,
        modes: Modes | None = None,
        denied: Callable[[str, str], None] = lambda _registry, _action: None,
    ) -> None:
        """Find resources through *ownership*; *sources* are the outside prefixes each registry accepts for versions.

        Where *modes* say so, the registry's own API is answered in spite of a denial, which *denied* counts.
        """
        self.decide = decide
        self.modes = modes or Modes()
        self._count_denial = denied
        self.ownership = ownership
        self._sources = sources
        self._trail = trail
        self._noted: dict[str, dict[Right, None]] = {}

    @contextlib.contextmanager
    def noting(self, key: str) -> Iterator[dict[Right, None]]:
        """Collect the rights that a call with this Idempotency-Key (hashed) needs, in the block; one call at a time."""
        rights = self._noted[key] = {}
        try:
            yield rights
        finally:
            del self._noted[key]

    def _note(self, operation: Operation, backend: Backend, where: str, action: str, *, unless_forbidden: bool) -> None:
        noted = self._noted.get(operation.key)
        if noted is not None:
            observed = operation.mode != ENFORCE
            noted[Right(backend.name, where, action, unless_forbidden, observed)] = None

    def lets_pass(self, operation: Operation, where: str, action: str, decision: Decision) -> bool:
        """Tell whether a call goes on: it is allowed, or its denial is only recorded, which is done here.

        What a credential is narrowed to holds in every mode.
        """
        if decision.allowed:
            return True
        if operation.mode == ENFORCE or decision.beyond_scope:
            return False
        denial = Denial(action, where, decision.row or "")
        if denial not in operation.would_deny:
            operation.would_deny.append(denial)
            self._count_denial(operation.registry, action)
        return True

    async def authorize_again(self, rights: Iterable[Right], operation: Operation) -> None:
        """Decide *rights* by the policy as it is now; the first refusal is recorded.

        Raises:
            Denied: one of them is not there any more.
        """
        for right in rights:
            asks = operation.principal.whole if right.unless_forbidden else operation.principal
            decision = self.decide(asks, right.registry, right.resource, right.action)
            if right.observed and self.modes.of(right.registry) != ENFORCE and not decision.beyond_scope:
                continue  # the first call left a record of it
            if decision.denied_by_row or not (decision.allowed or right.unless_forbidden):
                operation.registry, operation.action, operation.resource = right.registry, right.action, right.resource
                operation.decision = decision
                await self._trail.refused(operation, "denied")
                message = f"{operation.principal.subject} may not {right.action} on {right.resource} any more."
                raise self._denied(message, operation, right.registry)

    def _denied(self, sentence: str, operation: Operation, registry: str) -> Denied:
        """Make the refusal; the row that decides is told to those who may know it, and to nobody else."""
        decision = operation.decision
        if decision.beyond_scope:
            sentence += f" The scope of its credential leaves out {registry}/{operation.action}."
        if not self.decide(operation.principal, registry, "access", "access:explain").allowed:
            return Denied(sentence, operation=operation.id)
        if not decision.beyond_scope:
            sentence += f" {decision.row} denies it." if decision.row else " No row allows it."
        return Denied(sentence, operation=operation.id, decision=decision)

    def may(self, backend: Backend, principal: Principal) -> Callable[[str, str], bool]:
        """Return the question that answers which leave things out ask: resource and action."""
        return lambda where, action: self.decide(principal, backend.name, where, action).allowed

    def passes(self, backend: Backend, operation: Operation) -> Callable[[str, str], bool]:
        """Return the question whether one thing more than a call's needs is let through: resource and action."""

        def passed(where: str, action: str) -> bool:
            return self.lets_pass(
                operation, where, action, self.decide(operation.principal, backend.name, where, action)
            )

        return passed

    def shows(self, backend: Backend, operation: Operation) -> Callable[[str, str], bool]:
        """Return the question that a search asks of each row; what is shown in spite of a denial is collected."""

        def shown(where: str, action: str) -> bool:
            decision = self.decide(operation.principal, backend.name, where, action)
            if decision.allowed:
                return True
            if operation.mode == ENFORCE or decision.beyond_scope:
                return False
            if len(operation.left_out) <= NAMED:
                operation.left_out[Denial(action, where, decision.row or "")] = None
            return True

        return shown

    def note_left_out(self, operation: Operation) -> None:
        """Record what enforcement would leave out of the answer of a search: few by their names, many without."""
        found = list(operation.left_out)
        if len(found) > NAMED:
            found = list(dict.fromkeys(Denial(item.action, f"{item.resource.split('/')[0]}/*") for item in found))
        for item in found:
            self.lets_pass(operation, item.resource, item.action, Decision(row=item.row or None))

    async def authorize(self, backend: Backend, needs: Iterable[Need], operation: Operation) -> None:
        """Decide every need; the first refusal is recorded.

        Raises:
            Denied: a policy row forbids it, or none allows it.
        """
        for index, need in enumerate(needs):
            for where, action in await self._asked(backend, need):
                decision = (
                    Decision(allowed=True, row="sources")
                    if isinstance(need.resource, OutsideSource)
                    else self.decide(operation.principal, backend.name, where, action)
                )
                passes = self.lets_pass(operation, where, action, decision)
                if (index == 0 and action == need.action) or not passes:
                    operation.action, operation.resource, operation.decision = action, where, decision
                if not passes:
                    named = self._named(backend, need, where, operation.principal)
                    message = f"{operation.principal.subject} may not {action} on {named} of {backend.name}."
                    await self._trail.refused(operation, "denied")
                    raise self._denied(message, operation, backend.name)
                if not isinstance(need.resource, OutsideSource):
                    operation.asked[Asked(only_denials=False, action=action, resource=where)] = None
                    self._note(operation, backend, where, action, unless_forbidden=False)

    def _named(self, backend: Backend, need: Need, where: str, principal: Principal) -> str:
        """Name *where* in a refusal, unless the gateway found it behind an id and the caller may not read its name."""
        if (
            isinstance(need.resource, str | OutsideSource)
            or self.decide(principal, backend.name, where, "experiment:read").allowed
        ):
            return where
        return "the experiment that it is in, whose name it may not read,"

    async def _asked(self, backend: Backend, need: Need) -> list[tuple[str, str]]:
        """List the resources and actions that a need means."""
        if isinstance(need.resource, OfTraces) and need.resource.experiment_id:
            where, exists = await self.ownership.of_new_traces(backend, need.resource)
            also = [(where, "run:update")] if exists else []  # MLflow writes over a trace that is there
            return [(where, need.action), *also]
        return [(where, need.action) for where in await self._resources_of(backend, need)]

    async def _resources_of(self, backend: Backend, need: Need) -> list[str]:
        if isinstance(need.resource, str):
            return [need.resource]
        if isinstance(need.resource, OutsideSource):
            if not need.resource.uri.startswith(self._sources.get(backend.name, ()) or "\0"):
                message = (
                    "The source is outside the registry. Log the model through the gateway, or have its prefix added "
                    f"to registries.{backend.name}.sources."
                )
                raise InvalidRequest(message)
            return [need.resource.uri]
        return await self.ownership.resources_of(backend, need.resource)

    async def promotion(self, backend: Backend, call: Call, environment: Environment, operation: Operation) -> None:
        """Decide a promotion: on a guarded target only it is asked; a deny row on an alias or stage counts too.

        Raises:
            Denied: a policy row forbids it, or none allows it.
        """
        model = getattr(call.change, "model", "")
        await self.refuse_denied_by_row(backend, (*call.needs, *marks_of(model, environment)), operation)
        operation.environment = environment.name
        action = _PROMOTING[getattr(call.change, "purpose", "promotion")]
        need = Need(action, resource("models", model, "environments", environment.name))
        await self.authorize(backend, (need,), operation)

    async def retirement(self, backend: Backend, model: str, environment: Environment, operation: Operation) -> None:
        """Taking down what is live is decided as ``environment:retire``.

        Raises:
            Denied: a policy row forbids it, or none allows it.
        """
        operation.environment = environment.name
        need = Need("environment:retire", resource("models", model, "environments", environment.name))
        await self.authorize(backend, (need,), operation)

    def may_retire(
        self, backend: Backend, model: str, environments: Iterable[Environment], operation: Operation
    ) -> bool:
        """Tell whether the caller may take down what is live in one of *environments*."""
        asked = [resource("models", model, "environments", item.name) for item in environments]
        decisions = (self.decide(operation.principal, backend.name, item, "environment:retire") for item in asked)
        return any(decision.allowed for decision in decisions)

    async def refuse_denied_by_row(self, backend: Backend, needs: Iterable[Need], operation: Operation) -> None:
        """Refuse what a row forbids by name; that no row allows it is no matter here.

        Raises:
            Denied: a row forbids it.
        """
        needs = list(needs)
        for need, decision in self._denied_by_rows(backend, needs, operation.principal):
            if self.lets_pass(operation, str(need.resource), need.action, decision):
                continue
            operation.action, operation.resource, operation.decision = need.action, str(need.resource), decision
            await self._trail.refused(operation, "denied")
            message = f"A policy row forbids {operation.principal.subject} {need.action} on {need.resource}."
            raise self._denied(message, operation, backend.name)
        for need in needs:
            if isinstance(need.resource, str):
                operation.asked[Asked(only_denials=True, action=need.action, resource=need.resource)] = None
                self._note(operation, backend, need.resource, need.action, unless_forbidden=True)

    def denied_by_row(
        self, backend: Backend, needs: Iterable[Need], principal: Principal
    ) -> tuple[Need, Decision] | None:
        """Return the first need that a row forbids."""
        return next(self._denied_by_rows(backend, needs, principal), None)

    def _denied_by_rows(
        self, backend: Backend, needs: Iterable[Need], principal: Principal
    ) -> Iterator[tuple[Need, Decision]]:
        for need in needs:
            if isinstance(need.resource, str):  # a narrowed credential is forbidden what its principal is
                decision = self.decide(principal.whole, backend.name, need.resource, need.action)
                if decision.denied_by_row:
                    yield need, decision


def marks_of(model: str, environment: Environment) -> list[Need]:
    """Say what writing the marks would need if they were not guarded: a row that denies one counts."""
    return [_need_of(model, mark) for mark in environment.marks]


def _need_of(model: str, mark: Mark) -> Need:
    if mark.kind == "alias":
        return Need("alias:set", resource("models", model, "aliases", mark.value))
    return Need("stage:set", resource("models", model, "stages", mark.value))
