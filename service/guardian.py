"""The guardian of the embedded MLflow server: starts it, restarts it with back-off, and ends it.

It runs as a process of its own with the standard library only. Its standard input is a pipe whose other end the
gateway holds: at end of file, however the gateway ended, the whole process group of the server is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_BACKOFF_SECONDS = (0.5, 1, 2, 4, 8, 15, 30)
_STEADY_SECONDS = 60
_GRACE_SECONDS = 5.0


def server_command(directory: Path, socket: Path) -> list[str]:
    """Return the command of the server: one worker, SQLite, proxied artifacts, a Unix socket in a 0700 directory."""
    return [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{directory / 'mlflow.db'}",
        "--artifacts-destination",
        str(directory / "artifacts"),
        "--serve-artifacts",
        "--workers",
        "1",
        "--host",
        "127.0.0.1",
        "--uvicorn-opts",
        f"--uds {socket} --no-access-log --log-level warning",
    ]


def server_environment(environ: dict[str, str]) -> dict[str, str]:
    """Return the server's environment: nothing of the caller's MLflow or gateway settings, no jobs, no telemetry."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("MLFLOW_", "_MLFLOW_", "REGISTRY_GATEWAY_", "DATABRICKS_"))
    }
    return {
        **kept,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "PYTHONWARNINGS": "ignore",
    }


def guard(directory: Path, socket: Path, log: Path) -> None:
    """Keep the server running until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    failures = 0
    while True:
        socket.unlink(missing_ok=True)
        with log.open("ab") as output:
            started = time.monotonic()
            process = subprocess.Popen(  # noqa: S603  # our own command, no shell
                server_command(directory, socket),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=server_environment(dict(os.environ)),
                cwd=directory,
                start_new_session=True,
            )
        if _parent_ended_before(process):
            return
        if time.monotonic() - started > _STEADY_SECONDS:
            failures = 0
        pause = _BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)]
        failures += 1
        with log.open("a") as output:
            output.write(f"guardian: mlflow server ended with {process.returncode}; starting again in {pause} s\n")
        if _wait_for_parent(pause):
            return


def _parent_ended_before(process: subprocess.Popen[bytes]) -> bool:
    """Wait for the server or the parent; True if the parent ended first. The server's group is gone afterwards."""
    ended = False
    while process.poll() is None and not ended:
        ended = _wait_for_parent(0.2)
    _end_group(process)
    return ended


def _wait_for_parent(seconds: float) -> bool:
    readable, _, _ = select.select([sys.stdin.fileno()], [], [], seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and _group_lives(process):
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _group_lives(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    guard(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
