"""Judges, for the record only, what an environment that is not enforced would have said; changes no answer."""

from __future__ import annotations

from collections.abc import Iterable

from service.access import Access, marks_of
from service.audit import Operation
from service.backend import Backend
from service.change import AliasSet, StageSet
from service.effects import MadeLive
from service.errors import GatewayError
from service.guard import Guard, Retired, live_of_stage
from service.judging import Asked
from service.model import Call, Need, resource
from service.promoter import Promoter
from service.promotion.gate import Environment

WOULD_REFUSE = "would_refuse: "
"""Begins the note of what enforcement would have refused besides rules: the sentence up to `` on `` names the kind."""


class Observer:
    """Notes what would have been refused."""

    def __init__(self, access: Access, guard: Guard, promoter: Promoter) -> None:
        """Find environments by *guard*, ask *access* what would be asked, judge by *promoter*."""
        self._access = access
        self._guard = guard
        self._promoter = promoter

    async def observe(self, backend: Backend, call: Call, operation: Operation) -> list[MadeLive]:
        """Judge a change that makes a version live where that is not enforced; say what is live afterwards."""
        change = call.change
        if isinstance(change, AliasSet):
            self._note_case_variant(backend, change, operation)
        environment = self._guard.observes(backend.name, change)
        if environment is None:
            return []
        assert isinstance(change, AliasSet | StageSet)  # Guard.observes knows no others
        self.note_promotion(backend, call, change.model, environment, operation)
        if isinstance(change, StageSet) and not change.archive:
            operation.notes.append(f"{WOULD_REFUSE}no archive_existing_versions on the stage {change.stage}")
        operation.change = {**(operation.change or {}), "observed": True}
        asked = Asked(change.model, change.version, call.principal)
        await self._promoter.observe(backend, environment, asked, operation)
        first = environment.marks[0]
        if (first.kind, first.value) not in (
            ("alias", getattr(change, "alias", "")),
            ("stage", getattr(change, "stage", "")),
        ):
            return []  # another mark: what is live stays
        try:
            if isinstance(change, StageSet) and not change.archive:
                newest = live_of_stage(await backend.get_model(change.model), change.stage)
                if newest is not None and int(newest) > int(change.version):
                    return []  # the newest in the stage stays live
            operation.after = {"version": change.version}
            version = await backend.get_version(change.model, change.version)
            return [await self._promoter.made_live(backend, environment, version, operation)]
        except GatewayError:
            return []  # the registry will say so

    def note_promotion(
        self, backend: Backend, call: Call, model: str, environment: Environment, operation: Operation
    ) -> None:
        """Note the right to promote, where it is missing, and the deny rows on the marks."""
        marks = marks_of(model, environment)
        denied = self._access.denied_by_row(backend, marks, call.principal)
        if denied is not None:
            need, _ = denied
            operation.notes.append(f"{WOULD_REFUSE}a row denies {need.action} on {need.resource}")
        where = resource("models", model, "environments", environment.name)
        self._note_missing(backend, call, Need("environment:promote", where), operation)

    def note_retirements(self, backend: Backend, call: Call, retired: Iterable[Retired], operation: Operation) -> None:
        """Note what is taken down where that is not enforced, and the right to it, where it is missing."""
        for item in retired:
            operation.notes.append(f"{item.environment.name}: taken down, not enforced")
            where = resource("models", getattr(call.change, "model", ""), "environments", item.environment.name)
            operation.environment = operation.environment or item.environment.name
            self._note_missing(backend, call, Need("environment:retire", where), operation)

    def _note_missing(self, backend: Backend, call: Call, need: Need, operation: Operation) -> None:
        assert isinstance(need.resource, str)  # built from parts
        if not self._access.decide(call.principal, backend.name, need.resource, need.action).allowed:
            operation.notes.append(f"{WOULD_REFUSE}no policy allows {need.action} on {need.resource}")

    def _note_case_variant(self, backend: Backend, change: AliasSet, operation: Operation) -> None:
        found = self._guard.case_variant(backend.name, change.model, change.alias)
        if found is not None:
            environment, mark = found
            operation.environment = operation.environment or environment.name
            operation.notes.append(f"{WOULD_REFUSE}a case variant of {mark.value} on {environment.name}")
