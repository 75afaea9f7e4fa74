"""Random interleavings of everything that people and pipelines do, compared with the plain rules after each step."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.client import V1, Reply
from tests.conftest import TOKENS
from tests.promotion.plain import ALIASES, RIGHTS, STAGES, Decision, Model, Version, passes
from tests.promotion.world import World

who = st.sampled_from(sorted(TOKENS))
promoters = st.sampled_from(["service:ci", "service:ci", "user:lead", "user:admin", "user:scientist"])
environments = st.sampled_from(["staging", "production", "production"])
index = st.integers(0, 5)


class Promotions(RuleBasedStateMachine):
    """A few models, guarded (``g…``) and not (``f…``), on a real registry."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.sequences += 1
        self.models: list[Model] = []
        self.debt: tuple[str, str] | None = None
        """The emergency that was not reviewed yet, and whose it is."""

    # the registry, and choosing

    def _model(self, chosen: int) -> Model:
        return self.models[chosen % len(self.models)]

    def _pick(self, chosen: int) -> tuple[Model, Version]:
        """Choose a version; the newest models and versions come first."""
        pairs = [(model, version) for model in self.models for version in reversed(model.versions)]
        return pairs[chosen % len(pairs)]

    def _name(self, guarded: bool) -> str:
        return f"{'g' if guarded else 'f'}{next(self.world.numbers)}"

    def _stage(self, model: Model, version: Version) -> tuple[str, dict[str, tuple[str, ...]]]:
        """Read a version's stage, and every stage's versions, straight from the registry."""
        found = self.world.run(self.world.backend.get_version(model.name, version.number))
        whole = self.world.run(self.world.backend.get_model(model.name))
        return found.stage, dict(whole.stages)

    def _environment(self, model: Model, environment: str, rest: str = "") -> str:
        return f"{V1}/{model.name}/environments/{environment}{rest}"

    def _version(self, model: Model, version: Version, rest: str = "") -> str:
        return f"{V1}/{model.name}/versions/{version.number}{rest}"

    # what is expected

    def _expect(self, answer: Reply, expected: bool, *refusals: int) -> bool:
        """Check that a call was answered as the rules say: done, or refused in one of these ways."""
        wanted = (200, 201, 204) if expected else refusals or (403,)
        assert answer.status in wanted, (wanted, answer.status, answer.body)
        if not expected:
            self.world.refused += 1
        return expected

    def _go_live(self, answer: Reply, model: Model, version: Version, environment: str, expected: bool) -> None:
        if self._expect(answer, expected, 409, 403):
            self.world.promoted += 1
            model.go_live(environment, version)

    def _may_mark(self, model: Model, version: Version, environment: str, by: str) -> bool:
        """Tell whether *by* may make a version live, by whatever endpoint."""
        if by not in RIGHTS[f"promote {environment}"]:
            return False
        stage, stages = self._stage(model, version)
        keeps = environment == "staging" and stage == "Production" and model.marks["production"] is version
        if model.marks[environment] is version and (keeps or stages.get(STAGES[environment]) == (version.number,)):
            return True  # nothing to do, and it says so
        if not passes(version, environment, by, model.marks[environment]):
            return False
        takes_stage = environment == "staging" and stage == "Production" and not keeps
        return not takes_stage or by in RIGHTS["retire"]

    # making versions

    @initialize(guarded=st.sampled_from([True, True, False]))
    def begin(self, guarded: bool) -> None:
        """Begin with a guarded model of two versions, the first ready for production, and perhaps another model."""
        self.models.append(Model(self._name(True)))
        self._register(self.models[0], "user:scientist")
        self._register(self.models[0], "user:scientist")
        self._prepare(self.models[0], self.models[0].versions[0])
        if not guarded:
            self.models.append(Model(self._name(False)))
            self._register(self.models[1], "user:scientist")

    def _register(self, model: Model, by: str) -> None:
        if not model.versions:
            self.world.rpc("user:admin", "POST", "registered-models/create", name=model.name)
        origin = self.world.origin()
        made = self.world.rpc(by, "POST", "model-versions/create", name=model.name, **origin)
        if self._expect(made, by in RIGHTS["register"]):
            model.versions.append(Version(made.json["model_version"]["version"], by))

    def _prepare(self, model: Model, version: Version) -> None:
        self._post(model, version, "service:ci", True)
        self._decide(model, version, "user:lead", True)
        self._promote(model, version, "staging", "service:ci")

    @precondition(lambda self: len(self.models) < 3)
    @rule(guarded=st.booleans())
    def add_model(self, guarded: bool) -> None:
        self.models.append(Model(self._name(guarded)))
        self._register(self.models[-1], "user:scientist")

    @rule(chosen=index, by=who)
    def register(self, chosen: int, by: str) -> None:
        self._register(self._model(chosen), by)

    @rule(chosen=index)
    def prepare(self, chosen: int) -> None:
        """Do what makes a version fit for production, unless something stands against it."""
        model, version = self._pick(chosen)
        if model.guarded:
            self._post(model, version, "service:ci", True)
            self._decide(model, version, "user:lead", True)
            self._promote(model, version, "staging", "service:ci")

    # evidence, decisions, quarantine

    def _post(self, model: Model, version: Version, by: str, passed: bool) -> None:
        claim = {"kind": "validation", "result": "passed" if passed else "failed"}
        answer = self.world.call(by, "POST", self._version(model, version, "/evidence"), claim)
        if self._expect(answer, by in RIGHTS["evidence"]):
            version.evidence.append((passed, by))

    @rule(chosen=index, by=who, passed=st.booleans())
    def evidence(self, chosen: int, by: str, passed: bool) -> None:
        self._post(*self._pick(chosen), by, passed)

    def _decide(self, model: Model, version: Version, by: str, approves: bool) -> None:
        signature = {"environment": "production", "decision": "approve" if approves else "reject"}
        answer = self.world.call(by, "POST", self._version(model, version, "/approvals"), signature)
        own = approves and by in version.concerned("")
        if self._expect(answer, by in RIGHTS["approve"] and not own):
            decision = Decision(by, approves, model.marks["production"], answer.json["id"])
            version.decisions.append(decision)

    @rule(chosen=index, by=st.sampled_from(["user:lead", "user:lead", "user:admin", "user:scientist"]), approves=index)
    def decide(self, chosen: int, by: str, approves: int) -> None:
        model, version = self._pick(chosen)
        if model.guarded:
            self._decide(model, version, by, approves != 0)

    @rule(chosen=index, by=st.sampled_from(["user:lead", "user:admin", "user:viewer"]), which=index)
    def revoke(self, chosen: int, by: str, which: int) -> None:
        model, version = self._pick(chosen)
        standing = [item for item in version.decisions if not item.revoked]
        if not standing or not model.guarded:
            return
        decision = standing[which % len(standing)]
        answer = self.world.call(by, "DELETE", self._version(model, version, f"/approvals/{decision.id}"))
        decision.revoked = self._expect(answer, by in RIGHTS["approve"])

    @rule(chosen=index, by=st.sampled_from(["user:admin", "user:lead", "service:ci"]))
    def quarantine_or_lift(self, chosen: int, by: str) -> None:
        model, version = self._pick(chosen)
        target = self._version(model, version, "/quarantine")
        if version.quarantined:
            answer = self.world.call(by, "DELETE", target)
        else:
            answer = self.world.call(by, "POST", target, {"reason": "found to be wrong"})
        if self._expect(answer, by in RIGHTS["quarantine"]):
            version.quarantined = not version.quarantined

    # ways to become live

    def _promote(self, model: Model, version: Version, environment: str, by: str) -> None:
        expected = self._may_mark(model, version, environment, by)
        target = self._environment(model, environment, "/promotions")
        answer = self.world.call(by, "POST", target, {"version": version.number})
        self._go_live(answer, model, version, environment, expected)

    @rule(chosen=index, by=promoters, environment=environments)
    def promote(self, chosen: int, by: str, environment: str) -> None:
        model, version = self._pick(chosen)
        if model.guarded:
            self._promote(model, version, environment, by)

    @rule(chosen=index, by=promoters, environment=environments)
    def set_alias(self, chosen: int, by: str, environment: str) -> None:
        model, version = self._pick(chosen)
        may = self._may_mark(model, version, environment, by) if model.guarded else by in RIGHTS["alias"]
        message = {"name": model.name, "alias": ALIASES[environment], "version": version.number}
        answer = self.world.rpc(by, "POST", "registered-models/alias", **message)
        if model.guarded:
            self._go_live(answer, model, version, environment, may)
        elif self._expect(answer, may):
            model.marks[environment] = version

    @rule(
        chosen=index, by=promoters, stage=st.sampled_from(["Production", "Production", "Staging", "Archived", "None"])
    )
    def set_stage(self, chosen: int, by: str, stage: str) -> None:
        model, version = self._pick(chosen)
        before, _ = self._stage(model, version)
        environment = next((name for name, value in STAGES.items() if value == stage), None)
        leaves = before in STAGES.values() and before != stage
        if not model.guarded:
            may = by in RIGHTS["all"]
        elif environment is not None:
            may = self._may_mark(model, version, environment, by)
        else:
            may = by in RIGHTS["retire" if leaves else "all"]
        message = {"name": model.name, "version": version.number, "stage": stage}
        archive = {"archive_existing_versions": True} if environment else {}
        answer = self.world.rpc(by, "POST", "model-versions/transition-stage", **message, **archive)
        if model.guarded and environment is not None:
            self._go_live(answer, model, version, environment, may)
        else:
            self._expect(answer, may)

    @rule(chosen=index, by=promoters, named=st.booleans(), environment=environments)
    def roll_back(self, chosen: int, by: str, named: bool, environment: str) -> None:
        model, version = self._pick(chosen)
        if not model.guarded:
            return
        live = model.marks[environment]
        body = {"reason": "worse than before"}
        if named:
            body["to"] = version.number
        else:
            good = [
                item
                for item in reversed(model.former[environment])
                if item is not live and item in model.versions and not item.quarantined
            ]
            if not good:
                answer = self.world.call(by, "POST", self._environment(model, environment, "/rollbacks"), body)
                self._expect(answer, False, 404, 403)
                return
            version = good[0]
        stage, stages = self._stage(model, version)
        keeps = environment == "staging" and stage == "Production" and model.marks["production"] is version
        stands = live is version and (keeps or stages.get(STAGES[environment]) == (version.number,))
        takes_stage = environment == "staging" and stage == "Production" and not keeps
        may = by in RIGHTS["rollback"] and (stands or passes(version, environment, by, live, "rollback"))
        may = may and (stands or not takes_stage or by in RIGHTS["retire"])
        answer = self.world.call(by, "POST", self._environment(model, environment, "/rollbacks"), body)
        self._go_live(answer, model, version, environment, may)

    @rule(chosen=index, by=st.sampled_from(["user:admin", "user:admin", "user:lead", "service:ci"]))
    def emergency(self, chosen: int, by: str) -> None:
        model, version = self._pick(chosen)
        if not model.guarded:
            return
        live = model.marks["production"]
        _, stages = self._stage(model, version)
        stands = live is version and stages.get("Production") == (version.number,)
        may = by in RIGHTS["emergency"] and (
            stands or (self.debt is None and passes(version, "production", by, live, "emergency"))
        )
        body = {"version": version.number, "emergency": {"reason": "the shop is down", "ticket": "INC-1"}}
        answer = self.world.call(by, "POST", self._environment(model, "production", "/promotions"), body)
        self._go_live(answer, model, version, "production", may)
        if may and not stands:
            self.debt = (answer.json["id"], by)

    @precondition(lambda self: self.debt is not None)
    @rule(by=st.sampled_from(["user:lead", "user:admin", "service:ci"]))
    def review(self, by: str) -> None:
        assert self.debt is not None  # the precondition
        emergency, author = self.debt
        target = f"/v1/emergencies/{emergency}/reviews"
        answer = self.world.call(by, "POST", target, {"reason": "it was needed"})
        if self._expect(answer, by in RIGHTS["approve"] and by != author):
            self.debt = None

    # ways to be live no longer

    @rule(chosen=index, by=who, environment=environments)
    def retire(self, chosen: int, by: str, environment: str) -> None:
        model = self._model(chosen)
        if not model.guarded:
            return
        marked = self.world.run(self.world.backend.get_model(model.name))
        there = model.marks[environment] is not None or bool(marked.stages.get(STAGES[environment]))
        answer = self.world.call(by, "POST", self._environment(model, environment, "/retirements"), {"reason": "old"})
        if self._expect(answer, by in RIGHTS["retire"] and there, 403, 404):
            model.marks[environment] = None

    @rule(chosen=index, by=promoters, environment=environments)
    def delete_alias(self, chosen: int, by: str, environment: str) -> None:
        model = self._model(chosen)
        message = {"name": model.name, "alias": ALIASES[environment]}
        answer = self.world.rpc(by, "DELETE", "registered-models/alias", **message)
        if self._expect(answer, by in RIGHTS["retire" if model.guarded else "alias"]):
            model.marks[environment] = None

    @rule(chosen=index, by=st.sampled_from(["user:admin", "user:scientist"]))
    def delete_version(self, chosen: int, by: str) -> None:
        model, version = self._pick(chosen)
        if len(model.versions) < 2:
            return
        answer = self.world.rpc(by, "DELETE", "model-versions/delete", name=model.name, version=version.number)
        if self._expect(answer, by in RIGHTS["all"]):
            model.versions.remove(version)
            model.marks = {name: None if it is version else it for name, it in model.marks.items()}

    @precondition(lambda self: len(self.models) > 1)
    @rule(chosen=index, by=st.sampled_from(["user:admin", "user:lead"]), again=st.booleans())
    def delete_model(self, chosen: int, by: str, again: bool) -> None:
        """Delete a model, and perhaps make one of its name again, which inherits nothing."""
        model = self._model(chosen)
        answer = self.world.rpc(by, "DELETE", "registered-models/delete", name=model.name)
        if self._expect(answer, by in RIGHTS["all"]):
            self.models.remove(model)
            if again:
                self.models.append(Model(model.name))
                self._register(self.models[-1], "user:scientist")

    @rule(chosen=index, by=st.sampled_from(["user:admin", "user:admin", "user:lead"]), guarded=st.booleans())
    def rename(self, chosen: int, by: str, guarded: bool) -> None:
        """Rename a model, in or out of what is guarded; every mark it carries in is judged."""
        model = self._model(chosen)
        name = self._name(guarded)
        found = self.world.run(self.world.backend.get_model(model.name))
        carried: list[tuple[str, Version]] = []
        for environment, live in model.marks.items() if guarded else ():
            marked = {*found.stages.get(STAGES[environment], ()), *([live.number] if live else [])}
            carried += [(environment, item) for item in model.versions if item.number in marked]
        may = by in RIGHTS["all"] and all(passes(item, where, by, None) for where, item in carried)
        answer = self.world.rpc(by, "POST", "registered-models/rename", name=model.name, new_name=name)
        if self._expect(answer, may, 403, 409):
            model.name = name
            for environment, version in carried:
                if model.marks[environment] is version:
                    model.former[environment].append(version)
                    version.been.add(environment)

    @rule(chosen=index, environment=environments, take=st.booleans())
    def move_beside_the_gateway(self, chosen: int, environment: str, take: bool) -> None:
        """Move an alias in the registry itself; a look must find it and move it back."""
        model, version = self._pick(chosen)
        live = model.marks[environment]
        if not model.guarded or (take and live is None):
            return
        backend, alias = self.world.backend, ALIASES[environment]
        if take:
            self.world.run(backend.delete_alias(model.name, alias))
        else:
            self.world.run(backend.set_alias(model.name, alias, version.number))
        state = "reverted" if take or version is not live else "agrees"
        answer = self.world.call("user:viewer", "POST", self._environment(model, environment, "/checks"))
        assert (answer.status, answer.json["state"]) == (200, state), answer.body
        if state == "reverted" and live is not None:
            model.former[environment].append(live)

    # what must hold

    @invariant()
    def the_registry_the_answer_and_the_record_agree(self) -> None:
        self.world.steps += 1
        for model in self.models:
            found = self.world.run(self.world.backend.get_model(model.name))
            for environment, live in model.marks.items():
                expected = live.number if live else None
                assert found.aliases.get(ALIASES[environment]) == expected, (model.name, environment)
                if not model.guarded:
                    continue
                answer = self.world.call("user:viewer", "GET", self._environment(model, environment))
                assert answer.status == (404 if live is None else 200), answer.body
                if live is not None:
                    assert answer.json["version"] == expected
                    assert answer.json["drifted"] is False
                self._check_history(model, environment, expected)

    def _check_history(self, model: Model, environment: str, live: str | None) -> None:
        answer = self.world.call("user:viewer", "GET", self._environment(model, environment, "/history"))
        periods = answer.json["history"][::-1]
        assert [item["version"] for item in periods if item["until"] is None] == ([live] if live else [])
        for earlier, later in pairwise(periods):
            assert earlier["until"] is not None
            assert _moment(earlier["until"]) <= _moment(later["since"]), periods
        for item in periods:
            assert item["kind"] in ("drift", "revert") or item["verdict"]["allowed"], item

    def teardown(self) -> None:
        if self.debt is not None:
            self.review("user:admin" if self.debt[1] == "user:lead" else "user:lead")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
