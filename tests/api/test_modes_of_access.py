"""Registries whose access is observed or warned about: the registry's own API answers as if all were allowed."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import pytest

from service import tally
from service.__main__ import main
from service.modes import NAMED
from tests.client import V1, Client
from tests.conftest import ROOT, write_configuration
from tests.promotion.flow import ask, register, simple

MAIN = {"kind": "mlflow", "url": "http://127.0.0.1:1"}
FEW = "p, group:platform, *, *, *, allow\np, group:readers, *, models/frozen, *, deny\n"


def mode(name, folder, rows=FEW):
    (folder / "few.csv").write_text(rows)
    return {
        "registries": {"main": {**MAIN, "mode": name}},
        "access": {"model": str(ROOT / "policies/model.conf"), "rows": "few.csv"},
    }


def denials(data):
    return [(item["action"], item["resource"], item["row"]) for item in data["would_deny"]]


@pytest.mark.parametrize("name", ["warn", "observe"])
async def test_a_change_that_no_row_allows_is_made_and_recorded(running, tmp_path, name):
    async with running(**mode(name, tmp_path)) as it:
        viewer = Client(it.application.asgi, "user:viewer")
        tags = [{"key": "team", "value": "a"}]
        answer = await viewer.rpc("POST", "registered-models/create", name="iris", tags=tags)
        assert answer.status == 200
        said = "model:create on models/iris, tag:set on models/iris/tags/team"
        assert answer.headers.get("registry-gateway-would-deny") == (said if name == "warn" else None)
        expected = [("model:create", "models/iris", ""), ("tag:set", "models/iris/tags/team", "")]
        for phase in ("intent", "outcome"):
            (event,) = await it.events(phase=phase)
            data = event["data"]
            assert denials(data) == expected
            assert [(item["action"], item["resource"]) for item in data["asked"]] == [item[:2] for item in expected]
            assert (data["action"], data["decision"]["allowed"]) == ("model:create", False)
        frozen = await viewer.rpc("POST", "registered-models/create", name="frozen")
        assert frozen.status == 200
        assert denials((await it.events(phase="outcome"))[-1]["data"])[0] == (
            "model:create",
            "models/frozen",
            "few.csv:2",
        )
        metrics = (await viewer("GET", "/metrics")).body.decode()
        assert 'registry_gateway_would_deny_total{action="model:create",registry="main"} 2.0' in metrics
        assert await it.events(phase="denied") == []


async def test_what_is_allowed_leaves_no_trace_of_a_denial(running, tmp_path):
    async with running(**mode("warn", tmp_path)) as it:
        answer = await Client(it.application.asgi).rpc("POST", "registered-models/create", name="iris")
        assert "registry-gateway-would-deny" not in answer.headers
        assert denials((await it.events(phase="outcome"))[0]["data"]) == []


async def test_an_error_of_the_registry_carries_the_warning_too(running, tmp_path):
    async with running(**mode("warn", tmp_path)) as it:
        answer = await Client(it.application.asgi, "user:viewer").rpc("GET", "registered-models/get", name="none")
        assert (answer.status, answer.headers["registry-gateway-would-deny"]) == (404, "model:read on models/none")


async def test_reads_are_summed_and_never_flood(running, tmp_path):
    async with running(**mode("observe", tmp_path)) as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        viewer = client.be("user:viewer")
        for _ in range(25):
            assert (await viewer.rpc("GET", "registered-models/get", name="iris")).status == 200
        assert (await client.rpc("GET", "registered-models/get", name="iris")).status == 200
        assert (await viewer.rpc("GET", "registered-models/get", name="absent")).status == 404
        assert await it.events(phase="summed") == []
        await it.application.gateway.tally.flush()
        (event,) = await it.events(phase="summed")
        data = event["data"]
        assert (data["calls"], data["actor"]["subject"]) == ({"getRegisteredModel": 25}, "user:viewer")
        assert denials(data) == [("model:read", "models/iris", "")]
        assert data["actor"]["groups"] == ["group:readers"]


async def test_where_reads_are_recorded_each_event_says_it(running, tmp_path):
    async with running(**mode("observe", tmp_path), audit={"reads": True}) as it:
        await Client(it.application.asgi).rpc("POST", "registered-models/create", name="iris")
        await Client(it.application.asgi, "user:viewer").rpc("GET", "registered-models/get", name="iris")
        await it.application.gateway.tally.flush()
        (event,) = await it.events(action="model:read")
        assert denials(event["data"]) == [("model:read", "models/iris", "")]
        assert await it.events(phase="summed") == []


async def test_telemetry_sums_say_it(running, tmp_path):
    async with running(**mode("observe", tmp_path)) as it:
        viewer = Client(it.application.asgi, "user:viewer")
        run = (await viewer.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
        for step in range(3):
            await viewer.rpc("POST", "runs/log-metric", run_id=run, key="m", value=0.5, timestamp=1, step=step)
        await it.application.gateway.tally.flush()
        sums = {event["data"]["action"]: event["data"] for event in await it.events(phase="summed")}
        assert denials(sums["run:update"]) == [("run:update", "experiments/Default", "")]
        assert sums["run:update"]["calls"] == {"logMetric": 3}


@pytest.mark.parametrize("models", [2, NAMED + 5])
async def test_a_search_shows_all_and_says_what_it_would_leave_out(running, tmp_path, models):
    async with running(**mode("observe", tmp_path)) as it:
        client = Client(it.application.asgi)
        for number in range(models):
            await client.rpc("POST", "registered-models/create", name=f"m{number:02}")
        viewer = client.be("user:viewer")
        answer = await viewer.rpc("GET", "registered-models/search", max_results=100)
        assert len(answer.json["registered_models"]) == models
        pages, token = [], ""
        while True:
            page = await viewer.rpc(
                "GET", "registered-models/search", max_results=4, **({"page_token": token} if token else {})
            )
            pages += [item["name"] for item in page.json["registered_models"]]
            token = page.json.get("next_page_token", "")
            if not token:
                break
        assert pages == [f"m{number:02}" for number in range(models)]
        await it.application.gateway.tally.flush()
        found = [denials(event["data"]) for event in await it.events(phase="summed")]
        if models > NAMED:
            assert [("model:read", "models/*", "")] in found
        else:
            assert found == [[("model:read", "models/m00", ""), ("model:read", "models/m01", "")]]


async def test_runs_of_an_experiment_are_found(running, tmp_path):
    async with running(**mode("observe", tmp_path)) as it:
        viewer = Client(it.application.asgi, "user:viewer")
        await viewer.rpc("POST", "runs/create", experiment_id="0")
        assert len((await viewer.rpc("POST", "runs/search", experiment_ids=["0"])).json["runs"]) == 1
        assert (await viewer.rpc("GET", "experiments/search", max_results=5)).json["experiments"]


def narrow(it, scope):
    """Narrow every credential to *scope*."""
    authenticate = it.application.asgi._authenticate

    async def narrowed(authorization):
        return dataclasses.replace(await authenticate(authorization), scope=scope)

    it.application.asgi._authenticate = narrowed


async def test_a_narrowed_credential_stays_narrowed(running, tmp_path):
    async with running(**mode("observe", tmp_path)) as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        narrow(it, frozenset({"main/alias:read"}))
        viewer = client.be("user:viewer")
        assert (await viewer.rpc("GET", "registered-models/get", name="iris")).status == 403
        assert (await viewer.rpc("POST", "registered-models/create", name="other")).status == 403
        assert (await viewer.rpc("GET", "registered-models/search", max_results=5)).json == {}
        assert (await viewer.rpc("POST", "runs/search", experiment_ids=["0"])).json == {}
        (event,) = await it.events(phase="denied", action="model:create")
        assert denials(event["data"]) == []


@pytest.mark.parametrize("name", ["warn", "observe"])
async def test_what_the_gateway_adds_is_enforced(running, tmp_path, name):
    async with running(**mode(name, tmp_path), environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        viewer = client.be("user:viewer")
        about = f"{V1}/iris/versions/{version}"
        approval = {"environment": "production", "decision": "approve"}
        refused = [
            await viewer("POST", f"{about}/approvals", approval),
            await viewer("POST", f"{about}/evidence", {"kind": "validation", "result": "passed"}),
            await viewer("POST", f"{about}/quarantine", {"reason": "x"}),
            await viewer("GET", about),
            await viewer("GET", f"{V1}/iris/environments/production"),
            await viewer("GET", "/v1/audit/events"),
            await ask(viewer, "promotions", version),
            await ask(viewer, "promotions", version, dry_run=True),
            await ask(viewer, "rollbacks", to=version, reason="x"),
            await ask(viewer, "retirements", reason="x"),
        ]
        assert [answer.status for answer in refused] == [403] * len(refused)
        assert all("registry-gateway-would-deny" not in answer.headers for answer in refused)
        assert (await viewer("GET", "/api/2.0/mlflow/users/get?username=a")).status == 404
        assert (await client.be(None).rpc("GET", "registered-models/get", name="iris")).status == 401


async def test_an_alias_that_marks_is_judged_by_the_gate_whoever_sets_it(running, tmp_path):
    rules = "[{name: floor, require: 'candidate.metrics.accuracy >= 0.9'}]"
    async with running(**mode("warn", tmp_path), environments=simple(tmp_path, "", rules)) as it:
        client = Client(it.application.asgi)
        bad, good = await register(it, client, accuracy=0.5), await register(it, client, accuracy=0.95)
        viewer = client.be("user:viewer")
        said = "environment:promote on models/iris/environments/production"
        for version, status in ((bad, 409), (good, 200)):
            answer = await viewer.rpc("POST", "registered-models/alias", name="iris", alias="champion", version=version)
            assert (answer.status, answer.headers["registry-gateway-would-deny"]) == (status, said)
        (promoted,) = await it.events(action="environment:promote", phase="outcome")
        assert denials(promoted["data"])[0][0] == "environment:promote"
        taken = await viewer.rpc("DELETE", "registered-models/alias", name="iris", alias="champion")
        assert (taken.status, taken.headers["registry-gateway-would-deny"]) == (
            200,
            "environment:retire on models/iris/environments/production",
        )


APPROVER = """\
p, group:platform, *, *, *, allow
p, group:ml-leads, *, models/mine, *, allow
p, group:ml-leads, *, models/mine/*, *, allow
p, group:ml-leads, *, models/iris, model:read, allow
"""


async def test_a_rename_gains_no_right_to_approve(running, tmp_path):
    async with running(**mode("observe", tmp_path, APPROVER), environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        lead = client.be("user:lead")
        answer = await lead.rpc("POST", "registered-models/rename", name="iris", new_name="mine")
        assert answer.status == 403
        # who gains nothing that our own routes ask is not kept from it
        assert (
            await client.be("user:viewer").rpc("POST", "registered-models/rename", name="iris", new_name="mine")
        ).status == 200


async def test_what_stands_behind_a_version_can_be_deleted_and_says_so(running, tmp_path):
    async with running(**mode("observe", tmp_path)) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        run = next(iter(it.memory.runs))
        assert (await client.be("user:viewer").rpc("POST", "runs/delete", run_id=run)).status == 200
        found = denials((await it.events(action="run:delete", phase="outcome"))[0]["data"])
        assert ("run:delete-referenced", "experiments/Default", "") in found


async def test_what_is_sealed_stays_sealed(running, tmp_path):
    async with running(**mode("observe", tmp_path), environments=simple(tmp_path, "seal: live")) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        viewer = client.be("user:viewer")
        run = it.memory.models["iris"]["versions"][version]["run_id"]
        metric = {"run_id": run, "key": "accuracy", "value": 1.0, "timestamp": 1, "step": 2}
        assert (await viewer.rpc("POST", "runs/log-metric", **metric)).status == 200
        assert (await ask(client, "promotions", version)).status == 200
        assert (await viewer.rpc("POST", "runs/log-metric", **metric)).status == 409


async def test_a_kept_answer_is_given_again(running, tmp_path):
    key = [("idempotency-key", "k1")]
    path = "/api/2.0/mlflow/registered-models/create"
    async with running(**mode("observe", tmp_path)) as it:
        viewer = Client(it.application.asgi, "user:viewer")
        for replayed in (None, "true"):
            answer = await viewer("POST", path, {"name": "iris"}, headers=key)
            assert (answer.status, answer.headers.get("idempotent-replayed")) == (200, replayed)
    changes = {**mode("enforce", tmp_path)}
    async with running(it.memory, **changes) as it:
        answer = await Client(it.application.asgi, "user:viewer")("POST", path, {"name": "iris"}, headers=key)
        assert answer.status == 403


_VARIES = re.compile(
    r'"(run_id|run_uuid|run_name|source|creation_timestamp|last_updated_timestamp|start_time|timestamp|next_page_token'
    r'|artifact_uri|user_id)": ("[^"]*"|[0-9]+)'
)


def plain(reply, known):
    """Cut what differs from one gateway to the other: times, and what is random."""
    text = json.dumps(reply.json, sort_keys=True)
    for number, run in enumerate(known):
        text = text.replace(run, f"run {number}")
    return reply.status, _VARIES.sub(r'"\1": …', re.sub(r"\(operation [0-9a-f-]{36}\)", "", text))


async def a_day(it, seed):
    """Call at random, always the same; return the answers."""
    chance, client, runs, answers = random.Random(seed), Client(it.application.asgi), [], []

    async def rpc(*words, **fields):
        answer = await client.be(chance.choice(["user:viewer", "user:scientist", "user:lead"])).rpc(*words, **fields)
        answers.append(answer)
        return answer

    for _ in range(60):
        model, version, alias = chance.choice("abc"), str(chance.randrange(1, 3)), chance.choice(["champion", "dev"])
        named = {"name": model, "version": version}
        tag = {"key": chance.choice("kl"), "value": "v"}
        run = chance.choice(runs) if runs else "0" * 32
        match chance.randrange(18):
            case 0:
                await rpc("POST", "registered-models/create", name=model, tags=[tag])
            case 1:
                found = await rpc("POST", "runs/create", experiment_id="0")
                runs.append(found.json["run"]["info"]["run_id"])
            case 2:
                await rpc("POST", "model-versions/create", name=model, source=f"runs:/{run}/model", run_id=run)
            case 3:
                await rpc("POST", "registered-models/alias", **named, alias=alias)
            case 4:
                await rpc("DELETE", "registered-models/alias", name=model, alias=alias)
            case 5:
                await rpc(
                    "POST", "model-versions/transition-stage", **named, stage="Staging", archive_existing_versions=True
                )
            case 6:
                await rpc("POST", "model-versions/set-tag", **named, **tag)
            case 7:
                await rpc("DELETE", "model-versions/delete", **named)
            case 8:
                await rpc("POST", "registered-models/rename", name=model, new_name=chance.choice("abcd"))
            case 9:
                await rpc("POST", "runs/log-metric", run_id=run, key="accuracy", value=0.5, timestamp=1)
            case 10:
                await rpc("GET", "registered-models/get", name=model)
            case 11:
                await rpc("GET", "registered-models/alias", name=model, alias=alias)
            case 12:
                await rpc("GET", "registered-models/search", max_results=2)
            case 13:
                await rpc("GET", "model-versions/search", max_results=100)
            case 14:
                await rpc("POST", "runs/search", experiment_ids=["0", "1"])
            case 15:
                await rpc("GET", "experiments/search", max_results=5)
            case 16:
                await rpc("POST", "runs/delete", run_id=run)
            case 17:
                await rpc("DELETE", "registered-models/delete", name=model)
    return [plain(answer, runs) for answer in answers]


ALL = "".join(f"p, {who}, *, *, *, allow\n" for who in ("user:viewer", "user:scientist", "user:lead"))


@pytest.mark.parametrize("seed", range(4))
async def test_a_day_without_rights_is_answered_as_one_with_all(running, tmp_path_factory, seed):
    answers = {}
    for name, rows in (("observe", "p, group:platform, *, *, *, allow\n"), ("enforce", ALL)):
        folder = tmp_path_factory.mktemp(name)
        async with running(directory=folder, **mode(name, folder, rows), environments=simple(folder)) as it:
            answers[name] = await a_day(it, seed)
            assert await it.events(phase="denied") == []
            changes = [event["data"] for event in await it.events(phase="outcome")]
            assert [bool(data["would_deny"]) for data in changes] == [name == "observe"] * len(changes)
    assert answers["observe"] == answers["enforce"]
    assert {status for status, _ in answers["observe"]} >= {200, 404}


async def test_too_many_sums_lose_names_and_no_counts(running, tmp_path, monkeypatch):
    monkeypatch.setattr(tally, "_MAX_SUMS", 10)
    async with running(**mode("observe", tmp_path)) as it:
        client = Client(it.application.asgi)
        for number in range(25):
            await client.rpc("POST", "registered-models/create", name=f"m{number}")
            assert (await client.be("user:viewer").rpc("GET", "registered-models/get", name=f"m{number}")).status == 200
        await it.application.gateway.tally.flush()
        sums = [event["data"] for event in await it.events(phase="summed")]
        assert len(sums) <= 10
        assert sum(data["calls"]["getRegisteredModel"] for data in sums) == 25
        assert {item["action"] for data in sums for item in data["would_deny"]} == {"model:read"}
        assert any(item["resource"] == "*" for data in sums for item in data["would_deny"])


def test_check_warns_of_what_is_not_enforced(tmp_path, capsys):
    file = write_configuration(tmp_path, **mode("observe", tmp_path))
    assert main(["check", "--config", str(file)]) == 0
    assert "registries.main.mode is observe: access to it is not enforced (a warning)" in capsys.readouterr().err
    file = write_configuration(tmp_path, **mode("enforce", tmp_path))
    assert main(["check", "--config", str(file)]) == 0
    assert "not enforced" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["observe", "enforce"])
async def test_the_start_names_what_is_not_enforced(running, tmp_path, capsys, name):
    async with running(**mode(name, tmp_path)):
        assert ("access is not enforced" in capsys.readouterr().out) is (name == "observe")
