"""Real processes on one PostgreSQL journal, before one MLflow: races, kills, stops, and a server that restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from service.journal import schema
from service.journal.looking import Look
from service.journal.verify import verify
from tests.conftest import TOKENS, free_port, write_configuration
from tests.faults.proxy import proxied
from tests.postgres import Postgres
from tests.promotion.flow import simple

RACES = int(os.environ.get("RACES", "10"))
DEADLINE = 12.0
"""lock_seconds and a little: nobody waits longer for an answer."""
pytestmark = pytest.mark.real


class Replica:
    """One `registry-gateway serve`."""

    def __init__(self, config: Path, *more: str) -> None:
        self.config, self.port, self.more = config, free_port(), more
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        command = ("-m", "service", "serve", "--config", str(self.config), "--port", str(self.port), *self.more)
        with (self.config.parent / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdout=asyncio.subprocess.DEVNULL, stderr=log
            )

    async def ready(self, seconds: float = 60) -> float:
        begun = time.monotonic()
        while (await self("GET", "/readyz"))[0] != 200:
            assert self.process.returncode is None, (self.config.parent / "log").read_text()
            assert time.monotonic() - begun < seconds, (self.config.parent / "log").read_text()
            await asyncio.sleep(0.05)
        return time.monotonic() - begun

    async def __call__(self, method: str, path: str, body: object = None, principal="user:admin", **headers: str):
        """Send one request on a connection of its own; (0, None) where there is no answer."""
        sent = {"authorization": f"Bearer {TOKENS[principal]}", **headers}
        timeout = aiohttp.ClientTimeout(total=60)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, f"{self.url}{path}", json=body, headers=sent) as answer,
            ):
                return answer.status, await answer.json(content_type=None), answer.headers
        except (aiohttp.ClientError, OSError):
            return 0, None, {}

    async def rpc(self, path: str, **message: object):
        return await self("POST", f"/api/2.0/mlflow/{path}", message)

    def signal(self, number: int) -> None:
        main = psutil.Process(self.process.pid)
        for process in (main, *main.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@pytest.fixture
async def server(tmp_path_factory):
    """A server of this test's own."""
    made = Postgres(tmp_path_factory.mktemp("own"))
    yield made
    made.stop()


@contextlib.asynccontextmanager
async def started(
    tmp_path: Path, url: str, *registries: str, more: tuple[str, ...] = ()
) -> AsyncIterator[list[Replica]]:
    """Start one process before each of *registries*, which are ways to the same one."""
    (tmp_path / "secret").write_bytes(b"s" * 32)
    await asyncio.to_thread(schema.upgrade, url)
    made = []
    for index, registry in enumerate(registries):
        directory = tmp_path / str(index)
        directory.mkdir()
        config = write_configuration(
            directory,
            registries={"main": {"kind": "mlflow", "url": registry, "timeout_seconds": 5}},
            environments=simple(directory, "seal: approved"),
            journal={"url": url},
            secret_file=str(tmp_path / "secret"),
        )
        made.append(Replica(config, *more))
    try:
        await asyncio.gather(*(one.start() for one in made))
        await asyncio.gather(*(one.ready() for one in made))
        yield made
    finally:
        for one in made:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.signal(signal.SIGCONT)
                one.process.terminate()
        await asyncio.gather(*(one.process.wait() for one in made))
    assert (await asyncio.to_thread(verify, url))[1] is None


async def model_with(replica: Replica, versions: int) -> str:
    """Make a model with versions; return its name."""
    name = f"m{uuid.uuid4().hex[:10]}"
    assert (await replica.rpc("registered-models/create", name=name))[0] == 200
    for _ in range(versions):
        run = (await replica.rpc("runs/create", experiment_id="0", start_time=1))[1]["run"]["info"]["run_id"]
        made = await replica.rpc("model-versions/create", name=name, source=f"runs:/{run}/m", run_id=run)
        assert made[0] == 200, made
    return name


def place(name: str) -> str:
    return f"/v1/registries/main/models/{name}/environments/production"


def operations(url: str, *states: str) -> list[tuple[str, str]]:
    with Look(url) as journal:
        rows = journal.rows("SELECT id, state FROM operations ORDER BY at")
    return [(row[0], row[1]) for row in rows if not states or row[1] in states]


async def settled_after(url: str, seconds: float = 40) -> float:
    begun = time.monotonic()
    while await asyncio.to_thread(operations, url, "open", "unknown"):
        assert time.monotonic() - begun < seconds
        await asyncio.sleep(0.2)
    return time.monotonic() - begun


