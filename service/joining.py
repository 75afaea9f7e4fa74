"""Answers a call with what an equal operation, proved by the reconciler, has made."""

from __future__ import annotations

from typing import Any

from service.backend import Backend
from service.change import (
    Change,
    ModelCreate,
    ModelRename,
    ModelUpdate,
    Promotion,
    StageSet,
    VersionCreate,
    VersionUpdate,
)
from service.keeping import Journal
from service.model import Answer, Finding, PromotionResult, Verdict
from service.unsettled import Outcome


async def read_back(backend: Backend, journal: Journal, change: Change | None, operation: str, done: Outcome) -> Answer:
    """Give the RPC's own answer for *operation*, which was *done*, as the registry shows it now."""
    if isinstance(change, ModelCreate | ModelUpdate | ModelRename):
        name = change.new_name if isinstance(change, ModelRename) else change.model
        return Answer.of({"registered_model": dict((await backend.get_model(name)).native)})
    if isinstance(change, VersionCreate | VersionUpdate | StageSet):
        number = done.version if isinstance(change, VersionCreate) else change.version
        return Answer.of({"model_version": dict((await backend.get_version(change.model, number)).native)})
    if isinstance(change, Promotion):
        return Answer(200, promotion=await _promotion(backend, journal, change, operation))
    return Answer.of({})  # aliases, tags and deletions


async def _promotion(backend: Backend, journal: Journal, change: Promotion, operation: str) -> PromotionResult:
    events = await journal.operation_events(operation)
    intent: dict[str, Any] = next(event["data"] for event in events if event["data"]["phase"] == "intent")
    verdict = intent["verdict"] or {}
    version = str(change.version or intent["version"])
    return PromotionResult(
        id=operation,
        state="succeeded",
        dry_run=False,
        before=(intent["before"] or {}).get("version"),
        after=version,
        verdict=Verdict(
            bool(verdict.get("allowed")),
            verdict.get("rules_digest", ""),
            tuple(
                Finding(**{**item, "missing": tuple(item["missing"]), "self_reported": tuple(item["self_reported"])})
                for item in verdict.get("findings", ())
            ),
            verdict.get("mode", "enforce"),
            tuple(verdict.get("stale_approvals", ())),
            verdict.get("artifact_digest"),
        ),
        version=await backend.get_version(change.model, version),
    )
