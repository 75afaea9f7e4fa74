"""Answers other services whether a subject may do something: access as it is decided for requests, and verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import unquote

from service.errors import Denied, GatewayError, InvalidRequest
from service.gather import Question, judge
from service.governance.access import ACCESS, AccessDesk
from service.governance.desk import Desk
from service.model import Caller, Decision, Need, Principal, Verdict, resource
from service.strict import check_text, check_version

PROMOTE = "environment:promote"
MAX_VERDICTS = 10
"""Each reads the registry."""
_AT_ONCE = 20


class Semantic(Enum):
    """When a list of questions has its answer (AuthZEN Authorization API 1.0, section 7.1.2.1)."""

    EXECUTE_ALL = "execute_all"
    DENY_ON_FIRST_DENY = "deny_on_first_deny"
    PERMIT_ON_FIRST_PERMIT = "permit_on_first_permit"

    def ends(self, *, allowed: bool) -> bool:
        """Tell whether nothing further is asked after an answer."""
        return self is (Semantic.PERMIT_ON_FIRST_PERMIT if allowed else Semantic.DENY_ON_FIRST_DENY)


@dataclass(frozen=True, slots=True)
class AskedAbout:
    """May *principal* do *action* on *resource* of *registry*? Of a promotion with *version*: does the gate let it?"""

    principal: Principal
    registry: str
    resource: str
    action: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Wrong:
    """A question that cannot be asked, and why."""

    error: GatewayError


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An answer. The zero value is a denial."""

    decision: Decision = field(default_factory=Decision)
    verdict: Verdict | None = None
    verdict_problem: GatewayError | None = None
    """Why a verdict that was asked for is not there."""
    error: GatewayError | None = None
    """Why the question has no answer; the decision is a denial."""


class EvaluationDesk:
    """Decides for callers who hold ``access:evaluate`` on the registry asked about."""

    def __init__(self, desk: Desk, access: AccessDesk) -> None:
        """Decide through *desk*; *access* knows what can be asked."""
        self._desk = desk
        self._access = access

    async def evaluate(
        self, caller: Caller, questions: Sequence[AskedAbout | Wrong], semantic: Semantic = Semantic.EXECUTE_ALL
    ) -> list[Evaluated]:
        """Answer *questions* in their order, up to the one that settles *semantic*.

        The decision is of access alone; a closed gate is in the verdict.

        Raises:
            Denied: a right to ask is missing, for any of the registries. Nothing was answered.
        """
        checked = [self._checked(item) for item in questions]
        await self._authorize(caller, [item for item in checked if isinstance(item, AskedAbout)])
        answers: list[Evaluated] = []
        verdicts = 0
        for index, item in enumerate(checked):
            if index % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)  # others are served in between
            if isinstance(item, Wrong):
                answer = Evaluated(error=item.error)
            else:
                decision = self._desk.gateway.access.decide(item.principal, item.registry, item.resource, item.action)
                answer = Evaluated(decision)
                if item.version is not None and item.action == PROMOTE and decision.allowed:
                    verdicts += 1
                    answer = await self._with_verdict(caller, item, decision, over=verdicts > MAX_VERDICTS)
            answers.append(answer)
            if semantic.ends(allowed=answer.decision.allowed):
                break
        return answers

    def _checked(self, item: AskedAbout | Wrong) -> AskedAbout | Wrong:
        if isinstance(item, Wrong):
            return item
        subjects = (item.principal.subject, *sorted(item.principal.groups))
        problem = self._access.explainer.problem(subjects, item.registry, item.resource, item.action)
        if problem:
            return Wrong(InvalidRequest(f"{problem[0].upper()}{problem[1:]}."))
        return item

    async def _authorize(self, caller: Caller, questions: Iterable[AskedAbout]) -> None:
        """Ask for the caller's rights on each registry, once; a call that names none needs one all the same."""
        grouped: dict[str, bool] = {}
        for item in questions:
            grouped[item.registry] = grouped.get(item.registry, False) or bool(item.principal.groups)
        if not grouped:
            grouped[self._somewhere(caller)] = False
        for registry, groups in grouped.items():
            needs = [Need("access:evaluate", ACCESS), *([Need("access:assume", ACCESS)] if groups else [])]
            _, operation = await self._desk.open(caller, registry, "evaluate", *needs)
            self._desk.gateway.tally.count(operation, "", failed=False)

    def _somewhere(self, caller: Caller) -> str:
        names = list(self._desk.gateway.backends)
        decide = self._desk.gateway.access.decide
        return next(
            (name for name in names if decide(caller.principal, name, ACCESS, "access:evaluate").allowed), names[0]
        )

    async def _with_verdict(self, caller: Caller, item: AskedAbout, decision: Decision, *, over: bool) -> Evaluated:
        """Judge a promotion as a dry run does, without its event; what the caller may not read is not told."""
        if over:
            message = f"Over {MAX_VERDICTS} verdicts are not given in one call; ask again for the others."
            return Evaluated(decision, verdict_problem=InvalidRequest(message))
        try:
            return Evaluated(decision, await self._verdict(caller, item))
        except GatewayError as error:
            return Evaluated(decision, verdict_problem=error)

    async def _verdict(self, caller: Caller, item: AskedAbout) -> Verdict:
        version = check_version(item.version or "")
        _, model, _, environment = map(unquote, item.resource.split("/"))  # what can be asked has this shape
        check_text(model, "model name")
        found = self._desk.environment(item.registry, model, environment)
        read = self._desk.gateway.access.decide(
            caller.principal, item.registry, resource("models", model, "versions"), "version:read"
        )
        if not read.allowed:
            message = "The verdict shows facts of the version, which the caller may not read (version:read)."
            raise Denied(message)
        backend = self._desk.gateway.backend(item.registry)
        candidate = await backend.get_version(model, version)
        question = Question(item.principal, looking=True)
        facts = await self._desk.gatherer.about(backend, found, candidate, question)
        return await judge(found, facts, item.registry)
