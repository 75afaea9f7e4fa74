"""The journal's contract: durable when it returns, chained, one transaction, a deadline on everything."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
import uuid
from pathlib import Path

import asyncpg
import pytest

from service.audit import Operation, Trail
from service.change import AliasSet
from service.effects import Deleted, MadeLive, Quarantined, Released, Renamed, Revoked, Settled, Signed, Weighed
from service.errors import BadConfiguration, Busy, JournalUnavailable, OperationPending
from service.journal import schema
from service.journal.database import InDoubt, asyncpg_url
from service.journal.store import SqlJournal
from service.journal.verify import verify
from service.keeping import Kept
from service.model import MAX_NAME_CHARACTERS, Call, Need, Principal
from service.records import Approval, LivePeriod, Quarantine
from tests.postgres import execute


@pytest.fixture
async def file(tmp_path):
    """A journal in a file, and the file."""
    path = tmp_path / "journal.db"
    schema.upgrade(f"sqlite:///{path}")
    made = SqlJournal(f"sqlite:///{path}", deadline_seconds=1.0)
    await made.start()
    made.path = path
    yield made
    await made.close()


async def beside(url: str, *statements: str) -> None:
    """Run *statements* as somebody with the database's own tools."""
    if not url.startswith("sqlite"):
        await execute(url, *statements)
        return
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


async def verified(url: str):
    return await asyncio.to_thread(verify, url)


def operation(name="x") -> Operation:
    need = Need("alias:set", "models/iris/aliases/blue")
    call = Call(principal=Principal("user:u"), registry="main", name=name, needs=(need,))
    return Operation.opened(call, 1000.0)


async def test_phases_share_the_operation_and_close_it(journal):
    trail = Trail(journal, "/test")
    made = operation()
    await trail.intent(made)
    assert [item.operation for item in await journal.unsettled()] == [made.id]
    await trail.outcome(made, "succeeded")
    assert await journal.unsettled() == []
    events = await journal.operation_events(made.id)
    assert [event["data"]["phase"] for event in events] == ["intent", "outcome"]
    assert [event["type"] for event in events] == [
        "registry-gateway.alias.set.intent",
        "registry-gateway.alias.set.outcome",
    ]


async def test_many_writers_one_chain(journal):
    trail = Trail(journal, "/test")
    await asyncio.gather(*(trail.intent(operation(str(index))) for index in range(200)))
    assert await verified(journal.url) == (200, None)


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE events SET body = replace(body, 'user:u', 'user:v') WHERE sequence = 2", "event 2 was edited"),
        ("DELETE FROM events WHERE sequence = 2", "event 2 is missing"),
        ("UPDATE events SET sequence = sequence + 100 WHERE sequence = 2", "event 2 is missing"),
    ],
)
async def test_verify_finds_damage(journal, damage, found):
    trail = Trail(journal, "/test")
    for _ in range(4):
        await trail.refused(operation(), "denied")
    assert await verified(journal.url) == (4, None)
    await beside(journal.url, damage)
    assert (await verified(journal.url))[1] == found


async def test_a_locked_database_is_unavailable_and_then_recovers(journal):
    trail = Trail(journal, "/test")
    async with locked(journal.url):
        with pytest.raises(JournalUnavailable):
            await trail.intent(operation())
    made = operation()
    await trail.intent(made)
    await journal.ping()  # what was stored too late is undone by now
    open_now = [item.operation for item in await journal.unsettled()]
    assert open_now == [made.id]  # the refused one is not there, or was undone


@contextlib.asynccontextmanager
async def locked(url: str):
    """Keep everybody else from writing."""
    if url.startswith("sqlite"):
        other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")
        other.close()
    else:
        connection = await asyncpg.connect(url)
        async with connection.transaction():
            await connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            yield
        await connection.close()


async def test_a_deleted_journal_is_unavailable_not_made_anew(file):
    file.path.rename(file.path.with_suffix(".gone"))
    with pytest.raises(JournalUnavailable):
        await file.append([], [Settled("x", "failed")])
    assert not file.path.exists()
    file.path.with_suffix(".gone").rename(file.path)
    await file.ping()


