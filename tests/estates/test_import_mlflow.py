"""Rows for the permissions of MLflow's basic-auth app decide as a real server does."""

from __future__ import annotations

import asyncio

import pytest
import yaml

from service.__main__ import main
from service.errors import BadConfiguration
from service.estates.mlflow_permissions import Estate, Grant, grants_of, read
from service.estates.rows import load
from service.model import Principal
from tests.conftest import ROOT, write_configuration
from tests.estates.auth_server import serving

MODEL = ROOT / "policies/model.conf"
USERS = ("ann", "bob", "eve", "mia", "zed", "boss")
VERSION = {"name": "fraud", "version": "1"}


def settle(server):
    """Make users with permissions of every kind."""
    for name in USERS:
        server.add_user(name)
    server.call("admin", "PATCH", "2.0/mlflow/users/update-admin", username="boss", is_admin=True)
    study = server.done("2.0/mlflow/experiments/create", name="churn study")["experiment_id"]
    for model in ("fraud", "secret"):
        server.done("2.0/mlflow/registered-models/create", name=model)
        run = server.done("2.0/mlflow/runs/create", experiment_id=study)["run"]["info"]
        source = f"{run['artifact_uri']}/model"
        server.done("2.0/mlflow/model-versions/create", name=model, source=source, run_id=run["run_id"])
    for user, kind, name, permission in (
        ("ann", "experiment", study, "EDIT"),
        ("ann", "registered_model", "fraud", "MANAGE"),
        ("bob", "registered_model", "fraud", "READ"),
        ("eve", "registered_model", "fraud", "EDIT"),
        ("eve", "experiment", study, "MANAGE"),
        ("mia", "registered_model", "secret", "DENY"),
    ):
        grant = {"username": user, "resource_type": kind, "resource_id": name, "permission": permission}
        server.done("3.0/mlflow/users/permissions/grant", **grant)
    role = server.done("3.0/mlflow/roles/create", name="readers", workspace="default")["role"]["id"]
    for kind in ("registered_model", "experiment"):
        permission = {"role_id": role, "resource_type": kind, "resource_pattern": "*", "permission": "READ"}
        server.done("3.0/mlflow/roles/permissions/add", **permission)
    server.done("3.0/mlflow/roles/assign", username="mia", role_id=role)
    return study


def questions(study, run):
    """List calls of MLflow's API and what the gateway asks for each; the last ones take away."""
    where = {"experiment": "experiments/churn study", "fraud": "models/fraud", "secret": "models/secret"}
    yield "GET", f"2.0/mlflow/experiments/get?experiment_id={study}", {}, ("experiment:read", where["experiment"])
    yield "GET", f"2.0/mlflow/runs/get?run_id={run}", {}, ("run:read", where["experiment"])
    yield "GET", "2.0/mlflow/registered-models/get?name=fraud", {}, ("model:read", where["fraud"])
    yield "GET", "2.0/mlflow/registered-models/get?name=secret", {}, ("model:read", where["secret"])
    yield "GET", "2.0/mlflow/model-versions/get?name=fraud&version=1", {}, ("version:read", "models/fraud/versions")
    yield "GET", "2.0/mlflow/model-versions/get?name=secret&version=1", {}, ("version:read", "models/secret/versions")
    tag = {"key": "k", "value": "v"}
    staged = {**VERSION, "stage": "Staging"}
    in_study = {"experiment_id": study}
    for method, path, fields, asked in (
        ("POST", "experiments/set-experiment-tag", {**in_study, **tag}, ("experiment:update", "experiment")),
        ("POST", "runs/create", in_study, ("run:create", "experiment")),
        ("POST", "runs/set-tag", {"run_id": run, **tag}, ("run:update", "experiment")),
        ("PATCH", "registered-models/update", {"name": "fraud", "description": "x"}, ("model:update", "fraud")),
        ("PATCH", "model-versions/update", {**VERSION, "description": "x"}, ("version:update", "fraud/versions")),
        ("POST", "registered-models/set-tag", {"name": "fraud", **tag}, ("tag:set", "fraud/tags/k")),
        ("DELETE", "registered-models/delete-tag", {"name": "fraud", "key": "k"}, ("tag:delete", "fraud/tags/k")),
        ("POST", "model-versions/set-tag", {**VERSION, **tag}, ("tag:set", "fraud/versions/tags/k")),
        ("DELETE", "model-versions/delete-tag", {**VERSION, "key": "k"}, ("tag:delete", "fraud/versions/tags/k")),
        ("POST", "registered-models/alias", {**VERSION, "alias": "a"}, ("alias:set", "fraud/aliases/a")),
        ("DELETE", "registered-models/alias", {"name": "fraud", "alias": "a"}, ("alias:delete", "fraud/aliases/a")),
        ("POST", "model-versions/transition-stage", staged, ("stage:set", "fraud/stages/Staging")),
        ("POST", "registered-models/create", {"name": "new"}, ("model:create", "new")),
        ("POST", "runs/delete", {"run_id": run}, ("run:delete", "experiment")),
    ):  # fmt: skip
        head, _, inside = asked[1].partition("/")
        place = "/".join([where.get(head, f"models/{head}"), *([inside] if inside else [])])
        yield method, f"2.0/mlflow/{path}", fields, (asked[0], place)


