"""Who owns a model: what the events of the journal say, and what rows that name owner mean."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.authorization.authorizer import Authorizer
from service.authorization.snapshot import Content, Snapshot
from service.errors import JournalUnavailable
from service.model import Principal, resource
from service.owners import Owners

MODEL = Path(__file__).parent.parent.parent / "policies" / "model.conf"
ROWS = """\
p, owner, *, models/*, model:update, allow
p, owner, main, models/*/environments/*, approval:create, deny
p, role:lead, *, models/*, *, allow
p, role:keeper, *, models/*/aliases/*, alias:*, allow
g, owner, role:keeper
g, user:lead, role:lead
"""


class Events:
    """A journal of which only the owners' part is asked."""

    def __init__(self, page: int = 5000) -> None:
        self.events: list[dict[str, Any]] = []
        self.page = page
        self.down = False
        self.asked = 0

    async def model_changes(self, after: int) -> tuple[int, list[dict[str, Any]]]:
        self.asked += 1
        if self.down:
            raise JournalUnavailable("down")
        until = min(len(self.events), after + self.page)
        return until, self.events[after:until]

    def add(
        self, by: str, kind: str, model: str, *, registry: str = "main", phase: str = "outcome", **more: Any
    ) -> dict:
        data = {
            "registry": registry,
            "model": model,
            "phase": phase,
            "outcome": "succeeded",
            "actor": {"subject": by},
            "change": {"kind": kind, "model": model, **more},
            "after": None,
        }
        self.events.append({"data": data})
        return self.events[-1]


@pytest.fixture
async def journal():
    return Events()


@pytest.fixture
async def owners(journal):
    made = Owners(journal)
    await made.load()
    yield made
    await made.close()


async def test_an_owner_is_who_created_it_until_it_is_deleted_or_made_again(journal, owners):
    await owners.recorded(journal.add("user:ann", "ModelCreate", "fraud"))
    assert owners.owns("user:ann", "main", "models/fraud")
    assert owners.owns("user:ann", "main", "models/fraud/versions/tags/k")
    assert owners.models_of("user:ann", "main") == {"fraud"}
    for who, registry, where in (
        ("user:bob", "main", "models/fraud"),
        ("user:ann", "other", "models/fraud"),
        ("user:ann", "main", "models/frau"),
        ("user:ann", "main", "models/fraud2"),
        ("user:ann", "main", "experiments/fraud"),
        ("user:ann", "main", "models"),
        ("user:ann", "main", "fraud"),
    ):
        assert not owners.owns(who, registry, where), where
    await owners.recorded(journal.add("user:bob", "ModelDelete", "fraud"))
    assert not owners.owns("user:ann", "main", "models/fraud")
    assert not owners.owns("user:bob", "main", "models/fraud")
    await owners.recorded(journal.add("user:bob", "ModelCreate", "fraud"))
    assert owners.owns("user:bob", "main", "models/fraud")
    assert owners.models_of("user:ann", "main") == frozenset()


async def test_a_renamed_model_keeps_its_owner_and_not_who_renamed_it(journal, owners):
    journal.add("user:ann", "ModelCreate", "a")
    journal.add("user:eve", "ModelCreate", "b")
    journal.add("user:eve", "ModelDelete", "b", phase="reconciled")
    await owners.recorded(journal.add("user:bob", "ModelRename", "a", new_name="b"))
    assert owners.models_of("user:ann", "main") == {"b"}
    assert not owners.owns("user:bob", "main", "models/b")
    await owners.recorded(journal.add("user:bob", "ModelRename", "unknown", new_name="b"))
    assert owners.models_of("user:ann", "main") == frozenset()  # what is named b now is something else


async def test_a_name_is_compared_as_it_is_and_not_as_it_is_encoded(journal, owners):
    await owners.recorded(journal.add("user:ann", "ModelCreate", "a,b*\u00e9"))
    assert owners.owns("user:ann", "main", resource("models", "a,b*\u00e9", "versions"))
    assert not owners.owns("user:ann", "main", "models/a")


async def test_a_creation_that_was_read_back_makes_nobody_owner(journal, owners):
    await owners.recorded(journal.add("user:eve", "ModelCreate", "fraud", phase="reconciled"))
    assert not owners.owns("user:eve", "main", "models/fraud")
    await owners.recorded(journal.add("user:ann", "ModelCreate", "mine"))
    await owners.recorded(journal.add("user:eve", "ModelCreate", "mine", phase="reconciled"))
    assert owners.owns("user:ann", "main", "models/mine")


async def test_a_baseline_names_the_owner_of_what_nobody_created_here(journal, owners):
    for model in ("old", "mine"):
        if model == "mine":
            journal.add("user:ann", "ModelCreate", "mine")
        event = journal.add("user:admin", "", model)
        event["data"] |= {"change": None, "after": {"kind": "baseline", "owner": "user:bob"}}
        await owners.recorded(event)
    assert owners.owns("user:bob", "main", "models/old")
    assert owners.owns("user:ann", "main", "models/mine")
    assert not owners.owns("user:bob", "main", "models/mine")
    await owners.recorded(journal.add("user:eve", "AliasSet", "other", after={"owner": "user:eve"}))
    assert not owners.owns("user:eve", "main", "models/other")


@given(
    st.lists(st.tuples(st.sampled_from("cdr"), st.sampled_from("abc"), st.sampled_from("abc"), st.sampled_from("xyz"))),
    st.integers(1, 3),
)
async def test_however_it_is_paged_the_order_of_the_journal_counts(steps, page):
    journal, expected = Events(page), {}
    for kind, name, other, who in steps:
        if kind == "c":
            journal.add(who, "ModelCreate", name)
            expected[name] = who
        elif kind == "d":
            journal.add(who, "ModelDelete", name)
            expected.pop(name, None)
        elif name != other:
            journal.add(who, "ModelRename", name, new_name=other)
            owner = expected.pop(name, None)
            expected.pop(other, None)
            expected.update({other: owner} if owner else {})
    owners = Owners(journal)
    await owners.load()
    await owners.close()
    for name, who in itertools.product("abc", "xyz"):
        assert owners.owns(who, "main", f"models/{name}") is (expected.get(name) == who)
        assert (name in owners.models_of(who, "main")) is (expected.get(name) == who)


async def test_another_replica_is_followed_and_a_journal_that_is_down_stops_nothing(journal, owners, monkeypatch):
    monkeypatch.setattr("service.owners._PACE_SECONDS", 0)
    second = Owners(journal)
    await second.load()
    journal.add("user:ann", "ModelCreate", "fraud")  # by somebody else
    before = journal.asked
    while not second.owns("user:ann", "main", "models/fraud"):
        assert journal.asked < before + 1000
        await asyncio.sleep(0)
    journal.down = True
    event = journal.add("user:bob", "ModelCreate", "later")
    await second.recorded(event)
    assert second.owns("user:ann", "main", "models/fraud")
    assert not second.owns("user:bob", "main", "models/later")
    journal.down = False
    while not second.owns("user:bob", "main", "models/later"):
        assert journal.asked < before + 10_000
        await asyncio.sleep(0)
    await second.close()


async def test_who_cannot_read_the_journal_at_first_says_so(journal):
    journal.down = True
    owners = Owners(journal)
    with pytest.raises(JournalUnavailable):
        await owners.load()
    assert not owners.loaded
    await owners.recorded(journal.add("user:ann", "ModelCreate", "fraud"))  # nothing is asked before it is loaded
    assert journal.asked == 1


def snapshot(rows: str = ROWS) -> Snapshot:
    return Snapshot(MODEL, Path("policy.csv"), ["main", "other"], content=Content(MODEL.read_bytes(), rows.encode()))


@pytest.mark.parametrize(
    ("who", "owns", "where", "action", "row"),
    [
        ("user:ann", True, "models/fraud", "model:update", "policy.csv:1"),
        ("user:ann", False, "models/fraud", "model:update", None),
        ("user:ann", True, "models/fraud", "model:delete", None),
        ("user:ann", True, "models/fraud/aliases/blue", "alias:set", "policy.csv:4"),
        ("user:lead", True, "models/fraud/environments/production", "approval:create", "policy.csv:2"),
        ("user:lead", False, "models/fraud/environments/production", "approval:create", "policy.csv:3"),
    ],
)
def test_an_owner_has_one_role_more(who: str, owns: bool, where: str, action: str, row: str | None) -> None:
    decision = snapshot().decide(Principal(who), "main", where, action, owns=owns)
    assert decision.row == row
    assert decision.allowed is (row not in (None, "policy.csv:2"))


@pytest.mark.parametrize(
    "principal",
    [
        Principal("owner"),
        Principal("user:owner"),
        Principal("user:x", frozenset({"owner"})),
        Principal("user:x", frozenset({"group:owner"})),
        Principal("user:x", acting_for="user:ann"),
        Principal("service:owner"),
    ],
)
async def test_no_name_and_no_group_makes_an_owner(journal, owners, principal, tmp_path):
    await owners.recorded(journal.add("user:ann", "ModelCreate", "fraud"))
    await owners.recorded(journal.add("group:team", "ModelCreate", "team"))
    (tmp_path / "policy.csv").write_text(ROWS)
    authorizer = Authorizer(MODEL, tmp_path / "policy.csv", ["main"], owners=owners)
    assert authorizer.decide(Principal("user:ann"), "main", "models/fraud", "model:update").allowed
    assert not authorizer.decide(principal, "main", "models/fraud", "model:update").allowed
    assert not authorizer.decide(principal, "main", "models/team", "model:update").allowed


async def test_a_search_can_find_what_one_owns(journal, owners, tmp_path):
    await owners.recorded(journal.add("user:ann", "ModelCreate", "fraud"))
    await owners.recorded(journal.add("user:ann", "ModelCreate", "elsewhere", registry="other"))
    (tmp_path / "policy.csv").write_text(ROWS + "p, owner, main, models/*, model:read, allow\n")
    authorizer = Authorizer(MODEL, tmp_path / "policy.csv", ["main", "other"], owners=owners)
    ann = Principal("user:ann")
    assert authorizer.scope(ann, "main", "models", "model:read").names == {"fraud"}
    assert authorizer.scope(ann, "other", "models", "model:read").is_empty
    assert authorizer.scope(ann, "main", "experiments", "run:read").is_empty
    assert authorizer.scope(Principal("user:bob"), "main", "models", "model:read").is_empty


async def test_a_policy_that_begins_to_name_owner_waits_until_it_is_known_who_owns_what(journal, tmp_path):
    path = tmp_path / "policy.csv"
    path.write_text("p, user:ann, main, models/*, *, allow\n")
    journal.add("user:ann", "ModelCreate", "fraud")
    owners = Owners(journal)
    authorizer = Authorizer(MODEL, path, ["main"], owners=owners)
    first = authorizer.revision
    path.write_text("p, user:ann, main, models/*, *, allow\np, owner, main, models/*, *, deny\n")
    journal.down = True
    with pytest.raises(JournalUnavailable):
        await authorizer.follow()
    assert authorizer.revision == first
    journal.down = False
    assert await authorizer.follow() is True
    assert not authorizer.decide(Principal("user:ann"), "main", "models/fraud", "model:read").allowed
    assert authorizer.decide(Principal("user:ann"), "main", "models/other", "model:read").allowed
    await owners.close()
