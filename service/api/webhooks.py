"""Routes about the endpoints that events are sent to. What an endpoint is, the configuration says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter
from msgspec import Meta, Struct

from service.delivery.deliverer import State
from service.delivery.ports import Receiver
from service.governance import Governance
from service.model import Caller
from service.records import Delivery

Cursor = Annotated[str | None, QueryParameter(pattern="^[0-9]{1,18}$", description="From `next_cursor`.")]
Limit = Annotated[int, QueryParameter(ge=1, le=1000)]
Chosen = Annotated[
    Literal["pending", "delivered", "parked"] | None, QueryParameter(name="state", description="Only these.")
]
Id = Annotated[str, Meta(examples=["ci"], description="As the configuration names it.")]
Operation = Annotated[str, Meta(examples=["fc972102-32ec-4462-9414-3da6d83ca50c"])]


class WebhookBody(Struct):
    """An endpoint that events are sent to."""

    id: Id
    kind: Annotated[str, Meta(examples=["webhook"], description="`webhook` or `cloudevents`.")]
    origin: Annotated[str, Meta(examples=["https://hooks.example.com"], description="No path: it can be a secret.")]
    events: Annotated[list[str], Meta(examples=[["model_version_alias.created", "environment.promote.*"]])]
    models: Annotated[list[str], Meta(examples=[["fraud-*"]])]
    environments: Annotated[list[str], Meta(examples=[["production"]])]
    state: Annotated[str, Meta(examples=["up"], description="`up`, `failing` or `unknown`.")]
    behind: Annotated[
        int,
        Meta(
            examples=[0],
            description="Events of the journal that it has not come to, as it was written within a second.",
        ),
    ]
    pending: Annotated[int, Meta(examples=[2], description="Deliveries that are tried again, or wait behind such.")]
    parked: Annotated[int, Meta(examples=[0], description="Deliveries that were given up.")]


class WebhooksBody(Struct):
    """The endpoints that the caller may read about."""

    webhooks: list[WebhookBody]


class TestBody(Struct):
    """What became of a test message. What the receiver answered is not shown."""

    delivered: bool
    status: Annotated[int | None, Meta(examples=[204])]
    problem: Annotated[str, Meta(examples=[""])]
    milliseconds: Annotated[float, Meta(examples=[12.5])]
    operation: Operation


class DeliveryBody(Struct):
    """An event that was sent to an endpoint, or is to be sent again."""

    id: Annotated[str, Meta(examples=["0ad0e0f4-2f0c-5a52-8e2f-0b8e5c6f5b0c"])]
    event: Annotated[str, Meta(description="The event's `id`, also the `webhook-id` of the message.")]
    sequence: Annotated[int, Meta(examples=[13], description="The event's place in the journal.")]
    place: Annotated[str, Meta(examples=["main/iris"], description="Deliveries of one place go in order.")]
    state: Annotated[str, Meta(examples=["parked"], description="`pending`, `delivered` or `parked`.")]
    attempts: Annotated[int, Meta(examples=[30])]
    status: Annotated[int | None, Meta(examples=[500], description="Of the last answer.")]
    problem: Annotated[str, Meta(examples=["it answered 500"])]
    due: datetime | None
    since: Annotated[datetime, Meta(description="It is given up a day after this.")]
    ended: datetime | None


class DeliveriesBody(Struct):
    """Deliveries, newest event first."""

    deliveries: list[DeliveryBody]
    next_cursor: str | None


def _body(receiver: Receiver, state: State) -> WebhookBody:
    kind, _, name = receiver.name.partition(":")
    about = receiver.about
    return WebhookBody(
        id=name,
        kind=kind,
        origin=about.origin,
        events=list(about.events),
        models=list(about.models),
        environments=list(about.environments),
        state=state.state,
        behind=state.behind,
        pending=state.pending,
        parked=state.parked,
    )


def _delivery(item: Delivery) -> DeliveryBody:
    return DeliveryBody(
        id=item.id,
        event=item.event,
        sequence=item.sequence,
        place=item.place,
        state=item.state,
        attempts=item.attempts,
        status=item.status,
        problem=item.problem,
        due=_time(item.due) if item.state == "pending" else None,
        since=_time(item.at),
        ended=_time(item.ended_at) if item.ended_at is not None else None,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@get("/v1/webhooks", operation_id="listWebhooks", opt={"action": "none"}, tags=["webhooks"])
async def list_webhooks(caller: NamedDependency[Caller], governance: NamedDependency[Governance]) -> WebhooksBody:
    """List the endpoints that events are sent to, of those the caller may read about. Secrets are never shown."""
    return WebhooksBody([_body(*item) for item in await governance.webhooks.all(caller)])


@get("/v1/webhooks/{webhook_id:str}", operation_id="getWebhook", opt={"action": "webhook:read"}, tags=["webhooks"])
async def get_webhook(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], webhook_id: FromPath[str]
) -> WebhookBody:
    """Get an endpoint, and how its deliveries do."""
    return _body(*await governance.webhooks.get(caller, webhook_id))


@post(
    "/v1/webhooks/{webhook_id:str}/test",
    operation_id="testWebhook",
    status_code=200,
    opt={"action": "webhook:test"},
    tags=["webhooks"],
)
async def test_webhook(
    caller: NamedDependency[Caller], governance: NamedDependency[Governance], webhook_id: FromPath[str]
) -> TestBody:
    """Send one message about this test, now and once. It is recorded; the answer of the receiver is not shown."""
    tried = await governance.webhooks.test(caller, webhook_id)
    return TestBody(not tried.sent.problem, tried.sent.status, tried.sent.problem, tried.milliseconds, tried.operation)


@get(
    "/v1/webhooks/{webhook_id:str}/deliveries",
    operation_id="listDeliveries",
    opt={"action": "webhook:read", "query": {"of_state": "state"}},
    tags=["webhooks"],
)
async def list_deliveries(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    webhook_id: FromPath[str],
    of_state: Chosen = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> DeliveriesBody:
    """List deliveries, newest event first: those of the last seven days, and all that are pending or parked."""
    before = int(cursor) if cursor is not None else None
    rows = await governance.webhooks.deliveries(caller, webhook_id, of_state, before, limit + 1)
    more = str(rows[limit - 1].sequence) if len(rows) > limit else None
    return DeliveriesBody([_delivery(item) for item in rows[:limit]], more)


@post(
    "/v1/webhooks/{webhook_id:str}/deliveries/{delivery_id:str}/redeliver",
    operation_id="redeliver",
    status_code=200,
    opt={"action": "webhook:redeliver"},
    tags=["webhooks"],
)
async def redeliver(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    webhook_id: FromPath[str],
    delivery_id: FromPath[str],
) -> DeliveryBody:
    """Have an event sent again, with the same `webhook-id`; one that is still pending is 409."""
    return _delivery(await governance.webhooks.redeliver(caller, webhook_id, delivery_id))


HANDLERS = (list_webhooks, get_webhook, test_webhook, list_deliveries, redeliver)
