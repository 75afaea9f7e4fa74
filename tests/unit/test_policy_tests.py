"""Users' tests of access: rows expected, lists, coverage, rows that change no answer, the report."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree as ET

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from service.__main__ import main
from service.authorization.coverage import Coverage
from service.authorization.patterns import resource_match
from service.authorization.shadows import pattern_covers, shadowed
from service.authorization.snapshot import Snapshot
from service.model import Principal
from service.outcomes import Outcome, junit
from tests.conftest import ROOT, write_configuration

MODEL = ROOT / "policies/model.conf"
ROWS = """\
p, role:reader, *, models/*, model:read, allow
g, user:ann, role:reader
p, user:ann, main, models/secret, model:read, deny
"""
READ = {"principal": "user:ann", "action": "model:read", "resource": "models/iris", "expect": "allow"}


@pytest.fixture
def run(tmp_path, capsys):
    def run(*cases, rows=ROWS, options=()):
        (tmp_path / "policy.csv").write_text(rows)
        (tmp_path / "tests").mkdir(exist_ok=True)
        (tmp_path / "tests/access.yaml").write_text(yaml.safe_dump(list(cases)))
        access = {"model": str(MODEL), "rows": str(tmp_path / "policy.csv")}
        status = main(["policy", "test", "--config", str(write_configuration(tmp_path, access=access)), *options])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"by": "policy.csv:1"}, "access: 1 passed, 0 failed"),
        ({"by": "policy.csv:3"}, "expected to be decided by policy.csv:3, decided by policy.csv:1"),
        ({"by": "none"}, "expected to be decided by none, decided by policy.csv:1"),
        ({"expect": "deny"}, "expected deny, decided by policy.csv:1"),
        ({"principal": "user:bob", "expect": "deny", "by": "none"}, "access: 1 passed, 0 failed"),
        ({"principal": "user:bob"}, "expected allow, decided by no row"),
        ({"principal": ["user:ann", "user:bob"]}, "access: 1 passed, 1 failed"),
        (
            {"principal": ["user:ann", "role:reader"], "resource": ["models/a", "models/b", "models/c"]},
            "access: 6 passed, 0 failed",
        ),
    ],
)
def test_a_case_says_who_may_and_by_which_row(run, change, says):
    status, said = run({**READ, **change})
    assert says in said
    assert status == (0 if " 0 failed" in said.partition("coverage")[0] else 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"action": "model:raed"}, "access.yaml:1: unknown action 'model:raed'"),
        ({"principal": "ann"}, "the subject 'ann'"),
        ({"registry": "man"}, "no registry is named 'man'"),
        ({"resource": "models/*"}, "is a pattern; name one resource"),
        ({"by": "policy.csv:2"}, "no permission row is at 'policy.csv:2'"),
        ({"by": "policy.csv:99"}, "no permission row is at"),
        ({"action": []}, "action"),
        ({"principal": [f"user:u{number}" for number in range(10_001)]}, "10001 questions in one case"),
    ],
)
def test_a_case_that_nobody_can_ask_is_refused(run, change, says):
    status, said = run({**READ, **change})
    assert (status, says in said) == (2, True), said


def test_coverage_names_each_row_that_no_test_exercises(run):
    status, said = run(READ, options=["--min-coverage", "67"])
    assert "policy.csv:3: no test exercises it: p, user:ann, main, models/secret, model:read, deny" in said
    assert "coverage: 2 of 3 rows, 66%" in said
    assert (status, "the coverage is under 67%" in said) == (1, True)
    assert run(READ, options=["--min-coverage", "66"])[0] == 0
    secret = {**READ, "resource": "models/secret", "expect": "deny", "by": "policy.csv:3"}
    status, said = run(READ, secret, options=["--min-coverage", "100"])
    assert (status, "coverage: 3 of 3 rows, 100%" in said) == (0, True)


def test_a_membership_is_exercised_by_who_decides_through_it_alone(run):
    status, said = run({**READ, "principal": "role:reader"}, options=["--min-coverage", "100"])
    assert (status, "policy.csv:2: no test exercises it: g, user:ann, role:reader" in said) == (1, True)


def test_coverage_of_no_access_tables_cannot_be_told(tmp_path, capsys):
    configuration = write_configuration(tmp_path)
    (tmp_path / "tests/environments").mkdir(parents=True)
    shipped = ROOT / "policies/tests/environments/demo.yaml"
    (tmp_path / "tests/environments/a.yaml").write_text(shipped.read_text())
    options = ["--config", str(configuration), "--min-coverage", "100", str(tmp_path / "tests")]
    assert main(["policy", "test", *options]) == 2
    assert "there are no tables of access here" in capsys.readouterr().err


def test_the_shipped_tests_exercise_each_shipped_row(tmp_path, capsys):
    tests = str(ROOT / "policies/tests")
    assert main(["policy", "test", "--config", str(write_configuration(tmp_path)), "--min-coverage", "100", tests]) == 0
    said = capsys.readouterr().out
    assert "100%" in said
    assert "no answer" not in said


@pytest.mark.parametrize("index", range(len((ROOT / "policies/policy.csv").read_text().splitlines())))
def test_without_any_one_shipped_row_a_case_fails(tmp_path, capsys, index):
    lines = (ROOT / "policies/policy.csv").read_text().splitlines()
    if lines[index].startswith(("p,", "g,")):
        lines[index] = ""
        (tmp_path / "policy.csv").write_text("\n".join([*lines, ""]))
        access = {"model": str(MODEL), "rows": str(tmp_path / "policy.csv")}
        configuration = write_configuration(tmp_path, access=access)
        assert main(["policy", "test", "--config", str(configuration), str(ROOT / "policies/tests")]) == 1


PATTERNS = ["*", "models/*", "models/a", "models/a*", "models/a*/*", "models/*/versions", "models/a/versions"]
PATTERNS += ["models/*/tags/*", "models/a/*", "models/*/tags/t*", "models/ab/tags/t1", "audit", "models/*/*"]
RESOURCES = ["audit", "models/a", "models/ab", "models/b", "models/a/versions", "models/ab/versions", "models/b/x/y"]
RESOURCES += ["models/a/tags/t1", "models/ab/tags/t2", "models/b/tags/x", "models/a/tags/t1/more", "experiments/e"]
RESOURCES += [
    "models/ab/tags/t1",
    "models/b/tags/t1",
    "models/a/x",
    "models/abc/x/y",
    "models/a/versions/tags/k",
    "models/-/versions",
    "models/-",
    "x/y/z",
]


@pytest.mark.parametrize(("wider", "pattern"), [*itertools.product(PATTERNS, PATTERNS)])
def test_a_pattern_covers_another_if_it_covers_all_that_the_other_does(wider, pattern):
    covered = [asked for asked in RESOURCES if resource_match(asked, pattern)]
    assert pattern_covers(wider, pattern) == all(resource_match(asked, wider) for asked in covered)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (
            ["p, role:a, *, models/*, *, allow", "p, role:a, main, models/x, model:read, allow"],
            [("policy.csv:2", "policy.csv:1")],
        ),
        (
            ["p, role:a, main, models/x, model:read, allow", "p, role:a, main, models/x, model:read, allow"],
            [("policy.csv:2", "policy.csv:1")],
        ),
        (
            [
                "g, role:b, role:a",
                "p, role:a, *, models/*, model:*, allow",
                "p, role:b, main, models/x, model:read, allow",
            ],
            [("policy.csv:3", "policy.csv:2")],
        ),
        (
            ["p, role:a, *, models/*, model:read, deny", "p, role:a, *, models/x, model:read, allow"],
            [("policy.csv:2", "policy.csv:1")],
        ),
        (["p, role:a, *, models/*, model:read, allow", "p, role:a, *, models/x, model:read, deny"], []),
        (
            ["p, role:a, main, models/*, model:read, allow", "p, role:a, other, models/x, model:read, allow"],
            [],
        ),
        (["p, role:a, *, models/x, model:read, allow", "p, role:b, *, models/x, model:read, allow"], []),
        (
            ["g, role:a, role:b", "p, role:a, *, models/x, *, allow", "p, role:b, *, models/x, model:read, allow"],
            [],
        ),
        (
            [
                "g, role:a, role:b",
                "g, role:b, role:a",
                "p, role:a, *, models/x, *, deny",
                "p, role:b, *, models/x, *, deny",
            ],
            [("policy.csv:4", "policy.csv:3")],
        ),
    ],
)
def test_a_row_that_another_one_covers_is_listed_with_it(policy_of, rows, found):
    assert [(item.row.where, item.by.where) for item in shadowed(policy_of(*rows))] == found


SETS = ["g2, models/a, set:s", "g2, models/ab, set:s", "g2, set:s, set:t", "g2, models/b, set:t"]


@pytest.mark.parametrize(
    ("wider", "narrower", "covers"),
    [
        ("models/*", "set:s/*", True),
        ("models/a*", "set:s", True),
        ("models/a*", "set:t", False),
        ("models/a/*", "set:s/*", False),
        ("set:s/*", "models/a/versions", True),
        ("set:s/*", "models/b/versions", False),
        ("set:t/*", "models/b/versions", True),
        ("set:s/*", "models/*/versions", False),
        ("set:s", "models/a", True),
        ("set:s", "models/a/*", False),
        ("set:t/*", "set:s/versions", True),
        ("set:s/*", "set:t/versions", False),
        ("set:t/versions", "set:s/*", False),
        ("set:t", "set:s", True),
    ],
)
def test_a_set_is_its_members(policy_of, wider, narrower, covers):
    rows = [f"p, role:a, main, {wider}, model:*, allow", f"p, role:a, main, {narrower}, model:read, allow"]
    found = {item.row.where for item in shadowed(policy_of(*SETS, *rows))}
    assert ("policy.csv:6" in found) is covers


