"""Sinks without a network: addresses, signatures, MLflow's words, filters, files."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import io
import ipaddress
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.change import (
    AliasDelete,
    AliasSet,
    ModelCreate,
    ModelDelete,
    Promotion,
    Retirement,
    StageSet,
    TagDelete,
    TagSet,
    VersionCreate,
    VersionDelete,
)
from service.delivery.ports import SinkFailed
from service.event import canonical_json
from service.sinks.addresses import ForbiddenAddress, check_address, is_private, is_public
from service.sinks.file import FileSink
from service.sinks.filters import Filter
from service.sinks.mlflow_shapes import NAMES, NOT_TOLD, body_of, messages_of
from service.sinks.signing import signature_headers
from service.sinks.stdout import StdoutSink
from tests.delivery.events import event_about

PUBLIC = ["8.8.8.8", "2606:4700::1111", "198.51.99.1"]
OWN = ["127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd00::1"]
NEVER = [
    *("0.0.0.0", "169.254.169.254", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
    *("::", "fe80::1", "fe80::1%eth0", "ff02::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::127.0.0.1"),
    *("2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "2001:0:1::1", "2001:db8::1", "fd00::1%eth0"),
]


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("address", [*PUBLIC, *OWN, *NEVER])
def test_which_addresses_are_connected_to(address, encrypted, private):
    allowed = encrypted if address in PUBLIC else private and address in OWN
    if allowed:
        check_address(address, private=private, encrypted=encrypted)
    else:
        with pytest.raises(ForbiddenAddress, match=r"https|no address|not a public"):
            check_address(address, private=private, encrypted=encrypted)


@given(st.ip_addresses())
def test_no_address_is_public_and_of_the_own_network(address):
    assert not (is_public(address) and is_private(address))
    if is_public(address):
        assert address.is_global
        assert not any((address.is_private, address.is_multicast, address.is_loopback, address.is_link_local))
    if isinstance(address, ipaddress.IPv4Address):
        assert not is_public(ipaddress.ip_address(f"::ffff:{address}"))
        assert not is_private(ipaddress.ip_address(f"::ffff:{address}"))


def verify_mlflow_signature(payload, signature, secret, delivery_id, timestamp):
    """Verify as MLflow's guide on webhooks has it."""
    if not signature.startswith("v1,"):
        return False
    signature_b64 = signature.removeprefix("v1,")
    signed_content = f"{delivery_id}.{timestamp}.{payload}"
    expected = hmac.new(secret.encode("utf-8"), signed_content.encode("utf-8"), hashlib.sha256).digest()
    return hmac.compare_digest(signature_b64, base64.b64encode(expected).decode("utf-8"))


def test_a_receiver_of_mlflow_verifies_and_mlflow_signs_the_same():
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = '{"entity":"model_version_alias","n":"\\u00e9"}'
    headers = signature_headers(["the-secret-of-mlflow", "old"], "id-1", 1700000000, body.encode())
    names = ("X-MLflow-Delivery-Id", "X-MLflow-Timestamp", "X-MLflow-Signature")
    identifier, at, signature = (headers[name] for name in names)
    assert verify_mlflow_signature(body, signature, "the-secret-of-mlflow", identifier, at)
    assert not verify_mlflow_signature(body + " ", signature, "the-secret-of-mlflow", identifier, at)
    assert signature == _generate_hmac_signature("the-secret-of-mlflow", "id-1", "1700000000", body)


