"""A gateway that is killed while it delivers: every sink has every event in the end, each place in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
from collections import defaultdict

import aiohttp
import asyncpg
import pytest

from tests.conftest import TOKENS, free_port, new_journal, write_configuration
from tests.delivery.receiver import receiving

TRIALS = int(os.environ.get("KILL_TRIALS", "4"))
pytestmark = pytest.mark.real


def started(config, port, stdout):
    command = [sys.executable, "-m", "tests.delivery.gateway_process", str(config), str(port)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)


async def ready(http, url, process):
    async with asyncio.timeout(30):
        while True:
            assert process.poll() is None
            try:
                async with http.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return await answer.json()
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def create(http, url, name):
    """Create a model; False when the gateway is gone."""
    headers = {"Authorization": f"Bearer {TOKENS['user:admin']}"}
    try:
        target = f"{url}/api/2.0/mlflow/registered-models/create"
        async with http.post(target, json={"name": name}, headers=headers) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def journalled(folder):
    with sqlite3.connect(folder / "journal.db") as connection:
        rows = connection.execute("SELECT sequence, body FROM events ORDER BY sequence").fetchall()
        behind = connection.execute("SELECT min(sequence) FROM followers").fetchone()[0]
        pending = connection.execute("SELECT count(*) FROM deliveries WHERE state != 'delivered'").fetchone()[0]
    return [json.loads(body) for _, body in rows], rows[-1][0] - behind, pending


def identity(event):
    return event["source"], event["id"]


async def test_kill_nine_loses_no_event_for_any_sink(tmp_path):
    chance = random.Random(11)
    (tmp_path / "secret").write_text("a secret of sixteen or more")
    async with receiving() as hook, receiving() as lake, aiohttp.ClientSession() as http:
        private = {"private": True, "url": hook.url}
        sinks = [
            "stdout",
            {"file": {"path": "events.jsonl"}},
            {"webhook": {"id": "ci", "secret_file": "secret", **private}},
            {"cloudevents": {"id": "lake", **private, "url": lake.url}},
        ]
        config = write_configuration(tmp_path, audit={"sinks": sinks})
        new_journal(f"sqlite:///{tmp_path / 'journal.db'}")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with (tmp_path / "stdout").open("wb") as stdout:
            for trial in range(TRIALS + 1):
                process = started(config, port, stdout)
                await ready(http, url, process)

                async def caller(worker, trial=trial):
                    for number in range(1000 if trial < TRIALS else 5):
                        if not await create(http, url, f"m{worker}-{trial}-{number}"):
                            return

                callers = [asyncio.create_task(caller(worker)) for worker in range(4)]
                if trial < TRIALS:
                    await asyncio.sleep(0.2 + chance.random())  # the moment of death is the experiment
                    process.kill()
                    process.wait()
                await asyncio.gather(*callers)
            async with asyncio.timeout(30):
                while True:
                    events, behind, pending = await asyncio.to_thread(journalled, tmp_path)
                    if not behind and not pending:
                        break
                    await asyncio.sleep(0.2)
            process.kill()
            process.wait()
    got = {
        "stdout": [json.loads(line) for line in (tmp_path / "stdout").read_text().splitlines() if line[:1] == "{"],
        "file": [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()],
        "webhook": [one.json for one in hook.got],
        "cloudevents": [one.json for one in lake.got],
    }
    again = compared(events, got)
    assert len(events) > 20 * TRIALS
    print(f"kill -9 trials {TRIALS}: {len(events)} events, missing at any sink 0, out of order 0, sent again {again}")


def compared(events, got):
    """Check that each sink has every event, each place in order; return how many it has again."""
    places = {identity(event): f"{event['data']['registry']}/{event['data']['model']}" for event in events}
    order = {identity(event): event["data"]["sequence"] for event in events}
    for sink, found in got.items():
        assert {identity(event) for event in found} == set(order), sink
        seen, first = set(), defaultdict(list)
        for event in found:
            if identity(event) not in seen:
                seen.add(identity(event))
                first[places[identity(event)]].append(order[identity(event)])
        assert all(sequences == sorted(sequences) for sequences in first.values()), sink
    return {sink: len(found) - len(order) for sink, found in got.items()}


async def told(url):
    """Read the events of a journal on PostgreSQL, and how far the last sink is behind."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT sequence, body FROM events ORDER BY sequence")
        behind = rows[-1]["sequence"] - await connection.fetchval("SELECT min(sequence) FROM followers")
        pending = await connection.fetchval("SELECT count(*) FROM deliveries WHERE state != 'delivered'")
    finally:
        await connection.close()
    return [json.loads(row["body"]) for row in rows], behind, pending


async def test_a_leader_that_is_killed_loses_no_event_for_any_sink(tmp_path, postgres):
    """Two replicas, one journal: who printed last leads, and dies; the other one goes on with all sinks."""
    (tmp_path / "secret").write_text("a secret of sixteen or more")
    database = await postgres.database()
    await asyncio.to_thread(new_journal, database)
    async with receiving() as hook, aiohttp.ClientSession() as http, contextlib.AsyncExitStack() as held:
        private = {"private": True, "url": hook.url}
        webhook = {"id": "ci", "secret_file": "secret", **private}
        sinks = ["stdout", {"file": {"path": "events.jsonl"}}, {"webhook": webhook}]
        (tmp_path / "pages.secret").write_text("p" * 40)
        more = {"journal": {"url": database}, "secret_file": "pages.secret"}
        config = write_configuration(tmp_path, audit={"sinks": sinks}, **more)
        printed = [tmp_path / "stdout-0", tmp_path / "stdout-1"]
        outputs = [held.enter_context(path.open("ab")) for path in printed]
        ports = [free_port(), free_port()]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        running = [started(config, *one) for one in zip(ports, outputs, strict=True)]
        for process in running:
            held.callback(process.wait)
            held.callback(process.kill)
        killed = 0
        for trial in range(TRIALS + 1):
            for url, process in zip(urls, running, strict=True):
                await ready(http, url, process)

            async def caller(worker, trial=trial):
                for number in range(1000 if trial < TRIALS else 5):
                    if not await create(http, urls[worker % 2], f"m{worker}-{trial}-{number}"):
                        return

            came = len(hook.got)
            callers = [asyncio.create_task(caller(worker)) for worker in range(4)]
            if trial < TRIALS:
                await hook.until(lambda got, came=came: len(got) > came + 20, 30)
                last = max((0, 1), key=lambda number: printed[number].stat().st_mtime_ns)
                running[last].kill()
                running[last].wait()
                killed += 1
                for task in callers:
                    task.cancel()
                running[last] = started(config, ports[last], outputs[last])
                held.callback(running[last].wait)
                held.callback(running[last].kill)
            await asyncio.gather(*callers, return_exceptions=True)
        async with asyncio.timeout(60):
            while True:
                events, behind, pending = await told(database)
                if not behind and not pending:
                    break
                await asyncio.sleep(0.2)
    got = {
        "file": [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()],
        "webhook": [one.json for one in hook.got],
    }
    again = compared(events, got)
    lines = [json.loads(line) for path in printed for line in path.read_text().splitlines() if line[:1] == "{"]
    assert {identity(event) for event in lines} == {identity(event) for event in events}
    command = [sys.executable, "-m", "service", "audit", "verify", "--file", str(tmp_path / "events.jsonl")]
    verified = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    print(f"kill -9 of the leader {killed}: {len(events)} events, missing 0, out of order 0, sent again {again}")
