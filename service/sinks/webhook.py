"""A webhook: signed messages in MLflow's words where MLflow has some, and CloudEvents in ours where it has not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from service.delivery.ports import Sent
from service.event import Event, canonical_json
from service.sinks.filters import Filter
from service.sinks.mlflow_shapes import Aliases, Message, body_of, messages_of
from service.sinks.posting import Poster
from service.sinks.signing import signature_headers

PREFIX = "webhook:"


class Webhook:
    """Sends the events that its filter names to one URL, signed."""

    def __init__(
        self,
        identifier: str,
        poster: Poster,
        secrets: Sequence[Callable[[], str]],
        chosen: Filter,
        aliases_of: Aliases,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Send by *poster* what is *chosen*, signed with each of *secrets*, the newest first."""
        self.id = identifier
        self.name = PREFIX + identifier
        self.chosen = chosen
        self.about = chosen.described(poster.origin)
        self.poster = poster
        self._secrets = tuple(secrets)
        self._aliases_of = aliases_of
        self._now = now

    def wants(self, event: Event) -> bool:
        """Tell whether *event* is sent."""
        return self.chosen.about(event) and (self.chosen.named(event) or bool(self._messages(event)))

    async def send(self, event: Event) -> Sent:
        """Send what is told of *event*; MLflow has a message for each alias, and all of them have to be taken."""
        messages = self._messages(event)
        if not messages:
            return await self._post(event["id"], canonical_json(event), "application/cloudevents+json")
        sent = Sent()
        for number, message in enumerate(messages):
            identifier = event["id"] if number == 0 else f"{event['id']}.{number + 1}"
            sent = await self._post(identifier, canonical_json(body_of(event, message)), "application/json")
            if sent.problem:
                return sent
        return sent

    def _messages(self, event: Event) -> list[Message]:
        return [message for message in messages_of(event, self._aliases_of) if self.chosen.names(message[0])]

    async def _post(self, identifier: str, body: bytes, kind: str) -> Sent:
        secrets = [secret() for secret in self._secrets]
        signed = signature_headers(secrets, identifier, int(self._now()), body)
        return await self.poster.post(body, {"Content-Type": kind, **signed})

    async def close(self) -> None:
        """Close the connections."""
        await self.poster.close()