def test_standard_webhooks_own_vector():
    """The vector of the Standard Webhooks libraries."""
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    headers = signature_headers([secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330")


def test_two_secrets_make_two_signatures():
    new, old = "n" * 20, "o" * 20
    both = signature_headers([new, old], "i", 1, b"x")["webhook-signature"].split(" ")
    assert both == [signature_headers([one], "i", 1, b"x")["webhook-signature"] for one in (new, old)]
    assert len(set(both)) == 2


def told(change, *, aliases=(), **fields):
    event = event_about("iris")
    event["data"] |= {"change": {"kind": type(change).__name__, **dataclasses.asdict(change)}, "version": "3", **fields}
    return messages_of(event, lambda *_: aliases)


CASES = [
    (ModelCreate("iris"), "registered_model.created", {"name": "iris", "tags": {}, "description": None}),
    (
        VersionCreate("iris", "runs:/r/m", "r"),
        "model_version.created",
        {"name": "iris", "version": "3", "source": "runs:/r/m", "run_id": "r", "tags": {}, "description": None},
    ),
    (
        TagSet("iris", "3", "k", "v"),
        "model_version_tag.set",
        {"name": "iris", "version": "3", "key": "k", "value": "v"},
    ),
    (TagDelete("iris", "3", "k"), "model_version_tag.deleted", {"name": "iris", "version": "3", "key": "k"}),
    (
        AliasSet("iris", "blue", "3"),
        "model_version_alias.created",
        {"name": "iris", "alias": "blue", "version": "3"},
    ),
    (AliasDelete("iris", "blue"), "model_version_alias.deleted", {"name": "iris", "alias": "blue"}),
]


@pytest.mark.parametrize(("change", "name", "data"), CASES, ids=[case[1] for case in CASES])
def test_mlflows_names_have_mlflows_bodies(change, name, data):
    from mlflow.entities.webhook import WebhookAction, WebhookEntity
    from mlflow.webhooks.types import EVENT_TO_PAYLOAD_CLASS

    assert told(change) == [(name, data)]
    entity, action = name.split(".")
    shape = EVENT_TO_PAYLOAD_CLASS[WebhookEntity(entity), WebhookAction(action)]
    assert set(shape.__annotations__) == set(data)
    event = event_about("iris")
    body = body_of(event, (name, data))
    assert (body["entity"], body["action"], body["data"]) == (entity, action, data)
    assert {"timestamp", "actor", "before", "after", "operation", "id", "source", "type"} <= set(body)


def test_each_of_mlflows_names_is_told_or_named_as_not_told():
    from mlflow.webhooks.types import EVENT_TO_PAYLOAD_CLASS

    theirs = {f"{entity.value}.{action.value}" for entity, action in EVENT_TO_PAYLOAD_CLASS}
    assert theirs == NAMES | NOT_TOLD
    assert not NAMES & NOT_TOLD
    assert {case[1] for case in CASES} == NAMES


@pytest.mark.parametrize(
    ("change", "fields", "aliases", "expected"),
    [
        (Promotion("iris", "production", "3"), {}, ("champion",), ["created champion"]),
        (Promotion("iris", "production", "3"), {}, ("champion", "live"), ["created champion", "created live"]),
        (Promotion("iris", "production", "3"), {"before": {"version": "3"}}, ("champion",), []),
        (AliasSet("iris", "champion", "3"), {}, ("champion", "live"), ["created champion", "created live"]),
        (StageSet("iris", "3", "Production", archive=True), {}, ("champion",), ["created champion"]),
        (StageSet("iris", "3", "Production", archive=True), {"environment": None}, ("champion",), []),
        (Retirement("iris", "production"), {}, ("champion",), ["deleted champion"]),
        (AliasDelete("iris", "champion"), {}, ("champion",), ["deleted champion"]),
    ],
)
def test_a_promotion_is_told_by_the_aliases_that_it_sets(change, fields, aliases, expected):
    fields = {"environment": "production", "before": {"version": "2"}, "after": {"version": "3"}, **fields}
    found = told(change, aliases=aliases, **fields)
    assert [f"{name.rpartition('.')[2]} {data['alias']}" for name, data in found] == expected


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (ModelDelete("iris"), {}),
        (VersionDelete("iris", "3"), {}),
        (TagSet("iris", "", "k", "v"), {}),  # MLflow has no name for a registered model's tags
        (AliasSet("iris", "blue", "3"), {"phase": "intent", "outcome": None}),
        (AliasSet("iris", "blue", "3"), {"outcome": "failed"}),
        (AliasSet("iris", "blue", "3"), {"phase": "denied", "outcome": "denied"}),
    ],
)
def test_what_mlflow_would_not_tell_has_no_name_of_its(change, fields):
    assert told(change, **fields) == []


@pytest.mark.parametrize(
    ("chosen", "about", "named"),
    [
        (Filter(), True, True),
        (Filter(models=("iris",)), True, True),
        (Filter(models=("ir*",)), True, True),
        (Filter(models=("wine", "i")), False, True),
        (Filter(environments=("production",)), True, True),
        (Filter(environments=("staging",)), False, True),
        (Filter(events=("alias.set.outcome",)), True, True),
        (Filter(events=("alias.set.*",)), True, True),
        (Filter(events=("alias.*",)), True, True),
        (Filter(events=("alias.set.intent", "environment.*")), True, False),
        (Filter(events=("model_version_alias.created",)), True, False),
    ],
)
def test_filters(chosen, about, named):
    event = event_about("iris", environment="production")
    assert (chosen.about(event), chosen.named(event)) == (about, named)


async def test_a_line_that_broke_off_spoils_no_other(monkeypatch):
    """On a full disk half a line is written; what was not is written again."""
    written, room = bytearray(), [30, 0]

    def write(_: int, data: memoryview) -> int:
        if room and not (left := room.pop(0)):
            raise OSError(28, "No space left on device")
        taken = data[: left if room else None]
        written.extend(taken)
        return len(taken)

    monkeypatch.setattr(os, "write", write)
    sink, event = StdoutSink(), event_about("a")
    with pytest.raises(SinkFailed):
        await sink.write([event])
    await sink.write([event])
    await sink.write([event])
    assert bytes(written).splitlines()[1:] == [canonical_json(event)] * 2


