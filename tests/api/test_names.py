"""Names on a real MLflow server: a name that misleads is refused when written, and readable if it is there."""

from __future__ import annotations

import secrets

import pytest

from service.backends.http import HttpTransport
from service.model import Request
from tests.client import Client

STRANGE = {
    "U+200D": "fra\u200dud",
    "U+202E": "fraud\u202e",
    "U+0007": "fra\u0007ud",
    "U+0020": " fraud",
    "U+00A0": "fraud\u00a0",
    "U+FF46": "\uff46raud",
    "U+FB01": "\ufb01ne",
    "U+2028": "a\u2028b",
}


@pytest.fixture
async def gateway(running, mlflow_server):
    transport = HttpTransport("main", mlflow_server.url)
    async with running(transport=transport) as it:
        yield Client(it.application.asgi), transport


async def create_beside_the_gateway(transport, name):
    path = "/api/2.0/mlflow/registered-models/create"
    request = Request("ModelRegistryService.createRegisteredModel", "POST", path, {"name": name})
    await transport.send(request, writes=True)


@pytest.mark.parametrize("code_point", STRANGE)
async def test_a_strange_name_is_refused_when_written_and_readable_when_there(gateway, code_point):
    client, transport = gateway
    name = f"{STRANGE[code_point]}"
    for method, path, message in (
        ("POST", "registered-models/create", {"name": name}),
        ("POST", "experiments/create", {"name": name}),
    ):
        answer = await client.rpc(method, path, **message)
        assert (answer.status, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), path
        assert code_point in answer.json["message"]
    await create_beside_the_gateway(transport, name)
    plain = f"plain-{secrets.token_hex(4)}"
    assert (await client.rpc("POST", "registered-models/create", name=plain)).status == 200
    renamed = await client.rpc("POST", "registered-models/rename", name=plain, new_name=name)
    assert (renamed.status, code_point in renamed.json["message"]) == (400, True)
    got = await client.rpc("GET", "registered-models/get", name=name)
    assert got.json["registered_model"]["name"] == name
    found = await client.rpc("GET", "registered-models/search", max_results=1000)
    assert name in {item["name"] for item in found.json["registered_models"]}
    assert (await client.rpc("POST", "model-versions/create", name=name, source=f"models:/{plain}/1")).status == 400
    assert (await client.rpc("DELETE", "registered-models/delete", name=name)).status == 200


@pytest.mark.parametrize("name", ["*", ".", "..", "a/b", "a:b", "a\u0000b", ""])
async def test_a_name_that_reads_as_something_else_is_refused(gateway, name):
    client, _ = gateway
    answer = await client.rpc("POST", "registered-models/create", name=name)
    assert (answer.status, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


@pytest.mark.parametrize(
    "alias", ["ch\u0430mpion", "champi\u00f6n", "champion ", "latest", "Latest", "v1", "V2", "a" * 256]
)
async def test_an_alias_that_looks_like_another_is_refused(gateway, alias):
    client, _ = gateway
    answer = await client.rpc("POST", "registered-models/alias", name="iris", alias=alias, version="1")
    assert (answer.status, answer.json["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
