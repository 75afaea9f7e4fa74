"""The gateway as a process: start, refuse to start, stop, kill."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.backends.http import HttpTransport
from service.backends.mlflow import MlflowBackend
from service.journal import schema
from tests.conftest import TOKENS, free_port, write_configuration
from tests.surface.test_docs import readme_story, story_of

TRIALS = int(os.environ.get("KILL_TRIALS", "4"))
COMMAND = [sys.executable, "-m", "service"]
pytestmark = pytest.mark.real


def start(config: Path, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "serve", "--config", str(config), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def ready(port: int, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read().decode()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).read()
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.05)
        else:
            return
    raise AssertionError("not ready")


def call(port: int, path: str, message: dict, principal: str = "user:admin", timeout: float = 10):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/{path}",
        method="POST",
        data=json.dumps(message).encode(),
        headers={"Authorization": f"Bearer {TOKENS[principal]}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


@pytest.fixture
def deployed(tmp_path, mlflow_server):
    config = write_configuration(tmp_path, registries={"main": {"kind": "mlflow", "url": mlflow_server.url}})
    schema.upgrade(f"sqlite:///{tmp_path / 'journal.db'}")
    return config


def open_operations(directory: Path) -> int:
    with sqlite3.connect(directory / "journal.db") as connection:
        return connection.execute("SELECT count(*) FROM operations WHERE state IN ('open', 'unknown')").fetchone()[0]


def test_kill_nine_leaves_no_change_without_an_intent(deployed, tmp_path, mlflow_server):
    """Aliases are set by eight callers while the gateway is killed; each alias in the registry has its intent."""
    name = f"kill-{random.getrandbits(32)}"
    port, chance = free_port(), random.Random(7)
    process = start(deployed, port)
    ready(port, process)
    call(port, "registered-models/create", {"name": name})
    run = call(port, "runs/create", {"experiment_id": "0", "start_time": 1})["run"]["info"]["run_id"]
    call(port, "model-versions/create", {"name": name, "source": f"runs:/{run}/m", "run_id": run})
    for trial in range(TRIALS):
        begun = time.monotonic()

        def caller(worker: int, trial: int = trial) -> None:
            for index in range(1000):
                try:
                    message = {"name": name, "alias": f"t{trial}-{worker}-{index}", "version": "1"}
                    call(port, "registered-models/alias", message)
                except (OSError, urllib.error.HTTPError, ValueError):
                    return

        with ThreadPoolExecutor(8) as pool:
            for worker in range(8):
                pool.submit(caller, worker)
            time.sleep(0.3 + chance.random() * 0.7)  # the moment of death is the experiment
            process.kill()
            process.wait()
        process.stderr.close()
        process = start(deployed, port)
        ready(port, process)
        assert time.monotonic() - begun < 60
    backend = MlflowBackend("main", HttpTransport("main", mlflow_server.url))

    async def aliases() -> dict[str, str]:
        found = dict((await backend.get_model(name)).aliases)
        await backend.close()
        return found

    made = set(asyncio.run(aliases()))
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        intents = {
            json.loads(body)["data"]["change"].get("alias")
            for (body,) in connection.execute("SELECT body FROM events WHERE phase = 'intent'")
        }
    assert made
    assert made <= intents
    deadline = time.monotonic() + 30
    while open_operations(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert open_operations(tmp_path) == 0
    process.terminate()
    assert process.wait(timeout=40) == 0
    process.stderr.close()
    verified = subprocess.run(
        [*COMMAND, "audit", "verify", "--config", str(deployed)], capture_output=True, check=False
    )
    assert verified.returncode == 0, verified.stdout
    print(f"kill -9 trials {TRIALS}: {len(made)} aliases in the registry, 0 without an intent, 0 open after restart")


def test_sigterm_ends_what_is_under_way_and_records_it(deployed, tmp_path):
    port = free_port()
    process = start(deployed, port)
    ready(port, process)
    name = f"term-{random.getrandbits(32)}"
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, port, "registered-models/create", {"name": f"{name}-{index}"}) for index in range(4)]
        while not intents(tmp_path):  # at least one is under way
            time.sleep(0.002)
        process.terminate()
        assert process.wait(timeout=40) == 0
    made = [done.result() for done in calls if done.exception() is None]
    assert made
    assert open_operations(tmp_path) == 0
    process.stderr.close()


def intents(directory: Path) -> int:
    with sqlite3.connect(directory / "journal.db") as connection:
        return connection.execute("SELECT count(*) FROM events WHERE phase = 'intent'").fetchone()[0]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "gateway.yaml").write_text("registries: {}\nfoo: 1\n"), "gateway.yaml:2: unknown key 'foo'"),
        (lambda d: (d / "gateway.yaml").write_text("a: [\n"), "gateway.yaml:2"),
        (lambda d: (d / "keys.yaml").write_text("- {id: a, principal: admin, sha256: x}\n"), "keys.yaml:1"),
        (lambda d: (d / "keys.yaml").unlink(), "keys.yaml: No such file"),
        (lambda d: (d / "journal.db").write_bytes(b""), "journal upgrade"),
        (lambda d: (d / "journal.db").write_bytes(b"not a database" * 100), "not a journal"),
    ],
)
def test_a_broken_configuration_is_one_clear_line(deployed, tmp_path, damage, says):
    damage(tmp_path)
    done = subprocess.run(
        [*COMMAND, "serve", "--config", str(deployed), "--port", str(free_port())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_first_start_makes_the_journal(tmp_path, mlflow_server):
    config = write_configuration(tmp_path, registries={"main": {"kind": "mlflow", "url": mlflow_server.url}})
    port = free_port()
    process = start(config, port)
    ready(port, process)
    call(port, "registered-models/create", {"name": f"first-{random.getrandbits(32)}"})
    process.terminate()
    assert process.wait(timeout=40) == 0
    process.stderr.close()
    assert (tmp_path / "journal.db").stat().st_mode & 0o777 == 0o600
    assert open_operations(tmp_path) == 0


def test_a_broken_policy_is_named_by_check_and_serve(tmp_path):
    (tmp_path / "policy.csv").write_text("p, role:a, main, models/*, model:read, Allow\n")
    config = write_configuration(tmp_path)
    text = config.read_text()
    config.write_text(text.replace(str(Path(__file__).parents[2] / "policies/policy.csv"), "policy.csv"))
    schema.upgrade(f"sqlite:///{tmp_path / 'journal.db'}")
    for command, status in (("check", 1), ("serve", 2)):
        done = subprocess.run([*COMMAND, command, "--config", str(config)], capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert "policy.csv:1:40: the effect 'Allow'" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_port_in_use(deployed):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*COMMAND, "serve", "--config", str(deployed), "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert f"listen.port {port}" in done.stderr


def test_an_unwritable_data_directory():
    done = subprocess.run(
        [*COMMAND, "serve", "--port", str(free_port())],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "REGISTRY_GATEWAY_DATA_DIR": "/proc/nope"},
    )
    assert done.returncode == 2
    assert "data directory cannot be written" in done.stderr


def state_until(port: int, wanted: str, seconds: float = 20) -> str:
    deadline, state = time.monotonic() + seconds, ""
    while state != wanted and time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            state = json.load(answer)["status"]
        time.sleep(0.1)
    return state


def alive(group_leader_text: str) -> list[str]:
    done = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if group_leader_text in line and "ps -ewwo" not in line]


def test_the_embedded_default_and_its_story(tmp_path, request):
    """`serve` without a configuration: the demo keys, the story, a restarted child, and nothing left after kill -9."""
    port, data = free_port(), tmp_path / "data"
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "REGISTRY_GATEWAY_DATA_DIR": str(data)},
    )
    request.addfinalizer(process.kill)  # a failing test leaves nothing behind
    ready(port, process, 120)
    tokens = data / "demo-tokens.json"
    assert tokens.stat().st_mode & 0o777 == 0o600
    assert (data / "mlflow").stat().st_mode & 0o777 == 0o700
    story = subprocess.run(
        [sys.executable, "examples/quickstart.py", "--url", f"http://127.0.0.1:{port}", "--tokens", str(tokens)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert story.returncode == 0, story.stderr
    for line in (
        "sets the alias champion: PERMISSION_DENIED",
        "creates a model: PERMISSION_DENIED",
        "sets the alias champion: RESOURCE_CONFLICT",
        "UNMET four-eyes",
        "promotes: 200 succeeded, None -> 1",
        "models:/iris@champion predicts [0, 0, 0]",
        "environment:promote  outcome   succeeded",
    ):
        assert line in story.stdout, story.stdout
    assert story_of(story.stdout) == story_of(readme_story())  # the README shows what really happens
    for key in json.loads(tokens.read_text()).values():
        assert key not in (data / "api-keys.yaml").read_text()
        assert alive(key) == []
    # the server dies: /readyz says so, and the guardian starts another one
    guardian = next(line for line in alive(str(data)) if "service.guardian" in line)
    servers = [line for line in alive(guardian.split()[-2]) if "-m uvicorn" in line]
    assert servers
    for line in servers:
        os.kill(int(line.split()[0]), signal.SIGKILL)
    assert state_until(port, "degraded") == "degraded"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            token = json.loads(tokens.read_text())["user:viewer"]
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/2.0/mlflow/registered-models/get?name=iris",
                headers={"Authorization": f"Bearer {token}"},
            )
            urllib.request.urlopen(request, timeout=5).read()
            break
        except (OSError, urllib.error.HTTPError):
            time.sleep(0.3)
    else:
        raise AssertionError("the MLflow server did not come back")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while alive(str(data)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive(str(data)) == []
    process.stdout.close()
    process.stderr.close()


def test_a_broken_policy_stops_the_embedded_default_before_anything_starts(tmp_path):
    (tmp_path / "policies").mkdir()
    source = Path(__file__).parents[2] / "policies"
    for name in ("model.conf", "environments.yaml"):
        (tmp_path / "policies" / name).write_text((source / name).read_text())
    (tmp_path / "policies" / "policy.csv").write_text("p, role:a, main, models/*, model:read, Allow\n")
    done = subprocess.run(
        [*COMMAND, "serve", "--port", str(free_port())],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "REGISTRY_GATEWAY_DATA_DIR": str(tmp_path / "data"), "PYTHONPATH": str(source.parent)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "policy.csv:1" in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("after", ["starting an MLflow server", "listening on"])
def test_ctrl_c_ends_all_of_it_cleanly(tmp_path, request, after):
    data = tmp_path / "data"
    process = subprocess.Popen(
        [*COMMAND, "serve", "--port", str(free_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "REGISTRY_GATEWAY_DATA_DIR": str(data)},
        start_new_session=True,
    )
    request.addfinalizer(process.kill)
    for line in process.stdout:
        if after in line:
            break
    if after == "listening on":
        time.sleep(2)  # granian installs its handlers after the line is printed
    os.killpg(process.pid, signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert "stopped" in rest
    assert "Traceback" not in errors
    assert alive(str(data)) == []