NO_ROOM = {
    "sqlite": ("CREATE TRIGGER no_room BEFORE INSERT ON documents BEGIN SELECT RAISE(FAIL, 'no room'); END",),
    "postgresql": (
        "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no room'; END $$",
        "CREATE TRIGGER no_room BEFORE INSERT ON documents FOR EACH ROW EXECUTE FUNCTION no_room()",
    ),
}
ROOM = {"sqlite": "DROP TRIGGER no_room", "postgresql": "DROP TRIGGER no_room ON documents"}


async def test_facts_are_stored_with_their_intent_or_not_at_all(journal):
    trail = Trail(journal, "/test")
    made = operation()
    made.facts = {"production": Weighed("d" * 64, {"form": 1}, 1000.0)}
    kind = journal.url.partition(":")[0]
    await beside(journal.url, *NO_ROOM[kind])
    with pytest.raises(JournalUnavailable):
        await trail.intent(made)
    assert await journal.unsettled() == []
    await beside(journal.url, ROOM[kind])
    await trail.intent(made)
    assert len(await journal.unsettled()) == 1
    assert await journal.document("facts", "d" * 64) == Kept({"form": 1}, 1000.0)
    await trail.refused(made, "rejected")  # kept once
    assert await journal.document("facts", "d" * 64) == Kept({"form": 1}, 1000.0)


def signed(name, version="1", model="iris", **more) -> Signed:
    approval = Approval(name, "production", "approve", "user:lead", ("user:lead",), (), "", 1.0, None, "r", **more)
    return Signed("main", model, f"binding of {version}", approval, version, ("m-1", "run"))


async def test_what_was_signed_is_listed_until_it_is_taken_back_or_its_version_deleted(journal):
    made = [signed("a"), signed("b"), signed("c", "2"), signed("d", "1", "lily"), signed("e", "1", "rose")]
    await journal.append([], made)
    assert await journal.signed() == made
    await journal.append([], [Revoked("a", 2.0), Deleted("main", "iris", "2", 2.0), Deleted("main", "lily", "", 2.0)])
    assert await journal.signed() == [made[1], made[4]]
    await journal.append([], [Renamed("main", "iris", "lily"), signed("f", "2", "iris")])
    found = [(item.model, item.version, item.approval.id) for item in await journal.signed()]
    assert found == [("lily", "1", "b"), ("rose", "1", "e"), ("iris", "2", "f")]
    assert [item.id for item in (await journal.version("main", "lily", "binding of 1")).approvals] == ["a", "b", "d"]


async def test_a_journal_of_the_first_schema_is_upgraded_with_what_it_holds(tmp_path):
    from alembic import command
    from alembic.config import Config

    url, path = f"sqlite:///{tmp_path / 'old.db'}", tmp_path / "old.db"
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url)
    command.upgrade(config, "0001")
    body = dataclasses.asdict(signed("old").approval)
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO approvals (id, registry, model, binding, body) VALUES ('old', 'main', 'iris', 'b', ?)",
            (json.dumps(body),),
        )
    connection.close()
    with pytest.raises(BadConfiguration, match=r"'0001'.*journal upgrade"):
        schema.check(url)
    schema.upgrade(url)
    schema.check(url)
    journal = SqlJournal(url)
    await journal.start()
    assert [item.id for item in (await journal.version("main", "iris", "b")).approvals] == ["old"]
    assert await journal.signed() == []  # what stood behind it was not kept
    await journal.append([], [Renamed("main", "iris", "lily"), Deleted("main", "lily", "", 2.0), signed("new")])
    assert [item.approval.id for item in await journal.signed()] == ["new"]
    await journal.close()


async def test_a_quarantine_of_the_third_schema_holds_for_its_version_alone(tmp_path):
    from alembic import command
    from alembic.config import Config

    url, path = f"sqlite:///{tmp_path / 'old.db'}", tmp_path / "old.db"
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    config.set_main_option("sqlalchemy.url", url)
    command.upgrade(config, "0003")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO quarantines (id, registry, model, binding, version, reason, by, at)"
            " VALUES ('old', 'main', 'iris', 'b', '1', 'leaks', 'user:lead', 1.0)"
        )
    connection.close()
    with pytest.raises(BadConfiguration, match=r"'0003'.*journal upgrade"):
        schema.check(url)
    schema.upgrade(url)
    journal = SqlJournal(url)
    await journal.start()
    old = Quarantine("old", "iris", "1", "b", "leaks", "user:lead", 1.0)
    new = Quarantine("new", "iris", "2", "c", "leaks", "user:lead", 2.0, ("run",))
    await journal.append([], [Quarantined("main", new)])
    assert await journal.quarantines("main") == [old, new]
    assert (await journal.version("main", "iris", "b")).quarantine == old
    assert (await journal.version("main", "iris", "d")).quarantine is None
    await journal.append([], [Released("old", 3.0)])
    assert await journal.quarantines("main") == [new]
    await journal.close()


