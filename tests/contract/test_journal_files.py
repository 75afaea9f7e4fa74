"""A journal on SQLite whose files are taken away, exchanged or used by a second process: nothing told is lost."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest

from service.audit import Operation, Trail
from service.change import AliasSet
from service.errors import JournalUnavailable
from service.journal import schema
from service.journal.store import SqlJournal
from service.journal.verify import verify
from service.model import Call, Need, Principal
from tests.conftest import free_port, new_journal, write_configuration

HOLDER = """
import asyncio, sys
from service.journal.store import SqlJournal
async def main():
    await SqlJournal(sys.argv[1]).start()
    print("claimed", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class Kept:
    """A journal, and what was told to be in it."""

    def __init__(self, path) -> None:
        self.path, self.url, self.told = path, f"sqlite:///{path}", []
        self.journal = SqlJournal(self.url, deadline_seconds=1.0)
        self.trail = Trail(self.journal, "/test")

    async def intend(self) -> None:
        call = Call(
            principal=Principal("user:u"),
            registry="main",
            name="setAlias",
            needs=(Need("alias:set", f"models/m{len(self.told)}/aliases/blue"),),
            change=AliasSet(f"m{len(self.told)}", "blue", "1"),
        )
        operation = Operation.opened(call, 1000.0 + len(self.told))
        await self.trail.intent(operation)
        self.told.append(operation.id)

    async def is_refused(self, says: str = "cannot be written") -> None:
        before = len(self.told)
        with pytest.raises(JournalUnavailable, match=says):
            await self.intend()
        assert len(self.told) == before

    def stored(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return [row[0] for row in connection.execute("SELECT operation FROM events ORDER BY sequence")]


@pytest.fixture
async def kept(tmp_path):
    made = Kept(tmp_path / "journal.db")
    await asyncio.to_thread(new_journal, made.url)
    await made.journal.start()
    for _ in range(3):
        await made.intend()
    yield made
    await made.journal.close()


async def test_a_log_that_is_deleted_is_saved_into_the_database(kept):
    for _ in range(3):
        kept.path.with_name("journal.db-wal").unlink()
        await kept.intend()
        await kept.journal.events({}, 0, 10)
        await kept.intend()
    assert kept.stored() == kept.told
    assert verify(kept.url) == (9, None)


async def test_a_log_that_is_deleted_in_the_middle_is_saved_before_anything_is_told(kept, monkeypatch):
    database = kept.journal._database
    check, calls = database._files.check, iter(["before it", "after the commit"])

    def after_the_commit() -> None:
        if next(calls, "") == "after the commit":
            kept.path.with_name("journal.db-wal").unlink()
        check()

    monkeypatch.setattr(database._files, "check", after_the_commit)
    await kept.intend()
    shutil.copy(kept.path, kept.path.with_name("copy.db"))  # what is there if the process dies now, without a log
    with contextlib.closing(sqlite3.connect(kept.path.with_name("copy.db"))) as connection:
        rows = [row[0] for row in connection.execute("SELECT operation FROM events ORDER BY sequence")]
    assert rows == kept.told


async def test_a_journal_that_is_taken_away_is_no_journal_until_it_is_back(kept):
    aside = kept.path.with_name("aside.db")
    kept.path.rename(aside)
    await kept.is_refused()
    await kept.is_refused()
    assert not kept.path.exists()  # and none is made
    aside.rename(kept.path)
    await kept.intend()
    assert kept.stored() == kept.told
    assert verify(kept.url) == (4, None)


async def test_another_journal_in_its_place_is_refused_by_name(kept, tmp_path):
    aside = kept.path.with_name("aside.db")
    await kept.intend()
    kept.path.rename(aside)
    await asyncio.to_thread(new_journal, kept.url)
    await kept.is_refused()
    await kept.is_refused("does not hold what was stored in it")
    await kept.is_refused("does not hold what was stored in it")
    with contextlib.closing(sqlite3.connect(kept.path)) as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (0,)
    aside.rename(kept.path)
    await kept.intend()
    assert kept.stored() == kept.told
    assert verify(kept.url) == (5, None)


async def test_a_journal_that_was_put_back_from_an_older_copy_is_refused(kept):
    with contextlib.closing(sqlite3.connect(kept.path)) as connection:
        connection.execute("VACUUM INTO ?", (str(kept.path.with_name("backup.db")),))
    await kept.intend()
    kept.path.with_name("backup.db").rename(kept.path)
    await kept.is_refused()
    await kept.is_refused("lost events")


@pytest.fixture
def holder(tmp_path):
    """Another process that uses the journal."""
    path = tmp_path / "journal.db"
    new_journal(f"sqlite:///{path}")
    process = subprocess.Popen([sys.executable, "-c", HOLDER, f"sqlite:///{path}"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


async def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(holder, tmp_path):
    path, link = tmp_path / "journal.db", tmp_path / "link.db"
    link.symlink_to(path)
    journal = SqlJournal(f"sqlite:///{path}", deadline_seconds=1.0)
    by_another_name = SqlJournal(f"sqlite:///{link}", deadline_seconds=1.0)
    with pytest.raises(JournalUnavailable, match=rf"Another process \({holder.pid}\) uses the journal {path}"):
        await journal.start()
    with pytest.raises(JournalUnavailable, match="Another process"):
        await by_another_name.start()
    assert verify(f"sqlite:///{path}") == (0, None)  # readers go on beside it
    schema.check(f"sqlite:///{path}")
    holder.send_signal(signal.SIGKILL)
    await asyncio.to_thread(holder.wait)
    await journal.start()
    await journal.close()
    await by_another_name.close()


def test_serve_refuses_a_journal_in_use_in_one_line(holder, tmp_path):
    config = write_configuration(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--config", str(config), "--port", str(free_port())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert f"Another process ({holder.pid}) uses the journal" in done.stderr


async def test_a_lock_that_is_taken_away_is_taken_again_or_nothing_is_written(kept):
    lock = kept.path.with_name("journal.db.lock")
    lock.unlink()
    await kept.intend()
    lock.unlink()
    other = SqlJournal(kept.url, deadline_seconds=1.0)
    await other._database.claim()
    await kept.is_refused()
    await other._database.close()
    await kept.intend()
    assert kept.stored() == kept.told
