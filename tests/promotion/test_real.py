"""Adoption, drift and waiting over a real MLflow server."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from service.backends.http import HttpTransport
from tests.client import V1, Client
from tests.promotion.flow import environments

pytestmark = pytest.mark.real
RULES = (
    "environments:\n  production:\n    where: {{models: '{name}*'}}\n    marks: [{{alias: champion}}]\n    rules: []\n"
)


async def test_what_is_live_on_a_real_server(running, mlflow_server, tmp_path):
    name = f"real-{secrets.token_hex(4)}"
    text = RULES.format(name=name)
    transport = HttpTransport("main", mlflow_server.url)
    async with running(transport=transport, environments=environments(tmp_path, text)) as it:
        client, backend = Client(it.application.asgi), it.application.backends["main"]
        await client.rpc("POST", "registered-models/create", name=name)
        run = (await client.rpc("POST", "runs/create", experiment_id="0")).json["run"]["info"]["run_id"]
        message = {"name": name, "source": f"runs:/{run}/model", "run_id": run}
        for _ in range(2):
            assert (await client.rpc("POST", "model-versions/create", **message)).status == 200
        await backend.set_alias(name, "champion", "1")  # beside the gateway
        adopted = await client("POST", "/v1/registries/main/adoptions", {"reason": "day one"})
        assert [(row["model"], row["state"]) for row in adopted.json["adopted"]] == [(name, "adopted")]
        assert await it.application.drift.sweep(backend) == []
        target = f"{V1}/{name}/environments/production"
        live = await client("GET", target)
        assert (live.json["kind"], live.json["drifted"]) == ("baseline", False)
        known = [("if-none-match", live.headers["etag"])]
        waiting = asyncio.create_task(client("GET", f"{target}?wait=30", headers=known))
        while not it.application.gateway._watch._waiting:
            await asyncio.sleep(0)
        await backend.set_alias(name, "champion", "2")
        answer = await waiting
        assert (answer.json["version"], answer.json["drifted"]) == ("2", True)
        assert [look.state for look in await it.application.drift.sweep(backend)] == ["drifted"]
        back = await client("POST", f"{target}/rollbacks", {"reason": "moved by hand"})
        assert (back.status, back.json["after"]) == (200, "1")
    await transport.close()
