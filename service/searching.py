"""Searches: the answer holds only what the caller may read, in full pages.

Each row is decided by the policy. What the policy says beforehand about the names a caller can read at all is pushed
into the registry's filter, so that few rows are fetched in vain; it never decides.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable
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
_MAX_NAMES = 20
_MAX_TRACES = 1_000
_AT_ONCE = 8
_PUSHED = re.compile(r"[\w.@ +-]*", re.ASCII)
"""What may stand in a pushed filter: nothing that quotes, escapes or ends it."""
_ORDER = re.compile(r"\s*(name|timestamp|last_updated_timestamp)(?:\s+(asc|desc))?\s*", re.IGNORECASE)


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

    def __init__(self, ownership: Ownership, scopes: Scopes, tokens: PageTokens) -> None:
        """Find experiments through *ownership*; *scopes* says what is worth asking for."""
        self._ownership = ownership
        self._scopes = scopes
        self._tokens = tokens
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
        token = request.message.get("page_token", "")
        state = self._tokens.read(call, token) if token else None
        kind = "experiments" if listing.items == "experiments" else "models"
        scope = self._scopes(call.principal, backend.name, kind, listing.action)
        if scope.is_empty:
            return Answer.of({})
        order = _order_of(request) if listing.items == "registered_models" else None
        like = _like(scope)
        names = [] if like else _few_names(scope)
        walk: _Walk
        if names and order is not None and (state is None or state[0] == "names"):
            walk = _Named(backend, call, request, names, order, state)
        elif state is not None and state[0] == "names":
            message = "The policy has changed since this page token was given; begin the search again."
            raise InvalidRequest(message)
        else:
            density = self._densities.get((call.principal.subject, backend.name, listing.items), 1.0)
            walk = _Paged(backend, call, request, like, state, round(wanted / density * 1.1) if density < 1 else wanted)
        return await self._collect(call, listing.items, walk, wanted, may)

    async def _collect(self, call: Call, items: str, walk: _Walk, wanted: int, may: May) -> Answer:
        listing = call.listing
        assert listing is not None
        rows: list[dict[str, Any]] = []
        seen = 0
        while len(rows) < wanted:
            page = await walk.next_page(items, wanted - len(rows))
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
        upstream = self._tokens.read(call, token)[0] if token else ""
        items = list(request.message.get(call.experiments, ()))
        gate = asyncio.Semaphore(_AT_ONCE)

        async def readable(item: Any) -> bool:
            async with gate:
                try:
                    where = await self._ownership.resource_of(backend, OfExperiment(_experiment_id(item)))
                except NotFound:
                    return False
            return may(where, "run:read")

        kept = [item for item, keep in zip(items, await asyncio.gather(*map(readable, items)), strict=True) if keep]
        if not kept:  # an empty list would mean every experiment to some servers
            return Answer.of({})
        message = {**request.message, call.experiments: kept}
        if upstream:
            message["page_token"] = upstream
        answer = await backend.forward(dataclasses.replace(request, message=message), writes=False, trace=call.trace)
        document = answer.document()
        if not document.get("next_page_token"):
            return answer
        return Answer.of({**document, "next_page_token": self._tokens.write(call, [document["next_page_token"]])})

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


class _Paged:
    """Walks the registry's own pages, narrowed to a pattern of names where there is one."""

    def __init__(
        self, backend: Backend, call: Call, request: Request, like: str, state: list[Any] | None, wanted: int
    ) -> None:
        self._backend, self._call, self._request = backend, call, request
        self._like = like
        self._next, self._skip, self._size = "", 0, wanted + 1  # one more tells whether there is a next page
        if state is not None:
            _, self._like, self._next, self._skip, size = state
            self._size = size if self._skip else self._size
        self._size = min(self._size, _MAX_FETCH_ROWS)
        self._at = ""
        self._started = False

    async def next_page(self, items: str, missing: int) -> list[Row] | None:
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
        if not self._like:
            return await self._forward(message)
        given = message.get("filter", "")
        narrowed = {**message, "filter": _and(given, f"name LIKE '{self._like}'")}
        try:
            return await self._forward(narrowed)
        except RegistryRefused:
            if not given:
                raise
            return await self._forward(message)  # the caller's own filter is wrong: let the registry say so

    async def _forward(self, message: dict[str, Any]) -> dict[str, Any]:
        request = dataclasses.replace(self._request, message=message)
        return (await self._backend.forward(request, writes=False, trace=self._call.trace)).document()

    def state_at(self, index: int) -> list[Any]:
        """Say where the row *index* of the present page is."""
        return ["page", self._like, self._at, index, self._size]

    def state_after(self) -> list[Any] | None:
        """Say where the page after the present one begins; None after the last."""
        return ["page", self._like, self._next, 0, self._size] if self._next else None


