"""Whatever is done to a journal is found, by the event where it shows; on both databases."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from service.audit import Operation, Trail
from service.chain import digest_of, signed_bytes
from service.chain_check import Report
from service.checkpoints import Checkpoints
from service.copies import hashes_of
from service.event import canonical_json
from service.journal import schema, verify
from service.journal.database import asyncpg_url
from service.journal.store import SqlJournal
from service.model import Call, Need, Principal
from tests.contract.test_queries import event

KEY = Ed25519PrivateKey.from_private_bytes(b"7" * 32)
FOREIGN = Ed25519PrivateKey.from_private_bytes(b"8" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
EVENTS = 9
CHECKPOINTS = (1, 6, 9)


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request, tmp_path):
    """A journal of nine events; the first, the sixth and the last are checkpoints."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'journal.db'}"
    else:
        made = await request.getfixturevalue("postgres").database()
    await asyncio.to_thread(schema.upgrade, made)
    journal = SqlJournal(made, deadline_seconds=2.0)
    await journal.start()
    trail = Trail(journal, "/registry-gateway/default/host/boot")
    points = Checkpoints(trail, KEY.sign, cluster="default", kid="k1", seconds=60, events=1000)
    for number in range(1, EVENTS + 1):
        if number in CHECKPOINTS:
            await points.write("test")
        else:
            need = Need("alias:set", "models/iris/aliases/blue")
            call = Call(principal=Principal("user:u"), registry="main", name=f"n{number}", needs=(need,))
            await trail.refused(Operation.opened(call, 0.0), "denied")
    await journal.close()
    return made


