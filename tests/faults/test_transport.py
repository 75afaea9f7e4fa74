"""One upstream call: its budget, its retries, the pools, the circuit, and what is sent and kept of headers."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from service.asgi import ClientGone
from service.backends.breaker import FAILURES, OPEN_SECONDS, Breaker
from service.backends.http import HttpTransport
from service.errors import OutcomeUnknown, RegistryRefused, RegistryUnavailable
from service.model import Request
from tests.client import Client
from tests.conftest import TOKENS, free_port
from tests.faults.upstream_server import breaks, hangs, plain, upstream

pytestmark = pytest.mark.real
READ = Request("MlflowService.getExperiment", "GET", "/api/2.0/mlflow/experiments/get", {"experiment_id": "0"})
SEARCH = Request("MlflowService.searchRuns", "POST", "/api/2.0/mlflow/runs/search", {})
WRITES = [
    Request("ModelRegistryService.createRegisteredModel", "POST", "/x", {"name": "a"}),
    Request("ModelRegistryService.deleteRegisteredModel", "DELETE", "/x", {"name": "a"}),
    Request("ModelRegistryService.updateRegisteredModel", "PATCH", "/x", {"name": "a"}),
]
GOOD = plain()
UNABLE = [plain("502 Bad Gateway", b"<html>"), plain("503 Service Unavailable", b""), plain("504 Gateway Timeout", b"")]


@pytest.fixture
async def connect():
    made = []

    def to(server, **options):
        options = {"timeout_seconds": 2.0, **options}
        made.append(HttpTransport("main", server if isinstance(server, str) else server.url, **options))
        return made[-1]

    yield to
    for transport in made:
        await transport.close()


@pytest.mark.parametrize("request_", [READ, SEARCH], ids=["GET", "search"])
@pytest.mark.parametrize("failure", [breaks, *UNABLE], ids=["reset", "502", "503", "504"])
async def test_a_read_that_was_not_done_is_sent_again(connect, request_, failure):
    async with upstream(failure, failure, GOOD) as server:
        assert (await connect(server).send(request_, writes=False)).status == 200
        assert len(server.seen) == 3


@pytest.mark.parametrize("failure", [breaks, *UNABLE], ids=["reset", "502", "503", "504"])
async def test_a_read_is_sent_three_times_at_most(connect, failure):
    async with upstream(failure) as server:
        with pytest.raises(RegistryUnavailable):
            await connect(server).send(READ, writes=False)
        assert len(server.seen) == 3


@pytest.mark.parametrize("write", WRITES, ids=lambda request: request.method)
@pytest.mark.parametrize("failure", [breaks, *UNABLE], ids=["reset", "502", "503", "504"])
async def test_a_write_is_sent_once_even_on_a_kept_connection(connect, write, failure):
    async with upstream(GOOD, failure) as server:
        transport = connect(server)
        await transport.send(READ, writes=False)  # the connection is kept; aiohttp itself would repeat a DELETE on it
        with pytest.raises(OutcomeUnknown):  # a 503 too: MLflow says it when its database fails in a commit
            await transport.send(write, writes=True)
        assert len(server.seen) == 2


async def test_the_budget_covers_the_retries(connect):
    async with upstream(breaks, hangs) as server:
        begun = time.monotonic()
        with pytest.raises(RegistryUnavailable, match="deadline"):
            await connect(server, timeout_seconds=0.6).send(READ, writes=False)
        assert time.monotonic() - begun < 1.0
        assert len(server.seen) == 2


async def test_a_connection_that_is_not_had_forwards_nothing(connect):
    with pytest.raises(RegistryUnavailable, match="nothing was forwarded"):
        await connect(f"http://127.0.0.1:{free_port()}").send(WRITES[0], writes=True)


async def test_after_a_byte_of_a_file_nothing_is_sent_again(connect):
    async def cut(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nabc")
        await writer.drain()
        writer.close()

    async with upstream(cut) as server:
        answer = await connect(server).send(Request("x.download", "GET", "/f", streams=True), writes=False)
        with pytest.raises(RegistryUnavailable):
            async for _ in answer.stream:
                pass
        assert len(server.seen) == 1


async def test_over_the_bound_nothing_is_forwarded(connect):
    async with upstream(hangs) as server:
        breaker = Breaker()
        transport = connect(server, connections=2, timeout_seconds=1.0, breaker=breaker)
        calls = [asyncio.create_task(transport.send(WRITES[0], writes=True)) for _ in range(3)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(item).__name__ for item in results) == [
            "OutcomeUnknown", "OutcomeUnknown", "RegistryUnavailable"
        ]  # fmt: skip
        refused = next(item for item in results if isinstance(item, RegistryUnavailable))
        assert "in use" in refused.detail
        assert refused.retry_after >= 1
        assert len(server.seen) == 2
        assert breaker._failures == 2  # a full pool is no failure of the registry


async def test_files_and_calls_do_not_wait_for_each_other(connect):
    async def slow(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nabc")
        await writer.drain()
        await asyncio.Event().wait()

    async with upstream(slow, GOOD) as server:
        transport = connect(server, connections=1, streams=1)
        file = Request("x.download", "GET", "/f", streams=True)
        answer = await transport.send(file, writes=False)
        assert (await transport.send(READ, writes=False)).status == 200
        with pytest.raises(RegistryUnavailable, match="in use"):
            await transport.send(file, writes=False)
        await answer.stream.aclose()


async def test_a_hanging_registry_starves_no_other(running, connect, tmp_path):
    async with (
        upstream(hangs) as dead,
        upstream(plain(body=b'{"experiment": {"experiment_id": "0", "name": "D"}}')) as well,
    ):
        environments = tmp_path / "environments.yaml"
        environments.write_text("environments: {}\n")
        entries = {name: {"kind": "mlflow", "url": "http://127.0.0.1:1"} for name in ("dead", "well")}
        async with running(registries=entries, environments=str(environments)) as it:
            from service.backends.mlflow import MlflowBackend

            await it.application.health.close()
            backends = it.application.backends
            backends["dead"] = MlflowBackend("dead", connect(dead, connections=2))
            backends["well"] = MlflowBackend("well", connect(well, connections=2))
            client = Client(it.application.asgi)
            path = "/registries/{}/api/2.0/mlflow/experiments/get?experiment_id=0"
            stuck = [asyncio.create_task(client("GET", path.format("dead"))) for _ in range(20)]
            while len(dead.seen) < 2:
                await asyncio.sleep(0)
            begun = time.monotonic()
            answers = [await client("GET", path.format("well")) for _ in range(10)]
            health = await Client(it.application.asgi, None)("GET", "/readyz")
            assert [answer.status for answer in answers] == [200] * 10
            assert health.status == 200
            assert time.monotonic() - begun < 1.0
            for answer in await asyncio.gather(*stuck):
                assert answer.status == 503
                assert int(answer.headers["retry-after"]) >= 1


async def test_the_circuit_opens_and_closes(connect):
    now = [0.0]
    async with upstream(*[hangs] * FAILURES, GOOD) as server:
        breaker = Breaker(lambda: now[0])
        transport = connect(server, timeout_seconds=0.05, breaker=breaker)
        for _ in range(FAILURES):
            with pytest.raises(RegistryUnavailable, match="deadline"):
                await transport.send(READ, writes=False)
        assert breaker.look() == "open"
        with pytest.raises(RegistryUnavailable, match="nothing was forwarded") as caught:
            await transport.send(WRITES[0], writes=True)
        assert caught.value.retry_after == OPEN_SECONDS
        assert len(server.seen) == FAILURES
        now[0] = OPEN_SECONDS
        assert breaker.look() == "half-open"
        assert (await transport.send(READ, writes=False)).status == 200
        assert breaker.look() == "closed"


def test_half_open_lets_one_call_try():
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES):
        assert breaker.refuses() is None
        breaker.failed()
    assert breaker.refuses() is not None
    now[0] = OPEN_SECONDS
    assert breaker.refuses() is None
    assert breaker.refuses() is not None  # one at a time
    breaker.failed()
    assert breaker.refuses() is not None
    now[0] = 2 * OPEN_SECONDS
    assert breaker.refuses() is None
    breaker.dropped()  # its client went away
    assert breaker.refuses() is None
    breaker.answered()
    assert breaker.look() == "closed"


async def test_readyz_and_metrics_show_the_circuit(running):
    async with running() as it:
        for _ in range(FAILURES):
            it.application.circuits["main"].failed()
        nobody = Client(it.application.asgi, None)
        assert (await nobody("GET", "/readyz")).json["circuits"] == {"main": "open"}
        shown = (await nobody("GET", "/metrics")).body.decode()
        assert 'registry_gateway_circuit_open{registry="main"} 1.0' in shown
        await it.application.health.look()
        assert 'registry_gateway_registry_up{registry="main"} 1.0' in (await nobody("GET", "/metrics")).body.decode()


@pytest.mark.parametrize(
    ("given", "passed"), [("7", "7"), ("0", "1"), ("86400", "60"), ("Wed, 21 Oct 2026 07:28:00 GMT", "1"), ("-3", "1")]
)
async def test_too_many_requests_is_passed_on_with_its_retry_after(running, connect, given, passed):
    body = json.dumps({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"}).encode()
    async with (
        upstream(plain("429 Too Many Requests", body, f"Retry-After: {given}")) as server,
        running(transport=connect(server)) as it,
    ):
        answer = await Client(it.application.asgi).rpc("GET", "registered-models/get", name="a")
        assert (answer.status, answer.json["error_code"]) == (429, "REQUEST_LIMIT_EXCEEDED")
        assert answer.headers["retry-after"] == passed


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_no_redirect_is_followed(running, connect, status):
    async with upstream(GOOD) as other, upstream(plain(status, b"", f"Location: {other.url}/x")) as server:
        transport = connect(server, authorization=lambda: "Bearer the-gateways-own")
        async with running(transport=transport) as it:
            client = Client(it.application.asgi)
            for answer in (
                await client.rpc("GET", "registered-models/get", name="a"),
                await client.rpc("POST", "registered-models/create", name="a"),
            ):
                assert answer.status == 503
        assert server.seen
        assert other.seen == []


async def test_only_listed_headers_pass_either_way(running, connect):
    body = b'{"registered_model": {"name": "a"}}'
    extra = ("Set-Cookie: a=b", "Server: Werkzeug/3 Python/3.11", "X-Powered-By: x", "Connection: X-Hop", "X-Hop: 1")
    extra = (*extra, "Access-Control-Allow-Origin: *", "Via: 1.1 inner", "WWW-Authenticate: Basic", "Alt-Svc: h3")
    async with upstream(plain("200 OK", body, *extra)) as server:
        transport = connect(server, authorization=lambda: "Bearer the-gateways-own", workspace="w")
        async with running(transport=transport) as it:
            answer = await Client(it.application.asgi).rpc("GET", "registered-models/get", name="a")
            sent = [
                ("host", "gateway"), ("authorization", f"Bearer {TOKENS['user:admin']}"), ("cookie", "c=d"),
                ("connection", "x-secret"), ("x-secret", "s"), ("te", "trailers"), ("upgrade", "h2c"),
                ("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4"), ("proxy-authorization", "Basic x"),
                ("x-forwarded-host", "evil"), ("x-real-ip", "1.2.3.4"), ("user-agent", "mlflow"), ("via", "me"),
                ("expect", "200-ok"), ("accept-encoding", "gzip"), ("range", "bytes=0-1"),
                ("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
            ]  # fmt: skip
            target = "/api/2.0/mlflow/registered-models/get?name=a"
            await Client(it.application.asgi, None)("GET", target, headers=sent)
        assert answer.status == 200
        assert set(answer.headers) == {
            "content-type", "content-length", "x-content-type-options", "cache-control",
            "registry-gateway-policy-revision",
        }  # fmt: skip
        for request in server.seen:
            lines = request.lower().partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
            assert b"authorization: bearer the-gateways-own" in lines
            assert TOKENS["user:admin"].encode() not in request
            names = {line.partition(b":")[0].decode() for line in lines if line}
            allowed = {"host", "accept", "accept-encoding", "user-agent", "authorization", "x-mlflow-workspace"}
            assert names <= {*allowed, "traceparent", "content-type", "content-length"}


async def test_the_registrys_own_errors_keep_their_words(connect):
    body = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"}).encode()
    async with upstream(plain("404 Not Found", body)) as server:
        with pytest.raises(RegistryRefused, match="no such model"):
            await connect(server).send(READ, writes=False)
        assert len(server.seen) == 1


async def test_uploads_that_their_clients_break_off_do_not_open_the_circuit(connect):
    async def torn():
        yield b"x" * 1000
        raise ClientGone

    async with upstream(GOOD) as server:
        breaker = Breaker()
        transport = connect(server, breaker=breaker)
        for _ in range(FAILURES * 2):
            upload = Request("uploadArtifact", "PUT", "/x", body=torn(), headers={"content-length": "100000"})
            with pytest.raises(ClientGone):
                await transport.send(upload, writes=True)
        assert breaker.look() == "closed"
        assert (await transport.send(READ, writes=False)).status == 200


async def test_the_gates_own_reads_do_not_wait_for_clients_files(connect):
    file = plain(body=b"x" * (16 << 20))
    async with upstream(file) as server:
        transport = connect(server, streams=1, timeout_seconds=5.0)
        taken = await transport.send(Request("download", "GET", "/x", streams=True), writes=False)
        with pytest.raises(RegistryUnavailable, match="in use"):
            await transport.send(Request("download", "GET", "/x", streams=True), writes=False)
        own = await transport.send(Request("download", "GET", "/x", streams=True, own=True), writes=False)
        await own.stream.aclose()
        await taken.stream.aclose()


async def test_a_file_is_never_the_trial_of_an_open_circuit(connect):
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES):
        breaker.failed()
    now[0] = OPEN_SECONDS + 0.1

    async def stalls():
        yield b"x"
        await asyncio.Event().wait()

    async with upstream(GOOD) as server:
        transport = connect(server, breaker=breaker)
        upload = Request("upload", "PUT", "/f", body=stalls(), headers={"content-length": "100000"})
        with pytest.raises(RegistryUnavailable):
            await transport.send(upload, writes=True)
        assert (await transport.send(READ, writes=False)).status == 200
        assert breaker.look() == "closed"


def test_only_the_trial_lets_another_one_try():
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    for _ in range(FAILURES):
        breaker.failed()
    now[0] = OPEN_SECONDS + 0.1
    assert breaker.refuses() is None
    assert breaker.refuses() is not None
    assert breaker.look() == "half-open"
