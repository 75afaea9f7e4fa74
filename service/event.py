"""The audit event: one CloudEvents object, bounded, without secrets, in one byte form."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from service.masking import NO_MASKS, Masks
from service.model import ACTIONS, ITSELF

Event = dict[str, Any]
MAX_EVENT_BYTES = 16 << 10
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
_MAX_GROUPS = 20
_MAX_TEXT = 512
_LAST_TEXT = 120
_LAST_FINDINGS = 5
_NAMES = frozenset({"kind", "model", "new_name", "version", "environment", "alias", "stage", "key", "purpose"})
"""What says which change of what it was, and is read by sinks, owners, renames and retention."""
PHASES = frozenset({"intent", "outcome", "reconciled", "denied", "rejected", "summed", "checkpoint"})
OUTCOMES = frozenset({"succeeded", "failed", "unknown", "denied", "rejected"})
EVENT_ACTIONS = ACTIONS | {
    "authentication:fail",
    "request:refuse",
    "request:limit",
    "token:exchange",
    "environment:drift",
    "environment:revert",
    "audit:checkpoint",
    "audit:prune",
    "environment:conflict",
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


def of_the_record(action: str, phase: str, reason: str = "", **more: Any) -> dict[str, Any]:
    """Give the data of an event that the gateway makes by itself about its record."""
    return {
        **dict.fromkeys(("model", "version", "environment", "verdict")),
        "phase": phase,
        "operation": str(uuid.uuid4()),
        "outcome": "succeeded",
        "actor": {"subject": ITSELF, "groups": [], "acting_for": None, "issuer": "", "credential": ""},
        "action": action,
        "resource": "audit",
        "registry": "",
        "reason": reason,
        **more,
    }


def build_event(
    action: str,
    phase: str,
    data: Mapping[str, Any],
    source: str,
    now: float,
    subject: str,
    masks: Masks = NO_MASKS,
    beside: Any = None,
) -> Event:
    """Build one CloudEvent without secrets, cut to 16 KiB: facts of findings go first, then long texts.

    What is sensitive *beside* it, in the message that it is about, is kept out of its texts too.
    """
    masked = masks.document({"subject": subject, "data": data}, beside)
    event = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": source,
        "type": f"registry-gateway.{action.replace(':', '.')}.{phase}",
        "time": shown_time(now),
        "subject": _cut(masked["subject"]),
        "datacontenttype": "application/json",
        "data": masked["data"],
    }
    for shrink in (_with_few_groups, _without_facts, _with_short_texts, _core, _last):
        if len(canonical_json(event)) <= MAX_EVENT_BYTES - 512:  # room for sequence and hash
            break
        event["data"] = shrink(event["data"])
    return event


def canonical_json(document: Any) -> bytes:
    """Give the one byte form of *document*: sorted keys, no spaces, ASCII, control characters escaped."""
    return _ENCODER.encode(document).encode()


def shown_time(now: float) -> str:
    """Give a time as events say it."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


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
    """Cut *text* so that its JSON has at most about *limit* bytes, and name the whole; a character can take twelve."""
    kept = text[:limit]
    while len(json.dumps(kept)) - 2 > limit:
        kept = kept[: len(kept) * 3 // 4]
    if len(kept) == len(text):
        return text
    return f"{kept}…(cut, {len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()})"


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


def _last(data: Any) -> Any:
    """Keep who did what to what, and the verdict: everything else is named by its length and sha256."""
    verdict = data.get("verdict")
    findings = [
        {
            **{name: _last_of(value) for name, value in item.items()},
            "rule": _cut(item["rule"], 60),
            "because": _cut(item["because"], 60),
            "missing": [],
            "facts": {},
            "self_reported": [],
        }
        for item in (verdict or {}).get("findings", ())[:_LAST_FINDINGS]
    ]
    actor = {name: _cut(item, _LAST_TEXT) for name, item in data["actor"].items() if isinstance(item, str)}
    kept = {
        **{name: _last_of(item) for name, item in list(data.items())[:60]},
        **{name: data[name] for name in ("facts", "verdicts") if name in data and not data[name]},
        **{name: data[name] for name in ("record",) if name in data},
        "actor": {**data["actor"], **actor, "groups": [], "claims": {}},
        "cut": True,
    }
    if isinstance(change := data.get("change"), dict):
        kept["change"] = {name: _name_of(name, item) for name, item in list(change.items())[:20]}
    if data.get("model"):
        kept["model"] = _cut(data["model"])
    if "notes" in data:
        kept["notes"] = [_cut(note, _LAST_TEXT) for note in data["notes"]]
    if "verdict" in data:
        kept["verdict"] = verdict and {
            **{name: _last_of(item) for name, item in verdict.items()},
            "findings": findings,
            "stale_approvals": [],
        }
    return kept


def _name_of(name: str, value: Any) -> Any:
    return _cut(value) if name in _NAMES and isinstance(value, str) else _last_of(value)


def _last_of(value: Any) -> Any:
    if isinstance(value, str):
        return _cut(value, _LAST_TEXT)
    if isinstance(value, dict | list | tuple):
        raw = canonical_json(value)
        empty: Any = {} if isinstance(value, dict) else []
        if len(raw) <= _LAST_TEXT:
            return value
        named = {"cut": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        return named if empty == {} else [named]
    return value