class Table:
    """The journal's rows, in the hands of somebody who can write the database."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, statement: str, **parameters):
        def work(connection):
            done = connection.execute(text(statement), parameters)
            return done.all() if done.returns_rows else []

        if self._url.startswith("sqlite"):
            engine = create_engine(self._url)
            with engine.begin() as connection:
                found = work(connection)
            engine.dispose()
            return found
        engine = create_async_engine(asyncpg_url(self._url))
        async with engine.begin() as connection:
            found = await connection.run_sync(work)
        await engine.dispose()
        return found

    async def bodies(self) -> dict[int, str]:
        return dict(map(tuple, await self.run("SELECT sequence, body FROM events ORDER BY sequence")))

    async def set(self, sequence: int, event: dict) -> str:
        body = canonical_json(event).decode()
        digest = digest_of(body.encode())
        data = event["data"]
        columns = {"body": body, "hash": digest, "actor": data["actor"]["subject"], "id": event["id"]}
        columns |= {name: data[name] for name in ("phase", "operation", "action", "registry", "resource", "outcome")}
        names = ", ".join(f"{name} = :{name}" for name in columns)
        await self.run(f"UPDATE events SET {names} WHERE sequence = :sequence", sequence=sequence, **columns)
        return digest

    async def chain_anew(self, begin: int, change) -> None:
        """Change the event *begin* and write all that follow anew, as good as can be done without the key."""
        bodies = await self.bodies()
        previous = json.loads(bodies[begin])["data"]["previous"]
        for number in range(begin, max(bodies) + 1):
            event = json.loads(bodies[number])
            event["data"]["previous"] = previous
            if number == begin:
                change(event)
            point = event["data"].get("checkpoint")
            if point:
                point["hash"] = previous
            previous = await self.set(number, event)


async def examined(url: str, keys=(PUBLIC,), copy=None, most: int = 5) -> Report:
    report = await asyncio.to_thread(verify.examine, url, keys, copy)
    report.judge_uncovered(most, trusted=bool(keys))
    return report


async def test_a_good_journal_is_intact_and_says_how_far_it_is_covered(url):
    report = await examined(url)
    assert report.problems == []
    found = report.found
    assert (found.events, found.first, found.last, found.checkpoints, report.after) == (EVENTS, 1, EVENTS, 3, 0)
    assert (found.checkpoint.event, found.checkpoint.kid, found.checkpoint.verified) == (9, "k1", True)
    document = report.document()
    assert (document["intact"], document["checkpoint"]["event"], document["after_checkpoint"]) == (True, 9, 0)
    without = await examined(url, keys=())
    assert (without.problems, without.found.checkpoint.verified) == ([], False)


EDITS = {
    "id": "'00000000-0000-0000-0000-000000000000'",
    "time": "time + 1",
    "type": "'x'",
    "phase": "'outcome'",
    "operation": "'x'",
    "actor": "'user:v'",
    "action": "'alias:delete'",
    "registry": "'other'",
    "resource": "'models/other'",
    "model": "'m'",
    "version": "'7'",
    "environment": "'production'",
    "outcome": "NULL",
    "hash": f"'{'0' * 64}'",
    "body": "replace(body, 'user:u', 'user:v')",
}


@pytest.mark.parametrize("column", EDITS)
async def test_an_edit_of_any_column_is_found(url, column):
    await Table(url).run(f"UPDATE events SET {column} = {EDITS[column]} WHERE sequence = 4")
    report = await examined(url)
    assert report.problems[0].startswith("event 4 was edited"), report.problems
    assert report.found.events == 3
    if column not in ("hash", "body"):
        assert f"column {column!r}" in report.problems[0]


def test_each_column_of_the_table_is_edited_above():
    from service.journal.tables import events

    assert {column.name for column in events.columns} - {"sequence"} == set(EDITS)


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (["DELETE FROM events WHERE sequence = 4"], "event 4 is missing"),
        (["DELETE FROM events WHERE sequence = 1"], "event 1 is missing"),
        (
            ["DELETE FROM events WHERE sequence = 4", "UPDATE events SET sequence = sequence - 1 WHERE sequence > 4"],
            "event 4 does not follow event 3: it says that it is event 5",
        ),
        (["UPDATE events SET sequence = 100 WHERE sequence = 4"], "event 4 is missing"),
        (["UPDATE events SET sequence = 0 WHERE sequence = 4"], "event 4 is missing"),
        (
            [
                "UPDATE events SET sequence = 100 WHERE sequence = 4",
                "UPDATE events SET sequence = 4 WHERE sequence = 5",
                "UPDATE events SET sequence = 5 WHERE sequence = 100",
            ],
            "event 4 does not follow event 3: it says that it is event 5",
        ),
        (
            [
                (
                    "INSERT INTO events SELECT sequence + 9, 'x', time, type, phase, operation, actor, action,"
                    " registry, resource, model, version, environment, outcome, body, hash FROM events"
                    " WHERE sequence = 1"
                )
            ],
            "event 10 does not follow event 9: it says that it is event 1",
        ),
    ],
    ids=["deletion", "of the first", "closed up", "moved", "moved to the front", "swap", "insertion"],
)
async def test_a_deletion_a_swap_an_insertion_are_found(url, statements, problem):
    for statement in statements:
        await Table(url).run(statement)
    assert (await examined(url)).problems[0] == problem


async def test_an_event_put_in_before_the_first_is_found(url):
    await Table(url).run(
        "INSERT INTO events SELECT 0, 'x', time, type, phase, operation, actor, action, registry,"
        " resource, model, version, environment, outcome, body, hash FROM events WHERE sequence = 1"
    )
    assert (await examined(url)).problems == ["event 0 was put in: the first one is 1"]


async def copied(url: str, path, *, last: int = EVENTS, compress: bool = False):
    opened = gzip.open if compress else open
    with opened(path, "wt") as file:
        file.writelines(f"{body}\n" for number, body in (await Table(url).bodies()).items() if number <= last)
    return hashes_of(path)


@pytest.mark.parametrize("compress", [False, True])
async def test_a_cut_off_end_shows_beside_a_copy_and_by_the_checkpoints(url, tmp_path, compress):
    copy = await copied(url, tmp_path / "copy", compress=compress)
    whole = await examined(url, copy=copy)
    assert (whole.problems, whole.compared) == ([], EVENTS)
    await Table(url).run("DELETE FROM events WHERE sequence > 5")
    assert (await examined(url, keys=())).problems == [], "nothing shows inside it"
    assert (await examined(url, copy=copy)).problems == ["event 6 is in the copy and not in the journal"]
    assert (await examined(url, most=3)).problems == [
        "4 events after event 1, the last checkpoint, are covered by none"
    ]


async def test_a_chain_that_is_written_anew_shows_by_the_signature_and_beside_a_copy(url, tmp_path):
    copy = await copied(url, tmp_path / "copy")

    def change(event):
        event["data"]["actor"]["subject"] = "user:somebody-else"

    await Table(url).chain_anew(4, change)
    assert (await examined(url, keys=())).problems == [], "who does not know the key cannot tell"
    forged = "event 6: its checkpoint is forged, or of a key that is not trusted (k1)"
    forged += "; after a change of keys give each of them: --public-key OLD --public-key NEW"
    assert (await examined(url)).problems == [forged]
    both = await examined(url, copy=copy)
    assert both.problems == [forged, "event 4 is another one in the copy"]


async def test_a_chain_without_any_checkpoint_is_not_trusted(url):
    await Table(url).run("DELETE FROM events")
    assert (await examined(url)).problems == ["no checkpoint is signed with a trusted key"]


def resigned(key, **changes):
    """Sign the checkpoint anew, with *key*, over what it is changed to say."""

    def change(event):
        point = event["data"]["checkpoint"]
        point |= {"hash": event["data"]["previous"], **changes}
        message = signed_bytes(point["cluster"], point["sequence"], point["hash"], event["time"])
        point["signature"] = base64.b64encode(key.sign(message)).decode()

    return change


def moved(event):
    event["data"]["checkpoint"] = MOVED


def unsigned(event):
    del event["data"]["checkpoint"]


def garbage(event):
    event["data"]["checkpoint"]["signature"] = "no base64!"


MOVED = {"cluster": "default", "sequence": 2, "hash": "0" * 64, "kid": "k1", "signature": "AAAA"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (resigned(FOREIGN), "event 6: its checkpoint is forged, or of a key that is not trusted (k1)"),
        (resigned(KEY, sequence=4), "event 6: its checkpoint covers event 4, and not the one before it"),
        (resigned(KEY, cluster="other"), "event 6: its checkpoint is of the cluster 'other', and not of "),
        (moved, "event 6: its checkpoint covers event 2, and not the one before it"),
        (unsigned, "event 6 is a checkpoint without a signature"),
        (garbage, "event 6: its checkpoint is forged, or of a key that is not trusted (k1)"),
    ],
    ids=["foreign key", "other event", "other cluster", "moved", "unsigned", "garbage"],
)
async def test_a_false_checkpoint_is_found(url, change, problem):
    await Table(url).chain_anew(6, change)
    assert (await examined(url)).problems[0].startswith(problem)


async def test_holes_that_retention_made_are_stepped_over(url, tmp_path):
    table, bodies = Table(url), await Table(url).bodies()
    copy = await copied(url, tmp_path / "copy")
    hashes = {number: digest_of(body.encode()) for number, body in bodies.items()}
    for first, last in ((1, 2), (4, 5)):
        values = {"first": first, "last": last, "previous": hashes.get(first - 1, "0" * 64), "hash": hashes[last]}
        await table.run(
            "INSERT INTO pruned (first, last, previous, hash, archive, at) "
            "VALUES (:first, :last, :previous, :hash, 'a.jsonl.gz', 0)",
            **values,
        )
    await table.run("DELETE FROM events WHERE sequence IN (1, 2, 4, 5)")
    assert (await examined(url)).problems == ["event 1 is missing: no event says that it was pruned"]
    rows = await table.run("SELECT first, last, previous, hash FROM pruned")
    ranges = [dict(zip(("first", "last", "previous", "hash"), row, strict=True)) for row in rows]
    journal = SqlJournal(url)
    await journal.start()
    await journal.append([event(0, action="audit:prune", pruned={"archive": "a.jsonl.gz", "ranges": ranges})])
    await journal.close()
    report = await examined(url, copy=copy)
    assert report.problems == []
    assert (report.found.events, report.found.archived, report.found.first, report.compared) == (6, 4, 1, 5)
    assert report.document()["archives"] == ["a.jsonl.gz"]
    await table.run("UPDATE pruned SET hash = :hash WHERE first = 4", hash="1" * 64)
    assert (await examined(url)).problems[0].startswith("event 6 does not follow event 5")
    await table.run("UPDATE pruned SET hash = :hash, previous = :hash WHERE first = 4", hash="1" * 64)
    problem = "event 4, which is in the archive a.jsonl.gz, does not follow the one before"
    assert (await examined(url)).problems == [problem]
    await table.run("DELETE FROM pruned WHERE first = 4")
    assert (await examined(url)).problems == ["event 4 is missing"]
    await table.run("DELETE FROM events")
    assert (await examined(url, keys=())).problems == ["event 1 is missing: no event says that it was pruned"]
    await table.run("UPDATE pruned SET last = 1")
    await table.run("INSERT INTO pruned VALUES (3, 4, :hash, :hash, 'b', 0)", hash="1" * 64)
    assert (await examined(url, keys=())).problems == ["event 2 is missing"]


@pytest.mark.parametrize("damaged", [None, 1, 3, 4, 5, 9, "a column of the first of a part"])
async def test_parts_that_several_processes_check_are_one_chain(url, damaged, monkeypatch):
    monkeypatch.setattr(verify, "_MANY", 0)
    monkeypatch.setattr(verify, "_PART", 4)

    class Pool:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def map(self, function, jobs):
            return map(function, jobs)

        def shutdown(self, **_):
            pass

    monkeypatch.setattr(verify, "ProcessPoolExecutor", Pool)
    if damaged is None:
        report = await examined(url)
        assert (report.problems, report.found.events, report.found.checkpoints, report.after) == ([], EVENTS, 3, 0)
        return
    if isinstance(damaged, str):
        await Table(url).run("UPDATE events SET action = 'x' WHERE sequence = 5")
        report = await examined(url)
        assert report.problems == ["event 5 was edited: the column 'action' is not what the event says"]
        assert (report.found.first, report.found.last) == (1, 4)
        return
    event = json.loads((await Table(url).bodies())[damaged])
    event["data"]["detail"] = "changed"
    await Table(url).set(damaged, event)
    after = damaged + 1
    problems = (await examined(url, most=100)).problems
    if damaged == EVENTS:
        assert problems == [], "the last one has nobody behind it: only a copy shows it"
    else:
        assert problems[0].startswith(f"event {after} does not follow event {damaged}")


async def test_verifying_changes_nothing_and_needs_no_right_to_write(url):
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path)) as connection:
            before = connection.execute("PRAGMA data_version").fetchone()
            assert (await examined(url)).problems == []
            assert connection.execute("PRAGMA data_version").fetchone() == before
    else:
        before = await Table(url).run("SELECT xmin::text, sequence FROM events ORDER BY sequence")
        assert (await examined(url)).problems == []
        assert await Table(url).run("SELECT xmin::text, sequence FROM events ORDER BY sequence") == before
