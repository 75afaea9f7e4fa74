"""Searches return what the caller may read, whole pages of it, each row once and in MLflow's order."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.backends.http import HttpTransport
from service.errors import RegistryRefused
from service.model import Scope
from tests.client import Client
from tests.conftest import ROOT

NAMES = [f"{team}-{index}" for team in ("a", "b", "ab") for index in range(6)]
PATTERNS = ["models/*", "models/a-*", "models/ab*", "models/a*", *(f"models/{name}" for name in NAMES)]


def access(directory, *rows):
    text = "\n".join(["p, group:platform, *, *, *, allow", *rows]) + "\n"
    (directory / "rows.csv").write_text(text)
    return {"model": str(ROOT / "policies/model.conf"), "rows": "rows.csv"}


async def walk(client, path, items, **query):
    """Follow the pages to their end."""
    rows, pages, token = [], [], None
    while True:
        answer = await client.rpc("GET", path, **query, **({"page_token": token} if token else {}))
        assert answer.status == 200, answer.body
        rows += answer.json.get(items, [])
        pages.append(len(answer.json.get(items, [])))
        token = answer.json.get("next_page_token")
        if not token:
            return rows, pages


def full(pages):
    """All pages but the last one with rows; after a full one there may be an empty one."""
    return [length for length in pages if length][:-1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    allowed=st.sets(st.sampled_from(PATTERNS), max_size=5),
    denied=st.sets(st.sampled_from(PATTERNS[1:]), max_size=3),
    size=st.integers(1, 7),
)
async def test_pages_are_full_and_hold_each_readable_row_once(running, allowed, denied, size):
    rows = [f"p, user:scientist, main, {pattern}, model:read, allow" for pattern in sorted(allowed)]
    rows += [f"p, user:scientist, main, {pattern}, model:read, deny" for pattern in sorted(denied)]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        async with running(directory=directory, access=access(directory, *rows)) as it:
            admin = Client(it.application.asgi)
            for name in NAMES:
                await admin.rpc("POST", "registered-models/create", name=name)
            gateway = it.application.gateway
            principal = it.application.keys.authenticate(f"Bearer {_token('user:scientist')}")
            expected = [
                name
                for name in sorted(NAMES)
                if gateway.access.decide(principal, "main", f"models/{name}", "model:read").allowed
            ]
            mine = admin.be("user:scientist")
            found, pages = await walk(mine, "registered-models/search", "registered_models", max_results=size)
            assert [item["name"] for item in found] == expected
            assert all(length == size for length in full(pages))
            gateway._searches._scopes = lambda *_: Scope(prefixes=frozenset({""}))  # nothing is pushed
            plain, _ = await walk(mine, "registered-models/search", "registered_models", max_results=size)
            assert [item["name"] for item in plain] == expected


def _token(principal):
    from tests.conftest import TOKENS

    return TOKENS[principal]


@pytest.fixture
async def real(running, mlflow_server, tmp_path):
    """Models and experiments of two teams on a real server; the scientist reads one team's."""
    tag = secrets.token_hex(4)
    rows = [
        f"p, user:scientist, main, models/mine-{tag}-*, *, allow",
        f"p, user:scientist, main, experiments/mine-{tag}-*, *, allow",
        f"p, user:lead, main, models/mine-{tag}-3, model:read, allow",
        f"p, user:lead, main, models/theirs-{tag}-1, model:read, allow",
    ]
    async with running(transport=HttpTransport("main", mlflow_server.url), access=access(tmp_path, *rows)) as it:
        admin = Client(it.application.asgi)
        for index in range(7):
            for team in ("mine", "theirs"):
                name = f"{team}-{tag}-{index}"
                await admin.rpc("POST", "registered-models/create", name=name)
                made = await admin.rpc("POST", "experiments/create", name=name)
                assert made.status == 200, made.body
        yield admin, tag