class _Named:
    """Asks for a few names at once and puts them into the order of the search."""

    def __init__(
        self,
        backend: Backend,
        call: Call,
        request: Request,
        names: list[str],
        order: list[tuple[str, bool]],
        state: list[Any] | None,
    ) -> None:
        self._backend, self._call, self._request = backend, call, request
        self._names, self._order = names, order
        self._offset = state[1] if state is not None else 0
        self._started = False

    async def next_page(self, items: str, missing: int) -> list[Row] | None:
        del missing
        if self._started:
            return None
        self._started = True
        pages = await asyncio.gather(*(self._fetch(name) for name in self._names))
        rows = [item for page in pages for item in page.get(items, ())]
        for field, descending in reversed(self._order):
            rows.sort(key=lambda item: item[field], reverse=descending)  # used before it changes
        return list(enumerate(rows))[self._offset :]

    async def _fetch(self, name: str) -> dict[str, Any]:
        message = {**self._request.message, "max_results": 2}
        message.pop("page_token", None)
        given = message.get("filter", "")
        message["filter"] = _and(given, f"name = '{name}'")
        try:
            return await self._forward(message)
        except RegistryRefused:
            if not given:
                raise
            return await self._forward({**message, "filter": given})  # the caller's own filter is wrong

    async def _forward(self, message: dict[str, Any]) -> dict[str, Any]:
        request = dataclasses.replace(self._request, message=message)
        return (await self._backend.forward(request, writes=False, trace=self._call.trace)).document()

    def state_at(self, index: int) -> list[Any]:
        """Say where the row *index* is."""
        return ["names", index]

    def state_after(self) -> list[Any] | None:
        """Nothing comes after the one page."""
        return None


_Walk = _Paged | _Named


def _and(given: str, clause: str) -> str:
    return f"{given} AND {clause}" if given.strip() else clause


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


def _order_of(request: Request) -> list[tuple[str, bool]] | None:
    """Read the order of a model search as (field, descending); None where it cannot be told, and MLflow's is kept."""
    order: list[tuple[str, bool]] = []
    for clause in request.message.get("order_by", ()):
        found = _ORDER.fullmatch(str(clause))
        if found is None:
            return None
        field = "name" if found[1].lower() == "name" else "last_updated_timestamp"
        if field in (item[0] for item in order):
            return None
        order.append((field, (found[2] or "").lower() == "desc"))
    if "name" not in (item[0] for item in order):
        order.append(("name", False))
    return order


def _few_names(scope: Scope) -> list[str]:
    """Return the names, if they are all there is and few, and each can stand in a filter."""
    if scope.prefixes or not 0 < len(scope.names) <= _MAX_NAMES:
        return []
    return sorted(scope.names) if all(_PUSHED.fullmatch(name) for name in scope.names) else []


def _like(scope: Scope) -> str:
    """Return a pattern of SQL's LIKE that all readable names meet, or nothing where it would say too little.

    Names of one length give ``team-_-2026`` if half of their characters are common, all others a common prefix.
    Nothing that quotes or escapes stands in it. ``_`` and ``%`` of a name match themselves and more.
    """
    whole = [*scope.prefixes, *scope.names]
    if not scope.prefixes and len({len(name) for name in whole}) == 1:
        mask = "".join(column[0] if len(set(column)) == 1 else "_" for column in zip(*whole, strict=True))
        if _PUSHED.fullmatch(mask) and mask.count("_") * 2 <= len(mask):
            return mask
    found = _PUSHED.match(commonprefix(whole))  # noqa: RUF071  # of names, character by character
    return f"{found[0]}%" if found and found[0] and (scope.prefixes or len(scope.names) > _MAX_NAMES) else ""


def _experiment_id(item: Any) -> str:
    """Read an identifier, or a trace's location (another kind of location than an experiment is nothing readable)."""
    found = item.get("mlflow_experiment", {}).get("experiment_id") if isinstance(item, dict) else item
    if not found:
        message = "That location is not an experiment."
        raise NotFound(message)
    return str(found)
