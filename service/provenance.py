"""Ties a version to what it was made from: its source, the run behind it, the digest of its files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from service.backend import Backend
from service.errors import InvalidRequest, NotFound
from service.model import ModelVersion, OfRun, VersionCreate
from service.ownership import parse_artifact_path

UNVERIFIABLE = "unverifiable"
"""The digest of files that clients write to storage directly, or that are too many or too large to read."""

MAX_DIGEST_BYTES = 1 << 30
_MAX_FILES = 2_000
_MAX_HOPS = 8
_ROOT = "mlflow-artifacts:/"


@dataclass(frozen=True, slots=True)
class Origin:
    """What stands behind a source. ``run_id`` is None where the registry cannot tell."""

    run_id: str | None
    model_id: str | None
    files: str | None
    """Where the files are below the registry's artifact root, or None for storage outside it."""


async def origin_of(backend: Backend, source: str) -> Origin:
    """Follow *source* to the run and the files behind it.

    Raises:
        NotFound: it names something that does not exist.
    """
    for _ in range(_MAX_HOPS):
        scheme, _, rest = source.partition(":")
        if scheme == "models":
            name, _, version = rest.strip("/").rpartition("/")
            if not name:
                logged = await backend.get_logged_model(version)
                return Origin(logged.source_run_id or None, version, _files(logged.artifact_uri))
            source = (await backend.get_version(name, version)).source
            continue
        if scheme == "runs":
            run_id, _, path = rest.lstrip("/").partition("/")
            run = await backend.get_run(run_id)
            return Origin(run_id, None, _files(f"{run.artifact_uri.rstrip('/')}/{path}"))
        if source.startswith(_ROOT) and not source.startswith(_ROOT + "/"):
            return await _origin_of_path(backend, source.removeprefix(_ROOT))
        break
    return Origin(None, None, None)


async def _origin_of_path(backend: Backend, path: str) -> Origin:
    try:
        _, owner = parse_artifact_path(path)
    except InvalidRequest:
        return Origin(None, None, path)
    if isinstance(owner, OfRun):
        return Origin(owner.run_id, None, path)
    logged = await backend.get_logged_model(owner.model_id)
    return Origin(logged.source_run_id or None, owner.model_id, path)


def _files(uri: str) -> str | None:
    return uri.removeprefix(_ROOT) if uri.startswith(_ROOT) and not uri.startswith(_ROOT + "/") else None


async def check_run(backend: Backend, change: VersionCreate, model_id: str) -> None:
    """Refuse a version whose run or logged model is not the one its source comes from.

    Otherwise a gate would judge the metrics of one run and ship the files of another.

    Raises:
        InvalidRequest: they disagree, or cannot be shown to agree.
    """
    origin = await origin_of(backend, change.source)
    if model_id and origin.model_id is not None and model_id != origin.model_id:
        message = "model_id names another logged model than the source."
        raise InvalidRequest(message)
    if not change.run_id or origin.run_id == change.run_id:
        return
    if origin.run_id is None and origin.files is None:
        run = await backend.get_run(change.run_id)
        root = run.artifact_uri.rstrip("/") + "/"
        if root != "/" and change.source.startswith(root):
            return
    message = "run_id names another run than the one the source comes from."
    raise InvalidRequest(message)


async def run_behind(backend: Backend, version: ModelVersion) -> str | None:
    """Return the run whose metrics are this version's, or None if its run and its source disagree."""
    if not version.run_id:
        return None
    try:
        await check_run(backend, VersionCreate(version.model, version.source, version.run_id), "")
    except (InvalidRequest, NotFound):
        return None
    return version.run_id


async def artifact_digest(backend: Backend, version: ModelVersion) -> str:
    """Return sha256 over the sorted (path, sha256) of the version's files, or `UNVERIFIABLE`."""
    try:
        origin = await origin_of(backend, version.source)
    except NotFound:
        return UNVERIFIABLE
    if origin.files is None:
        return UNVERIFIABLE
    total = hashlib.sha256()
    files = await backend.list_files(origin.files, _MAX_FILES)
    if files is None or sum(size for _, size in files) > MAX_DIGEST_BYTES:
        return UNVERIFIABLE
    for path, _ in sorted(files):
        digest = hashlib.sha256()
        async for part in backend.read_file(path):
            digest.update(part)
        total.update(f"{path.removeprefix(origin.files)}\0{digest.hexdigest()}\n".encode())
    return total.hexdigest()