async def test_each_order_is_mlflows(real):
    admin, tag = real
    scientist, lead = admin.be("user:scientist"), admin.be("user:lead")
    for order in ([], ["name DESC"], ["last_updated_timestamp DESC"], ["timestamp ASC", "name DESC"]):
        for client, readable in (
            (scientist, {f"mine-{tag}-{index}" for index in range(7)}),
            (lead, {f"mine-{tag}-3", f"theirs-{tag}-1"}),
        ):
            everything, _ = await walk(admin, "registered-models/search", "registered_models", order_by=order)
            expected = [item["name"] for item in everything if item["name"] in readable]
            for size in (1, 3, 100):
                found, pages = await walk(
                    client, "registered-models/search", "registered_models", order_by=order, max_results=size
                )
                assert [item["name"] for item in found] == expected
                assert all(length == size for length in full(pages))


async def test_a_filter_of_the_callers_holds_beside_ours_and_a_wrong_one_is_mlflows_error(real):
    admin, tag = real
    for client in (admin.be("user:scientist"), admin.be("user:lead")):
        query = {"filter": f"name LIKE 'mine-{tag}-3%'"}
        found, _ = await walk(client, "registered-models/search", "registered_models", **query)
        assert [item["name"] for item in found] == [f"mine-{tag}-3"]
        wrong = await client.rpc("GET", "registered-models/search", filter="nonsense !! 3")
        direct = await admin.rpc("GET", "registered-models/search", filter="nonsense !! 3")
        assert (wrong.status, wrong.json) == (400, direct.json)


async def test_experiments_and_versions_are_narrowed_too(real):
    admin, tag = real
    scientist = admin.be("user:scientist")
    body = {"max_results": 3, "order_by": ["name ASC"]}
    names, token = [], None
    while True:
        page = await scientist.rpc("POST", "experiments/search", **body, **({"page_token": token} if token else {}))
        names += [item["name"] for item in page.json["experiments"]]
        token = page.json.get("next_page_token")
        if not token:
            break
    assert names == [f"mine-{tag}-{index}" for index in range(7)]
    assert (await scientist.rpc("GET", "model-versions/search")).json == {}
    assert (await admin.be("user:viewer").rpc("GET", "registered-models/search")).json == {}


async def test_a_walk_ends_when_the_rights_change(real):
    admin, _ = real
    lead = admin.be("user:lead")
    page = await lead.rpc("GET", "registered-models/search", max_results=1)
    token = page.json["next_page_token"]
    searches = admin.app._dialect._gateway._searches
    searches._scopes = lambda *_: Scope(names=frozenset({"another", "set"}))
    answer = await lead.rpc("GET", "registered-models/search", max_results=1, page_token=token)
    assert (answer.status, "begin the search again" in answer.json["message"]) == (400, True)


