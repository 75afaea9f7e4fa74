"""What stands behind an approved or a live version stays as it was judged: runs, logged models, files, tags."""

from __future__ import annotations

import asyncio

import pytest

from service.dialects.mlflow_row import Body
from service.dialects.mlflow_table import ROWS
from service.effects import Signed
from service.errors import RegistryUnavailable
from service.model import Record
from service.records import Approval
from tests.api.test_attacks import ARTIFACTS, environments, run_of, upload
from tests.api.test_promotion import promote, register, satisfy
from tests.client import V1, Client
from tests.surface.test_judged_is_forwarded import DIALECT, IN_PATH, MODEL_ID, RUN, Recording, message_for

APPROVE = {"environment": "production", "decision": "approve"}


async def approve(client, version="1", model="iris", **fields):
    body = {**APPROVE, **fields}
    answer = await client.be("user:lead")("POST", f"{V1}/{model}/versions/{version}/approvals", body)
    assert answer.status == 201, answer.body
    return answer.json["id"]


async def revoke(client, approval, version="1", model="iris"):
    return await client.be("user:lead")("DELETE", f"{V1}/{model}/versions/{version}/approvals/{approval}")


async def log(client, run, **fields):
    message = {"run_id": run, "key": "accuracy", "value": 1.0, "timestamp": 2, **fields}
    return await client.rpc("POST", "runs/log-metric", **message)


def refused(answer, *words):
    assert answer.status == 409, answer.body
    assert all(word in answer.json["message"] for word in words), answer.json["message"]
    return True


SAYS = ("version 1 of 'iris'", "approved for 'production'", "sealed")