def imported(server, tmp_path, capsys, *more):
    (tmp_path / "password").write_text(server.passwords["admin"])
    registry = {"kind": "mlflow", "url": server.url, "username": "admin", "password_file": "password"}
    file = write_configuration(tmp_path, registries={"main": registry})
    capsys.readouterr()
    status = main(["policy", "import", "mlflow", "--registry", "main", "--config", str(file), *more])
    said = capsys.readouterr()
    assert (status, said.err) == (0, "")
    return said.out


@pytest.mark.real
@pytest.mark.parametrize("default", ["NO_PERMISSIONS", "READ"])
def test_the_rows_decide_as_the_server_does(tmp_path, capsys, default):
    with serving(tmp_path, default) as server:
        study = settle(server)
        text = imported(server, tmp_path, capsys, "--default-permission", default)
        assert text == imported(server, tmp_path, capsys, "--default-permission", default)
        assert server.passwords["admin"] not in text
        snapshot = load(text, MODEL, ["main"])
        differences, answers = [], set()
        for user in USERS:
            run = server.done("2.0/mlflow/runs/create", experiment_id=study)["run"]["info"]["run_id"]
            server.done("2.0/mlflow/registered-models/set-tag", name="fraud", key="k", value="v")
            server.done("2.0/mlflow/model-versions/set-tag", **VERSION, key="k", value="v")
            server.done("2.0/mlflow/registered-models/alias", **VERSION, alias="a")
            for method, path, fields, (action, where) in questions(study, run):
                status, _ = server.call(user, method, path, **fields)
                decision = snapshot.decide_whole(Principal(f"user:{user}"), "main", where, action)
                answers.add(decision.allowed)
                if decision.allowed is (status == 403):
                    differences.append((user, action, where, status, decision.row))
            server.call("admin", "DELETE", "2.0/mlflow/registered-models/delete", name="new")
        assert differences == []
        assert answers == {True, False}
        (tmp_path / "users").write_text("# all of them\nann\nbob\neve\nmia\nzed\nboss\nadmin\n")
        named = imported(server, tmp_path, capsys, "--default-permission", default, "--users", str(tmp_path / "users"))
        assert named == text


def rows(estate, default="NO_PERMISSIONS"):
    return grants_of(estate, "main", default).text()


def estate(*grants, **more):
    return Estate({"ann": False}, {"user:ann": grants}, (), {"1": "churn study"}, **more)


