"""Routes about the access policy: why something is allowed or denied, and who may."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.params import QueryParameter

from service.api import access_schemas as s
from service.governance import Governance
from service.model import Caller

Registry = Annotated[str, QueryParameter(max_length=1000, description="A registry's name.")]
Resource = Annotated[str, QueryParameter(max_length=4000, description="As rows write it; no pattern.")]
Action = Annotated[str, QueryParameter(max_length=1000, description="An action of the list.")]
Subject = Annotated[str | None, QueryParameter(max_length=1000, description="`user:…`, `service:…` or `group:…`.")]
Groups = Annotated[list[str] | None, QueryParameter(description="Groups of the subject's credential.")]


@get("/v1/access/explain", operation_id="explainAccess", opt={"action": "access:explain"}, tags=["access"])
async def explain(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    registry: Registry,
    resource: Resource,
    action: Action,
    subject: Subject = None,
    group: Groups = None,
) -> s.ExplanationBody:
    """Explain a decision: without `subject` the caller's own, by its credential; others' with `access:read`."""
    found = await governance.access.explain(caller, subject, group or (), registry, resource, action)
    return msgspec.convert(found.document(), s.ExplanationBody)


@get("/v1/access/who-can", operation_id="whoCan", opt={"action": "access:read"}, tags=["access"])
async def who_can(
    caller: NamedDependency[Caller],
    governance: NamedDependency[Governance],
    registry: Registry,
    resource: Resource,
    action: Action,
) -> s.WhoCanBody:
    """List the subjects of the policy who may, by which row, and those whom a row denies."""
    found = await governance.access.who_can(caller, registry, resource, action)
    return msgspec.convert(found.document(), s.WhoCanBody)


HANDLERS = (explain, who_can)
