"""Events as OCSF 1.8.0 API Activity (class 6003): a projection for tools that read it; the record is the event."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

VERSION = "1.8.0"
_PRODUCT = {
    "name": "Registry Gateway",
    "vendor_name": "Registry Gateway",
    "version": version("registry-gateway"),
}
_CATEGORY, _CLASS = 6, 6003
_ACTIVITIES = {1: "Create", 2: "Read", 3: "Update", 4: "Delete", 99: "Other"}
_CREATE = frozenset({"create", "post", "exchange", "adopt", "request", "hold"})
_READ = frozenset({"read", "evaluate", "explain"})
_UPDATE = frozenset(
    {"update", "rename", "set", "write", "promote", "rollback", "emergency", "quarantine", "change", "revert", "drift"}
)
_DELETE = frozenset({"delete", "delete-referenced", "revoke", "retire"})
_STATUS = {"succeeded": (1, "Success"), "failed": (2, "Failure"), "denied": (2, "Failure"), "rejected": (2, "Failure")}
_SEVERITIES = {1: "Informational", 2: "Low", 3: "Medium", 4: "High"}
_NOTHING: tuple[Any, ...] = (None, [], {})
_USER, _SERVICE = (1, "User"), (4, "Service")


def api_activity(event: Mapping[str, Any]) -> dict[str, Any]:
    """Give the OCSF object of an event; what OCSF has no place for is in ``unmapped``."""
    data = event["data"]
    activity = _activity(data["action"])
    status_id, status = _STATUS.get(data["outcome"] or "", (0, "Unknown"))
    severity = _severity(data)
    found: dict[str, Any] = {
        "activity_id": activity,
        "activity_name": _ACTIVITIES[activity],
        "category_name": "Application Activity",
        "category_uid": _CATEGORY,
        "class_name": "API Activity",
        "class_uid": _CLASS,
        "type_name": f"API Activity: {_ACTIVITIES[activity]}",
        "type_uid": _CLASS * 100 + activity,
        "time": round(datetime.fromisoformat(event["time"]).timestamp() * 1000),
        "severity": _SEVERITIES[severity],
        "severity_id": severity,
        "status": status,
        "status_id": status_id,
        "status_code": None if data.get("status") is None else str(data["status"]),
        "status_detail": data.get("detail") or None,
        "message": data.get("reason") or None,
        "duration": None if data.get("latency_ms") is None else round(data["latency_ms"]),
        "metadata": _metadata(event),
        "actor": _actor(data),
        "api": {
            "operation": data.get("call") or data["action"],
            "service": {"name": data["registry"] or "registry-gateway"},
            "request": {"uid": data["operation"]},
            "response": None if data.get("status") is None else {"code": data["status"]},
        },
        "resources": [_resource(data)],
        "src_endpoint": _endpoint(data["actor"].get("address")),
        "unmapped": {
            "action": data["action"],
            "phase": data["phase"],
            "outcome": data["outcome"],
            "registry": data["registry"],
            "environment": data["environment"],
            "verdict_allowed": (data.get("verdict") or {}).get("allowed"),
            "acting_for": data["actor"].get("acting_for"),
            "previous": data.get("previous"),
        },
    }
    return {name: _without_nothing(item) for name, item in found.items() if item not in _NOTHING}


def _activity(action: str) -> int:
    verb = action.partition(":")[2]
    for number, verbs in ((1, _CREATE), (2, _READ), (3, _UPDATE), (4, _DELETE)):
        if verb in verbs:
            return number
    return 99


def _severity(data: Mapping[str, Any]) -> int:
    if data["action"] in ("environment:emergency", "environment:drift"):
        return 4
    if data["phase"] in ("denied", "rejected"):
        return 2
    return 3 if data["outcome"] == "unknown" else 1


def _metadata(event: Mapping[str, Any]) -> dict[str, Any]:
    data = event["data"]
    return {
        "version": VERSION,
        "product": _PRODUCT,
        "uid": event["id"],
        "correlation_uid": data["operation"],
        "event_code": event["type"],
        "original_time": event["time"],
        "sequence": data.get("sequence"),
        "log_name": "registry-gateway.audit",
        "log_provider": event["source"],
    }


def _actor(data: Mapping[str, Any]) -> dict[str, Any]:
    actor, decision = data["actor"], data.get("decision") or {}
    kind, name = _SERVICE if actor["subject"].startswith("service:") else _USER
    user = {
        "name": actor["subject"],
        "uid": actor["subject"],
        "type": name,
        "type_id": kind,
        "credential_uid": actor.get("credential") or None,
        "groups": [{"name": group} for group in actor.get("groups", ())],
    }
    allowed = decision.get("allowed")
    policy = {"name": decision.get("row") or None, "version": decision.get("revision") or None}
    decided = {
        "decision": None if allowed is None else "allowed" if allowed else "denied",
        "policy": policy if policy["name"] else None,
    }
    return {
        "user": user,
        "idp": {"name": actor["issuer"]} if actor.get("issuer") else None,
        "authorizations": [decided] if decided["decision"] else None,
    }


def _resource(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": data["resource"] or data["registry"] or "registry-gateway",
        "uid": f"{data['registry']}/{data['resource']}",
        "type": (data["resource"] or "").partition("/")[0] or None,
        "version": data["version"],
        "namespace": data["registry"] or None,
    }


def _endpoint(address: str | None) -> dict[str, Any]:
    try:
        return {"ip": str(ipaddress.ip_address(address or ""))}
    except ValueError:
        return {"name": address or "unknown"}


def _without_nothing(value: Any) -> Any:
    """Leave out what is not there: OCSF has no null."""
    if isinstance(value, dict):
        return {name: _without_nothing(item) for name, item in value.items() if item not in _NOTHING}
    return [_without_nothing(item) for item in value] if isinstance(value, list) else value