async def test_each_race_has_one_winner(server, mlflow_server, tmp_path):
    url = await server.database()
    async with started(tmp_path, url, mlflow_server.url, mlflow_server.url) as (one, two):
        name = await model_with(one, 4)
        target, answered, slowest = f"{place(name)}/promotions", Counter(), 0.0
        live = (await one("POST", target, {"version": "4"}))[1]["after"]
        for _ in range(RACES):
            seen: dict = {}
            while (seen_now := await two("GET", place(name)))[1].get("version") != live:
                await asyncio.sleep(0.05)
            seen = {"if-match": seen_now[2]["ETag"]}
            others = [version for version in "1234" if version != live]
            senders = [(one, others[0]), (two, others[1]), (one, others[2]), (two, others[0])]
            begun = time.monotonic()
            answers = await asyncio.gather(*(who("POST", target, {"version": what}, **seen) for who, what in senders))
            slowest = max(slowest, time.monotonic() - begun)
            statuses = Counter(status for status, _, _ in answers)
            answered += statuses
            assert statuses[200] == 1, statuses
            assert set(statuses) <= {200, 409, 412, 423, 503}
            live = next(body["after"] for status, body, _ in answers if status == 200)
        assert slowest < DEADLINE
        print(
            f"races of two processes {RACES}: winners {answered[200]}, "
            f"answers {dict(answered)}, slowest {slowest:.2f} s"
        )
        assert await settled_after(url) < DEADLINE


@pytest.mark.long
@pytest.mark.parametrize("was_done", [True, False])
async def test_killed_in_the_middle_the_other_settles(server, mlflow_server, tmp_path, was_done):
    url = await server.database()
    async with (
        proxied(mlflow_server.url) as proxy,
        started(tmp_path, url, proxy.url, mlflow_server.url) as (one, two),
    ):
        name = await model_with(two, 2)
        assert (await two("POST", f"{place(name)}/promotions", {"version": "1"}))[0] == 200
        if was_done:
            proxy.swallow_answers_to = "registered-models/alias"
        else:
            proxy.lose_requests_to = "registered-models/alias"
        lost = asyncio.create_task(one("POST", f"{place(name)}/promotions", {"version": "2"}))
        while not any("registered-models/alias" in line for line in proxy.seen):
            await asyncio.sleep(0.01)
        one.signal(signal.SIGKILL)
        await one.process.wait()
        assert (await lost)[0] == 0
        equal = await two("POST", f"{place(name)}/promotions", {"version": "1", "reason": "meanwhile"})
        assert equal[0] in (200, 409, 503)  # the other is not settled, so nothing is forwarded, or it is by now
        took = await settled_after(url)
        assert took < 30
        live = (await two("GET", place(name)))[1]["version"]
        assert live == ("2" if was_done and equal[0] != 200 else "1")
        print(f"kill -9 in the middle (done: {was_done}): settled by the other after {took:.1f} s, live {live}")


@pytest.mark.long
async def test_one_that_stands_still_loses_its_locks(server, mlflow_server, tmp_path):
    url = await server.database()
    async with (
        proxied(mlflow_server.url) as proxy,
        started(tmp_path, url, proxy.url, mlflow_server.url) as (one, two),
    ):
        name = await model_with(two, 2)
        proxy.lose_requests_to = "registered-models/alias"
        stuck = asyncio.create_task(one("POST", f"{place(name)}/promotions", {"version": "1"}))
        while not any("registered-models/alias" in line for line in proxy.seen):
            await asyncio.sleep(0.01)
        one.signal(signal.SIGSTOP)
        begun, refused = time.monotonic(), Counter()
        while (answer := await two("POST", f"{place(name)}/promotions", {"version": "2"}))[0] != 200:
            refused[answer[0]] += 1
            assert set(refused) <= {409, 423, 503}
            assert time.monotonic() - begun < 30
            await asyncio.sleep(0.2)
        took = time.monotonic() - begun
        one.signal(signal.SIGCONT)
        assert (await stuck)[0] in (503, 504)
        back = await one.ready()
        assert (await two("GET", place(name)))[1]["version"] == "2"
        assert (await one("GET", place(name)))[1]["version"] == "2"
        await settled_after(url)
        print(
            f"a replica that stood still with the lock: the other promoted after {took:.1f} s "
            f"(before: {dict(refused)}); it was ready again after {back:.1f} s"
        )


async def test_nothing_is_written_at_one_behind_what_the_other_judges(server, mlflow_server, tmp_path):
    url = await server.database()
    async with (
        proxied(mlflow_server.url) as proxy,
        started(tmp_path, url, proxy.url, mlflow_server.url) as (one, two),
    ):
        name = await model_with(two, 1)
        version = await two("GET", f"/api/2.0/mlflow/model-versions/get?name={name}&version=1")
        run = version[1]["model_version"]["run_id"]
        at_the_write, go = asyncio.Event(), asyncio.Event()

        async def witness(seen):
            if "registered-models/alias" in seen.line:
                at_the_write.set()
                await go.wait()

        async def log() -> int:
            return (await two.rpc("runs/log-metric", run_id=run, key="m", value=1, timestamp=1, step=0))[0]

        assert await log() == 200
        proxy.witness = witness
        promotion = asyncio.create_task(one("POST", f"{place(name)}/promotions", {"version": "1"}))
        await at_the_write.wait()
        assert {await log() for _ in range(10)} == {503}
        go.set()
        answered = set()
        while not promotion.done():
            answered.add(await log())
        assert (await promotion)[0] == 200
        answered |= {await log() for _ in range(30)}
        assert 409 in answered
        assert answered <= {503, 409}
        history = await two("GET", f"/api/2.0/mlflow/metrics/get-history?run_id={run}&metric_key=m")
        assert len(history[1]["metrics"]) == 1


