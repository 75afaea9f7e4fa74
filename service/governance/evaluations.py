"""Answers other services whether a subject may do something: access as it is decided for requests, and verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from urllib.parse import unquote

from service.access import marks_of
from service.errors import Denied, GatewayError, InvalidRequest
from service.gather import Question, judge
from service.governance.access import ACCESS, AccessDesk
from service.governance.desk import Desk
from service.model import Caller, Decision, Need, Principal, Verdict, resource
from service.promotion.gate import Environment, Mark
from service.strict import check_text, check_version

PROMOTE = "environment:promote"
MAX_VERDICTS = 10
"""Each reads the registry."""
_AT_ONCE = 20
_PROMOTING = frozenset({PROMOTE, "environment:rollback", "environment:emergency"})
MARKING = {"alias:set": "alias", "stage:set": "stage"}
"""What writes the marks of environments, and the kind of mark."""


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

    @property
    def decision(self) -> Decision:
        """A denial: what cannot be asked is allowed to nobody."""
        return Decision()


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An answer, and as what it was decided: a write on a mark is a promotion."""

    decision: Decision
    asked: AskedAbout
    verdict: Verdict | None = None
    verdict_problem: GatewayError | None = None
    """Why a verdict that was asked for is not there."""

    @property
    def wants_verdict(self) -> bool:
        """Whether it is a promotion of a version, and allowed."""
        return self.asked.version is not None and self.asked.action == PROMOTE and self.decision.allowed


class EvaluationDesk:
    """Decides for callers who hold ``access:evaluate`` on the registry asked about."""

    def __init__(self, desk: Desk, access: AccessDesk) -> None:
        """Decide through *desk*; *access* knows what can be asked."""
        self._desk = desk
        self._access = access

    async def evaluate(
        self, caller: Caller, questions: Sequence[AskedAbout | Wrong], semantic: Semantic = Semantic.EXECUTE_ALL
    ) -> list[Evaluated | Wrong]:
        """Answer *questions* in their order, up to the one that settles *semantic*.

        The decision is of access alone, as a request would be decided; a closed gate is in the verdict.

        Raises:
            Denied: a right to ask is missing, for any of the registries. Nothing was answered.
        """
        checked = [self._checked(item) for item in questions]
        await self._authorize(caller, [item for item in checked if isinstance(item, AskedAbout)])
        answers: list[Evaluated | Wrong] = []
        verdicts = 0
        for index, item in enumerate(checked):
            if index % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)  # others are served in between
            answer: Evaluated | Wrong = item if isinstance(item, Wrong) else self._decided(item)
            if isinstance(answer, Evaluated) and answer.wants_verdict:
                verdicts += 1
                answer = await self._with_verdict(caller, answer, over=verdicts > MAX_VERDICTS)
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

    def _decided(self, item: AskedAbout) -> Evaluated:
        """Decide as a request is: a write on a mark is a promotion, and a row that denies any of the marks counts."""
        access = self._desk.gateway.access
        environment = self._promotes(item)
        if environment is not None:
            model = unquote(item.resource.split("/")[1])
            needs = [Need(item.action, item.resource), *marks_of(model, environment)]
            denied = access.denied_by_row(self._desk.gateway.backend(item.registry), needs, item.principal)
            if denied is not None:
                need, decision = denied
                return Evaluated(decision, replace(item, action=need.action, resource=str(need.resource)))
            if item.action in MARKING:
                where = resource("models", model, "environments", environment.name)
                item = replace(item, action=PROMOTE, resource=where)
        return Evaluated(access.decide(item.principal, item.registry, item.resource, item.action), item)

    def _promotes(self, item: AskedAbout) -> Environment | None:
        """Return the environment that doing this would make a version live in."""
        kind, *parts = map(unquote, item.resource.split("/"))
        if kind != "models" or len(parts) != len(("model", "environments", "name")):
            return None
        model, _, name = parts
        if item.action in _PROMOTING:
            return self._desk.environments.get(item.registry, model, name)
        mark = MARKING.get(item.action)
        guarding = self._desk.environments.of(item.registry, model) if mark else ()
        return next((found for found in guarding if found.enforced and Mark(mark or "", name) in found.marks), None)

    async def _with_verdict(self, caller: Caller, answer: Evaluated, *, over: bool) -> Evaluated:
        """Judge a promotion as a dry run does, without its event; what the caller may not read is not told."""
        if over:
            message = f"Over {MAX_VERDICTS} verdicts are not given in one call; ask again for the others."
            return replace(answer, verdict_problem=InvalidRequest(message))
        try:
            return replace(answer, verdict=await self._verdict(caller, answer.asked))
        except GatewayError as error:
            return replace(answer, verdict_problem=error)

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
