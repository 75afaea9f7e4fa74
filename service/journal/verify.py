"""Verifies the journal: its hash chain, its checkpoints, the columns that queries read, and what a copy has of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from service.chain import GENESIS, digest_of
from service.chain_check import COLUMNS, Broken, Chain, Found, Hole, Report, Verify, join
from service.journal.archive import Damaged, manifests, read_segment
from service.journal.database import SQLITE
from service.journal.looking import Look
from service.journal.record_check import RecordCheck

_PAGE = 2000
_PART = 50_000
"""So many events are checked at once by one of several processes."""
_MANY = 200_000
"""To start processes takes seconds; fewer events are checked by this one."""
_BYTES = {True: "CAST(body AS BLOB)", False: "convert_to(body, 'UTF8')"}
_HOLES = "SELECT first, last, previous, hash, archive FROM pruned ORDER BY first"
_RANGE = "SELECT min(sequence), max(sequence) FROM events"
_HASHES = "SELECT sequence, hash FROM events WHERE sequence >= :first AND sequence <= :last"


def verify(url: str, archive: Path | None = None) -> tuple[int, str | None]:
    """Read every event of the journal at *url*; return how many are intact and what is wrong, or None.

    Raises:
        BadConfiguration: the journal cannot be read.
    """
    report = examine(url, archive=archive)
    return report.found.events, next(iter(report.problems), None)


def verifier(keys: Sequence[bytes]) -> Verify | None:
    """Return what checks signatures against the raw public *keys*; None where there are none."""
    if not keys:
        return None
    trusted = [Ed25519PublicKey.from_public_bytes(key) for key in keys]

    def is_signed(signature: bytes, message: bytes) -> bool:
        for key in trusted:
            try:
                key.verify(signature, message)
            except InvalidSignature:
                continue
            return True
        return False

    return is_signed


def examine(
    url: str,
    keys: Sequence[bytes] = (),
    copy: Mapping[int, str] | None = None,
    processes: int | None = None,
    archive: Path | None = None,
) -> Report:
    """Read every event of the journal at *url*, and compare them with the hashes of a *copy* by their number.

    With *archive* it and the journal are read as one chain; without it the chain goes over what was pruned.

    Checkpoints must be signed with one of the raw public *keys*, if there are any.

    Raises:
        BadConfiguration: the journal cannot be read.
    """
    with Look(url) as journal:
        ((first, last),) = journal.rows(_RANGE)
        holes = [Hole(*row) for row in journal.rows(_HOLES)]
    last = max(last or 0, *(hole.last for hole in holes), 0)
    parts = [(begin, min(begin + _PART - 1, last)) for begin in range(1, last + 1, _PART)]
    several = last > _MANY and processes != 1
    report = _in_parts(url, parts, keys, holes, processes) if several else _whole(url, last, keys, holes)
    if first is not None and first < 1:
        report.problems.append(f"event {first} was put in: the first one is 1")
    made_up = next((hole for hole in holes if hole.range not in report.found.pruned), None)
    if made_up is not None and not report.problems:
        report.problems.append(f"event {made_up.first} is missing: no event says that it was pruned")
    if copy is not None:
        _compare(url, copy, report, holes)
    with Look(url) as journal:
        records = RecordCheck(journal)
        if archive is not None and not report.problems:
            try:
                _read_archive(url, archive, report, keys, holes, records)
            except (Broken, Damaged) as error:
                report.problems.append(str(error))
        if not report.problems:
            records.take_all()
            report.problems += records.problems(everything=archive is not None or not holes, pruned=bool(holes))
    return report


def _whole(url: str, last: int, keys: Sequence[bytes], holes: Sequence[Hole]) -> Report:
    chain = Chain(1, GENESIS, verifier(keys), holes)
    problem = _check(url, chain, 1, last)
    return Report(chain.found, [problem] if problem else [])


def _in_parts(
    url: str, parts: Sequence[tuple[int, int]], keys: Sequence[bytes], holes: Sequence[Hole], processes: int | None
) -> Report:
    """Check each part in a process of its own; holes are cut at the parts' ends where they reach beyond."""
    jobs = [(url, *part, tuple(keys), tuple(holes)) for part in _aligned(parts, holes)]
    found: list[Found] = []
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for part, problem in pool.map(_part, jobs):
            if problem is not None and not part.previous:  # not even its first event is good
                pool.shutdown(cancel_futures=True)
                return Report(join(found), [problem])
            try:
                joined = join([*found, part])
            except Broken as error:
                return Report(join(found), [str(error)])
            found = [joined] if joined.previous else []
            if problem is not None:
                pool.shutdown(cancel_futures=True)
                return Report(joined, [problem])
    return Report(found[0] if found else Found(), [])


