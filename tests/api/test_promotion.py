"""The gate: the same one on our route, on MLflow's alias and on MLflow's stage."""

from __future__ import annotations

import asyncio

import pytest

from tests.client import V1, Client

MLMODEL = b"flavors: {sklearn: {}, python_function: {}}\nsignature: {inputs: '[]x', outputs: '[]'}\n"


async def register(it, client: Client, model: str = "iris", accuracy: float | None = 0.95, signed: bool = True) -> str:
    """Register a version as the scientist, with a run; return its number."""
    scientist = client.be("user:scientist")
    await scientist.rpc("POST", "registered-models/create", name=model)
    run = (await scientist.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
    if accuracy is not None:
        await scientist.rpc("POST", "runs/log-metric", run_id=run, key="accuracy", value=accuracy, timestamp=1)
    made = await scientist.rpc("POST", "model-versions/create", name=model, source=f"runs:/{run}/model", run_id=run)
    assert made.status == 200, made.body
    version = made.json["model_version"]["version"]
    if signed:
        it.memory.files[(model, version)] = MLMODEL
    return version


async def satisfy(client: Client, version: str, model: str = "iris") -> None:
    evidence = {"kind": "validation", "result": "passed"}
    posted = await client.be("service:ci")("POST", f"{V1}/{model}/versions/{version}/evidence", evidence)
    assert posted.status == 201, posted.body
    approval = {"environment": "production", "decision": "approve"}
    signed = await client.be("user:lead")("POST", f"{V1}/{model}/versions/{version}/approvals", approval)
    assert signed.status == 201, signed.body


async def promote(client: Client, version: str, model: str = "iris", headers=None, **fields):
    target = f"{V1}/{model}/environments/production/promotions"
    return await client.be("service:ci")("POST", target, {"version": version, **fields}, headers=headers)


def alias_of(it, alias: str = "champion", model: str = "iris"):
    return it.memory.models[model]["aliases"].get(alias)


async def test_the_story(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        closed = await promote(client, version)
        assert closed.status == 409
        assert closed.headers["content-type"] == "application/problem+json"
        unmet = {f["rule"] for f in closed.json["verdict"]["findings"] if not f["passed"]}
        assert unmet == {"validated", "four-eyes"}
        assert alias_of(it) is None
        await satisfy(client, version)
        opened = await promote(client, version, reason="first")
        assert opened.status == 200
        assert (opened.json["state"], opened.json["before"], opened.json["after"]) == ("succeeded", None, version)
        assert alias_of(it) == version
        assert it.memory.models["iris"]["versions"][version]["current_stage"] == "Production"
        live = await client.be("user:viewer")("GET", f"{V1}/iris/environments/production")
        assert live.json["version"] == version
        assert live.json["by"] == "service:ci"
        assert live.json["promotion"] == opened.json["id"]
        assert live.json["flavors"] == ["python_function", "sklearn"]
        events = await it.events(operation=opened.json["id"])
        assert [event["data"]["phase"] for event in events] == ["intent", "outcome"]
        assert events[0]["data"]["verdict"]["allowed"] is True


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("registered-models/alias", {"alias": "champion"}),
        ("model-versions/transition-stage", {"stage": "Production", "archive_existing_versions": True}),
        ("model-versions/transition-stage", {"stage": "production", "archive_existing_versions": True}),
    ],
)
async def test_every_way_to_production_meets_the_gate(running, path, fields):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        for principal in ("service:ci", "user:admin"):  # an administrator meets the gate too
            closed = await client.be(principal).rpc("POST", path, name="iris", version=version, **fields)
            assert closed.status == 409
            assert closed.json["error_code"] == "RESOURCE_CONFLICT"
            assert "four-eyes" in closed.json["message"]
        denied = await client.be("user:scientist").rpc("POST", path, name="iris", version=version, **fields)
        assert (denied.status, denied.json["error_code"]) == (403, "PERMISSION_DENIED")
        assert alias_of(it) is None
        await satisfy(client, version)
        opened = await client.be("service:ci").rpc("POST", path, name="iris", version=version, **fields)
        assert opened.status == 200
        assert alias_of(it) == version
        if "stage" in path:
            assert opened.json["model_version"]["current_stage"] == "Production"
        phases = [event["data"]["phase"] for event in await it.events(action="environment:promote")]
        assert phases == ["rejected", "rejected", "denied", "intent", "outcome"]


