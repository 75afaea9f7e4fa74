"""Cursors of pages: from where a page goes on, good for the same question only."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from service.errors import InvalidRequest

PATTERN = "^[A-Za-z0-9_-]{20,60}$"
_DIGEST_BYTES = 8


def write_cursor(sequence: int, question: Any) -> str:
    """Give the cursor that goes on from *sequence* with *question*."""
    return base64.urlsafe_b64encode(_digest(question) + sequence.to_bytes(8, "big")).decode().rstrip("=")


def read_cursor(cursor: str, question: Any) -> int:
    """Return the sequence of a cursor.

    Raises:
        InvalidRequest: it is none, or it was given for another question.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raw = b""
    if len(raw) != _DIGEST_BYTES + 8 or raw[:_DIGEST_BYTES] != _digest(question):
        message = "cursor: a cursor is the `next_cursor` of the page before, with the same filters and order."
        raise InvalidRequest(message)
    return int.from_bytes(raw[_DIGEST_BYTES:], "big") & ((1 << 62) - 1)


def _digest(question: Any) -> bytes:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).digest()[:_DIGEST_BYTES]
