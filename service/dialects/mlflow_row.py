"""What one RPC means: a row of the MLflow dialect's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from service.change import Change
from service.model import Listing, Need, Record
from service.strict import check_length, check_text

Message = Mapping[str, Any]
EACH, SUMMED = Record.EACH, Record.SUMMED


class Body(Enum):
    """How the body of a request is read."""

    JSON = "json"
    BYTES = "bytes"
    """An artifact: streamed, never held."""
    OTLP = "otlp"
    """OpenTelemetry's ExportTraceServiceRequest (see `service.dialects.otlp`)."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one RPC means."""

    needs: Callable[[Message], tuple[Need, ...]]
    record: Record = Record.NONE
    change: Callable[[Message], Change] | None = None
    listing: Listing | None = None
    experiments: str = ""
    """The repeated field of experiment identifiers, cut down to the readable ones."""
    traces: str = ""
    """The repeated field of trace identifiers, cut down to the readable ones."""
    max_body_bytes: int = 1 << 20
    body: Body = Body.JSON
    streams: bool = False
    """The answer is a file, which is passed on as it comes."""


def text(message: Message, field: str) -> str:
    """Return the string *field* of *message*, which must be there.

    Raises:
        InvalidRequest: missing, empty or with a control character.
    """
    return check_text(str(message.get(field, "")), field)


def existing(message: Message, field: str, action: str) -> str:
    """Return the name in *field* of something that may exist since before the gateway.

    Whatever its characters are, it can be read, renamed and deleted; other writes ask for a printable one.
    """
    if action.rpartition(":")[2] in ("read", "rename", "delete"):
        return check_length(str(message.get(field, "")), field)
    return text(message, field)


def nothing(_: Message) -> tuple[Need, ...]:
    """Need nothing beforehand: the answer is cut down to what the caller may read."""
    return ()
