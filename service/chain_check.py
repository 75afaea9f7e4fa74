"""Checks that events follow one another unchanged, and that their checkpoints are signed. Pure."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from service.chain import GENESIS, digest_of, signed_bytes

COLUMNS = (
    *("id", "time", "type", "phase", "operation", "actor", "action", "registry", "resource"),
    *("model", "version", "environment", "outcome"),
)
"""What the journal says of an event beside it: queries and rights of readers go by it, so it must be what it says."""
_KEYS = "after a change of keys give each of them: --public-key OLD --public-key NEW"
Verify = Callable[[bytes, bytes], bool]
"""Tells whether a signature of a message was made with one of the trusted keys."""


class Broken(Exception):
    """What is wrong, beginning with the event where it shows."""


class Signed(msgspec.Struct, frozen=True):
    """What a checkpoint says."""

    cluster: str
    sequence: int
    hash: str
    kid: str
    signature: str


class Range(msgspec.Struct, frozen=True):
    """Events that were pruned, and the hashes before the first of them and of the last."""

    first: int
    last: int
    previous: str
    hash: str


class _Pruned(msgspec.Struct, frozen=True):
    ranges: tuple[Range, ...]


class _Actor(msgspec.Struct, frozen=True):
    subject: str


class _Data(msgspec.Struct, frozen=True):
    phase: str
    operation: str
    actor: _Actor
    action: str
    registry: str
    resource: str
    model: str | None
    version: str | None
    environment: str | None
    outcome: str | None
    sequence: int
    previous: str
    checkpoint: Signed | None = None
    pruned: _Pruned | None = None


class Said(msgspec.Struct, frozen=True):
    """What the check reads of an event."""

    id: str
    source: str
    time: str
    type: str
    data: _Data


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found."""

    event: int
    time: str
    kid: str
    verified: bool