def test_what_an_owner_may_is_tested_and_covered(run):
    rows = "g, owner, role:keeper\np, role:keeper, main, set:s, model:update, allow\ng2, models/iris, set:s\n"
    update = {**READ, "action": "model:update"}
    status, said = run({**update, "owns": True}, rows=rows, options=["--min-coverage", "100"])
    assert (status, "3 of 3 rows" in said) == (0, True), said
    assert run(update, rows=rows)[0] == 1


@given(st.data())
def test_without_its_shadowed_rows_a_policy_answers_the_same(tmp_path_factory, data):
    some = st.sampled_from
    subjects = ["user:ann", "role:y", "role:z", "owner"]
    row = st.tuples(
        some(subjects),
        some(["main", "*"]),
        some([*PATTERNS, "set:s", "set:s/*", "set:t/versions", "set:t/*"]),
        some(["model:read", "model:*", "*", "tag:set"]),
        some(["allow", "deny"]),
    )
    rows = [f"p, {', '.join(item)}" for item in data.draw(st.lists(row, min_size=1, max_size=7))]
    link = st.tuples(some(subjects), some(subjects[1:3]))
    rows += [f"g, {', '.join(item)}" for item in data.draw(st.lists(link, max_size=3))]
    rows += SETS
    path = tmp_path_factory.mktemp("p") / "policy.csv"
    path.write_text("\n".join([*rows, ""]))
    whole = Snapshot(MODEL, path, ["main", "other"])
    gone = {int(item.row.where.rpartition(":")[2]) - 1 for item in shadowed(whole)}
    path.write_text("".join(f"{row}\n" for index, row in enumerate(rows) if index not in gone))
    rest = Snapshot(MODEL, path, ["main", "other"])
    for subject, registry, where, action in itertools.product(
        subjects, ["main", "other"], RESOURCES, ["model:read", "tag:set"]
    ):
        asked = (Principal(subject), registry, where, action)
        owns = subject == "owner"
        before, after = whole.decide_whole(*asked, owns=owns), rest.decide_whole(*asked, owns=owns)
        assert (before.allowed, before.denied_by_row) == (after.allowed, after.denied_by_row), asked


