"""Random interleavings of all that makes a version live, against a real MLflow server and a plain model of the rules.

Whatever happens in whatever order: no version is ever live in an enforced environment unless its gate was open at that
moment, an emergency passed what may be passed, or it was rolled back to. `MACHINE_EXAMPLES` runs more sequences.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from service.app import Application
from service.backends.http import HttpTransport
from service.backends.mlflow import MlflowBackend
from service.journal import schema
from service.settings import load
from tests.client import V1, Client
from tests.conftest import write_configuration
from tests.promotion.flow import environments

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "6"))
STEPS = 25
RULES = """\
environments:
  staging: {marks: [{alias: challenger}, {stage: Staging}], rules: []}
  production:
    marks: [{alias: champion}, {stage: Production}]
    approvals: {required: [{group: "group:ml-leads"}]}
    rules:
      - {name: floor, require: candidate.metrics.accuracy >= 0.9, waivable: true}
      - {name: validated, require: "passed(evidence, 'validation')"}
"""


@dataclasses.dataclass
class Version:
    """What the plain model knows of a version."""

    accuracy: float
    evidence: str = ""
    approval: str = ""
    """The identifier of the decision in force."""
    decision: str = ""
    seen: str | None = None
    """What was live when it was approved."""
    quarantined: bool = False
    was_live: bool = False


class Machine(RuleBasedStateMachine):
    """Drives a gateway over a real server, and a plain model beside it."""

    url: ClassVar[str] = ""
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = f"machine-{secrets.token_hex(6)}"
        self.versions: dict[str, Version] = {}
        self.live: str | None = None
        self.debt = ""
        self.stack = AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory()
        self.do(self.start())

    def do(self, work):
        type(self).steps += 1
        return self.runner.run(work)

    async def start(self) -> None:
        folder = Path(self.folder.name)
        path = write_configuration(folder, environments=environments(folder, RULES), drift_seconds=0)
        configuration = load(path, environ={})
        schema.upgrade(configuration.journal_url())
        self.transport = HttpTransport("main", self.url)
        self.application = Application(
            configuration, backends={"main": MlflowBackend("main", self.transport)}, sinks=[]
        )
        await self.stack.enter_async_context(self.application._lifespan(self.application.litestar))
        self.admin = Client(self.application.asgi)
        self.ci, self.lead, self.scientist = (
            self.admin.be(name) for name in ("service:ci", "user:lead", "user:scientist")
        )
        made = await self.scientist.rpc("POST", "registered-models/create", name=self.model)
        assert made.status == 200, made.body

    def teardown(self) -> None:
        self.runner.run(self.stack.aclose())
        self.runner.close()
        self.folder.cleanup()

    def path(self, *parts: str) -> str:
        return "/".join((V1, self.model, *parts))

    def gate_is_open(self, number: str) -> bool:
        version = self.versions[number]
        return version.accuracy >= 0.9 and self.gate_is_open_but_for_the_floor(number)

    def gate_is_open_but_for_the_floor(self, number: str) -> bool:
        version = self.versions[number]
        approved = version.decision == "approve" and version.seen == self.live
        return version.evidence == "passed" and approved and not version.quarantined

    def went_live(self, number: str) -> None:
        self.live = number
        self.versions[number].was_live = True

    @rule(accuracy=st.sampled_from([0.5, 0.95, 0.99]))
    def register(self, accuracy: float) -> None:
        async def work() -> str:
            run = (await self.scientist.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
            logged = {"run_id": run, "key": "accuracy", "value": accuracy, "timestamp": 1}
            await self.scientist.rpc("POST", "runs/log-metric", **logged)
            message = {"name": self.model, "source": f"runs:/{run}/model", "run_id": run}
            made = await self.scientist.rpc("POST", "model-versions/create", **message)
            assert made.status == 200, made.body
            return str(made.json["model_version"]["version"])

        self.versions[self.do(work())] = Version(accuracy)

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), result=st.sampled_from(["passed", "passed", "failed"]))
    def evidence(self, data: st.DataObject, result: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        body = {"kind": "validation", "result": result}
        posted = self.do(self.ci("POST", self.path("versions", number, "evidence"), body))
        assert posted.status == 201, posted.body
        self.versions[number].evidence = result

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), decision=st.sampled_from(["approve", "approve", "approve", "reject"]))
    def decide(self, data: st.DataObject, decision: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        body = {"environment": "production", "decision": decision}
        signed = self.do(self.lead("POST", self.path("versions", number, "approvals"), body))
        assert signed.status == 201, signed.body
        version = self.versions[number]
        version.approval, version.decision, version.seen = signed.json["id"], decision, self.live

    @precondition(lambda self: any(version.approval for version in self.versions.values()))
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(n for n, v in self.versions.items() if v.approval)))
        base = self.path("versions", number, "approvals")
        for item in self.do(self.lead("GET", base)).json["approvals"]:
            if not item["revoked"]:
                assert self.do(self.lead("DELETE", f"{base}/{item['id']}")).status == 204
        self.versions[number].approval = self.versions[number].decision = ""

    @precondition(lambda self: self.versions)
    @rule(data=st.data(), way=st.sampled_from(["route", "alias", "stage"]))
    def promote(self, data: st.DataObject, way: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        if way == "route":
            target = self.path("environments", "production", "promotions")
            answer = self.do(self.ci("POST", target, {"version": number}))
        elif way == "alias":
            message = {"name": self.model, "alias": "champion", "version": number}
            answer = self.do(self.ci.rpc("POST", "registered-models/alias", **message))
        else:
            message = {"name": self.model, "version": number, "stage": "Production", "archive_existing_versions": True}
            answer = self.do(self.ci.rpc("POST", "model-versions/transition-stage", **message))
        expected = self.gate_is_open(number) or number == self.live
        assert (answer.status == 200) is expected, (answer.status, answer.body, self.versions[number])
        if expected:
            self.went_live(number)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def emergency(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        body = {"version": number, "emergency": {"reason": "r", "ticket": "t"}}
        answer = self.do(self.admin("POST", self.path("environments", "production", "promotions"), body))
        expected = number == self.live or (self.gate_is_open_but_for_the_floor(number) and not self.debt)
        assert (answer.status == 200) is expected, (answer.status, answer.body, self.versions[number])
        if answer.status == 200 and answer.json["state"] == "succeeded":
            self.debt = answer.json["id"]
            self.went_live(number)

    @precondition(lambda self: self.debt)
    @rule()
    def review_emergency(self) -> None:
        answer = self.do(self.lead("POST", f"/v1/emergencies/{self.debt}/reviews", {"reason": "seen"}))
        assert answer.status == 200, answer.body
        self.debt = ""

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        target = self.path("environments", "production", "rollbacks")
        answer = self.do(self.lead("POST", target, {"to": number, "reason": "r"}))
        version = self.versions[number]
        expected = number == self.live or (version.was_live and not version.quarantined)
        assert (answer.status == 200) is expected, (answer.status, answer.body, version)
        if expected:
            self.went_live(number)

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def quarantine_or_lift(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        version, target = self.versions[number], self.path("versions", number, "quarantine")
        if version.quarantined:
            assert self.do(self.lead("DELETE", target)).status == 204
        else:
            assert self.do(self.lead("POST", target, {"reason": "r"})).status == 201
        version.quarantined = not version.quarantined

    @precondition(lambda self: self.live is not None)
    @rule(way=st.sampled_from(["route", "alias"]))
    def take_down(self, way: str) -> None:
        if way == "route":
            target = self.path("environments", "production", "retirements")
            answer = self.do(self.lead("POST", target, {"reason": "r"}))
        else:
            answer = self.do(self.lead.rpc("DELETE", "registered-models/alias", name=self.model, alias="champion"))
        assert answer.status == 200, answer.body
        self.live = None

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def stage_by_scientist(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        message = {"name": self.model, "alias": "champion", "version": number}
        assert self.do(self.scientist.rpc("POST", "registered-models/alias", **message)).status == 403
        message = {"name": self.model, "alias": "blue", "version": number}
        assert self.do(self.scientist.rpc("POST", "registered-models/alias", **message)).status == 200

    @precondition(lambda self: self.versions)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.versions)))
        answer = self.do(self.admin.rpc("DELETE", "model-versions/delete", name=self.model, version=number))
        assert answer.status == 200, answer.body
        del self.versions[number]
        if self.live == number:
            self.live = None

    @rule()
    def rename(self) -> None:
        """The new name has no incumbent: what is live is judged anew for it."""
        name = f"machine-{secrets.token_hex(6)}"
        answer = self.do(self.admin.rpc("POST", "registered-models/rename", name=self.model, new_name=name))
        if self.live is None:
            assert answer.status in (200, 409), answer.body  # a lesser mark may be left
        if answer.status == 200:
            self.model = name
            if self.live is not None:
                version = self.versions[self.live]
                assert version.accuracy >= 0.9
                assert version.evidence == "passed"
                assert version.decision == "approve"
                assert not version.quarantined

    @invariant()
    def what_is_live_is_what_the_rules_let_in(self) -> None:
        async def look() -> tuple[str | None, int]:
            found = await self.application.backends["main"].get_model(self.model)
            periods = await self.application.journal.periods("main", self.model)
            now = [item for item in periods if item.environment == "production" and item.until is None]
            return found.aliases.get("champion"), len(now)

        live, periods = self.runner.run(look())
        assert live == self.live
        assert periods == (self.live is not None)


@pytest.mark.real
def test_nothing_is_live_that_the_rules_did_not_let_in(mlflow_server, capsys) -> None:
    Machine.url, Machine.steps = mlflow_server.url, 0
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with capsys.disabled():
        print(f"promotion machine: {EXAMPLES} sequences, {Machine.steps} requests")
