"""What may become live again: only what passed its gate, with the files it passed with."""

from __future__ import annotations

import pytest

from service.backends.memory import MemoryTransport
from service.errors import RegistryUnavailable
from tests.api.test_attacks import run_of
from tests.client import Client
from tests.promotion.flow import V1, alias_of, ask, environments, promote, register, satisfy, simple

LIVE = f"{V1}/iris/environments/production"
FLOOR = "[{name: floor, require: 'candidate.metrics.accuracy >= 0.9', because: too low, waivable: true}]"
WHY = {"reason": "fraud wave", "ticket": "INC-1"}


def unmet(answer) -> list[tuple[str, str]]:
    assert answer.status == 409, answer.body
    return [(item["rule"], item["because"]) for item in answer.json["verdict"]["findings"] if not item["passed"]]


async def upload(it, client, version, content):
    path = f"0/{run_of(it, version)}/artifacts/model/weights"
    return await client.be("user:scientist")(
        "PUT",
        f"/api/2.0/mlflow-artifacts/artifacts/{path}",
        raw=content,
        headers=[("content-type", "application/octet-stream")],
    )


async def test_a_second_rollback_goes_further_back(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        for version in [await register(it, client) for _ in range(3)]:
            await ask(client, "promotions", version)
        back = [await ask(client, "rollbacks", reason="bad") for _ in range(3)]
        assert [(item.status, item.json.get("after")) for item in back] == [(200, "2"), (200, "1"), (404, None)]
        assert (await ask(client, "rollbacks", to="3", reason="it was good")).json["after"] == "3"


async def test_files_that_were_replaced_are_not_what_was_live(running, tmp_path):
    rules = "[{name: validated, require: 'passed(evidence, \"validation\")', because: untested}]"
    async with running(environments=simple(tmp_path, "seal: live", rules)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        for version in (first, second):
            await satisfy(client, version)
            assert (await promote(client, version)).status == 200
        digest = (await client("GET", f"{LIVE}/history")).json["history"][1]["artifact_digest"]
        assert (await upload(it, client, first, b"BACKDOOR")).status == 200  # it is not live any more
        for fields in ({}, {"to": first}):
            refused = await ask(client, "rollbacks", reason="r", **fields)
            assert unmet(refused) == [("was-live-before", "its files are not those that were live in production")]
        assert alias_of(it) == second
        past = (await client("GET", f"{LIVE}/history")).json["history"][1]
        assert (past["version"], past["artifact_digest"], past["passed"]) == (first, digest, True)


async def test_what_was_only_observed_is_not_rolled_back_to(running, tmp_path):
    path = tmp_path / "environments.yaml"
    async with running(environments=simple(tmp_path, "mode: observe", FLOOR)) as it:
        client = Client(it.application.asgi)
        bad, good, next_one = [await register(it, client, accuracy=a) for a in (0.1, 0.95, 0.96)]
        scientist = client.be("user:scientist")
        for version in (bad, good):
            answer = await scientist.rpc(
                "POST", "registered-models/alias", name="iris", alias="champion", version=version
            )
            assert answer.status == 200
        memory = it.memory
    path.write_text(path.read_text().replace("mode: observe", "mode: enforce"))
    async with running(memory, environments=str(path)) as it:
        client = Client(it.application.asgi)
        assert (await ask(client, "promotions", next_one)).status == 200
        refused = await ask(client, "rollbacks", to=bad, reason="r")
        assert unmet(refused) == [("was-live-before", "was live in production, but its gate was not open for it")]
        assert (await ask(client, "rollbacks", reason="r")).json["after"] == good
        assert (await ask(client, "rollbacks", reason="r")).status == 404


async def test_an_emergency_is_gone_back_to_only_when_somebody_looked_at_it(running, tmp_path):
    async with running(environments=simple(tmp_path, "", FLOOR)) as it:
        client = Client(it.application.asgi)
        good, hasty, newest = [await register(it, client, accuracy=a) for a in (0.95, 0.5, 0.96)]
        await ask(client, "promotions", good)
        debt = (await ask(client.be("user:lead"), "promotions", hasty, emergency=WHY)).json["id"]
        await ask(client, "promotions", newest)
        assert (await ask(client, "rollbacks", reason="r", dry_run=True)).status in (200, 400)
        assert unmet(await ask(client, "rollbacks", to=hasty, reason="r"))[0][0] == "was-live-before"
        assert (await client("POST", f"/v1/emergencies/{debt}/reviews", {"reason": "sound"})).status == 200
        assert (await ask(client, "rollbacks", to=hasty, reason="r")).status == 200


async def test_a_rejection_holds_for_a_rollback_too(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        for version in (first, second):
            await ask(client, "promotions", version)
        body = {"environment": "production", "decision": "reject", "reason": "biased"}
        assert (await client.be("user:lead")("POST", f"{V1}/iris/versions/{first}/approvals", body)).status == 201
        assert unmet(await ask(client, "rollbacks", reason="r")) == [("not-rejected", "rejected by user:lead: biased")]


async def test_approvals_count_for_the_rules_of_a_rollback(running, tmp_path):
    more = "rollback: {rules: [{name: asked, require: size(approvals) > 0, because: somebody must agree}]}"
    async with running(environments=simple(tmp_path, more)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        for version in (first, second):
            await ask(client, "promotions", version)
        assert unmet(await ask(client, "rollbacks", reason="r")) == [("asked", "somebody must agree")]
        body = {"environment": "production", "decision": "approve"}
        assert (await client.be("user:lead")("POST", f"{V1}/iris/versions/{first}/approvals", body)).status == 201
        assert (await ask(client, "rollbacks", reason="r")).status == 200


class Flaky(MemoryTransport):
    fails = False

    async def send(self, request, *, writes, trace=""):
        if self.fails and request.rpc.endswith("setRegisteredModelAlias"):
            message = "down for a moment"
            raise RegistryUnavailable(message)
        return await super().send(request, writes=writes, trace=trace)


async def check(client):
    return (await client("POST", f"{LIVE}/checks", {})).json["state"]


async def test_a_revert_that_failed_is_tried_again_and_never_takes_down_what_was_promoted(running, tmp_path):
    memory = Flaky()
    async with running(memory, environments=simple(tmp_path, "on_drift: revert")) as it:
        client = Client(it.application.asgi)
        first, second, third = [await register(it, client) for _ in range(3)]
        await ask(client, "promotions", first)
        memory.models["iris"]["aliases"]["champion"] = second
        memory.fails = True
        assert [await check(client) for _ in range(2)] == ["drifted", "drifted"]
        assert (await client("GET", LIVE)).json["drifted"] is True
        memory.fails = False
        (found,) = await it.application.drift.sweep(it.application.backends["main"])
        assert (found.state, alias_of(it), await check(client)) == ("reverted", first, "agrees")
        memory.models["iris"]["aliases"]["champion"] = third
        assert (await check(client), alias_of(it)) == ("reverted", first)
        del memory.models["iris"]["aliases"]["champion"]
        assert (await check(client), alias_of(it)) == ("reverted", first)
        drifts = await it.events(action="environment:drift")
        assert [event["data"]["after"]["version"] for event in drifts] == [second, third, None]


async def test_drift_of_before_is_reverted_to_what_was_promoted(running, tmp_path):
    path = simple(tmp_path)
    async with running(environments=path) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await ask(client, "promotions", first)
        it.memory.models["iris"]["aliases"]["champion"] = second
        assert await check(client) == "drifted"  # it is only reported
        memory = it.memory
    simple(tmp_path, "on_drift: revert")
    async with running(memory, environments=path) as it:
        client = Client(it.application.asgi)
        (found,) = await it.application.drift.sweep(it.application.backends["main"])
        assert (found.state, alias_of(it)) == ("reverted", first)


async def test_nothing_in_quarantine_is_moved_back_to(running, tmp_path):
    async with running(environments=simple(tmp_path, "on_drift: revert")) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await ask(client, "promotions", first)
        await client("POST", f"{V1}/iris/versions/{first}/quarantine", {"reason": "leaks"})
        it.memory.models["iris"]["aliases"]["champion"] = second
        assert (await check(client), alias_of(it)) == ("drifted", second)


async def test_promoting_what_drifted_ends_the_drift_or_is_refused(running, tmp_path):
    async with running(environments=simple(tmp_path, "", FLOOR)) as it:
        client = Client(it.application.asgi)
        first, bad, good = [await register(it, client, accuracy=a) for a in (0.95, 0.1, 0.96)]
        await ask(client, "promotions", first)
        it.memory.models["iris"]["aliases"]["champion"] = bad
        for _ in range(2):  # before and after it is recorded
            assert unmet(await ask(client, "promotions", bad)) == [("floor", "too low")]
            assert await check(client) == "drifted"
        it.memory.models["iris"]["aliases"]["champion"] = good
        answer = await ask(client, "promotions", good)
        assert (answer.status, answer.json["state"]) == (200, "succeeded")
        live = (await client("GET", LIVE)).json
        assert (live["version"], live["drifted"], live["kind"]) == (good, False, "promotion")
        assert (await ask(client, "promotions", good)).json["state"] == "unchanged"


STAGED = "environments:\n  production: {marks: [{stage: Production}], rules: %s}\n" % FLOOR  # noqa: UP031  # braces


@pytest.mark.parametrize("how", ["delete", "move", "retire"])
async def test_taking_down_uncovers_no_older_version_in_the_stage(running, tmp_path, how):
    async with running(environments=environments(tmp_path, STAGED)) as it:
        client = Client(it.application.asgi)
        old, new = await register(it, client, accuracy=0.1), await register(it, client)
        for version in (old, new):  # as it was before the gateway
            it.memory.models["iris"]["versions"][version]["current_stage"] = "Production"
        await client("POST", "/v1/registries/main/adoptions", {"reason": "gateway introduced"})
        move = {"name": "iris", "stage": "Archived", "archive_existing_versions": False}
        if how == "retire":
            assert (await ask(client, "retirements", reason="withdrawn")).status == 200
            assert (await client("GET", LIVE)).status == 404
            return
        calls = {
            "delete": ("DELETE", "model-versions/delete", {"name": "iris"}),
            "move": ("POST", "model-versions/transition-stage", move),
        }
        method, path, body = calls[how]
        refused = await client.rpc(method, path, **body, version=new)
        assert (refused.status, f"version {old}" in refused.json["message"]) == (409, True)
        assert (await client.rpc("POST", "model-versions/transition-stage", **move, version=old)).status == 200
        assert (await client.rpc(method, path, **body, version=new)).status == 200
        assert (await client("GET", LIVE)).status == 404


async def test_what_was_live_then_is_told_by_the_name_of_then(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await register(it, client, model="rose")
        await ask(client, "promotions", "1", model="rose")
        first, second = await register(it, client), await register(it, client)
        for version in (first, second):
            await ask(client, "promotions", version)
        since = (await client("GET", LIVE)).json["since"]
        assert (await client.rpc("DELETE", "registered-models/delete", name="iris")).status == 200
        renamed = await client.rpc("POST", "registered-models/rename", name="rose", new_name="iris")
        assert renamed.status == 200
        assert (await client("GET", f"{LIVE}?at={since}")).json["version"] == second
        history = (await client("GET", f"{LIVE}/history")).json["history"]
        assert [item["model"] for item in history] == ["iris", "iris", "iris", "rose"]


async def test_a_second_drift_to_the_same_version_is_recorded_again(running, tmp_path):
    async with running(environments=simple(tmp_path, "on_drift: revert")) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        await ask(client, "promotions", first)
        for _ in range(2):
            it.memory.models["iris"]["aliases"]["champion"] = second
            assert await check(client) == "reverted"
        assert len(await it.events(action="environment:drift")) == 2


TWO_STAGES = """\
environments:
  staging: {marks: [{stage: Staging}], rules: %s}
  production: {marks: [{stage: Production}], rules: []}
"""


async def test_promoting_out_of_a_stage_uncovers_no_older_version_there(running, tmp_path):
    async with running(environments=environments(tmp_path, TWO_STAGES % FLOOR)) as it:
        client = Client(it.application.asgi)
        old, new = await register(it, client, accuracy=0.1), await register(it, client)
        for version in (old, new):  # as it was before the gateway
            it.memory.models["iris"]["versions"][version]["current_stage"] = "Staging"
        refused = await ask(client, "promotions", new)
        assert (refused.status, f"version {old}" in refused.json["detail"]) == (409, True)
        move = {"name": "iris", "version": old, "stage": "Archived", "archive_existing_versions": False}
        assert (await client.rpc("POST", "model-versions/transition-stage", **move)).status == 200
        assert (await ask(client, "promotions", new)).status == 200
