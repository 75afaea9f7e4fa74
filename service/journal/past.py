"""Reads what was judged and decided in the past, beside a gateway that may be running; changes nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from service.errors import BadConfiguration
from service.journal.schema import check_readable

_PAGE = 200
_BEYOND = 1 << 62
"""Later than any sequence."""
_EVENTS = """
    SELECT sequence, body FROM events
    WHERE sequence > ? AND time >= ? AND time < ? AND environment IS NOT NULL
      AND (outcome = 'succeeded' OR phase = 'rejected')
    ORDER BY sequence LIMIT ?
"""
_ALL = """
    SELECT sequence, body FROM events
    WHERE sequence > ? AND time >= ? AND time < ? AND phase != 'intent'
    ORDER BY sequence LIMIT ?
"""
_LAST = """
    SELECT sequence, body FROM events
    WHERE sequence < ? AND phase != 'intent'
    ORDER BY sequence DESC LIMIT ?
"""
_MODELS = """
    SELECT sequence, body FROM events
    WHERE sequence > ? AND time >= ? AND time < ? AND outcome = 'succeeded'
      AND (action = 'environment:adopt' OR body LIKE '%"kind":"ModelCreate"%'
           OR body LIKE '%"kind":"ModelRename"%' OR body LIKE '%"kind":"ModelDelete"%')
    ORDER BY sequence LIMIT ?
"""


class Past:
    """A journal, open for reading. Each page is a look of its own, so the writer is never kept waiting."""

    def __init__(self, url: str) -> None:
        """Open the journal at *url*.

        Raises:
            BadConfiguration: there is none, or it has another schema than this version reads.
        """
        self._path = check_readable(url)

    def events(self, since: float, until: float) -> Iterator[dict[str, Any]]:
        """Yield events about an environment that succeeded or were rejected, oldest first; *until* is not in it.

        Raises:
            BadConfiguration: the journal cannot be read.
        """
        return self._pages(_EVENTS, since, until)

    def ended(self, since: float, until: float) -> Iterator[dict[str, Any]]:
        """Yield the last event of each call, and sums, oldest first; *until* is not in it.

        Raises:
            BadConfiguration: the journal cannot be read.
        """
        return self._pages(_ALL, since, until)

    def model_changes(self) -> Iterator[dict[str, Any]]:
        """Yield what says who owned a model, from the beginning, oldest first.

        Raises:
            BadConfiguration: the journal cannot be read.
        """
        return self._pages(_MODELS, 0, _BEYOND)

    def newest(self) -> Iterator[dict[str, Any]]:
        """Yield the same, newest first.

        Raises:
            BadConfiguration: the journal cannot be read.
        """
        before = _BEYOND
        while True:
            rows = self._rows(_LAST, (before, _PAGE))
            for sequence, body in rows:
                before = sequence
                yield self._parsed(f"event {sequence}", body)
            if len(rows) < _PAGE:
                return

    def _pages(self, query: str, since: float, until: float) -> Iterator[dict[str, Any]]:
        last = 0
        while True:
            rows = self._rows(query, (last, since, until, _PAGE))
            for sequence, body in rows:
                last = sequence
                yield self._parsed(f"event {sequence}", body)
            if len(rows) < _PAGE:
                return

    def facts(self, digest: str) -> dict[str, Any] | None:
        """Return the facts of this digest, or None where they are not kept.

        Raises:
            BadConfiguration: the journal cannot be read.
        """
        rows = self._rows("SELECT body FROM documents WHERE kind = 'facts' AND digest = ?", (digest,))
        return self._parsed(f"the document {digest}", rows[0][0]) if rows else None

    def _rows(self, query: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as connection:
                return connection.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            message = f"{self._path}: the journal cannot be read: {error}"
            raise BadConfiguration(message) from None

    def _parsed(self, what: str, body: str) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except (ValueError, TypeError):
            found = None
        if not isinstance(found, dict):
            message = f"{self._path}: {what} is no JSON object; run: registry-gateway audit verify"
            raise BadConfiguration(message)
        return found
