"""A seal: a version that must stay what it is, and which calls write to what is behind it."""

from __future__ import annotations

import dataclasses
from enum import Enum

from service.change import OfArtifact, OfLoggedModel, OfRun, OfTraces
from service.errors import Busy, Conflict
from service.model import Call
from service.ownership import parse_artifact_path
from service.promotion.gate import Environment

_WRITES = frozenset({"run:update", "run:delete", "artifact:write", "artifact:delete"})


class Standing(Enum):
    """What a version is in its environment."""

    LIVE = "live in"
    APPROVED = "approved for"
    JUDGED = "being judged for"
    """Not live or approved yet: a write has to wait."""
    ELSEWHERE = "being judged by another replica for"


_ENDS = {
    Standing.LIVE: "another version is live there or it is taken down",
    Standing.APPROVED: "the approval expires or is revoked",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Seal:
    """A version that must stay what it is, and what stands behind it."""

    registry: str
    model: str
    environment: Environment
    version: str
    behind: frozenset[str]
    """Identifiers of runs and logged models."""
    standing: Standing
    expires: float | None = None

    def refuse(self, what: str) -> None:
        """Raise the refusal of a write to *what*, which belongs to the version.

        Raises:
            Conflict: it is sealed. Busy: it is being judged.
        """
        version = f"version {self.version} of {self.model!r}, which is {self.standing.value} {self.environment.name!r}"
        if self.standing in (Standing.JUDGED, Standing.ELSEWHERE):
            message = f"{what} {version}; nothing was forwarded. Try again."
            raise Busy(message)
        end = _ENDS[self.standing]
        message = f"{what} {version}, and is sealed until {end}. Log to a new run and register a new version."
        raise Conflict(message)


def only_ends_run(call: Call, environment: Environment) -> bool:
    """Tell whether a call ends a run and rewrites nothing that rules read: a pipeline may promote inside its run.

    A new name is a new tag ``mlflow.runName``.
    """
    if call.name != "updateRun" or call.request is None:
        return False
    message = call.request.message
    rewrites = message.get("run_name") or ("status" in message and environment.reads("run", "status"))
    return not rewrites


def written(call: Call) -> list[str]:
    """List the runs and logged models that a call writes to, in the spelling that a database may take for the same."""
    return [
        _identifier(need.resource).lower()
        for need in call.needs
        if need.action in _WRITES and isinstance(need.resource, OfRun | OfLoggedModel | OfArtifact)
    ]


def _identifier(where: OfRun | OfLoggedModel | OfArtifact) -> str:
    found = parse_artifact_path(where.path)[1] if isinstance(where, OfArtifact) else where
    if isinstance(found, OfTraces):
        return found.trace_ids[0]
    return found.run_id if isinstance(found, OfRun) else found.model_id
