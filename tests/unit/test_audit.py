"""Audit events: their shape and size, and what is recorded when the journal cannot."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.audit import Operation, Trail
from service.change import AliasSet, ModelRename, OfRun, Promotion
from service.effects import Effect, Opened, Posted, Settled, TakenDown, Weighed, Withdrawn
from service.errors import JournalUnavailable
from service.event import MAX_EVENT_BYTES, Event, build_event, canonical_json
from service.keeping import OpenOperation, Undo
from service.model import Call, Decision, Finding, Need, Principal, Verdict
from service.records import Evidence
from service.sinks.mlflow_shapes import messages_of

NOW = 1_577_880_000.5
CALLER = Principal("service:ci", frozenset({"group:z", "group:a"}), acting_for="user:ann", credential="key-1")
CALL = Call(
    principal=CALLER,
    registry="main",
    name="setRegisteredModelAlias",
    needs=(Need("alias:set", "models/iris/aliases/champion"), Need("model:read", "models/iris")),
    change=AliasSet("iris", "champion", "3"),
    address="10.0.0.1",
)


class Memory:
    """A journal that keeps what it is given, or refuses."""

    def __init__(self) -> None:
        self.stored: list[Event] = []
        self.effects: list[Effect] = []
        self.undos: list[Any] = []
        self.down = False

    async def append(
        self,
        events: Sequence[Event],
        effects: Sequence[Effect] = (),
        *,
        undo: Undo | None = None,
    ) -> list[Event]:
        if self.down:
            raise JournalUnavailable("The journal is down.")
        self.stored += events
        self.effects += effects
        self.undos.append(undo)
        return list(events)


def operation(**fields: Any) -> Operation:
    made = Operation.opened(CALL, NOW)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_an_event_is_a_cloudevent_that_says_who_did_what() -> None:
    made = operation(
        decision=Decision(allowed=True, row="policy.csv:3", revision="abc"), environment="production", status=200
    )
    event = made.event("outcome", "succeeded", "gateway-1", NOW)
    assert {key: event[key] for key in event if key not in ("id", "data")} == {
        "specversion": "1.0",
        "source": "gateway-1",
        "type": "registry-gateway.alias.set.outcome",
        "time": "2020-01-01T12:00:00.500000Z",
        "subject": "main/models/iris/aliases/champion",
        "datacontenttype": "application/json",
    }
    data = event["data"]
    assert data["actor"] == {
        "subject": "service:ci",
        "groups": ["group:a", "group:z"],
        "acting_for": "user:ann",
        "issuer": "api-key",
        "credential": "key-1",
        "claims": {},
        "address": "10.0.0.1",
    }
    assert data["decision"] == {"allowed": True, "row": "policy.csv:3", "revision": "abc", "beyond_scope": False}
    assert data["change"] == {"kind": "AliasSet", "model": "iris", "alias": "champion", "version": "3"}
    assert (data["operation"], data["phase"], data["outcome"], data["status"]) == (made.id, "outcome", "succeeded", 200)
    assert (data["call"], data["action"], data["registry"]) == ("setRegisteredModelAlias", "alias:set", "main")
    assert (data["model"], data["version"], data["environment"]) == ("iris", "3", "production")
    assert data["latency_ms"] >= 0
    assert data["verdict"] is None


def test_an_event_has_an_identifier_of_its_own_and_the_operations() -> None:
    made = operation()
    one, two = (made.event("intent", None, "s", NOW) for _ in range(2))
    assert one["id"] != two["id"]
    assert one["data"]["operation"] == two["data"]["operation"] != operation().id
    assert one["data"]["latency_ms"] is None


def test_a_call_that_was_not_understood_is_an_event_too() -> None:
    bare = Operation.opened(Call(principal=CALLER, registry="main", name="", needs=()), NOW)
    event = bare.event("rejected", "rejected", "s", NOW)
    assert event["type"] == "registry-gateway.request.refuse.rejected"
    assert (bare.action, bare.resource, bare.change, bare.model) == ("", "", None, None)
    located = Operation.opened(
        Call(principal=CALLER, registry="m", name="x", needs=(Need("run:read", OfRun("r")),)), NOW
    )
    assert (located.action, located.resource) == ("run:read", "")


def size(event: Event) -> int:
    return len(canonical_json(event))


BIG_FACTS = Verdict(
    findings=tuple(
        Finding(f"rule-{index}", passed=False, because="low", facts={"candidate.tags.x": "y" * 900})
        for index in range(40)
    )
)


def test_hundreds_of_groups_go_before_any_fact() -> None:
    groups = frozenset(f"group:entra-aaaabbbb-0000-cccc-1111-dddd2222eeee/{index:036}" for index in range(200))
    found = Finding("r", passed=True, because="b", facts={"f": 1})
    many = operation(verdict=Verdict(findings=(found,)))
    many.principal = Principal("user:ann", groups)
    event = many.event("outcome", "succeeded", "s", NOW)
    assert size(event) <= MAX_EVENT_BYTES
    actor = event["data"]["actor"]
    assert (actor["groups"], actor["more_groups"]) == (sorted(groups)[:20], 180)
    assert event["data"]["verdict"]["findings"][0]["facts"] == {"f": 1}


def test_no_claims_make_an_event_too_large() -> None:
    many = operation()
    many.principal = Principal("user:ann", claims={f"claim-{index}": ["\u00fc" * 1000] * 100 for index in range(40)})
    event = many.event("outcome", "succeeded", "s", NOW)
    assert size(event) <= MAX_EVENT_BYTES
    assert (event["data"]["actor"]["subject"], event["data"]["actor"]["claims"]) == ("user:ann", {})


def test_a_large_event_loses_the_facts_of_its_findings_first() -> None:
    event = operation(verdict=BIG_FACTS, reason="r" * 900).event("outcome", "failed", "s", NOW)
    assert size(event) <= MAX_EVENT_BYTES
    assert event["data"]["reason"] == "r" * 900
    findings = event["data"]["verdict"]["findings"]
    assert len(findings) == 40
    kept = {"rule": "rule-7", "passed": False, "because": "low", "missing": [], "facts": {}}
    assert findings[7] == {**kept, "severity": "block", "waived": False, "self_reported": []}
    assert BIG_FACTS.findings[0].facts, "the verdict itself is not touched"


def test_then_it_loses_the_ends_of_long_texts() -> None:
    event = operation(verdict=BIG_FACTS, reason="r" * 100_000, before=["b" * 600] * 3).event(
        "outcome", "failed", "s", NOW
    )
    assert size(event) <= MAX_EVENT_BYTES
    whole = hashlib.sha256(b"r" * 100_000).hexdigest()
    assert event["data"]["reason"] == "r" * 512 + f"\u2026(cut, 100000 characters, sha256 {whole})"
    assert "(cut, 600 characters, sha256 " in event["data"]["before"][0]
    assert event["data"]["actor"]["subject"] == "service:ci"


@given(st.text(max_size=2000), st.text(max_size=20_000), st.integers(0, 40))
def test_no_reason_or_change_makes_an_event_too_large(reason: str, value: str, findings: int) -> None:
    reason, value = (text.encode("utf-8", "replace").decode() for text in (reason, value))
    verdict = Verdict(
        findings=tuple(Finding("r", passed=True, because="b", facts={"f": value[:200]}) for _ in range(findings))
    )
    event = operation(reason=reason, change={"kind": "TagSet", "value": value}, verdict=verdict).event(
        "intent", None, "s", NOW
    )
    assert size(event) <= MAX_EVENT_BYTES
    assert json.loads(canonical_json(event))["data"]["actor"]["subject"] == "service:ci"


def test_a_small_event_is_kept_whole() -> None:
    verdict = Verdict(allowed=True, findings=(Finding("r", passed=True, because="b", facts={"a": 1}),))
    event = operation(verdict=verdict, reason="x" * 2000).event("outcome", "succeeded", "s", NOW)
    assert event["data"]["reason"] == "x" * 2000
    assert event["data"]["verdict"]["findings"][0]["facts"] == {"a": 1}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda i: st.lists(i) | st.dictionaries(st.text(), i),
        max_leaves=10,
    )
)
def test_canonical_json_is_one_ascii_line_that_reads_back(document: Any) -> None:
    raw = canonical_json(document)
    assert json.loads(raw) == document
    assert all(0x20 <= byte < 0x7F for byte in raw)


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": [1, {"d": 2, "c": 3}], "a": "\u00e9\n"}) == b'{"a":"\\u00e9\\n","b":[1,{"c":3,"d":2}]}'


def trail(journal: Memory) -> Trail:
    return Trail(journal, "gateway-1", now=lambda: NOW)  # type: ignore[arg-type]  # only append is asked


@pytest.mark.parametrize("phase", ["denied", "rejected"])
async def test_a_refusal_is_recorded_and_stays_a_refusal_without_a_journal(phase: str) -> None:
    journal = Memory()
    records = trail(journal)
    await records.refused(operation(), phase)
    assert journal.stored[0]["type"] == f"registry-gateway.alias.set.{phase}"
    assert (journal.stored[0]["data"]["phase"], journal.stored[0]["data"]["outcome"]) == (phase, phase)
    assert journal.effects == []
    journal.down = True
    await records.refused(operation(), phase)
    assert records.lost == 1


async def test_an_intent_opens_the_operation_or_is_refused() -> None:
    journal, made = Memory(), operation()
    await trail(journal).intent(made)
    assert journal.stored[0]["type"] == "registry-gateway.alias.set.intent"
    assert journal.stored[0]["data"]["outcome"] is None
    assert journal.effects == [Opened(made.id, CALL.digest(), "main", made.change, NOW, source="gateway-1")]
    (undone,), settled = journal.undos[0]()
    assert (undone["data"]["outcome"], settled) == ("failed", [Settled(made.id, "failed")])
    assert "nothing was forwarded" in undone["data"]["detail"]
    journal.down = True
    with pytest.raises(JournalUnavailable):
        await trail(journal).intent(operation())


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "unknown"])
async def test_an_outcome_settles_the_operation_and_never_raises(outcome: str) -> None:
    journal, made = Memory(), operation()
    records = trail(journal)
    effect = TakenDown("main", "iris", ("production",), NOW)
    await records.outcome(made, outcome, [effect])
    assert journal.stored[0]["data"]["outcome"] == outcome
    assert journal.effects == [Settled(made.id, outcome), effect]
    journal.down = True
    await records.outcome(operation(), outcome)
    assert records.lost == 1


async def test_what_changes_the_journal_itself_is_stored_or_refused() -> None:
    journal = Memory()
    await trail(journal).stored(operation(), [TakenDown("main", "iris", (), NOW)])
    assert journal.stored[0]["data"]["outcome"] == "succeeded"
    journal.down = True
    with pytest.raises(JournalUnavailable):
        await trail(journal).stored(operation(), [])


async def test_a_refusal_recorded_later_is_recorded_before_the_end() -> None:
    journal = Memory()
    records = trail(journal)
    records.refused_later(operation(), "denied")
    assert journal.stored == []
    await records.close()
    assert [event["data"]["phase"] for event in journal.stored] == ["denied"]


async def test_evidence_that_came_too_late_is_taken_back() -> None:
    journal, late = Memory(), Evidence("e1", "validation", "passed", "service:ci", (), {}, "", NOW)
    await trail(journal).stored(operation(), [Posted("main", "iris", "binding", late)])
    (event,), effects = journal.undos[0]()
    assert (event["data"]["outcome"], effects) == ("failed", [Withdrawn("e1")])


async def test_the_reconciler_settles_with_the_intents_facts() -> None:
    journal, made = Memory(), operation()
    intent = made.event("intent", None, "gateway-0", NOW - 60)
    intent["data"] |= {"sequence": 7, "previous": "ff"}
    found = OpenOperation(made.id, made.digest, "main", "unknown", made.change, intent, NOW - 60)
    await trail(journal).reconciled(found, "succeeded", "It is there.", [])
    (event,) = journal.stored
    assert (event["type"], event["subject"]) == ("registry-gateway.alias.set.reconciled", intent["subject"])
    assert {key: event["data"][key] for key in ("phase", "outcome", "detail", "operation")} == {
        "phase": "reconciled", "outcome": "succeeded", "detail": "It is there.", "operation": made.id,
    }  # fmt: skip
    assert not {"sequence", "previous"} & set(event["data"])
    assert journal.effects == [Settled(made.id, "succeeded")]


def test_a_type_is_of_the_action_and_phase() -> None:
    assert build_event("model:create", "denied", {}, "s", 0.0, "x")["type"] == "registry-gateway.model.create.denied"


WEIGHED = Weighed("d" * 64, {"form": 1}, NOW, "r" * 64)


async def test_what_was_judged_by_is_stored_with_the_first_event_that_names_it() -> None:
    for write in ("intent", "refused", "noted"):
        journal = Memory()
        made = operation(facts={"production": WEIGHED})
        written = trail(journal)
        await (written.refused(made, "rejected") if write == "refused" else getattr(written, write)(made))
        assert journal.effects[-1] is WEIGHED
        assert [event["data"]["facts"] for event in journal.stored] == [
            {"production": {"digest": "d" * 64, "at": NOW, "approved_under": "r" * 64}}
        ]  # fmt: skip
        count = len(journal.effects)
        await written.outcome(made, "succeeded")
        assert journal.effects[count:] == [Settled(made.id, "succeeded")]
        assert journal.stored[-1]["data"]["facts"] == journal.stored[0]["data"]["facts"]


@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=60, max_size=85), st.data())
def test_the_largest_event_still_says_which_change_of_what(name: str, data: st.DataObject) -> None:
    """Sinks tell it in MLflow's words; owners, renames and retention read it, reports the notes."""
    change = data.draw(
        st.sampled_from(
            [
                Promotion(name, "production", "7", "r" * 2000, ticket="t" * 200, record={"id": "c" * 200}),
                ModelRename(name, name[::-1]),
                AliasSet(name, "champion", "7"),
            ]
        )
    )
    groups = frozenset(f"group:{index}-{'g' * 600}" for index in range(20))
    findings = tuple(
        Finding(f"rule-{index}-{'r' * 60}", passed=True, because="b" * 900, facts={}, self_reported=("m" * 500,) * 5)
        for index in range(40)
    )
    made = operation(
        principal=Principal("user:" + "a" * 200, groups, acting_for="user:" + "b" * 200),
        change={"kind": type(change).__name__, **dataclasses.asdict(change)},
        model=name,
        environment="production",
        before={"version": None},
        after={"version": "7"},
        verdict=Verdict(allowed=True, findings=findings),
        reason="r" * 2000,
        notes=["n" * 900] * 5,
    )
    event = made.event("outcome", "succeeded", "s", NOW)
    assert size(event) <= MAX_EVENT_BYTES
    told = event["data"]
    assert (told["cut"], told["model"], told["change"]["model"]) == (True, name, name)
    assert told["change"]["kind"] == type(change).__name__
    assert told["change"].get("new_name", name[::-1]) == name[::-1]
    assert all(isinstance(note, str) for note in told["notes"])
    assert bool(messages_of(event, lambda *_: ("champion",))) == (told["change"]["kind"] != "ModelRename")


def test_facts_of_very_many_environments_make_no_event_too_large() -> None:
    facts = {f"environment-{index}-{'x' * 40}": WEIGHED for index in range(500)}
    event = operation(facts=facts, verdict=BIG_FACTS, reason="r" * 100_000).event("intent", None, "s", NOW)
    assert size(event) <= MAX_EVENT_BYTES
    assert event["data"]["facts"]