async def test_what_stands_behind_an_approved_version_is_sealed(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        run = run_of(it)
        assert (await upload(client, run, b"good")).status == 200
        approval = await approve(client)
        for answer in (
            await log(client, run),
            await upload(client, run, b"EVIL"),
            await client("DELETE", f"{ARTIFACTS}/0/{run}/artifacts/model/MLmodel"),
            await client.rpc("POST", "runs/set-tag", run_id=run, key="k", value="v"),
            await client.rpc("POST", "runs/delete", run_id=run),
            await client.rpc("POST", "experiments/delete", experiment_id="0"),
        ):
            assert refused(answer, *SAYS)
        assert (await client.rpc("POST", "runs/update", run_id=run, status="FINISHED")).status == 200
        assert (await revoke(client, approval)).status == 204
        assert (await log(client, run)).status == 200


async def test_an_experiment_that_may_hold_what_is_sealed_is_not_deleted(running):
    async with running() as it:
        client = Client(it.application.asgi)
        other = (await client.rpc("POST", "experiments/create", name="other")).json["experiment_id"]
        await register(it, client)
        await approve(client)
        it.application.gateway.access.ownership._experiment_of.clear()
        inner = it.memory.send

        async def failing(request, *, writes, trace=""):
            if request.rpc.endswith(".getRun"):
                raise RegistryUnavailable("down")
            return await inner(request, writes=writes, trace=trace)

        it.memory.send = failing
        assert (await client.rpc("POST", "experiments/delete", experiment_id=other)).status == 503
        it.memory.send = inner
        assert (await client.rpc("POST", "experiments/delete", experiment_id=other)).status == 200


async def test_a_rejection_or_a_refused_approval_seals_nothing(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        await approve(client, decision="reject")
        own = await client.be("user:scientist")("POST", f"{V1}/iris/versions/1/approvals", APPROVE)
        assert own.status == 403
        assert (await log(client, run_of(it))).status == 200
        assert it.application.gateway.seals._index == {}


async def test_each_approval_seals_until_it_ends(running, monkeypatch):
    """Two approvals, one of them expiring; then none."""
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        run, later = run_of(it), it.application.trail.now()
        first = await approve(client)
        await approve(client, expires="2089-01-01T00:00:00Z")
        assert (await revoke(client, first)).status == 204
        assert refused(await log(client, run), *SAYS)
        later = 3_755_376_001.0  # a second into 2089
        monkeypatch.setattr(it.application.gateway.seals, "_now", lambda: later)
        assert (await log(client, run)).status == 200


async def test_a_later_rejection_does_not_open_what_a_revocation_would_bring_back(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        rejection = await approve(client, decision="reject")
        assert refused(await log(client, run_of(it)), *SAYS)
        assert (await revoke(client, rejection)).status == 204  # the approval counts again
        assert (await promote(client, version)).status == 200


async def test_an_approval_revoked_after_the_promotion_leaves_the_live_seal(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await promote(client, version)).status == 200
        assert refused(await log(client, run_of(it)), "live in 'production'")
        approvals = (await client("GET", f"{V1}/iris/versions/{version}/approvals")).json["approvals"]
        assert (await revoke(client, approvals[0]["id"])).status == 204
        assert refused(await log(client, run_of(it)), "live in 'production'")
        await client.rpc("DELETE", "registered-models/alias", name="iris", alias="champion")
        assert (await log(client, run_of(it))).status == 200


async def test_taking_down_leaves_the_approved_seal(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        await promote(client, version)
        await client.rpc("DELETE", "registered-models/alias", name="iris", alias="champion")
        assert refused(await log(client, run_of(it)), *SAYS)


async def test_seals_of_approvals_outlive_a_restart(running, tmp_path):
    async with running() as it:
        client = Client(it.application.asgi)
        for _ in range(4):
            await register(it, client)
        await client.rpc("POST", "registered-models/rename", name="iris", new_name="lily")
        for version in ("1", "2", "3", "4"):
            approval = await approve(
                client, version, "lily", **({"expires": "2089-01-01T00:00:00Z"} if version == "4" else {})
            )
            if version == "2":
                await revoke(client, approval, version, "lily")
        await client.rpc("POST", "registered-models/rename", name="lily", new_name="rose")
        runs = {version: run_of(it, version, "rose") for version in ("1", "2", "3", "4")}
        assert (await client.rpc("DELETE", "model-versions/delete", name="rose", version="3")).status == 200
        memory = it.memory
    async with running(transport=memory) as it:
        client = Client(it.application.asgi)
        it.application.gateway.seals._now = lambda: 3_755_376_001.0
        assert refused(await log(client, runs["1"]), "version 1 of 'rose'", "approved for 'production'")
        for version in ("2", "3", "4"):  # revoked, deleted, expired
            assert (await log(client, runs[version])).status == 200


async def test_a_rename_out_of_scope_and_back_opens_nothing(running, tmp_path):
    scope = environments(tmp_path, where={"models": "iris*"})
    async with running(environments=scope) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        run = run_of(it)
        await approve(client)
        for old, new in (("iris", "other"), ("other", "iris")):
            assert (await client.rpc("POST", "registered-models/rename", name=old, new_name=new)).status == 200
            assert refused(await log(client, run), f"version 1 of {new!r}")


async def test_what_is_deleted_and_made_again_inherits_no_seal(running):
    async with running() as it:
        client = Client(it.application.asgi)
        for delete in (
            ("registered-models/delete", {"name": "iris"}),
            ("model-versions/delete", {"name": "iris", "version": "1"}),
        ):
            assert await register(it, client) == "1"
            run = run_of(it)
            await approve(client)
            assert refused(await log(client, run), *SAYS)
            assert (await client.rpc("DELETE", delete[0], **delete[1])).status == 200
            assert (await log(client, run)).status == 200
        await client.rpc("DELETE", "registered-models/delete", name="iris")
        assert await register(it, client) == "1"
        tag = {"name": "iris", "version": "1", "key": "k", "value": "v"}
        assert (await client.rpc("POST", "model-versions/set-tag", **tag)).status == 200
        assert (await log(client, run_of(it))).status == 200


async def test_a_lost_answer_to_a_deletion_keeps_the_seal_until_it_is_proved(running, monkeypatch):
    from service import reconciler
    from tests.api.test_reconciler import Losing

    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    async with running(transport=Losing()) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        await register(it, client)
        run = run_of(it)
        await approve(client)
        it.memory.rpc, it.memory.done = "deleteModelVersion", True
        assert (await client.rpc("DELETE", "model-versions/delete", name="iris", version="1")).status == 424
        assert refused(await log(client, run), *SAYS)
        assert await it.application.reconciler.sweep() == 0
        assert (await log(client, run)).status == 200


async def test_an_approval_of_a_version_deleted_beside_the_gateway_can_be_taken_back(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        run, approval = run_of(it), await approve(client)
        del it.memory.models["iris"]["versions"]["1"]
        assert refused(await log(client, run), *SAYS)
        assert (await revoke(client, "0" * 8)).status == 404
        assert (await revoke(client, approval)).status == 204
        assert (await log(client, run)).status == 200


async def test_an_approval_of_a_copy_seals_what_it_was_copied_from(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        await client.rpc("POST", "registered-models/create", name="copy")
        made = await client.rpc("POST", "model-versions/create", name="copy", source="models:/iris/1")
        assert made.status == 200, made.body
        await approve(client, model="copy")
        assert refused(await log(client, run_of(it)), "version 1 of 'copy'")
        assert refused(await upload(client, run_of(it), b"EVIL"), "version 1 of 'copy'")


class Slow:
    """Stops a write upstream until it is let go."""

    def __init__(self, it, rpc):
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        inner = it.memory.send

        async def send(request, *, writes, trace=""):
            if request.rpc.endswith(f".{rpc}"):
                self.reached.set()
                await self.go.wait()
            return await inner(request, writes=writes, trace=trace)

        it.memory.send = send


async def test_nobody_signs_what_is_half_written(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        slow = Slow(it, "uploadArtifact")
        writing = asyncio.create_task(upload(client, run_of(it), b"half"))
        await slow.reached.wait()
        answer = await client.be("user:lead")("POST", f"{V1}/iris/versions/1/approvals", APPROVE)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert (await client("GET", f"{V1}/iris/versions/1/approvals")).json == {"approvals": []}
        await revoke(client, await approve(client, decision="reject"))  # a no holds whatever changes
        slow.go.set()
        assert (await writing).status == 200
        await approve(client)
        assert refused(await upload(client, run_of(it), b"EVIL"), *SAYS)


async def test_a_write_while_somebody_signs_has_to_wait(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        slow = Slow(it, "listArtifacts")  # the digest is being taken
        signing = asyncio.create_task(approve(client))
        await slow.reached.wait()
        answer = await log(client, run_of(it))
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "being judged" in answer.json["message"]
        slow.go.set()
        await signing
        assert refused(await log(client, run_of(it)), *SAYS)


async def test_a_deletion_under_way_keeps_a_version_from_being_judged(running):
    """From before it is checked, not only from when it is forwarded."""
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        await client.rpc("POST", "runs/create", experiment_id="0")
        trail, answers = it.application.trail, []
        intent = trail.intent

        async def look(operation):
            if operation.name == "deleteArtifact":
                answers.append(await client.be("user:lead")("POST", f"{V1}/iris/versions/1/approvals", APPROVE))
            return await intent(operation)

        trail.intent = look
        await client("DELETE", f"{ARTIFACTS}/0/{run_of(it)}/artifacts/notes.txt")
        assert [answer.status for answer in answers] == [503]


async def test_an_approval_whose_author_hangs_up_is_sealed_or_not_there(running):
    async with running() as it:
        client = Client(it.application.asgi)
        await register(it, client)
        slow = Slow(it, "listArtifacts")
        signing = asyncio.create_task(approve(client))
        await slow.reached.wait()
        signing.cancel()
        slow.go.set()
        await asyncio.gather(signing, return_exceptions=True)
        await it.application.changes.drain(5)
        stored = [item for item in await it.application.journal.signed() if not item.approval.revoked]
        sealed = (await log(client, run_of(it))).status == 409
        assert sealed is bool(stored)
        assert stored  # it was carried to its end


@pytest.mark.parametrize(
    ("seal", "approved", "live"), [("approved", 409, 409), ("live", 200, 409), ("never", 200, 200)]
)
async def test_an_environment_says_when_it_seals(running, tmp_path, seal, approved, live):
    async with running(environments=environments(tmp_path, seal=seal)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        ours = {"run_id": run_of(it), "key": "note", "value": "v"}
        assert (await client.rpc("POST", "runs/set-tag", **ours)).status == approved
        assert (await promote(client, version)).status == 200
        assert (await client.rpc("POST", "runs/set-tag", **ours)).status == live


# tags and the description of a version


async def tag(client, key, method="set", version="1", model="iris"):
    message = {"name": model, "version": version, "key": key}
    if method == "set":
        return await client.rpc("POST", "model-versions/set-tag", **message, value="v")
    return await client.rpc("DELETE", "model-versions/delete-tag", **message)


@pytest.mark.parametrize(
    ("rules", "listed", "key", "sealed"),
    [
        (["candidate.tags.team == 'a'"], [], "team", True),
        (["has(candidate.tags.team)"], [], "team", True),
        (["candidate.tags['qa/result'] == 'ok'"], [], "qa/result", True),
        (["incumbent == null || incumbent.tags.team == 'a'"], [], "team", True),
        (["'team' in candidate.tags"], [], "anything", True),
        (["candidate.tags.exists(k, candidate.tags[k] == 'v')"], [], "anything", True),
        (["candidate.tags.team == 'a'"], [], "note", False),
        (["candidate.run.tags.team == 'a'"], [], "team", False),
        ([], ["qa/*", "owner"], "qa/bias", True),
        ([], ["qa/*", "owner"], "owner", True),
        ([], ["qa/*", "owner"], "owners", False),
        ([], ["*"], "anything", True),
        (["candidate.tags.team == 'a'"], [], "TEAM", True),
        (["candidate.tags.team == 'a'"], [], "Team ", True),
        (["candidate.tags.team == 'a'"], [], "ｔｅａｍ", True),
        ([], ["QA/*"], "qa/bias", True),
    ],
)
async def test_evidence_bearing_tags_are_sealed(running, tmp_path, rules, listed, key, sealed):
    async with running(environments=environments(tmp_path, *rules, sealed_tags=listed)) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        await register(it, client)
        assert (await tag(client, key)).status == 200
        approval = await approve(client)
        for method in ("set", "delete"):
            answer = await tag(client, key, method)
            if sealed:
                assert refused(answer, "evidence", *SAYS)
            else:
                assert answer.status == 200, answer.body
            assert (await tag(client, key, method, version="2")).status == 200
        assert (await revoke(client, approval)).status == 204
        assert (await tag(client, key)).status == 200


async def test_tags_of_what_is_live_are_sealed_under_its_new_name_too(running, tmp_path):
    async with running(environments=environments(tmp_path, sealed_tags=["team"], seal="live")) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await satisfy(client, version)
        assert (await tag(client, "team")).status == 200
        await promote(client, version)
        assert refused(await tag(client, "team"), "live in 'production'")
        moved = await client.rpc("POST", "registered-models/rename", name="iris", new_name="lily")
        assert moved.status == 200, moved.body
        assert refused(await tag(client, "team", model="lily"), "version 1 of 'lily'", "live in 'production'")


@pytest.mark.parametrize(("rule", "status"), [("candidate.description != ''", 409), ("candidate.stage != 'x'", 200)])
async def test_a_description_that_a_rule_reads_is_sealed(running, tmp_path, rule, status):
    async with running(environments=environments(tmp_path, rule)) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        await approve(client)
        message = {"name": "iris", "version": "1", "description": "another"}
        assert (await client.rpc("PATCH", "model-versions/update", **message)).status == status


# ending a run


@pytest.mark.parametrize(
    ("rule", "fields", "status"),
    [
        ("true", {"status": "FINISHED", "end_time": 5}, 200),
        ("true", {"run_name": "another"}, 409),
        ("true", {"status": "FINISHED", "run_name": "another"}, 409),
        ("candidate.run.status == 'RUNNING'", {"status": "FAILED"}, 409),
        ("candidate.run.status == 'RUNNING'", {"end_time": 5}, 200),
        ("candidate.run != null", {"status": "FINISHED"}, 200),
    ],
)
async def test_ending_a_run_rewrites_nothing_that_rules_read(running, tmp_path, rule, fields, status):
    async with running(environments=environments(tmp_path, rule)) as it:
        client = Client(it.application.asgi)
        await register(it, client)
        await approve(client)
        assert (await client.rpc("POST", "runs/update", run_id=run_of(it), **fields)).status == status


# every RPC that writes

MEETS = {
    "run": """
        deleteRun logMetric logParam setTag deleteTag logBatch logModel logInputs logOutputs createLoggedModel
        uploadArtifact deleteArtifact deleteExperiment linkTracesToRun
    """,
    "model": """
        logMetric logBatch logInputs logOutputs finalizeLoggedModel deleteLoggedModel setLoggedModelTags
        deleteLoggedModelTag LogLoggedModelParams deleteExperiment uploadArtifact deleteArtifact
    """,
    "version": "setModelVersionTag deleteModelVersionTag",
}
"""The writing RPCs that meet a seal, by what they write to: RUN, MODEL_ID and its files, or version 1 of iris."""
FREE = """
    createRegisteredModel renameRegisteredModel updateRegisteredModel deleteRegisteredModel createModelVersion
    updateModelVersion transitionModelVersionStage deleteModelVersion setRegisteredModelTag deleteRegisteredModelTag
    setRegisteredModelAlias deleteRegisteredModelAlias createExperiment restoreExperiment updateExperiment
    setExperimentTag deleteExperimentTag createRun updateRun restoreRun startTraceV3 startTrace endTrace deleteTraces
    deleteTracesV3 setTraceTag setTraceTagV3 deleteTraceTag deleteTraceTagV3 linkPromptsToTrace createAssessment
    updateAssessment deleteAssessment
"""
"""Those that write nothing that rules read. (What `updateRun` may not change is tested above.)"""
MORE = {
    "logBatch": {"metrics": [{"key": "k", "value": 0.5, "timestamp": 1, "step": 0, "model_id": MODEL_ID}]},
    "logInputs": {"models": [{"model_id": MODEL_ID}]},
    "logOutputs": {"models": [{"model_id": MODEL_ID, "step": 0}]},
}
WRITING = sorted(key for key, row in ROWS.items() if row.record is not Record.NONE and row.body is not Body.OTLP)


async def send(client, key, owner):
    rpc = DIALECT.rpcs[key]
    message, target = {**message_for(rpc), **MORE.get(rpc.name, {})}, rpc.endpoints[0].path
    for name, value in [*message.items(), *IN_PATH]:
        target = target.replace(f"{{{name}}}", str(value))
    if "<path:" not in target:
        return await client(rpc.endpoints[0].method, target, message)
    target = target.replace("<path:artifact_path>", f"0/{owner}/artifacts/x")
    return await client(rpc.endpoints[0].method, target, raw=b"x" if rpc.name == "uploadArtifact" else None)


@pytest.mark.parametrize("key", WRITING)
async def test_every_writing_rpc_meets_the_seals_or_is_known_to_be_free(running, tmp_path, key):
    """A new RPC that writes is in this table by itself, and red until somebody says which seals it meets."""
    name = key.rpartition(".")[2]
    meets = {what for what, names in MEETS.items() if name in names.split()}
    assert bool(meets) != (name in FREE.split()), f"say in MEETS or FREE what {key} writes to"
    scope = environments(tmp_path, "candidate.tags.k == 'v'")
    async with running(transport=Recording(), environments=scope) as it:
        client, seals = Client(it.application.asgi), it.application.gateway.seals

        async def sent(owner):
            for found in await it.application.journal.unsettled():  # the registry here gives each version one number
                await it.application.trail.reconciled(found, "failed", "", [])
            return await send(client, key, owner)

        for what, behind in (("run", (RUN,)), ("model", (MODEL_ID,)), ("version", ())):
            seals._drop(list(seals._seals))
            approval = Approval("a", "production", "approve", "user:lead", (), (), "", 0.0, None, "")
            seals.apply([Signed("main", "iris", "b", approval, "1", behind)])
            owner = RUN if what == "run" else f"models/{MODEL_ID}"
            it.memory.seen.clear()
            answer = await sent(owner)
            tags = {"setModelVersionTag", "deleteModelVersionTag"}
            if what in meets or name in tags:  # the version is approved in each column
                assert refused(answer, "version 1 of 'iris'", "approved for 'production'")
                assert not [request for request in it.memory.seen if request.rpc == key]
            else:
                assert answer.status == 200, answer.body
        seals._drop(list(seals._seals))
        assert (await sent(RUN)).status == 200  # the seal was what refused it


async def test_exported_traces_that_name_a_sealed_run_meet_the_seal():
    """They come as OTLP, which the table above does not send."""
    needs = ROWS["MlflowRoutes.exportTraces"].needs({"trace_ids": ["tr-1"], "experiment_id": "0", "run_id": RUN})
    assert ("run:update", RUN) in [(need.action, getattr(need.resource, "run_id", "")) for need in needs]
