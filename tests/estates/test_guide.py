"""The guide's way from a grown estate, walked: observe, report, suggest, diff, enforce."""

from __future__ import annotations

import json

import pytest

from service.__main__ import main
from tests.api.test_modes_of_access import mode
from tests.client import Client
from tests.promotion.flow import alias_of, register, simple

FIRST = "p, group:platform, *, *, *, allow\n"


async def a_day(it, client):
    """Do what people do; return what each was answered."""
    answers = []
    for model in ("fraud", "churn", "claims"):
        await register(it, client, model=model)
    scientist, viewer, lead = (client.be(name) for name in ("user:scientist", "user:viewer", "user:lead"))
    answers += [
        await scientist.rpc("POST", "registered-models/alias", name="fraud", alias="champion", version="1"),
        await scientist.rpc("POST", "model-versions/set-tag", name="fraud", version="1", key="team", value="a"),
        await scientist.rpc("POST", "registered-models/alias", name="churn", alias="dev", version="1"),
        await lead.rpc("DELETE", "registered-models/alias", name="churn", alias="dev"),
        await viewer.rpc("GET", "registered-models/get", name="fraud"),
        await viewer.rpc("GET", "registered-models/get", name="fraud"),
        await viewer.rpc("GET", "registered-models/alias", name="fraud", alias="champion"),
        await viewer.rpc("GET", "registered-models/search", max_results=10),
        await viewer.rpc("POST", "runs/search", experiment_ids=["0"]),
        await lead.rpc("PATCH", "registered-models/update", name="claims", description="by the lead"),
    ]
    return [answer.status for answer in answers]


def run(capsys, tmp_path, *words):
    capsys.readouterr()
    status = main(["policy", *words, "--config", str(tmp_path / "gateway.yaml")])
    said = capsys.readouterr()
    return status, said.out, said.err


async def observed_day(running, tmp_path):
    settings = {**mode("observe", tmp_path, FIRST), "environments": simple(tmp_path)}
    async with running(directory=tmp_path, **settings) as it:
        client = Client(it.application.asgi)
        statuses = await a_day(it, client)
        assert statuses == [200] * len(statuses)
        await it.application.gateway.tally.flush()
        assert await it.events(phase="denied") == []


@pytest.mark.parametrize("generalise", [(), ("--generalise", "3")])
async def test_the_steps_of_the_guide(running, tmp_path, capsys, generalise):
    await observed_day(running, tmp_path)
    status, report, _ = run(capsys, tmp_path, "report", "--format", "json")
    assert status == 1
    rows = json.loads(report)["would_deny"]
    by_viewer = {(row["action"], row["resource"]): row["count"] for row in rows if row["subject"] == "user:viewer"}
    assert by_viewer["model:read", "models/fraud"] == 3  # two reads, and the search that showed it
    assert {row["remedy"] for row in rows} > {"p, user:viewer, main, models/fraud, model:read, allow"}

    status, suggested, _ = run(capsys, tmp_path, "suggest", *generalise)
    assert status == 0
    assert (status, suggested) == run(capsys, tmp_path, "suggest", *generalise)[:2]
    if generalise:
        assert "p, user:scientist, main, models/*, model:create, allow" in suggested
        assert "stands for 3 names: churn, claims, fraud" in suggested
    else:
        assert "p, user:scientist, main, models/churn, model:create, allow" in suggested
        assert "*" not in "".join(line for line in suggested.splitlines() if line.startswith("p,"))
    assert "p, user:lead, main, models/churn/aliases/dev, alias:delete, allow" in suggested
    (tmp_path / "new.csv").write_text(FIRST + suggested)

    status, changes, _ = run(capsys, tmp_path, "diff", "current", str(tmp_path / "new.csv"), "--format", "json")
    assert status == 1
    assert {change["allowed"] for change in json.loads(changes)["changes"]} == {True}

    async with running(
        directory=fresh(tmp_path, "enforced"),
        **{**mode("enforce", tmp_path / "enforced", FIRST + suggested), "environments": simple(tmp_path)},
    ) as it:
        client = Client(it.application.asgi)
        statuses = await a_day(it, client)
        assert statuses == [200] * len(statuses)
        assert alias_of(it, model="fraud") == "1"
        assert await it.events(phase="denied") == []
        # and nothing else than that
        lead = client.be("user:lead")
        other = await lead.rpc("POST", "registered-models/alias", name="fraud", alias="champion", version="1")
        assert other.status == 403


