"""Secrets that a request can hold are nowhere afterwards: not in the journal, stdout, stderr or metrics."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sqlite3
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from service import reconciler
from service.app import Application
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.errors import OutcomeUnknown, RegistryRefused
from service.settings import load
from service.sinks.stdout import StdoutSink
from tests.api.test_attacks import environments
from tests.api.test_promotion import promote, register, satisfy
from tests.client import V1, Client
from tests.conftest import Running, new_journal, write_configuration

MASK = re.compile(r"hmac-sha256:[0-9a-f]{8}:[0-9a-f]{64}")
SENSITIVE = {"sensitive_tags": ["*_token", "*password*"], "hmac_key_file": "hmac.key"}


class Canaries:
    """Hands out secrets, and knows them all."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}

    def __call__(self, place: str) -> str:
        self.given[place] = f"canary{len(self.given):02}-zq7x-{place.replace(' ', '-')}"
        return self.given[place]


class Quoting(MemoryTransport):
    """Refuses one call in words that quote it, or loses its answer."""

    refuse = lose = ""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()

    async def send(self, request, *, writes, trace=""):
        name = request.rpc.rpartition(".")[2]
        self.sent[name] += 1
        if name == self.refuse:
            text = f"Invalid: {json.dumps(dict(request.message), default=str)}"
            raise RegistryRefused(text, status=400, error_code="INVALID_PARAMETER_VALUE")
        answer = await super().send(request, writes=writes, trace=trace)
        if name == self.lose:
            self.lose = ""
            raise OutcomeUnknown("no answer")
        return answer


@asynccontextmanager
async def serving(directory, **changes):
    """An application with the sink that prints, whose sensitive tags are configured."""
    (directory / "hmac.key").write_bytes(b"k" * 32)
    audit = {"sinks": ["stdout"], "reads": "on", **SENSITIVE, **changes.pop("audit", {})}
    configuration = load(write_configuration(directory, audit=audit, **changes), environ={})
    new_journal(configuration.journal_url())
    memory = Quoting()
    application = Application(configuration, backends={"main": MlflowBackend("main", memory)}, sinks=[StdoutSink()])
    async with application._lifespan(application.litestar):
        yield Running(application, memory)


def kept_in(directory) -> str:
    """All text of the journal, and its files as they are on disk."""
    with sqlite3.connect(directory / "journal.db") as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    raw = b"".join(path.read_bytes() for path in directory.glob("journal.db*"))
    return dump + raw.decode("latin-1")


async def send_credentials(client, canary):
    """Credentials, wherever a client could put them."""
    basic = base64.b64encode(f"user:{canary('basic')}".encode()).decode()
    target = "/api/2.0/mlflow/registered-models/create"
    for value in (f"Bearer {canary('bearer')}", f"Basic {basic}", f"Custom {canary('scheme')}", canary("bare")):
        reply = await client.be(None)("POST", target, {"name": "x"}, headers=[("authorization", value)])
        assert reply.status == 401
    canary.given["basic, encoded"] = basic
    headers = [(name, canary(name)) for name in ("x-api-key", "cookie", "idempotency-key", "x-databricks-token")]
    assert (await client("POST", target, {"name": "a"}, headers=headers)).status == 200
    assert (await client("POST", f"{target}?access_token={canary('query')}", {"name": "b"})).status == 400
    assert (await client("GET", f"/api/2.0/mlflow/nothing?token={canary('unknown')}")).status == 404
    await client("POST", "/v1/tokens", {"subject_token": canary("exchange")})


async def send_tags(it, client, canary, version):
    """Tags with sensitive keys, of everything that has tags; taken, refused, denied and not understood."""

    def tags(place: str) -> list[dict[str, str]]:
        return [{"key": "api_token", "value": canary(place)}, {"key": "plain", "value": "shown"}]

    for key in ("store_password", "api_token"):
        message = {"name": "iris", "version": version, "key": key, "value": canary(f"version {key}")}
        assert (await client.rpc("POST", "model-versions/set-tag", **message)).status == 200
    for number, (path, message) in enumerate(
        (
            ("registered-models/set-tag", {"name": "iris", "key": "api_token", "value": canary("model tag")}),
            ("registered-models/create", {"name": "kept", "tags": tags("kept answer")}),
        )
    ):
        for replayed in (None, "true"):
            keyed = [("idempotency-key", f"key-{number}")]
            reply = await client("POST", f"/api/2.0/mlflow/{path}", message, headers=keyed)
            assert (reply.status, reply.headers.get("idempotent-replayed")) == (200, replayed)
    it.memory.refuse = "setRegisteredModelTag"
    message = {"name": "iris", "key": "a_token", "value": canary('refused "quoted" one')}
    assert (await client.rpc("POST", "registered-models/set-tag", **message)).status == 400
    it.memory.refuse = "createRegisteredModel"  # whose change holds no tags, and whose refusal quotes them
    message = {"name": "never", "tags": tags("refused create")}
    assert (await client.rpc("POST", "registered-models/create", **message)).status == 400
    it.memory.refuse = ""
    for path, message in (
        ("registered-models/create", {"name": "again", "tags": tags("model create")}),
        ("runs/create", {"experiment_id": "0", "tags": tags("run create")}),
        ("runs/set-tag", {"run_id": "r", "key": "my_token", "value": canary("run tag")}),
        ("runs/log-batch", {"run_id": "r", "tags": tags("batch")}),
        ("experiments/create", {"name": "e", "tags": tags("experiment create")}),
        ("experiments/set-experiment-tag", {"experiment_id": "0", "key": "p_token", "value": canary("experiment")}),
        ("logged-models", {"experiment_id": "0", "tags": tags("logged model")}),
        ("registered-models/set-tag", {"name": "iris", "key": "a_token", "value": {"no": canary("malformed")}}),
        ("registered-models/set-tag", {"name": "iris", "key": "a_token", "worth": canary("unknown field")}),
        ("registered-models/set-tag", {"name": "none", "key": "a_token", "value": canary("no model")}),
    ):
        await client.rpc("POST", path, **message)
        await client.be("user:viewer").rpc("POST", path, **message)


