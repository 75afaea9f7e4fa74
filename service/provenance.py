"""Ties a version to what it was made from: its source, the run behind it, the digest of its files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from service.backend import Backend
from service.change import OfRun, OfTraces, VersionCreate
from service.errors import Conflict, InvalidRequest, NotFound
from service.ownership import parse_artifact_path
from service.records import LoggedModel, ModelVersion, Run

UNVERIFIABLE = "unverifiable"
"""The digest of files that clients write to storage directly: the gateway cannot see them change."""

MAX_DIGEST_BYTES = 1 << 30
_MAX_FILES = 2_000
_MAX_HOPS = 8
_ROOT = "mlflow-artifacts:/"


@dataclass(frozen=True, slots=True)
class Origin:
    """What stands behind a source. ``run_id`` is None where the registry cannot tell."""

    run_id: str | None
    model_ids: tuple[str, ...]
    files: tuple[str, ...]
    """Where the files are below the registry's artifact root; none for storage outside it."""
    outside: str = ""
    """Where they are outside of it."""

    @property
    def identifiers(self) -> frozenset[str]:
        """Return the run and the logged models."""
        return frozenset({*self.model_ids, *([self.run_id] if self.run_id else [])})


async def origin_of(backend: Backend, source: str) -> Origin:
    """Follow *source* to the run and the files behind it.

    Raises:
        NotFound: it names something that does not exist. Conflict: it leads on and on.
    """
    for _ in range(_MAX_HOPS):
        scheme, _, rest = source.partition(":/")
        if scheme == "models":
            name, _, version = rest.strip("/").rpartition("/")
            if not name:
                return _of_logged_model(await backend.get_logged_model(version))
            source = await backend.download_uri(name, version)
            continue
        if scheme == "runs":
            run_id, _, path = rest.lstrip("/").partition("/")
            return await _of_run(backend, await backend.get_run(run_id), path)
        if scheme == "mlflow-artifacts" and not rest.startswith("/"):
            return await _of_path(backend, rest)
        return Origin(None, (), (), source)
    message = f"The source leads over more than {_MAX_HOPS} other versions."
    raise Conflict(message)


def _of_logged_model(logged: LoggedModel) -> Origin:
    return Origin(logged.source_run_id or None, (logged.model_id,), _files(logged.artifact_uri))


async def _of_run(backend: Backend, run: Run, path: str) -> Origin:
    """MLflow reads ``runs:/run/name`` from the run's files and from its logged models too: all of them count."""
    logged = await backend.models_of_run(run.run_id, run.experiment_id)
    files = [
        *_files(f"{run.artifact_uri.rstrip('/')}/{path}"),
        *(file for m in logged for file in _files(m.artifact_uri)),
    ]
    return Origin(run.run_id, tuple(item.model_id for item in logged), tuple(files))


async def _of_path(backend: Backend, path: str) -> Origin:
    try:
        _, owner = parse_artifact_path(path)
    except InvalidRequest:
        return Origin(None, (), (path,))
    if isinstance(owner, OfRun):
        return Origin(owner.run_id, (), (path,))
    if isinstance(owner, OfTraces):
        return Origin(None, (), (path,))
    logged = await backend.get_logged_model(owner.model_id)
    return Origin(logged.source_run_id or None, (logged.model_id,), (path,))


def _files(uri: str) -> tuple[str, ...]:
    return (uri.removeprefix(_ROOT),) if uri.startswith(_ROOT) and not uri.startswith(_ROOT + "/") else ()


async def origin_of_version(backend: Backend, version: ModelVersion) -> Origin:
    """Follow a version to what the registry serves for it, whatever its source names by now."""
    return await origin_of(backend, await backend.download_uri(version.model, version.version) or version.source)


async def find_origin(backend: Backend, version: ModelVersion) -> Origin | None:
    """Follow a version like `origin_of_version`; None where it leads nowhere."""
    try:
        return await origin_of_version(backend, version)
    except (Conflict, NotFound):
        return None


def behind(version: ModelVersion, origin: Origin | None) -> frozenset[str]:
    """Return the run and the logged models behind *version*, and the run it claims."""
    return (origin.identifiers if origin else frozenset()) | ({version.run_id} - {""})


