"""Writes the marks of an environment in the registry: all of them, or what was written is taken back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from service.audit import Operation
from service.backend import Backend
from service.effects import MadeLive, TakenDown
from service.errors import Busy, GatewayError, OutcomeUnknown
from service.guard import live_version, marked_versions
from service.held import still_held
from service.model import Verdict
from service.promotion.environments import Environments
from service.promotion.gate import Environment, Mark
from service.provenance import behind, find_origin
from service.records import LivePeriod, ModelVersion, RegisteredModel

_MAX_TAKEN = 1_000


@dataclass(frozen=True, slots=True)
class Marking:
    """Which marks are written on which version, and the model as it was before."""

    marks: list[Mark]
    model: RegisteredModel
    candidate: ModelVersion


def missing_marks(
    environments: Environments, registry: str, model: RegisteredModel, candidate: ModelVersion, environment: Environment
) -> list[Mark]:
    """List the marks that are not on the candidate yet.

    A version has one stage: the one of a later environment in which it is live stays.
    """
    keeps_stage = any(
        environments.later(other, environment) and live_version(model, other) == candidate.version
        for other in staged(environments, registry, candidate, environment)
    )
    return [
        mark
        for mark in environment.marks
        if marked_versions(model, mark) != (candidate.version,) and not (mark.kind == "stage" and keeps_stage)
    ]


def staged(
    environments: Environments, registry: str, candidate: ModelVersion, environment: Environment
) -> list[Environment]:
    """List the other environments that the candidate's present stage marks."""
    return [
        other
        for other in environments.of(registry, candidate.model)
        if other.name != environment.name and other.marked_by("stage", candidate.stage)
    ]


async def write_mark(backend: Backend, model: str, mark: Mark, version: str) -> None:
    """Put one mark on *version*. Idempotent."""
    if mark.kind == "alias":
        await backend.set_alias(model, mark.value, version)
    else:
        await backend.set_stage(model, version, mark.value)


async def write_marks(backend: Backend, marking: Marking, operation: Operation) -> None:
    """Put every mark on the candidate; if one fails, those before it are taken back.

    Raises:
        OutcomeUnknown: a mark was sent and no answer came, or one could not be taken back.
        GatewayError: a mark was refused; what is live has not changed.
    """
    written: list[Mark] = []
    for mark in marking.marks:
        if written:
            await _still_alone()
        try:
            await write_mark(backend, marking.model.name, mark, marking.candidate.version)
        except OutcomeUnknown:
            raise
        except GatewayError as error:
            if written:
                await _restore(backend, marking, written, operation, error)
            raise
        written.append(mark)


async def _still_alone() -> None:
    """Return if no other replica may change the model by now: this process may have stood still since the last mark.

    Raises:
        OutcomeUnknown: one may. What is left is the reconciler's.
    """
    try:
        await still_held()
    except Busy as error:
        message = "The lock that replicas share was lost between two marks; the others are left to the reconciler."
        raise OutcomeUnknown(message) from error


async def take_marks(backend: Backend, model: RegisteredModel, environment: Environment) -> list[str]:
    """Take every mark of *environment* off *model*, until the registry shows none; return what was taken.

    A stage can have several versions, of which the registry shows the newest only.

    Raises:
        OutcomeUnknown: one was taken, and another was not.
    """
    taken: list[str] = []
    try:
        for _ in range(_MAX_TAKEN):
            left = [(mark, version) for mark in environment.marks for version in marked_versions(model, mark)]
            if not left:
                return taken
            for mark, version in left:
                if taken:
                    await _still_alone()
                if mark.kind == "alias":
                    await backend.delete_alias(model.name, mark.value)
                else:
                    await backend.set_stage(model.name, version, "Archived")
                taken.append(f"{mark.kind} {mark.value} of version {version}")
            model = await backend.get_model(model.name)
    except GatewayError as error:
        if taken:
            message = f"Taken: {', '.join(taken)}; another mark was not: {error.detail}"
            raise OutcomeUnknown(message) from error
        raise
    message = f"After {_MAX_TAKEN} rounds there are still marks; something else writes beside the gateway."
    raise OutcomeUnknown(message)


async def _restore(
    backend: Backend, marking: Marking, written: list[Mark], operation: Operation, cause: GatewayError
) -> None:
    """Take written marks back, so that an environment's marks move together or not at all.

    Raises:
        OutcomeUnknown: they could not be taken back; the reconciler looks at it.
    """
    name, candidate = marking.model.name, marking.candidate
    for mark in written:
        before = marked_versions(marking.model, mark)
        try:
            if before:
                await write_mark(backend, name, mark, before[-1])
            elif mark.kind == "alias":
                await backend.delete_alias(name, mark.value)
            if mark.kind == "stage":
                await backend.set_stage(name, candidate.version, candidate.stage)
        except GatewayError as error:
            message = f"The {mark.kind} {mark.value} was written, another mark was not, and it was not taken back."
            raise OutcomeUnknown(message) from error
        operation.notes.append(f"compensated: the {mark.kind} {mark.value} is on {before or 'nothing'} again")
    operation.notes.append(f"because: {cause.detail}")


def ended_elsewhere(
    environments: Environments, registry: str, model: RegisteredModel, names: Iterable[str], at: float
) -> list[TakenDown]:
    """Say in which of the environments *names* nothing is live any more, since a promotion took their stage."""
    ended = tuple(
        other.name
        for other in environments.of(registry, model.name)
        if other.name in names and not live_version(model, other)
    )
    return [TakenDown(registry, model.name, ended, at)] if ended else []


class JudgedAs(TypedDict):
    """What `made_live` takes from a verdict."""

    passed: bool
    artifact_digest: str | None


def judged_as(verdict: Verdict | None) -> JudgedAs:
    """Say of a verdict what is kept with the period that it began; without one nothing passed."""
    return {
        "passed": verdict is not None and verdict.passed,
        "artifact_digest": verdict.artifact_digest if verdict else None,
    }


async def made_live(
    backend: Backend,
    environment: Environment,
    version: ModelVersion,
    *,
    since: float,
    by: str,
    operation: str,
    reason: str,
    kind: str = "promotion",
    known: frozenset[str] | None = None,
    passed: bool = True,
    artifact_digest: str | None = None,
) -> MadeLive:
    """Say for the journal that *version* is live in *environment*, and whether its gate was open for these files.

    What stands behind it is *known*, or looked up where the environment seals.
    """
    if known is None:
        known = behind(version, await find_origin(backend, version)) if environment.seals else frozenset()
    return MadeLive(
        backend.name,
        version.model,
        LivePeriod(
            environment=environment.name,
            version=version.version,
            binding=version.binding,
            since=since,
            until=None,
            by=by,
            operation=operation,
            reason=reason,
            behind=tuple(sorted(known)),
            kind=kind,
            artifact_digest=artifact_digest,
            passed=passed,
            live_as=version.model,
        ),
    )
