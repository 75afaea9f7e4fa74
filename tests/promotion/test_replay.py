"""Replay: past promotions judged again under changed rules, and what really happens when the same is asked."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import reconciler
from service.errors import BadConfiguration
from service.promotion.gate import Purpose
from service.promotion.keeping import MAX_BYTES
from service.promotion.replay_forms import render
from service.promotion.replaying import Again, Past, Replay, State
from service.replay import Asked, replay
from service.settings import load
from tests.api.test_attacks import run_of
from tests.api.test_reconciler import Losing
from tests.client import Client
from tests.conftest import ROOT
from tests.promotion.flow import V1, alias_of, ask, environments, promote, register, satisfy, simple

FLOOR = "{{name: floor, require: 'candidate.metrics.accuracy >= {}', because: low, waivable: true}}"
LEADS = "approvals: {required: [{group: 'group:ml-leads'}]}"
WHY = {"reason": "fraud wave", "ticket": "INC-1"}
OLD = f"""[
      {FLOOR.format(0.9)},
      {{name: better, require: 'incumbent == null || candidate.metrics.accuracy >= incumbent.metrics.accuracy'}},
      {{name: tested, require: "passed(evidence, 'validation')"}},
      {{name: signed, require: 'approvals.size() >= 1'}}]"""


def judged(folder, text, **asked):
    """Judge what the journal in *folder* holds by the environments *text*."""
    path = folder / "new.yaml"
    path.write_text(text, encoding="utf-8")
    return replay(load(folder / "gateway.yaml", environ={}), Asked(path, **asked))


def production(rules, more=""):
    return f"environments:\n  production:\n    marks: [{{alias: champion}}]\n    rules: {rules}\n{more}"


def states(found):
    return [(item.past.version, item.state.value, item.rules) for item in found.items]


NEW = {
    "the same": OLD,
    "looser": OLD.replace("0.9", "0.4"),
    "stricter": OLD.replace("0.9", "0.93"),
    "a warning": OLD.replace("because: low", "because: low, severity: warn"),
    "one": "[{name: b, require: 'incumbent == null || candidate.metrics.accuracy > incumbent.metrics.accuracy'}]",
    "other evidence": "[{name: tested, require: \"evidence.exists(e, e.kind == 'bias')\"}]",
    "more approvals": "[{name: signed, require: 'approvals.size() >= 2'}]",
    "absent is fine": "[{name: a, require: '!has(candidate.metrics.accuracy) || candidate.metrics.accuracy > 0.6'}]",
    "nothing": "[]",
}


@pytest.mark.parametrize("change", NEW)
async def test_what_is_predicted_is_what_really_happens(running, tmp_path_factory, change):
    """At each step a gateway with the new rules, over the same registry and the same records, is asked the same."""
    old, new = tmp_path_factory.mktemp("old"), tmp_path_factory.mktemp("new")
    async with (
        running(directory=old, environments=environments(old, production(OLD))) as it,
        running(it.memory, directory=new, environments=environments(new, production(NEW[change]))) as other,
    ):
        client, judge = Client(it.application.asgi), Client(other.application.asgi)
        real = []
        for accuracy in (0.5, 0.91, math.nan, None, 0.95, math.inf):
            version = await register(it, client, accuracy=accuracy)
            for records in range(3):
                for gateway in (client, judge):
                    path = f"{V1}/iris/versions/{version}"
                    if records == 1:
                        evidence = {"kind": "validation", "result": "passed"}
                        assert (await gateway.be("service:ci")("POST", f"{path}/evidence", evidence)).status == 201
                    if records == 2:
                        approval = {"environment": "production", "decision": "approve"}
                        assert (await gateway.be("user:lead")("POST", f"{path}/approvals", approval)).status == 201
                real.append((await promote(judge, version, dry_run=True)).json["verdict"]["allowed"])
                await promote(client, version)
        found = judged(old, production(NEW[change]))
    predicted = [
        not item.past.allowed if item.state in (State.REFUSED, State.ADMITTED) else item.past.allowed
        for item in found.items
    ]
    assert predicted == real
    assert {item.state for item in found.items} <= {State.SAME, State.REFUSED, State.ADMITTED}
    assert found.differs is (change != "the same")
    assert len({item.past.allowed for item in found.items}) == 2


POOL = {
    "floor": "candidate.metrics.accuracy >= 0.9",
    "low": "!has(candidate.metrics.accuracy) || candidate.metrics.accuracy >= 0.6",
    "better": "incumbent == null || candidate.metrics.accuracy >= incumbent.metrics.accuracy",
    "first": "incumbent == null",
    "sealed": "incumbent == null || incumbent.signature != null",
    "signature": "candidate.signature != null",
    "flavors": "'sklearn' in candidate.flavors",
    "run": "candidate.run.status == 'FINISHED' || candidate.source.commit == ''",
    "size": "has(candidate.size) && candidate.size < 5",
    "requirements": "candidate.requirements.size() == 0",
    "digest": "candidate.artifact_digest != ''",
    "tested": "passed(evidence, 'validation')",
    "untested": "!candidate.evidence.exists(e, e.result == 'passed')",
    "approved": "approvals.exists(a, 'group:ml-leads' in a.groups)",
    "reason": "request.reason != ''",
}
TERMS = ("", LEADS, LEADS.replace("]}", "], review: true}"), "evidence: {validation: {expire_after: 1s}}")


def drawn(chance):
    """Rules and terms of one environment, at random."""
    rules = [
        f"{{name: {name}, require: {json.dumps(POOL[name])}}}"
        for name in chance.sample(list(POOL), chance.randrange(4))
    ]
    more = chance.choice(TERMS)
    return production(f"[{', '.join(rules)}]", f"    {more}\n" if more else "")


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_the_rules_a_prediction_is_right_or_none(running, tmp_path_factory, seed):
    """What nobody fetched then could be anything; what is said without it must hold."""
    chance = random.Random(seed)
    old, new = tmp_path_factory.mktemp("old"), tmp_path_factory.mktemp("new")
    texts = drawn(chance), drawn(chance)
    async with (
        running(directory=old, environments=environments(old, texts[0])) as it,
        running(it.memory, directory=new, environments=environments(new, texts[1])) as other,
    ):
        client, judge = Client(it.application.asgi), Client(other.application.asgi)
        real = []
        for _ in range(8):
            version = await register(
                it, client, accuracy=chance.choice([0.5, 0.95, math.nan, None]), signed=chance.random() < 0.5
            )
            kinds = [kind for kind in ("evidence", "approvals") if chance.random() < 0.5]
            for kind in kinds:
                who, body = {
                    "evidence": ("service:ci", {"kind": "validation", "result": chance.choice(["passed", "failed"])}),
                    "approvals": (
                        "user:lead",
                        {"environment": "production", "decision": chance.choice(["approve"] * 3 + ["reject"])},
                    ),
                }[kind]
                for gateway in (client, judge):
                    posted = await gateway.be(who)("POST", f"{V1}/iris/versions/{version}/{kind}", body)
                    assert posted.status == 201
            reason = chance.choice(["", "r"])
            real.append((await promote(judge, version, dry_run=True, reason=reason)).json["verdict"]["allowed"])
            await promote(client, version, reason=reason)
        found = judged(old, texts[1])
        assert {item.state for item in judged(old, texts[0]).items} == {State.SAME}
    assert len(found.items) == len(real)
    for item, allowed in zip(found.items, real, strict=True):
        assert item.state is not State.NOT_JUDGED
        if item.state is not State.NOT_KNOWN:
            assert (item.past.allowed if item.state is State.SAME else not item.past.allowed) is allowed, item


async def test_the_rules_that_make_the_difference_are_named(running, tmp_path):
    async with running(environments=simple(tmp_path, "", f"[{FLOOR.format(0.9)}]")) as it:
        client = Client(it.application.asgi)
        for accuracy in (0.95, 0.7, 0.5, math.nan):
            await promote(client, await register(it, client, accuracy=accuracy))
        assert alias_of(it) == "1"
        same = judged(tmp_path, production(f"[{FLOOR.format(0.9)}]"))
        assert [item.state for item in same.items] == [State.SAME] * 4
        assert states(judged(tmp_path, production(f"[{FLOOR.format(0.96)}]")))[0] == ("1", "refused", ("floor",))
        assert states(judged(tmp_path, production(f"[{FLOOR.format(0.6)}]"))) == [
            ("1", "same", ()), ("2", "admitted", ("floor",)), ("3", "same", ()), ("4", "same", ()),
        ]  # fmt: skip
        frozen = "    freezes: [{from: 2020-01-01T00:00:00Z, until: 2090-01-01T00:00:00Z, because: ever}]\n"
        assert states(judged(tmp_path, production("[]", frozen)))[0] == ("1", "refused", ("freeze",))
        later = frozen.replace("2020", "2089")
        assert states(judged(tmp_path, production("[]", later)))[0] == ("1", "same", ())


async def test_a_fact_that_was_not_fetched_is_neither_pass_nor_fail(running, tmp_path):
    async with running(environments=simple(tmp_path, "", f"[{FLOOR.format(0.9)}]")) as it:
        client = Client(it.application.asgi)
        for accuracy in (0.95, 0.5):
            await promote(client, await register(it, client, accuracy=accuracy))
        size = "{name: small, require: candidate.size < 10}"
        found = judged(tmp_path, production(f"[{FLOOR.format(0.9)}, {size}]"))
        assert states(found) == [("1", "not_known", ()), ("2", "same", ())]  # the second is closed whatever its size
        assert found.unknown == {("small", ("candidate.size",)): 2}
        assert found.differs is False
        found = judged(tmp_path, production(f"[{FLOOR.format(0.4)}, {size}]"))
        assert [item.state for item in found.items] == [State.NOT_KNOWN, State.NOT_KNOWN]
        warned = size.replace("}", ", severity: warn}")
        assert states(judged(tmp_path, production(f"[{FLOOR.format(0.9)}, {warned}]")))[0] == ("1", "same", ())
        known = "{name: x, require: 'incumbent == null || incumbent.signature == null'}"
        found = judged(tmp_path, production(f"[{known}]"))  # nothing was live at the first, and the event says so
        assert [item.state for item in found.items] == [State.SAME, State.NOT_KNOWN]
        assert found.unknown == {("x", ("incumbent", "incumbent.signature")): 1}


@pytest.mark.parametrize("approved", [False, True])
@pytest.mark.parametrize("posted", [False, True])
async def test_records_are_known_where_there_are_none(running, tmp_path, approved, posted):
    """Which records count hangs on the files; they were not read where no rule asked for any record."""
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        path = f"{V1}/iris/versions/{version}"
        if posted:
            await client.be("service:ci")("POST", f"{path}/evidence", {"kind": "validation", "result": "passed"})
        if approved:
            await client.be("user:lead")(
                "POST", f"{path}/approvals", {"environment": "production", "decision": "approve"}
            )
        assert (await promote(client, version)).status == 200
        tested = judged(tmp_path, production("[{name: tested, require: \"passed(evidence, 'validation')\"}]"))
        assert states(tested) == [("1", *(("not_known", ()) if posted else ("refused", ("tested",))))]
        signed = judged(tmp_path, production("[]", f"    {LEADS}\n"))
        assert states(signed) == [("1", *(("not_known", ()) if approved else ("refused", ("approvals-ml-leads",))))]


async def test_approvals_that_were_in_force_are_in_force(running, tmp_path):
    async with running(environments=simple(tmp_path, LEADS, f"[{FLOOR.format(0.9)}]")) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        for version in (first, second):
            await satisfy(client, version)
        assert (await promote(client, first)).status == 200
        stale = await promote(client, second)
        assert (stale.status, len(stale.json["verdict"]["stale_approvals"])) == (409, 1)  # another version is live
        lines = f"    {LEADS}\n"
        assert states(judged(tmp_path, production(f"[{FLOOR.format(0.8)}]", lines))) == [
            ("1", "same", ()),
            ("2", "same", ()),
        ]
        two = lines.replace("leads'", "leads', count: 2")
        assert states(judged(tmp_path, production("[]", two)))[0] == ("1", "refused", ("approvals-ml-leads",))
        reviewed = lines.replace("]}", "], review: true}")
        assert states(judged(tmp_path, production("[]", reviewed)))[0] == ("1", "refused", ("approvals-ml-leads",))


async def test_emergencies_and_rollbacks_are_judged_for_what_they_were(running, tmp_path):
    async with running(environments=simple(tmp_path, "", f"[{FLOOR.format(0.9)}]")) as it:
        client, lead = Client(it.application.asgi), Client(it.application.asgi).be("user:lead")
        first, second = await register(it, client, accuracy=0.95), await register(it, client, accuracy=0.5)
        assert (await promote(client, first)).status == 200
        debt = (await ask(lead, "promotions", second, emergency=WHY)).json["id"]
        assert (await ask(lead, "rollbacks", reason="slow")).status == 200
        assert (await client("POST", f"/v1/emergencies/{debt}/reviews", {"reason": "fine"})).status == 200
        assert (await ask(lead, "rollbacks", to=second, reason="slow")).status == 200
        same = judged(tmp_path, production(f"[{FLOOR.format(0.96)}]"))
        purposes = [(item.past.purpose, item.state) for item in same.items]
        assert purposes == [
            (Purpose.PROMOTION, State.REFUSED), (Purpose.EMERGENCY, State.SAME),
            (Purpose.ROLLBACK, State.SAME), (Purpose.ROLLBACK, State.SAME),
        ]  # fmt: skip
        held = judged(tmp_path, production(f"[{FLOOR.format(0.9).replace(', waivable: true', '')}]"))
        assert states(held)[1] == (second, "refused", ("floor",))
        named = "    rollback: {rules: [{name: why, require: \"request.reason.startsWith('INC')\"}]}\n"
        asked = judged(tmp_path, production("[]", named))
        assert [item.rules for item in asked.items] == [(), (), ("why",), ("why",)]
        measured = named.replace("request.reason.startsWith('INC')", "candidate.metrics.accuracy > 0.9")
        assert [item.state for item in judged(tmp_path, production("[]", measured)).items][2:] == [State.NOT_KNOWN] * 2
    async with running(it.memory, environments=simple(tmp_path, named.strip())) as it:  # what really happens
        refused = await ask(Client(it.application.asgi).be("user:lead"), "rollbacks", to=first, reason="slow")
        assert (refused.status, alias_of(it)) == (409, second)


async def test_approvals_of_a_rollback_are_those_for_promotions(running, tmp_path):
    back = "rollback: {rules: [{name: signed, require: approvals.size() > 0}]}"
    async with running(environments=simple(tmp_path, back, f"[{FLOOR.format(0.8)}]")) as it:
        client = Client(it.application.asgi)
        first, second = await register(it, client), await register(it, client)
        for version in (first, second):
            assert (await promote(client, version)).status == 200
        assert (await ask(client, "rollbacks", reason="r")).status == 409
        approval = {"environment": "production", "decision": "approve"}
        approved = await client.be("user:lead")("POST", f"{V1}/iris/versions/{first}/approvals", approval)
        assert approved.status == 201
        assert (await ask(client, "rollbacks", reason="r")).status == 200
        found = judged(tmp_path, production(f"[{FLOOR.format(0.7)}]", f"    {back}\n"))
        assert [item.state for item in found.items] == [State.SAME] * 4
        two = judged(tmp_path, production(f"[{FLOOR.format(0.7)}]", f"    {back.replace('> 0', '> 1')}\n"))
        assert [item.rules for item in two.items] == [(), (), (), ("signed",)]


async def test_observed_changes_and_renames_are_judged_too(running, tmp_path):
    text = production(f"[{FLOOR.format(0.9)}]", "    where: {models: 'prod-*'}\n")
    async with running(environments=environments(tmp_path, text)) as it:
        client = Client(it.application.asgi)
        for model, accuracy in (("a", 0.95), ("b", 0.5)):
            version = await register(it, client, model=model, accuracy=accuracy)
            await client.rpc("POST", "registered-models/alias", name=model, alias="champion", version=version)
            await client.rpc("POST", "registered-models/rename", name=model, new_name=f"prod-{model}")
        assert set(it.memory.models) == {"prod-a", "b"}
        found = judged(tmp_path, text.replace("0.9", "0.96"))
        assert [(item.past.model, item.past.version, item.state) for item in found.items] == [
            ("prod-a", "1", State.REFUSED), ("prod-b", "1", State.SAME),
        ]  # fmt: skip
        assert judged(tmp_path, text.replace("0.9", "0.4")).counts[State.ADMITTED] == 1
    observing = text.replace("    marks", "    mode: observe\n    marks").replace("prod-*", "*")
    async with running(it.memory, environments=environments(tmp_path, observing)) as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/alias", name="b", alias="champion", version="1")
        last = judged(tmp_path, observing.replace("0.9", "0.4")).items[-1]
        assert (last.past.model, last.past.allowed, last.state) == ("b", False, State.ADMITTED)


async def test_a_rename_is_judged_for_each_environment(running, tmp_path):
    names = {"production": "champion", "canary": "canary"}
    text = "environments:\n" + "".join(
        f"  {name}:\n    where: {{models: 'prod-*'}}\n    marks: [{{alias: {alias}}}]\n"
        f"    rules: [{{name: floor-{name}, require: candidate.metrics.accuracy >= 0.9}}]\n"
        for name, alias in names.items()
    )
    async with running(environments=environments(tmp_path, text)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, model="a", accuracy=0.95)
        for alias in names.values():
            await client.rpc("POST", "registered-models/alias", name="a", alias=alias, version=version)
        assert (await client.rpc("POST", "registered-models/rename", name="a", new_name="prod-a")).status == 200
        found = judged(
            tmp_path, text.replace("canary, require: candidate.metrics.accuracy >= 0.9", "x, require: 'false'")
        )
        assert {(item.past.environment, item.state, item.rules) for item in found.items} == {
            ("production", State.SAME, ()), ("canary", State.REFUSED, ("floor-x",)),
        }  # fmt: skip


async def test_a_promotion_that_was_read_back_counts_once(running, tmp_path, monkeypatch):
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    losing = Losing()
    async with running(losing, environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        version = await register(it, client)
        losing.rpc = "setRegisteredModelAlias"
        assert (await promote(client, version)).status == 504
        assert judged(tmp_path, production("[]")).items == ()  # nobody knows yet
        assert await it.application.reconciler.sweep() == 0
        assert states(judged(tmp_path, production("[]"))) == [("1", "same", ())]
        assert states(judged(tmp_path, production("[{name: n, require: 'false'}]"))) == [("1", "refused", ("n",))]


async def test_what_moved_nothing_is_kept_once_and_dry_runs_are_not_kept(running, tmp_path):
    async with running(environments=simple(tmp_path, "", f"[{FLOOR.format(0.9)}]")) as it:
        client = Client(it.application.asgi)
        version = await register(it, client, accuracy=0.5)
        await promote(client, version, dry_run=True)
        for _ in range(3):
            assert (await promote(client, version)).status == 409
        named = [event["data"]["facts"] for event in await it.events(phase="rejected")]
        assert len({item["production"]["digest"] for item in named}) == 1
        assert len({item["production"]["at"] for item in named}) == 3
        with closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
            assert connection.execute("SELECT count(*) FROM documents WHERE kind = 'facts'").fetchone() == (1,)
        assert judged(tmp_path, production("[]")).counts[State.ADMITTED] == 3


async def test_intent_and_outcome_name_the_facts_and_the_intent_brings_them(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        done = await promote(client, await register(it, client))
        intent, outcome = await it.events(operation=done.json["id"])
        assert intent["data"]["facts"] == outcome["data"]["facts"]
        again = await promote(client, "1")  # it is live already
        (noted,) = await it.events(operation=again.json["id"])
        for event in (intent, noted):
            digest = event["data"]["facts"]["production"]["digest"]
            assert await it.application.journal.document("facts", digest) is not None
        assert judged(tmp_path, production("[]")).counts[State.SAME] == 2


async def test_facts_over_the_bound_are_not_kept_and_the_event_says_so(running, tmp_path):
    async with running(environments=simple(tmp_path, "", f"[{FLOOR.format(0.9)}]")) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        run = it.memory.runs[run_of(it, version)]
        run["data"]["params"]["p"] = "x" * MAX_BYTES
        done = await promote(client, version)
        assert done.status == 200
        data = (await it.events(operation=done.json["id"], phase="outcome"))[0]["data"]
        assert data["facts"] == {}
        assert data["notes"][0].startswith("production: the facts are not kept: ")
        found = judged(tmp_path, production("[]"))
        assert (states(found), dict(found.unjudged)) == ([("1", "not_judged", ())], {"no facts were kept": 1})


async def test_which_promotions(running, tmp_path):
    text = production("[]") + "  later:\n    marks: [{alias: later}]\n    rules: []\n"
    async with running(environments=environments(tmp_path, text)) as it:
        client = Client(it.application.asgi)
        for model in ("iris", "lily"):
            assert (await promote(client, await register(it, client, model=model), model=model)).status == 200
        await client("POST", f"{V1}/iris/environments/later/promotions", {"version": "1"})
        assert len(judged(tmp_path, text).items) == 3
        assert len(judged(tmp_path, text, environment="later").items) == 1
        assert len(judged(tmp_path, text, model="i*").items) == 2
        assert len(judged(tmp_path, text, model="iri").items) == 0
        assert len(judged(tmp_path, text, until="1h").items) == 0
        assert len(judged(tmp_path, text, since="2020-01-01", until="2090-01-01T00:00:00Z").items) == 3
        gone = judged(tmp_path, production("[]", "    where: {models: lily}\n"))
        assert dict(gone.unjudged) == {"no environment of this name has the model": 2}
        for wrong, problem in (
            ({"since": "30"}, "neither a duration"),
            ({"since": "1h", "until": "2h"}, "not before"),
            ({"until": "2026-13-01"}, "--until"),
            ({"environment": "prod"}, "has none named 'prod'; it has: production, later"),
            ({"model": "a*b"}, "--model"),
            ({"model": ""}, "--model"),
        ):
            with pytest.raises(BadConfiguration) as raised:
                judged(tmp_path, text, **wrong)
            assert problem in raised.value.detail


@pytest.mark.parametrize(
    ("damage", "because"),
    [
        (
            "UPDATE documents SET body = replace(body, '0.95', '0.99') WHERE kind = 'facts'",
            "not those that the event names",
        ),
        ("DELETE FROM documents WHERE kind = 'facts'", "no facts were kept"),
    ],
)
async def test_other_facts_than_the_event_names_are_not_judged(running, tmp_path, damage, because):
    async with running(environments=simple(tmp_path, "", f"[{FLOOR.format(0.9)}]")) as it:
        client = Client(it.application.asgi)
        await promote(client, await register(it, client, accuracy=0.95))
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection, connection:
        connection.execute(damage)
    (problem,) = judged(tmp_path, production("[]")).unjudged
    assert because in problem


def command(folder, *arguments):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("REGISTRY_GATEWAY_")}
    return subprocess.run(
        [sys.executable, "-m", "service", "policy", "replay", "--config", str(folder / "gateway.yaml"), *arguments],
        capture_output=True, text=True, check=False, env=environ, cwd=ROOT,
    )  # fmt: skip


def shell(script, folder, environ):
    return subprocess.run(["bash", "-e", "-c", script], cwd=folder, env=environ, check=False, capture_output=True)


async def test_the_command(running, tmp_path):
    async with running(environments=simple(tmp_path, "", f"[{FLOOR.format(0.9)}]")) as it:
        client = Client(it.application.asgi)
        for accuracy in (0.95, 0.5):
            await promote(client, await register(it, client, accuracy=accuracy))
        same = command(tmp_path)  # while the gateway runs
        assert (same.returncode, same.stderr) == (0, "")
        assert "2 judged: 2 the same, 0 would be refused now, 0 would be let in now." in same.stdout
    journal = tmp_path / "journal.db"
    before = hashlib.sha256(journal.read_bytes()).hexdigest()
    (tmp_path / "new.yaml").write_text(production("[{name: big, require: candidate.metrics.accuracy < 0.9}]"))
    other = ("--environments", str(tmp_path / "new.yaml"))
    text = command(tmp_path, *other)
    assert (text.returncode, text.stderr) == (1, "")
    assert re.search(
        r"would be refused now:\n  \S+  main/iris 1 -> production  promotion by service:ci\n      big\n", text.stdout
    )
    table = command(tmp_path, *other, "--format", "markdown")
    assert table.stdout.count("\n| ") == 3
    assert "| ❌ refused | `big` | `production` | `main/iris` | `1` | promotion | `service:ci` | " in table.stdout
    listed = json.loads(command(tmp_path, *other, "--format", "json").stdout)
    assert (listed["judged"], listed["same"], listed["refused"], listed["admitted"]) == (2, 0, 1, 1)
    assert [(item["version"], item["then"], item["state"]) for item in listed["promotions"]] == [
        ("1", "open", "refused"), ("2", "closed", "admitted"),
    ]  # fmt: skip
    assert hashlib.sha256(journal.read_bytes()).hexdigest() == before


@pytest.mark.parametrize("name", ["github-actions.md", "gitlab.md"])
async def test_the_recipes_write_the_comment_and_go_on(running, tmp_path, name):
    async with running(environments=simple(tmp_path, "", f"[{FLOOR.format(0.9)}]")) as it:
        client = Client(it.application.asgi)
        await promote(client, await register(it, client))
    script = re.search(r"```sh\n(.*?)\n", (ROOT / "docs/ci" / name).read_text())[1]
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for rules, said in (("[]", "1 the same"), ("[{name: never, require: 'false'}]", "**1 would be refused now**")):
        (tmp_path / "environments.yaml").write_text(production(rules))
        done = shell(script, tmp_path, environ)
        assert (done.returncode, done.stderr) == (0, b"")
        assert said in (tmp_path / "replay.md").read_text()


async def test_a_journal_of_before(running, tmp_path):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await promote(client, await register(it, client))
    with closing(sqlite3.connect(tmp_path / "journal.db")) as connection, connection:
        connection.execute("DELETE FROM documents WHERE kind = 'facts'")
        connection.execute("UPDATE events SET body = json_remove(body, '$.data.facts', '$.data.verdicts')")
    found = command(tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert "1 cannot be judged." in found.stdout
    assert "cannot be judged: no facts were kept, once" in found.stdout


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("UPDATE alembic_version SET version_num = '0002'", "has schema '0002', this version needs"),
        ("DROP TABLE documents", "the journal cannot be read: no such table"),
        ("UPDATE events SET body = 'x'", "is no JSON object"),
        ("UPDATE events SET body = json_remove(body, '$.data.actor')", "has another shape"),
        (None, "there is no journal yet"),
        (b"something else", "not a journal of the gateway"),
    ],
)
async def test_what_cannot_run_is_a_sentence(running, tmp_path, damage, problem):
    async with running(environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        await promote(client, await register(it, client))
    journal = tmp_path / "journal.db"
    if isinstance(damage, str):
        with closing(sqlite3.connect(journal)) as connection, connection:
            connection.execute(damage)
    else:
        for path in tmp_path.glob("journal.db*"):
            path.unlink()
    if isinstance(damage, bytes):
        journal.write_bytes(damage)
    found = command(tmp_path)
    assert (found.returncode, found.stdout, found.stderr.count("\n")) == (2, "", 1)
    assert problem in found.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--since", "ever"), "--since: 'ever' is neither a duration"),
        (("--environments", "none.yaml"), "none.yaml: No such file"),
        (("--environment", "x"), "--environment:"),
    ],
)
def test_wrong_arguments_are_a_sentence(tmp_path, arguments, problem):
    from service.journal import schema
    from tests.conftest import write_configuration

    schema.upgrade(load(write_configuration(tmp_path), environ={}).journal_url())
    found = command(tmp_path, *arguments)
    assert (found.returncode, found.stdout) == (2, "")
    assert problem in found.stderr
    assert "Traceback" not in found.stderr


def some(text, state=State.REFUSED):
    past = Past(
        "op", "2026-11-24T12:00:00.000000Z", "main", text, "1", text, Purpose.PROMOTION, text, state is State.REFUSED,
        (text,), "d", nothing_live=True,
    )  # fmt: skip
    return Again(past, state, (text,), {text: (text,)}, text)


hostile = st.one_of(
    st.text(max_size=120),
    st.lists(
        st.sampled_from(["|", "\\", "`", "``", "\n", "\r\n", "@team", "#1", "[x](http://y)", "<img src=x>", "*", "|||",
                         "\u202e", "https://evil.example", "\u2028", "\ud800", "a", " ", "\x1b[2J", "<!--", "_"]),
        max_size=12,
    ).map("".join),
)  # fmt: skip


def replay_of(text):
    items = [some(text), some(text), some(text, State.ADMITTED), some(text, State.NOT_JUDGED)]
    return Replay(text, "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", items)


@given(hostile)
def test_no_name_gets_out_of_its_cell(text):
    shown, plain = (re.sub(r"`[^`\n]*`", "", render(replay_of(name), "markdown")) for name in (text, "x"))
    assert shown == plain  # what stands outside code is ours
    said = render(replay_of(text), "text")
    assert "\x1b" not in said
    assert len(said.splitlines()) == len(render(replay_of("x"), "text").splitlines())


def test_a_long_replay_is_a_short_comment():
    items = [some(f"model-{index}") for index in range(300)] * 2
    table = render(Replay("e.yaml", "2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z", items), "markdown")
    assert "And 250 more" in table
    assert "| 2 |" in table
    assert len(table) < 30_000
