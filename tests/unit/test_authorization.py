"""Access: patterns, groups and roles, and the stock Casbin enforcer as the judge of ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import casbin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.authorization.authorizer import Authorizer
from service.authorization.doubts import doubts
from service.authorization.patterns import action_match, resource_match
from service.authorization.roles import MAX_DEPTH
from service.authorization.snapshot import Snapshot
from service.errors import BadConfiguration
from service.model import ACTIONS, Principal, resource
from service.resources import all_shapes, shapes_of

MODEL = Path(__file__).parent.parent.parent / "policies" / "model.conf"
ALLOW = "p, user:ann, main, models/*, model:read, allow\n"
ANN = Principal("user:ann")
Load = Callable[[str], Snapshot]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str) -> Snapshot:
        rows = tmp_path / "policy.csv"
        rows.write_text(text, encoding="utf-8")
        return Snapshot(MODEL, rows, ["main", "other"])

    return load


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        (
            "models/iris",
            ["models/iris"],
            ["models/iri", "models/iris2", "models/iris/versions", "models", "MODELS/iris"],
        ),
        ("models/*", ["models/iris", "models/a/versions", "models/a/versions/tags/k"], ["models", "experiments/iris"]),
        (
            "models/*/versions",
            ["models/iris/versions"],
            ["models/a/b/versions", "models/iris", "models/iris/versions/tags/k"],
        ),
        (
            "models/*/aliases/*",
            ["models/a/aliases/b", "models/a/aliases/b/c"],
            ["models/a/aliases", "models/a/b/aliases/c"],
        ),
        (
            "models/team-a-*",
            ["models/team-a-x", "models/team-a-"],
            ["models/team-b-x", "models/team-a", "models/team-a-x/versions"],
        ),
        ("models/team-a-*/versions", ["models/team-a-x/versions"], ["models/team-a-x", "models/team-b/versions"]),
        (
            "models/team-a-*/*",
            ["models/team-a-x/versions", "models/team-a-x/tags/k"],
            ["models/team-a-x", "models/b/versions"],
        ),
        ("*", ["audit", "models/a/versions"], []),
        ("audit", ["audit"], ["audit/x", "audits"]),
        ("models/a%2Cb", ["models/a%2Cb"], ["models/a,b", "models/a"]),
        ("models/a.b", ["models/a.b"], ["models/axb"]),
        ("models/%2A", ["models/%2A"], ["models/x"]),
    ],
)
def test_a_pattern_is_compared_segment_by_segment(pattern: str, covered: list[str], not_covered: list[str]) -> None:
    assert [asked for asked in covered if not resource_match(asked, pattern)] == []
    assert [asked for asked in not_covered if resource_match(asked, pattern)] == []


@pytest.mark.parametrize(
    "asked", ["models/a", "models/ab", "models/abc/versions", "models/b", "audit", "models/a/aliases/x"]
)
@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "models/*",
        "models/a*",
        "models/ab*",
        "models/abcd*",
        "models/a",
        "models/a/*",
        "models/*/versions",
        "models/a*/*",
        "models/*/*",
        "models/*/aliases/x*",
        "audit",
    ],
)
def test_the_index_finds_what_the_pattern_covers(load: Load, asked: str, pattern: str) -> None:
    found = load(f"p, user:ann, main, {pattern}, *, allow\n").decide(ANN, "main", asked, "model:read")
    assert found.allowed is resource_match(asked, pattern)


@given(st.text(min_size=1), st.text(min_size=1))
def test_no_name_reaches_beyond_its_segment(name: str, other: str) -> None:
    try:
        asked, pattern = resource("models", name), resource("models", other)
    except UnicodeEncodeError:
        return  # a lone surrogate names nothing
    assert resource_match(asked, "models/*")
    assert resource_match(asked, pattern) is (name == other)
    assert not resource_match(asked, "models/*/versions")
    assert "*" not in asked.removeprefix("models/")


@pytest.mark.parametrize(
    ("asked", "pattern", "covered"),
    [
        ("model:read", "model:read", True),
        ("model:read", "model:*", True),
        ("model:read", "*", True),
        ("model:read", "model:r*", False),
        ("model:read", "mod*", False),
        ("models:read", "model:*", False),
        ("model:read", "version:*", False),
        ("model:read", "model:reader", False),
        ("model:read", "MODEL:READ", False),
    ],
)
def test_an_action_is_exact_or_of_an_object_or_any(asked: str, pattern: str, covered: bool) -> None:
    assert action_match(asked, pattern) is covered


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        ("q, user:a, main, models/*, model:read, allow", 1, "unknown row type 'q'"),
        ("P, user:a, main, models/*, model:read, allow", 1, "unknown row type 'P'"),
        ("p, user:a, main, models/*, model:read", 38, "5 fields instead of 6"),
        ("p, user:a, main, models/a,b, model:read, allow", 42, "7 fields instead of 6"),
        ("g, user:a", 10, "2 fields instead of 3"),
        ("g, user:a, role:b, main", 20, "4 fields instead of 3"),
        ("g2, models/a, set:b, main", 22, "4 fields instead of 3"),
        ("p, ann, main, models/*, model:read, allow", 4, "subject 'ann'"),
        ("  p,   ann, main, models/*, model:read, allow", 8, "subject 'ann'"),
        ("p,\tann, main, models/*, model:read, allow", 4, "subject 'ann'"),
        ("p, *, main, models/*, model:read, allow", 4, r"subject '\*'"),
        ("p, user:, main, models/*, model:read, allow", 4, "subject 'user:'"),
        ("p, user:a:b, main, models/*, model:read, allow", 4, "subject 'user:a:b'"),
        ("p, owners, main, models/*, model:read, allow", 4, "subject 'owners' .* and is not owner"),
        ("g, user:a, lead", 12, "subject 'lead'"),
        ("g, user:a, owner", 12, "nobody is made owner by a row"),
        ("g, owner, owner", 11, "nobody is made owner by a row"),
        ("p, user:a, main, models/*, model:read, Allow", 40, "effect 'Allow'"),
        ("p, user:a, main, models/*, model:read, ", 40, "effect ''"),
        ("p, user:a, third, models/*, model:read, allow", 12, "registry 'third' is not configured"),
        ("p, user:a, ma*, models/*, model:read, allow", 12, r"registry 'ma\*' is not configured"),
        (
            "p, user:a, main, models/*, model:reads, allow",
            28,
            "unknown action 'model:reads'; .*model:create, .*model:read,",
        ),
        ("p, user:a, main, models/*, models:*, allow", 28, r"unknown action 'models:\*'"),
        ("p, user:a, main, models/*, model:r*, allow", 28, r"unknown action 'model:r\*'"),
        ("p, user:a, main, model/*, model:read, allow", 18, "does not begin with"),
        ("p, user:a, main, mod*, model:read, allow", 18, "does not begin with"),
        ("p, user:a, main, models/a*b, model:read, allow", 18, r"a \* that is not at the end"),
        ("p, user:a, main, models/**, model:read, allow", 18, r"a \* that is not at the end"),
        (
            "p, user:a, main, models/fraud/enviroments/production, *, deny",
            18,
            "no resource is like .* there are: .*environments",
        ),
        ("p, user:a, main, models/fraud/stages/production, *, deny", 18, "no resource is like"),
        ("p, user:a, main, models, model:read, allow", 18, "no resource is like"),
        ("p, user:a, main, experiments/a/runs/*, run:read, allow", 18, "no resource is like"),
        ("p, user:a, main, models//x, model:read, allow", 18, "empty segment"),
        ("p, user:a, main, models/, model:read, allow", 18, "empty segment"),
        ("p, user:a, main, models/a%2fb, model:read, allow", 18, "percent-encoded"),
        ('p, user:a, main, "models/a,b", model:read, allow', 18, "percent-encoded"),
        ('p, "user:a, b", main, "models/a,b", model:read, allow', 23, "percent-encoded"),
        ("p, user:a, main, models/caf\u00e9, model:read, allow", 18, "percent-encoded"),
        ("p, user:a, main, models/my%2Dmodel, *, deny", 18, "encodes '-' as %2D; write it as it is"),
        ("p, user:a, main, models/a/tags/%5F*, *, deny", 18, "encodes '_' as %5F; write it as it is"),
        ("p, user:a, main, set:s/aliases/%41, *, deny", 18, "encodes 'A' as %41; write it as it is"),
        ("p, user:a, main, models/a%C3, *, deny", 18, "bytes that are not UTF-8"),
        ("p, user:a, main, models/a%C3%28*, *, deny", 18, "bytes that are not UTF-8"),
        ("g2, models/%20a, set:s", 5, "encodes ' ' as %20; write it as it is"),
        ('p, user:a, main, models/a, model:read, "allow', 40, "not valid CSV"),
        ('p, "user:a" , main, models/a, model:read, allow', 12, "not valid CSV"),
        ('p, user:a, main, "models/a"x, model:read, allow', 28, "not valid CSV"),
        ("p, user:a\0, main, models/a, model:read, allow", 10, "holds NUL"),
        ("p, user:a, main, models/a, model:read, \x1ballow", 40, r"control character U\+001B"),
        ("p, user:a, main, models/a, model:read, \rallow", 40, r"control character U\+000D"),
        (f"p, user:{'a' * (10 << 20)}, main, models/a, model:read, allow", 16385, "a row of 10485803 characters"),
        ("g2, models/a*, set:s", 5, r"'models/a\*' is a pattern"),
        ("g2, models/a/versions, set:s", 5, "is not models/{name} or experiments/{name}"),
        ("g2, models/, set:s", 5, "is not models/{name} or experiments/{name}"),
        ("g2, models/caf\u00e9, set:s", 5, "is not models/{name} or experiments/{name}"),
        ("g2, audit, set:s", 5, "is not models/{name} or experiments/{name}"),
        ("g2, user:ann, set:s", 5, "is not models/{name} or experiments/{name}"),
        ("g2, set:a/b, set:s", 5, "the set 'set:a/b' is not set: and a name"),
        ("g2, models/a, role:s", 15, "the set 'role:s' is not set: and a name"),
        ("g2, models/a, set:", 15, "the set 'set:' is not set: and a name"),
        ("p, user:a, main, set:s*, model:read, allow", 18, r"the set 'set:s\*' is not set: and a name"),
        ("p, user:a, main, set:s/versons, model:read, allow", 18, "nothing below a model or experiment is like"),
        ("p, user:a, main, set:s/, model:read, allow", 18, "empty segment"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_bad_row_is_refused_with_file_line_and_column(load: Load, row: str, column: int, says: str) -> None:
    with pytest.raises(BadConfiguration, match=rf"policy\.csv:3:{column}: .*{says}"):
        load(f"# rows\n{ALLOW}{row}\n")


_NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda name: name == name.strip())


@given(_NAMES, st.booleans())
def test_every_name_can_be_written_in_one_way_and_in_no_other(tmp_path_factory, name: str, cut: bool) -> None:
    rows = tmp_path_factory.mktemp("p") / "policy.csv"
    written = resource("models", name)
    where = written[: -1 if cut and written[-3] != "%" and written[-2] != "%" else None] + ("*" if cut else "")
    rows.write_text(f'{ALLOW}p, user:ann, main, "{where}", *, deny\n')
    assert not Snapshot(MODEL, rows, ["main"]).decide(ANN, "main", written, "model:read").allowed
    other = "".join(f"%{byte:02X}" for byte in name.encode())
    if other != written.partition("/")[2]:
        rows.write_text(f"{ALLOW}p, user:ann, main, models/{other}, *, deny\n")
        with pytest.raises(BadConfiguration, match="write it as it is"):
            Snapshot(MODEL, rows, ["main"])


def test_every_bad_row_is_named_at_once(load: Load) -> None:
    with pytest.raises(BadConfiguration) as caught:
        load(f"x\n{ALLOW}\np, user:a, main\n")
    assert [line.split("policy.csv:")[1][:2] for line in caught.value.detail.splitlines()] == ["1:", "4:"]


def test_what_only_several_rows_show_is_named_with_the_rest(load: Load) -> None:
    rows = ["p, user:ann, main, set:riks, *, deny", "g2, set:a, set:a", "p, ann", *chain(10).splitlines()]
    with pytest.raises(BadConfiguration) as caught:
        load("\n".join(rows) + "\n")
    said = [line.partition("policy.csv:")[2] for line in caught.value.detail.splitlines()]
    assert [line[:4] for line in said] == ["1:1:", "2:1:", "3:7:", "4:1:"]
    with pytest.raises(BadConfiguration) as caught:  # where a row of a set is bad, that the set is empty is no news
        load("p, user:ann, main, set:risk, *, deny\ng2, models/a*, set:risk\n")
    assert len(caught.value.detail.splitlines()) == 1


def test_a_hundred_problems_are_named_and_the_rest_is_counted(load: Load) -> None:
    with pytest.raises(BadConfiguration) as caught:
        load("x\n" * 1000)
    lines = caught.value.detail.splitlines()
    assert len(lines) == 101
    assert lines[-1].endswith("policy.csv: and 900 more problems")


@pytest.mark.parametrize("kept", [5, 9, 20, 35, 44, 45])
def test_a_file_that_was_cut_within_its_last_row_is_refused(load: Load, kept: int) -> None:
    row = "g, group:leads, role:lead-of-something-in-emea\n"
    load(ALLOW + row)
    with pytest.raises(BadConfiguration, match=rf"policy\.csv:2:{kept + 1}: the last line does not end"):
        load(ALLOW + row[:kept])


def test_a_character_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    rows = tmp_path / "policy.csv"
    rows.write_bytes(ALLOW.encode() + b"g, user:\xc3\xa4\xff, role:x\n")
    with pytest.raises(BadConfiguration, match=r"policy\.csv:2:10: not UTF-8"):
        Snapshot(MODEL, rows, ["main"])


@pytest.mark.parametrize("text", ["", "\n\n", "# only words\n", "g, user:ann, role:x\n"])
def test_an_empty_policy_is_refused(load: Load, text: str) -> None:
    with pytest.raises(BadConfiguration, match=r"policy\.csv:1:1: an empty policy"):
        load(text)


@pytest.mark.parametrize(
    "model",
    [
        "",
        "[policy_definition]\np = x\n",
        MODEL.read_text().replace("sub, reg, obj, act, eft", "sub, obj, act"),
        MODEL.read_text().replace(" && !some(where (p.eft == deny))", ""),
        MODEL.read_text().replace("r.reg == p.reg", "true"),
        MODEL.read_text().replace("g2 = _, _\n", ""),
        MODEL.read_text().replace("g2 = _, _\n", "g2 = _, _, _\n"),
        MODEL.read_text().replace('p.reg == "*"', 'p.reg == " *"'),
        MODEL.read_text().replace("&& (p.reg", "& & (p.reg"),
        MODEL.read_text().replace("actionMatch(r.act, p.act)", "r.act == p.act"),
    ],
)
def test_another_access_model_is_refused(tmp_path: Path, model: str) -> None:
    path, rows = tmp_path / "model.conf", tmp_path / "policy.csv"
    path.write_text(model)
    rows.write_text(ALLOW)
    with pytest.raises(BadConfiguration, match=r"model\.conf:1: not the access model"):
        Snapshot(path, rows, ["main"])


def test_a_quoted_comma_is_part_of_its_field(load: Load) -> None:
    policy = load('p, "user:Ann, Lee", main, models/a%2Cb, model:read, allow\n')
    asked = resource("models", "a,b")
    assert policy.decide(Principal("user:Ann, Lee"), "main", asked, "model:read").allowed


@pytest.mark.parametrize("denied", ["user:ann", "group:g", "role:x"])
@pytest.mark.parametrize("allowed", ["user:ann", "group:g", "role:x"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_deny_beats_every_allow_wherever_it_stands_and_is_named(
    load: Load, allowed: str, denied: str, turned: bool
) -> None:
    rows = [f"p, {allowed}, *, models/*, *, allow\n", f"p, {denied}, main, models/secret-*, model:*, deny\n"]
    policy = load("g, user:ann, role:x\n" + "".join(reversed(rows) if turned else rows))
    ann = Principal("user:ann", frozenset({"group:g"}))
    opened, closed = (policy.decide(ann, "main", f"models/{name}", "model:read") for name in ("a", "secret-a"))
    assert (opened.allowed, opened.row) == (True, f"policy.csv:{3 if turned else 2}")
    assert (closed.allowed, closed.row, closed.denied_by_row) == (False, f"policy.csv:{2 if turned else 3}", True)


@pytest.mark.parametrize(
    ("rows", "allowed"),
    [
        ("models/*, model:read, allow", True),
        ("models/*/environments/*, model:read, allow", True),
        ("models/{}/environments/production, model:read, allow", True),
        ("models/{}, model:read, allow", False),  # as a pattern says
        ("models/*, model:read, allow; models/{}, model:read, deny", False),
        ("models/*, model:read, allow; models/{}, *, deny", False),
        ("models/{}/*, model:read, allow; models/{}, model:read, deny", False),
        ("models/*, model:read, allow; models/{}/environments/production, model:read, deny", False),
        ("models/*, model:read, allow; models/{}/environments/staging, model:read, deny", True),
        ("models/*, model:read, allow; models/{}/versions, model:read, deny", True),
        ("models/*, model:read, allow; models/{}, model:update, deny", True),
        ("models/*, model:read, allow; models/other, model:read, deny", True),
    ],
)
@pytest.mark.parametrize("name", ["iris", "environments"])
def test_an_environment_is_read_as_part_of_its_model(load: Load, rows: str, allowed: bool, name: str) -> None:
    policy = load("".join(f"p, user:ann, *, {row.strip()}\n" for row in rows.format(*[name] * 2).split(";")))
    asked = resource("models", name, "environments", "production")
    assert policy.decide_whole(ANN, "main", asked, "model:read").allowed is allowed


def test_only_reading_an_environment_asks_for_its_model(load: Load) -> None:
    policy = load("p, user:ann, *, models/*, *, allow\np, user:ann, *, models/a, *, deny\n")
    for where, action in (("environments/production", "environment:promote"), ("versions", "version:read")):
        assert policy.decide_whole(ANN, "main", f"models/a/{where}", action).allowed


def test_of_several_rows_the_first_of_the_file_is_named(load: Load) -> None:
    roles = "".join(f"g, user:ann, role:{name}\n" for name in "zab")
    rows = "".join(f"p, role:{name}, {where}, models/{what}, *, allow\n" for name, where, what in ("b*x", "z*a", "a*a"))
    rows = rows.replace("models/x", "models/*")
    policy = load(rows + rows + roles)
    assert policy.decide(ANN, "main", "models/a", "model:read").row == "policy.csv:1"
    assert [row.line for row in policy.matching(ANN, "main", "models/a", "model:read")] == [1, 2, 3]
    denied = rows.replace("allow", "deny")
    policy = load(rows + denied + denied + roles)
    assert policy.decide(ANN, "main", "models/a", "model:read").row == "policy.csv:4"
    assert [row.line for row in policy.matching(ANN, "main", "models/a", "model:read")] == [4, 5, 6, 1, 2, 3]


def test_casbins_own_matcher_and_effect_have_the_last_word(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(ALLOW)
    evaluated = policy._matcher._expression.eval
    asked = []

    def never(names: dict[str, str]) -> bool:
        asked.append(evaluated(names))
        return False

    monkeypatch.setattr(policy._matcher._expression, "eval", never)
    assert not policy.decide(ANN, "main", "models/a", "model:read").allowed
    assert asked == [True]
    monkeypatch.undo()
    monkeypatch.setattr(policy._matcher._effector, "final_effect", lambda _: casbin.effect.Effector.DENY)
    assert not policy.decide(ANN, "main", "models/a", "model:read").allowed


def test_no_row_no_right(load: Load) -> None:
    policy = load(ALLOW)
    for principal, registry, asked, action in [
        (Principal("user:bob"), "main", "models/a", "model:read"),
        (Principal("user:ANN"), "main", "models/a", "model:read"),
        (ANN, "other", "models/a", "model:read"),
        (ANN, "main", "models", "model:read"),
        (ANN, "main", "models/a", "model:update"),
    ]:
        decision = policy.decide(principal, registry, asked, action)
        assert (decision.allowed, decision.row, decision.denied_by_row) == (False, None, False)
        assert decision.revision == policy.revision


def test_groups_of_a_credential_are_memberships_for_that_request_only(load: Load) -> None:
    policy = load("p, role:lead, main, models/*, model:read, allow\ng, group:leads, role:lead\n")
    leader = Principal("user:ann", frozenset({"group:leads"}))
    assert policy.roles_of(leader) == {"user:ann", "group:leads", "role:lead"}
    assert policy.decide(leader, "main", "models/a", "model:read").allowed
    assert not policy.decide(ANN, "main", "models/a", "model:read").allowed
    assert not policy.decide(Principal("user:ann", frozenset({"group:lead"})), "main", "models/a", "model:read").allowed


def chain(length: int) -> str:
    return "".join(f"g, {f'role:{i}' if i else 'group:g'}, role:{i + 1}\n" for i in range(length))


def test_roles_may_be_nested_so_deep_and_no_deeper(load: Load) -> None:
    policy = load(f"p, role:{MAX_DEPTH}, main, audit, audit:read, allow\n{chain(MAX_DEPTH)}")
    assert policy.decide(Principal("user:ann", frozenset({"group:g"})), "main", "audit", "audit:read").allowed
    with pytest.raises(BadConfiguration, match=r"policy\.csv:2:1: 'group:g' has roles nested deeper than 9"):
        load(ALLOW + chain(MAX_DEPTH + 1))


def test_roles_in_a_circle_are_one_role(load: Load) -> None:
    policy = load(
        ALLOW + "g, role:a, role:b\ng, role:b, role:c\ng, role:c, role:a\ng, user:ann, role:b\ng, role:d, role:d\n"
    )
    assert policy.roles_of(ANN) == {"user:ann", "role:a", "role:b", "role:c"}


def test_reload_takes_a_good_file_and_keeps_the_old_on_a_bad_one(tmp_path: Path) -> None:
    rows = tmp_path / "policy.csv"
    rows.write_text(ALLOW)
    authorizer = Authorizer(MODEL, rows, ["main"])
    first = authorizer.snapshot
    assert authorizer.reload() is False
    rows.write_text("p, user:ann\n")
    with pytest.raises(BadConfiguration, match=r"policy\.csv:1"):
        authorizer.reload()
    rows.unlink()
    with pytest.raises(BadConfiguration, match=r"policy\.csv"):
        authorizer.reload()
    assert authorizer.snapshot is first
    assert authorizer.decide(ANN, "main", "models/a", "model:read").allowed
    rows.write_text(ALLOW.replace("allow", "deny"))
    assert authorizer.reload() is True
    assert authorizer.snapshot.revision != first.revision
    assert not authorizer.decide(ANN, "main", "models/a", "model:read").allowed


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("p, role:scientits, *, models/*, model:read, allow", "nobody is in role:scientits"),
        ("g, user:ann, role:idle", "no row gives role:idle anything"),
        ("p, user:a, *, models/fraud, environment:promote, allow", "asked on .* but on models/{model}/environments/"),
        ("p, user:a, *, models/fraud/environments/prodution, environment:promote, deny", "there are: staging, prod"),
        ("g2, models/a, set:s", "no row is about set:s"),
        ("p, owner, *, experiments/*, run:read, allow", "only models have an owner"),
        ("p, owner, *, audit, audit:read, allow", "only models have an owner"),
    ],
)
def test_what_changes_no_answer_is_doubted_with_its_line(load: Load, tmp_path: Path, row: str, says: str) -> None:
    found = doubts(load(ALLOW + row + "\n"), tmp_path / "policy.csv", ("staging", "production"))
    assert len(found) == 1
    assert re.search(rf"policy\.csv:2:1: .*{says}", found[0])


def test_a_circle_of_roles_is_doubted_and_the_shipped_rows_are_not(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "policy.csv"
    circle = load("p, role:a, main, models/*, model:read, allow\ng, role:a, role:b\ng, role:b, role:a\n")
    assert [line.partition("csv:")[2][:12] for line in doubts(circle, path, ())] == ["2:1: a circl", "3:1: a circl"]
    shipped = load((MODEL.parent / "policy.csv").read_text())
    assert doubts(shipped, path, ("staging", "production")) == []


def test_each_action_has_a_resource_in_the_guide() -> None:
    guide = (MODEL.parent.parent / "docs/policies.md").read_text()
    for action in sorted(ACTIONS):
        assert shapes_of(action), action
    for shape in all_shapes():
        written = re.sub(r"{(model|experiment)}", "{name}", shape)
        assert f"`{written}`" in guide or shape in ("access", "grants"), shape