async def send_urls(client, canary, version):
    """URLs with userinfo."""
    source = f"https://user:{canary('source')}@store/files"
    assert (await client.rpc("POST", "model-versions/create", name="iris", source=source)).status == 200
    await client.be("user:viewer").rpc("POST", "model-versions/create", name="iris", source=source)
    await client.rpc("POST", "experiments/create", name="f", artifact_location=source)
    posted = {"kind": "scan", "result": "passed", "facts": {}, "source": f"https://u:{canary('evidence')}@ci/1"}
    assert (await client("POST", f"{V1}/iris/versions/{version}/evidence", posted)).status == 201


async def judge(client, version):
    """What rules read, as a gate sees it, a reviewer, and who is refused."""
    shown = await client("GET", f"{V1}/iris/versions/{version}/review?environment=production")
    assert shown.status == 200
    assert MASK.fullmatch(shown.json["candidate"]["tags"]["store_password"])
    assert (await promote(client, version)).status == 409
    await satisfy(client, version)
    assert (await promote(client, version)).status == 200


async def test_no_secret_of_a_request_is_recorded_or_logged(tmp_path, capfd):
    canary = Canaries()
    rules = ["candidate.tags.store_password != 'x'"]
    registries = {"main": {"kind": "mlflow", "url": "http://127.0.0.1:1", "sources": ["https://"]}}
    async with serving(tmp_path, registries=registries, environments=environments(tmp_path, *rules)) as it:
        client = Client(it.application.asgi)
        version = await register(it, client)
        await send_credentials(client, canary)
        await send_tags(it, client, canary, version)
        await send_urls(client, canary, version)
        await judge(client, version)
        metrics = (await client("GET", "/metrics")).body.decode()
        events = await it.events()
    printed = capfd.readouterr()
    places = {
        "the journal": kept_in(tmp_path),
        "stdout": printed.out,
        "stderr": printed.err,
        "metrics": metrics,
        "events": json.dumps(events),
    }
    assert places["stdout"].count("hmac-sha256:") > 3
    found = [
        f"{place}: {what}: {text[max(0, text.find(secret[:13]) - 60) :][:120]}"
        for place, text in places.items()
        for what, secret in canary.given.items()
        if secret[:13] in text
    ]
    assert found == []
    recorded = [event["data"]["change"] for event in events if (event["data"].get("change") or {}).get("source")]
    assert "https://***@store/files" in {change["source"] for change in recorded}


async def test_without_sensitive_tags_their_values_are_recorded(tmp_path):
    """So the test above looks where they would be."""
    async with serving(tmp_path, audit={"sensitive_tags": [], "hmac_key_file": None}) as it:
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        await client.rpc("POST", "registered-models/set-tag", name="iris", key="api_token", value="canary-plain")
    assert "canary-plain" in kept_in(tmp_path)


@pytest.mark.parametrize(
    ("path", "rpc", "message"),
    [
        ("registered-models/set-tag", "setRegisteredModelTag", {"key": "api_token", "value": "v-s3cret"}),
        ("model-versions/create", "createModelVersion", {"source": "https://u:v-s3cret@store/x"}),
    ],
)
async def test_an_unsettled_change_of_a_secret_is_proved_and_joined(tmp_path, monkeypatch, path, rpc, message):
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    registries = {"main": {"kind": "mlflow", "url": "http://127.0.0.1:1", "sources": ["https://"]}}
    async with serving(tmp_path, registries=registries) as it:
        client = Client(it.application.asgi)
        it.application.reconciler._task.cancel()
        await client.rpc("POST", "registered-models/create", name="iris")
        it.memory.lose = rpc
        lost = await client.rpc("POST", path, name="iris", **message)
        assert lost.status == 424
        repeats = [asyncio.create_task(client.rpc("POST", path, name="iris", **message)) for _ in range(3)]
        assert (await client.be("user:viewer").rpc("POST", path, name="iris", **message)).status == 403
        assert await it.application.reconciler.sweep() == 0
        operation = lost.headers["registry-gateway-operation"]
        for answer in await asyncio.gather(*repeats):
            assert (answer.status, answer.headers["registry-gateway-operation"]) == (200, operation)
        assert it.memory.sent[rpc] == 1
        (last,) = [event["data"] for event in await it.events() if event["data"]["phase"] == "reconciled"]
        assert last["outcome"] == "succeeded", last["detail"]
    assert "v-s3cret" not in kept_in(tmp_path)


@pytest.mark.parametrize("key", [b"", b"x" * 31, None])
def test_a_key_that_hides_nothing_is_refused(tmp_path, key):
    from service.errors import BadConfiguration
    from service.parts import masks_of

    if key is not None:
        (tmp_path / "hmac.key").write_bytes(key)
    configuration = load(write_configuration(tmp_path, audit=SENSITIVE), environ={})
    with pytest.raises(BadConfiguration, match=r"audit\.hmac_key_file: .*(at least 32|No such file)"):
        masks_of(configuration)