async def test_a_guarded_stage_needs_archiving(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        answer = await client.be("service:ci").rpc(
            "POST", "model-versions/transition-stage", name="iris", version=version, stage="Production"
        )
        assert answer.status == 400
        assert "archive_existing_versions" in answer.json["message"]


async def test_a_case_variant_of_a_mark_is_refused(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        answer = await client.rpc("POST", "registered-models/alias", name="iris", alias="Champion", version=version)
        assert answer.status == 400
        assert alias_of(it, "Champion") is None


async def test_nobody_approves_their_own(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        run = (await client.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
        made = await client.rpc("POST", "model-versions/create", name="iris", source=f"runs:/{run}/m", run_id=run)
        version = made.json["model_version"]["version"]
        answer = await client(
            "POST", f"{V1}/iris/versions/{version}/approvals", {"environment": "production", "decision": "approve"}
        )
        assert answer.status == 403
        assert "You registered" in answer.json["detail"]


async def test_an_approver_cannot_promote_on_their_own_approval(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        target = f"{V1}/iris/environments/production/promotions"
        answer = await client.be("user:lead")("POST", target, {"version": version})
        assert answer.status == 409
        assert [f["rule"] for f in answer.json["verdict"]["findings"] if not f["passed"]] == ["four-eyes"]


async def test_a_dry_run_gives_the_verdict_and_changes_nothing(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=None)
        answer = await promote(client, version, dry_run=True)
        assert (answer.status, answer.json["state"], answer.json["dry_run"]) == (200, "evaluated", True)
        floor = next(f for f in answer.json["verdict"]["findings"] if f["rule"] == "accuracy-floor")
        assert floor["missing"] == ["candidate.metrics.accuracy"]
        assert alias_of(it) is None
        assert await it.events(action="environment:promote") == []


async def test_evidence_the_newest_of_a_kind_counts(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        await client.be("service:ci")(
            "POST", f"{V1}/iris/versions/{version}/evidence", {"kind": "validation", "result": "failed"}
        )
        assert (await promote(client, version)).status == 409


async def test_a_revoked_approval_does_not_count(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        base = f"{V1}/iris/versions/{version}/approvals"
        listed = (await client("GET", base)).json["approvals"]
        gone = await client.be("user:lead")("DELETE", f"{base}/{listed[0]['id']}")
        assert gone.status == 204
        again = await client.be("user:lead")("DELETE", f"{base}/{listed[0]['id']}")
        assert again.status == 409
        assert (await promote(client, version)).status == 409


async def test_what_is_live_cannot_be_taken_down_without_the_right(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version)).status == 200
        policy = it.application.configuration.path("policy.csv")
        rows = (it.application.configuration.path(it.application.configuration.settings.access.rows)).read_text()
        policy.write_text(
            rows
            + "p, role:scientist, *, models/*, *, allow\np, role:scientist, *, models/*, environment:retire, deny\n"
        )
        scientist = client.be("user:scientist")
        ways = [
            ("DELETE", "registered-models/alias", {"name": "iris", "alias": "champion"}),
            ("DELETE", "model-versions/delete", {"name": "iris", "version": version}),
            ("DELETE", "registered-models/delete", {"name": "iris"}),
            ("POST", "registered-models/rename", {"name": "iris", "new_name": "other"}),
            ("POST", "model-versions/transition-stage", {"name": "iris", "version": version, "stage": "Archived"}),
        ]
        it.application.authorizer._sources = (it.application.authorizer._sources[0], policy, frozenset({"main"}))
        assert it.application.authorizer.reload()
        for method, path, message in ways:
            answer = await scientist.rpc(method, path, **message)
            assert answer.status == 403, (path, answer.body)
            assert "environment:retire" in answer.json["message"]
            assert alias_of(it) == version
        gone = await client.rpc("DELETE", "registered-models/alias", name="iris", alias="champion")
        assert gone.status == 200
        assert (await client("GET", f"{V1}/iris/environments/production")).status == 404
        history = (await client("GET", f"{V1}/iris/environments/production/history")).json["history"]
        assert [item["version"] for item in history] == [version]
        assert history[0]["until"] is not None


async def test_promoting_what_is_live_changes_nothing_and_says_so(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        await promote(client, version)
        again = await promote(client, version)
        assert (again.status, again.json["state"]) == (200, "unchanged")


async def test_if_match(running):
    async with running() as it:
        client = Client(it.application.asgi)
        first = await register(it, client)
        await satisfy(client, first)
        await promote(client, first)
        etag = (await client("GET", f"{V1}/iris/environments/production")).headers["etag"]
        second = await register(it, client)
        third = await register(it, client)
        for version in (second, third):
            await satisfy(client, version)
        answers = await asyncio.gather(
            *(promote(client, version, headers=[("if-match", etag)]) for version in (second, third))
        )
        assert sorted(answer.status for answer in answers) == [200, 412]


async def test_races_have_one_order(running, tmp_path):
    """Thirty promotions at once: each outcome's `before` is the one before it."""
    environments = tmp_path / "environments.yaml"
    environments.write_text("environments:\n  production: {marks: [{alias: champion}], rules: []}\n")
    async with running(environments=str(environments)) as it:
        client = Client(it.application.asgi)
        versions = [await register(it, client) for _ in range(3)]
        answers = await asyncio.gather(*(promote(client, versions[index % 3]) for index in range(30)))
        assert all(answer.status == 200 for answer in answers)
        live = None
        for event in await it.events(action="environment:promote", phase="outcome"):
            assert event["data"]["before"]["version"] == live
            live = event["data"]["after"]["version"]
        assert alias_of(it) == live


async def test_a_rename_cannot_carry_a_mark_into_a_guarded_scope(running, tmp_path):
    environments = tmp_path / "environments.yaml"
    environments.write_text(
        "environments:\n  production:\n    where: {models: 'prod-*'}\n    marks: [{alias: champion}]\n"
        "    rules: [{name: floor, require: 'candidate.metrics.accuracy >= 0.9'}]\n"
    )
    async with running(environments=str(environments)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, model="dev", accuracy=0.5)
        await client.rpc("POST", "registered-models/alias", name="dev", alias="champion", version=version)
        answer = await client.rpc("POST", "registered-models/rename", name="dev", new_name="prod-dev")
        assert answer.status == 409
        assert "floor" in answer.json["message"]
        assert "dev" in it.memory.models


async def test_records_do_not_survive_a_model_made_again(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        source, run_id = (it.memory.models["iris"]["versions"][version][key] for key in ("source", "run_id"))
        assert (await client.rpc("DELETE", "registered-models/delete", name="iris")).status == 200
        await asyncio.sleep(0.002)  # the registry's clock has milliseconds
        again = await register(it, client)
        assert again == version
        it.memory.models["iris"]["versions"][again]["source"] = source
        it.memory.models["iris"]["versions"][again]["run_id"] = run_id
        closed = await promote(client, again)
        assert closed.status == 409
        unmet = {f["rule"] for f in closed.json["verdict"]["findings"] if not f["passed"]}
        assert unmet == {"validated", "four-eyes"}  # though its source and run are the same
