"""Reads the grants of a Unity Catalog server, or an export of them, and says them in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from service.estates.granting import Grants, can_be, listed
from service.estates.reading import Ask, pages

_BASE = "/api/2.1/unity-catalog"
_READ = frozenset({"EXECUTE", "ALL PRIVILEGES"})
_CREATE = frozenset({"CREATE MODEL", "ALL PRIVILEGES"})
_NEEDED_ONLY = frozenset({"USE CATALOG", "USE SCHEMA"})
_METASTORE = "metastore"
_ADMIN = "admin"
"""The open-source server's first user."""


@dataclass(frozen=True, slots=True)
class Securable:
    """Something that has grants: a catalog, a schema or a model."""

    kind: str
    name: str
    """Its full name, with dots."""
    owner: str = ""
    privileges: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By principal."""


async def read(ask: Ask) -> list[Securable]:
    """Read everything that can matter to models.

    Raises:
        BadConfiguration: the server refuses.
    """
    found = []
    for catalog in await pages(ask, f"{_BASE}/catalogs", "catalogs"):
        name = catalog["name"]
        found.append(await _securable(ask, "catalog", name, catalog))
        for schema in await pages(ask, f"{_BASE}/schemas", "schemas", catalog_name=name):
            full = f"{name}.{schema['name']}"
            found.append(await _securable(ask, "schema", full, schema))
            inside = {"catalog_name": name, "schema_name": schema["name"]}
            for model in await pages(ask, f"{_BASE}/models", "registered_models", **inside):
                name_of_model = f"{full}.{model['name']}"
                found.append(await _securable(ask, "registered_model", name_of_model, model))
    return found


async def _securable(ask: Ask, kind: str, name: str, info: Mapping[str, Any]) -> Securable:
    answer = await ask(f"{_BASE}/permissions/{kind}/{quote(name, safe='.')}")
    return securable(kind, name, str(info.get("owner") or ""), answer or {})


def securable(kind: str, name: str, owner: str, answer: Mapping[str, Any]) -> Securable:
    """Read one answer of ``GET /permissions/{kind}/{name}``; Databricks writes ``USE_SCHEMA`` for ``USE SCHEMA``."""
    privileges = {
        item["principal"]: frozenset(str(p).replace("_", " ") for p in item["privileges"])
        for item in answer.get("privilege_assignments") or ()
    }
    return Securable(kind, name, owner, privileges)


def exported(document: Mapping[str, Any]) -> list[Securable]:
    """Read an export: ``{"<kind>/<full name>": {"owner": …, "privilege_assignments": […]}}``.

    Raises:
        KeyError, TypeError, AttributeError, ValueError: it has another shape.
    """
    found = []
    for key, answer in document.items():
        kind, _, name = key.partition("/")
        if kind not in (_METASTORE, "catalog", "schema", "registered_model") or not name:
            raise ValueError(key)
        found.append(securable(kind, name, str(answer.get("owner") or ""), answer))
    return found


def grants_of(found: Sequence[Securable], registry: str) -> Grants:
    """Say the grants in rows on ``models/{catalog.schema.model}``; those of a catalog or schema hold below it, too."""
    made = Grants(registry)
    made.head = [
        f"Rows for the grants of a Unity Catalog server, for the registry {registry}.",
        "A principal without @ is taken for a group, admin excepted. Tables, volumes and functions have no rows.",
        "Promotions, approvals, evidence and the audit trail are the gateway's own: add rows for those who need them.",
    ]
    by_name = {item.name: item for item in found}
    for item in found:
        if item.kind == _METASTORE:
            continue
        holders = set(item.privileges) | ({item.owner} if item.owner else set())
        for principal in sorted(holders):
            person = "@" in principal or principal == _ADMIN
            subject = f"user:{principal}" if person else f"group:{principal}"
            if not can_be(subject):
                made.head.append(f"Left out: {principal!r}, whom no row can name.")
                continue
            _one(made, item, subject, principal, by_name)
    return made


def _one(made: Grants, item: Securable, subject: str, principal: str, by_name: Mapping[str, Securable]) -> None:
    name = item.name if item.kind == "registered_model" else f"{item.name}.*"
    held = item.privileges.get(principal, frozenset())
    if item.owner == principal:
        made.level(subject, "models", name, "MANAGE")
        if item.kind != "registered_model":
            made.allow(subject, f"models/{name}", "model:create")
            made.note(subject, f"it owns the {item.kind} {item.name}: to grant, and to manage what is no model")
    used = held & (_READ | (_CREATE if item.kind != "registered_model" else frozenset()))
    missing = _missing(item, principal, by_name)
    if used and missing:
        made.note(
            subject, f"{listed(used)} on the {item.kind} {item.name} has no effect without {' and '.join(missing)}"
        )
    elif used:
        if held & _READ:
            made.level(subject, "models", name, "READ")
        if item.kind != "registered_model" and held & _CREATE:
            made.allow(subject, f"models/{name}", "model:create")
            made.note(subject, "who creates a model owns it: it needs rows of its own for its versions")
    others = held - used - _NEEDED_ONLY
    if others:
        made.note(subject, f"{listed(others)} on the {item.kind} {item.name}: nothing of models")


def _missing(item: Securable, principal: str, by_name: Mapping[str, Securable]) -> list[str]:
    """Name what is needed above *item* and not there; Unity Catalog's grants are inherited downwards."""
    parts = item.name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    missing = []
    for privilege, depth in (("USE CATALOG", 1), ("USE SCHEMA", 2)):
        places = [by_name[name] for name in above[: max(depth, 1)] if name in by_name]
        holds = any(
            privilege in place.privileges.get(principal, ())
            or "ALL PRIVILEGES" in place.privileges.get(principal, ())
            or place.owner == principal
            for place in places
        )
        needed = depth == 1 or item.kind == "registered_model"
        if needed and not holds:
            missing.append(f"{privilege} on {'.'.join(parts[:depth])}")
    return missing
