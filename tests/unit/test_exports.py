"""Forms of export, and the command that writes them."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.__main__ import main
from service.exports import CSV_COLUMNS, FORMS
from tests.conftest import ROOT, new_journal, write_configuration
from tests.contract.test_queries import event


def cells(document):
    text = FORMS["csv"].head + FORMS["csv"].line(json.dumps(document))
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    return row


@given(st.text(min_size=1))
def test_text_of_a_caller_is_no_formula_and_comes_back(text):
    found = cells({"data": {"reason": text, "actor": None}})["reason"]
    assert not found.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    assert found.removeprefix("'") == text.removeprefix("'")


def test_cells_of_other_kinds():
    row = cells({"data": {"status": 200, "latency_ms": -1.5, "decision": {"allowed": True, "row": None}, "detail": {}}})
    assert [row[name] for name in ("status", "latency_ms", "allowed", "row", "detail", "verdict")] == [
        "200",
        "-1.5",
        "true",
        "",
        "{}",
        "",
    ]


def test_the_api_document_names_the_media_type_of_each_form():
    document = json.loads((ROOT / "openapi/openapi.json").read_text())
    named = document["paths"]["/v1/audit/export"]["get"]["responses"]["200"]["content"]
    assert set(named) == {form.media_type.partition(";")[0] for form in FORMS.values()}


def test_the_guide_lists_the_columns():
    text = (ROOT / "docs/audit.md").read_text().partition("The columns of CSV")[2].partition("\n## ")[0]
    named = [word for word in text.replace("`", " ` ").split() if word in CSV_COLUMNS]
    assert list(dict.fromkeys(named)) == list(CSV_COLUMNS)


@pytest.fixture
async def config(tmp_path: Path):
    from service.journal.store import SqlJournal

    url = f"sqlite:///{tmp_path}/journal.db"
    new_journal(url)
    journal = SqlJournal(url)
    await journal.start()
    for number in range(5):
        await journal.append([event(1_790_000_000.0 + number, model=f"m{number % 2}")])
    await journal.close()
    return str(write_configuration(tmp_path))


def test_a_file_is_whole_or_not_there(config, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["audit", "export", "--config", config, "-o", str(out), "--model", "m0"]) == 0
    assert [json.loads(line)["data"]["sequence"] for line in out.read_text().splitlines()] == [1, 3, 5]
    assert (out.stat().st_mode & 0o777, list(tmp_path.glob("*.part"))) == (0o600, [])
    assert "3 events" in capsys.readouterr().out
    assert main(["audit", "export", "--config", config, "-o", str(tmp_path / "no" / "x")]) == 2
    assert "the export cannot be written" in capsys.readouterr().err
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(out)
    os.mkfifo(pipe)
    for special in (link, pipe):
        assert main(["audit", "export", "--config", config, "-o", str(special)]) == 2
        assert "it is no ordinary file" in capsys.readouterr().err
    assert (link.is_symlink(), pipe.is_fifo()) == (True, True)


def test_times_and_standard_output(config, capsys):
    since = ["--since", "2026-09-21T14:13:22Z", "--until", "2026-09-21T14:13:24"]
    assert main(["audit", "export", "--config", config, "--format", "csv", *since]) == 0
    text = capsys.readouterr().out
    assert [row["sequence"] for row in csv.DictReader(io.StringIO(text, newline=""))] == ["3", "4"]
    with pytest.raises(SystemExit):
        main(["audit", "export", "--config", config, "--since", "yesterday"])
    assert "is no time" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["audit", "export", "--config", config, "--action", "model:creat"])
    assert "'model:creat' is unknown; there are: access:assume" in capsys.readouterr().err


def test_verify_refuses_what_would_look_at_nothing(config, tmp_path, capsys):
    assert main(["audit", "verify", "--config", config, "--archive", str(tmp_path / "archiv")]) == 2
    assert "there is no such directory" in capsys.readouterr().err
    assert main(["audit", "verify", "--config", config, "--any-order"]) == 2
    assert "name it with --file" in capsys.readouterr().err
