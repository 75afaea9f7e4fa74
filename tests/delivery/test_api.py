"""Webhooks of a whole gateway: what its events become, the API, the guide."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import subprocess
import sys

import pytest
import yaml

from service.errors import BadConfiguration
from service.settings import load
from tests.client import V1, Client
from tests.conftest import ROOT, free_port, write_configuration
from tests.delivery.receiver import receiving
from tests.promotion.flow import promote, register, simple

SECRET = "a secret of sixteen or more"


def sinks(tmp_path, *receivers, **more):
    (tmp_path / "hook.secret").write_text(SECRET)
    return {
        "sinks": [
            {"webhook": {"id": f"hook-{n}", "url": one.url, "secret_file": "hook.secret", "private": True, **more}}
            for n, one in enumerate(receivers)
        ]
    }


def words(receiver):
    """Give what a receiver was told, in MLflow's words or by the type of the event."""
    return [
        f"{got.json['entity']}.{got.json['action']}" if "entity" in got.json else got.json["type"]
        for got in receiver.got
    ]


async def test_a_promotion_is_told_in_mlflows_words_with_who_did_it(running, tmp_path):
    events = ["registered_model.created", "model_version.created", "model_version_alias.created"]
    async with (
        receiving() as receiver,
        running(audit=sinks(tmp_path, receiver, events=events), environments=simple(tmp_path)) as it,
    ):
        client = Client(it.application.asgi)
        version = await register(it, client)
        assert (await promote(client, version)).status == 200
        await receiver.until(lambda got: len(got) == 3)
        told = [got.json for got in receiver.got]
    assert words(receiver) == events
    assert told[1]["data"]["version"] == version
    assert told[1]["data"]["source"].startswith("runs:/")
    assert told[2]["data"] == {"name": "iris", "alias": "champion", "version": version}
    assert told[2]["actor"]["subject"] == "service:ci"
    assert (told[2]["before"], told[2]["after"]) == ({"version": None}, {"version": version})
    assert told[2]["type"] == "registry-gateway.environment.promote.outcome"


async def test_the_api_shows_endpoints_without_secrets_and_what_was_sent(running, tmp_path):
    async with (
        receiving() as good,
        receiving(answer=lambda _: 410) as gone,
        running(audit=sinks(tmp_path, good, gone)) as it,
    ):
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        await good.until(lambda got: len(got) == 2)
        await gone.until(lambda got: len(got) == 2)
        async with asyncio.timeout(10):
            while len((await client("GET", "/v1/webhooks/hook-1/deliveries")).json["deliveries"]) < 2:
                await asyncio.sleep(0.05)
        listed = await client("GET", "/v1/webhooks")
        assert [one["id"] for one in listed.json["webhooks"]] == ["hook-0", "hook-1"]
        assert listed.json["webhooks"][1]["parked"] == 2
        one = await client("GET", "/v1/webhooks/hook-0")
        assert one.json == {**listed.json["webhooks"][0], "behind": one.json["behind"]}
        assert one.json["origin"] == f"http://127.0.0.1:{good.port}"
        assert "/hook" not in listed.body.decode()
        assert SECRET not in listed.body.decode()
        page = await client("GET", "/v1/webhooks/hook-1/deliveries?state=parked&limit=1")
        (newest,) = page.json["deliveries"]
        assert (newest["state"], newest["status"], newest["attempts"]) == ("parked", 410, 1)
        assert newest["place"] == "main/iris"
        cursor = page.json["next_cursor"]
        rest = await client("GET", f"/v1/webhooks/hook-1/deliveries?state=parked&cursor={cursor}")
        assert (len(rest.json["deliveries"]), rest.json["next_cursor"]) == (1, None)
        assert (await client("GET", "/v1/webhooks/hook-1/deliveries?state=pending")).json["deliveries"] == []
        ready = (await client("GET", "/readyz")).json["sinks"]
        assert ready["webhook:hook-1"]["parked"] == 2
        metrics = (await client("GET", "/metrics")).body.decode()
        assert 'registry_gateway_sink_parked{sink="webhook:hook-1"} 2.0' in metrics
        assert 'registry_gateway_delivery_attempts_total{result="failed",sink="webhook:hook-1"} 2.0' in metrics


