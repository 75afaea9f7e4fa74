"""Reads copies of events: files of JSON Lines that a sink or an export wrote, compressed or not."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from service.chain import GENESIS, digest_of
from service.chain_check import Broken, Chain, Report, Verify
from service.errors import BadConfiguration

_MAX_LINE = 1 << 20
_HASH = 32


def lines_of(path: Path) -> Iterator[bytes]:
    """Give the lines of *path* without their ends; empty ones are left out.

    Raises:
        BadConfiguration: it cannot be read, or holds what is no line of an event.
    """
    try:
        with _opened(path) as file:
            while line := file.readline(_MAX_LINE):
                if len(line) == _MAX_LINE:
                    message = f"{path}: a line is longer than {_MAX_LINE} bytes; this is no copy of events"
                    raise BadConfiguration(message)
                if text := line.rstrip(b"\r\n"):
                    yield text
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path}: it cannot be read: {getattr(error, 'strerror', None) or error}"
        raise BadConfiguration(message) from None


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else path.open("rb")


class _Number(msgspec.Struct):
    sequence: int


class _Numbered(msgspec.Struct):
    data: _Number


_decode = msgspec.json.Decoder(_Numbered).decode


def sequence_of(line: bytes) -> int:
    """Return the number of the event in *line*.

    Raises:
        ValueError: it is no event.
    """
    try:
        sequence = _decode(line).data.sequence
    except msgspec.DecodeError:  # half a surrogate pair, in an event of long ago
        try:
            sequence = msgspec.convert(json.loads(line), _Numbered).data.sequence
        except RecursionError as error:
            raise ValueError(str(error)) from None
    if sequence < 1:
        message = "no sequence"
        raise ValueError(message)
    return sequence


class _Seen:
    """The hashes of the events so far: a delivery that is repeated must be the same."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._hashes = bytearray()

    def add(self, digest: str) -> None:
        self._hashes += bytes.fromhex(digest)

    def has(self, number: int, digest: str) -> bool:
        at = (number - self._first) * _HASH
        return self._hashes[at : at + _HASH] == bytes.fromhex(digest)


def verify_copy(path: Path, verify: Verify | None = None, *, any_order: bool = False) -> Report:
    """Check the events of the copy *path*, which may begin anywhere, and hold events again that it had before.

    With *any_order* they may stand in any order, as a receiver of single events writes them.

    Raises:
        BadConfiguration: it cannot be read, or holds no events.
    """
    lines: Iterator[bytes] = lines_of(path)
    if any_order:
        lines = iter(_sorted(path, lines))
    report, seen, number = Report(Chain(None, None).found, []), None, 0
    chain: Chain | None = None
    for at, line in enumerate(lines, 1):
        try:
            number = sequence_of(line)
            if chain is None:
                chain = Chain(number, GENESIS if number == 1 else None, verify)
                report.found, seen = chain.found, _Seen(number)
            assert seen is not None
            if number <= chain.found.last:
                _check_again(number, line, chain, seen)
                report.duplicates += 1
                continue
            chain.take(None, line)
            seen.add(chain.found.hash)
        except Broken as error:
            report.problems.append(_said(str(error), path, number))
            break
        except ValueError:
            report.problems.append(f"the event in line {at} was edited: it is no event")
            break
    if chain is None and not report.problems:
        message = f"{path}: it holds no events"
        raise BadConfiguration(message)
    return report


def _check_again(number: int, line: bytes, chain: Chain, seen: _Seen) -> None:
    if number < chain.found.first:
        message = f"event {number} stands after event {chain.found.last}"
        raise Broken(message)
    if not seen.has(number, digest_of(line)):
        message = f"event {number} is there twice, and not the same"
        raise Broken(message)


def _said(problem: str, path: Path, number: int) -> str:
    """Say of what is missing whether it comes later."""
    if not problem.endswith(" is missing"):
        return problem
    missing = int(problem.split()[1])
    for line in lines_of(path):
        try:
            if sequence_of(line) == missing:
                return f"event {number} stands before event {missing}"
        except ValueError:
            break
    return problem


def _sorted(path: Path, lines: Iterator[bytes]) -> list[bytes]:
    try:
        return [line for _, line in sorted((sequence_of(line), line) for line in lines)]
    except ValueError:
        message = f"{path}: it holds what is no event"
        raise BadConfiguration(message) from None


def hashes_of(path: Path) -> dict[int, str]:
    """Map the number of each event of the copy *path* to its hash, in whatever order they stand.

    Raises:
        BadConfiguration: it cannot be read, holds what is no event, or two that differ under one number.
    """
    hashes: dict[int, str] = {}
    for at, line in enumerate(lines_of(path), 1):
        try:
            number = sequence_of(line)
        except ValueError:
            message = f"{path}: line {at} is no event; leave out what the sink did not write"
            raise BadConfiguration(message) from None
        digest = digest_of(line)
        if hashes.setdefault(number, digest) != digest:
            message = f"{path}: event {number} is there twice, and not the same: the copy was changed"
            raise BadConfiguration(message)
    return hashes
