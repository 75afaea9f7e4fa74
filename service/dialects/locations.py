"""Tags of a trace that say where it is stored: MLflow's server reads and deletes what they name, unchecked."""

from __future__ import annotations

from collections.abc import Iterable

from service.errors import InvalidRequest
from service.strict import folded

_LOCATIONS = frozenset(
    folded(key) for key in ("mlflow.artifactLocation", "mlflow.trace.spansLocation", "mlflow.trace.archiveLocation")
)


def refuse_locations(keys: Iterable[str]) -> None:
    """Refuse *keys* that are such tags, in any spelling that a database could take for the same.

    Raises:
        InvalidRequest: one is. Nothing was forwarded.
    """
    for key in keys:
        if folded(key.strip()) in _LOCATIONS:
            problem = f"The tag {key[:100]!r} says where the trace is stored; it cannot be set or deleted."
            raise InvalidRequest(problem)
