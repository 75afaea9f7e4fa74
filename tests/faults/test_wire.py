"""Bytes that parsers disagree about, sent through a socket to the real server: none becomes a second request."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT, TOKENS, free_port

CREATE = b"/api/2.0/mlflow/registered-models/create"
GET = b"/api/2.0/mlflow/registered-models/search"
AUTH = b"Authorization: Bearer " + TOKENS["user:admin"].encode() + b"\r\n"
EVIL = json.dumps({"name": "evil"}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(EVIL)
CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVIL), EVIL)
HOST = b"Host: gateway\r\n"
JSON = b"Content-Type: application/json\r\n"


def post(headers: bytes = LENGTH, body: bytes = EVIL, target: bytes = CREATE, version: bytes = b"1.1") -> bytes:
    host = b"Host: gateway\r\n"
    return b"POST " + target + b" HTTP/" + version + b"\r\n" + host + AUTH + JSON + headers + b"\r\n" + body


def get(headers: bytes = b"Host: gateway\r\n", target: bytes = GET, version: bytes = b"1.1") -> bytes:
    return b"GET " + target + b" HTTP/" + version + b"\r\n" + headers + AUTH + b"\r\n"


SMUGGLED = post()
CHUNKED = b"Transfer-Encoding: chunked\r\n"
# what is sent -> the status of each answer; no case may create the model
REFUSED = {
    "a length beside chunked, body ended early": (post(LENGTH + CHUNKED, b"0\r\n\r\n" + SMUGGLED), [400]),
    "chunked beside a length": (post(CHUNKED + b"Content-Length: 4\r\n", b"0\r\n\r\n" + SMUGGLED), [400]),
    "a length of one request over the next": (post(b"Content-Length: 0\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED), [400]),
    "two lengths": (post(LENGTH + b"Content-Length: 3\r\n"), [400]),
    "a list of lengths": (post(b"Content-Length: 16, 16\r\n"), [400]),
    "a signed length": (post(b"Content-Length: +16\r\n"), [400]),
    "a negative length": (post(b"Content-Length: -16\r\n"), [400]),
    "a length in hexadecimal": (post(b"Content-Length: 0x10\r\n"), [400]),
    "identity as transfer encoding": (post(LENGTH + b"Transfer-Encoding: identity\r\n"), [400]),
    "an unknown transfer encoding": (post(b"Transfer-Encoding: xchunked\r\n", CHUNK), [400]),
    "chunked and then another": (post(CHUNKED + b"Transfer-Encoding: identity\r\n", CHUNK), [400]),
    "gzip and chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNK), [400]),
    "chunked twice": (post(CHUNKED * 2, CHUNK), [400]),
    "a tab before the colon": (post(b"Transfer-Encoding\t: chunked\r\n", CHUNK), [400]),
    "a space before the colon": (post(b"Content-Length : 16\r\n"), [400]),
    "a line feed in a value": (post(LENGTH + b"X-A: 1\nX-HTTP-Method-Override: DELETE\r\n"), [400]),
    "a carriage return in a value": (post(LENGTH + b"X-A: 1\rX-B: 2\r\n"), [400]),
    "a NUL in a value": (post(LENGTH + b"X-A: 1\x002\r\n"), [400]),
    "a folded header": (post(LENGTH + b"X-A: 1\r\n 2\r\n"), [400]),
    "chunks ended by bare line feeds": (post(CHUNKED, CHUNK.replace(b"\r\n", b"\n")), [400]),
    "a negative chunk": (post(CHUNKED, b"-10\r\n" + EVIL + b"\r\n0\r\n\r\n"), [400]),
    "an overflowing chunk": (post(CHUNKED, b"f" * 17 + b"\r\n" + EVIL + b"\r\n0\r\n\r\n"), [400]),
    "a chunk cut short": (post(CHUNKED, b"40\r\n" + EVIL), []),
    "a body cut short": (post(b"Content-Length: 99\r\n"), []),
    "HTTP/1.0 and chunked": (post(CHUNKED, CHUNK, version=b"1.0"), [400]),
    "HTTP/1.2": (post(version=b"1.2"), [400]),
    "HTTP/0.9": (b"POST " + CREATE + b"\r\n\r\n", [400]),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []),
    "only carriage returns": (post().replace(b"\r\n", b"\r"), [400]),
    "HTTP/1.0 without Host": (get(b"", version=b"1.0"), [400]),
    "no Host": (get(b""), [400]),
    "two Hosts": (get(b"Host: gateway\r\nHost: gateway\r\n"), [400]),
    "an empty Host": (get(b"Host:\r\n"), [400]),
    "a Host with a path": (get(b"Host: gateway/x\r\n"), [400]),
    "a Host with a user": (get(b"Host: a@gateway\r\n"), [400]),
    "a Host that is a list": (get(b"Host: a, b\r\n"), [400]),
    "a Host with a long port": (get(b"Host: a:123456\r\n"), [400]),
    "a space in the target": (post(target=CREATE + b" x"), [400]),
    "a target that is not ASCII": (post(target=CREATE + b"\xc3\xa9"), [400]),
    "a target of 70,000 bytes": (get(target=GET + b"?filter=" + b"a" * 70_000), [414]),
    "300 headers": (post(LENGTH + b"".join(b"X-%d: 1\r\n" % i for i in range(300))), [431]),
    "a header of 100,000 bytes": (post(LENGTH + b"X-A: " + b"a" * 100_000 + b"\r\n"), [400]),
    "CONNECT": (b"CONNECT gateway:80 HTTP/1.1\r\nHost: gateway\r\n" + AUTH + b"\r\n", [405]),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n" + AUTH + b"\r\n", [400]),
    "TRACE": (b"TRACE " + GET + b" HTTP/1.1\r\nHost: gateway\r\n" + AUTH + b"\r\n", [405]),
    "a method in lower case": (post().replace(b"POST", b"post", 1), [405]),
    "a body on a GET": (get(b"Host: gateway\r\n" + LENGTH) + EVIL, [400]),
    "a request inside the body of a GET": (get(HOST + b"Content-Length: %d\r\n" % len(SMUGGLED)) + SMUGGLED, [400]),
    "an encoded letter in an absolute target": (post(target=b"http://gateway" + CREATE.replace(b"c", b"%63")), [400]),
    "a key in the target's place of a host": (post(target=b"http:///" + CREATE), [400]),
}  # fmt: skip
SERVED = {
    "chunk extensions are not looked at": (post(CHUNKED, b"%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(EVIL), EVIL)), [200]),
    "trailers are dropped": (post(CHUNKED, CHUNK[:-2] + b"Authorization: none\r\n\r\n"), [200]),
    "two equal lengths are one": (post(LENGTH * 2), [200]),
    "lines ended by line feeds alone": (get().replace(b"\r\n", b"\n"), [200]),
    "an upgrade is not taken": (get(b"Host: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"), [200]),
    "HTTP/1.0": (get(version=b"1.0"), [200]),
    "two requests in a row": (get() + get(), [200, 200]),
    "an absolute target is its path; the Host header counts": (get(target=b"http://other" + GET), [200]),
}


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.api.memory_server", str(tmp_path_factory.mktemp("wire")), str(port)], cwd=ROOT
    )
    yield port
    process.kill()
    process.wait()


async def talk(port: int, raw: bytes) -> tuple[list[int], bytes]:
    """Send *raw* and read until the server closes or has been silent for a while."""
    async with asyncio.timeout(20):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
    received = b""
    try:
        writer.write(raw)
        await writer.drain()
        while True:
            async with asyncio.timeout(0.25 if received else 1.0):
                part = await reader.read(65536)
            if not part:
                break
            received += part
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", received)], received


async def models(port: int) -> list[str]:
    received = (await talk(port, get(b"Host: gateway\r\nConnection: close\r\n")))[1]
    document = json.loads(received[received.index(b"{") : received.rindex(b"}") + 1])
    return [item["name"] for item in document.get("registered_models", ())]


@pytest.mark.real
@pytest.mark.parametrize("case", REFUSED)
async def test_nothing_is_made_of_it(port, case):
    raw, statuses = REFUSED[case]
    answered, received = await talk(port, raw)
    assert answered in ([], statuses), received[:400]
    assert await models(port) == []


@pytest.mark.real
@pytest.mark.parametrize("case", SERVED)
async def test_what_is_served_is_served_once(port, case):
    raw, statuses = SERVED[case]
    assert (await talk(port, raw))[0] == statuses
    for name in await models(port):
        body = json.dumps({"name": name}).encode()
        delete = post(b"Content-Length: %d\r\n" % len(body), body, CREATE.replace(b"create", b"delete"))
        assert (await talk(port, delete.replace(b"POST", b"DELETE", 1)))[0] == [200]
