"""Retention as it is configured and commanded."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from service.__main__ import _validate, main
from service.errors import BadConfiguration
from service.journal import retention as module
from service.journal.retention import Done, Retention
from service.journal.store import SqlJournal
from service.parts import retention_of
from service.settings import load
from tests.conftest import new_journal, write_configuration
from tests.contract.test_journal import beside
from tests.contract.test_queries import event

DAY = 86400.0


@pytest.mark.parametrize(
    ("retention", "says"),
    [
        ({"archive": "a"}, "keep_days"),
        ({"keep_days": 0, "archive": "a"}, "audit.retention.keep_days: 1 to 36500"),
        ({"keep_days": 1, "archive": ""}, "audit.retention.archive: the path of a directory"),
        ({"keep_days": 1, "archive": "s3://bucket/x"}, "audit.retention.archive: the path of a directory"),
        ({"keep_days": 1, "archive": "a", "max_lag_days": 0}, "audit.retention.max_lag_days: 1 to 36500"),
        ({"keep_days": 1, "archive": "a", "keep": 1}, "keep"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(tmp_path, retention, says):
    with pytest.raises(BadConfiguration, match=says):
        load(write_configuration(tmp_path, audit={"sinks": [], "retention": retention}), environ={})


async def make_journal(url, *ages):
    await asyncio.to_thread(new_journal, url)
    journal = SqlJournal(url)
    await journal.start()
    await journal.append([event(time.time() - age * DAY) for age in ages])
    await journal.close()


async def test_commands_archive_and_prune(tmp_path, capsys):
    await make_journal(f"sqlite:///{tmp_path}/journal.db", 40, 30, 20, 1)
    config = str(write_configuration(tmp_path))
    assert main(["audit", "prune", "--config", config]) == 2
    assert "audit.retention is not configured" in capsys.readouterr().err
    write_configuration(tmp_path, audit={"sinks": [], "retention": {"keep_days": 25, "archive": "old"}})
    said = []
    for command in ("archive", "prune", "prune --older-than 10", f"verify --archive {tmp_path}/old", "verify"):
        assert await asyncio.to_thread(main, ["audit", *command.split(), "--config", config]) == 0
        said.append(capsys.readouterr().out.splitlines()[0].rpartition(": ")[2])
    assert said == [
        "2 events archived",
        "0 events archived; 2 pruned from the journal",
        "1 events archived; 1 pruned from the journal",
        "6 events",
        "3 events",
    ]


async def test_a_sink_that_is_gone_is_named_and_forgotten(tmp_path, capsys):
    url = f"sqlite:///{tmp_path}/journal.db"
    await make_journal(url, 40, 30, 20, 1)
    audit = {"sinks": ["stdout"], "retention": {"keep_days": 25, "archive": "old"}}
    config = str(write_configuration(tmp_path, audit=audit))
    pending = "'d', 'webhook:gone', 2, 'e', 'p', 'pending', 0, 0, NULL, '', 0, NULL"
    gone = f"INSERT INTO followers VALUES ('webhook:gone', 1, 0), ('stdout', 4, {time.time()})"
    await beside(url, gone, f"INSERT INTO deliveries VALUES ({pending})")

    async def run(command, status=0):
        assert await asyncio.to_thread(main, ["audit", *command.split(), "--config", config]) == status
        return "".join(capsys.readouterr())

    assert "not pruned is what these have not read: webhook:gone (see" in await run("prune")
    assert (await run("followers")).splitlines()[:1] == [
        "webhook:gone: event 1 since 1970-01-01T00:00:00Z, 4 behind, 1 pending, 0 parked; not in audit.sinks"
    ]
    assert "'stdout' is in audit.sinks" in await run("followers --forget stdout", 2)
    assert await run("followers --forget webhook:gone") == "webhook:gone: forgotten\n"
    assert "'webhook:gone' does not follow" in await run("followers --forget webhook:gone", 2)
    assert "not in audit.sinks" not in await run("followers")
    assert (await run("prune")).strip().endswith("0 events archived; 1 pruned from the journal")


@pytest.mark.parametrize(
    ("command", "warns"),
    [
        ("policy report --since 35d", True),
        ("policy report --since 20d", False),
        ("policy suggest --since 35d", True),
        ("policy suggest --since 20d", False),
        ("policy replay --since 35d", True),
        ("policy replay --since 20d", False),
        ("policy diff current current --last 100", True),
        ("policy diff current current --last 2", False),
    ],
)
async def test_commands_about_the_past_say_that_some_of_it_is_pruned(tmp_path, capsys, command, warns):
    await make_journal(f"sqlite:///{tmp_path}/journal.db", 40, 30, 20, 10, 1)
    audit = {"sinks": [], "retention": {"keep_days": 25, "archive": "old"}}
    config = str(write_configuration(tmp_path, audit=audit))
    assert await asyncio.to_thread(main, ["audit", "prune", "--config", config]) == 0
    capsys.readouterr()
    assert await asyncio.to_thread(main, [*command.split(), "--config", config]) in (0, 1)
    assert ("are pruned" in capsys.readouterr().err) is warns


async def test_a_running_gateway_does_it_where_it_leads(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_SECONDS", 0)
    monkeypatch.setattr(module, "DAY_SECONDS", 0.001)
    each = Retention("sqlite:///x", tmp_path, keep_days=1, now=lambda: 0.0, source="/test")
    ran, failing = asyncio.Event(), [True]

    async def run():
        if failing.pop() if failing else False:
            raise BadConfiguration("The disk is full.")
        ran.set()
        return Done(0, 0)

    monkeypatch.setattr(each, "run", run)
    asked = []

    def leads():
        asked.append(len(asked) > 3)
        return asked[-1]

    task = asyncio.create_task(each.run_daily(leads))
    try:
        async with asyncio.timeout(5):
            await ran.wait()
        assert asked[:6] == [False] * 4 + [True] * 2  # one run failed, and the next day there was another
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_application_takes_it_from_its_settings(running):
    async with running(audit={"sinks": [], "retention": {"keep_days": 3, "archive": "old", "max_lag_days": 2}}) as it:
        made = retention_of(it.application.configuration, lambda: 0.0, "/test")
        assert made._keep_seconds == 3 * DAY
        assert made._lag_seconds == 2 * DAY
        assert made._archive == it.application.configuration.path("old")


@pytest.mark.parametrize("trace", ["journal.db.lock", "journal.db-wal"])
def test_a_journal_that_is_gone_at_the_start_is_not_made_anew(tmp_path, trace):
    configuration = load(write_configuration(tmp_path), environ={})
    (tmp_path / trace).touch()
    with pytest.raises(
        BadConfiguration, match=f"journal.db is gone: .*{trace} says that there was one. Put it back, or"
    ):
        _validate(configuration)
    assert not (tmp_path / "journal.db").exists()
    (tmp_path / trace).unlink()
    _validate(configuration)
    assert (tmp_path / "journal.db").exists()
