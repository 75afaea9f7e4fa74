"""The cache of keys, against a real HTTP server that misbehaves in every way."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import tracemalloc

import pytest
from structlog.testing import capture_logs

from service.authentication import jwks
from service.authentication.jwks import FileKeys, RemoteKeys
from service.backends.credentials import tls_context
from service.errors import BadConfiguration, IdentityUnavailable
from tests.faults.test_tls import Authority
from tests.faults.test_tls import serving as tls_serving
from tests.identity.key_server import hangs, says, serving
from tests.identity.signer import key_set, signer

ONE, TWO = signer("ES256", "one"), signer("ES256", "two")
GOOD = key_set(ONE)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def remote(clock):
    """Build a cache; all are closed at the end."""
    made = []

    class Made:
        def __call__(self, url, tls=None, **options):
            made.append(RemoteKeys(url, tls, clock=clock, **options))
            return made[-1]

    return Made(), made


@pytest.fixture
async def cache(remote):
    build, made = remote
    yield build
    for one in made:
        await one.close()


async def test_keys_are_fetched_once_for_all_who_wait(cache):
    async with serving(says(GOOD)) as server:
        keys = cache(server.url)
        assert keys.state == "unknown"
        found = await asyncio.gather(*(keys.find("one", "ES256") for _ in range(100)))
        assert {key.kid for key in found} == {"one"}
        assert len(server.asked) == 1
        assert keys.state == "up"
        assert "authorization" not in server.asked[0].headers
        assert "cookie" not in server.asked[0].headers


async def test_a_new_key_is_found_when_a_token_names_it(cache, clock):
    async with serving(says(GOOD)) as server:
        keys = cache(server.url)
        assert await keys.find("one", "ES256")
        server.answer = says(key_set(ONE, TWO))
        assert await keys.find("two", "ES256") is None  # just fetched: not again so soon
        clock.now += jwks.PACE_SECONDS
        assert (await keys.find("two", "ES256")).kid == "two"
        assert len(server.asked) == 2


async def test_a_hundred_thousand_strange_kids_cost_a_handful_of_fetches_and_no_memory(cache, clock):
    async with serving(says(GOOD)) as server:
        keys = cache(server.url)
        await keys.find("one", "ES256")
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for index in range(100_000):
            clock.now += 0.0005  # 50 s in all
            assert await keys.find(f"strange-{index}", "ES256") is None
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert 4 <= len(server.asked) <= 6
        assert grown < 256 << 10


async def test_strange_kids_at_once_join_one_fetch(cache, clock):
    async with serving(says(GOOD)) as server:
        keys = cache(server.url)
        await keys.find("one", "ES256")
        clock.now += jwks.PACE_SECONDS
        found = await asyncio.gather(*(keys.find(f"s{index}", "ES256") for index in range(2_000)))
        assert set(found) == {None}
        assert len(server.asked) == 2


async def test_old_keys_serve_while_the_endpoint_is_down_and_not_for_ever(cache, clock):
    async with serving(says(GOOD)) as server:
        keys = cache(server.url, stale_seconds=3600)
        assert await keys.find("one", "ES256")
        server.answer = says(b"", 500)
        clock.now += 1800
        with pytest.raises(IdentityUnavailable) as caught:  # it may be a new key: nobody can tell
            await keys.find("two", "ES256")
        assert "nothing was done" in caught.value.detail
        assert keys.state == "stale"
        assert await keys.find("one", "ES256")
        clock.now += 1801
        with pytest.raises(IdentityUnavailable):
            await keys.find("one", "ES256")
        assert keys.state == "down"
        server.answer = says(GOOD)
        clock.now += jwks.PACE_SECONDS
        assert await keys.find("one", "ES256")
        assert keys.state == "up"


async def test_down_at_the_start_then_up(cache, clock):
    async with serving(says(b"", 503)) as server:
        keys = cache(server.url)
        for _ in range(50):
            with pytest.raises(IdentityUnavailable):
                await keys.find("one", "ES256")
        assert len(server.asked) == 1
        assert keys.state == "down"
        server.answer = says(GOOD)
        clock.now += jwks.PACE_SECONDS
        assert await keys.find("one", "ES256")


async def test_nothing_listens(cache):
    async with serving(says(GOOD)) as server:
        url = server.url
    keys = cache(url)
    with pytest.raises(IdentityUnavailable):
        await keys.find("one", "ES256")
    assert "ConnectorError" in keys.problem


@pytest.mark.parametrize(
    ("answer", "says_what"),
    [
        (says(b"<html>"), "not valid JSON"),
        (says(b'{"keys": []}'), "None of the 0 keys"),
        (says(GOOD, 404), "answered 404"),
        (says(GOOD, 204), "answered 204"),
        (says(b"", 302, Location="/elsewhere"), "redirects are not followed"),
        (says(b"", 307, Location="http://169.254.169.254/"), "redirects are not followed"),
        (says(gzip.compress(GOOD), 200, **{"Content-Encoding": "gzip"}), "encoded"),
        (says(json.dumps({"keys": [ONE.public] * 101}).encode()), "101 keys"),
        (says(json.dumps({"keys": [], "pad": "x" * (1 << 20)}).encode()), "over 1048576 bytes"),
    ],
)
async def test_an_answer_that_is_no_key_set_changes_nothing(cache, clock, answer, says_what):
    async with serving(says(GOOD)) as server:
        keys = cache(server.url)
        assert await keys.find("one", "ES256")
        server.answer = answer
        clock.now += jwks.PACE_SECONDS
        with capture_logs() as logs, pytest.raises(IdentityUnavailable):
            await keys.find("two", "ES256")
        assert says_what in keys.problem
        assert says_what in logs[0]["problem"]
        assert await keys.find("one", "ES256")


async def test_a_hundred_mebibytes_are_cut_early(cache):
    async with serving(says(GOOD)) as server:
        server.answer = server.floods
        keys = cache(server.url)
        with pytest.raises(IdentityUnavailable):
            await keys.find("one", "ES256")
        assert "over 1048576 bytes" in keys.problem
        assert server.sent < 20 << 20  # what sockets hold, not what was to come


@pytest.mark.parametrize("how", ["hangs", "drips"])
async def test_a_slow_endpoint_is_given_up(cache, monkeypatch, how):
    monkeypatch.setattr(jwks, "FETCH_SECONDS", 0.3)
    async with serving(hangs) as server:
        server.answer = hangs if how == "hangs" else server.drips
        keys = cache(server.url)
        async with asyncio.timeout(3):
            with pytest.raises(IdentityUnavailable):
                await keys.find("one", "ES256")
        assert keys.problem == "TimeoutError"


def test_the_limits_are_those_of_the_documentation():
    assert (jwks.MAX_BYTES, jwks.FETCH_SECONDS, jwks.PACE_SECONDS) == (1 << 20, 5.0, 10.0)


async def test_who_hangs_up_does_not_stop_the_others(cache):
    asked, release = asyncio.Event(), asyncio.Event()

    async def slow(request):
        asked.set()
        await release.wait()
        return await says(GOOD)(request)

    async with serving(slow) as server:
        keys = cache(server.url)
        first, second = (asyncio.create_task(keys.find("one", "ES256")) for _ in range(2))
        await asked.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        release.set()
        assert (await second).kid == "one"
        assert len(server.asked) == 1


async def test_no_proxy_of_the_environment_is_asked(cache, monkeypatch):
    async with serving(says(key_set(TWO))) as proxy, serving(says(GOOD)) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setitem(os.environ, name, proxy.url)
        assert await cache(server.url).find("one", "ES256")
        assert proxy.asked == []


async def test_tls_is_verified(cache, tmp_path):
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    async with serving(says(GOOD), tls_serving(*ours.issue("server"))) as server:
        assert await cache(server.url, tls_context("x", ours.path, None, None)).find("one", "ES256")
        for trusted in (tls_context("x", theirs.path, None, None), None):
            keys = cache(server.url, trusted)
            with pytest.raises(IdentityUnavailable):
                await keys.find("one", "ES256")
            assert "Certificate" in keys.problem
        assert len(server.asked) == 1


async def test_the_background_follows_the_endpoint(cache, monkeypatch):
    seen = asyncio.Event()

    async def counted(request):
        if len(server.asked) >= 3:
            seen.set()
        return await says(GOOD if len(server.asked) != 2 else b"x")(request)

    monkeypatch.setattr(jwks, "_FIRST_RETRY_SECONDS", 0.01)
    async with serving(counted) as server:
        keys = cache(server.url, refresh_seconds=0.02)
        keys.start()
        await asyncio.wait_for(seen.wait(), 5)
        assert keys.problem is None or "JSON" in keys.problem
        await keys.close()
        count = len(server.asked)
        assert count >= 3


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys.json"
    path.write_bytes(GOOD)
    return path


async def test_a_file_is_followed_by_content(file):
    keys = FileKeys(file)
    assert await keys.find("one", "ES256")
    assert keys.reload() is False
    file.write_bytes(key_set(TWO))
    assert keys.reload() is True
    assert await keys.find("one", "ES256") is None
    assert await keys.find("two", "ES256")


@pytest.mark.parametrize("content", [b"", b"{", b'{"keys": []}', b"\xff", None])
async def test_a_bad_file_leaves_the_old_keys(file, content):
    keys = FileKeys(file)
    file.write_bytes(content) if content is not None else file.unlink()
    for _ in range(2):
        with pytest.raises(BadConfiguration, match=r"keys\.json"):
            keys.reload()
    assert await keys.find("one", "ES256")
    with pytest.raises(BadConfiguration, match=r"keys\.json"):
        FileKeys(file)
