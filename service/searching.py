"""Searches: the answer holds only what the caller may read, in full pages."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from service.backend import Backend
from service.change import OfExperiment
from service.errors import InvalidRequest, NotFound
from service.model import Answer, Call, Request
from service.ownership import Ownership

May = Callable[[str, str], bool]
"""(resource, action) -> allowed."""

_DEFAULT_ROWS = {"registered_models": 100, "model_versions": 10_000, "experiments": 1_000}
_FETCH_ROWS = 100
_TOKEN_FIELDS = 3
_MAX_TRACES = 1_000


async def search(backend: Backend, call: Call, ownership: Ownership, may: May) -> Answer:
    """Forward a search and cut its answer down to what the caller may read."""
    request = call.request
    assert request is not None  # a search is always an RPC
    if call.experiments:
        return await _within_experiments(backend, call, request, ownership, may)
    if call.traces:
        return await _within_traces(backend, call, request, ownership, may)
    listing = call.listing
    assert listing is not None  # the gateway asks for one of the two
    wanted = _rows(request, listing.items)
    token, skip, size = _read_token(request.message.get("page_token", ""), wanted)
    rows: list[dict[str, Any]] = []
    while True:
        page = (await backend.forward(_paged(request, token, size), writes=False, trace=call.trace)).document()
        items = page.get(listing.items, [])
        for index, item in enumerate(items[skip:], start=skip):
            if len(rows) == wanted:
                return _answer(listing.items, rows, _write_token(token, index, size))
            if may(listing.resource_of(item), listing.action):
                rows.append(item)
        token, skip = page.get("next_page_token", ""), 0
        if not token:
            return _answer(listing.items, rows, "")
        if len(rows) == wanted:
            return _answer(listing.items, rows, _write_token(token, 0, size))


async def _within_experiments(backend: Backend, call: Call, request: Request, ownership: Ownership, may: May) -> Answer:
    readable = []
    for item in request.message.get(call.experiments, ()):
        try:
            where = await ownership.resource_of(backend, OfExperiment(_experiment_id(item)))
        except NotFound:
            continue
        if may(where, "run:read"):
            readable.append(item)
    if not readable:  # an empty list would mean every experiment to some servers
        return Answer.of({})
    message = {**request.message, call.experiments: readable}
    return await backend.forward(dataclasses.replace(request, message=message), writes=False, trace=call.trace)


def _experiment_id(item: Any) -> str:
    """Read an identifier, or a trace's location (another kind of location than an experiment is nothing readable)."""
    found = item.get("mlflow_experiment", {}).get("experiment_id") if isinstance(item, dict) else item
    if not found:
        message = "That location is not an experiment."
        raise NotFound(message)
    return str(found)


async def _within_traces(backend: Backend, call: Call, request: Request, ownership: Ownership, may: May) -> Answer:
    trace_ids = list(dict.fromkeys(str(item) for item in request.message.get(call.traces, ())))
    if len(trace_ids) > _MAX_TRACES:
        message = f"{call.traces} names more than {_MAX_TRACES} traces."
        raise InvalidRequest(message)
    owners = await backend.trace_experiments(trace_ids) if trace_ids else {}
    readable = {
        experiment_id: may(await ownership.resource_of(backend, OfExperiment(experiment_id)), "run:read")
        for experiment_id in dict.fromkeys(owners.values())
    }
    kept = [trace_id for trace_id in trace_ids if trace_id in owners and readable[owners[trace_id]]]
    if not kept:
        return Answer.of({})
    cut = {**request.message, call.traces: kept}
    return await backend.forward(dataclasses.replace(request, message=cut), writes=False, trace=call.trace)


def _rows(request: Request, items: str) -> int:
    wanted = request.message.get("max_results", _DEFAULT_ROWS[items])
    if not isinstance(wanted, int) or wanted < 1:
        message = "max_results must be a positive number."
        raise InvalidRequest(message)
    return wanted


def _paged(request: Request, token: str, size: int) -> Request:
    message = {**request.message, "max_results": size}
    message.pop("page_token", None)
    if token:
        message["page_token"] = token
    return dataclasses.replace(request, message=message)


def _answer(items: str, rows: list[dict[str, Any]], token: str) -> Answer:
    return Answer.of({items: rows, "next_page_token": token} if token else {items: rows})


def _write_token(token: str, skip: int, size: int) -> str:
    return base64.urlsafe_b64encode(json.dumps([token, skip, size]).encode()).decode()


def _read_token(text: str, wanted: int) -> tuple[str, int, int]:
    """Return the registry's own token, how many rows of its page were seen, and the page's size."""
    if not text:
        return "", 0, max(wanted, _FETCH_ROWS)
    try:
        fields = json.loads(base64.urlsafe_b64decode(text.encode()))
    except (ValueError, binascii.Error):
        fields = None
    if (
        not isinstance(fields, list)
        or len(fields) != _TOKEN_FIELDS
        or not isinstance(fields[0], str)
        or not all(type(number) is int and 0 <= number <= 1_000_000 for number in fields[1:])
    ):
        message = "The page token is not one of this gateway's."
        raise InvalidRequest(message)
    return fields[0], fields[1], max(fields[2], 1)
