"""Evidence: stored one after the other with promotions, and only what rules can read."""

from __future__ import annotations

import asyncio

import pytest

from service.backends.memory import MemoryTransport
from tests.api.test_attacks import run_of
from tests.client import Client
from tests.promotion.flow import V1, alias_of, promote, register, simple

RULES = "[{name: tested, require: \"passed(evidence, 'validation')\"}]"


async def post(client: Client, version: str, result: str = "passed", **fields):
    body = {"kind": "validation", "result": result, **fields}
    return await client.be("service:ci")("POST", f"{V1}/iris/versions/{version}/evidence", body)


class Held(MemoryTransport):
    """A registry that holds back the calls whose name ends in *name*."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.held = 0
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def send(self, request, *, writes, trace=""):
        if request.rpc.endswith(self._name) and not self.go_on.is_set():
            self.held += 1
            self.begun.set()
            await self.go_on.wait()
        return await super().send(request, writes=writes, trace=trace)


async def test_what_a_promotion_did_not_see_is_stored_after_it(running, tmp_path):
    registry = Held("setRegisteredModelAlias")
    async with running(registry, environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await post(client, version)
        registry.go_on.clear()
        promoted = asyncio.create_task(promote(client, version))
        await registry.begun.wait()
        failed = asyncio.create_task(post(client, version, "failed"))
        done, _ = await asyncio.wait([failed], timeout=0.2)
        assert not done
        registry.go_on.set()
        assert ((await promoted).status, (await failed).status, alias_of(it)) == (200, 201, version)
        events = await it.events(version=version, phase="outcome")
        assert [event["data"]["action"] for event in events[-2:]] == ["environment:promote", "evidence:post"]


async def test_files_are_read_before_it_waits(running, tmp_path):
    registry = Held("downloadArtifact")
    async with running(registry, environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        path = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_of(it, version)}/artifacts/model/w"
        it.memory.artifacts[path] = b"w"
        registry.go_on.clear()
        posted = asyncio.create_task(post(client, version))
        await registry.begun.wait()
        assert (await promote(client, version)).status == 200
        registry.go_on.set()
        assert (await posted).status == 201


async def test_a_version_made_anew_meanwhile_gets_none_of_it(running, tmp_path):
    registry = Held("downloadArtifact")
    async with running(registry, environments=simple(tmp_path)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        path = f"/api/2.0/mlflow-artifacts/artifacts/0/{run_of(it, version)}/artifacts/model/w"
        it.memory.artifacts[path] = b"w"
        registry.go_on.clear()
        posted = asyncio.create_task(post(client, version))
        await registry.begun.wait()
        it.memory.models["iris"]["versions"][version]["creation_timestamp"] += 1
        registry.go_on.set()
        answer = await posted
        assert (answer.status, "made anew" in answer.json["detail"]) == (503, True)
        assert (await client("GET", f"{V1}/iris/versions/{version}/evidence")).json == {"evidence": []}


@pytest.mark.parametrize("number", ["9223372036854775808", "-9223372036854775809", "18446744073709551616", "1e999"])
@pytest.mark.parametrize("facts", ['{"n": %s}', '{"a": [{"n": %s}]}'])
async def test_numbers_that_rules_cannot_read_are_refused(running, tmp_path, number, facts):
    async with running(environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        raw = f'{{"kind": "other", "result": "passed", "facts": {facts % number}}}'.encode()
        target = f"{V1}/iris/versions/{version}/evidence"
        assert (await client.be("service:ci")("POST", target, raw=raw)).status == 400
        assert (await client("GET", target)).json == {"evidence": []}


@pytest.mark.parametrize("number", [(1 << 63) - 1, -(1 << 63), 1e308, True, None])
async def test_numbers_that_rules_can_read_are_kept(running, tmp_path, number):
    async with running(environments=simple(tmp_path, "", RULES)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await post(client, version, kind="other", facts={"n": number})).status == 201
        await post(client, version)
        assert (await promote(client, version)).status == 200
