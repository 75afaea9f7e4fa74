"""A refusal helps: the missing right for everybody, the deciding row for those who may know it."""

from __future__ import annotations

import dataclasses

import pytest

from tests.client import V1, Client
from tests.conftest import ROOT

RETIRE = f"{V1}/iris/environments/production/retirements"
WHAT = "may not environment:retire on models/iris/environments/production of main."


def policy(directory, *rows):
    """Write the shipped rows without the one that explains, and further ones."""
    text = (ROOT / "policies/policy.csv").read_text()
    kept = [line for line in text.splitlines() if "access:explain" not in line]
    (directory / "policy.csv").write_text("\n".join([*kept, *rows, ""]))
    return {"model": str(ROOT / "policies/model.conf"), "rows": str(directory / "policy.csv")}


EXPLAIN = "p, group:data-scientists, main, access, access:explain, allow"
DENY = "p, group:data-scientists, *, models/iris/environments/production, environment:retire, deny"


@pytest.mark.parametrize(
    ("rows", "says", "row"),
    [
        ((), None, None),
        ((DENY,), None, None),
        ((EXPLAIN,), " No row allows it.", None),
        ((EXPLAIN, DENY), " denies it.", "policy.csv:"),
        ((EXPLAIN.replace("main,", "*,"), DENY), " denies it.", "policy.csv:"),
    ],
)
async def test_a_refusal_names_what_is_missing_and_the_row_to_who_may_know(running, tmp_path, rows, says, row):
    async with running(access=policy(tmp_path, *rows)) as it:
        client = Client(it.application.asgi, "user:scientist")
        problem = (await client("POST", RETIRE, {"reason": "r"})).json
        assert problem["status"] == 403
        assert f"user:scientist {WHAT}" in problem["detail"]
        if says is None:
            assert problem["detail"].endswith(WHAT)
            assert "decision" not in problem
            assert "policy.csv" not in str(problem)
        else:
            assert problem["detail"].endswith(says)
            assert problem["decision"]["revision"] == it.application.authorizer.snapshot.revision
            assert (problem["decision"]["row"] or "").startswith(row or "")
            assert bool(problem["decision"]["row"]) == bool(row)


@pytest.mark.parametrize(("rows", "told"), [((), False), ((EXPLAIN,), True)])
async def test_mlflows_message_says_the_same(running, tmp_path, rows, told):
    async with running(access=policy(tmp_path, *rows)) as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        refused = await client.be("user:scientist").rpc("DELETE", "registered-models/delete", name="iris")
        assert (refused.status, refused.json["error_code"]) == (403, "PERMISSION_DENIED")
        assert "user:scientist may not model:delete on models/iris of main." in refused.json["message"]
        assert ("No row allows it." in refused.json["message"]) is told


async def test_a_row_on_a_mark_is_told_too(running, tmp_path):
    deny = "p, group:platform, *, models/iris/aliases/champion, alias:set, deny"
    async with running(access=policy(tmp_path, deny)) as it:
        client = Client(it.application.asgi)
        refused = await client("POST", f"{V1}/iris/environments/production/promotions", {"version": "1"})
        assert refused.status == 403
        assert refused.json["detail"].startswith("A policy row forbids user:admin alias:set")
        assert refused.json["decision"]["row"] in refused.json["detail"]


async def test_a_narrowed_credential_is_told_that_it_is_narrowed(running):
    async with running() as it:

        async def authenticate(authorization, inner=it.application.asgi._authenticate):
            return dataclasses.replace(await inner(authorization), scope=frozenset({"main/model:read"}))

        it.application.asgi._authenticate = authenticate
        refused = await Client(it.application.asgi)("POST", RETIRE, {"reason": "r"})
        assert refused.status == 403
        assert refused.json["detail"].endswith(
            " of main. The scope of its credential leaves out main/environment:retire."
        )
        assert "decision" not in refused.json


@pytest.mark.parametrize(
    ("row", "named"),
    [("model:read", False), ("experiment:read", True), ("run:read", False)],
)
async def test_a_name_behind_an_id_is_told_to_who_may_read_it(running, tmp_path, row, named):
    rows = f"p, group:platform, *, *, *, allow\np, group:readers, *, *, {row}, allow\n"
    (tmp_path / "rows.csv").write_text(rows)
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(tmp_path / "rows.csv")}
    async with running(access=access) as it:
        admin = Client(it.application.asgi)
        viewer = admin.be("user:viewer")
        experiment = (await admin.rpc("POST", "experiments/create", name="layoffs")).json["experiment_id"]
        run = (await admin.rpc("POST", "runs/create", experiment_id=experiment)).json["run"]["info"]["run_id"]
        asked = [
            await viewer.rpc("POST", "runs/update", run_id=run, status="KILLED"),
            await viewer.rpc("POST", "runs/delete", run_id=run),
            await viewer.rpc("POST", "runs/create", experiment_id=experiment),
            await viewer.rpc("POST", "experiments/delete", experiment_id=experiment),
        ]
        for answer in asked:
            assert (answer.status, b"layoffs" in answer.body) == (403, named), answer.body
            assert b" on experiments/layoffs of main" in answer.body or not named
        denied = await it.events(phase="denied")
        assert {event["data"]["resource"] for event in denied} == {"experiments/layoffs"}  # the record has it
