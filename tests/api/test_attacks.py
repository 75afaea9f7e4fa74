"""Ways round the gate, the policy or the record that somebody tried; each stays closed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from service.authorization.snapshot import Snapshot
from service.model import Principal
from tests.api.test_promotion import alias_of, promote, register, satisfy
from tests.client import V1, Client
from tests.conftest import ROOT

ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


def environments(directory: Path, *rules: str, **changes: object) -> str:
    """The demo environments; production has *changes* and *rules* more."""
    document = yaml.safe_load((ROOT / "policies/environments.yaml").read_text())
    production = document["environments"]["production"]
    production.update(changes)
    production["rules"] += [{"name": f"more-{index}", "require": rule} for index, rule in enumerate(rules)]
    path = directory / "sealing.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(path)


def run_of(it, version="1", model="iris"):
    return it.memory.models[model]["versions"][version]["run_id"]


async def upload(client, run, raw, path="model/MLmodel"):
    return await client(
        "PUT", f"{ARTIFACTS}/0/{run}/artifacts/{path}", raw=raw, headers=[("content-type", "text/plain")]
    )


async def test_the_marks_of_two_environments_do_not_disturb_each_other(running):
    async with running() as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await satisfy(client, first)
        assert (await promote(client, first)).status == 200
        await satisfy(client, second)
        staging = f"{V1}/iris/environments/staging/promotions"
        assert (await client.be("user:scientist")("POST", staging, {"version": second})).status == 200
        assert (await promote(client, second)).status == 200
        versions = it.memory.models["iris"]["versions"]
        assert (versions[first]["current_stage"], versions[second]["current_stage"]) == ("Archived", "Production")
        # to stage what is live leaves its Production stage alone, whoever asks
        again = await client.be("user:scientist").rpc(
            "POST", "model-versions/transition-stage", name="iris", version=second, stage="Staging",
            archive_existing_versions=True,
        )  # fmt: skip
        assert again.status == 200
        assert versions[second]["current_stage"] == "Production"
        assert alias_of(it) == second


async def test_a_stale_production_stage_is_not_taken_down_by_a_staging_right(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        it.memory.models["iris"]["versions"][version]["current_stage"] = "Production"  # made beside the gateway
        staging = f"{V1}/iris/environments/staging/promotions"
        answer = await client.be("user:scientist")("POST", staging, {"version": version})
        assert answer.status == 403
        assert "environment:retire" in answer.json["detail"]


async def test_the_run_must_be_the_one_behind_the_source(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        other = (await client.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
        good = run_of(it)
        for source in (f"runs:/{other}/model", f"mlflow-artifacts:/0/{other}/artifacts/model"):
            answer = await client.rpc("POST", "model-versions/create", name="iris", source=source, run_id=good)
            assert answer.status == 400
            assert "another run" in answer.json["message"]
        # one made so beside the gateway is judged without the metrics it claims
        it.memory.models["iris"]["versions"]["1"]["source"] = f"runs:/{other}/model"
        verdict = (await promote(client, "1", dry_run=True)).json["verdict"]
        floor = next(finding for finding in verdict["findings"] if finding["rule"] == "accuracy-floor")
        assert floor["missing"] == ["candidate.metrics.accuracy"]


@pytest.mark.parametrize("source", ["models:/m-abc?x/1", "models://h/1", "models:/a#b/1", "models:/iris@champion"])
async def test_a_source_that_mlflow_reads_otherwise_is_refused(running, source):
    async with running() as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        assert (await client.rpc("POST", "model-versions/create", name="iris", source=source)).status == 400


async def test_files_changed_after_the_approval_make_it_stale(running, tmp_path):
    async with running(environments=environments(tmp_path, seal="live")) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        scientist = client.be("user:scientist")
        assert (await upload(scientist, run_of(it), b"good")).status == 200
        await satisfy(client, version)
        assert (await promote(client, version, dry_run=True)).json["verdict"]["allowed"] is True
        assert (await upload(scientist, run_of(it), b"EVIL")).status == 200
        closed = await promote(client, version)
        assert closed.status == 409
        unmet = {finding["rule"] for finding in closed.json["verdict"]["findings"] if not finding["passed"]}
        assert unmet == {"validated", "four-eyes"}


async def test_what_stands_behind_a_live_version_is_sealed(running, tmp_path):
    async with running(environments=environments(tmp_path, seal="live")) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version)).status == 200
        run = run_of(it)
        message = {"run_id": run, "key": "accuracy", "value": 1.0, "timestamp": 2}
        for answer in (
            await upload(client, run, b"EVIL"),
            await client("DELETE", f"{ARTIFACTS}/0/{run}/artifacts/model/MLmodel"),
            await client.rpc("POST", "runs/log-metric", **message),
            await client.rpc("POST", "runs/set-tag", run_id=run, key="k", value="v"),
            await client.rpc("POST", "runs/delete", run_id=run),
            await client.rpc("POST", "experiments/delete", experiment_id="0"),
        ):
            assert answer.status == 409, answer.body
            assert "sealed" in answer.json["message"]
            assert "production" in answer.json["message"]
        ended = await client.rpc("POST", "runs/update", run_id=run, status="FINISHED")
        assert ended.status == 200  # a pipeline that promotes inside its run can end it
        gone = await client.rpc("DELETE", "registered-models/alias", name="iris", alias="champion")
        assert gone.status == 200
        assert (await client.rpc("POST", "runs/log-metric", **message)).status == 200


async def test_an_artifact_location_needs_its_own_right(running):
    async with running() as it:
        message = {"name": "e", "artifact_location": "file:///etc"}
        answer = await Client(it.application.asgi, "user:scientist").rpc("POST", "experiments/create", **message)
        assert answer.status == 403


@pytest.mark.parametrize(
    "mlmodel",
    [
        b"a: " + b"[" * 100_000,
        b"a: &a [x,x]\nb: &b [*a,*a]\nsignature: {inputs: *b}\n",
        b"signature: {inputs: [1, 2]}\nflavors: []\n",
        b"\xff\xfe",
        b"- a\n",
        b"x" * (2 << 20),
    ],
)
async def test_a_hostile_mlmodel_is_no_signature_and_no_crash(running, mlmodel):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        it.memory.files[("iris", version)] = mlmodel
        answer = await client.be("user:viewer")("GET", f"{V1}/iris/versions/{version}")
        assert answer.status == 200
        assert answer.json["candidate"]["signature"] is None


async def test_a_rejection_closes_the_gate_even_without_rules(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        body = {"environment": "staging", "decision": "reject", "reason": "leaks"}
        assert (await client.be("user:lead")("POST", f"{V1}/iris/versions/{version}/approvals", body)).status == 201
        answer = await client("POST", f"{V1}/iris/environments/staging/promotions", {"version": version})
        assert answer.status == 409
        assert "rejected by user:lead: leaks" in json.dumps(answer.json)


async def test_retiring_needs_only_the_right_to_retire(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        await promote(client, version)
        gone = await client.be("user:lead").rpc("DELETE", "registered-models/alias", name="iris", alias="champion")
        assert gone.status == 200
        refused = await client.be("user:lead").rpc("DELETE", "registered-models/alias", name="iris", alias="blue")
        assert refused.status == 403


async def test_deleting_a_version_that_is_not_live_ends_nothing(running):
    async with running() as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        for version in (first, second):
            await satisfy(client, version)
            assert (await promote(client, version)).status == 200
        it.memory.models["iris"]["versions"][first]["current_stage"] = "Production"  # made beside the gateway
        assert (await client.rpc("DELETE", "model-versions/delete", name="iris", version=first)).status == 200
        history = (await client("GET", f"{V1}/iris/environments/production/history")).json["history"]
        assert (history[0]["version"], history[0]["until"]) == (second, None)


@pytest.mark.parametrize(
    ("path", "message", "status"),
    [
        ("registered-models/set-tag", {"name": "iris", "key": "k", "value": "v", "z\u0001": 1}, 200),
        ("registered-models/set-tag", {"name": "iris", "key": "mlflow.prompt.is_prompt", "value": "true"}, 400),
        ("registered-models/set-tag", {"name": "iris", "key": "é" * 100_000, "value": "v"}, 400),
        ("runs/log-metric", {"run_id": "RUN", "key": "k", "value": 10**400, "timestamp": 1}, 400),
        ("runs/log-metric", {"run_id": "RUN", "key": "k", "value": 1.0, "timestamp": int("9" * 30)}, 400),
        ("runs/log-metric", {"run_id": "RUN", "key": "k", "value": 1.0, "timestamp": 1, "model_id": "m-x/../y?z"}, 400),
        ("runs/update", {"run_id": "RUN", "status": True}, 400),
        ("runs/update", {"run_id": None, "runId": "RUN"}, 400),
    ],
)
async def test_odd_values_get_a_clear_answer(running, path, message, status):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        message = {key: run_of(it) if value == "RUN" else value for key, value in message.items()}
        answer = await client("POST", f"/api/2.0/mlflow/{path}", message)
        assert answer.status == status, answer.body
        assert all(len(json.dumps(event)) <= 16_384 for event in await it.events())


@pytest.mark.parametrize("expires", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "2001-01-01T00:00:00Z"])
async def test_an_approval_that_expires_out_of_time_is_refused(running, expires):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        body = {"environment": "production", "decision": "approve", "expires": expires}
        base = f"{V1}/iris/versions/{version}/approvals"
        assert (await client.be("user:lead")("POST", base, body)).status == 400
        assert (await client("GET", base)).json == {"approvals": []}


@pytest.mark.parametrize("name", ["%0a", "%7F", "%E2%80%8B", "%ff", "a%2Fb"])
async def test_names_on_our_own_routes_are_checked(running, name):
    async with running() as it:
        answer = await Client(it.application.asgi)("GET", f"{V1}/{name}/versions/1")
        assert answer.status == 400


async def test_a_promotions_events_show_no_more_than_its_reader_may_know(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        promoted = (await promote(client, version)).json["id"]
        seen = await client.be("user:viewer")("GET", f"/v1/promotions/{promoted}")
        assert seen.status == 200
        assert "192.0.2.1" not in seen.body.decode()
        assert "192.0.2.1" in (await client("GET", f"/v1/promotions/{promoted}")).body.decode()


async def test_audit_rights_are_asked_of_each_registry(running, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("p, user:viewer, b, audit, audit:read, allow\np, user:admin, *, *, *, allow\n")
    registries = {name: {"kind": "mlflow", "url": "http://127.0.0.1:1"} for name in ("a", "b")}

    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    environments = tmp_path / "e.yaml"
    environments.write_text("environments: {}\n")
    async with running(registries=registries, access=access, environments=str(environments)) as it:
        client = Client(it.application.asgi)
        for registry in ("a", "b"):
            await client("POST", f"/registries/{registry}/api/2.0/mlflow/registered-models/create", {"name": "m"})
        seen = (await client.be("user:viewer")("GET", "/v1/audit/events")).json["events"]
        assert {event["data"]["registry"] for event in seen} == {"b"}
        assert (await client.be("service:ci")("GET", "/v1/audit/events")).status == 403


async def test_an_upload_may_not_be_encoded(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        target = f"{ARTIFACTS}/0/{run_of(it)}/artifacts/x"
        answer = await client("PUT", target, raw=b"x", headers=[("content-encoding", "gzip")])
        assert answer.status == 415


async def test_a_comment_in_the_policy_hides_no_row(tmp_path):

    rows = tmp_path / "rows.csv"
    rows.write_text(
        '# see, "the\np, user:a, main, models/*, model:read, deny\n# book"\np, user:a, main, models/*, *, allow\n'
    )
    snapshot = Snapshot(ROOT / "policies/model.conf", rows, ["main"])
    assert not snapshot.decide(Principal("user:a"), "main", "models/x", "model:read").allowed


async def test_search_shows_only_what_may_be_read_in_full_pages(running, tmp_path):

    rows = tmp_path / "rows.csv"
    rows.write_text("p, user:viewer, *, models/open-*, model:read, allow\np, user:admin, *, *, *, allow\n")
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(access=access) as it:
        client = Client(it.application.asgi)
        for index in range(30):
            for kind in ("open", "secret", "secret2"):
                await client.rpc("POST", "registered-models/create", name=f"{kind}-{index:02}")
        found, token = [], None
        while True:
            query = {"max_results": 7, **({"page_token": token} if token else {})}
            page = (await client.be("user:viewer").rpc("GET", "registered-models/search", **query)).json
            names = [item["name"] for item in page["registered_models"]]
            found += names
            token = page.get("next_page_token")
            if not token:
                break
            assert len(names) == 7
        assert found == [f"open-{index:02}" for index in range(30)]


@pytest.mark.parametrize("source", ["mlflow-artifacts:0/x/artifacts/y", "runs:r/x", "models:iris/1", "runs://r/x"])
async def test_a_source_has_one_spelling(running, source):
    async with running() as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        assert (await client.rpc("POST", "model-versions/create", name="iris", source=source)).status == 400


async def test_an_upload_under_way_stops_a_promotion(running):
    """The files are judged and sealed together: nothing that began before lands after."""
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        seals = it.application.gateway.seals
        seals._writing["main", run_of(it)] += 1
        assert (await promote(client, version, dry_run=True)).status == 200
        busy = await promote(client, version)
        assert (busy.status, busy.json["type"].rpartition("/")[2]) == (503, "busy")
        del seals._writing["main", run_of(it)]
        assert (await promote(client, version)).status == 200


async def test_a_write_counts_while_it_is_under_way(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        seen = []
        forward = it.application.backends["main"].forward

        async def look(request, **keywords):
            seen.append(dict(it.application.gateway.seals._writing))
            return await forward(request, **keywords)

        it.application.backends["main"].forward = look
        assert (await upload(client, run_of(it), b"x")).status == 200
        assert seen == [{("main", run_of(it)): 1}]
        assert it.application.gateway.seals._writing == {}


async def test_what_cannot_be_read_cannot_be_bound(running, monkeypatch):
    monkeypatch.setattr("service.provenance._MAX_FILES", 2)
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        for index in range(3):
            await upload(client, run_of(it), b"x", f"model/{index}")
        body = {"environment": "production", "decision": "approve"}
        answer = await client.be("user:lead")("POST", f"{V1}/iris/versions/{version}/approvals", body)
        assert answer.status == 409


async def test_a_no_outlives_a_changed_file(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        base = f"{V1}/iris/versions/{version}"
        reject = {"environment": "staging", "decision": "reject", "reason": "leaks"}
        await client.be("user:lead")("POST", f"{base}/approvals", reject)
        await upload(client, run_of(it), b"x", "model/README")
        staging = f"{V1}/iris/environments/staging/promotions"
        assert (await client("POST", staging, {"version": version})).status == 409
        # failed evidence about other files does not bring an older passed one back
        await satisfy(client, version)
        await upload(client, run_of(it), b"y", "model/README")
        await client.be("service:ci")("POST", f"{base}/evidence", {"kind": "validation", "result": "failed"})
        await upload(client, run_of(it), b"x", "model/README")
        verdict = (await promote(client, version, dry_run=True)).json["verdict"]
        assert "validated" in {finding["rule"] for finding in verdict["findings"] if not finding["passed"]}


async def test_a_deny_row_on_a_mark_counts_on_every_route(running, tmp_path):

    rows = tmp_path / "rows.csv"
    rows.write_text(
        (ROOT / "policies/policy.csv").read_text() + "p, group:ci, *, models/*/stages/Staging, stage:set, deny\n"
    )
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    async with running(access=access) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        staging = f"{V1}/iris/environments/staging/promotions"
        assert (await client.be("service:ci")("POST", staging, {"version": version})).status == 403
        message = {"name": "iris", "alias": "challenger", "version": version}
        assert (await client.be("service:ci").rpc("POST", "registered-models/alias", **message)).status == 403
        assert (await client.be("user:scientist").rpc("POST", "registered-models/alias", **message)).status == 200


async def test_deleting_what_is_live_needs_both_rights(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        await promote(client, version)
        for path, message in (
            ("model-versions/delete", {"name": "iris", "version": version}),
            ("registered-models/delete", {"name": "iris"}),
        ):
            answer = await client.be("user:lead").rpc("DELETE", path, **message)
            assert answer.status == 403
        assert (await client.rpc("DELETE", "registered-models/delete", name="iris")).status == 200


async def test_a_version_with_a_line_feed_is_no_version(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        answer = await client("POST", f"{V1}/iris/environments/staging/promotions", {"version": "1\n"})
        assert answer.status == 400


async def test_if_match_of_anything_needs_something(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version, headers=[("if-match", "*")])).status == 412
        assert (await promote(client, version)).status == 200
        assert (await promote(client, version, headers=[("if-match", "*")])).status == 200


async def test_a_write_to_what_is_being_judged_waits(running, tmp_path):
    """MLflow's client tries again on 503: a training run outlives a promotion that looks at it."""
    async with running(environments=environments(tmp_path, seal="live")) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        judge = it.application.gateway._promoter._judge.verdict
        message = {"run_id": run_of(it), "key": "accuracy", "value": 1.0, "timestamp": 2}
        seen = []

        async def look(*arguments):
            seen.append(await client.rpc("POST", "runs/log-metric", **message))
            return await judge(*arguments)

        it.application.gateway._promoter._judge.verdict = look
        assert (await promote(client, version)).status == 200
        assert (seen[0].status, seen[0].headers["retry-after"]) == (503, "1")
        assert (await client.rpc("POST", "runs/log-metric", **message)).status == 409