def made_from(version: ModelVersion, origin: Origin | None) -> frozenset[str]:
    """Return what *version* shares with whatever is made from the same: run, logged models, the places of its files."""
    places = (*origin.files, origin.outside) if origin else (version.source,)
    return behind(version, origin) | ({place.rstrip("/") for place in places} - {""})


@dataclass(frozen=True, slots=True)
class Relative:
    """A version that has the same behind it as another."""

    model: str
    version: str
    binding: str | None
    """None for one that was deleted: only its number is known."""


async def relatives(backend: Backend, version: ModelVersion, origin: Origin | None) -> set[Relative]:
    """Find versions that name the same run or logged models, and those *version* is a copy of.

    Copies of *version* that name no run are not found: the registry would have to list everything.
    """
    several = await asyncio.gather(*map(backend.versions_naming, behind(version, origin)))
    found = {Relative(item.model, item.version, item.binding) for items in several for item in items}
    source = version.source
    for _ in range(_MAX_HOPS):
        scheme, _, rest = source.partition(":/")
        name, _, number = rest.strip("/").rpartition("/")
        if scheme != "models" or not name:
            break
        try:
            original = await backend.get_version(name, number)
        except NotFound:
            found.add(Relative(name, number, None))
            break
        found.add(Relative(name, number, original.binding))
        source = original.source
    return found


async def check_run(backend: Backend, change: VersionCreate, model_id: str) -> None:
    """Refuse a version whose run or logged model is not the one its source comes from.

    Otherwise a gate would judge the metrics of one run and ship the files of another.

    Raises:
        InvalidRequest: they disagree, or cannot be shown to agree.
    """
    origin = await origin_of(backend, change.source)
    if model_id and origin.model_ids and model_id not in origin.model_ids:
        message = "model_id names another logged model than the source."
        raise InvalidRequest(message)
    if not change.run_id or await _is_run_of(backend, change.run_id, change.source, origin):
        return
    message = "run_id names another run than the one the source comes from."
    raise InvalidRequest(message)


async def _is_run_of(backend: Backend, run_id: str, source: str, origin: Origin) -> bool:
    if origin.run_id is not None or origin.files:
        return origin.run_id == run_id
    root = (await backend.get_run(run_id)).artifact_uri.rstrip("/") + "/"
    return root != "/" and source.startswith(root)


async def run_behind(backend: Backend, version: ModelVersion, origin: Origin | None) -> str | None:
    """Return the run whose metrics are this version's, or None if its run and its files disagree."""
    if not version.run_id or origin is None:
        return None
    try:
        same = await _is_run_of(backend, version.run_id, version.source, origin)
    except NotFound:
        return None
    return version.run_id if same else None


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file of a version, as it is."""

    root: str
    """Which of the origin's places it is in."""
    path: str
    """Below the registry's artifact root."""
    sha256: str

    @property
    def name(self) -> str:
        """Its path below its root."""
        return self.path.removeprefix(self.root.rstrip("/") + "/")


def digest_of_files(origin: Origin, files: Iterable[FileDigest]) -> str:
    """Return sha256 over the sorted (path, sha256) of the version's *files*.

    `UNVERIFIABLE` for storage that clients write directly.
    """
    if not origin.files:
        return UNVERIFIABLE
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.path}\0{file.sha256}\n".encode())
    return total.hexdigest()


async def file_digests(backend: Backend, origin: Origin) -> list[FileDigest]:
    """Read the version's files, place by place, sorted by path.

    Raises:
        Conflict: too many or too large to be read, so that nothing can be bound to them. NotFound.
    """
    found, size = [], 0
    for root in origin.files:
        files = await backend.list_files(root, _MAX_FILES)
        size += sum(item for _, item in files or ())
        if files is None or size > MAX_DIGEST_BYTES:
            message = f"The version has more than {_MAX_FILES} files or {MAX_DIGEST_BYTES} bytes; nothing can be bound."
            raise Conflict(message)
        for path, _ in sorted(files):
            digest = hashlib.sha256()
            async for part in backend.read_file(path):
                digest.update(part)
            found.append(FileDigest(root, path, digest.hexdigest()))
    return found


async def size_of(backend: Backend, origin: Origin) -> int | None:
    """Return how many bytes the version's files have; None for storage outside the registry or too many files."""
    if not origin.files:
        return None
    size = 0
    for root in origin.files:
        files = await backend.list_files(root, _MAX_FILES)
        if files is None:
            return None
        size += sum(item for _, item in files)
    return size