@pytest.mark.parametrize(("path", "most"), [("registered-models/search", 1_000), ("model-versions/search", 200_000)])
async def test_the_bounds_of_max_results_are_mlflows(running, path, most):
    async with running() as it:
        client = Client(it.application.asgi)
        assert (await client.rpc("GET", path, max_results=most)).status == 200
        for wrong in (0, -1, most + 1):
            answer = await client.rpc("GET", path, max_results=wrong)
            assert (answer.status, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


async def test_a_token_of_runs_is_bound_too(real):
    admin, tag = real
    scientist = admin.be("user:scientist")
    found = await scientist.rpc("GET", "experiments/get-by-name", experiment_name=f"mine-{tag}-0")
    experiment_id = found.json["experiment"]["experiment_id"]
    for _ in range(3):
        await scientist.rpc("POST", "runs/create", experiment_id=experiment_id)
    page = await scientist.rpc("POST", "runs/search", experiment_ids=[experiment_id], max_results=2)
    token = page.json["next_page_token"]
    more = await scientist.rpc("POST", "runs/search", experiment_ids=[experiment_id], max_results=2, page_token=token)
    ids = [run["info"]["run_id"] for run in page.json["runs"] + more.json["runs"]]
    assert len(set(ids)) == 3
    for client, message in (
        (admin, {"experiment_ids": [experiment_id]}),
        (scientist, {"experiment_ids": [experiment_id], "filter": "params.a = '1'"}),
    ):
        answer = await client.rpc("POST", "runs/search", **message, page_token=token)
        assert (answer.status, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


async def test_a_search_looks_each_experiment_up_once_and_only_so_many(running):
    async with running() as it:
        client = Client(it.application.asgi, "user:viewer")
        asked = []
        send = it.memory.send

        async def counting(request, **keywords):
            asked.append(request.rpc)
            return await send(request, **keywords)

        it.memory.send = counting
        for identifiers in (["88888"], ["99999"] * 3000):
            asked.clear()
            answer = await client.rpc("POST", "runs/search", experiment_ids=identifiers)
            assert (answer.status, answer.json) == (200, {})
            assert len(asked) <= 2
        asked.clear()
        many = await client.rpc("POST", "runs/search", experiment_ids=[str(index) for index in range(1001)])
        assert (many.status, "more than 1000" in many.json["message"]) == (400, True)
        assert not asked


async def test_more_tags_than_in_a_batch_of_mlflows_are_refused(running):
    async with running() as it:
        client = Client(it.application.asgi)
        tags = [{"key": f"k{index}", "value": "v"} for index in range(101)]
        assert (await client.rpc("POST", "registered-models/create", name="m", tags=tags)).status == 400
        assert (await client.rpc("POST", "registered-models/create", name="m", tags=tags[:100])).status == 200


async def test_pages_go_on_where_the_registry_knows_no_such_condition(running, tmp_path):
    rows = "p, user:scientist, main, models/team-a-*, model:read, allow"
    async with running(access=access(tmp_path, rows)) as it:
        admin = Client(it.application.asgi)
        for index in range(6):
            for team in "ab":
                await admin.rpc("POST", "registered-models/create", name=f"team-{team}-{index}")
        send = it.memory.send

        async def refuse(request, **keywords):
            if request.rpc.endswith("searchRegisteredModels") and "LIKE" in request.message.get("filter", ""):
                message = "no such comparator"
                raise RegistryRefused(message, status=400, error_code="INVALID_PARAMETER_VALUE")
            return await send(request, **keywords)

        it.memory.send = refuse
        found, pages = await walk(
            admin.be("user:scientist"), "registered-models/search", "registered_models", max_results=2
        )
        assert [row["name"] for row in found] == [f"team-a-{index}" for index in range(6)]
        assert full(pages) == [2, 2] or full(pages) == [2, 2, 2]


async def test_several_prefixes_cost_a_few_searches_and_pages_stay_whole(running, tmp_path):
    rows = [f"p, user:scientist, main, models/{prefix}-*, model:read, allow" for prefix in ("aa", "zz")]
    rows.append("p, user:scientist, main, models/m%C3%A4, model:read, allow")
    async with running(access=access(tmp_path, *rows)) as it:
        admin = Client(it.application.asgi)
        names = [f"aa-{index}" for index in range(3)] + ["mä"] + [f"zz-{index}" for index in range(4)]
        for name in (*names, *(f"m-{index}" for index in range(300))):
            await admin.rpc("POST", "registered-models/create", name=name)
        scientist, send, asked = admin.be("user:scientist"), it.memory.send, []

        async def counting(request, **keywords):
            asked.append(request.message)
            return await send(request, **keywords)

        it.memory.send = counting
        found, pages = await walk(scientist, "registered-models/search", "registered_models", max_results=3)
        assert [row["name"] for row in found] == sorted(names)
        assert full(pages)[:2] == [3, 3]
        assert len(asked) <= 3 * (len(pages) + 1)
        first = await scientist.rpc("GET", "registered-models/search", max_results=3)
        for index in range(250):  # more than is listed: the followers of a listed page cannot go on
            await admin.rpc("POST", "registered-models/create", name=f"zz-more-{index}")
        moved = await scientist.rpc(
            "GET", "registered-models/search", max_results=3, page_token=first.json["next_page_token"]
        )
        assert moved.status == 400
        found, _ = await walk(scientist, "registered-models/search", "registered_models", max_results=100)
        assert len(found) == 258
