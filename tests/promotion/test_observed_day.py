"""A day in `observe`: its answers are those of no gate, and what it predicts is what enforcement refuses."""

from __future__ import annotations

import json
import random
import re

import pytest

from tests.client import Client
from tests.promotion.flow import ask, environments, register

STEPS = 120
RULES = """\
environments:
  production:
    mode: {mode}
    marks: [{{alias: champion}}, {{stage: Production}}]
    rules:
      - {{name: floor, require: candidate.metrics.accuracy >= 0.9}}
      - {{name: tagged, require: candidate.tags.team != ''}}
"""
_VARIES = re.compile(r'"(run_id|source|creation_timestamp|last_updated_timestamp|timestamp)": ("[^"]*"|[0-9]+)')


def day(seed):
    """Changes that clients of MLflow make, at random and always the same."""
    chance = random.Random(seed)
    for _ in range(STEPS):
        model, version = f"m{chance.randrange(2)}", str(chance.randrange(1, 5))
        who = chance.choice(["user:admin", "user:scientist", "service:ci"])
        kind = chance.choice(["champion", "champion", "blue", "stage", "stage", "archive", "drop", "tag"])
        alias = {"name": model, "alias": "champion" if kind == "champion" else "blue", "version": version}
        stage = {"name": model, "version": version, "stage": "Production", "archive_existing_versions": True}
        yield (
            who,
            {
                "champion": ("POST", "registered-models/alias", alias),
                "blue": ("POST", "registered-models/alias", alias),
                "stage": ("POST", "model-versions/transition-stage", stage),
                "archive": ("POST", "model-versions/transition-stage", {**stage, "stage": "Archived"}),
                "drop": ("DELETE", "registered-models/alias", {"name": model, "alias": "champion"}),
                "tag": (
                    "POST",
                    "model-versions/set-tag",
                    {"name": model, "version": version, "key": "team", "value": "a"},
                ),
            }[kind],
        )


async def estate(it):
    client = Client(it.application.asgi)
    for model in ("m0", "m1"):
        for accuracy in (0.95, 0.5, 0.95):
            await register(it, client, model=model, accuracy=accuracy)
    return client


def plain(reply):
    text = re.sub(r"\(operation [0-9a-f-]{36}\)", "", json.dumps(reply.json, sort_keys=True))
    return reply.status, _VARIES.sub(r'"\1": …', text)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_day_in_observe(running, tmp_path_factory, seed):
    answers = {}
    for mode in ("none", "observe"):
        folder = tmp_path_factory.mktemp(mode)
        text = "environments: {}\n" if mode == "none" else RULES.format(mode=mode)
        async with running(directory=folder, environments=environments(folder, text)) as it:
            client = await estate(it)
            answers[mode] = [plain(await client.be(who).rpc(*what[:2], **what[2])) for who, what in day(seed)]
            if mode == "observe":
                events = [
                    event["data"] for event in await it.events(phase="outcome") if event["data"]["verdict"] is not None
                ]
                report = (await client("GET", "/v1/reports/would-refuse")).json["would_refuse"]
    assert answers["observe"] == answers["none"]
    assert events
    predicted = [(data["model"], data["version"], data["verdict"]["would_refuse"]) for data in events]
    assert {would for *_, would in predicted} == {True, False}
    rules = [
        item["rule"] for data in events if data["verdict"]["would_refuse"]
        for item in data["verdict"]["findings"] if not item["passed"]
    ]  # fmt: skip
    summed = {rule: sum(row["count"] for row in report if row["rule"] == rule) for rule in set(rules)}
    assert summed == {rule: rules.count(rule) for rule in set(rules)}
    assert any(row["rule"].startswith("no policy allows environment:promote") for row in report)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_what_is_predicted_is_what_is_refused(running, tmp_path_factory, seed):
    """At each step the same version is judged by an enforcing gateway in the same state."""
    folders = {mode: tmp_path_factory.mktemp(mode) for mode in ("observe", "enforce")}
    texts = {mode: environments(folder, RULES.format(mode=mode)) for mode, folder in folders.items()}
    async with running(directory=folders["observe"], environments=texts["observe"]) as it:
        client = await estate(it)
        async with running(transport=it.memory, directory=folders["enforce"], environments=texts["enforce"]) as strict:
            judge = Client(strict.application.asgi)
            compared = 0
            for who, (method, path, message) in day(seed):
                enforced = None
                moves = message.get("alias") == "champion" or message.get("stage") == "Production"
                if moves and method == "POST" and message["version"] in it.memory.models[message["name"]]["versions"]:
                    answer = await ask(judge, "promotions", message["version"], model=message["name"], dry_run=True)
                    enforced = not answer.json["verdict"]["allowed"]
                done = await client.be(who).rpc(method, path, **message)
                if enforced is None or done.status != 200:
                    continue
                data = (await it.events(phase="outcome"))[-1]["data"]
                assert data["verdict"]["would_refuse"] is enforced
                compared += 1
            assert compared > STEPS // 8
