"""Searches: the answer holds only what the caller may read, in full pages.

Each row is decided by the policy. What the policy says beforehand about the names a caller can read at all is pushed
into the registry's filter, so that few rows are fetched in vain; it never decides.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from service.backend import Backend
from service.change import OfExperiment
from service.errors import InvalidRequest, NotFound, RegistryRefused
from service.model import Answer, Call, Principal, Request, Scope
from service.ownership import Ownership
from service.page_tokens import PageTokens

May = Callable[[str, str], bool]
"""(resource, action) -> allowed."""
Scopes = Callable[[Principal, str, str, str], Scope]
"""(principal, registry, kind, action) -> the names that the policy lets the principal read at most."""

_MAX_FETCH_ROWS = 1_000
_MAX_DENSITIES = 10_000
_MAX_CONDITION = 4_000
"""Characters of the names in a pushed list."""
_MAX_PREFIXES, _MAX_LISTED, _TOO_MANY_SECONDS = 8, 200, 30.0
_MAX_EXPERIMENTS = 1_000
_MAX_TRACES = 1_000
_AT_ONCE = 8
_LISTED = re.compile(r"[\w.@ +-]*")
"""The same for whole names, which are compared and not matched."""
_PUSHED = re.compile(r"[\w.@ +-]*", re.ASCII)
"""What may stand in a pushed filter: nothing that quotes, escapes or ends it."""


_MOVED = "What you may read has changed since this page token was given; begin the search again without page_token."


@dataclass(frozen=True, slots=True)
class _Limits:
    default: int
    most: int


_LIMITS = {
    "registered_models": _Limits(100, 1_000),
    "model_versions": _Limits(10_000, 200_000),
    "experiments": _Limits(1_000, 50_000),
}
"""MLflow's own (mlflow/store/model_registry/__init__.py, mlflow/store/tracking/__init__.py)."""