async def test_stdout_prints_a_line_for_each_event():
    printed = io.StringIO()
    events = [event_about("iris", "a\n"), event_about("wine")]
    await StdoutSink(printed).write(events)
    assert [json.loads(line) for line in printed.getvalue().splitlines()] == events


async def test_a_file_is_made_for_its_owner_and_followed_when_it_is_rotated(tmp_path):
    path = tmp_path / "events.jsonl"
    path.touch(0o644)
    sink = FileSink(path)
    await sink.write([event_about("a"), event_about("b")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.rename(tmp_path / "events.1")
    await sink.write([event_about("c")])
    path.unlink()
    await sink.write([event_about("d")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for name, models in (("events.1", "ab"), ("events.jsonl", "d")):
        lines = (tmp_path / name).read_text().splitlines()
        assert [json.loads(line)["data"]["model"] for line in lines] == list(models)
    await sink.close()


async def test_a_full_disk_leaves_no_half_line_and_is_tried_again(tmp_path, monkeypatch):
    path, written = tmp_path / "events.jsonl", os.write
    sink = FileSink(path)
    await sink.write([event_about("a")])
    before = path.read_bytes()

    def full(file, data):
        if path.stat().st_size > len(before) + 100:
            raise OSError(28, "No space left on device")
        return written(file, bytes(data[:80]))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SinkFailed, match="No space left on device"):
        await sink.write([event_about("b")])
    assert path.read_bytes() == before
    monkeypatch.undo()
    await sink.write([event_about("b")])
    assert [json.loads(line)["data"]["model"] for line in path.read_text().splitlines()] == ["a", "b"]
    await sink.close()


async def test_half_a_line_that_a_kill_left_is_cut(tmp_path):
    path = tmp_path / "events.jsonl"
    for before in (b"", canonical_json(event_about("a")) + b"\n"):
        path.write_bytes(before + canonical_json(event_about("b"))[:300])
        sink = FileSink(path)
        await sink.write([event_about("c")])
        await sink.close()
        models = [json.loads(line)["data"]["model"] for line in path.read_text().splitlines()]
        assert models == (["a", "c"] if before else ["c"])


async def test_a_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(b"x" * 100_000)
    with pytest.raises(SinkFailed, match="no lines of events"):
        await FileSink(path).write([event_about("a")])
    assert path.stat().st_size == 100_000


@pytest.mark.parametrize("content", [b"precious: yes", b"precious:\n- yes"])
async def test_the_last_line_of_something_else_is_no_half_event(tmp_path, content):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    path.chmod(0o644)
    with pytest.raises(SinkFailed, match="no lines of events"):
        await FileSink(path).write([event_about("a")])
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


async def test_what_is_no_file_stays_as_it_is_and_no_descriptor_with_it(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    path.chmod(0o644)
    sink = FileSink(path)
    for _ in range(3):
        with pytest.raises(SinkFailed, match="a device or a pipe"):
            await sink.write([event_about("a")])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path not in opened()


def opened():
    """List what this process has open."""
    return [one.readlink() for one in Path("/proc/self/fd").iterdir() if one.is_symlink()]


def test_a_pipe_that_does_not_block_gets_whole_lines():
    """What shares the pipe may have set it so: a line that was begun is ended when there is room again."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    program = (
        "import asyncio; from service.sinks.stdout import StdoutSink; from tests.delivery.events import event_about\n"
        "asyncio.run(StdoutSink().write([event_about(f'm{n}') for n in range(400)]))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=writer) as printing:
        os.close(writer)
        with os.fdopen(reader, "rb") as printed:
            lines = [json.loads(line) for line in printed]
    assert printing.returncode == 0
    assert [line["data"]["model"] for line in lines] == [f"m{number}" for number in range(400)]


async def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "events").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SinkFailed):
        await FileSink(tmp_path / "events").write([event_about("a")])
    assert not (tmp_path / "elsewhere").exists()


async def test_a_reader_that_hangs_holds_up_nobody_else():
    import threading

    gate = threading.Event()
    hanging = SimpleNamespace(write=lambda _: gate.wait(20), flush=lambda: None)
    stuck = asyncio.create_task(StdoutSink(hanging).write([event_about("a")]))  # type: ignore[arg-type]
    printed = io.StringIO()
    await asyncio.wait_for(StdoutSink(printed).write([event_about("b")]), 5)
    assert printed.getvalue()
    assert not stuck.done()
    gate.set()
    await stuck
