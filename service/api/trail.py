"""Routes of the audit trail: events, exports, what is unsettled, legal holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Literal

import msgspec
from litestar import delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody, QueryParameter

from service.api import schemas as s
from service.api import shapes
from service.api.cursors import PATTERN, read_cursor, write_cursor
from service.api.shapes import When
from service.api.streaming import Parts
from service.errors import InvalidRequest
from service.event import EVENT_ACTIONS, OUTCOMES, PHASES
from service.exports import FORMS, Form
from service.governance import Governance
from service.governance.trails import public_event
from service.keeping import Page
from service.model import Caller

Cursor = Annotated[str | None, QueryParameter(pattern=PATTERN, description="From `next_cursor`.")]
Text = Annotated[str | None, QueryParameter(max_length=500)]
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
Order = Annotated[Literal["asc", "desc"], QueryParameter(description="`desc` is newest first.")]
Format = Annotated[Literal["jsonl", "csv", "ocsf"], QueryParameter(description="How events are written.")]
_EXPORT_PAGE = 1000
_AT_ONCE = 50
"""So many events are written in one go on the event loop."""
OPERATION = "^[0-9a-f-]{36}$"
_TYPE = "registry-gateway."


@get("/v1/audit/events", operation_id="listEvents", opt={"action": "audit:read"}, tags=["audit"])
async def list_events(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    registry: Text = None,
    model: Text = None,
    version: Text = None,
    environment: Text = None,
    actor: Text = None,
    action: Text = None,
    outcome: Text = None,
    operation: Text = None,
    phase: Text = None,
    type: Text = None,  # noqa: A002  # the name of the query field
    since: When = None,
    until: When = None,
    order: Order = "asc",
    cursor: Cursor = None,
    limit: Limit = 100,
) -> s.EventsBody:
    """List audit events, oldest first; with `order=desc` newest first.

    Without `audit:read`, who may read a model can list its events with `model=`, without groups, keys and addresses.
    """
    filters = _filters(
        registry=registry,
        model=model,
        version=version,
        environment=environment,
        actor=actor,
        action=action,
        outcome=outcome,
        operation=operation,
        phase=phase,
        type_=type,
        since=shapes.seconds(since),
        until=shapes.seconds(until),
    )
    question = [filters, order]
    after = read_cursor(cursor, question) if cursor is not None else None
    page, whole = await governance.trail.page(caller, filters, after, limit, newest_first=order == "desc")
    events = [msgspec.json.decode(body) for _, body in page.rows]
    return s.EventsBody(
        events if whole else [public_event(event) for event in events],
        write_cursor(page.cursor, question) if page.cursor is not None else None,
        page.incomplete,
    )


@get(
    "/v1/audit/export",
    operation_id="exportEvents",
    opt={"action": "audit:read", "also_answers": ("text/csv",)},
    tags=["audit"],
    media_type="application/jsonl",
)
async def export_events(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    format: Format = "jsonl",  # noqa: A002  # the name of the query field
    registry: Text = None,
    model: Text = None,
    version: Text = None,
    environment: Text = None,
    actor: Text = None,
    action: Text = None,
    outcome: Text = None,
    operation: Text = None,
    phase: Text = None,
    type: Text = None,  # noqa: A002  # the name of the query field
    since: When = None,
    until: When = None,
) -> Parts:
    """Stream all events that pass the filters, oldest first. It ends with what is there when it gets there.

    A journal that fails in the middle breaks the connection off: a whole answer is a whole export.
    """
    filters = _filters(
        registry=registry,
        model=model,
        version=version,
        environment=environment,
        actor=actor,
        action=action,
        outcome=outcome,
        operation=operation,
        phase=phase,
        type_=type,
        since=shapes.seconds(since),
        until=shapes.seconds(until),
    )
    form = FORMS[format]
    first = await governance.trail.export_page(caller, filters, None, _EXPORT_PAGE)
    name = f'attachment; filename="events.{form.suffix}"'
    lines = _lines(governance, caller, filters, form, first)
    return Parts(lines, media_type=form.media_type, headers={"content-disposition": name, "cache-control": "no-store"})


async def _lines(
    governance: Governance, caller: Caller, filters: dict[str, Any], form: Form, page: Page
) -> AsyncIterator[bytes]:
    """Write page after page; between two of them nothing is held, in memory or in the journal."""
    yield form.head.encode()
    while True:
        for begin in range(0, len(page.rows), _AT_ONCE):
            yield "".join(form.line(body) for _, body in page.rows[begin : begin + _AT_ONCE]).encode()
            await asyncio.sleep(0)  # requests have their turn: a reader that is fast makes none of these wait
        if page.cursor is None:
            return
        page = await governance.trail.export_page(caller, filters, page.cursor, _EXPORT_PAGE)


@get("/v1/audit/unsettled", operation_id="listUnsettled", opt={"action": "audit:read"}, tags=["audit"])
async def list_unsettled(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    cursor: Annotated[
        str | None, QueryParameter(pattern=OPERATION, description="From `next_cursor`: an operation.")
    ] = None,
    limit: Limit = 100,
) -> s.UnsettledsBody:
    """List operations without a proven outcome: open ones, those that are read back, and those read back in vain."""
    found, after = await governance.trail.unsettled(caller, cursor or "", limit)
    now = time.time()
    return s.UnsettledsBody([shapes.unsettled(item, now) for item in found], after)


@post("/v1/audit/holds", operation_id="placeHold", opt={"action": "audit:hold"}, tags=["audit"])
async def place_hold(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], data: JSONBody[s.HoldRequest]
) -> s.HoldBody:
    """Keep the events of a model, or of a registry, from being pruned, until the hold is lifted."""
    return shapes.hold(await governance.holds.place(caller, data.registry, data.model or "", data.reason))


@get("/v1/audit/holds", operation_id="listHolds", opt={"action": "audit:read"}, tags=["audit"])
async def list_holds(caller: NamedDependency[Caller], governance: NamedDependency[Governance]) -> s.HoldsBody:
    """List the legal holds in force."""
    return s.HoldsBody([shapes.hold(item) for item in await governance.holds.list(caller)])


@delete("/v1/audit/holds/{hold_id:str}", operation_id="liftHold", opt={"action": "audit:hold"}, tags=["audit"])
async def lift_hold(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], hold_id: FromPath[str]
) -> None:
    """Lift a legal hold; its events are pruned when they are old."""
    await governance.holds.lift(caller, hold_id)


def _filters(type_: str | None, **given: Any) -> dict[str, Any]:
    """Give the filters of a request.

    Raises:
        InvalidRequest: nothing can ever pass one of them: an empty page would read as "it did not happen".
    """
    if type_ is not None:
        given = _with_type(given, type_)
    _check_known("phase", given["phase"], PHASES)
    _check_known("outcome", given["outcome"], OUTCOMES)
    _check_known("action", given["action"], EVENT_ACTIONS)
    return {name: value for name, value in given.items() if value is not None}


def _with_type(given: dict[str, Any], type_: str) -> dict[str, Any]:
    """Take a `type` apart: it says action and phase."""
    name, _, phase = type_.removeprefix(_TYPE).rpartition(".")
    action = name.replace(".", ":", 1)
    if not type_.startswith(_TYPE) or action not in EVENT_ACTIONS or phase not in PHASES:
        message = f"type={type_[:100]} is unknown; it is {_TYPE}<object>.<verb>.<phase>, as in an event's `type`."
        raise InvalidRequest(message)
    for field, value in (("action", action), ("phase", phase)):
        if given[field] not in (None, value):
            message = f"type={type_[:100]} and {field}={given[field][:100]} exclude each other; leave one out."
            raise InvalidRequest(message)
    return {**given, "action": action, "phase": phase}


def _check_known(field: str, value: str | None, known: Iterable[str]) -> None:
    if value is not None and value not in known:
        message = f"{field}={value[:100]} is unknown; {field} is one of: {', '.join(sorted(known))}."
        raise InvalidRequest(message)


HANDLERS = (list_events, export_events, list_unsettled, place_hold, list_holds, lift_hold)
