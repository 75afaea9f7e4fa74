"""CloudEvents over HTTP: each event as it is in the journal, in structured mode (CloudEvents HTTP binding 1.0.2)."""

from __future__ import annotations

from collections.abc import Callable

from service.delivery.ports import Sent
from service.event import Event, canonical_json
from service.sinks.filters import Filter
from service.sinks.posting import Poster

_KIND = "application/cloudevents+json; charset=UTF-8"


class CloudEvents:
    """Posts the events that its filter names to one URL."""

    def __init__(self, identifier: str, poster: Poster, chosen: Filter, token: Callable[[], str] | None = None) -> None:
        """Send by *poster* what is *chosen*, with *token* as the bearer of the request."""
        self.id = identifier
        self.name = f"cloudevents:{identifier}"
        self.chosen = chosen
        self.about = chosen.described(poster.origin)
        self.poster = poster
        self._token = token

    def wants(self, event: Event) -> bool:
        """Tell whether *event* is sent."""
        return self.chosen.about(event) and self.chosen.named(event)

    async def send(self, event: Event) -> Sent:
        """Send *event*."""
        headers = {"Content-Type": _KIND}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token()}"
        return await self.poster.post(canonical_json(event), headers)

    async def close(self) -> None:
        """Close the connections."""
        await self.poster.close()
