"""Why it was decided so: the row, the way to it, what nearly matched; who can; in words and as a document."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.__main__ import main
from service.authorization.explaining import MAX_NEAR, explain, who_can
from service.authorization.snapshot import Snapshot
from service.model import Principal
from tests.conftest import ROOT, write_configuration

MODEL = ROOT / "policies/model.conf"
ANN = Principal("user:ann")


def test_the_row_and_the_way_to_it_are_named(policy_of):
    snapshot = policy_of(
        "g, group:x, role:y",
        "g, role:y, role:z",
        "g, user:ann, role:q",
        "p, role:z, main, models/*, model:read, allow",
    )
    found = explain(snapshot, Principal("user:ann", frozenset({"group:x"})), "main", "models/iris", "model:read")
    assert found.allowed
    assert str(found.row) == "policy.csv:4: p, role:z, main, models/*, model:read, allow"
    assert [(step.member, step.role, step.where) for step in found.path] == [
        ("user:ann", "group:x", None),
        ("group:x", "role:y", "policy.csv:1"),
        ("role:y", "role:z", "policy.csv:2"),
    ]
    assert found.revision == snapshot.revision
    assert "path: user:ann -> group:x (of the credential) -> role:y (policy.csv:1)" in found.text()


def test_the_way_is_the_shortest_and_circles_end(policy_of):
    snapshot = policy_of(
        "g, user:ann, role:a",
        "g, role:a, role:b",
        "g, role:b, role:a",
        "g, role:b, role:c",
        "g, role:a, role:c",
        "p, role:c, main, models/*, model:read, allow",
        "p, role:d, main, models/*, model:read, allow",
    )
    path = explain(snapshot, ANN, "main", "models/iris", "model:read").path
    assert [step.role for step in path] == ["role:a", "role:c"]


@pytest.mark.parametrize(
    ("row", "differs", "says"),
    [
        ("p, user:ann, main, models/fraud, model:read, allow", ["resource"], "models/fraud does not cover models/iris"),
        ("p, user:ann, main, models/iris/*, model:read, allow", ["resource"], "what is below models/iris, not models/"),
        ("p, user:ann, main, models/iris, model:update, allow", ["action"], "its action model:update is not model:rea"),
        ("p, user:ann, other, models/iris, model:read, allow", ["registry"], "its registry other is not main"),
        ("p, role:y, main, models/iris, model:read, allow", ["subject"], "user:ann is not in role:y"),
        ("p, user:ann, other, models/x, model:read, allow", ["resource", "registry"], "; its registry other is not"),
    ],
)
def test_a_row_that_nearly_matched_says_why_not(policy_of, row, differs, says):
    found = explain(policy_of(row), ANN, "main", "models/iris", "model:read")
    assert (found.allowed, found.row) == (False, None)
    assert [list(near.differs) for near in found.near] == [differs]
    assert says in found.near[0].because
    assert found.near[0].where == "policy.csv:1"
    assert says in found.text()


def test_a_pattern_for_the_thing_itself_says_that_it_does_not_reach_below(policy_of):
    snapshot = policy_of("p, user:ann, main, models/iris, model:read, allow")
    found = explain(snapshot, ANN, "main", "models/iris/environments/production", "model:read")
    assert found.near[0].because == "models/iris covers nothing below itself; models/iris/* does"


def test_what_is_far_is_not_near(policy_of):
    snapshot = policy_of(
        "p, role:y, main, models/fraud, model:read, allow", "p, user:ann, other, models/x, alias:set, allow"
    )
    assert explain(snapshot, ANN, "main", "models/iris", "model:read").near == ()


def test_the_nearest_come_first_and_no_more_than_ten(policy_of):
    rows = [f"p, role:r{number}, main, models/iris, model:read, allow" for number in range(20)]
    rows += ["p, user:ann, main, models/a, model:read, allow", "p, user:ann, main, models/iri, model:read, allow"]
    near = explain(policy_of(*rows), ANN, "main", "models/iris", "model:read").near
    assert len(near) == MAX_NEAR
    assert [item.where for item in near[:3]] == ["policy.csv:22", "policy.csv:21", "policy.csv:1"]


def test_an_allow_that_a_deny_beats_is_named(policy_of):
    snapshot = policy_of(
        "p, user:ann, main, models/*, model:read, allow", "p, user:ann, main, models/iris, model:read, deny"
    )
    found = explain(snapshot, ANN, "main", "models/iris", "model:read")
    assert found.row.where == "policy.csv:2"
    assert found.near[0].because == "it matches, and the deny of policy.csv:2 beats it"


def test_an_environment_that_its_model_closes_says_so(policy_of):
    snapshot = policy_of("p, user:ann, main, *, *, allow", "p, user:ann, main, models/iris, model:read, deny")
    found = explain(snapshot, ANN, "main", "models/iris/environments/production", "model:read")
    assert (found.allowed, found.row.where, found.decided_on) == (False, "policy.csv:2", "models/iris")
    assert "on: models/iris, which models/iris/environments/production is read as part of" in found.text()


@given(st.data())
def test_an_explanation_agrees_with_the_decision(tmp_path_factory, data):
    subjects = ["user:ann", "group:x", "role:y", "role:z"]
    patterns = ["models/iris", "models/*", "*", "models/*/versions"]
    some = st.sampled_from
    row = st.tuples(
        some(subjects), some(["main", "*"]), some(patterns), some(["model:read", "*"]), some(["allow", "deny"])
    )
    link = st.tuples(some(subjects), some(subjects[1:]))
    rows = [f"p, {', '.join(item)}" for item in data.draw(st.lists(row, min_size=1, max_size=6, unique=True))]
    rows += [f"g, {', '.join(item)}" for item in data.draw(st.lists(link, max_size=4))]
    path = tmp_path_factory.mktemp("p") / "policy.csv"
    path.write_text("\n".join([*rows, ""]))
    snapshot = Snapshot(MODEL, path, ["main"])
    principal = Principal("user:ann", frozenset(data.draw(st.sets(st.just("group:x")))))
    decision = snapshot.decide_whole(principal, "main", "models/iris", "model:read")
    found = explain(snapshot, principal, "main", "models/iris", "model:read")
    assert (found.allowed, found.row and found.row.where) == (decision.allowed, decision.row)
    for step in found.path:  # each step is a row of the file, or the credential's own group
        at = rows[int(step.where.rpartition(":")[2]) - 1] if step.where else None
        assert at == f"g, {step.member}, {step.role}" or (at is None and step.role in principal.groups)
    if found.row:
        last = found.path[-1].role if found.path else principal.subject
        assert found.row.text.split(", ")[1] == last
    listed = {holder.subject for holder in who_can(snapshot, "main", "models/iris", "model:read").allowed}
    for name in subjects:
        assert (name in listed) == snapshot.decide(Principal(name), "main", "models/iris", "model:read").allowed


def test_who_can_lists_holders_and_who_is_kept_away_by_name(policy_of):
    snapshot = policy_of(
        "p, role:y, *, models/*, model:read, allow",
        "g, group:x, role:y",
        "g, user:bob, role:y",
        "p, user:bob, main, models/iris, model:read, deny",
        "p, role:other, main, models/fraud, model:read, allow",
    )
    found = who_can(snapshot, "main", "models/iris", "model:read")
    assert [(item.subject, item.row.where) for item in found.allowed] == [
        ("group:x", "policy.csv:1"),
        ("role:y", "policy.csv:1"),
    ]
    assert [(item.subject, item.row.where) for item in found.denied] == [("user:bob", "policy.csv:4")]
    assert "denied by a row:\n  user:bob by policy.csv:4" in found.text()


def test_the_way_of_a_model_into_a_set_is_named(policy_of):
    snapshot = policy_of(
        "g2, models/iris, set:a",
        "g2, set:a, set:b",
        "p, user:ann, main, set:b/*, *, allow",
        "p, user:bob, main, set:a, model:read, allow",
    )
    found = explain(snapshot, ANN, "main", "models/iris/versions", "version:read")
    assert [(step.member, step.role, step.where) for step in found.sets] == [
        ("models/iris", "set:a", "policy.csv:1"),
        ("set:a", "set:b", "policy.csv:2"),
    ]
    assert "sets: models/iris -> set:a (policy.csv:1) -> set:b (policy.csv:2)" in found.text()
    other = explain(snapshot, ANN, "main", "models/other/versions", "version:read")
    assert (other.row, [near.differs for near in other.near]) == (None, [("resource",)])
    assert [item.subject for item in who_can(snapshot, "main", "models/iris", "model:read").allowed] == ["user:bob"]


def test_an_owner_comes_to_its_rows_by_the_journal(policy_of):
    snapshot = policy_of("g, owner, role:keeper", "p, role:keeper, main, models/*, model:update, allow")
    owner = explain(snapshot, ANN, "main", "models/iris", "model:update", owns=True)
    assert [(step.role, step.where) for step in owner.path] == [("owner", "journal"), ("role:keeper", "policy.csv:1")]
    assert explain(snapshot, ANN, "main", "models/iris", "model:update").row is None
    assert [item.subject for item in who_can(snapshot, "main", "models/iris", "model:update").allowed] == [
        "owner",
        "role:keeper",
    ]


def test_a_row_for_the_owner_nearly_matched_who_is_not(policy_of):
    found = explain(
        policy_of("p, owner, main, models/*, model:update, allow"), ANN, "main", "models/iris", "model:update"
    )
    assert (found.near[0].differs, found.near[0].because) == (("subject",), "user:ann did not create it")


def _run(capsys, *arguments):
    status = main(["policy", *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def configured(tmp_path):
    return ("--config", str(write_configuration(tmp_path)))


PROMOTE = ("main", "models/iris/environments/production", "environment:promote")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("service:ci", *PROMOTE, "--group", "group:ci"), 0),
        (("user:ann", *PROMOTE), 1),
        (("ann", *PROMOTE), 2),
        (("user:ann", "main", "models/iris", "environment:promote"), 2),
    ],
)
def test_the_status_of_explain_tells(capsys, configured, arguments, status):
    assert _run(capsys, "explain", *arguments, *configured)[0] == status


def test_explain_and_who_can_give_json(capsys, configured):
    status, out, _ = _run(
        capsys, "explain", "service:ci", *PROMOTE, "--group", "group:ci", "--format", "json", *configured
    )
    assert (status, json.loads(out)["row"]["text"].split(", ")[1]) == (0, "role:pipeline")
    assert [step["role"] for step in json.loads(out)["path"]] == ["group:ci", "role:pipeline"]
    status, out, _ = _run(capsys, "who-can", PROMOTE[2], *PROMOTE[:2], "--format", "json", *configured)
    assert (status, {item["subject"] for item in json.loads(out)["allowed"]}) == (
        0,
        {"group:ci", "group:ml-leads", "group:platform", "role:lead", "role:pipeline", "role:platform"},
    )


def test_who_can_refuses_what_nobody_can_ask(capsys, configured):
    status, _, err = _run(capsys, "who-can", "model:raed", "main", "models/iris", *configured)
    assert (status, "unknown action 'model:raed'" in err) == (2, True)
