"""Rows for the grants of a Unity Catalog server: of what one answered, and of exports."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.__main__ import main
from service.errors import BadConfiguration
from service.estates.reading import pages
from service.estates.rows import load
from service.estates.unity_permissions import exported, grants_of
from service.model import Principal
from tests.conftest import ROOT, write_configuration

MODEL = ROOT / "policies/model.conf"
RECORDED = [
    json.loads(line) for line in (Path(__file__).parent / "unity_catalog.jsonl").read_text().splitlines()
]  # answers of the open-source server 0.6.0


@pytest.fixture
def recorded() -> Iterator[tuple[str, list[str | None]]]:
    """Serve what was recorded; give the address and the credentials that came."""
    answers = {item["path"]: item for item in RECORDED}
    came: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append(self.headers["authorization"])
            found = answers.get(self.path, {"status": 404, "response": {"error_code": "NOT_FOUND"}})
            if self.headers["authorization"] == "Bearer wrong":
                found = {"status": 401, "response": {"error_code": "UNAUTHENTICATED"}}
            raw = json.dumps(found["response"]).encode()
            self.send_response(found["status"])
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


def imported(tmp_path, capsys, *words):
    file = write_configuration(tmp_path)
    arguments = ["policy", "import", "unity-catalog", "--registry", "main", "--config", str(file)]
    status = main([*arguments, *words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_rows_for_what_a_server_answered(tmp_path, capsys, recorded):
    url, came = recorded
    (tmp_path / "token").write_text("secret-of-an-admin")
    status, text, error = imported(tmp_path, capsys, "--url", url, "--token-file", str(tmp_path / "token"))
    assert (status, error) == (0, "")
    assert set(came) == {"Bearer secret-of-an-admin"}
    assert "secret-of-an-admin" not in text
    snapshot = load(text, MODEL, ["main"])

    def may(who, action, resource):
        return snapshot.decide(Principal(who), "main", resource, action).allowed

    # alice has USE CATALOG, USE SCHEMA, CREATE MODEL, and EXECUTE on main.ml.aaa
    assert may("user:alice@x.org", "model:read", "models/main.ml.aaa")
    assert may("user:alice@x.org", "version:read", "models/main.ml.aaa/versions")
    assert may("user:alice@x.org", "model:create", "models/main.ml.new")
    assert not may("user:alice@x.org", "model:create", "models/main.ml2.new")
    assert not may("user:alice@x.org", "model:read", "models/main.ml.bbb")
    assert not may("user:alice@x.org", "version:create", "models/main.ml.aaa/versions")
    # bob has SELECT and CREATE CATALOG on a model, which mean nothing there
    assert "user:bob@x.org" not in {row.subject for row in snapshot.rows}
    assert "CREATE CATALOG, SELECT on the registered_model main.ml.aaa: nothing of models" in text
    # the owner
    assert may("user:admin", "model:delete", "models/main.ml.aaa")
    assert not may("user:alice@x.org", "model:delete", "models/main.ml.aaa")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--token-file", "wrong"), "administrator"),
        (("--token-file", "absent"), "absent"),
    ],
)
def test_a_server_that_refuses_is_said(tmp_path, capsys, recorded, words, said):
    url, _ = recorded
    (tmp_path / "wrong").write_text("wrong")
    status, out, error = imported(tmp_path, capsys, "--url", url, words[0], str(tmp_path / words[1]))
    assert (status, out) == (2, "")
    assert said in error


def test_a_token_does_not_go_over_a_network_in_clear(tmp_path, capsys):
    (tmp_path / "token").write_text("x")
    status, _, error = imported(tmp_path, capsys, "--url", "http://uc.example", "--token-file", str(tmp_path / "token"))
    assert (status, "https" in error) == (2, True)


def grants(principal, *privileges):
    return {"privilege_assignments": [{"principal": principal, "privileges": list(privileges)}]}


USES = {"catalog/c": grants("ann@x", "USE CATALOG"), "schema/c.s": grants("ann@x", "USE SCHEMA")}


@pytest.mark.parametrize(
    ("export", "rows", "said"),
    [
        (
            {**USES, "registered_model/c.s.m": grants("ann@x", "EXECUTE")},
            ["alias:read models/c.s.m/aliases/*", "model:read models/c.s.m", "version:read models/c.s.m/versions"],
            "",
        ),
        (  # of no effect without USE
            {"registered_model/c.s.m": grants("ann@x", "EXECUTE"), "catalog/c": grants("ann@x", "USE CATALOG")},
            [],
            "EXECUTE on the registered_model c.s.m has no effect without USE SCHEMA on c.s",
        ),
        (
            {"schema/c.s": grants("ann@x", "CREATE MODEL", "USE SCHEMA")},
            [],
            "CREATE MODEL on the schema c.s has no effect without USE CATALOG on c",
        ),
        (  # inherited, in Databricks' spelling
            {"catalog/c": grants("ann@x", "USE_CATALOG", "USE_SCHEMA", "EXECUTE"), "schema/c.s": {}},
            ["alias:read models/c.*/aliases/*", "model:read models/c.*", "version:read models/c.*/versions"],
            "",
        ),
        ({"schema/c.s": grants("ann@x", "SELECT")}, [], "SELECT on the schema c.s: nothing of models"),
    ],
)  # fmt: skip
def test_grants(export, rows, said):
    text = grants_of(exported(export), "main").text()
    found = [line.split(", ") for line in text.splitlines() if line.startswith("p,")]
    assert sorted(f"{row[4]} {row[3]}" for row in found) == rows
    assert {row[1] for row in found} <= {"user:ann@x"}
    assert said in text


def test_a_group_and_an_owner():
    export = {"schema/c.s": {"owner": "data-team", **grants("data-team")}, "registered_model/c.s.m": {}}
    text = grants_of(exported(export), "main").text()
    snapshot = load(text, MODEL, ["main"])
    principal = Principal("user:x", frozenset({"group:data-team"}))
    for action, where in (("model:delete", "models/c.s.m"), ("version:create", "models/c.s.m/versions")):
        assert snapshot.decide(principal, "main", where, action).allowed
    assert not snapshot.decide(principal, "main", "models/c.t.m", "model:read").allowed


@pytest.mark.parametrize(
    "text",
    ["[]", "{}x", '{"table/a": {}}', '{"schema/a": []}', '{"schema/a": {"privilege_assignments": [1]}}'],
)
def test_a_file_that_is_no_export_is_refused(tmp_path, capsys, text):
    (tmp_path / "export.json").write_text(text)
    status, out, error = imported(tmp_path, capsys, "--export", str(tmp_path / "export.json"))
    assert (status, out) == (2, "")
    assert "not an export" in error


def test_an_export_without_grants_has_no_rows(tmp_path, capsys):
    (tmp_path / "export.json").write_text('{"catalog/c": {}}')
    status, out, error = imported(tmp_path, capsys, "--export", str(tmp_path / "export.json"))
    assert (status, out, "no permission was found" in error) == (1, "", True)


def test_pages_may_be_empty_before_the_last():
    answers = [{"x": [{"n": 1}], "next_page_token": "a"}, {"x": [], "next_page_token": "b"}, {"x": [{"n": 2}]}]
    asked = []

    async def ask(path, **fields):
        asked.append(fields)
        return answers[len(asked) - 1]

    assert [item["n"] for item in asyncio.run(pages(ask, "/p", "x", c="d"))] == [1, 2]
    assert asked == [{"c": "d"}, {"c": "d", "page_token": "a"}, {"c": "d", "page_token": "b"}]

    async def forever(path, **fields):
        return {"next_page_token": "again"}

    with pytest.raises(BadConfiguration, match="pages"):
        asyncio.run(pages(forever, "/p", "x"))