def _aligned(parts: Sequence[tuple[int, int]], holes: Sequence[Hole]) -> list[tuple[int, int]]:
    """Move the ends of *parts* behind the holes that reach over them."""
    aligned: list[tuple[int, int]] = []
    begin = 1
    for _, end in parts:
        for hole in holes:
            if hole.first <= end < hole.last:
                end = hole.last  # noqa: PLW2901  # the part is longer
        if end >= begin:
            aligned.append((begin, end))
            begin = end + 1
    return aligned


def _part(job: tuple[str, int, int, Sequence[bytes], Sequence[Hole]]) -> tuple[Found, str | None]:
    url, first, last, keys, holes = job
    chain = Chain(first, GENESIS if first == 1 else None, verifier(keys), holes)
    return chain.found, _check(url, chain, first, last)


def _check(url: str, chain: Chain, first: int, last: int) -> str | None:
    """Take the events from *first* to *last*; return what is wrong, or None."""
    query = (
        f"SELECT sequence, {_BYTES[url.startswith(SQLITE)]}, hash, {', '.join(COLUMNS)} FROM events "  # noqa: S608  # fixed names
        "WHERE sequence > :after AND sequence <= :last ORDER BY sequence LIMIT :page"
    )
    after = first - 1
    try:
        with Look(url) as journal:
            while rows := journal.rows(query, after=after, last=last, page=_PAGE):
                for sequence, body, digest, *columns in rows:
                    if digest_of(body) != digest:
                        chain.end(sequence - 1)
                        return f"event {sequence} was edited"
                    chain.take(sequence, body, digest, columns)
                after = rows[-1][0]
            chain.end(last)
    except Broken as error:
        return str(error)
    return None


def _read_archive(
    url: str, archive: Path, report: Report, keys: Sequence[bytes], holes: Sequence[Hole], records: RecordCheck
) -> None:
    """Check the chain of *archive*, and that it holds what is also in the journal, and all that was pruned.

    Raises:
        Broken, Damaged: it does not.
    """
    chain = Chain(1, GENESIS, verifier(keys))
    ends = {hole.last: hole.hash for hole in holes}
    with Look(url) as journal:
        for segment in manifests(archive):
            here: dict[int, str] = {
                int(row[0]): str(row[1]) for row in journal.rows(_HASHES, first=segment.first, last=segment.last)
            }
            for sequence, body, digest in read_segment(archive, segment):
                chain.take(sequence, body, digest)
                if here.get(sequence, digest) != digest or ends.get(sequence, digest) != digest:
                    message = f"event {sequence} is another one in the archive"
                    raise Broken(message)
                if sequence > report.found.last:
                    message = f"event {sequence} is in the archive and not in the journal: its end was cut off"
                    raise Broken(message)
                records.take(sequence, json.loads(body))
    missing = next((hole for hole in holes if hole.last > chain.found.last), None)
    if missing is not None:
        message = f"event {max(missing.first, chain.found.last + 1)} was pruned, and is not in the archive"
        raise Broken(message)
    found = report.found
    found.events, found.archived, found.archives = found.events + found.archived, 0, []
    found.checkpoints = max(found.checkpoints, chain.found.checkpoints)
    if found.checkpoint is None or (chain.found.checkpoint and chain.found.checkpoint.event > found.checkpoint.event):
        found.checkpoint = chain.found.checkpoint


def _compare(url: str, copy: Mapping[int, str], report: Report, holes: Sequence[Hole]) -> None:
    """Add to *report* the first event of *copy* that the journal has not, or has otherwise."""
    wanted = sorted(copy)
    with Look(url) as journal:
        for at in range(0, len(wanted), _PAGE):
            page = wanted[at : at + _PAGE]
            rows = journal.rows(_HASHES, first=page[0], last=page[-1])
            here = {int(row[0]): str(row[1]) for row in rows}
            for number in page:
                if number in here and here[number] == copy[number]:
                    report.compared += 1
                elif number in here:
                    report.problems.append(f"event {number} is another one in the copy")
                    return
                elif not any(hole.first <= number <= hole.last for hole in holes):
                    report.problems.append(f"event {number} is in the copy and not in the journal")
                    return
