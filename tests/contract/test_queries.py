"""Queries of events: every filter, both orders, page by page, on both databases, whatever the clocks did."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.event import listen

from service.event import build_event
from service.journal import queries, schema
from service.journal.queries import CLOCK
from service.journal.store import SqlJournal
from service.keeping import ANY

BEGUN = 1_790_000_000.0
FIELDS = ("model", "version", "registry", "environment", "actor", "action", "outcome", "phase", "operation")


def event(at: float, **given_data):
    data = {
        "phase": "outcome",
        "operation": str(uuid.uuid4()),
        "outcome": "succeeded",
        "actor": {"subject": "user:u"},
        "action": "alias:set",
        "resource": "models/iris",
        "registry": "main",
        "model": None,
        "version": None,
        "environment": None,
        **given_data,
    }
    return build_event(data["action"], data["phase"], data, "/test", at, "main")


async def everything(journal, filters, limit=100, newest_first=False):
    """Read page after page; return the sequences, and how many pages there were."""
    found, cursor, pages = [], None, 0
    while True:
        page = await journal.page(filters, cursor, limit, newest_first=newest_first)
        found += [sequence for sequence, _ in page.rows]
        pages += 1
        if page.cursor is None:
            return found, pages
        assert page.rows or page.incomplete
        cursor = page.cursor


def varied(number):
    return event(
        BEGUN + number,
        model=f"m{number % 3}" if number % 4 else None,
        version=str(1 + number % 2),
        registry="lake" if number % 5 == 0 else "main",
        environment="production" if number % 3 == 0 else None,
        actor={"subject": f"user:{number % 4}"},
        action=("alias:set", "version:create")[number % 2],
        outcome=("succeeded", "failed", None)[number % 3],
        phase=("outcome", "intent")[number % 2],
        operation=f"operation-{number // 2}",
    )


def passes(item, filters):
    data = item["data"]
    flat = {**data, "actor": data["actor"]["subject"]}
    at = BEGUN + data["sequence"] - 1
    for name, value in filters.items():
        if name == "since":
            good = at >= value
        elif name == "until":
            good = at < value
        elif value is ANY:
            good = flat[name] is not None
        elif isinstance(value, list):
            good = flat[name] in value
        else:
            good = flat[name] == value
        if not good:
            return False
    return True


async def test_every_filter_alone_and_in_pairs_finds_what_passes_it(journal, monkeypatch):
    monkeypatch.setattr(queries, "_LOOKED_AT", 7)  # so that pages end before they are full
    stored = await journal.append([varied(number) for number in range(60)])
    first = stored[9]["data"]
    values = {name: first[name] for name in FIELDS}
    values |= {"actor": first["actor"]["subject"], "since": BEGUN + 20, "until": BEGUN + 40}
    nobody = dict.fromkeys(FIELDS, "nothing") | {"since": BEGUN + 60, "until": BEGUN}
    asked = [{name: value} for name, value in values.items()] + [{}, {"environment": ANY}, {"registry": ["lake", "x"]}]
    for one, two in itertools.combinations(values, 2):
        asked += [{one: a[one], two: b[two]} for a in (values, nobody) for b in (values, nobody)]
    for filters in asked:
        expected = [item["data"]["sequence"] for item in stored if passes(item, filters)]
        assert (await everything(journal, filters, 4))[0] == expected, filters
        assert (await everything(journal, filters, 4, newest_first=True))[0] == expected[::-1], filters


async def test_a_page_holds_the_canonical_bytes_of_the_chain(journal):
    await journal.append([varied(1), varied(2)])
    page = await journal.page({}, None, 10)
    assert [json.loads(body)["data"]["sequence"] for _, body in page.rows] == [1, 2]
    assert (page.cursor, page.incomplete) == (None, False)


async def test_a_page_that_finds_nothing_is_bounded_and_goes_on(journal, monkeypatch):
    monkeypatch.setattr(queries, "_LOOKED_AT", 10)
    await journal.append([event(BEGUN, model="a", version="1") for _ in range(30)])
    await journal.append([event(BEGUN, model="b", version="2") for _ in range(30)])
    page = await journal.page({"model": "a", "version": "2"}, None, 5)
    assert (page.rows, page.cursor, page.incomplete) == ([], 10, True)
    assert await everything(journal, {"model": "a", "version": "2"}, 5) == ([], 4)


async def test_a_full_last_page_says_so(journal):
    await journal.append([varied(number) for number in range(4)])
    assert await everything(journal, {}, 2) == ([1, 2, 3, 4], 2)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.integers(-400, 400), min_size=1, max_size=40), st.integers(-500, 8000), st.integers(-500, 8000))
def test_times_are_exact_whatever_the_clocks_did(tmp_path, steps, since, until):
    """Times of events jump back and on by minutes; what lies between two times is found all the same."""

    async def check() -> None:
        url = f"sqlite:///{tmp_path}/{uuid.uuid4()}.db"
        await asyncio.to_thread(schema.upgrade, url)
        journal = SqlJournal(url, 5.0)
        await journal.start()
        try:
            times = [BEGUN + 200 * index + step for index, step in enumerate(steps)]
            for at in times:
                await journal.append([event(at)])
            for filters in ({"since": BEGUN + since}, {"until": BEGUN + until}):
                low, high = filters.get("since", 0.0), filters.get("until", float("inf"))
                expected = [number for number, at in enumerate(times, 1) if low <= at < high]
                assert (await everything(journal, filters))[0] == expected
        finally:
            await journal.close()

    asyncio.run(check())


async def test_the_journal_keeps_by_how_much_clocks_went_back(journal):
    for at in (BEGUN, BEGUN - 30, BEGUN + 5000, BEGUN + 100):
        await journal.append([event(at)])
    assert await everything(journal, {"since": BEGUN, "until": BEGUN + 200}) == ([1, 4], 1)
    rows = []
    await journal._database.read(lambda c: rows.extend(c.exec_driver_sql("SELECT name, value FROM about").all()))
    assert float(dict(map(tuple, rows))[CLOCK]) == 4900


async def test_what_is_open_is_found_by_its_operation_and_not_by_all_intents(tmp_path):
    """SQLite plans without figures: an index on phase must not draw the look at open operations to it."""
    url = f"sqlite:///{tmp_path}/journal.db"
    await asyncio.to_thread(schema.upgrade, url)
    journal = SqlJournal(url, 5.0)
    await journal.start()
    plans = []
    try:

        def watch(connection, cursor, statement, parameters, context, executemany):
            if statement.startswith("SELECT"):
                plans.extend(
                    row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                )

        listen(journal._database._engine, "before_cursor_execute", watch)
        await journal.unsettled()
        await journal.unsettled_page("", 10)
        await journal.present_name("main", "iris", 1.0)
        await journal.named_since("main", "iris")
        assert len([plan for plan in plans if "events_operation" in plan]) == 2, plans
        assert [plan for plan in plans if "events_model" in plan], plans
        assert not [plan for plan in plans if "events_phase" in plan or "events_outcome" in plan]
    finally:
        await journal.close()
