"""What keeps one caller from taking everything: shares, sums of failed authentications, bounds of what is parsed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import pytest
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service import asgi, floods
from service.dialects import wire
from service.dialects.otlp import read_export
from service.errors import Busy, InvalidRequest, JournalUnavailable, RequestTimeout
from service.shares import Shares
from service.strict import parse_json


def test_a_principal_holds_its_share_and_no_more() -> None:
    shares = Shares(2, "files")
    with shares.hold("user:a"), shares.hold("user:a"):
        with pytest.raises(Busy, match="user:a has 2 files under way"), shares.hold("user:a"):
            pass
        with shares.hold("user:b"):
            pass
    with shares.hold("user:a"):
        assert shares._held == {"user:a": 1}
    assert not shares._held


class Sums:
    """Takes what a trail would record."""

    def __init__(self) -> None:
        self.documents: list[dict] = []
        self.down = False

    @property
    def journal(self) -> Sums:
        return self

    async def operation_events(self, _: str) -> list[dict]:
        return []

    def sums(self, documents: Iterable[dict]) -> list[dict]:
        return [{"data": item} for item in documents]

    async def summed(self, events: list[dict]) -> None:
        if self.down:
            raise JournalUnavailable("down")
        self.documents += [item["data"] for item in events]


async def test_a_flood_of_failures_is_summed_and_none_is_lost() -> None:
    now, trail = [0.0], Sums()
    flood = floods.Floods(trail, floods.failures, floods.OTHERS, lambda: now[0])
    single = sum(flood.admits("10.0.0.1") for _ in range(1000))
    assert single == floods.EACH_MINUTE
    assert flood.admits("10.0.0.2")
    trail.down = True
    await flood.flush()
    trail.down = False
    await flood.flush()
    await flood.flush()
    assert [(item["count"], item["actor"]["address"], item["phase"]) for item in trail.documents] == [
        (1000 - single, "10.0.0.1", "denied")
    ]
    now[0] = 61.0
    assert flood.admits("10.0.0.1")


async def test_many_addresses_are_bounded_together() -> None:
    trail = Sums()
    flood = floods.Floods(trail, floods.failures, floods.OTHERS, lambda: 0.0)
    assert sum(flood.admits(f"10.0.{index >> 8}.{index & 255}") for index in range(20_000)) == floods.ALL_MINUTE
    await flood.flush()
    assert len(trail.documents) == floods._MAX_SUMS + 1
    assert sum(item["count"] for item in trail.documents) == 20_000 - floods.ALL_MINUTE
    assert trail.documents[-1]["actor"]["address"] == "others"


@pytest.mark.parametrize("text", ["[" + "[]," * 200_000 + "[]]", "[" + "0," * 1_000_001 + "0]", "{" * 200_001])
def test_a_body_of_very_many_values_is_not_parsed(text: str) -> None:
    with pytest.raises(InvalidRequest, match="objects and lists"):
        parse_json(text.encode())


def test_a_large_body_of_few_values_is() -> None:
    assert len(parse_json(json.dumps({"a": "x" * (8 << 20)}).encode())["a"]) == 8 << 20


def nested(inner: bytes, *tags: bytes) -> bytes:
    for tag in tags:
        size, length = len(inner), b""
        while size >= 0x80:
            length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
        inner = tag + length + bytes([size]) + inner
    return inner


def spans(count: int, attributes: int = 0) -> bytes:
    message = ExportTraceServiceRequest()
    scope = message.resource_spans.add().scope_spans.add()
    for _ in range(count):
        span = scope.spans.add(trace_id=b"t" * 16, span_id=b"s" * 8, name="n")
        for _ in range(attributes):
            span.attributes.add(key="k").value.string_value = "v"
    return message.SerializeToString()


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a\x00" * 200_001,  # empty resource_spans
        nested(b"\x12\x00" * 200_001, b"\x12", b"\x0a"),  # empty spans in one scope
        spans(1, 200_000),
    ],
)
def test_an_export_of_very_many_messages_is_not_parsed(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="more than 200000"):
        read_export(body, is_json=False, owner="user:ann")


def test_an_ordinary_export_is() -> None:
    _, traces = read_export(spans(2000, 10), is_json=False, owner="user:ann")
    assert traces == [f"tr-{(b't' * 16).hex()}"]


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x05", b"\x0f", b"\xff" * 11, b"\x0a\x02\x12\x05", b"\x09\x01"])
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        wire.check_size(body, ExportTraceServiceRequest.DESCRIPTOR)


async def test_a_body_that_stalls_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "IDLE_SECONDS", 0.05)
    first = {"type": "http.request", "body": b"x", "more_body": True}
    events = [first]

    async def receive() -> dict:
        return events.pop() if events else await asyncio.get_running_loop().create_future()

    body = asgi.stream_body(receive)
    assert await anext(body) == b"x"
    with pytest.raises(RequestTimeout):
        await anext(body)


async def test_a_body_that_drips_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "WHOLE_SECONDS", 0.05)

    async def receive() -> dict:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"", "more_body": True}

    scope = {"headers": [(b"content-type", b"application/json")]}
    with pytest.raises(RequestTimeout):
        await asgi.read_body(scope, receive, 100)
