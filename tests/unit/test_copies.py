"""Copies of events: what is found in them, by the gateway and by the script that needs nothing but Python."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from service.__main__ import main
from service.audit import Operation
from service.chain import GENESIS, digest_of, with_signature
from service.copies import hashes_of, verify_copy
from service.errors import BadConfiguration
from service.event import canonical_json
from service.journal.verify import verifier
from service.model import Call, Need, Principal
from tests.conftest import ROOT

KEY = Ed25519PrivateKey.from_private_bytes(b"7" * 32)
VERIFY = verifier([KEY.public_key().public_bytes_raw()])
SCRIPT = ROOT / "docs/verify_audit.py"
Lines = list[bytes]


def events(count: int, first: int = 1, previous: str = GENESIS) -> Lines:
    """Make the lines of a chain; each fifth event is a checkpoint."""
    made = []
    for number in range(first, first + count):
        call = Call(principal=Principal("user:u"), registry="main", name="x", needs=(Need("alias:set", f"m/{number}"),))
        event = Operation.opened(call, 0.0).event("denied", "denied", "/registry-gateway/default/h/b", 1.0 + number)
        event["data"] |= {"sequence": number, "previous": previous}
        if number % 5 == 0:
            event["data"]["phase"] = "checkpoint"
            event = with_signature(event, "default", "k1", KEY.sign)
        made.append(canonical_json(event))
        previous = digest_of(made[-1])
    return made


WHOLE = events(12)


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Path]:
    def write(lines: Lines, name: str = "copy.jsonl") -> Path:
        path = tmp_path / name
        raw = b"".join(line + b"\n" for line in lines)
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
        return path

    return write


def independent(lines: Lines) -> tuple[int, str | None]:
    spec = importlib.util.spec_from_file_location("verify_audit", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.verify(lines)


@pytest.mark.parametrize("name", ["copy.jsonl", "copy.jsonl.gz"])
def test_a_good_copy_is_intact(copy, name):
    report = verify_copy(copy(WHOLE, name), VERIFY)
    assert (report.problems, report.found.events, report.found.first, report.found.last) == ([], 12, 1, 12)
    assert (report.found.checkpoint.event, report.found.checkpoint.verified, report.after) == (10, True, 2)


def test_a_copy_may_begin_in_the_middle_and_hold_deliveries_again(copy):
    report = verify_copy(copy([*WHOLE[3:9], *WHOLE[5:], WHOLE[7]]), VERIFY)
    assert (report.problems, report.found.first, report.found.last, report.found.events) == ([], 4, 12, 9)
    assert report.duplicates == 5


def edited(number: int, old: bytes = b"user:u", new: bytes = b"user:v") -> Lines:
    return [line.replace(old, new) if at == number else line for at, line in enumerate(WHOLE, 1)]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (edited(4), "event 5 does not follow event 4"),
        (edited(10, b'"signature":"', b'"signature":"AA'), "event 10: its checkpoint is forged"),
        (edited(4, b"{", b"["), "the event in line 4 was edited: it is no event"),
        (edited(4, b'"sequence":4', b'"sequence":0'), "the event in line 4 was edited: it is no event"),
        (edited(4, b'"phase":"denied"', b'"phase":7'), "event after 3 was edited"),
        ([*WHOLE[:3], *WHOLE[4:]], "event 4 is missing"),
        ([*WHOLE[:3], WHOLE[4], WHOLE[3], *WHOLE[5:]], "event 5 stands before event 4"),
        ([*WHOLE[5:], WHOLE[2]], "event 3 stands after event 12"),
        ([*WHOLE[:6], *events(1, 6)], "event 6 is there twice, and not the same"),
        ([*WHOLE[:6], *events(2, 7)], "event 7 does not follow event 6"),
        (events(3, previous="1" * 64), "event 1 does not follow event 0"),
    ],
)
def test_damage_is_found_by_both(copy, lines, problem):
    said = verify_copy(copy(lines), VERIFY).problems
    assert len(said) == 1
    assert said[0].replace("the event after", "event after").startswith(problem)
    if "checkpoint" not in problem:
        assert independent(lines)[1] is not None


def test_a_copy_in_any_order_is_sorted_first(copy):
    lines = [*WHOLE, *WHOLE[3:5]]
    random.Random(1).shuffle(lines)
    assert verify_copy(copy(lines), VERIFY).problems != []
    report = verify_copy(copy(lines), VERIFY, any_order=True)
    assert (report.problems, report.found.events, report.duplicates) == ([], 12, 2)
    lines.remove(WHOLE[8])
    assert verify_copy(copy(lines), VERIFY, any_order=True).problems == ["event 9 is missing"]


@pytest.mark.parametrize("lines", [[], [b""]])
def test_what_is_no_copy_cannot_be_checked(copy, lines):
    with pytest.raises(BadConfiguration, match="it holds no events"):
        verify_copy(copy(lines))


def test_a_file_that_is_missing_cut_or_no_copy_is_refused(copy, tmp_path):
    with pytest.raises(BadConfiguration, match="No such file"):
        verify_copy(tmp_path / "none")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"\n".join(WHOLE))[:-20])
    with pytest.raises(BadConfiguration, match="cannot be read"):
        verify_copy(cut)
    with pytest.raises(BadConfiguration, match="longer than"):
        verify_copy(copy([b"x" * (1 << 20)]))
    with pytest.raises(BadConfiguration, match="event 5 is there twice"):
        hashes_of(copy([WHOLE[4], events(1, 5)[0]]))
    for line in (b"{}", b"[1]", b'{"data":{"sequence":true}}', b'{"data":{"sequence":"1"}}', b"[" * 100_000):
        with pytest.raises(BadConfiguration, match="line 1 is no event"):
            hashes_of(copy([line]))


@st.composite
def damages(draw: st.DrawFn) -> Lines:
    """Damage a copy in one to three ways; the bytes of its last event stay: behind them is nothing that shows it."""
    lines = list(WHOLE[draw(st.integers(0, 4)) :])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(lines) - 2))
        match draw(st.sampled_from(["byte", "remove", "swap", "repeat", "insert", "cut"])):
            case "byte":
                place = draw(st.integers(0, len(lines[at]) - 1))
                new = bytes([draw(st.integers(0x20, 0x7E))])
                lines[at] = lines[at][:place] + new + lines[at][place + 1 :]
            case "remove" if len(lines) > 3:
                del lines[at]
            case "swap":
                lines[at], lines[at + 1] = lines[at + 1], lines[at]
            case "repeat":
                lines.insert(at, lines[at])
            case "insert":
                lines.insert(at, draw(st.sampled_from(WHOLE)))
            case "cut" if len(lines) > 3:
                lines = lines[: at + 2]
    return [*lines, lines[-1]] if draw(st.booleans()) else lines


@given(damages())
def test_the_independent_script_says_the_same(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    ours = verify_copy(path).problems
    count, theirs = independent(lines)
    ends_wrong = bool(ours) and "was edited" in ours[0] and theirs is None
    assert bool(ours) == bool(theirs) or (ends_wrong and lines[-1] not in WHOLE)
    if not ours:
        assert count == verify_copy(path).found.events


def test_the_script_is_about_thirty_lines_and_needs_python_alone(copy):
    code = [line for line in SCRIPT.read_text().splitlines() if line.strip() and not line.strip().startswith('"""')]
    assert len(code) <= 36
    imported = {line.split()[1] for line in code if line.startswith(("import", "from"))}
    assert imported <= sys.stdlib_module_names
    for lines, status, says in ((WHOLE, 0, "intact: 12 events"), (edited(4), 1, "not intact: event 5 does not follow")):
        for name in ("a.jsonl", "a.jsonl.gz"):
            command = [sys.executable, "-I", str(SCRIPT), str(copy(lines, name))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (status, "")
            assert done.stdout.startswith(says)


def test_the_command_checks_a_copy_without_a_configuration(copy, tmp_path, capsys):
    public = tmp_path / "public.pem"
    public.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    path = str(copy(WHOLE))
    assert main(["audit", "verify", "--file", path, "--public-key", str(public)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(
        "intact: 12 events\nlast checkpoint: event 10 of 1970-01-01T00:00:11.000000Z, key k1, signature"
    )
    assert "2 events after it" in said
    assert main(["audit", "verify", "--file", path, "--public-key", str(public), "--max-uncovered", "1"]) == 1
    assert "2 events after event 10, the last checkpoint, are covered by none" in capsys.readouterr().out
    assert main(["audit", "verify", "--file", path, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["intact"], document["checkpoint"]["verified"], document["after_checkpoint"]) == (True, False, 2)
    assert main(["audit", "verify", "--file", str(copy(edited(4)))]) == 1
    assert capsys.readouterr().out.startswith("not intact: event 5 does not follow event 4")
    assert main(["audit", "verify", "--file", path, "--against", path]) == 2
    assert main(["audit", "verify", "--file", path, "--public-key", path]) == 2
    assert "not an Ed25519 public key" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
@pytest.mark.parametrize("change", [{}, {"sequence": 8}, {"hash": "0" * 64}, {"cluster": "other"}, {"time": "2020"}])
def test_the_guides_commands_check_a_signature_with_openssl(tmp_path, change):
    guide = (ROOT / "docs/audit.md").read_text()
    commands = re.search(r"```sh\n(printf.*?)```", guide, re.DOTALL)[1]
    event = json.loads(WHOLE[9])
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "checkpoints.pub.pem").write_bytes(public)
    said = {**event["data"]["checkpoint"], "time": event["time"], **change}
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", **{name: str(value) for name, value in said.items()}}
    done = subprocess.run(
        ["sh", "-ec", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is (change == {}), done.stdout + done.stderr
