"""What the journal says was done, by whom, and which rights that took."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from service.errors import BadConfiguration
from service.model import ACTIONS, Principal
from service.modes import Denial

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """An action on a resource of a registry."""

    registry: str
    resource: str
    action: str


@dataclass(frozen=True, slots=True)
class Past:
    """One event of the journal, or a sum of calls, as far as it is about access."""

    subject: str
    groups: frozenset[str]
    registry: str
    rights: tuple[Right, ...]
    """All that had to be allowed; the first is what the event is about."""
    unforbidden: tuple[Right, ...]
    """What no row might deny, besides."""
    denials: tuple[Denial, ...]
    """What enforcement would have refused."""
    done: int
    """So many of its calls succeeded."""
    asked: int
    """So many calls it stands for."""
    time: str
    denied: bool
    """It was refused for access."""
    by_policy: bool = True
    """Whether rows decided it, rather than what the credential is narrowed to."""
    whole: bool = True
    """All its rights are named; otherwise it was cut or merged."""

    @property
    def principal(self) -> Principal:
        """Who asked."""
        return Principal(self.subject, self.groups)


def read(events: Iterable[Event]) -> Iterator[Past]:
    """Read what is about access in *events*.

    Raises:
        BadConfiguration: an event has another shape than this version reads.
    """
    for event in events:
        try:
            found = _past(event)
        except (KeyError, TypeError, AttributeError, ValueError):
            message = f"the event {event.get('id')!r} has another shape than this version reads"
            raise BadConfiguration(message) from None
        if found is not None:
            yield found


def _past(event: Event) -> Past | None:
    data = event["data"]
    if data["action"] not in ACTIONS and not data.get("asked") and not data.get("would_deny"):
        return None  # failed authentications, refused requests, and what the gateway does by itself
    registry = data["registry"]
    asked: list[Right] = []
    unforbidden: list[Right] = []
    for item in data.get("asked", ()):
        right = Right(registry, item["resource"], item["action"])
        (unforbidden if item["only_denials"] else asked).append(right)
    denials = tuple(Denial(**item) for item in data.get("would_deny", ()))
    denied = data["phase"] == "denied"
    if (denied or "asked" not in data) and data["action"] in ACTIONS:  # what was refused is not among them
        asked.append(Right(registry, data["resource"], data["action"]))
    calls = sum(data["calls"].values()) if "calls" in data else 1
    failed = sum(data["failed"].values()) if "failed" in data else 0
    done = calls - failed if data["outcome"] == "succeeded" else 0
    names = [right.resource for right in asked]
    return Past(
        subject=data["actor"]["subject"],
        groups=frozenset(data["actor"].get("groups", ())),
        registry=registry,
        rights=tuple(dict.fromkeys(asked)),
        unforbidden=tuple(unforbidden),
        denials=denials,
        done=done,
        asked=calls,
        time=event["time"],
        denied=denied,
        by_policy=not (data.get("decision") or {}).get("beyond_scope", False),
        whole=not data.get("cut") and all(_is_whole(name) for name in names),
    )


def _is_whole(resource: str) -> bool:
    return bool(resource) and "*" not in resource and "…" not in resource