class Searches:
    """Carries searches out."""

    def __init__(
        self, ownership: Ownership, scopes: Scopes, tokens: PageTokens, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Find experiments through *ownership*; *scopes* says what is worth asking for."""
        self._ownership = ownership
        self._scopes = scopes
        self._tokens = tokens
        self._gates: dict[str, asyncio.Semaphore] = {}
        self._clock = clock
        self._too_many: dict[tuple[str, str], float] = {}
        """Principals whose prefixes meant too many names to list, and until when that is believed."""
        self._densities: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        """The readable share of the rows that a principal's last search met: how much to ask for at once."""

    async def search(self, backend: Backend, call: Call, may: May) -> Answer:
        """Forward a search and cut its answer down to what the caller may read.

        Raises:
            InvalidRequest: max_results is out of MLflow's bounds, or the page token is not one for this search.
        """
        request = call.request
        assert request is not None  # a search is always an RPC
        if call.traces:
            return await self._within_traces(backend, call, request, may)
        if call.experiments:
            return await self._within_experiments(backend, call, request, may)
        return await self._listing(backend, call, request, may)

    # listings: each row is decided

    async def _listing(self, backend: Backend, call: Call, request: Request, may: May) -> Answer:
        listing = call.listing
        assert listing is not None  # the gateway asks for one of the three
        wanted = _rows(request, _LIMITS[listing.items])
        kind = "experiments" if listing.items == "experiments" else "models"
        scope = self._scopes(call.principal, backend.name, kind, listing.action)
        token = request.message.get("page_token", "")
        if scope.is_empty:
            if request.message.get("filter") or request.message.get("order_by"):  # a wrong one is the registry's error
                message = {key: value for key, value in request.message.items() if key != "page_token"}
                probe = dataclasses.replace(request, message={**message, "max_results": 1})
                await backend.forward(probe, writes=False, trace=call.trace)
            return Answer.of({})
        state = self._tokens.read(call, token) if token else None
        bound = _digest([sorted(scope.names), sorted(scope.prefixes)])
        if state is not None and state[0] != bound:
            raise InvalidRequest(_MOVED)
        listed = await self._listed(backend, call, scope, state) if kind == "models" else ""
        condition = listed or _condition(scope, lists=kind == "models")
        density = self._densities.get((call.principal.subject, backend.name, listing.items), 1.0)
        first = wanted if density >= 1 else round(wanted / density * 1.1)
        return await self._collect(
            call, _Pages(backend, call, request, _Narrowed(condition, bound, bool(listed)), state, first), wanted, may
        )

    async def _listed(self, backend: Backend, call: Call, scope: Scope, state: list[Any] | None) -> str:
        """Return a list of all names that several prefixes mean; nothing where one condition says it, or too many.

        MLflow's filter knows no OR. What a first page was narrowed by, its followers are too: their offsets count it.
        """
        if state is not None and not state[-1]:
            return ""
        key = (call.principal.subject, backend.name)
        several = len(scope.prefixes) + bool(scope.names) > 1 and scope.prefixes
        usual = all(_PUSHED.fullmatch(item) and item for item in scope.prefixes)
        if not several or not usual or len(scope.prefixes) > _MAX_PREFIXES:
            return ""
        if state is None and self._too_many.get(key, 0.0) > self._clock():
            return ""
        found = await asyncio.gather(*(backend.names_like(item, _MAX_LISTED) for item in sorted(scope.prefixes)))
        names = {*scope.names, *(name for items in found for name in items or ())}
        text = _names(names)
        if None in found or len(text) > _MAX_CONDITION or not all(_LISTED.fullmatch(name) for name in names):
            if state is not None:
                raise InvalidRequest(_MOVED)
            if len(self._too_many) > _MAX_DENSITIES:
                self._too_many.clear()
            self._too_many[key] = self._clock() + _TOO_MANY_SECONDS
            return ""
        return f"name IN ({text})" if names else "name = ''"

    async def _collect(self, call: Call, walk: _Pages, wanted: int, may: May) -> Answer:
        listing = call.listing
        assert listing is not None
        rows: list[dict[str, Any]] = []
        seen = 0
        while len(rows) < wanted:
            page = await walk.next_page(listing.items, wanted - len(rows))
            if page is None:
                break
            for index, item in page:
                readable = may(listing.resource_of(item), listing.action)
                if readable and len(rows) == wanted:
                    return self._page(call, rows, seen, walk.state_at(index))
                seen += 1
                if readable:
                    rows.append(item)
        return self._page(call, rows, seen, walk.state_after() if len(rows) == wanted else None)

    def _page(self, call: Call, rows: list[dict[str, Any]], seen: int, state: list[Any] | None) -> Answer:
        assert call.listing is not None
        key = (call.principal.subject, call.registry, call.listing.items)
        self._densities[key] = max(len(rows), 1) / max(seen, 1)
        self._densities.move_to_end(key)
        if len(self._densities) > _MAX_DENSITIES:
            self._densities.popitem(last=False)
        if not rows:
            return Answer.of({})
        token = {"next_page_token": self._tokens.write(call, state)} if state is not None else {}
        return Answer.of({call.listing.items: rows, **token})

    # searches inside of experiments: the request is cut down

    async def _within_experiments(self, backend: Backend, call: Call, request: Request, may: May) -> Answer:
        token = request.message.get("page_token", "")
        state = self._tokens.read(call, token) if token else None
        items = list(request.message.get(call.experiments, ()))
        named = dict.fromkeys(map(_experiment_id, items))
        if len(named) > _MAX_EXPERIMENTS:
            problem = f"{call.experiments} names more than {_MAX_EXPERIMENTS} experiments."
            raise InvalidRequest(problem)
        gate = self._gates.setdefault(backend.name, asyncio.Semaphore(_AT_ONCE))

        async def readable(experiment_id: str | None) -> bool:
            if experiment_id is None:
                return False
            async with gate:  # one for all searches of the registry: nobody's search takes every connection
                try:
                    where = await self._ownership.resource_of(backend, OfExperiment(experiment_id))
                except NotFound:
                    return False
            return may(where, "run:read")

        keeps = dict(zip(named, await asyncio.gather(*map(readable, named)), strict=True))
        kept = [item for item in items if keeps[_experiment_id(item)]]
        if not kept:  # an empty list would mean every experiment to some servers
            return Answer.of({})
        message = {**request.message, call.experiments: kept}
        if state is not None:
            if state[0] != _digest(kept):
                raise InvalidRequest(_MOVED)
            message["page_token"] = state[1]
        answer = await backend.forward(dataclasses.replace(request, message=message), writes=False, trace=call.trace)
        document = answer.document()
        if not document.get("next_page_token"):
            return answer
        following = self._tokens.write(call, [_digest(kept), document["next_page_token"]])
        return Answer.of({**document, "next_page_token": following})

    async def _within_traces(self, backend: Backend, call: Call, request: Request, may: May) -> Answer:
        trace_ids = list(dict.fromkeys(str(item) for item in request.message.get(call.traces, ())))
        if len(trace_ids) > _MAX_TRACES:
            message = f"{call.traces} names more than {_MAX_TRACES} traces."
            raise InvalidRequest(message)
        owners = await backend.trace_experiments(trace_ids) if trace_ids else {}
        readable = {
            experiment_id: may(await self._ownership.resource_of(backend, OfExperiment(experiment_id)), "run:read")
            for experiment_id in dict.fromkeys(owners.values())
        }
        kept = [trace_id for trace_id in trace_ids if trace_id in owners and readable[owners[trace_id]]]
        if not kept:
            return Answer.of({})
        cut = {**request.message, call.traces: kept}
        return await backend.forward(dataclasses.replace(request, message=cut), writes=False, trace=call.trace)


Row = tuple[int, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Narrowed:
    condition: str
    bound: str
    """Names what the caller may read at most: a page token is for that."""
    listed: bool
    """The condition lists the names there were."""


class _Pages:
    """Walks the registry's own pages, narrowed by a condition on names where there is one."""

    def __init__(
        self, backend: Backend, call: Call, request: Request, narrowed: _Narrowed, state: list[Any] | None, wanted: int
    ) -> None:
        self._backend, self._call, self._request = backend, call, request
        self._narrowed = narrowed
        self._condition = narrowed.condition
        self._next, self._skip, self._size = "", 0, wanted + 1  # one more tells whether there is a next page
        if state is not None:
            _, self._next, self._skip, size, widened, _ = state
            self._size = size if self._skip else self._size
            self._condition = "" if widened else narrowed.condition
        self._size = min(self._size, _MAX_FETCH_ROWS)
        self._at = ""
        self._started = False
        self._may_widen = state is None

    async def next_page(self, items: str, missing: int) -> list[Row] | None:
        """Return the next rows with their index in the page; None after the last page."""
        if self._started and not self._next:
            return None
        if self._started:  # what came so far was not enough: fetch more at once
            self._size = min(max(self._size * 2, missing), _MAX_FETCH_ROWS)
        self._started, self._at = True, self._next
        page = await self._fetch()
        skip, self._skip = self._skip, 0
        self._next = page.get("next_page_token", "")
        return list(enumerate(page.get(items, [])))[skip:]

    async def _fetch(self) -> dict[str, Any]:
        message = {**self._request.message, "max_results": self._size}
        message.pop("page_token", None)
        if self._at:
            message["page_token"] = self._at
        if not self._condition:
            return await self._forward(message)
        given = message.get("filter", "")
        narrowed = {**message, "filter": f"{given} AND {self._condition}" if given.strip() else self._condition}
        try:
            return await self._forward(narrowed)
        except RegistryRefused as error:
            if not self._may_widen or self._at or error.status != 400:
                raise
        # the caller's own filter is wrong, and the registry says so itself; or it knows no such condition
        self._condition = ""
        return await self._forward(message)

    async def _forward(self, message: dict[str, Any]) -> dict[str, Any]:
        request = dataclasses.replace(self._request, message=message)
        return (await self._backend.forward(request, writes=False, trace=self._call.trace)).document()

    def state_at(self, index: int) -> list[Any]:
        """Say where the row *index* of the present page is."""
        return [self._narrowed.bound, self._at, index, self._size, *self._how]

    def state_after(self) -> list[Any] | None:
        """Say where the page after the present one begins; None after the last."""
        return [self._narrowed.bound, self._next, 0, self._size, *self._how] if self._next else None

    @property
    def _how(self) -> tuple[bool, bool]:
        """Whether the registry refused the condition, and whether it lists names."""
        return self._condition != self._narrowed.condition, self._narrowed.listed


def _digest(condition: object) -> str:
    return hashlib.sha256(repr(condition).encode()).hexdigest()[:16]


def _rows(request: Request, limits: _Limits) -> int:
    wanted = request.message.get("max_results", limits.default)
    if not isinstance(wanted, int) or wanted < 1:
        message = f"Invalid value for max_results. It must be a positive integer, but got {str(wanted)[:40]}"
        raise InvalidRequest(message)
    if wanted > limits.most:
        message = (
            f"Invalid value for request parameter max_results. It must be at most {limits.most}, but got value {wanted}"
        )
        raise InvalidRequest(message)
    return wanted


def _names(names: Collection[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))


def _condition(scope: Scope, *, lists: bool) -> str:
    """Return a condition on names that all readable ones meet; nothing where it would say too little.

    *lists* says whether the registry's filter knows ``IN``. ``_`` and ``%`` of a name match themselves and more.
    """
    if not scope.prefixes and all(_LISTED.fullmatch(name) for name in scope.names):
        names = _names(scope.names)
        if len(scope.names) == 1:
            return f"name = {names}"
        if lists and len(names) <= _MAX_CONDITION:
            return f"name IN ({names})"
    found = _PUSHED.match(commonprefix([*scope.prefixes, *scope.names]))  # noqa: RUF071  # character by character
    return f"name LIKE '{found[0]}%'" if found and found[0] else ""


def _experiment_id(item: Any) -> str | None:
    """Read an identifier, or a trace's location; None for one of another kind, which is nothing readable."""
    found = item.get("mlflow_experiment", {}).get("experiment_id") if isinstance(item, dict) else item
    return str(found) if found else None