@pytest.mark.parametrize(
    ("grant", "expected"),
    [
        (Grant("registered_model", "a,b", "READ"), "p, user:ann, main, models/a%2Cb, model:read, allow"),
        (Grant("prompt", "*", "USE"), "p, user:ann, main, models/*/versions, version:read, allow"),
        (Grant("experiment", "1", "DENY"), "p, user:ann, main, experiments/churn study, *, deny"),
        (Grant("registered_model", "x", "DENY"), "p, user:ann, main, models/x/*, *, deny"),
        (Grant("run", "*", "EDIT"), "p, user:ann, main, experiments/*, run:create, allow"),
        (Grant("workspace", "*", "USE"), "p, user:ann, main, models/*, model:create, allow"),
        (Grant("registered_model", "x", "NO_PERMISSIONS"), "#   not said by a row: NO_PERMISSIONS on the registered"),
        (Grant("experiment", "9", "READ"), "#   not said by a row: READ on the experiment 9: there is no such"),
        (Grant("scorer", "1/s", "READ"), "#   not said by a row: READ on the scorer 1/s: the gateway has no resource"),
        (Grant("registered_model", "x", "OWN"), "#   not said by a row: OWN on the registered_model x: an unknown"),
    ],
)  # fmt: skip
def test_each_kind_of_permission(grant, expected):
    text = rows(estate(grant))
    assert expected in text
    load(text, MODEL, ["main"])


def test_no_permissions_denies_where_the_default_would_allow():
    assert "p, user:ann, main, models/x, *, deny" in rows(
        estate(Grant("registered_model", "x", "NO_PERMISSIONS")), "READ"
    )


def test_names_that_no_row_can_say_are_left_out():
    text = rows(Estate({"a:b": False, "ok": True}, {"user:a:b": []}, (("user:ok", "role:a:b"),), {}))
    assert "Left out: the user 'a:b'" in text
    assert "g, user:ok, role:mlflow-admin" in text
    load(text, MODEL, ["main"])


def asking(answers):
    async def ask(path, **fields):
        return answers.get((path, *fields.values()))

    return ask


OLD = {
    ("/api/2.0/mlflow/users/get", "ann"): {
        "user": {
            "username": "ann",
            "is_admin": False,
            "experiment_permissions": [{"experiment_id": "1", "permission": "EDIT"}],
            "registered_model_permissions": [{"name": "fraud", "permission": "MANAGE"}],
        }
    },
    ("/api/2.0/mlflow/experiments/get", "1"): {"experiment": {"name": "churn study"}},
}


def test_a_server_of_mlflow_2_that_lists_no_users():
    found = asyncio.run(read(asking(OLD), "default", ["ann"]))
    assert found.grants == {
        "user:ann": [Grant("experiment", "1", "EDIT"), Grant("registered_model", "fraud", "MANAGE")]
    }
    assert found.experiments == {"1": "churn study"}
    with pytest.raises(BadConfiguration, match="--users"):
        asyncio.run(read(asking(OLD), "default"))
    with pytest.raises(BadConfiguration, match="no user 'bob'"):
        asyncio.run(read(asking(OLD), "default", ["bob"]))


def test_roles_of_other_workspaces_are_left_out():
    role = {"name": "r", "workspace": "other", "permissions": []}
    users = {("/api/2.0/mlflow/users/list",): {"users": [{"username": "ann", "is_admin": False, "roles": [role]}]}}
    found = asyncio.run(read(asking(users), "default"))
    assert (found.roles, found.left_out) == ((), ("the role r of the workspace other",))


def test_a_registry_that_is_not_there_is_named(tmp_path, capsys):
    file = write_configuration(tmp_path)
    arguments = ["policy", "import", "mlflow", "--config", str(file), "--registry"]
    assert main([*arguments, "none"]) == 2
    assert "no MLflow registry is named 'none'" in capsys.readouterr().err
    assert yaml.safe_load(file.read_text())["registries"]["main"]["url"] == "http://127.0.0.1:1"
    assert main([*arguments, "main"]) == 2
    assert "cannot be asked" in capsys.readouterr().err