async def test_the_schema_is_what_the_tables_say(url):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine
    from sqlalchemy.ext.asyncio import create_async_engine

    from service.journal.tables import metadata

    def differences(connection):
        return compare_metadata(MigrationContext.configure(connection), metadata)

    if url.startswith("sqlite"):
        engine = create_engine(url)
        with engine.connect() as connection:
            assert differences(connection) == []
        engine.dispose()
    else:
        engine = create_async_engine(asyncpg_url(url))
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
        await engine.dispose()


async def test_the_same_sums_are_recorded_once(journal):
    """An append that came too late may be stored all the same: writing it again must not count twice."""
    trail = Trail(journal, "/test")
    data = operation().event("outcome", None, "/test", 1.0)["data"]
    events = trail.sums([{**data, "phase": "summed"}])
    await trail.summed(events)
    with pytest.raises(JournalUnavailable):
        await trail.summed(events)
    await trail.intent(operation("after"))
    assert [event["data"]["phase"] for _, event in await journal.events({}, 0, 10)] == ["summed", "intent"]
    assert await verified(journal.url) == (2, None)


def of_model(kind, model, *, reason="", **more) -> Operation:
    made = dataclasses.replace(operation(kind), model=model, reason=reason, digest=uuid.uuid4().hex)
    made.change = {"kind": kind, "model": model, **more}
    return made


async def test_what_says_who_owns_a_model_is_found_among_all_else(journal):
    trail = Trail(journal, "/test")
    told = []

    async def on_recorded(event):
        told.append(event["data"]["operation"])

    trail.on_recorded = on_recorded
    wanted = []
    for made, outcome in (
        (of_model("ModelCreate", "a"), "succeeded"),
        (of_model("ModelCreate", "b"), "failed"),
        (of_model("ModelUpdate", "a", description='"kind":"ModelDelete"'), "succeeded"),
        (of_model("AliasSet", "a", reason='{"kind":"ModelCreate"}'), "succeeded"),
        (of_model("ModelRename", "a", new_name="c"), "succeeded"),
        (of_model("ModelDelete", "c"), "unknown"),
        (of_model("ModelDelete", "c"), "succeeded"),
    ):
        await trail.intent(made)
        await trail.outcome(made, outcome)
        if outcome == "succeeded" and made.name not in ("ModelUpdate", "AliasSet"):
            wanted.append(made.id)
    until, events = await journal.model_changes(0)
    assert [event["data"]["operation"] for event in events] == wanted
    assert until == 14
    assert len(told) == 14
    assert await journal.model_changes(until) == (until, [])
    assert [event["data"]["operation"] for event in (await journal.model_changes(4))[1]] == wanted[1:]


async def test_a_long_journal_is_read_in_pages(journal):
    trail = Trail(journal, "/test")
    first, last = of_model("ModelCreate", "first"), of_model("ModelCreate", "last")
    await trail.outcome(first, "succeeded")
    event = operation().event("outcome", "succeeded", "/test", 1000.0)
    await journal.append([{**event, "id": str(index)} for index in range(5000)])
    await trail.outcome(last, "succeeded")
    until, events = await journal.model_changes(0)
    assert (until, [event["data"]["model"] for event in events]) == (5000, ["first"])
    until, events = await journal.model_changes(until)
    assert (until, [event["data"]["model"] for event in events]) == (5002, ["last"])


async def test_the_longest_name_of_a_principal_is_kept_whole(journal):
    trail = Trail(journal, "/test")
    who = "user:" + "\u00e4" * (MAX_NAME_CHARACTERS - 5)
    call = Call(principal=Principal(who), registry="main", name="x", needs=())
    await trail.intent(Operation.opened(call, 1000.0))
    assert [event["data"]["actor"]["subject"] for _, event in await journal.events({"actor": who}, 0, 10)] == [who]


def change(model="iris", version="1") -> Operation:
    need = Need("alias:set", f"models/{model}/aliases/blue")
    what = AliasSet(model, "blue", version)
    call = Call(principal=Principal("user:u"), registry="main", name="setAlias", needs=(need,), change=what)
    return Operation.opened(call, 1000.0)