def test_what_several_rows_cover_together_is_not_found(policy_of):
    several = ["p, role:a, main, models/*, model:read, allow", "p, role:a, other, models/*, model:read, allow"]
    assert shadowed(policy_of(*several, "p, role:a, *, models/*, model:read, allow"))[0].by.where == "policy.csv:3"
    assert [item.row.where for item in shadowed(policy_of("p, role:a, *, models/*, model:read, allow", *several))] == [
        "policy.csv:2",
        "policy.csv:3",
    ]


def test_a_row_that_is_covered_is_said_with_the_one_that_covers_it(run):
    _, said = run(READ, rows=ROWS + "p, user:ann, main, models/iris, model:read, allow\n")
    assert "policy.csv:4: it changes no answer: policy.csv:1 covers it" in said
    _, said = run(READ, rows=ROWS + "p, user:ann, main, models/secret, model:read, allow\n")
    assert "policy.csv:4: it changes no answer: policy.csv:" in said


def test_the_report_is_junit(run, tmp_path):
    report = tmp_path / "report.xml"
    status, _ = run(READ, {**READ, "principal": "user:bob"}, options=["--junit", str(report)])
    root = ET.fromstring(report.read_text())
    assert (status, root.tag, root.attrib) == (1, "testsuites", {"tests": "2", "failures": "1", "errors": "0"})
    (suite,) = root
    assert suite.attrib == {"name": "access", "tests": "2", "failures": "1", "errors": "0", "skipped": "0"}
    good, bad = suite
    assert {*good.attrib} == {"name", "classname", "file", "line"}
    assert (good.attrib["name"], list(good)) == ("user:ann model:read models/iris", [])
    (failure,) = bad
    assert (failure.tag, failure.attrib["message"]) == ("failure", "expected allow, decided by no row")


def test_questions_that_differ_have_names_that_differ(run, tmp_path):
    report = tmp_path / "report.xml"
    bob = {**READ, "principal": "user:bob", "expect": "deny"}
    cases = [bob, {**bob, "groups": ["group:x"]}, {**bob, "owns": True}, {**bob, "groups": ["group:x", "group:y"]}]
    run(*cases, options=["--junit", str(report)])
    names = [case.attrib["name"] for case in ET.fromstring(report.read_text()).iter("testcase")]
    assert names == [
        "user:bob model:read models/iris",
        "user:bob of group:x model:read models/iris",
        "user:bob as owner model:read models/iris",
        "user:bob of group:x, group:y model:read models/iris",
    ]


@given(st.text(), st.text())
def test_no_text_breaks_the_report(name, problem):
    root = ET.fromstring(junit({"access": [Outcome("a.yaml:1", name, (problem,))]}))
    assert len(root[0][0]) == 1


def test_a_report_that_cannot_be_written_is_said(run, tmp_path):
    status, said = run(READ, options=["--junit", str(tmp_path / "no/such/place.xml")])
    assert (status, "--junit" in said) == (2, True)


def test_a_denial_by_no_row_exercises_nothing(policy_of):
    coverage = Coverage(policy_of("p, user:ann, main, models/a, model:read, allow"))
    bob = Principal("user:bob")
    coverage.note(bob, "models/a", coverage.snapshot.decide_whole(bob, "main", "models/a", "model:read"))
    assert coverage.counts == (0, 1)
