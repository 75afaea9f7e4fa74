"""Retention: nothing is lost, nothing is pruned that is asked for, and what is left is one chain with the archive."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from service.effects import MadeLive, Opened, Owed, Settled, TakenDown
from service.errors import BadConfiguration
from service.journal import retention as module
from service.journal import schema
from service.journal.archive import manifests, read_archive
from service.journal.looking import Look
from service.journal.retention import DAY_SECONDS, Retention
from service.journal.store import SqlJournal
from service.journal.verify import verify
from service.owners import OwnersOverTime
from service.records import Debt, LivePeriod
from tests.conftest import ROOT
from tests.contract.test_journal import beside
from tests.contract.test_queries import event

NOW = 1_790_000_000.0 + 400 * DAY_SECONDS
OLD = 1_790_000_000.0
IS_PRUNE = "action = 'audit:prune'"


def of(url, archive, keep_days=100, **options):
    return Retention(url, archive, keep_days=keep_days, now=lambda: NOW, source="/test", **options)


async def left(journal):
    """List the events that are left; those that say what was pruned come on top."""
    return [sequence for sequence, item in await journal.events({}, 0, 1000) if item["data"]["action"] != "audit:prune"]


async def checked(url, archive=None):
    """Verify; return how many events there are without those that say what was pruned, and what is wrong."""
    events, problem = await asyncio.to_thread(verify, url, archive)
    prunes = await numbers_in(url, f"SELECT sequence, sequence FROM events WHERE {IS_PRUNE}")
    return events - len(prunes), problem


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "_SEGMENT", 4)


async def test_old_events_move_into_the_archive_and_the_chain_stays_whole(journal, url, tmp_path, small):
    await journal.append([event(OLD + number) for number in range(10)])
    await journal.append([event(NOW - DAY_SECONDS) for _ in range(3)])
    archive = tmp_path / "archive"
    before = [body.encode() for _, body in (await journal.page({}, None, 100)).rows]
    assert await of(url, archive).run() == (10, 10)
    assert await left(journal) == [11, 12, 13]
    assert [body for _, body, _ in read_archive(archive)] == before[:10]
    assert [item.count for item in manifests(archive)] == [4, 4, 2]
    assert (await checked(url), await checked(url, archive)) == ((3, None), (13, None))
    assert await of(url, archive).run() == (0, 0)  # again
    stored = await journal.append([event(NOW)])
    assert stored[0]["data"]["sequence"] == 17  # three segments, of each an event
    assert await checked(url, archive) == (14, None)


async def test_archiving_alone_leaves_the_journal_as_it_is(journal, url, tmp_path):
    await journal.append([event(OLD), event(OLD), event(NOW)])
    assert await asyncio.to_thread(of(url, tmp_path / "a").archive) == 2
    assert await left(journal) == [1, 2, 3]


async def test_the_last_event_stays_for_the_chain_to_go_on(url, tmp_path):
    for stored in (1, 4):  # the third is the event that says that the first was pruned
        journal = SqlJournal(url, 2.0)
        await journal.start()
        numbers = [item["data"]["sequence"] for item in await journal.append([event(OLD), event(OLD)])]
        assert numbers == [stored, stored + 1]
        await of(url, tmp_path / "a").run()  # beside it
        await journal.close()
    assert (await checked(url), await checked(url, tmp_path / "a")) == ((2, None), (4, None))


async def test_a_process_goes_on_although_the_last_event_that_it_stored_is_pruned(journal, url, tmp_path):
    """It looks for that event where a write failed, or where somebody else has written."""
    await journal.append([event(OLD), event(OLD, change=CHANGE, model="iris"), event(OLD), event(OLD)])
    for _ in range(2):
        await of(url, tmp_path / "a").run()
    assert await left(journal) == [2]
    journal._head = None  # as a failure leaves it
    (stored,) = await journal.append([event(NOW)])
    assert stored["data"]["sequence"] == 7
    assert (await checked(url, tmp_path / "a"))[1] is None


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (
            (
                "INSERT INTO pruned SELECT 4, 5, (SELECT hash FROM events WHERE sequence = 3), "
                "(SELECT hash FROM events WHERE sequence = 5), 'a', 0"
            ),
            "event 4 is missing: no event says that it was pruned",
        ),
        ("UPDATE pruned SET last = 3, hash = (SELECT hash FROM events WHERE sequence = 3)", "event 1 is missing: "),
        ("UPDATE pruned SET previous = hash", "event 1, which is in the archive"),
    ],
)
async def test_a_hole_that_retention_did_not_make_is_found_without_the_archive(
    journal, url, tmp_path, statement, problem
):
    await journal.append([event(OLD), event(OLD)])
    await journal.append([event(NOW) for _ in range(5)])
    await of(url, tmp_path / "a").run()
    assert await checked(url) == (5, None)
    await beside(
        url, statement, "DELETE FROM events WHERE EXISTS (SELECT 1 FROM pruned WHERE sequence BETWEEN first AND last)"
    )
    assert (await checked(url))[1].startswith(problem)


PERIOD = LivePeriod(
    "production", "1", "b", OLD, None, "user:u", "the-operation", "r", (), "promotion", None, True, "iris"
)
DEBT = Debt("the-operation", "main", "iris", "production", "1", "user:u", ("user:u",), "r", "t", ("rule",), OLD)
CHANGE = {"kind": "ModelCreate", "model": "iris"}


def kept_by(name):
    opened = Opened("the-operation", "d", "main", None, OLD)
    live = MadeLive("main", "iris", PERIOD)
    return {
        "an open operation": ([opened], {}),
        "one whose outcome is unknown": ([opened, Settled("the-operation", "unknown")], {}),
        "one that could not be proved": ([opened, Settled("the-operation", "unproven")], {}),
        "what is live": ([live], {}),
        "what was live until lately": ([live, TakenDown("main", "iris", (), NOW - DAY_SECONDS)], {}),
        "an emergency that nobody reviewed": ([Owed(DEBT)], {}),
        "who owns a model": ([], {"change": CHANGE, "model": "iris"}),
        "a baseline": ([], {"action": "environment:adopt"}),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "an open operation",
        "one whose outcome is unknown",
        "one that could not be proved",
        "what is live",
        "what was live until lately",
        "an emergency that nobody reviewed",
        "who owns a model",
        "a baseline",
    ],
)
async def test_what_is_still_asked_for_stays(journal, url, tmp_path, name):
    effects, data = kept_by(name)
    await journal.append([event(OLD)])
    await journal.append([event(OLD, operation="the-operation", **data)], effects)
    await journal.append([event(OLD), event(NOW)])
    assert await of(url, tmp_path / "a").run() == (3, 2)
    assert await left(journal) == [2, 4]
    assert (await checked(url), await checked(url, tmp_path / "a")) == ((2, None), (4, None))


async def test_what_ended_long_ago_goes(journal, url, tmp_path):
    opened = Opened("the-operation", "d", "main", None, OLD)
    await journal.append([event(OLD, operation="the-operation")], [opened, MadeLive("main", "iris", PERIOD)])
    await journal.append([event(OLD)], [Settled("the-operation", "succeeded"), TakenDown("main", "iris", (), OLD + 1)])
    await journal.append([event(NOW)])
    assert await of(url, tmp_path / "a").run() == (2, 2)


async def test_owners_are_who_they_were(journal, url, tmp_path):
    def told(kind, **more):
        change = {"kind": kind, "model": "iris", **more}
        return event(OLD, model="iris", change=change, action="model:create", actor={"subject": "user:anna"})

    await journal.append([told("ModelCreate"), event(OLD), told("ModelRename", new_name="rose"), event(NOW)])
    before = [item for _, item in [await journal.model_changes(0)]]
    assert await of(url, tmp_path / "a").run() == (3, 1)
    after = [item for _, item in [await journal.model_changes(0)]]
    assert before == after
    assert OwnersOverTime(after[0]).owned("user:anna", "main", "models/rose", "2090")
    assert await journal.present_name("main", "iris", OLD - 1) == "rose"


UNKNOWN_HOLD = "holds: h was put in: no event recorded it"
"""What verify says of a hold that was placed beside the gateway."""


async def hold(url, identifier, model):
    await beside(url, f"INSERT INTO holds VALUES ('{identifier}', 'main', '{model}', 'r', 'user:l', {OLD}, NULL, '')")


async def test_a_legal_hold_keeps_the_events_of_its_model_whatever_its_name(journal, url, tmp_path):
    rename = {"kind": "ModelRename", "model": "iris", "new_name": "rose"}
    await journal.append(
        [
            event(OLD, model="iris", resource="models/iris"),  # 1: before it had its name
            event(OLD, model="lily", resource="models/lily"),
            event(OLD, model="iris", change=rename),
            event(OLD, model="rose", resource="models/rose"),
            event(OLD, model="rosebud", resource="models/rosebud/aliases/x"),
            event(OLD, model=None, resource="models/rose/aliases/x"),  # 6: a denied one
            event(OLD, model="rose", resource="models/rose", registry="lake"),
            event(NOW),
        ]
    )
    await hold(url, "h", "rose")
    assert await of(url, tmp_path / "a").run() == (7, 3)
    assert await left(journal) == [1, 3, 4, 6, 8]
    assert (await checked(url), await checked(url, tmp_path / "a")) == ((5, None), (8, UNKNOWN_HOLD))
    await beside(url, f"UPDATE holds SET lifted_at = {OLD}, lifted_by = 'x'")
    assert await of(url, tmp_path / "a").run() == (0, 3)
    assert await left(journal) == [3, 8]  # the rename says who owns it
    assert (await checked(url), await checked(url, tmp_path / "a")) == ((2, None), (8, UNKNOWN_HOLD))


async def test_a_hold_of_a_registry_keeps_all_of_it(journal, url, tmp_path):
    await journal.append([event(OLD, model="iris"), event(OLD, registry="lake"), event(NOW)])
    await hold(url, "h", "")
    assert await of(url, tmp_path / "a").run() == (2, 1)
    assert await left(journal) == [1, 3]


async def test_what_a_follower_has_not_read_stays(journal, url, tmp_path):
    await journal.append([event(OLD) for _ in range(5)])
    await journal.append([event(NOW)])
    await beside(url, f"INSERT INTO followers VALUES ('fast', 6, {NOW}), ('slow', 2, {NOW - 3 * DAY_SECONDS})")
    assert await of(url, tmp_path / "a").run() == (5, 2)
    assert await of(url, tmp_path / "a", max_lag_days=4).run() == (0, 0)
    assert await of(url, tmp_path / "a", max_lag_days=2).run() == (0, 3)
    assert await checked(url, tmp_path / "a") == (6, None)


async def test_several_at_once_prune_each_event_once(journal, url, tmp_path, small):
    await journal.append([event(OLD) for _ in range(20)])
    await journal.append([event(NOW)])
    each = of(url, tmp_path / "a")
    await asyncio.to_thread(each.archive)
    found = await asyncio.gather(*(each.prune() for _ in range(4)), return_exceptions=True)
    done = [item for item in found if isinstance(item, int)]
    assert sum(done) == 20, found
    assert (await checked(url), await checked(url, tmp_path / "a")) == ((1, None), (21, None))


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def edit(path):
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"user:u", b"user:v"), mtime=0))


def forge(path, content):
    """Put *content* in the place of a segment, and name it in the manifest."""
    packed = gzip.compress(content, mtime=0)
    path.write_bytes(packed)
    manifest = path.with_name(path.name.replace(".jsonl.gz", ".json"))
    said = json.loads(manifest.read_bytes())
    manifest.write_text(json.dumps({**said, "sha256": hashlib.sha256(packed).hexdigest()}))


def nest(path):
    forge(path, b"[" * 100_000 + b"\n")


async def test_a_link_in_the_archive_is_not_followed(journal, url, tmp_path):
    await journal.append([event(OLD), event(OLD), event(NOW)])
    archive, other = tmp_path / "a", tmp_path / "other"
    archive.mkdir()
    other.write_text("precious")
    (archive / f"events-{1:015d}-{2:015d}.jsonl.gz.part").symlink_to(other)
    with pytest.raises(BadConfiguration, match="the archive cannot be written"):
        await of(url, archive).run()
    assert (other.read_text(), await left(journal)) == ("precious", [1, 2, 3])


@pytest.mark.parametrize("damage", [cut, edit, nest, lambda path: path.unlink()])
async def test_nothing_is_pruned_by_a_damaged_archive(journal, url, tmp_path, damage):
    await journal.append([event(OLD), event(OLD), event(NOW)])
    each = of(url, tmp_path / "a")
    await asyncio.to_thread(each.archive)
    (segment,) = (tmp_path / "a").glob("*.gz")
    damage(segment)
    with pytest.raises(BadConfiguration, match=segment.name.replace(".", "\\.")):
        await each.prune()
    assert await left(journal) == [1, 2, 3]
    assert segment.name in (await checked(url, tmp_path / "a"))[1]


async def test_the_archive_of_another_journal_is_refused(journal, url, tmp_path):
    await journal.append([event(OLD), event(OLD), event(NOW)])
    other = f"sqlite:///{tmp_path}/other.db"
    await asyncio.to_thread(schema.upgrade, other)
    one = SqlJournal(other, 2.0)
    await one.start()
    await one.append([event(OLD), event(OLD), event(NOW)])
    await one.close()
    await asyncio.to_thread(of(other, tmp_path / "a").archive)
    with pytest.raises(BadConfiguration, match="the archive of another journal"):
        await of(url, tmp_path / "a").run()
    with pytest.raises(BadConfiguration, match="event 1 is not the one in"):
        await of(url, tmp_path / "a").prune()
    assert await left(journal) == [1, 2, 3]


async def test_a_journal_that_ends_before_its_archive_is_found(journal, url, tmp_path):
    await journal.append([event(OLD) for _ in range(5)])
    await asyncio.to_thread(of(url, tmp_path / "a").archive)
    assert await checked(url, tmp_path / "a") == (5, None)
    await beside(url, "DELETE FROM events WHERE sequence > 3")
    problem = "event 4 is in the archive and not in the journal: its end was cut off"
    assert (await checked(url), (await checked(url, tmp_path / "a"))[1]) == ((3, None), problem)
    with pytest.raises(BadConfiguration, match=r"it ends with event 3, and the archive .* with event 5"):
        await of(url, tmp_path / "a").run()


async def test_an_archive_that_went_missing_is_not_begun_anew(journal, url, tmp_path):
    await journal.append([event(OLD), event(OLD), event(OLD)])
    await of(url, tmp_path / "a").run()
    with pytest.raises(BadConfiguration, match="event 1 is in neither journal nor archive"):
        await of(url, tmp_path / "b").run()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE events SET body = replace(body, 'user:u', 'user:w') WHERE sequence = 5", "event 5 was edited"),
        ("DELETE FROM events WHERE sequence = 5", "event 5 is missing"),
        ("DELETE FROM pruned", "event 1 is missing"),
        ("UPDATE pruned SET last = 4 WHERE first = 1", "event 4 does not follow event 3"),
    ],
)
async def test_a_change_beside_what_was_pruned_is_found(journal, url, tmp_path, statement, problem):
    await journal.append([event(OLD) for _ in range(3)])
    await journal.append([event(NOW) for _ in range(3)])
    await of(url, tmp_path / "a").run()
    await beside(url, statement)
    found = (await checked(url))[1]
    assert found == problem or (problem.startswith("event 4 does") and found), found


CHILD = """
import asyncio, os, signal, sys
from pathlib import Path
steps = int(sys.argv[3])

