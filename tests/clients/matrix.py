"""Runs the main flow with the oldest and newest MLflow clients of each line, through a gateway before a real server.

Each client gets an environment of its own from the package registry. Prints the matrix of docs/mlflow.md and says
whether the page shows the same one. Exit status 1 if a step failed or the page is behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from tests.conftest import ROOT, TOKENS, free_port, start_mlflow, stop_mlflow, write_configuration
from tests.faults.test_process import ready, start

CLIENTS = ("2.0.0", "2.22.5", "3.0.0", "3.17.2")
"""The oldest and the newest of 2.x and of 3.x."""
STEPS = ("run", "artifacts", "search", "register", "alias", "denied", "gate-closed", "staging")
PAGE = ROOT / "docs/mlflow.md"


def environment(directory: Path, version: str) -> Path:
    """Make an environment with the client of *version*; return its Python."""
    venv.create(directory, with_pip=True)
    python = directory / "bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # 2.0 imports pkg_resources, which setuptools has given up
    subprocess.run([*install, f"mlflow-skinny=={version}", "setuptools<80"], check=True)
    return python


def run(python: Path, port: int, name: str) -> dict[str, str]:
    """Run the flow; return what each step said."""
    arguments = [f"http://127.0.0.1:{port}", name, TOKENS["user:scientist"], TOKENS["service:ci"]]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PYTHON"))}
    done = subprocess.run(
        [python, "-W", "ignore", ROOT / "tests/clients/flow.py", *arguments],
        capture_output=True, text=True, check=False, env=clean, cwd=python.parent,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def main() -> int:
    """Print the matrix."""
    rows = [f"| client | {' | '.join(STEPS)} |", "|---" * (len(STEPS) + 1) + "|"]
    good = True
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        server = start_mlflow(directory / "m")
        config = write_configuration(directory, registries={"main": {"kind": "mlflow", "url": server.url}})
        port = free_port()
        gateway = start(config, port)
        try:
            ready(port, gateway)
            for version in CLIENTS:
                said = run(environment(directory / version, version), port, f"client-{version}")
                good &= said.get("version") == version
                outcomes = [said.get(step, "FAILED nothing said") for step in STEPS]
                for step, outcome in zip(STEPS, outcomes, strict=True):
                    if outcome not in ("ok", "not-there-yet", "refused-unnamed"):
                        good = False
                        print(f"{version} {step}: {outcome}", file=sys.stderr)
                rows.append(f"| {version} | {' | '.join(outcome.split(' ')[0] for outcome in outcomes)} |")
        finally:
            gateway.terminate()
            gateway.communicate(timeout=40)
            stop_mlflow(server)
    table = "\n".join(rows)
    print(table)
    if table not in PAGE.read_text():
        print("docs/mlflow.md shows another matrix", file=sys.stderr)
        good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