async def test_a_test_is_sent_once_and_recorded(running, tmp_path):
    async with receiving() as receiver, running(audit=sinks(tmp_path, receiver, models=["none"])) as it:
        client = Client(it.application.asgi)
        tried = await client("POST", "/v1/webhooks/hook-0/test")
        assert (tried.status, tried.json["delivered"], tried.json["status"]) == (200, True, 204)
        assert words(receiver) == ["registry-gateway.webhook.test.outcome"]
        receiver.answer = lambda _: 500
        failed = await client("POST", "/v1/webhooks/hook-0/test")
        assert (failed.json["delivered"], failed.json["problem"]) == (False, "it answered 500")
        recorded = await it.events(action="webhook:test")
        assert [event["data"]["outcome"] for event in recorded] == ["succeeded", "failed"]
        assert [event["data"]["operation"] for event in recorded] == [tried.json["operation"], failed.json["operation"]]
        assert receiver.got[0].json["data"]["operation"] == tried.json["operation"]
        assert recorded[1]["data"]["status"] == 500


async def test_one_test_is_under_way_at_a_time_and_recorded_though_its_caller_hangs_up(running, tmp_path):
    more = {"models": ["none"], "timeout_seconds": 1}
    async with (
        receiving(hangs=lambda _: True) as receiver,
        running(audit=sinks(tmp_path, receiver, **more)) as it,
    ):
        client = Client(it.application.asgi)
        first = asyncio.create_task(client("POST", "/v1/webhooks/hook-0/test"))
        await receiver.until(lambda got: len(got) == 1)
        second = await client("POST", "/v1/webhooks/hook-0/test")
        assert (second.status, second.json["detail"][:24]) == (409, "A test of this endpoint ")
        first.cancel()
        async with asyncio.timeout(10):
            while len(recorded := await it.events(action="webhook:test")) < 2:
                await asyncio.sleep(0.05)
        assert [event["data"]["outcome"] for event in recorded] == ["rejected", "failed"]
        receiver.hangs = lambda _: False
        assert (await client("POST", "/v1/webhooks/hook-0/test")).json["delivered"]
        assert len(receiver.got) == 2


async def test_what_was_parked_is_sent_again_when_somebody_says_so(running, tmp_path):
    async with (
        receiving(answer=lambda _: 410) as receiver,
        running(audit=sinks(tmp_path, receiver, events=["model.create.outcome"])) as it,
    ):
        client = Client(it.application.asgi)
        await client.rpc("POST", "registered-models/create", name="iris")
        async with asyncio.timeout(10):
            while not (found := (await client("GET", "/v1/webhooks/hook-0/deliveries")).json["deliveries"]):
                await asyncio.sleep(0.05)
        receiver.answer = lambda _: 204
        again = f"/v1/webhooks/hook-0/deliveries/{found[0]['id']}/redeliver"
        answered = await client("POST", again)
        assert (answered.status, answered.json["state"], answered.json["attempts"]) == (200, "pending", 0)
        await receiver.until(lambda got: len(got) == 2)
        first, second = (got.headers["webhook-id"] for got in receiver.got)
        assert first == second == found[0]["event"]
        recorded = await it.events(action="webhook:redeliver")
        assert [event["data"]["outcome"] for event in recorded] == ["succeeded"]
        async with asyncio.timeout(10):
            while (await client("GET", "/v1/webhooks/hook-0/deliveries")).json["deliveries"][0]["state"] != "delivered":
                await asyncio.sleep(0.05)
        assert (await client("POST", "/v1/webhooks/hook-0/deliveries/nothing/redeliver")).status == 404
        rejected = await it.events(action="webhook:redeliver", phase="rejected")
        assert len(rejected) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/webhooks/hook-0"),
        ("GET", "/v1/webhooks/hook-0/deliveries"),
        ("POST", "/v1/webhooks/hook-0/test"),
        ("POST", "/v1/webhooks/hook-0/deliveries/x/redeliver"),
    ],
)
async def test_who_may_not_is_refused_and_who_may_finds_only_what_there_is(running, tmp_path, method, path):
    async with receiving() as receiver, running(audit=sinks(tmp_path, receiver)) as it:
        client = Client(it.application.asgi)
        assert (await client.be("user:scientist")(method, path)).status == 403
        assert (await client.be("user:scientist")("GET", "/v1/webhooks")).json == {"webhooks": []}
        assert (await client(method, path.replace("hook-0", "hook-9"))).status == 404
        (denied,) = await it.events(phase="denied")
        assert denied["data"]["resource"] == "webhooks/hook-0"
        tried = [got for got in receiver.got if "webhook.test" in got.json["type"] and "outcome" in got.json["type"]]
        assert tried == []


