"""MLflow's own errors come through as they are: status, error_code, message and classification, case by case."""

from __future__ import annotations

import json
from urllib.parse import urlencode

import aiohttp
import pytest

from service.backends.http import HttpTransport
from tests.client import Client

RUN = "0" * 32
CASES = {
    "no such model": ("GET", "registered-models/get", {"name": "none"}),
    "no such version": ("GET", "model-versions/get", {"name": "none", "version": "1"}),
    "no such alias": ("GET", "registered-models/alias", {"name": "errors", "alias": "none"}),
    "alias of no model": ("GET", "registered-models/alias", {"name": "none", "alias": "none"}),
    "model twice": ("POST", "registered-models/create", {"name": "errors"}),
    "version of no model": ("POST", "model-versions/create", {"name": "none", "source": "models:/errors/1"}),
    "tag on no model": ("POST", "registered-models/set-tag", {"name": "none", "key": "k", "value": "v"}),
    "tag on no version": (
        "POST",
        "model-versions/set-tag",
        {"name": "errors", "version": "9", "key": "k", "value": "v"},
    ),
    "tag too long": ("POST", "registered-models/set-tag", {"name": "errors", "key": "k", "value": "v" * 200_000}),
    "alias to no version": ("POST", "registered-models/alias", {"name": "errors", "alias": "a", "version": "9"}),
    "rename of no model": ("POST", "registered-models/rename", {"name": "none", "new_name": "other"}),
    "delete no model": ("DELETE", "registered-models/delete", {"name": "none"}),
    "wrong model filter": ("GET", "registered-models/search", {"filter": "version > 3"}),
    "wrong model order": ("GET", "registered-models/search", {"order_by": "colour ASC"}),
    "wrong version filter": ("GET", "model-versions/search", {"filter": "nonsense"}),
    "too many models": ("GET", "registered-models/search", {"max_results": 5000}),
    "no such experiment": ("GET", "experiments/get", {"experiment_id": "999999"}),
    "no such name": ("GET", "experiments/get-by-name", {"experiment_name": "none"}),
    "wrong experiment filter": ("POST", "experiments/search", {"filter": "x ~ 3", "max_results": 5}),
    "too many experiments": ("POST", "experiments/search", {"max_results": 500_000}),
    "no such run": ("GET", "runs/get", {"run_id": RUN}),
    "metric of no run": ("POST", "runs/log-metric", {"run_id": RUN, "key": "a", "value": 1, "timestamp": 1}),
    "run in no experiment": ("POST", "runs/create", {"experiment_id": "999999"}),
    "wrong run filter": ("POST", "runs/search", {"experiment_ids": ["0"], "filter": "metrics.a = 'x'"}),
    "wrong run order": ("POST", "runs/search", {"experiment_ids": ["0"], "order_by": ["colour"]}),
    "too many runs": ("POST", "runs/search", {"experiment_ids": ["0"], "max_results": 5_000_000}),
    "no such logged model": ("GET", f"logged-models/m-{RUN}", {}),
    "a name that is missing": ("GET", "registered-models/get", {}),
    "a wrong type": ("POST", "registered-models/create", {"name": 7}),
    "a page token made up": ("GET", "registered-models/search", {"page_token": "nonsense"}),
}
DIFFERENT = {
    "a name that is missing": "refused before it is forwarded, in the gateway's words",
    "a wrong type": "refused before it is forwarded, in the gateway's words",
    "a page token made up": "page tokens are the gateway's own",
    "too many models": "checked before it is forwarded, in MLflow's words, without its classification",
    "too many experiments": "as above",
}
"""The message may differ; status and error_code may not."""


def plain(document):
    return {key: document.get(key) for key in ("error_code", "message", "sqlstate", "error_class")}


@pytest.mark.parametrize("case", CASES)
async def test_an_error_is_mlflows(running, mlflow_server, case):
    method, path, message = CASES[case]
    transport = HttpTransport("main", mlflow_server.url)
    async with (
        running(transport=transport) as it,
        aiohttp.ClientSession(
            "http://localhost", connector=aiohttp.UnixConnector(mlflow_server.url.removeprefix("unix:"))
        ) as session,
    ):
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="errors")
        target = f"/api/2.0/mlflow/{path}"
        if method == "GET":
            direct = session.get(f"{target}?{urlencode(message, doseq=True)}")
        else:
            direct = session.request(method, target, json=message)
        async with direct as answer:
            status, document = answer.status, json.loads(await answer.read())
        through = await client.rpc(method, path, **message)
        assert status >= 400
        if case in DIFFERENT:
            assert (through.status, through.json["error_code"]) == (status, document["error_code"])
            assert plain(through.json) != plain(document), "no difference any more"
        else:
            assert (through.status, plain(through.json)) == (status, plain(document))
