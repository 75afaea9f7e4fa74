"""Reviews, approvals and who counts: what an approver saw is what an approval holds for."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sqlite3
import threading
import time

import pytest
import yaml

from service.authentication.api_keys import entry_for
from service.backends.memory import MemoryTransport
from service.errors import BadConfiguration
from service.event import canonical_json
from service.promotion.gate import Environment
from service.settings import load
from tests.api.test_attacks import run_of
from tests.client import Client
from tests.conftest import TOKENS, write_configuration
from tests.promotion.flow import V1, promote, register, satisfy, simple

LEADS = "approvals: {required: [{group: 'group:ml-leads'}]}"


async def review(client: Client, version: str, status: int = 200):
    found = await client("GET", f"{V1}/iris/versions/{version}/review?environment=production")
    assert found.status == status, found.body
    return found.json


async def approve(client: Client, version: str, who: str = "user:lead", **fields):
    body = {"environment": "production", "decision": "approve", **fields}
    return await client.be(who)("POST", f"{V1}/iris/versions/{version}/approvals", body)


async def test_a_review_shows_what_rules_see_and_is_kept(running):
    async with running() as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client, accuracy=0.91), await register(it, client, accuracy=0.95)
        await satisfy(client, first)
        assert (await promote(client, first)).status == 200
        packet = await review(client, second)
        assert packet["comparison"]["metrics"] == {"accuracy": [0.95, 0.91]}
        assert packet["incumbent"]["version"] == first
        assert {item["rule"]: item["passed"] for item in packet["findings"]}["validated"] is False
        assert packet["verdict"]["allowed"] is False
        assert await review(client, second) == packet
        kept = await client.be("user:viewer")("GET", f"/v1/reviews/{packet['digest']}")
        assert (kept.status, kept.json) == (200, packet)
        assert (await client("GET", f"/v1/reviews/{'0' * 64}")).status == 404


async def test_whoever_asks_for_a_verdict_keeps_nobody_waiting(running, monkeypatch):
    threads = []

    def judge(self, facts, registry):
        threads.append(threading.current_thread() is threading.main_thread())
        return plain(self, facts, registry)

    plain = Environment.judge
    monkeypatch.setattr(Environment, "judge", judge)
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await review(client, version)
        asked = await client("POST", f"{V1}/iris/environments/production/promotion-requests", {"version": version})
        assert (await client("GET", f"/v1/promotion-requests/{asked.json['id']}")).json["verdict"] is not None
        await promote(client, version, dry_run=True)
    assert threads == [False] * 4


async def test_an_approval_of_a_moved_review_is_refused(running):
    async with running() as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        seen = await review(client, version)
        evidence = {"kind": "validation", "result": "passed"}
        await client.be("service:ci")("POST", f"{V1}/iris/versions/{version}/evidence", evidence)
        stale = await approve(client, version, review=seen["digest"])
        assert (stale.status, stale.json["type"].rpartition("/")[2]) == (412, "stale")
        assert (await client("GET", f"{V1}/iris/versions/{version}/approvals")).json == {"approvals": []}
        anew = (await review(client, version))["digest"]
        fresh = await approve(client, version, review=anew)
        assert (fresh.status, fresh.json["review"]) == (201, anew)
        assert (await promote(client, version)).status == 200


async def test_an_approval_leads_to_what_was_shown(running, tmp_path, monkeypatch):
    rules = "[{name: old, require: \"now - candidate.created >= duration('1h')\"}]"
    async with running(environments=simple(tmp_path, "", rules)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        lead = client.be("user:lead")
        early = await review(lead, version)
        gatherer = it.application.governance.versions._desk.gatherer
        monkeypatch.setattr(gatherer, "_now", lambda: time.time() + 7200)
        late = await review(lead, version)
        passed = [[item["passed"] for item in packet["findings"] if item["rule"] == "old"] for packet in (early, late)]
        assert passed == [[False], [True]]
        for packet in (early, late):  # its facts have not moved
            assert (await approve(client, version, review=packet["digest"])).json["review"] == packet["digest"]
            assert (await lead("GET", f"/v1/reviews/{packet['digest']}")).json == packet
            rest = {name: value for name, value in packet.items() if name != "digest"}
            assert hashlib.sha256(canonical_json(rest)).hexdigest() == packet["digest"]


async def test_an_approval_names_a_review_of_this_version(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        other = (await review(client, first))["digest"]
        for digest in (other, "0" * 64):
            assert (await approve(client, second, review=digest)).status == 412
        assert (await approve(client, first, review=other)).status == 201


async def test_where_reviews_are_needed_an_approval_without_one_does_not_count(running, tmp_path):
    more = LEADS.replace("]}", "], review: true}")
    async with running(environments=simple(tmp_path, more)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await approve(client, version)).status == 201
        closed = await promote(client, version)
        assert closed.status == 409
        assert closed.json["verdict"]["stale_approvals"] == [{"by": "user:lead", "because": "it names no review"}]
        await approve(client, version, review=(await review(client, version))["digest"])
        assert (await promote(client, version)).status == 200


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ("rules", "the rules have changed since"),
        ("files", "the files are not those it was given for"),
        ("incumbent", "another version is live than then"),
    ],
)
async def test_the_verdict_says_which_approval_is_stale_and_why(running, tmp_path, change, because):
    async with running(environments=simple(tmp_path, LEADS)) as it:
        client = Client(it.application.asgi)
        version, other = await register(it, client), await register(it, client)
        assert (await approve(client, version)).status == 201
        assert (await promote(client, version, dry_run=True)).json["verdict"]["allowed"] is True
        if change == "incumbent":
            await approve(client, other)
            assert (await promote(client, other)).status == 200
        elif change == "files":
            path = f"0/{run_of(it, version)}/artifacts/model/weights"
            it.memory.artifacts[f"/api/2.0/mlflow-artifacts/artifacts/{path}"] = b"made beside the gateway"
        else:
            environment = it.application.environments.all[0]
            it.application.environments.all = (dataclasses.replace(environment, review_needed=True),)
        verdict = (await promote(client, version, dry_run=True)).json["verdict"]
        assert verdict["stale_approvals"] == [{"by": "user:lead", "because": because}]
        assert verdict["allowed"] is False


async def test_several_groups_are_asked_and_a_person_counts_once(running, tmp_path):
    more = "approvals: {required: [{group: 'group:ml-leads'}, {group: 'group:platform', count: 2}]}"
    async with running(environments=simple(tmp_path, more)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await approve(client, version)
        await approve(client, version, "user:admin")
        await approve(client, version, "user:admin")
        findings = {f["rule"]: f for f in (await promote(client, version, dry_run=True)).json["verdict"]["findings"]}
        assert findings["approvals-ml-leads"]["passed"] is True
        assert findings["approvals-platform"]["passed"] is False
        assert findings["approvals-platform"]["because"] == "2 of group:platform must approve; 1 more needed"


async def test_a_veto_holds_until_it_is_withdrawn(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        veto = await approve(client, version, decision="reject", reason="bias not examined")
        closed = await promote(client, version)
        assert closed.status == 409
        assert closed.json["verdict"]["findings"][-1]["because"] == "rejected by user:lead: bias not examined"
        path = f"{V1}/iris/versions/{version}/approvals/{veto.json['id']}"
        assert (await client.be("user:lead")("DELETE", path)).status == 204
        assert (await promote(client, version)).status == 200


@pytest.mark.parametrize("role", ["registered", "posted evidence about", "asked to promote"])
async def test_who_is_concerned_may_not_approve(running, tmp_path, role):
    async with running(environments=simple(tmp_path, LEADS)) as it:
        client = Client(it.application.asgi)
        admin = client.be("user:admin")
        version = await register(it, client)
        if role == "registered":
            made = await admin.rpc("POST", "model-versions/create", name="iris", source=f"models:/iris/{version}")
            version = made.json["model_version"]["version"]
        elif role == "posted evidence about":
            evidence = {"kind": "validation", "result": "passed"}
            assert (await admin("POST", f"{V1}/iris/versions/{version}/evidence", evidence)).status == 201
        else:
            target = f"{V1}/iris/environments/production/promotion-requests"
            assert (await admin("POST", target, {"version": version})).status == 201
        answer = await approve(client, version, "user:admin")
        assert (answer.status, answer.json["detail"]) == (
            403, f"You {role} this version; somebody else has to approve it.",
        )  # fmt: skip
        assert len(await it.events(phase="denied")) == 1
        rejected = await approve(client, version, "user:admin", decision="reject")
        assert rejected.status == 201  # a no is everybody's right


async def test_who_approved_and_then_asked_does_not_count_any_more(running, tmp_path):
    async with running(environments=simple(tmp_path, LEADS)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await approve(client, version)).status == 201
        assert (await promote(client, version, dry_run=True)).json["verdict"]["allowed"] is True
        target = f"{V1}/iris/environments/production/promotion-requests"
        body = {"version": version}
        assert (await client.be("user:admin")("POST", target, body)).status == 201
        assert (await promote(client, version, dry_run=True)).json["verdict"]["allowed"] is True
        evidence = {"kind": "validation", "result": "passed"}
        await client.be("user:admin")("POST", f"{V1}/iris/versions/{version}/evidence", evidence)
        own = await client.be("user:lead")("POST", f"{V1}/iris/environments/production/promotions", body)
        assert own.status == 409
        because = "its author registered, evidenced or asked to promote the version"
        assert own.json["verdict"]["stale_approvals"] == [{"by": "user:lead", "because": because}]


@pytest.mark.parametrize("end", ["cancelled", "expired", "completed"])
async def test_who_ever_asked_does_not_approve(running, tmp_path, end):
    async with running(environments=simple(tmp_path, LEADS)) as it:
        client = Client(it.application.asgi)
        admin = client.be("user:admin")
        version = await register(it, client)
        assert (await approve(client, version, "user:admin")).status == 201
        body = {"version": version}
        made = await admin("POST", f"{V1}/iris/environments/production/promotion-requests", body)
        if end == "cancelled":
            assert (await admin("DELETE", f"/v1/promotion-requests/{made.json['id']}")).status == 204
        elif end == "expired":
            with contextlib.closing(sqlite3.connect(tmp_path / "journal.db")) as journal, journal:
                journal.execute("UPDATE requests SET expires = 1")
        else:
            await approve(client, version)
            assert (await promote(client, version)).status == 200
        answer = await approve(client, version, "user:admin")
        assert (answer.status, answer.json["detail"].split(" this")[0]) == (403, "You asked to promote")
        if end != "completed":
            because = "its author registered, evidenced or asked to promote the version"
            verdict = (await promote(client, version, dry_run=True)).json["verdict"]
            assert verdict["stale_approvals"] == [{"by": "user:admin", "because": because}]


@pytest.mark.parametrize("way", ["copy", "copy of the copy", "same run", "copy of what is deleted", "another model"])
async def test_who_registered_the_same_does_not_approve_it(running, tmp_path, way):
    async with running(environments=simple(tmp_path, LEADS.replace("ml-leads", "platform"))) as it:
        client = Client(it.application.asgi)
        admin, ci = client.be("user:admin"), client.be("service:ci")
        run = (await admin.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
        await admin.rpc("POST", "registered-models/create", name="iris")
        await admin.rpc("POST", "registered-models/create", name="rose")
        source = {"source": f"runs:/{run}/model"}
        model = "rose" if way == "another model" else "iris"
        if way == "copy of what is deleted":
            source = {"source": f"mlflow-artifacts:/0/{run}/artifacts/model"}
        first = (await admin.rpc("POST", "model-versions/create", name=model, **source)).json["model_version"][
            "version"
        ]
        copied = {"source": f"models:/{model}/{first}"}
        if way == "copy of the copy":
            await ci.rpc("POST", "model-versions/create", name="iris", **copied)
            copied = {"source": "models:/iris/2"}
        if way == "same run":
            copied = {**source, "run_id": run}
        made = await ci.rpc("POST", "model-versions/create", name="iris", **copied)
        version = made.json["model_version"]["version"]
        if way == "copy of what is deleted":
            await admin.rpc("DELETE", "model-versions/delete", name="iris", version=first)
        answer = await approve(client, version, "user:admin")
        says = "You registered what is the same as this version; somebody else has to approve it."
        assert (answer.status, answer.json["detail"]) == (403, says)


async def test_an_approval_of_who_registers_the_same_later_does_not_count_any_more(running, tmp_path):
    async with running(environments=simple(tmp_path, LEADS.replace("ml-leads", "platform"))) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await approve(client, version, "user:admin")).status == 201
        assert (await promote(client, version, dry_run=True)).json["verdict"]["allowed"] is True
        fields = {"source": f"runs:/{run_of(it, version)}/model", "run_id": run_of(it, version)}
        assert (await client.rpc("POST", "model-versions/create", name="iris", **fields)).status == 200
        verdict = (await promote(client, version, dry_run=True)).json["verdict"]
        because = "its author registered, evidenced or asked to promote the version"
        assert verdict["stale_approvals"] == [{"by": "user:admin", "because": because}]


async def test_two_identities_of_one_person_are_one(running, tmp_path):
    authentication = {"api_keys": "keys.yaml", "same_person": [["user:lead", "user:scientist"]]}
    async with running(environments=simple(tmp_path, LEADS), authentication=authentication) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)  # by user:scientist
        answer = await approve(client, version)
        assert (answer.status, answer.json["detail"].startswith("You registered")) == (403, True)


@pytest.mark.parametrize("role", ["service:ci", "user:scientist", "user:admin"])
async def test_who_is_found_to_be_one_person_later_was_concerned(running, tmp_path, role):
    registry, path = MemoryTransport(), simple(tmp_path, LEADS)
    async with running(registry, environments=path) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)  # by user:scientist
        assert (await approve(client, version)).status == 201
        evidence = {"kind": "validation", "result": "passed"}
        await client.be("service:ci")("POST", f"{V1}/iris/versions/{version}/evidence", evidence)
        body = {"version": version}
        await client.be("user:admin")("POST", f"{V1}/iris/environments/production/promotion-requests", body)
        assert (await promote(client, version, dry_run=True)).json["verdict"]["allowed"] is True
    authentication = {"api_keys": "keys.yaml", "same_person": [["user:lead", role]]}
    async with running(registry, environments=path, authentication=authentication) as it:
        client = Client(it.application.asgi)
        closed = await client.be("user:viewer")("GET", f"{V1}/iris/versions/{version}/review?environment=production")
        because = "its author registered, evidenced or asked to promote the version"
        assert closed.json["verdict"]["stale_approvals"] == [{"by": "user:lead", "because": because}]


async def test_two_approvals_are_found_to_be_of_one_person_later(running, tmp_path):
    keys = [
        {**entry_for(TOKENS[who], who, ("group:ml-leads", *groups)), "id": who, "expires": "2090-01-01"}
        for who, groups in (("user:lead", ()), ("user:admin", ("group:platform",)))
    ]
    keys += [{**entry_for(TOKENS[who], who, ("group:ci", "group:data-scientists")), "id": who}
             for who in ("service:ci", "user:scientist")]  # fmt: skip
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(keys))
    registry, authentication = MemoryTransport(), {"api_keys": "more.yaml"}
    path = simple(tmp_path, "approvals: {required: [{group: 'group:ml-leads', count: 2}]}")
    async with running(registry, environments=path, authentication=authentication) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        for who in ("user:lead", "user:admin"):
            assert (await approve(client, version, who)).status == 201
        assert (await promote(client, version, dry_run=True)).json["verdict"]["allowed"] is True
    authentication["same_person"] = [["user:lead", "user:admin"]]
    async with running(registry, environments=path, authentication=authentication) as it:
        answer = await promote(Client(it.application.asgi), version)
        because = [item["because"] for item in answer.json["verdict"]["findings"] if not item["passed"]]
        assert because == ["2 of group:ml-leads must approve; 1 more needed"]


@pytest.mark.parametrize(
    ("people", "says"),
    [
        ([["user:a"]], "at least two"),
        ([["user:a", "b"]], "'b' is not user:"),
        ([["user:a", "user:b"], ["user:b", "user:c"]], "'user:b' stands twice"),
    ],
)
def test_wrong_identities_are_refused(tmp_path, people, says):
    path = write_configuration(tmp_path, authentication={"api_keys": "keys.yaml", "same_person": people})
    with pytest.raises(BadConfiguration, match=rf"same_person: .*{says}"):
        load(path, environ={})
