"""Records that rules judge by are what events say of them: an edit beside the chain is found, on both databases."""

from __future__ import annotations

import asyncio

import pytest

from service.audit import Operation, Trail
from service.effects import Held, HoldLifted, MadeLive, Posted, Quarantined, Registered, Released, Revoked, Signed
from service.errors import JournalUnavailable
from service.journal.retention import DAY_SECONDS, Retention
from service.journal.verify import examine
from service.masking import Masks
from service.model import Call, Need, Principal
from service.records import Approval, Creation, Evidence, Hold, LivePeriod, Quarantine
from tests.contract.test_journal import beside

AT = 1_790_000_000.25
LATER = AT + 400 * DAY_SECONDS
FACTS = {"auc": 0.1 + 0.2, "text": "é\u2028", "none": None, "list": [1, 2.5]}
EVIDENCE = Evidence("e1", "scan", "passed", "user:u", ("group:g",), FACTS, "", AT, persons=("user:u",))


def approval(identifier):
    return Approval(identifier, "production", "approve", "user:u", ("user:u",), ("group:g",), "r", AT, None, "rules")


MADE = [
    ("createApproval", "approval:create", Signed("main", "iris", "b", approval("a1"), "1", ("runs/1",)), None),
    ("createApproval", "approval:create", Signed("main", "iris", "b", approval("a2"), "1", ()), None),
    ("revokeApproval", "approval:revoke", Revoked("a2", AT), {"id": "a2"}),
    ("postEvidence", "evidence:post", Posted("main", "iris", "b", EVIDENCE), None),
    (
        *("quarantine", "version:quarantine"),
        *(Quarantined("main", Quarantine("q1", "iris", "2", "c", "r", "user:u", AT, ("runs/1",))), None),
    ),
    (
        *("quarantine", "version:quarantine"),
        *(Quarantined("main", Quarantine("q2", "iris", "3", "d", "r", "user:u", AT)), None),
    ),
    ("liftQuarantine", "version:quarantine", Released("q2", AT), {"quarantine": "q2"}),
    ("placeHold", "audit:hold", Held(Hold("h1", "main", "iris", "r", "user:u", AT)), None),
    ("placeHold", "audit:hold", Held(Hold("h2", "main", "", "r", "user:u", AT)), None),
    ("liftHold", "audit:hold", HoldLifted("h2", AT, "user:u"), {"hold": "h2"}),
]


def begun(name, action):
    call = Call(principal=Principal("user:u"), registry="main", name=name, needs=(Need(action, "models/iris"),))
    return Operation.opened(call, AT)


@pytest.fixture
async def recorded(journal):
    trail = Trail(journal, "/test", now=lambda: AT)
    for name, action, effect, before in MADE:
        operation = begun(name, action)
        operation.before = before
        await trail.stored(operation, [effect])
    operation = begun("createModelVersion", "version:create")
    operation.version = "1"
    creation = Creation("iris", "1", "b", "user:u", ("user:u",), AT)
    await trail.stored(operation, [Registered("main", creation)])
    operation = begun("promote", "environment:promote")
    period = LivePeriod("production", "1", "b", AT, None, "user:u", operation.id, "r", live_as="iris")
    await trail.stored(operation, [MadeLive("main", "iris", period)])
    return journal


async def problems(url, archive=None):
    return (await asyncio.to_thread(examine, url, archive=archive)).problems


