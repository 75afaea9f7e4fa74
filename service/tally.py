"""Sums up telemetry, and reads that enforcement would refuse: counted here, journalled about once a minute."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from service.audit import Operation, Trail
from service.errors import JournalUnavailable
from service.event import Asked, Event, documents_of
from service.model import Principal
from service.modes import Denial

_MAX_SUMS = 10_000
_MAX_UPLOADS = 20_000
_LISTED_BYTES = 8 << 10
"""Of one event's list of files: an event has at most 16 KiB."""
_EVERYTHING = "*"
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Upload:
    """One artifact that went through whole and that the registry took."""

    path: str
    """Below the registry's artifact root."""
    bytes: int
    sha256: str
    """Of the bytes as they were sent on."""


class Measured:
    """An artifact's bytes on their way, counted and hashed."""

    def __init__(self, path: str, body: AsyncIterator[bytes]) -> None:
        """Pass *body* on, which becomes the file at *path*."""
        self._path = path
        self._body = body
        self._sha256 = hashlib.sha256()
        self._bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the parts as they come."""
        async for part in self._body:
            self._sha256.update(part)
            self._bytes += len(part)
            yield part

    def upload(self) -> Upload:
        """Say what went through."""
        return Upload(self._path, self._bytes, self._sha256.hexdigest())


@dataclass(slots=True)
class _Sum:
    """What one principal did to one run (or experiment) under one right since the last flush."""

    principal: Principal
    since: float
    until: float = 0.0
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    uploads: list[Upload] = field(default_factory=list)
    uploads_not_listed: int = 0

    def add(self, other: _Sum) -> None:
        """Take *other* in."""
        self.since, self.until = min(self.since, other.since), max(self.until, other.until)
        self.calls += other.calls
        self.failed += other.failed
        self.uploads += other.uploads
        self.uploads_not_listed += other.uploads_not_listed


_Rights = tuple[Asked, ...]
_Key = tuple[str, str, str, str, str, _Rights, tuple[Denial, ...]]
"""Registry, subject, action, resource, the run or logged model, all rights asked, and what would have been refused."""


class Tally:
    """The sums of this process. A kill loses those since the last flush, and nothing else does."""

    def __init__(self, trail: Trail, seconds: float = 60.0) -> None:
        """Write to *trail* every *seconds*."""
        self._trail = trail
        self._seconds = seconds
        self._sums: dict[_Key, _Sum] = {}
        self._uploads = 0
        self._unwritten: tuple[str, list[Event]] | None = None
        """A batch whose append gave no answer, under its operation: it may be there, and is looked for first."""
        self._task: asyncio.Task[None] | None = None
        self.merged = 0
        """Sums that lost their run because there were too many, since the start."""

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._write_forever())

    async def close(self) -> None:
        """Write what is left; if the journal is down, say in the log what is lost."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        try:
            await self.flush()
            await self.flush()  # the first may only have settled an earlier batch
        except JournalUnavailable:
            _log.error("sums of telemetry lost", calls=sum(sum(item.calls.values()) for item in self._sums.values()))

    def count(self, operation: Operation, identifier: str, *, failed: bool, upload: Upload | None = None) -> None:
        """Count one call that was decided and forwarded."""
        denials = tuple(sorted(operation.would_deny))
        key = (
            *(operation.registry, operation.principal.subject, operation.action, operation.resource, identifier),
            tuple(operation.asked),
            denials,
        )
        now = self._trail.now()
        if key not in self._sums and len(self._sums) >= _MAX_SUMS:
            self._merge()
        found = self._sums.setdefault(key, _Sum(operation.principal, now))
        found.until = now
        found.calls[operation.name] += 1
        if failed:
            found.failed[operation.name] += 1
        if upload is not None and self._uploads < _MAX_UPLOADS:
            found.uploads.append(upload)
            self._uploads += 1
        elif upload is not None:
            found.uploads_not_listed += 1

    def _merge(self) -> None:
        """Make room: give up which run it was, then which experiment; never who and how often."""
        before = self._sums
        for forget in ((4,), (3, 4)):
            merged: dict[_Key, _Sum] = {}
            for key, found in self._sums.items():
                parts = [_EVERYTHING if index in forget else part for index, part in enumerate(key[:5])]
                asked, denials = key[5:]
                if 3 in forget:  # the resource
                    asked, denials = (), tuple(sorted({Denial(item.action, _EVERYTHING) for item in denials}))
                coarse = (parts[0], parts[1], parts[2], parts[3], parts[4], asked, denials)
                if coarse in merged:
                    merged[coarse].add(found)
                else:
                    merged[coarse] = found
            self._sums = merged
            if len(merged) < _MAX_SUMS // 2:
                break
        self.merged += len(before) - len(self._sums)

    async def flush(self) -> None:
        """Write the sums.

        Raises:
            JournalUnavailable: they stay here and are written next time, once.
        """
        if self._unwritten is None:
            if not self._sums:
                return
            operation = str(uuid.uuid4())
            self._unwritten = (operation, self._trail.sums(_documents(operation, self._sums)))
            self._sums, self._uploads = {}, 0
        elif await self._trail.journal.operation_events(self._unwritten[0]):
            self._unwritten = None  # it was stored although nothing said so
            return
        try:
            await self._trail.summed(self._unwritten[1])
        except JournalUnavailable:  # or an earlier try came to its end meanwhile: nothing is stored twice
            if not await self._trail.journal.operation_events(self._unwritten[0]):
                raise
        self._unwritten = None

    async def _write_forever(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.flush()
            except JournalUnavailable as error:
                _log.warning("sums of telemetry kept for later", problem=error.detail)


def _documents(operation: str, sums: Mapping[_Key, _Sum]) -> Iterator[Mapping[str, Any]]:
    """Give the data of the events; the files of one run may need several."""
    for (registry, _, action, resource, identifier, asked, denials), found in sums.items():
        for index, uploads in enumerate(_lists(found.uploads)):
            first = index == 0
            yield {
                **dict.fromkeys(("model", "version", "environment", "verdict")),
                "phase": "summed",
                "operation": operation,
                "outcome": "succeeded",
                "actor": {
                    "subject": found.principal.subject,
                    "groups": sorted(found.principal.groups),
                    "acting_for": found.principal.acting_for,
                    "issuer": found.principal.issuer,
                    "credential": found.principal.credential,
                },
                "action": action,
                "resource": resource,
                "registry": registry,
                "run": identifier or None,
                "asked": documents_of(asked),
                "would_deny": [dataclasses.asdict(item) for item in denials],
                "calls": dict(found.calls) if first else {},
                "failed": dict(found.failed) if first else {},
                "since": _time(found.since),
                "until": _time(found.until),
                "uploads": uploads,
                "uploads_not_listed": found.uploads_not_listed if first else 0,
            }


def _lists(uploads: list[Upload]) -> Iterator[list[dict[str, Any]]]:
    """Split a list of files so that each part fits into an event; at least one part."""
    part: list[dict[str, Any]] = []
    size = 0
    for item in uploads:
        listed = {"path": item.path, "bytes": item.bytes, "sha256": item.sha256}
        length = len(json.dumps(listed))
        if part and size + length > _LISTED_BYTES:
            yield part
            part, size = [], 0
        part.append(listed)
        size += length
    yield part


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
