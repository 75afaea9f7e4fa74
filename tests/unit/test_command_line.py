"""The command line: whole names, no key repeated, a quiet end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.__main__ import main
from tests.conftest import ROOT

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
