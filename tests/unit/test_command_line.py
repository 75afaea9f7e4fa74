"""The command line: whole names, no key repeated, a quiet end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.__main__ import main
from tests.conftest import ROOT, write_configuration

KEY = "rgw_do-not-show-this"
TARGET = ("verdict", "iris", "1", "production")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*TARGET, "--token", KEY), "REGISTRY_GATEWAY_TOKEN"),
        ((*TARGET, f"--token={KEY}"), "REGISTRY_GATEWAY_TOKEN"),
        (("verdict", "--token", KEY, "iris", "1", "production"), "REGISTRY_GATEWAY_TOKEN"),
        (("verdict", "--token", KEY, "iris", "1"), "REGISTRY_GATEWAY_TOKEN"),
        ((*TARGET, KEY), "1 more arguments"),
        ((*TARGET, "--token-file", KEY), "name a file that holds the key"),
        ((*TARGET, "--out", KEY), "no option is named --out"),
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as ended:
        status = ended.code
    said = "".join(capsys.readouterr())
    assert (status, KEY in said, says in said) == (2, False, True), said


def test_an_empty_file_is_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text("\n")
    assert main([*TARGET, "--token-file", str(tmp_path / "key")]) == 2
    assert "the file is empty; write the key into it" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verdict", "check", "key new"])
def test_a_wrong_option_is_answered_with_the_usage_of_its_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(
            [*command.split(), *(TARGET[1:] if command == "verdict" else ["user:x"][: command == "key new"]), "--fast"]
        )
    said = capsys.readouterr().err
    assert said.startswith(f"usage: registry-gateway {command} ")
    assert "no option is named --fast" in said


@pytest.mark.parametrize("arguments", [("schema", "environments"), ("openapi",)])
def test_who_stops_reading_is_left_quietly(arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "service", *arguments], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.stderr, done.returncode) == (b"", 141)


def test_check_cannot_run_without_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "there is no such file; --config names another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("workers", "url", "says"),
    [
        (2, "sqlite:///journal.db", "a file that one process writes; several need journal.url to name a PostgreSQL"),
        (0, "sqlite:///journal.db", "at least 1"),
        (0, "postgresql://gateway@localhost/journal", "at least 1"),
        (2, "postgresql://gateway@localhost/journal", ""),
    ],
)
def test_only_a_journal_on_postgresql_has_several_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int, url: str, says: str
) -> None:
    (tmp_path / "secret").write_bytes(b"s" * 32)
    config = write_configuration(tmp_path, journal={"url": url}, secret_file="secret")
    status = main(("check", "--config", str(config), "--workers", str(workers)))
    said = "".join(capsys.readouterr())
    assert (status, says in said) == (1 if says else 0, True), said


def test_check_says_what_is_doubtful_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_GATEWAY_CONFIG", "")
    rows = tmp_path / "policy.csv"
    rows.write_text("p, role:scientits, *, models/*, model:read, allow\n")
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(rows)}
    path = write_configuration(tmp_path, access=access, environments=None)
    assert main(["check", "--config", str(path)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"{rows}:1:1: nobody is in role:scientits")
    assert "no environments are configured" in said.out
    rows.write_text("p, user:a, *, models/x/enviroments/y, model:read, allow\n")
    assert main(["check", "--config", str(path)]) == 1
    assert f"{rows}:1:15: no resource is like 'models/x/enviroments/y'" in capsys.readouterr().err


RULES = (ROOT / "policies/tests/environments/demo.yaml").read_text()
ACCESS = '- {principal: "user:x", action: model:read, resource: models/a, expect: deny}\n'


@pytest.mark.parametrize(
    ("files", "status", "says"),
    [
        ({"environments/a.yaml": RULES}, 0, "environments: 4 passed, 0 failed\n"),
        ({"a.yaml": RULES}, 0, "environments: 4 passed, 0 failed\n"),
        ({"a.yaml": ACCESS}, 0, "access: 1 passed, 0 failed\n"),
        ({"a.yaml": ACCESS, "b.yaml": RULES}, 0, "access: 1 passed, 0 failed\nenvironments: 4 passed, 0 failed\n"),
        ({"a.yaml": ACCESS.replace("deny", "allow"), "b.yaml": RULES}, 1, "access: 0 passed, 1 failed"),
        ({"a.yml": ACCESS}, 2, "no *.yaml tables here, nor in environments/ below"),
    ],
)
def test_tables_of_access_and_of_rules_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], status: int, says: str
) -> None:
    for name, text in files.items():
        (tmp_path / "tables" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tables" / name).write_text(text)
    config = str(write_configuration(tmp_path))
    assert main(["policy", "test", "--config", config, str(tmp_path / "tables")]) == status
    assert says in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("user:ann", "main", "models/iris", "model:reed"), "unknown action 'model:reed'; there are: model:create,"),
        (("user:ann", "main", "models/iris", "reed"), "there are: access:assume,"),
        (("user:ann", "prod", "models/iris", "model:read"), "no registry is named 'prod'; there are: main"),
        (("ann", "main", "models/iris", "model:read"), "'ann' does not begin with user:, service:"),
        (("user:ann", "main", "models/iris", "model:read", "--group", "ci"), "'ci' does not begin with"),
        (("user:ann", "main", "models/iris/enviroments/x", "environment:promote"), "there are: models/{model}"),
        (("user:ann", "main", "model/iris", "model:read"), "does not begin with *, access"),
        (("user:ann", "main", "models/*", "model:read"), "name one resource"),
        (
            ("user:ann", "main", "models/iris", "environment:promote"),
            "but on: models/{model}/environments/{environment}",
        ),
    ],
)
def test_what_nobody_can_ask_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: tuple[str, ...], says: str
) -> None:
    assert main(["policy", "explain", "--config", str(write_configuration(tmp_path)), *asked]) == 2
    assert says in capsys.readouterr().err