def fresh(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


async def test_a_policy_that_is_the_same_changes_nothing(running, tmp_path, capsys):
    await observed_day(running, tmp_path)
    assert run(capsys, tmp_path, "diff", "current", str(tmp_path / "few.csv"))[0] == 0
    assert run(capsys, tmp_path, "report", "--until", "2020-01-01", "--since", "2019-01-01")[0] == 0
    status, out, err = run(capsys, tmp_path, "suggest", "--until", "2020-01-01", "--since", "2019-01-01")
    assert (status, out) == (1, "")
    assert "nothing" in err


async def test_a_diff_says_what_would_be_denied_and_by_which_row(running, tmp_path, capsys, monkeypatch):
    await observed_day(running, tmp_path)
    (tmp_path / "old.csv").write_text("p, user:viewer, *, models/*, *, allow\np, user:lead, *, *, *, allow\n")
    old = (tmp_path / "old.csv").read_text()
    text = old.replace("\n", "\np, user:viewer, *, models/fraud, *, deny\n", 1)
    monkeypatch.setattr("sys.stdin.read", lambda: text, raising=False)
    status, out, _ = run(capsys, tmp_path, "diff", str(tmp_path / "old.csv"), "-")
    assert status == 1
    assert "user:viewer  model:read on main/models/fraud  (old: old.csv:1, new: standard input:2;" in out
    assert "would be allowed now" not in out
    one = run(capsys, tmp_path, "diff", str(tmp_path / "old.csv"), "current", "--last", "1", "--format", "markdown")
    assert one[1].startswith("1 events: ")


async def test_a_diff_knows_deny_rows_on_what_marks_an_environment(running, tmp_path, capsys):
    await observed_day(running, tmp_path)
    (tmp_path / "old.csv").write_text("p, user:scientist, *, *, *, allow\n")
    (tmp_path / "new.csv").write_text(
        "p, user:scientist, *, *, *, allow\np, user:scientist, *, models/*/aliases/champion, alias:set, deny\n"
    )
    status, out, _ = run(
        capsys, tmp_path, "diff", str(tmp_path / "old.csv"), str(tmp_path / "new.csv"), "--format", "json"
    )
    (change,) = json.loads(out)["changes"]
    assert (status, change["action"], change["resource"]) == (1, "alias:set", "models/fraud/aliases/champion")
    assert (change["allowed"], change["old_row"], change["new_row"]) == (False, "old.csv:1", "new.csv:2")


async def test_a_diff_knows_who_owned_what_when(running, tmp_path, capsys):
    rows = "p, group:data-scientists, *, models/*, model:create, allow\n"
    own = "p, owner, *, models/*, *, allow\n"
    (tmp_path / "without.csv").write_text(FIRST + rows)
    (tmp_path / "with.csv").write_text(FIRST + rows + own)
    async with running(directory=tmp_path, **mode("enforce", tmp_path, FIRST + rows + own)) as it:
        ann = Client(it.application.asgi, "user:scientist")
        lead = ann.be("user:lead")
        assert (await ann.rpc("POST", "registered-models/create", name="fraud")).status == 200
        assert (await ann.rpc("PATCH", "registered-models/update", name="fraud", description="x")).status == 200
        assert (await lead.rpc("PATCH", "registered-models/update", name="fraud", description="x")).status == 403
        assert (await ann.rpc("DELETE", "registered-models/delete", name="fraud")).status == 200
        assert (await ann.rpc("PATCH", "registered-models/update", name="fraud", description="x")).status == 403
    old, new = str(tmp_path / "with.csv"), str(tmp_path / "without.csv")
    status, found, _ = run(capsys, tmp_path, "diff", old, new, "--format", "json")
    changes = [(item["subject"], item["action"], item["count"]) for item in json.loads(found)["changes"]]
    assert (status, sorted(changes)) == (
        1,
        [("user:scientist", "model:delete", 1), ("user:scientist", "model:update", 1)],
    )
    assert run(capsys, tmp_path, "diff", old, old)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("suggest", "--since", "yesterday"), "neither a duration"),
        (("suggest", "--registry", "none"), "no"),
        (("report", "--since", "2020-01-01", "--until", "2019-01-01"), "not before"),
        (("diff", "-", "-"), "only one"),
        (("diff", "current", "absent.csv"), "absent.csv"),
    ],
)
async def test_what_cannot_run_says_so(running, tmp_path, capsys, words, said):
    async with running(directory=tmp_path):
        pass
    status, out, err = run(capsys, tmp_path, *words)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