async def test_a_test_with_an_idempotency_key_is_sent_once(running, tmp_path):
    async with receiving() as receiver, running(audit=sinks(tmp_path, receiver, models=["none"])) as it:
        client = Client(it.application.asgi)
        pair = [("idempotency-key", "k1")]
        first, second = [await client("POST", "/v1/webhooks/hook-0/test", headers=pair) for _ in range(2)]
        assert (first.status, first.json) == (second.status, second.json) == (200, second.json)
    assert len(receiver.got) == 1


@pytest.mark.parametrize(("rows", "status"), [(["main"], 403), (["main", "lake"], 200)])
async def test_a_right_on_an_endpoint_is_needed_on_every_registry(running, tmp_path, rows, status):
    policy = tmp_path / "rows.csv"
    policy.write_text("".join(f"p, user:admin, {name}, webhooks/*, webhook:*, allow\n" for name in rows))
    access = {"model": str(ROOT / "policies/model.conf"), "rows": str(policy)}
    registries = {name: {"kind": "mlflow", "url": "http://127.0.0.1:1"} for name in ("main", "lake")}
    more = {"access": access, "registries": registries, "default_registry": "main"}
    async with receiving() as receiver, running(audit=sinks(tmp_path, receiver), **more) as it:
        client = Client(it.application.asgi)
        assert (await client("GET", "/v1/webhooks/hook-0")).status == status
        assert (await client("POST", "/v1/webhooks/hook-0/test")).status == status
        assert len((await client("GET", "/v1/webhooks")).json["webhooks"]) == (status == 200)
        (event, *_) = await it.events(action="webhook:test")
        assert event["data"]["registry"] == ("" if status == 200 else "lake")


async def test_a_hanging_receiver_delays_neither_a_stop_nor_another_receiver(running, tmp_path):
    async with receiving(hangs=lambda _: True) as hanging, receiving() as good:
        async with running(audit=sinks(tmp_path, hanging, good)) as it:
            client = Client(it.application.asgi)
            for number in range(10):
                await client.rpc("POST", "registered-models/create", name=f"m{number}")
            await good.until(lambda got: len(got) == 20)
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun < 8


TO = {"cloudevents": {"id": "a", "url": "https://h.example/"}}
BAD = [
    ({"sinks": ["stdout", "stdout"]}, r"gateway.yaml:\d+: audit.sinks: stdout stands twice"),
    ({"sinks": ["kafka"]}, r"unknown sink 'kafka'; there are: stdout, file, webhook, cloudevents"),
    ({"sinks": [{}]}, "exactly one of file, webhook, cloudevents"),
    ({"sinks": [{"file": {"path": "x"}, "webhook": {"id": "a", "url": "https://x"}}]}, "exactly one of"),
    ({"sinks": [{"file": {"paht": "x"}}]}, "paht"),
    *(
        ({"sinks": [{"webhook": {"id": "a", "url": "https://h.example/", "secret_file": "s", **change}}]}, problem)
        for change, problem in [
            ({"id": "a/b"}, "webhook.id: 1 to 64 of"),
            ({"url": "ftp://h"}, r"webhook.url: https://host\[:port\]/path"),
            ({"url": "http://h.example/"}, "webhook.url: https is needed; http only to the own network"),
            ({"url": "https://u:p@h.example/"}, "webhook.url: no credentials"),
            ({"url": "https://10.0.0.1/"}, "webhook.url: 10.0.0.1 is not a public address; private: true allows"),
            ({"url": "https://１２７.0.0.1/"}, "webhook.url: １２７.0.0.1 is not ASCII"),
            ({"url": "http://8.8.8.8/", "private": True}, "8.8.8.8 is a public address, which needs https"),
            ({"url": "http://169.254.169.254/", "private": True}, "169.254.169.254 is no address that events are"),
            ({"secret_file": None}, "secret_file or secret_files is needed"),
            ({"secret_files": ["a", "b"]}, "secret_file or secret_files is needed, not both"),
            ({"secret_file": None, "secret_files": ["a", "b", "c"]}, "the new one and the old one, no more"),
            ({"timeout_seconds": 0}, "webhook.timeout_seconds: more than 0, at most 60"),
            ({"events": ["prompt.created"]}, "'prompt.created' is not sent by this version"),
            ({"events": ["alias.sett.outcome"]}, "'alias.sett.outcome' is no event; ours are"),
            ({"events": ["*"]}, r"'\*' is no event"),
            ({"secret": "plain"}, "secret"),
        ]
    ),
    (
        {"sinks": [{"cloudevents": {"id": "a", "url": "https://h.example/", "events": ["model_version.created"]}}]},
        "is one of MLflow's names",
    ),
    ({"sinks": [TO, {"webhook": {**TO["cloudevents"], "secret_file": "s"}}]}, "endpoint a stands twice"),
]  # fmt: skip