async def test_an_equal_operation_does_not_begin_while_one_is_unsettled(journal):
    one, two = Trail(journal, "/one"), Trail(journal, "/two")
    first = change()
    await one.intent(first)
    for trail in (one, two):
        with pytest.raises(OperationPending, match=first.id) as caught:
            await trail.intent(change())
        assert caught.value.operation == first.id
    await one.outcome(first, "unknown")
    with pytest.raises(OperationPending):
        await two.intent(change())
    await one.intent(change("lily"))
    assert len(await journal.events({}, 0, 10)) == 3  # what is refused leaves nothing
    (found, _) = await journal.unsettled()
    await one.reconciled(found, "failed", "", [])
    await two.intent(change())


@pytest.mark.parametrize("late", ["succeeded", "failed", "unknown"])
async def test_who_comes_back_after_another_settled_its_operation_adds_no_second_outcome(journal, late):
    one, two = Trail(journal, "/one"), Trail(journal, "/two")
    made, beside_it = change(), change("lily")
    await one.intent(made)
    await one.intent(beside_it)
    (found,) = await journal.unsettled(made.id)
    assert await two.reconciled(found, "failed", "", [])
    period = LivePeriod("production", "1", "b", 1.0, None, "user:u", made.id, "", ())
    await asyncio.gather(
        one.outcome(made, late, [MadeLive("main", "iris", period)]), one.outcome(beside_it, "succeeded")
    )
    assert not await two.reconciled(found, "succeeded", "", [])
    phases = [event["data"]["phase"] for event in await journal.operation_events(made.id)]
    assert phases == ["intent", "reconciled"]
    assert await journal.live() == []
    assert [event["data"]["phase"] for event in await journal.operation_events(beside_it.id)] == ["intent", "outcome"]
    assert one.lost == 0


async def test_two_processes_do_not_change_one_model_at_once(journal):
    one, two = Trail(journal, "/one"), Trail(journal, "/two")
    first = change(version="1")
    await one.intent(first)
    with pytest.raises(Busy, match=f"{first.id} on the same model"):
        await two.intent(change(version="2"))
    await one.intent(change(version="3"))  # its own locks have told it
    await two.intent(change("lily", "2"))
    await one.outcome(first, "succeeded")
    with pytest.raises(Busy):
        await two.intent(change(version="2"))


async def test_what_is_refused_with_others_refuses_only_itself(journal):
    trails = [Trail(journal, f"/{number}") for number in range(8)]
    made = [change(model) for model in ("iris", "lily") for _ in range(4)]
    answers = await asyncio.gather(
        *(trail.intent(item) for trail, item in zip(trails, made, strict=True)), return_exceptions=True
    )
    assert [type(answer).__name__ for answer in answers].count("NoneType") == 2
    assert len(await journal.unsettled()) == 2
    assert await verified(journal.url) == (2, None)


async def test_what_was_stored_though_nobody_knew_is_taken_back(journal, monkeypatch):
    trail, made = Trail(journal, "/test"), change()
    write = journal._database.write

    async def doubt(work):
        await write(work)
        monkeypatch.undo()
        raise InDoubt

    monkeypatch.setattr(journal._database, "write", doubt)
    with pytest.raises(JournalUnavailable):
        await trail.intent(made)
    await journal.ping()
    await journal._jobs.join()
    assert await journal.unsettled() == []
    events = await journal.operation_events(made.id)
    assert [(event["data"]["phase"], event["data"]["outcome"]) for event in events] == [
        ("intent", None),
        ("outcome", "failed"),
    ]
    assert await verified(journal.url) == (2, None)


async def test_what_is_begun_and_settled_together_is_stored_as_if_one_by_one(journal):
    trail = Trail(journal, "/test")
    begun = [change(model=f"model-{index}") for index in range(20)]
    await asyncio.gather(*(trail.intent(item) for item in begun))  # in a few transactions of several events
    assert {item.operation for item in await journal.unsettled()} == {item.id for item in begun}
    await asyncio.gather(*(trail.outcome(item, "succeeded") for item in begun))
    assert await journal.unsettled() == []
    events = [event for _, event in await journal.events({}, 0, 100)]
    assert [event["data"]["sequence"] for event in events] == list(range(1, 41))
    assert {event["data"]["change"]["model"] for event in events} == {f"model-{index}" for index in range(20)}