@pytest.mark.long
async def test_a_key_whose_process_was_killed_is_answered_by_the_other_and_done_once(server, mlflow_server, tmp_path):
    url = await server.database()
    async with (
        proxied(mlflow_server.url) as first,
        proxied(mlflow_server.url) as second,
        started(tmp_path, url, first.url, second.url) as (one, two),
    ):
        name = await model_with(two, 1)
        asked = ("POST", f"{place(name)}/promotions", {"version": "1"})
        first.swallow_answers_to = "registered-models/alias"
        lost = asyncio.create_task(one(*asked, **{"idempotency-key": "k"}))
        while not any("registered-models/alias" in line for line in first.seen):
            await asyncio.sleep(0.01)
        meanwhile = await two(*asked, **{"idempotency-key": "k"})
        assert meanwhile[0] == 409
        assert meanwhile[1]["type"].endswith("operation-pending")
        ((begun, _),) = await asyncio.to_thread(operations, url, "open")
        one.signal(signal.SIGKILL)
        await one.process.wait()
        assert (await lost)[0] == 0
        killed = time.monotonic()
        while (answer := await two(*asked, **{"idempotency-key": "k"}))[0] != 200:
            assert answer[0] in (409, 503), answer
            assert time.monotonic() - killed < 40
            await asyncio.sleep(0.2)
        assert answer[1]["id"] == begun
        assert not any("registered-models/alias" in line for line in second.writes())
        print(f"a key whose process was killed: answered by the other after {time.monotonic() - killed:.1f} s")


@pytest.mark.long
async def test_a_server_that_restarts_under_both(server, mlflow_server, tmp_path):
    url = await server.database()
    async with started(tmp_path, url, mlflow_server.url, mlflow_server.url) as (one, two):
        name = await model_with(one, 1)
        done, took = Counter(), []
        for number in range(int(os.environ.get("POSTGRES_KILLS", "2"))):
            server.kill()
            answers = await asyncio.gather(
                *(who.rpc("registered-models/set-tag", name=name, key="k", value=f"{number}") for who in (one, two))
            )
            done += Counter(status for status, _, _ in answers)
            assert {status for status, _, _ in answers} <= {503}
            assert (await two("GET", f"/api/2.0/mlflow/registered-models/get?name={name}"))[0] == 200
            await asyncio.to_thread(server.start)
            begun = time.monotonic()
            for who in (one, two):
                await who.ready()
                while (await who.rpc("registered-models/set-tag", name=name, key=f"of-{who.port}", value="v"))[
                    0
                ] != 200:
                    assert time.monotonic() - begun < 10
                    await asyncio.sleep(0.05)
            took.append(time.monotonic() - begun)
        assert max(took) <= 5
        print(f"PostgreSQL killed {len(took)} times under both: refused {done[503]}, both back after {max(took):.1f} s")
        await settled_after(url)


async def test_workers_share_a_port_and_end_together(server, mlflow_server, tmp_path):
    url = await server.database()
    async with started(tmp_path, url, mlflow_server.url, more=("--workers", "2")) as (one,):
        main = psutil.Process(one.process.pid)

        def workers() -> list[psutil.Process]:
            return [found for found in main.children() if found.is_running() and found.status() != "zombie"]

        def sources() -> int:
            with Look(url) as journal:
                bodies = journal.rows("SELECT count(DISTINCT source) FROM operations")
            return int(bodies[0][0])

        async def both_work(so_many: int) -> None:
            for _ in range(200):
                await one.rpc("registered-models/create", name=f"m{uuid.uuid4().hex}")
                if await asyncio.to_thread(sources) >= so_many:
                    return
            pytest.fail("one does all")

        await both_work(2)
        before = workers()
        before[0].kill()
        async with asyncio.timeout(30):
            while len(set(workers()) | set(before)) < len(before) + 1:
                await asyncio.sleep(0.1)
        await one.ready()
        await both_work(3)
        everybody = [main, *workers()]
        one.process.terminate()
        assert await one.process.wait() == 0
        assert psutil.wait_procs(everybody, timeout=5)[1] == []
        await one.start()
        await one.ready()
        main = psutil.Process(one.process.pid)
        everybody = workers()
        one.process.kill()
        await one.process.wait()
        assert psutil.wait_procs(everybody, timeout=5)[1] == []