@pytest.mark.parametrize(("audit", "problem"), BAD)
def test_a_sink_that_cannot_be_is_refused_by_name_and_line(tmp_path, audit, problem):
    with pytest.raises(BadConfiguration, match=problem) as refused:
        load(write_configuration(tmp_path, audit=audit), environ={})
    assert re.match(r".*gateway\.yaml:\d+: ", refused.value.detail)


@pytest.mark.parametrize("secret", [None, "short", "", "whsec_-__-__-__-__-__-__-__-__", "whsec_no base64 at all"])
def test_a_secret_that_cannot_be_used_is_found_by_check(tmp_path, secret):
    if secret is not None:
        (tmp_path / "s").write_text(secret)
    hook = {"webhook": {"id": "a", "url": "https://h.example/", "secret_file": "s"}}
    path = write_configuration(tmp_path, audit={"sinks": [hook]})
    command = [sys.executable, "-m", "service", "check", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "audit.sinks.0.webhook.secret_file" in done.stdout + done.stderr


def test_a_file_in_no_directory_is_found_by_check(tmp_path):
    path = write_configuration(tmp_path, audit={"sinks": [{"file": {"path": "nowhere/events.jsonl"}}]})
    command = [sys.executable, "-m", "service", "check", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "audit.sinks.0.file.path" in done.stdout + done.stderr


def part(kind: str, number: int = 0) -> str:
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs/webhooks.md").read_text(), re.DOTALL)[number]


@pytest.mark.parametrize("document", ["audit.md", "webhooks.md"])
def test_the_sinks_that_the_guides_show_can_be(tmp_path, document):
    blocks = re.findall(r"```yaml\n(audit:\n.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        settings = load(write_configuration(tmp_path, **yaml.safe_load(block)), environ={}).settings
        assert len(settings.audit.sinks) > 1


async def test_the_guide_works(running, tmp_path):
    """The secret, the receiver and the answers that the guide shows."""
    await asyncio.to_thread(subprocess.run, ["bash", "-ec", part("bash")], cwd=tmp_path, check=True)
    assert len(base64.b64decode((tmp_path / "ci.secret").read_text().strip().removeprefix("whsec_"))) == 32
    (tmp_path / "receiver.py").write_text(part("python"))
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "receiver.py", "ci.secret", str(port)), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert (await asyncio.wait_for(process.stdout.readline(), 10)).startswith(b"listening on")
        hook = {
            "id": "ci",
            "url": f"http://127.0.0.1:{port}/",
            "secret_file": "ci.secret",
            "private": True,
            "events": ["model_version.created", "model_version_alias.created", "environment.promote.*"],
        }
        async with running(audit={"sinks": [{"webhook": hook}]}, environments=simple(tmp_path)) as it:
            client = Client(it.application.asgi)
            version = await register(it, client)
            await client("POST", f"{V1}/iris/environments/production/promotions", {"version": version})
            said = [await asyncio.wait_for(process.stdout.readline(), 10) for _ in range(3)]
            assert said == [
                b"model_version iris\n",
                b"registry-gateway.environment.promote.intent None\n",
                b"model_version_alias iris\n",
            ]
            tried = await client("POST", "/v1/webhooks/ci/test")
            assert set(tried.json) == set(json.loads(part("json", 1)))
            assert tried.json["delivered"]
            async with asyncio.timeout(10):
                while not (found := (await client("GET", "/v1/webhooks/ci/deliveries")).json["deliveries"]):
                    await asyncio.sleep(0.05)
            assert set(found[0]) == set(json.loads(part("json", 2))["deliveries"][0])
            (tmp_path / "ci.secret").write_text("another secret, which the receiver does not know")
            assert (await client("POST", "/v1/webhooks/ci/test")).json["status"] == 401
    finally:
        process.kill()
        await process.wait()
