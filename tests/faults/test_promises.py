"""Nothing changes unseen and nothing is lost, whatever happens: the short form of ``make faults``."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from service import app
from tests.conftest import new_journal
from tests.faults.checker import Checker, Counts
from tests.faults.deployment import deployed
from tests.faults.failpoints import FAILPOINTS
from tests.faults.faults import FAULTS, POSTGRES, SQLITE, possible
from tests.faults.long import postgres_in
from tests.faults.proxy import Seen

SHORT = {
    SQLITE: (
        "kill -9 at random",
        "journal: log deleted, then kill -9",
        "journal: another in its place",
        "journal: no room (file size limit)",
    ),
    POSTGRES: (
        "kill -9 after-forward",
        "journal: committed, answer dropped",
        "journal: server killed",
        "journal: black hole",
        "SIGTERM",
    ),
}


DEADLINE = 0.5


@pytest.mark.real
@pytest.mark.parametrize("database", SHORT)
async def test_every_promise_holds(tmp_path, monkeypatch, database):
    monkeypatch.setenv("FAULTS_DEADLINE", str(DEADLINE))
    counts, figures = Counts(), {}
    with postgres_in(tmp_path / "pg", database) as postgres:
        async with deployed(tmp_path, postgres) as it:
            for name in filter(possible, SHORT[database]):
                figures[name] = await FAULTS[name][0](it)
                counts.add(figures[name])
                counts.trials += 1
            await it.settled()
            counts.add(await it.counted())
    print(database, counts)
    assert counts.broken() == {}
    assert counts.changes >= 5 * counts.trials
    assert counts.slowest_refusal < DEADLINE + 1.5  # the machine may be busy; each further wait would be 0.5 or 1 s
    by_itself = [item for item in figures.values() if "slowest_refusal" in item]  # the others start a process
    assert all(item["slowest_recovery"] < 5 for item in by_itself), figures


def event(sequence: int, operation: str, phase: str, outcome: str | None) -> dict:
    change = {"kind": "ModelCreate", "model": operation}
    data = {"phase": phase, "operation": operation, "outcome": outcome, "change": change, "sequence": sequence}
    return {"id": f"{operation}-{sequence}", "specversion": "1.0", "data": data}


@pytest.fixture
def checker(tmp_path):
    """The checker of a journal that breaks each promise once, and of one change that keeps all."""
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    new_journal(url)
    phases = [
        ("good", "intent", None),
        ("good", "outcome", "succeeded"),
        ("open", "intent", None),
        ("twice", "intent", None),
        ("twice", "outcome", "succeeded"),
        ("twice", "reconciled", "failed"),
        ("liar", "intent", None),
        ("liar", "outcome", "failed"),
    ]
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
        for sequence, (operation, phase, outcome) in enumerate(phases, 1):
            made = event(sequence, operation, phase, outcome)
            connection.execute(
                "INSERT INTO events (sequence, id, time, type, phase, operation, actor, action, registry, resource, "
                "model, body, hash) VALUES (?, ?, 0, 't', ?, ?, 'u', 'a', 'main', 'r', ?, ?, 'h')",
                (sequence, made["id"], phase, operation, operation, json.dumps(made)),
            )
        connection.execute(
            "INSERT INTO operations (id, digest, registry, state, at, source) "
            "VALUES ('open', 'd', 'main', 'open', 0, 's')"
        )
        connection.commit()
    return Checker(url)


async def test_the_checker_sees_each_broken_promise(checker):
    create = "POST /api/2.0/mlflow/registered-models/create"
    await checker.witness(Seen(0.0, create, {"name": "good"}))
    await checker.witness(Seen(0.0, create, {"name": "unseen"}))
    printed = json.dumps(event(99, "x", "outcome", "succeeded")).encode() + b"\n"
    assert await checker.count(["good", "liar"], [printed]) == {
        "changes": 2,
        "without_intent": 1,
        "open": 1,
        "double": 1,
        "untold": 1,
        "only_in_sinks": 1,
        "not_intact": 1,
    }


async def test_what_the_journal_could_not_answer_is_asked_when_it_is_back(checker, tmp_path):
    shutil.move(tmp_path / "journal.db", tmp_path / "aside.db")
    await checker.witness(Seen(0.0, "POST /api/2.0/mlflow/registered-models/create", {"name": "good"}))
    await checker.witness(Seen(0.0, "POST /api/2.0/mlflow/registered-models/create", {"name": "unseen"}))
    shutil.move(tmp_path / "aside.db", tmp_path / "journal.db")
    found = await checker.count([])
    assert (found["changes"], found["without_intent"]) == (2, 1)


async def test_a_change_at_the_moment_of_an_exchange_is_looked_for_in_the_journal_itself(checker, tmp_path):
    create = "POST /api/2.0/mlflow/registered-models/create"
    await checker.witness(Seen(0.0, create, {"name": "good"}))
    shutil.move(tmp_path / "journal.db", tmp_path / "aside.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "aside.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "journal.db"),))
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as connection, connection:
        connection.execute("DELETE FROM events")
    await checker.witness(Seen(0.0, create, {"name": "good"}))
    await checker.witness(Seen(0.0, create, {"name": "unseen"}))
    shutil.move(tmp_path / "aside.db", tmp_path / "journal.db")
    found = await checker.count([])
    assert (found["changes"], found["without_intent"]) == (3, 1)


def test_a_log_that_cannot_be_written_fails_nothing(monkeypatch):
    class Full:
        def write(self, _: str) -> None:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(app.sys, "stderr", Full())
    for level in ("info", "warning", "error"):
        getattr(app._Logger(), level)("said")


def test_the_product_knows_no_failpoint():
    assert {f"kill -9 {name}" for name in FAILPOINTS} <= set(FAULTS)
    source = "".join(path.read_text() for path in (Path(app.__file__).parent).rglob("*.py"))
    assert "failpoint" not in source.lower()
    assert "TEST_" not in source


def test_the_process_of_the_tests_has_no_failpoint_and_the_real_clock():
    assert "tests.faults.gateway" not in sys.modules
    assert time.time.__module__ == "time"