def dying(call):
    def counted(*arguments, **named):
        global steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return counted

for place, name in ((os, "fsync"), (Path, "replace")):
    setattr(place, name, dying(getattr(place, name)))
from sqlalchemy import Connection
from sqlalchemy.engine.default import DefaultDialect
Connection.execute = dying(Connection.execute)
DefaultDialect.do_commit = dying(DefaultDialect.do_commit)
from service.journal import retention
retention._SEGMENT = 4
done = retention.Retention(sys.argv[1], Path(sys.argv[2]), keep_days=100, now=lambda: float(sys.argv[4]), source="/t")
print(asyncio.run(done.run()))
"""


async def filled(url):
    """Make a journal of six old events, of which the third says who owns a model; return their bodies."""
    await asyncio.to_thread(schema.upgrade, url)
    journal = SqlJournal(url, 2.0)
    await journal.start()
    await journal.append([event(OLD, **({"change": CHANGE} if number == 2 else {})) for number in range(6)])
    bodies = dict((await journal.page({}, None, 100)).rows)
    await journal.close()
    return bodies


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_kill_at_any_step_loses_nothing_and_prunes_nothing_twice(request, kind, tmp_path, small):
    """Each run dies some steps later than the one before, until one gets through; another one finishes each."""
    step, kills, alive = 1, 0, False
    while not alive:
        step += 1 if os.environ.get("FAULTS_LONG") else 3
        url, archive = f"sqlite:///{tmp_path}/{step}.db", tmp_path / str(step)
        if kind == "postgresql":
            url = await request.getfixturevalue("postgres").database()
        bodies = await filled(url)
        child = [sys.executable, "-c", CHILD, url, str(archive), str(step), str(NOW)]
        done = await asyncio.to_thread(subprocess.run, child, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        alive = done.returncode == 0
        kills += not alive
        await whole(url, archive, bodies)
        await of(url, archive).run()
        await whole(url, archive, bodies)
        assert await numbers_in(url, "SELECT first, last FROM pruned") == [1, 2, 4, 5, 6]  # 3 stays
    assert kills > 8
    print(f"{kills} kills, 0 events lost, 0 pruned twice")


async def whole(url, archive, bodies):
    """Check that each event is in the journal or the archive, as it was, and each chain intact."""
    there = {sequence: body.decode() for sequence, body, _ in read_archive(archive)} if archive.exists() else {}
    present = dict(await asyncio.to_thread(rows_of, url, f"SELECT sequence, body FROM events WHERE NOT {IS_PRUNE}"))
    assert {**there, **present} == bodies
    assert (await checked(url))[1] is None
    assert await checked(url, archive if archive.exists() else None) == (6, None)


async def numbers_in(url, query):
    ranges = await asyncio.to_thread(rows_of, url, query)
    return sorted(number for first, last in ranges for number in range(first, last + 1))


def rows_of(url, query):
    with Look(url) as journal:
        return journal.rows(query)
