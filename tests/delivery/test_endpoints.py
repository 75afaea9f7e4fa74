"""Endpoints over real sockets: what hangs, refuses, redirects, rebinds or shows the wrong certificate."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import ssl
import time

import aiohttp
import pytest

from service.backends.credentials import Secret, tls_context
from service.errors import BadConfiguration
from service.event import canonical_json
from service.sinks.cloudevents import CloudEvents
from service.sinks.filters import Filter
from service.sinks.posting import Endpoint, Poster
from service.sinks.signing import check_secret
from service.sinks.webhook import Webhook
from tests.conftest import free_port
from tests.delivery.events import event_about
from tests.delivery.receiver import receiving
from tests.faults.test_tls import Authority

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


def at(*addresses: str):
    """Resolve every name to *addresses*, one answer for each time it is asked; the last one stays."""
    answers = list(addresses)
    asked = []

    async def look_up(host, port, family):
        asked.append(host)
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    look_up.asked = asked
    return look_up


async def post(url, lookup=None, body=b"{}", **how):
    poster = Poster(Endpoint(url, **{"private": True, "timeout_seconds": 5.0, **how}), lookup)
    try:
        return await poster.post(body, {"Content-Type": "application/json"})
    finally:
        await poster.close()


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_two_hundred_and_something_is_delivered(status):
    async with receiving(answer=lambda _: status) as receiver:
        sent = await post(receiver.url, body=b'{"a":1}')
    assert (sent.status, sent.problem) == (status, "")
    assert receiver.got[0].body == b'{"a":1}'
    assert receiver.got[0].headers["User-Agent"] == "registry-gateway"


@pytest.mark.parametrize(
    ("status", "headers", "problem", "gone", "again"),
    [
        (500, {}, "it answered 500", False, 0),
        (404, {}, "it answered 404", False, 0),
        (503, {"Retry-After": "31536000"}, "it answered 503", False, 31_536_000.0),
        (503, {"Retry-After": "9" * 400}, "it answered 503", False, 999_999_999.0),
        (503, {"Retry-After": "120"}, "it answered 503", False, 120),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "it answered 429", False, 0),
        (410, {}, "it answered 410; it wants nothing any more", True, 0),
        (302, {"Location": "/elsewhere"}, "it answered 302; redirects are not followed", False, 0),
        (308, {"Location": "http://169.254.169.254/"}, "it answered 308; redirects are not followed", False, 0),
    ],
)
async def test_everything_else_is_not(status, headers, problem, gone, again):
    async with receiving(answer=lambda _: status, headers=headers) as receiver:
        sent = await post(receiver.url)
    assert (sent.status, sent.problem, sent.gone, sent.retry_after_seconds) == (status, problem, gone, again)
    assert receiver.paths == ["/hook"]


async def test_who_does_not_answer_is_given_up_in_time():
    async with receiving(hangs=lambda _: True) as receiver:
        begun = time.monotonic()
        sent = await post(receiver.url, timeout_seconds=0.3)
    assert sent.problem == "no answer within 0.3 seconds"
    assert time.monotonic() - begun < 3


async def test_what_follows_the_head_of_an_answer_does_not_matter():
    async with receiving(slow_body=True) as receiver:
        sent = await post(receiver.url)
    assert (sent.status, sent.problem) == (200, "")


async def test_a_receiver_that_speaks_no_http_is_a_failed_attempt_and_the_path_stays_secret():
    async def babble(reader, writer):
        await reader.read(10)
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    sent = await post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/services/T0P-SECRET")
    server.close()
    assert sent.problem
    assert "SECRET" not in sent.problem


async def test_nobody_there_is_a_failed_attempt():
    sent = await post(f"http://127.0.0.1:{free_port()}/")
    assert "Connect" in sent.problem
    assert sent.status is None


@pytest.mark.parametrize(
    ("url", "addresses", "how", "problem"),
    [
        ("https://hooks.example/", ["127.0.0.1"], {"private": False}, "127.0.0.1 is not a public address"),
        ("https://hooks.example/", ["10.0.0.8"], {"private": False}, "10.0.0.8 is not a public address"),
        ("https://hooks.example/", ["169.254.169.254"], {}, "169.254.169.254 is no address"),
        ("https://hooks.example/", ["::ffff:127.0.0.1"], {}, "::ffff:127.0.0.1 is no address"),
        ("https://127.0.0.1/", [], {"private": False}, "127.0.0.1 is not a public address"),
        ("https://[::1]/", [], {"private": False}, "::1 is not a public address"),
        ("https://[::ffff:10.0.0.1]/", [], {}, "::ffff:10.0.0.1 is no address"),
        ("http://169.254.169.254/latest", [], {}, "169.254.169.254 is no address"),
        ("http://hooks.example/", ["8.8.8.8"], {}, "8.8.8.8 is a public address, which needs https"),
        ("http://8.8.8.8/", [], {}, "8.8.8.8 is a public address, which needs https"),
    ],
)
async def test_where_nothing_is_sent(url, addresses, how, problem):
    sent = await post(url, at(*(addresses or ["192.0.2.1"])), **how)
    assert sent.problem.startswith(problem), sent.problem


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost", "0"])
async def test_other_spellings_of_the_own_host_are_resolved_and_refused(host):
    sent = await post(f"https://{host}/", private=False)
    words = ("is not a public address", "is no address", "none that can be connected to")
    assert any(word in sent.problem for word in words), sent.problem


@pytest.mark.parametrize("host", ["１２７.0.0.1", "127。0。0。1", "①②⑦.0.0.1"])
async def test_an_address_in_other_digits_is_not_connected_to(host):
    came = []
    server = await asyncio.start_server(lambda _, writer: (came.append(1), writer.close()), "127.0.0.1", 0)
    async with server:
        sent = await post(f"https://{host}:{server.sockets[0].getsockname()[1]}/", private=False)
    assert "is not ASCII" in sent.problem
    assert not came


@pytest.mark.parametrize("flood", [b"HTTP/1.1 103 Early\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"])
async def test_a_flood_of_answers_comes_in_little_by_little(flood, monkeypatch):
    parsed = []
    fed = aiohttp.client_proto.ResponseHandler.data_received

    def data_received(self, data):
        parsed.append(len(data))
        fed(self, data)

    monkeypatch.setattr(aiohttp.client_proto.ResponseHandler, "data_received", data_received)

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(flood * 10_000)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        await post(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout_seconds=0.5)
    assert parsed
    assert max(parsed) <= 64 << 10


async def test_a_name_that_leads_elsewhere_at_the_next_connection_is_checked_again():
    lookup = at("127.0.0.1", "169.254.169.254")
    async with receiving() as receiver:
        poster = Poster(Endpoint(f"http://hooks.example:{receiver.port}/", 5.0, private=True), lookup)
        assert not (await poster.post(b"{}", {})).problem
        assert receiver.got[0].headers["Host"] == f"hooks.example:{receiver.port}"
        assert lookup.asked == ["hooks.example"]  # one look for one connection: what was checked is what is used
        await poster.close()
        poster = Poster(poster.endpoint, lookup)
        assert "169.254.169.254 is no address" in (await poster.post(b"{}", {})).problem
        await poster.close()
    assert len(receiver.got) == 1


async def test_one_bad_address_among_several_is_enough():
    async def both(*_):
        return ["8.8.8.8", "10.0.0.1"]

    assert "10.0.0.1 is not a public address" in (await post("https://hooks.example/", both, private=False)).problem


async def test_a_resolver_that_hangs_ends_with_the_attempt():
    async def never(*_):
        await asyncio.Event().wait()

    assert "no answer within" in (await post("https://hooks.example/", never, timeout_seconds=0.2)).problem


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    async with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert not (await post(receiver.url)).problem
    assert (len(proxy.got), len(receiver.got)) == (0, 1)


@pytest.mark.parametrize(
    ("host", "days", "by", "problem"),
    [
        ("hooks.example", 1, "ours", ""),
        ("other.example", 1, "ours", "hostname mismatch"),
        ("hooks.example", -1, "ours", "expired"),
        ("hooks.example", 1, "theirs", "certificate verify failed"),
    ],
)
async def test_the_certificate_is_checked_for_the_name(tmp_path, host, days, by, problem):
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(*(ours if by == "ours" else theirs).issue("server", host=host, days=days))
    trusted = tls_context("x", ours.path, None, None)
    async with receiving(shown) as receiver:
        sent = await post(f"https://hooks.example:{receiver.port}/", at("127.0.0.1"), tls=trusted)
    assert problem.lower() in sent.problem.lower()
    assert bool(sent.problem) == bool(problem)
    assert len(receiver.got) == (0 if problem else 1)


def hook(receiver, *secrets, chosen=None, aliases=()):
    poster = Poster(Endpoint(receiver.url, 5.0, private=True))
    given = [one if callable(one) else (lambda text=one: text) for one in secrets or (SECRET,)]
    return Webhook("ci", poster, given, chosen or Filter(), lambda *_: aliases)


def verifies(got, key: bytes) -> bool:
    """Verify as the specification of Standard Webhooks says."""
    signed = f"{got.headers['webhook-id']}.{got.headers['webhook-timestamp']}.".encode() + got.body
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return expected in got.headers["webhook-signature"].split(" ")


async def test_a_webhook_speaks_mlflows_words_and_ours():
    alias, other = event_about("iris"), event_about("iris", phase="denied")
    async with receiving() as receiver:
        sink = hook(receiver)
        assert not (await sink.send(alias)).problem
        assert not (await sink.send(other)).problem
        await sink.close()
    mlflow, ours = receiver.got
    assert mlflow.headers["Content-Type"] == "application/json"
    assert (mlflow.json["entity"], mlflow.json["action"]) == ("model_version_alias", "created")
    assert mlflow.json["data"] == {"name": "iris", "alias": "blue", "version": "1"}
    assert ours.headers["Content-Type"] == "application/cloudevents+json"
    assert ours.json == other
    for got, event in ((mlflow, alias), (ours, other)):
        assert got.headers["webhook-id"] == got.headers["X-MLflow-Delivery-Id"] == event["id"]
        assert verifies(got, b"k" * 32)
        assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 60


async def test_each_alias_of_a_promotion_is_a_message_and_all_have_to_be_taken():
    event = event_about("iris", "champion", environment="production")
    refused = [500]
    async with receiving(
        answer=lambda got: refused.pop() if got.json["data"]["alias"] == "live" and refused else 204
    ) as it:
        sink = hook(it, aliases=("champion", "live"))
        assert (await sink.send(event)).problem == "it answered 500"
        assert not (await sink.send(event)).problem
        await sink.close()
    assert [got.json["data"]["alias"] for got in it.got] == ["champion", "live"] * 2
    assert [got.headers["webhook-id"] for got in it.got] == [event["id"], f"{event['id']}.2"] * 2


@pytest.mark.parametrize(
    ("chosen", "body"),
    [
        (Filter(), "mlflow"),
        (Filter(events=("model_version_alias.created",)), "mlflow"),
        (Filter(events=("alias.set.outcome",)), "ours"),
        (Filter(events=("alias.set.outcome", "model_version_alias.created")), "mlflow"),
        (Filter(events=("model_version.created",)), None),
        (Filter(models=("wine",)), None),
        (Filter(environments=("production",)), None),
    ],
)
async def test_what_is_sent_is_what_was_chosen(chosen, body):
    event = event_about("iris")
    async with receiving() as receiver:
        sink = hook(receiver, chosen=chosen)
        assert sink.wants(event) == (body is not None)
        if body:
            await sink.send(event)
            assert ("entity" in receiver.got[0].json) == (body == "mlflow")
        await sink.close()


async def test_a_secret_is_changed_without_a_message_that_nobody_can_verify(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("o" * 20)
    new.write_text("n" * 20)
    async with receiving() as receiver:
        for files in ([old], [new, old], [new]):
            sink = hook(receiver, *(Secret("x", file) for file in files))
            await sink.send(event_about("iris"))
            await sink.close()
        sink = hook(receiver, Secret("x", new))
        new.write_text("m" * 21)
        await sink.send(event_about("iris"))
        await sink.close()
    keys = [[key for key in (b"o" * 20, b"n" * 20, b"m" * 21) if verifies(got, key)] for got in receiver.got]
    assert keys == [[b"o" * 20], [b"o" * 20, b"n" * 20], [b"n" * 20], [b"m" * 21]]


def test_a_secret_that_must_not_be_used_leaves_the_old_one_in_force(tmp_path):
    file = tmp_path / "secret"
    file.write_text("whsec_" + "o" * 20)
    secret = Secret("x", file, check_secret)
    file.write_text("whsec_no base64")
    assert secret() == "whsec_" + "o" * 20
    with pytest.raises(BadConfiguration, match="x: whsec_ is followed by base64"):
        Secret("x", file, check_secret)


async def test_cloudevents_are_sent_in_structured_mode_with_a_token():
    event = event_about("iris")
    async with receiving() as receiver:
        sink = CloudEvents("lake", Poster(Endpoint(receiver.url, 5.0, private=True)), Filter(), lambda: "t0ken")
        assert not (await sink.send(event)).problem
        await sink.close()
    (got,) = receiver.got
    assert got.headers["Content-Type"] == "application/cloudevents+json; charset=UTF-8"
    assert got.headers["Authorization"] == "Bearer t0ken"
    assert got.body == canonical_json(event)
    assert {"specversion", "id", "source", "type"} <= set(json.loads(got.body))


async def test_connections_are_kept_between_messages():
    async with receiving() as receiver:
        poster = Poster(
            Endpoint(receiver.url.replace("127.0.0.1", "hooks.example"), 5.0, private=True), at("127.0.0.1")
        )
        for _ in range(20):
            assert not (await poster.post(b"{}", {})).problem
        assert len(poster._resolver._lookup.asked) == 1
        await poster.close()
