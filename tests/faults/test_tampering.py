"""A real process writes checkpoints until SIGTERM; what its stdout printed proves what its journal lost."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from service.journal import schema
from tests.conftest import free_port, write_configuration
from tests.faults.test_process import COMMAND, call, ready

KEY = Ed25519PrivateKey.from_private_bytes(b"9" * 32)


def verify(*options: object) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, "audit", "verify", *map(str, options)], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_what_a_process_recorded_until_sigterm_is_covered_and_its_stdout_shows_what_is_cut_off(tmp_path: Path) -> None:
    key, public, copy = tmp_path / "key.pem", tmp_path / "public.pem", tmp_path / "stdout.jsonl"
    key.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    public.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    audit = {"sinks": ["stdout"], "checkpoints": {"key": "key.pem", "kid": "k", "events": 5}}
    config = write_configuration(tmp_path, audit=audit)
    schema.upgrade(f"sqlite:///{tmp_path / 'journal.db'}")
    port = free_port()
    printed = tmp_path / "printed"
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(config), "--port", str(port)], stdout=out, stderr=subprocess.PIPE
        )
        ready(port, process)
        for index in range(12):
            try:
                call(port, "registered-models/create", {"name": f"m{index}"}, principal="user:viewer")
            except OSError:
                continue  # denied: that is what is recorded
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0
        process.stderr.close()
    copy.write_bytes(b"".join(line for line in printed.read_bytes().splitlines(keepends=True) if line.startswith(b"{")))
    options = ("--config", config, "--public-key", public)
    status, said = verify(*options, "--against", copy)
    assert status == 0, said
    assert "0 events after it" in said
    assert "signature verified" in said
    assert verify("--file", copy, "--public-key", public)[0] == 0
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        reasons = [row[0] for row in connection.execute("SELECT body FROM events WHERE phase = 'checkpoint'")]
        assert '"reason":"start"' in reasons[0]
        assert '"reason":"stop"' in reasons[-1]
        (last,) = connection.execute("SELECT max(sequence) FROM events").fetchone()
        assert last >= 14
        connection.execute("DELETE FROM events WHERE sequence > ?", (last - 3,))
    connection.close()
    assert verify(*options)[0] == 0, "a few events less look like a kill"
    status, said = verify(*options, "--against", copy)
    assert (status, f"event {last - 2} is in the copy and not in the journal" in said) == (1, True)
    print(f"{last} events until SIGTERM, the last one a checkpoint; 3 cut off: found beside the sink's copy")
