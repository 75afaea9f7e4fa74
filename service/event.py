"""The audit event: one CloudEvents object, bounded, in one byte form."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from service.model import ACTIONS

Event = dict[str, Any]
MAX_EVENT_BYTES = 16 << 10
_MAX_GROUPS = 20
_MAX_TEXT = 512
PHASES = frozenset({"intent", "outcome", "reconciled", "denied", "rejected", "summed"})
OUTCOMES = frozenset({"succeeded", "failed", "unknown", "denied", "rejected"})
EVENT_ACTIONS = ACTIONS | {
    "authentication:fail",
    "request:refuse",
    "request:limit",
    "token:exchange",
    "environment:drift",
    "environment:revert",
}
"""What events are about: the actions of the policy, and what the gateway finds or does by itself."""


class Asked(NamedTuple):
    """One thing that the policy was asked."""

    only_denials: bool
    """Only a row that denies it would have refused; none had to allow it."""
    action: str
    resource: str


def documents_of(asked: Iterable[Asked]) -> list[dict[str, Any]]:
    """Give the JSON of what was asked: what had to be allowed comes first, in the order of asking."""
    ordered = sorted(asked, key=lambda item: item.only_denials)
    return [{"action": item.action, "resource": item.resource, "only_denials": item.only_denials} for item in ordered]


def build_event(action: str, phase: str, data: Mapping[str, Any], source: str, now: float, subject: str) -> Event:
    """Build one CloudEvent, cut to 16 KiB: facts of findings go first, then long texts."""
    event = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": source,
        "type": f"registry-gateway.{action.replace(':', '.')}.{phase}",
        "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "subject": subject[:_MAX_TEXT],
        "datacontenttype": "application/json",
        "data": dict(data),
    }
    for shrink in (_with_few_groups, _without_facts, _with_short_texts, _core):
        if len(canonical_json(event)) <= MAX_EVENT_BYTES - 512:  # room for sequence and hash
            break
        event["data"] = shrink(event["data"])
    return event


def canonical_json(document: Any) -> bytes:
    """Give the one byte form of *document*: sorted keys, no spaces, ASCII, control characters escaped."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _with_few_groups(data: Any) -> Any:
    """Keep 20 groups, and say how many more there were: a token can bring hundreds."""
    groups = list(data.get("actor", {}).get("groups", ()))
    if len(groups) <= _MAX_GROUPS:
        return data
    kept = {"groups": groups[:_MAX_GROUPS], "more_groups": len(groups) - _MAX_GROUPS}
    return {**data, "actor": {**data["actor"], **kept}}


def _without_facts(data: Any) -> Any:
    def bare(verdict: Any) -> Any:
        return verdict and {**verdict, "findings": [{**item, "facts": {}} for item in verdict["findings"]]}

    return _with_verdicts(data, bare)


def _with_verdicts(data: Any, change: Callable[[Any], Any]) -> Any:
    verdicts = {name: change(verdict) for name, verdict in data.get("verdicts", {}).items()}
    return {**data, "verdict": change(data.get("verdict")), "verdicts": verdicts}


def _with_short_texts(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value)
    if isinstance(value, dict):
        return {key[:_MAX_TEXT]: _with_short_texts(item) for key, item in list(value.items())[:50]}
    if isinstance(value, list | tuple):
        return [_with_short_texts(item) for item in value[:50]]
    return value


def _cut(text: str, limit: int = _MAX_TEXT) -> str:
    """Cut *text* so that its JSON has at most about *limit* bytes; a character can take twelve."""
    kept = text[:limit]
    while len(json.dumps(kept)) - 2 > limit:
        kept = kept[: len(kept) * 3 // 4]
    return text if len(kept) == len(text) else f"{kept}…(cut, {len(text)} characters)"


def _core(data: Any) -> Any:
    """Keep what every event must say, within any bound: lists shrink to their first items, facts are gone."""

    def core(verdict: Any) -> Any:
        findings = [
            {**item, "because": _cut(item["because"], 150), "missing": [_cut(m, 60) for m in item["missing"][:3]]}
            for item in (verdict or {}).get("findings", ())[:20]
        ]
        return verdict and {**verdict, "findings": findings}

    return {
        **_with_verdicts(data, core),
        "verdicts": {},
        "facts": dict(list(data.get("facts", {}).items())[:5]),
        "actor": {**data["actor"], "groups": list(data["actor"].get("groups", ()))[:5], "claims": {}},
        "notes": list(data.get("notes", ()))[:3],
        "asked": list(data.get("asked", ()))[:5],
        "would_deny": list(data.get("would_deny", ()))[:5],
        "cut": True,
    }
