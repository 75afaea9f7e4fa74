"""Reads what was judged and decided in the past, beside a gateway that may be running; changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, select

from service.errors import BadConfiguration
from service.journal import tables as t
from service.journal.looking import Look
from service.journal.reads import TELLS_OWNERS
from service.journal.schema import check_readable

_PAGE = 200
_BEYOND = 1 << 62
"""Later than any sequence."""
_EVENTS = """
    SELECT sequence, body FROM events
    WHERE sequence > :last AND time >= :since AND time < :until AND environment IS NOT NULL
      AND (coalesce(outcome, '') = 'succeeded' OR coalesce(phase, '') = 'rejected')
    ORDER BY sequence LIMIT :page
"""
_ALL = """
    SELECT sequence, body FROM events
    WHERE sequence > :last AND time >= :since AND time < :until AND phase != 'intent'
    ORDER BY sequence LIMIT :page
"""
_LAST = """
    SELECT sequence, body FROM events
    WHERE sequence < :before AND phase != 'intent'
    ORDER BY sequence DESC LIMIT :page
"""
_MODELS = (
    select(t.events.c.sequence, t.events.c.body)
    .where(t.events.c.sequence > bindparam("last"), TELLS_OWNERS)
    .where(t.events.c.time >= bindparam("since"), t.events.c.time < bindparam("until"))
    .order_by(t.events.c.sequence)
    .limit(bindparam("page"))
)
_PRUNES = "SELECT body FROM events WHERE action = 'audit:prune' ORDER BY sequence"
_FACTS = "SELECT body FROM documents WHERE kind = 'facts' AND digest = :digest"


class Past:
    """A journal, open for reading. Each page is a look of its own, so the writer is never kept waiting."""

    def __init__(self, url: str) -> None:
        """Open the journal at *url*.

        Raises:
            BadConfiguration: there is none, or it has another schema than this version reads.
        """
        check_readable(url)
        self._journal = Look(url)
        self._reached = _BEYOND
        """The oldest event that `newest` has given."""

    def pruned(self, since: float | None = None) -> str | None:
        """Say before when events were pruned, if some may be missing *since*; None: in what `newest` has given.

        Raises:
            BadConfiguration: the journal cannot be read.
        """
        found = None
        for (body,) in self._journal.rows(_PRUNES):
            said = self._parsed("what was pruned", body)["data"]["pruned"]
            if since is None:
                missing = max(item["last"] for item in said["ranges"]) > self._reached
            else:
                missing = datetime.fromisoformat(said["before"]).timestamp() > since
            found = max(found or "", said["before"]) if missing else found
        return found

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
            rows = self._journal.rows(_LAST, before=before, page=_PAGE)
            for sequence, body in rows:
                before = self._reached = sequence
                yield self._parsed(f"event {sequence}", body)
            if len(rows) < _PAGE:
                self._reached = 0
                return

    def _pages(self, query: str | Select[Any], since: float, until: float) -> Iterator[dict[str, Any]]:
        last = 0
        while True:
            rows = self._journal.rows(query, last=last, since=since, until=until, page=_PAGE)
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
        rows = self._journal.rows(_FACTS, digest=digest)
        return self._parsed(f"the document {digest}", rows[0][0]) if rows else None

    def _parsed(self, what: str, body: Any) -> dict[str, Any]:
        """Take a JSON object; some drivers have parsed it already."""
        try:
            found = json.loads(body) if isinstance(body, str) else body
        except ValueError:
            found = None
        if not isinstance(found, dict):
            message = f"{self._journal.name}: {what} is no JSON object; run: registry-gateway audit verify"
            raise BadConfiguration(message)
        return found
