"""Events in the forms in which they leave the gateway: JSON Lines, CSV, OCSF."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from service.ocsf import api_activity

_Path = tuple[str, ...]
CSV_COLUMNS: Mapping[str, _Path] = {
    "sequence": ("data", "sequence"),
    "time": ("time",),
    "type": ("type",),
    "phase": ("data", "phase"),
    "operation": ("data", "operation"),
    "outcome": ("data", "outcome"),
    "actor": ("data", "actor", "subject"),
    "acting_for": ("data", "actor", "acting_for"),
    "issuer": ("data", "actor", "issuer"),
    "credential": ("data", "actor", "credential"),
    "address": ("data", "actor", "address"),
    "call": ("data", "call"),
    "action": ("data", "action"),
    "registry": ("data", "registry"),
    "resource": ("data", "resource"),
    "model": ("data", "model"),
    "version": ("data", "version"),
    "environment": ("data", "environment"),
    "allowed": ("data", "decision", "allowed"),
    "row": ("data", "decision", "row"),
    "verdict": ("data", "verdict", "allowed"),
    "reason": ("data", "reason"),
    "detail": ("data", "detail"),
    "status": ("data", "status"),
    "latency_ms": ("data", "latency_ms"),
    "id": ("id",),
    "source": ("source",),
}
"""The header of CSV, and where in an event each cell is from. New columns come at the end."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""A cell that begins so is a formula to a spreadsheet, and a caller may have written it."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form of export."""

    media_type: str
    suffix: str
    head: str
    """What comes before the first event."""
    line: Callable[[str], str]
    """Gives one event, from its canonical JSON."""


def _json_line(body: str) -> str:
    return body + "\n"


def _csv_line(body: str) -> str:
    event = msgspec.json.decode(body)
    return _row(_cell(_at(event, path)) for path in CSV_COLUMNS.values())


def _ocsf_line(body: str) -> str:
    return json.dumps(api_activity(msgspec.json.decode(body)), separators=(",", ":"), ensure_ascii=True) + "\n"


def _row(cells: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)  # RFC 4180, section 2
    return out.getvalue()


def _at(event: Any, path: _Path) -> Any:
    for name in path:
        event = event.get(name) if isinstance(event, dict) else None
    return event


def _cell(value: Any) -> str:
    """Give a cell: text is no formula, whatever a caller wrote."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return "" if value is None else json.dumps(value)


FORMS: Mapping[str, Form] = {
    "jsonl": Form("application/jsonl", "jsonl", "", _json_line),
    "csv": Form("text/csv; header=present", "csv", _row(CSV_COLUMNS), _csv_line),
    "ocsf": Form("application/jsonl", "ocsf.jsonl", "", _ocsf_line),
}
