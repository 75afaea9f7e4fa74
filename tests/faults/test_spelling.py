"""A registry on a database that does not tell case apart, a real MLflow server, opens no second spelling."""

from __future__ import annotations

import sqlite3
import subprocess
import sys

import pytest

from service.backends.http import HttpTransport
from service.model import Request
from tests.client import Client
from tests.conftest import ROOT, start_mlflow, stop_mlflow

POLICY = """
p, group:platform, *, *, *, allow
p, group:data-scientists, *, *, *, allow
p, user:scientist, *, models/fraud/*, *, deny
p, user:scientist, *, models/fraud, *, deny
p, user:scientist, *, experiments/payroll, *, deny
p, user:scientist, *, models/open/versions/tags/reviewed, *, deny
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("nocase")
    database = directory / "mlflow.db"
    upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    done = subprocess.run(upgrade, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with sqlite3.connect(database) as connection:  # as MySQL's default collation would have made it
        connection.execute("PRAGMA writable_schema = ON")
        tables = "('registered_models','model_versions','registered_model_aliases','registered_model_tags','model_version_tags','experiments','runs','logged_models')"  # noqa: E501
        rows = connection.execute(f"SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name IN {tables}")
        for name, sql in rows.fetchall():
            lines = [
                line.replace(" NOT NULL", " COLLATE NOCASE NOT NULL", 1)
                if "VARCHAR(" in line and " NOT NULL" in line and "CHECK" not in line
                else line
                for line in sql.split("\n")
            ]
            connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", ("\n".join(lines), name))
        connection.commit()
    with sqlite3.connect(database) as connection:
        connection.execute("REINDEX")
    started = start_mlflow(directory)
    yield started
    stop_mlflow(started)


@pytest.fixture
async def clients(running, server, tmp_path):
    (tmp_path / "rows.csv").write_text(POLICY)
    access = {"model": str(ROOT / "policies/model.conf"), "rows": "rows.csv"}
    async with running(transport=HttpTransport("main", server.url), access=access) as it:
        yield Client(it.application.asgi), Client(it.application.asgi, "user:scientist")


async def test_no_second_spelling_gets_past_a_deny(clients, server):
    admin, scientist = clients
    for model in ("fraud", "open"):
        assert (await admin.rpc("POST", "registered-models/create", name=model)).status == 200
        run = (await admin.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]
        source = run["artifact_uri"]
        made = await admin.rpc("POST", "model-versions/create", name=model, source=source, run_id=run["run_id"])
        assert made.status == 200, made.body
        assert (await admin.rpc("POST", "registered-models/alias", name=model, alias="blue", version="1")).status == 200
    assert (await admin.rpc("POST", "model-versions/set-tag", name="open", version="1", key="reviewed", value="no")).status == 200  # noqa: E501  # fmt: skip
    assert (await admin.rpc("POST", "experiments/create", name="payroll")).status == 200
    asked = Request("ModelRegistryService.getRegisteredModel", "GET", "/api/2.0/mlflow/registered-models/get", {"name": "FRAUD"})  # noqa: E501  # fmt: skip
    transport = HttpTransport("main", server.url)
    direct = await transport.send(asked, writes=False)
    await transport.close()
    assert direct.document()["registered_model"]["name"] == "fraud"  # the registry itself answers to it

    attempts = [
        ("GET", "registered-models/get", {"name": "FRAUD"}),
        ("GET", "model-versions/get", {"name": "Fraud", "version": "1"}),
        ("GET", "model-versions/get-download-uri", {"name": "FRAUD", "version": "1"}),
        ("GET", "registered-models/alias", {"name": "FRAUD", "alias": "blue"}),
        ("POST", "registered-models/get-latest-versions", {"name": "FRAUD"}),
        ("POST", "registered-models/alias", {"name": "FRAUD", "alias": "green", "version": "1"}),
        ("DELETE", "registered-models/alias", {"name": "FRAUD", "alias": "blue"}),
        ("POST", "registered-models/alias", {"name": "FRAUD", "alias": "champion", "version": "1"}),
        ("POST", "model-versions/set-tag", {"name": "FRAUD", "version": "1", "key": "k", "value": "v"}),
        ("POST", "registered-models/set-tag", {"name": "FRAUD", "key": "k", "value": "v"}),
        ("POST", "model-versions/create", {"name": "FRAUD", "source": "models:/open/1"}),
        ("POST", "model-versions/create", {"name": "open", "source": "models:/FRAUD/1"}),
        ("PATCH", "model-versions/update", {"name": "FRAUD", "version": "1", "description": "d"}),
        ("PATCH", "registered-models/update", {"name": "FRAUD", "description": "d"}),
        ("POST", "registered-models/rename", {"name": "FRAUD", "new_name": "mine"}),
        ("DELETE", "model-versions/delete", {"name": "FRAUD", "version": "1"}),
        ("DELETE", "registered-models/delete", {"name": "FRAUD"}),
        ("POST", "model-versions/transition-stage", {"name": "FRAUD", "version": "1", "stage": "Archived"}),
        ("GET", "experiments/get-by-name", {"experiment_name": "PayRoll"}),
        ("POST", "model-versions/set-tag", {"name": "open", "version": "1", "key": "Reviewed", "value": "yes"}),
        ("DELETE", "model-versions/delete-tag", {"name": "open", "version": "1", "key": "REVIEWED"}),
        ("DELETE", "registered-models/alias", {"name": "open", "alias": "BLUE"}),
        ("POST", "registered-models/alias", {"name": "open", "alias": "BLUE", "version": "1"}),
    ]
    for method, path, message in attempts:
        answer = await scientist.rpc(method, path, **message)
        assert answer.status == 400, (path, message, answer.body)
        assert "name it so" in answer.json["message"], (path, answer.body)
    artifact = await scientist("GET", "/model-versions/get-artifact?name=FRAUD&version=1&path=MLmodel")
    assert artifact.status == 400
    promoted = await scientist("POST", "/v1/registries/main/models/FRAUD/environments/staging/promotions", {"version": "1"})  # noqa: E501  # fmt: skip
    assert promoted.status == 400
    stored = (await admin.rpc("GET", "registered-models/get", name="fraud")).json["registered_model"]
    assert [(item["alias"], item["version"]) for item in stored["aliases"]] == [("blue", "1")]
    assert stored.get("tags", []) == []


async def test_runs_are_judged_in_their_own_spelling(clients):
    admin, scientist = clients
    run_id = (await admin.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
    answer = await scientist.rpc("POST", "runs/log-metric", run_id=run_id.upper(), key="a", value=1, timestamp=1)
    assert answer.status == 400
    assert (await scientist.rpc("POST", "experiments/delete", experiment_id="00")).status == 400


async def test_a_callers_own_strange_name_does_not_vouch_for_the_registry(clients):
    """SQLite's NOCASE folds ASCII letters only: a name with another one must not make the registry look exact."""
    admin, scientist = clients
    assert (await admin.rpc("POST", "registered-models/create", name="ledger")).status == 200
    for name in ("team-ä", "ää"):
        assert (await scientist.rpc("POST", "registered-models/create", name=name)).status == 200
        touched = await scientist.rpc("POST", "registered-models/set-tag", name=name, key="a", value="b")
        assert touched.status == 200
    for spelling in ("LEDGER", "Ledger"):
        answer = await scientist.rpc("POST", "registered-models/set-tag", name=spelling, key="pwned", value="yes")
        assert answer.status == 400, answer.body
        assert "'ledger'" in answer.json["message"]
        assert (await scientist.rpc("GET", "registered-models/get", name=spelling)).status == 400
