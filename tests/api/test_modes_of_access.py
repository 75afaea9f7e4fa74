"""Registries whose access is observed or warned about: the registry's own API answers as if all were allowed."""

from __future__ import annotations

import dataclasses

import pytest

from service.modes import NAMED
from tests.client import V1, Client
from tests.conftest import ROOT
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
