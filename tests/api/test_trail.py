"""The audit trail by its routes: pages, cursors, who sees what, exports."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json

import pytest
from litestar.exceptions import LitestarException

from service.api import trail
from service.errors import JournalUnavailable
from service.exports import FORMS
from service.journal import queries
from service.journal.writes import GENESIS
from service.keeping import Page
from service.model import Caller, Principal
from tests.client import Client
from tests.conftest import ROOT

MLFLOW = "/api/2.0/mlflow"
EVENTS, EXPORT = "/v1/audit/events", "/v1/audit/export"


async def make(client, *names):
    for name in names:
        assert (await client("POST", f"{MLFLOW}/registered-models/create", {"name": name})).status == 200


async def read_all(client, query):
    events, cursor = [], ""
    while cursor is not None:
        answer = await client("GET", f"{EVENTS}?{query}{cursor and '&cursor=' + cursor}")
        assert answer.status == 200, answer.body
        events += answer.json["events"]
        cursor = answer.json["next_cursor"]
    return [event["data"]["sequence"] for event in events]


async def test_pages_follow_each_other_in_both_orders(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await make(client, *(f"m{number}" for number in range(5)))
        assert await read_all(client, "limit=3") == list(range(1, 11))
        assert await read_all(client, "limit=3&order=desc") == list(range(10, 0, -1))
        assert await read_all(client, "limit=2&phase=intent&registry=main") == [1, 3, 5, 7, 9]
        assert await read_all(client, "type=registry-gateway.model.create.outcome&model=m3") == [8]


async def test_a_cursor_is_for_its_own_question(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await make(client, "a", "b")
        cursor = (await client("GET", f"{EVENTS}?phase=intent&limit=1")).json["next_cursor"]
        for query in ("phase=outcome", "phase=intent&order=desc", "phase=intent&model=a", ""):
            answer = await client("GET", f"{EVENTS}?{query}&limit=1&cursor={cursor}")
            assert (answer.status, "same filters" in answer.json["detail"]) == (400, True)
        assert (await client("GET", f"{EVENTS}?phase=intent&limit=7&cursor={cursor}")).status == 200


async def test_a_page_that_looked_far_enough_says_so(running, monkeypatch):
    monkeypatch.setattr(queries, "_LOOKED_AT", 2)
    async with running() as it:
        client = Client(it.application.asgi)
        await make(client, "a", "b", "c")
        first = (await client("GET", f"{EVENTS}?model=c")).json
        assert (len(first["events"]), first["incomplete"]) == (2, True)  # both of its events, and perhaps more
        assert await read_all(client, "phase=outcome&registry=main") == [2, 4, 6]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("type=registry-gateway.model.creat.intent", "is unknown; it is registry-gateway.<object>.<verb>.<phase>"),
        ("type=x", "is unknown; it is"),
        ("type=registry-gateway.model.create.intent&phase=outcome", "and phase=outcome exclude each other"),
        ("order=up", "order"),
    ],
)
async def test_what_nothing_can_pass_is_refused(running, query, says):
    async with running() as it:
        answer = await Client(it.application.asgi)("GET", f"{EVENTS}?{query}")
        assert (answer.status, says in answer.json["detail"]) == (400, True), answer.json


async def test_an_unknown_registry_is_no_empty_page(running):
    async with running() as it:
        client = Client(it.application.asgi)
        assert (await client("GET", f"{EVENTS}?registry=nowhere")).status == 404
        assert (await client("GET", f"{EXPORT}?registry=nowhere")).status == 404


async def test_who_may_read_a_model_sees_its_events_without_what_is_about_others(running, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("p, user:viewer, main, models/a, model:read, allow\np, user:admin, *, *, *, allow\n")
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    environments = tmp_path / "e.yaml"
    environments.write_text("environments: {}\n")
    async with running(access=access, environments=str(environments)) as it:
        client = Client(it.application.asgi)
        await make(client, "a", "b")
        viewer = client.be("user:viewer")
        assert [(await viewer("GET", f"{EVENTS}{query}")).status for query in ("", "?model=b", "?phase=intent")] == [
            403
        ] * 3
        seen = (await viewer("GET", f"{EVENTS}?model=a")).json["events"]
        assert [event["data"]["sequence"] for event in (await client("GET", f"{EVENTS}?model=a")).json["events"]] == [
            1,
            2,
        ]
        assert [event["data"]["phase"] for event in seen] == ["intent", "outcome"]
        assert all(event["data"]["actor"] == {"subject": "user:admin"} for event in seen)
        assert not {"decision", "asked", "change", "previous"} & set(seen[0]["data"])
        assert (await viewer("GET", f"{EXPORT}?model=a")).status == 403
        denied = [event for event in await it.events(phase="denied") if event["data"]["actor"]["subject"] != "x"]
        assert len(denied) == 4  # each refusal leaves one


@pytest.mark.parametrize("gone", ["delete", "rename"])
async def test_a_name_that_was_freed_leads_to_no_events_of_what_had_it(running, tmp_path, gone):
    rows = tmp_path / "rows.csv"
    rows.write_text("p, user:viewer, main, models/a, model:*, allow\np, user:admin, *, *, *, allow\n")
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    environments = tmp_path / "e.yaml"
    environments.write_text("environments: {}\n")
    async with running(access=access, environments=str(environments)) as it:
        client = Client(it.application.asgi)
        await make(client, "a")
        viewer = client.be("user:viewer")

        async def seen():
            return [
                [
                    event["data"]["operation"]
                    for event in (await viewer("GET", f"{EVENTS}?model=a{order}")).json["events"]
                ]
                for order in ("", "&order=desc")
            ]

        assert [len(found) for found in await seen()] == [2, 2]
        if gone == "delete":
            assert (await client.rpc("DELETE", "registered-models/delete", name="a")).status == 200
        else:
            assert (await client.rpc("POST", "registered-models/rename", name="a", new_name="b")).status == 200
            assert await seen() == [[], []]
        created = await viewer("POST", f"{MLFLOW}/registered-models/create", {"name": "a"})
        assert created.status == 200
        mine = created.headers["registry-gateway-operation"]
        assert await seen() == [[mine] * 2] * 2


async def test_an_export_holds_the_bytes_of_the_chain(running, monkeypatch):
    monkeypatch.setattr(trail, "_EXPORT_PAGE", 3)
    async with running() as it:
        client = Client(it.application.asgi)
        await make(client, *(f"m{number}" for number in range(5)))
        answer = await client("GET", EXPORT)
        assert answer.headers["content-type"].startswith("application/jsonl")
        previous = GENESIS
        lines = answer.body.splitlines()
        assert len(lines) == 10
        for line in lines:
            assert json.loads(line)["data"]["previous"] == previous
            previous = hashlib.sha256(line).hexdigest()
        some = await client("GET", f"{EXPORT}?model=m2&phase=outcome")
        assert some.body.splitlines() == [lines[5]]


async def test_a_table_has_a_header_and_no_formulas(running):
    async with running() as it:
        client = Client(it.application.asgi)
        for name in ("=1+1", "+1", "-1", "@a", 'quo"ted, and\u2028more', "plain"):
            await client("POST", f"{MLFLOW}/registered-models/create", {"name": name})
        answer = await client("GET", f"{EXPORT}?format=csv&phase=intent")
        assert answer.headers["content-type"] == "text/csv; header=present; charset=utf-8"
        text = answer.body.decode()
        assert text.count("\r\n") == text.count("\n")
        table = list(csv.DictReader(io.StringIO(text, newline="")))
        assert [row["model"] for row in table] == ["'=1+1", "'+1", "'-1", "'@a", "plain"]
        assert {row["actor"] for row in table} == {"user:admin"}
        assert all(row["sequence"].isdigit() and row["allowed"] == "true" for row in table)


@pytest.mark.parametrize("form", ["jsonl", "csv", "ocsf"])
async def test_others_have_their_turn_while_a_page_is_written(running, form):
    async with running() as it:
        client = Client(it.application.asgi)
        await make(client, "a")
        body = (await client("GET", EXPORT)).body.decode().splitlines()[0]
        page, turns = Page([(number, body) for number in range(1000)], None), 0

        async def others():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        running_beside = asyncio.create_task(others())
        lines = trail._lines(it.application.governance, Caller(Principal("user:admin")), {}, FORMS[form], page)
        parts = [part async for part in lines]
        running_beside.cancel()
        assert b"".join(parts).decode() == FORMS[form].head + FORMS[form].line(body) * 1000
        assert turns >= 20


async def test_a_journal_that_fails_in_the_middle_breaks_the_export_off(running, monkeypatch):
    monkeypatch.setattr(trail, "_EXPORT_PAGE", 2)
    async with running() as it:
        client = Client(it.application.asgi)
        await make(client, "a", "b")
        pages = it.application.governance.trail.export_page

        async def failing(caller, filters, after, limit):
            if after is not None:
                raise JournalUnavailable("It is gone.")
            return await pages(caller, filters, after, limit)

        monkeypatch.setattr(it.application.governance.trail, "export_page", failing)
        with pytest.raises(LitestarException):  # the server closes the connection on it
            await client("GET", EXPORT)
