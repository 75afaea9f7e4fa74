"""Explains the access policy to those who may know it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from service.errors import InvalidRequest
from service.explanation import Explanation, WhoCan
from service.governance.desk import Desk
from service.model import Caller, Need, Principal

ACCESS = "access"
MAX_GROUPS = 100
_NO_OTHERS = "rows for others are left out: access:read on access shows them"
_NO_ROWS = "rows are left out: access:explain on access shows those for you"


class Explainer(Protocol):
    """The policy in force, as it is explained."""

    def problem(self, subjects: Iterable[str], registry: str, resource: str, action: str) -> str:
        """Say why nobody can ever ask this; nothing for a question that can be asked."""

    def decide(self, principal: Principal, registry: str, resource: str, action: str) -> Explanation:
        """Decide, without any row."""

    def explain(self, principal: Principal, registry: str, resource: str, action: str) -> Explanation:
        """Decide and explain. Slow: not for the event loop."""

    def who_can(self, registry: str, resource: str, action: str) -> WhoCan:
        """Decide for every subject of the policy. Slow: not for the event loop."""


class AccessDesk:
    """Tells whoever asks why they may or may not, and those who may read the policy about everybody."""

    def __init__(self, desk: Desk, explainer: Explainer) -> None:
        """Decide through *desk*; *explainer* knows the rows."""
        self._desk = desk
        self.explainer = explainer
        self._one = ThreadPoolExecutor(1, "explain")  # each reads every row: one at a time, also of who hangs up

    async def explain(
        self, caller: Caller, subject: str | None, groups: Iterable[str], registry: str, resource: str, action: str
    ) -> Explanation:
        """Explain a decision: the caller's own, by its credential; about another subject with ``access:read``.

        Who asks for themselves sees the rows for themselves with ``access:explain``, all with ``access:read``.

        Raises:
            NotFound: no such registry. InvalidRequest: nobody can ever ask this.
            Denied: the question is about somebody else, and no row lets the caller read the policy.
        """
        groups = frozenset(groups)
        own = subject is None or (subject == caller.principal.subject and not groups)
        if own and groups:
            message = "A group is of the subject that is named; send subject, or leave group out."
            raise InvalidRequest(message)
        self._desk.gateway.backend(registry)
        principal = caller.principal if subject is None or own else Principal(subject, groups)
        if not own:
            await self._read(caller, registry, "explainAccess")
        self._check(() if own else (principal.subject, *groups), registry, resource, action)
        reads = not own or self._may(caller, registry, "access:read")
        if not reads and not self._may(caller, registry, "access:explain"):  # who may see no rows has none read
            return self.explainer.decide(principal, registry, resource, action).bare(_NO_ROWS)
        asked = (principal, registry, resource, action)
        found = await asyncio.get_running_loop().run_in_executor(self._one, self.explainer.explain, *asked)
        return found if reads else found.own(_NO_OTHERS)

    async def who_can(self, caller: Caller, registry: str, resource: str, action: str) -> WhoCan:
        """List which subjects of the policy may, and which a row denies; needs ``access:read``.

        Raises:
            NotFound: no such registry. InvalidRequest: nobody can ever ask this. Denied: no row allows it.
        """
        await self._read(caller, registry, "whoCan")
        self._check((), registry, resource, action)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._one, self.explainer.who_can, registry, resource, action)

    async def _read(self, caller: Caller, registry: str, name: str) -> None:
        _, operation = await self._desk.open(caller, registry, name, Need("access:read", ACCESS))
        self._desk.gateway.tally.count(operation, "", failed=False)

    def _check(self, subjects: Iterable[str], registry: str, resource: str, action: str) -> None:
        subjects = tuple(subjects)
        if len(subjects) > MAX_GROUPS:
            message = f"More than {MAX_GROUPS} groups are no question."
            raise InvalidRequest(message)
        problem = self.explainer.problem(subjects, registry, resource, action)
        if problem:
            message = f"{problem[0].upper()}{problem[1:]}."
            raise InvalidRequest(message)

    def _may(self, caller: Caller, registry: str, action: str) -> bool:
        return self._desk.gateway.access.decide(caller.principal, registry, ACCESS, action).allowed
