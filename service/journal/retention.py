"""Retention: moves old events into the archive, and out of the journal what nothing asks for any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Connection, Select, and_, delete, func, insert, not_, or_, select, update

from service.chain import GENESIS
from service.errors import BadConfiguration, GatewayError
from service.event import Event, build_event, of_the_record, shown_time
from service.journal import tables as t
from service.journal.archive import Archived, Manifest, manifests, read_segment, write_segment
from service.journal.database import FAILURES, Database, open_database, shown
from service.journal.looking import Look
from service.journal.reads import TELLS_OWNERS
from service.journal.writes import Job, head_of, store
from service.model import resource

DAY_SECONDS = 86400.0
ACTION = "audit:prune"
_SEGMENT = 5_000
_MAX_RANGES = 50
"""So many fit into one event."""
_WRITE_SECONDS = 10.0
_FIRST_SECONDS = 60.0
_PAGE = "SELECT sequence, body, hash, time FROM events WHERE sequence > :last ORDER BY sequence LIMIT :page"
_END = "SELECT max(sequence) FROM events"
_HASH = "SELECT hash FROM events WHERE sequence = :sequence"
_ALONE = update(t.holds).where(t.holds.c.id == "").values(lifted_by="")
"""Begins to write, so that no hold is placed between looking and deleting."""
_c = t.events.c
_log = structlog.get_logger()


class Done(NamedTuple):
    """How many events were archived and pruned."""

    archived: int
    pruned: int


class Retention:
    """Archives and prunes the journal at one place; several processes may do it, each event goes once."""

    def __init__(
        self,
        url: str,
        archive: Path,
        *,
        keep_days: float,
        now: Callable[[], float],
        source: str,
        max_lag_days: float | None = None,
    ) -> None:
        """Keep events of *keep_days* in the journal *url*; older ones go into the directory *archive*.

        *source* names this process in the events that say what was pruned.

        No event is pruned that a follower has not read, unless it stood still for *max_lag_days*.
        """
        self._url = url
        self._archive = archive
        self._keep_seconds = keep_days * DAY_SECONDS
        self._lag_seconds = None if max_lag_days is None else max_lag_days * DAY_SECONDS
        self._now = now
        self._source = source

    def archive(self) -> int:
        """Write what is old into the archive; return how many events. The journal is not changed.

        Raises:
            BadConfiguration: the archive is another journal's, or one of the two cannot be read or written.
        """
        known = manifests(self._archive) if self._archive.exists() else []
        last, previous = (known[-1].last, known[-1].hash) if known else (0, GENESIS)
        before = self._now() - self._keep_seconds
        count = 0
        with Look(self._url) as journal:
            self._check_same(journal, last, previous)
            while True:
                rows: list[Archived] = []
                for sequence, body, digest, time in journal.rows(_PAGE, last=last, page=_SEGMENT):
                    if time >= before:
                        break
                    if sequence != last + len(rows) + 1:
                        message = f"{journal.name}: event {last + len(rows) + 1} is in neither journal nor archive"
                        raise BadConfiguration(message)
                    rows.append((sequence, body.encode(), digest))
                if not rows:
                    return count
                done = write_segment(self._archive, previous, rows)
                last, previous, count = done.last, done.hash, count + done.count

    def _check_same(self, journal: Look, last: int, digest: str) -> None:
        ((end,),) = journal.rows(_END)
        if (end or 0) < last:
            message = (
                f"{journal.name}: it ends with event {end or 0}, and the archive {self._archive} with event {last}: "
            )
            raise BadConfiguration(message + "it is another journal, or its end was cut off")
        found = journal.rows(_HASH, sequence=last)
        if found and found[0][0] != digest:
            message = f"{self._archive}: the archive of another journal than {journal.name}: event {last} differs"
            raise BadConfiguration(message)

    async def prune(self) -> int:
        """Delete from the journal what is in the archive, is old, and is asked for by nothing; return how many.

        A segment is read and verified before anything of it is deleted, in one transaction with the event that says so.

        Raises:
            BadConfiguration: the archive is not whole, or not this journal's. Nothing of that segment is deleted.
        """
        segments = await asyncio.to_thread(manifests, self._archive) if self._archive.exists() else []
        database = open_database(self._url, _WRITE_SECONDS)
        try:
            return sum([await self._prune(database, segment) for segment in segments])
        except FAILURES as error:
            message = f"{shown(self._url)}: the journal cannot be pruned: {getattr(error, 'orig', None) or error}"
            raise BadConfiguration(message) from None
        finally:
            await database.close()

    async def _prune(self, database: Database, segment: Manifest) -> int:
        if not await database.read(lambda connection: self._deletable(connection, segment)):
            return 0
        rows = await asyncio.to_thread(read_segment, self._archive, segment)
        hashes = {segment.first - 1: segment.previous, **{sequence: digest for sequence, _, digest in rows}}
        job = Job((), (), asyncio.get_running_loop().create_future(), None)
        return await database.write(partial(self._delete, segment, hashes, job))

    def _delete(self, segment: Manifest, hashes: dict[int, str], job: Job, connection: Connection) -> int:
        connection.execute(_ALONE)
        deletable = self._deletable(connection, segment)
        for sequence, digest in deletable:
            if hashes[sequence] != digest:
                message = f"{self._archive}: event {sequence} is not the one in {shown(self._url)}; nothing was pruned"
                raise BadConfiguration(message)
        ranges: list[dict[str, Any]] = []
        for first, last in _runs(sequence for sequence, _ in deletable):
            values = {"first": first, "last": last, "previous": hashes[first - 1], "hash": hashes[last]}
            connection.execute(insert(t.pruned).values(**values, archive=segment.stem, at=self._now()))
            connection.execute(delete(t.events).where(_c.sequence.between(first, last)))
            ranges.append(values)
        parts = [ranges[at : at + _MAX_RANGES] for at in range(0, len(ranges), _MAX_RANGES)]
        job.events = [self._event(segment, part) for part in parts]
        if parts:
            store(connection, [job], head_of(connection))
        return len(deletable)

    def _event(self, segment: Manifest, ranges: list[dict[str, Any]]) -> Event:
        """Make the event that says what is deleted: it is in the chain, so a hole that nobody made shows."""
        now = self._now()
        pruned = {"archive": segment.stem, "before": shown_time(now - self._keep_seconds), "ranges": ranges}
        data = of_the_record(ACTION, "outcome", pruned=pruned)
        return build_event(ACTION, "outcome", data, self._source, now, "audit")

    def _deletable(self, connection: Connection, segment: Manifest) -> list[tuple[int, str]]:
        """List sequence and hash of the events of a segment that nothing keeps."""
        before = self._now() - self._keep_seconds
        end = select(func.max(_c.sequence)).scalar_subquery()
        kept = or_(TELLS_OWNERS, _c.action == ACTION, *self._of_operations(before), *self._held(connection))
        query = (
            select(_c.sequence, _c.hash)
            .where(
                _c.sequence.between(segment.first, segment.last), _c.sequence < end
            )  # the chain goes on from its end
            .where(_c.time < before, not_(func.coalesce(kept, False)))  # SQL's
            .order_by(_c.sequence)
        )
        slowest = self._slowest(connection)
        if slowest is not None:
            query = query.where(_c.sequence <= slowest)
        return [(row.sequence, row.hash) for row in connection.execute(query)]

    @staticmethod
    def _of_operations(before: float) -> list[Any]:
        """Give the conditions that keep what operations are asked for: unsettled ones, what is live, open debts."""
        open_ones = select(t.operations.c.id).where(t.operations.c.state.in_(("open", "unknown", "unproven")))
        live = select(t.periods.c.operation).where(or_(t.periods.c.until.is_(None), t.periods.c.until >= before))
        owed = select(t.debts.c.id).where(t.debts.c.closed_at.is_(None))
        return [_c.operation.in_(query) for query in (open_ones, live, owed)]

    @staticmethod
    def _held(connection: Connection) -> list[Any]:
        """Give the conditions that keep what is under legal hold, whatever a model was named before or after."""
        holds = connection.execute(select(t.holds.c.registry, t.holds.c.model).where(t.holds.c.lifted_at.is_(None)))
        conditions: list[Any] = []
        for registry, model in holds:
            if not model:
                conditions.append(_c.registry == registry)
                continue
            about: list[Any] = [_c.model.in_(names := names_of(connection, registry, model))]
            for name in names:
                place = resource("models", name)
                about += [_c.resource == place, _c.resource.startswith(f"{place}/", autoescape=True)]
            conditions.append(and_(_c.registry == registry, or_(*about)))
        return conditions

    def _slowest(self, connection: Connection) -> int | None:
        """Return up to where all followers have read; None where there are none."""
        found = connection.execute(self._followers(func.min(t.followers.c.sequence))).scalar()
        return None if found is None else int(found)

    def _followers(self, *what: Any) -> Select[Any]:
        """Select *what* of the followers that hold events back."""
        query = select(*what)
        if self._lag_seconds is not None:
            query = query.where(t.followers.c.at >= self._now() - self._lag_seconds)
        return query

    def waiting_for(self) -> list[str]:
        """Name the followers that have not read all that is in the archive, so that it stays in the journal.

        Raises:
            BadConfiguration: archive or journal cannot be read.
        """
        known = manifests(self._archive) if self._archive.exists() else []
        if not known:
            return []
        query = self._followers(t.followers.c.name).where(t.followers.c.sequence < known[-1].last)
        with Look(self._url) as journal:
            return [str(name) for (name,) in journal.rows(query.order_by(t.followers.c.sequence))]

    async def run(self) -> Done:
        """Archive, then prune.

        Raises:
            BadConfiguration: see there.
        """
        archived = await asyncio.to_thread(self.archive)
        return Done(archived, await self.prune())

    async def run_daily(self, leads: Callable[[], bool]) -> None:
        """Do it once a day while this process *leads*; what fails is logged, and tried again the next day."""
        await asyncio.sleep(_FIRST_SECONDS)
        while True:
            if leads():
                try:
                    done = await self.run()
                    waiting = await asyncio.to_thread(self.waiting_for)
                    _log.info("retention", archived=done.archived, pruned=done.pruned, waiting_for=waiting)
                except GatewayError as error:
                    _log.error("retention failed", problem=error.detail)
            await asyncio.sleep(DAY_SECONDS)


def names_of(connection: Connection, registry: str, model: str) -> list[str]:
    """List the names that *model* had or has, by the renames on record."""
    renames = select(_c.body).where(
        _c.registry == registry, _c.outcome == "succeeded", _c.body.contains('"kind":"ModelRename"')
    )
    pairs = []
    for (body,) in connection.execute(renames):
        change = json.loads(body)["data"]["change"]
        if change["kind"] == "ModelRename":
            pairs.append({change["model"], change["new_name"]})
    names, before = {model}, 0
    while len(names) != before:
        before = len(names)
        for pair in pairs:
            names |= pair if names & pair else set()
    return sorted(names)


def _runs(sequences: Iterable[int]) -> list[tuple[int, int]]:
    """Give the first and the last of each run of numbers without a gap."""
    runs: list[tuple[int, int]] = []
    for sequence in sequences:
        if runs and runs[-1][1] == sequence - 1:
            runs[-1] = (runs[-1][0], sequence)
        else:
            runs.append((sequence, sequence))
    return runs