async def test_records_are_as_events_say_also_after_a_rename(recorded, url):
    assert await problems(url) == []
    tables = ("approvals", "evidence", "quarantines", "creations", "periods")
    await beside(url, *(f"UPDATE {name} SET model = 'rose'" for name in tables))
    assert await problems(url) == []


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE approvals SET body = replace(body, 'user:u', 'user:v') WHERE id = 'a1'", "approvals: a1 was edited"),
        ("UPDATE approvals SET body = replace(body, 'approve', 'reject') WHERE id = 'a1'", "approvals: a1 was edited"),
        ("UPDATE approvals SET binding = 'x' WHERE id = 'a1'", "approvals: a1 was edited"),
        ("UPDATE approvals SET behind = '[]' WHERE id = 'a1'", "approvals: a1 was edited"),
        ("UPDATE approvals SET version = '2' WHERE id = 'a1'", "approvals: a1 was edited"),
        ("UPDATE approvals SET revoked_at = 1 WHERE id = 'a1'", "approvals: a1 was edited: no event ended it"),
        ("UPDATE approvals SET revoked_at = NULL WHERE id = 'a2'", "approvals: a2 was edited: event 3 ended it"),
        ("DELETE FROM approvals WHERE id = 'a1'", "approvals: a1, which event 1 recorded, is missing"),
        ("UPDATE approvals SET id = 'a9' WHERE id = 'a2'", "approvals: a9 was put in"),
        ("UPDATE evidence SET body = replace(body, 'passed', 'failed')", "evidence: e1 was edited"),
        ("UPDATE evidence SET binding = 'x'", "evidence: e1 was edited"),
        ("DELETE FROM evidence", "evidence: e1, which event 4 recorded, is missing"),
        ("UPDATE quarantines SET reason = 'x' WHERE id = 'q1'", "quarantines: q1 was edited"),
        ("UPDATE quarantines SET lifted_at = 1 WHERE id = 'q1'", "quarantines: q1 was edited: no event ended it"),
        ("UPDATE quarantines SET lifted_at = NULL", "quarantines: q2 was edited: event 7 ended it"),
        ("DELETE FROM quarantines WHERE id = 'q1'", "quarantines: q1, which event 5 recorded, is missing"),
        ("UPDATE holds SET model = 'rose' WHERE id = 'h1'", "holds: h1 was edited"),
        ("UPDATE holds SET lifted_at = 1 WHERE id = 'h1'", "holds: h1 was edited: no event ended it"),
        ("DELETE FROM holds WHERE id = 'h1'", "holds: h1, which event 8 recorded, is missing"),
        ("UPDATE creations SET by = 'user:v'", "creations: version 1 of iris by user:v was edited or put in"),
        ("UPDATE periods SET operation = 'x'", "periods: 1 (version 1 of iris in production) was edited or put in"),
    ],
)
async def test_an_edit_beside_the_events_is_found(recorded, url, statement, problem):
    if not url.startswith("sqlite"):
        statement = statement.replace("replace(body,", "replace(body::text,").replace("by = 'user", '"by" = \'user')
        statement = statement.replace(") WHERE", ")::json WHERE") if "body =" in statement else statement
        statement = statement + "::json" if statement.endswith("'failed')") else statement
    await beside(url, statement)
    found = await problems(url)
    assert any(item.startswith(problem) for item in found), found


async def test_what_was_stored_too_late_is_not_missing(journal, url, monkeypatch):
    monkeypatch.setattr(journal, "_deadline", 0.0)  # it stores all the same, and takes it back
    trail = Trail(journal, "/test", now=lambda: AT)
    for name, action, effect, _ in (MADE[0], MADE[3]):
        with pytest.raises(JournalUnavailable):
            await trail.stored(begun(name, action), [effect])
    monkeypatch.undo()
    await journal.ping()
    await journal.ping()
    outcomes = [item["data"]["outcome"] for _, item in await journal.events({}, 0, 10)]
    assert await problems(url) == [], outcomes


async def test_of_records_whose_events_are_pruned_only_archive_and_journal_together_tell(recorded, url, tmp_path):
    await beside(url, "DELETE FROM holds", "UPDATE events SET phase = phase")
    retention = Retention(url, tmp_path / "a", keep_days=100, now=lambda: LATER, source="/test")
    assert (await retention.run()).pruned > 5
    assert await problems(url) == []
    assert await problems(url, tmp_path / "a") == [
        "holds: h1, which event 8 recorded, is missing",
        "holds: h2, which event 9 recorded, is missing",
    ]
    await beside(url, "UPDATE approvals SET binding = 'x' WHERE id = 'a1'")
    assert await problems(url) == []
    assert any("approvals: a1 was edited" in item for item in await problems(url, tmp_path / "a"))


async def test_no_digest_is_kept_of_what_could_be_guessed_by_it(journal):
    trail = Trail(journal, "/test", masks=Masks(("secret",), b"k" * 32))
    facts = {"tags": {"secret": "open sesame"}}
    hidden = Evidence("e2", "scan", "passed", "user:u", (), facts, "", AT)
    for evidence in (EVIDENCE, hidden):
        await trail.stored(begun("postEvidence", "evidence:post"), [Posted("main", "iris", "b", evidence)])
    records = [event["data"]["record"] for _, event in await journal.events({}, 0, 10)]
    assert ["sha256" in item for item in records] == [True, False]