@dataclasses.dataclass(slots=True)
class Found:
    """How far a chain is good."""

    first: int = 0
    """The sequence of its first event."""
    last: int = 0
    events: int = 0
    previous: str = ""
    """What its first event follows."""
    hash: str = ""
    """Of its last event."""
    archived: int = 0
    """Events that are in archives; the chain goes on over them."""
    archives: list[str] = dataclasses.field(default_factory=list)
    pruned: set[Range] = dataclasses.field(default_factory=set)
    """What its events say was pruned."""
    checkpoints: int = 0
    checkpoint: Checkpoint | None = None
    """The last one; where keys are trusted, the last that one of them signed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hole:
    """Events from *first* to *last* that are in an archive."""

    first: int
    last: int
    previous: str
    hash: str
    archive: str

    @property
    def range(self) -> Range:
        """What the event of the prune says of it."""
        return Range(self.first, self.last, self.previous, self.hash)


def _read(body: bytes) -> Said:
    try:
        return _decode(body)
    except msgspec.DecodeError:
        return msgspec.convert(json.loads(body), Said)  # half a surrogate pair, in an event of long ago


_decode = msgspec.json.Decoder(Said).decode


class Chain:
    """Takes events in their order and keeps how far they are good."""

    def __init__(
        self, first: int | None, previous: str | None, verify: Verify | None = None, holes: Iterable[Hole] = ()
    ) -> None:
        """Begin with the event *first*, which follows *previous*; None: whatever comes."""
        self.found = Found()
        self._expected = first
        self._previous = previous
        self._verify = verify
        self._holes = {hole.first: hole for hole in holes}

    def take(
        self, sequence: int | None, body: bytes, digest: str | None = None, columns: Sequence[Any] | None = None
    ) -> None:
        """Check the next event; *sequence* is where it stands, if that is said beside it, as *columns* are.

        *digest* is the hash of *body*, where it was computed before.

        Raises:
            Broken: it does not follow. The chain is good up to the event before.
        """
        try:
            said = _read(body)
        except (ValueError, RecursionError) as error:
            name = f"event {sequence}" if sequence is not None else f"the event after {self.found.last}"
            message = f"{name} was edited: it is no event ({type(error).__name__})"
            raise Broken(message) from None
        data = said.data
        number = data.sequence if sequence is None else sequence
        self._step_over(number)
        if self._expected is not None and number != self._expected:
            message = f"event {self._expected} is missing"
            raise Broken(message)
        if data.sequence != number:
            message = f"event {number} does not follow event {number - 1}: it says that it is event {data.sequence}"
            raise Broken(message)
        if data.previous != (GENESIS if number == 1 else data.previous if self._previous is None else self._previous):
            message = _unlinked(number)
            raise Broken(message)
        if columns is not None:
            _check_columns(number, said, columns)
        if data.phase == "checkpoint":
            self._check(number, said)
        if data.pruned is not None and data.action == "audit:prune":
            self.found.pruned.update(data.pruned.ranges)
        self._go_on(number, number, data.previous, digest or digest_of(body))
        self.found.events += 1

    def end(self, last: int) -> Found:
        """Step over what is in archives up to *last*, and return what was found.

        Raises:
            Broken: it does not go so far.
        """
        self._step_over(last + 1)
        if self._expected is not None and self._expected <= last:
            message = f"event {self._expected} is missing"
            raise Broken(message)
        return self.found

    def _step_over(self, number: int) -> None:
        while self._expected is not None and self._expected < number and self._expected in self._holes:
            hole = self._holes[self._expected]
            if self._previous is not None and hole.previous != self._previous:
                message = f"event {hole.first}, which is in the archive {hole.archive}, does not follow the one before"
                raise Broken(message)
            self.found.archived += hole.last - hole.first + 1
            self.found.archives.append(hole.archive)
            self._go_on(hole.first, hole.last, hole.previous, hole.hash)

    def _go_on(self, first: int, last: int, previous: str, digest: str) -> None:
        found = self.found
        if not found.previous:
            found.first, found.previous = first, previous
        found.last, found.hash = last, digest
        self._expected, self._previous = last + 1, digest

    def _check(self, number: int, said: Said) -> None:
        signed = said.data.checkpoint
        if signed is None:
            message = f"event {number} is a checkpoint without a signature"
            raise Broken(message)
        if (signed.sequence, signed.hash) != (number - 1, said.data.previous):
            message = f"event {number}: its checkpoint covers event {signed.sequence}, and not the one before it"
            raise Broken(message)
        if not said.source.startswith(f"/registry-gateway/{signed.cluster}/"):
            message = f"event {number}: its checkpoint is of the cluster {signed.cluster!r}, and not of {said.source}"
            raise Broken(message)
        if self._verify is not None and not self._is_signed(signed, said.time):
            message = (
                f"event {number}: its checkpoint is forged, or of a key that is not trusted ({signed.kid}); {_KEYS}"
            )
            raise Broken(message)
        self.found.checkpoints += 1
        self.found.checkpoint = Checkpoint(number, said.time, signed.kid, self._verify is not None)

    def _is_signed(self, signed: Signed, time: str) -> bool:
        assert self._verify is not None
        try:
            message = signed_bytes(signed.cluster, signed.sequence, signed.hash, time)
            return self._verify(base64.b64decode(signed.signature, validate=True), message)
        except ValueError:
            return False


def _check_columns(number: int, said: Said, columns: Sequence[Any]) -> None:
    data = said.data
    time = datetime.fromisoformat(said.time).timestamp()
    expected = (
        *(said.id, time, said.type, data.phase, data.operation, data.actor.subject, data.action, data.registry),
        *(data.resource, data.model, data.version, data.environment, data.outcome),
    )
    if expected != tuple(columns):
        name = next(name for name, one, other in zip(COLUMNS, expected, columns, strict=True) if one != other)
        message = f"event {number} was edited: the column {name!r} is not what the event says"
        raise Broken(message)


def _unlinked(number: int) -> str:
    return f"event {number} does not follow event {number - 1}: one of them was edited, or is another one"


def join(parts: Sequence[Found]) -> Found:
    """Put the *parts* of one chain together, each checked by itself.

    Raises:
        Broken: one does not follow the one before.
    """
    whole = Found()
    for part in parts:
        if whole.previous and part.previous != whole.hash:
            message = (
                f"event {part.first} does not follow event {whole.last}: one of them was edited, or is another one"
            )
            raise Broken(message)
        if not whole.previous:
            whole.first, whole.previous = part.first, part.previous
        whole.last, whole.hash = part.last, part.hash
        whole.events += part.events
        whole.archived += part.archived
        whole.archives += part.archives
        whole.pruned |= part.pruned
        whole.checkpoints += part.checkpoints
        whole.checkpoint = part.checkpoint or whole.checkpoint
    return whole


@dataclasses.dataclass(slots=True)
class Report:
    """What a verification found."""

    found: Found
    problems: list[str]
    duplicates: int = 0
    """Events of a copy that are there again."""
    compared: int = 0
    """Events of a copy that the journal was compared with."""

    def judge_uncovered(self, most: int, *, trusted: bool) -> None:
        """Add a problem if more than *most* events follow the last checkpoint, where keys are *trusted*."""
        if not trusted or self.problems:
            return
        if self.found.checkpoint is None:
            self.problems.append("no checkpoint is signed with a trusted key")
        elif self.after > most:
            event, after = self.found.checkpoint.event, self.after
            self.problems.append(f"{after} events after event {event}, the last checkpoint, are covered by none")

    @property
    def after(self) -> int:
        """How many events follow the last checkpoint."""
        return self.found.last - (self.found.checkpoint.event if self.found.checkpoint else 0)

    def document(self) -> dict[str, Any]:
        """Give it as JSON."""
        found = self.found
        return {
            "intact": not self.problems,
            "problems": self.problems,
            "events": found.events,
            "first": found.first,
            "last": found.last,
            "archived": found.archived,
            "archives": sorted(set(found.archives)),
            "duplicates": self.duplicates,
            "compared": self.compared,
            "checkpoints": found.checkpoints,
            "checkpoint": dataclasses.asdict(found.checkpoint) if found.checkpoint else None,
            "after_checkpoint": self.after,
        }
