"""The archive: events as gzipped JSON Lines, each file with a manifest of what is in it and how it is chained."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from service.chain import GENESIS
from service.errors import BadConfiguration

Archived = tuple[int, bytes, str]
"""Sequence, canonical bytes and hash of an event."""
_MANIFESTS = "events-*.json"
_MAX_BYTES = 128 << 20
"""More than a segment of the largest events has, unpacked."""


class Damaged(BadConfiguration):
    """The archive is not what it was when it was written."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a segment holds: every event from ``first`` to ``last``."""

    first: int
    last: int
    previous: str
    """The hash of the event before the first."""
    hash: str
    """The hash of the last event."""
    count: int
    sha256: str
    """Of the file."""
    gateway: str
    """The version that wrote it."""

    @property
    def stem(self) -> str:
        """The name of file and manifest."""
        return f"events-{self.first:015d}-{self.last:015d}"


def manifests(directory: Path) -> list[Manifest]:
    """List what is in the archive, from the first event on.

    Raises:
        BadConfiguration: it cannot be read. Damaged: a segment is missing in the middle.
    """
    found: list[Manifest] = []
    try:
        for path in sorted(directory.glob(_MANIFESTS)):
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
            before = found[-1] if found else None
            expected = (before.last + 1, before.hash) if before else (1, GENESIS)
            if (manifest.first, manifest.previous) != expected or path.stem != manifest.stem:
                message = f"{path}: it does not follow what is before it in the archive; event {expected[0]} is missing"
                raise Damaged(message)
            found.append(manifest)
    except (OSError, msgspec.MsgspecError) as error:
        message = f"{directory}: the archive cannot be read: {error}"
        raise BadConfiguration(message) from None
    return found


def write_segment(directory: Path, previous: str, rows: Sequence[Archived]) -> Manifest:
    """Write *rows*, which follow the hash *previous*; when it returns they are on disk and were read back.

    The manifest comes last: without it a file is no part of the archive, and is written anew.

    Raises:
        BadConfiguration: it cannot be written, or does not read back.
    """
    content = gzip.compress(b"".join(body + b"\n" for _, body, _ in rows), mtime=0)
    manifest = Manifest(
        first=rows[0][0],
        last=rows[-1][0],
        previous=previous,
        hash=rows[-1][2],
        count=len(rows),
        sha256=hashlib.sha256(content).hexdigest(),
        gateway=version("registry-gateway"),
    )
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(directory / f"{manifest.stem}.jsonl.gz", content)
        read_segment(directory, manifest)
        _write(directory / f"{manifest.stem}.json", msgspec.json.encode(manifest))
    except OSError as error:
        message = f"{directory}: the archive cannot be written: {error.strerror}"
        raise BadConfiguration(message) from None
    return manifest


def read_segment(directory: Path, manifest: Manifest) -> list[Archived]:
    """Read a segment and verify that it is what its manifest says, and a chain.

    Raises:
        BadConfiguration: it cannot be read. Damaged: it is not; it names the file and the event.
    """
    path = directory / f"{manifest.stem}.jsonl.gz"
    try:
        content = path.read_bytes()
        with gzip.open(io.BytesIO(content)) as unpacked:
            whole = unpacked.read(_MAX_BYTES + 1)
    except (FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        message = f"{path}: the archive cannot be read: {error}"
        raise Damaged(message) from None
    except OSError as error:
        message = f"{path}: the archive cannot be read: {error}"
        raise BadConfiguration(message) from None
    if hashlib.sha256(content).hexdigest() != manifest.sha256 or len(whole) > _MAX_BYTES:
        message = f"{path}: not the file that its manifest names"
        raise Damaged(message)
    lines = whole.split(b"\n")[:-1]
    rows: list[Archived] = []
    previous = manifest.previous
    for sequence, body in enumerate(lines, manifest.first):
        try:
            data = json.loads(body)["data"]
            follows = data["sequence"] == sequence and data["previous"] == previous
        except (ValueError, KeyError, TypeError, RecursionError):
            follows = False
        if not follows:
            message = f"{path}: event {sequence} does not follow event {sequence - 1}"
            raise Damaged(message)
        previous = hashlib.sha256(body).hexdigest()
        rows.append((sequence, body, previous))
    if (len(rows), previous) != (manifest.count, manifest.hash) or manifest.last != manifest.first + len(rows) - 1:
        message = f"{path}: its last event is not the one that its manifest names"
        raise Damaged(message)
    return rows


def read_archive(directory: Path) -> Iterator[Archived]:
    """Yield every event of the archive, from the first on, verified.

    Raises:
        BadConfiguration: a file is missing, cut off or changed; it names the file and the event.
    """
    for manifest in manifests(directory):
        yield from read_segment(directory, manifest)


def _write(path: Path, content: bytes) -> None:
    """Put a whole file in place, durably: it is there under its name, or it is not."""
    part = path.with_name(path.name + ".part")
    with os.fdopen(os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
