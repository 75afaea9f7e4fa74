"""Verifies the journal's hash chain: finds an edit, a deletion or a swap."""

from __future__ import annotations

import hashlib
import json

from service.chain import GENESIS
from service.journal.looking import Look

_PAGE = 2000
_EVENTS = "SELECT sequence, body, hash FROM events WHERE sequence > :last ORDER BY sequence LIMIT :page"


def verify(url: str) -> tuple[int, str | None]:
    """Read every event of the journal at *url*; return how many are intact and what is wrong, or None.

    The chain shows changes inside the journal. That its end was cut off shows only beside a copy of a later event.

    Raises:
        BadConfiguration: the journal cannot be read.
    """
    expected, previous = 1, GENESIS
    with Look(url) as journal:
        while rows := journal.rows(_EVENTS, last=expected - 1, page=_PAGE):
            for sequence, body, digest in rows:
                problem = _problem(sequence, body, digest, expected, previous)
                if problem:
                    return expected - 1, problem
                expected, previous = sequence + 1, digest
    return expected - 1, None


def _problem(sequence: int, body: str, digest: str, expected: int, previous: str) -> str | None:
    if sequence != expected:
        return f"event {expected} is missing"
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        return f"event {sequence} was edited"
    data = json.loads(body)["data"]
    if data["sequence"] != sequence or data["previous"] != previous:
        return f"event {sequence} does not follow event {sequence - 1}"
    return None
