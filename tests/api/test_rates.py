"""Who sends too much is told to wait: failing addresses and busy principals, and nobody beside them."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api import limits as module
from service.api.limits import Bounds, Buckets, Limits, Rate
from service.errors import BadConfiguration, RateLimited, Unauthenticated
from service.floods import EACH_MINUTE
from tests.client import Client
from tests.conftest import write_configuration

BAD = [("authorization", "Bearer rgw_wrong")]
TOKEN = [("authorization", "Bearer aaaa.bbbb.cccc")]
SLOW = {"requests_per_second": 0.01, "burst": 3}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    steps=st.lists(st.floats(0, 3), max_size=60),
    a_second=st.floats(0.1, 20),
    at_once=st.integers(1, 20),
)
def test_a_bucket_never_gives_more_than_its_rate(steps: list[float], a_second: float, at_once: int) -> None:
    clock = Clock()
    buckets, rate, taken = Buckets(clock), Rate(a_second, at_once), 0
    for step in steps:
        clock.now += step
        before = buckets.wait("a", rate)
        wait = buckets.take("a", rate)
        assert wait == pytest.approx(before)
        taken += wait == 0
        if wait:
            clock.now += wait + 1e-6
            assert buckets.take("a", rate) == 0  # who waits as long as it was told is served
            taken += 1
    assert taken <= at_once + (clock.now - 100.0) * a_second + 1e-3


def test_what_is_remembered_is_bounded() -> None:
    buckets, limits = Buckets(Clock()), Limits(Bounds(everybody=Rate(1, 1)), Clock())
    for index in range(30_000):
        buckets.take(f"user:{index}", Rate(1, 1))
        limits.succeeded(f"Bearer a.b.{index}")
    assert len(buckets._left) == len(limits._known) == module._MAX_KEYS
    assert buckets.take("user:29999", Rate(1, 1)) > 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("", "x", False),
    ],
)
def test_an_address_stands_for_its_site(one: str, other: str, same: bool) -> None:
    limits = Limits(Bounds(1), Clock())
    limits.failed(one)
    try:
        limits.failed(other)
    except RateLimited:
        assert same
    else:
        assert not same


def test_tokens_of_a_failing_address_are_looked_at_only_if_they_were_good() -> None:
    clock = Clock()
    limits = Limits(Bounds(2), clock)
    limits.succeeded("Bearer a.b.known")
    for _ in range(2):
        limits.before("a", "Bearer a.b.new")
        limits.failed("a")
    with pytest.raises(RateLimited) as refused:
        limits.before("a", "Bearer a.b.new")
    assert refused.value.retry_after == 30
    for credential in ("Bearer a.b.known", "Bearer rgw_key", "Basic eA==", None):
        limits.before("a", credential)
    limits.before("b", "Bearer a.b.new")
    clock.now += 30
    limits.before("a", "Bearer a.b.new")


async def test_only_what_fails_is_refused_beyond_the_bound(running):
    async with running(limits={"failed_authentications_per_minute": 3}) as it:
        client = Client(it.application.asgi)
        statuses = [(await client("GET", "/v1/registries", headers=BAD)).status for _ in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
        ours = await client("GET", "/v1/registries", headers=BAD)
        assert (ours.headers["content-type"], ours.json["type"].rpartition("/")[2]) == (
            "application/problem+json",
            "rate-limited",
        )
        assert 1 <= int(ours.headers["retry-after"]) <= 20
        theirs = await client("GET", "/api/2.0/mlflow/registered-models/search", headers=BAD)
        assert (theirs.status, theirs.json["error_code"]) == (429, "REQUEST_LIMIT_EXCEEDED")
        assert int(theirs.headers["retry-after"]) >= 1
        assert (await client("GET", "/v1/registries")).status == 200
        assert (await client("GET", "/readyz")).status in (200, 503)
        events = await it.events(action="authentication:fail")
        assert len(events) == 7
        metrics = (await client("GET", "/metrics")).body.decode()
        assert 'registry_gateway_rate_limited_total{by="address"} 4.0' in metrics


async def test_a_site_fills_no_journal_and_its_sum_is_written_at_the_end(running, monkeypatch):
    async with running() as it:
        addresses = iter(range(1, 201))
        monkeypatch.setattr(it.application.asgi._proxies, "client_of", lambda _: f"2001:db8::{next(addresses):x}")
        client = Client(it.application.asgi)
        for _ in range(200):
            await client("GET", "/v1/registries", headers=BAD)
        async with asyncio.timeout(10):  # the files were followed meanwhile
            while not it.application.health.problems:
                it.application.configuration.path("keys.yaml").write_text("nonsense")
                await asyncio.sleep(0.05)
        assert len(await it.events(action="authentication:fail")) == EACH_MINUTE
    async with running() as it:
        data = [event["data"] for event in await it.events(action="authentication:fail")][EACH_MINUTE:]
        assert [(item["count"], item["actor"]["address"]) for item in data] == [(140, "2001:db8::/64")]


async def test_no_signature_is_looked_at_for_an_address_over_its_bound(running):
    asked = []

    async def authenticate(authorization):
        asked.append(authorization)
        raise Unauthenticated("no")

    async with running(limits={"failed_authentications_per_minute": 3}) as it:
        it.application.asgi._authenticate = authenticate
        client = Client(it.application.asgi)
        statuses = [(await client("GET", "/v1/registries", headers=TOKEN)).status for _ in range(50)]
        assert statuses == [401] * 3 + [429] * 47
        assert len(asked) == 3


async def test_a_principal_over_its_rate_waits_and_others_do_not(running):
    async with running(limits={**SLOW, "principals": {"user:lead": {}, "user:viewer": {**SLOW, "burst": 1}}}) as it:
        admin = Client(it.application.asgi)

        async def statuses(client: Client, count: int) -> list[int]:
            return [(await client.rpc("GET", "registered-models/search")).status for _ in range(count)]

        assert await statuses(admin, 5) == [200] * 3 + [429] * 2
        assert await statuses(admin.be("user:lead"), 5) == [200] * 5
        assert await statuses(admin.be("user:viewer"), 2) == [200, 429]
        assert await statuses(admin.be("service:ci"), 1) == [200]
        refused = await admin.rpc("POST", "registered-models/create", name="x")
        assert (refused.status, refused.json["error_code"]) == (429, "REQUEST_LIMIT_EXCEEDED")
        assert 95 <= int(refused.headers["retry-after"]) <= 100
        assert "x" not in it.memory.models
        assert (await admin("GET", "/livez")).status == 200
        await it.application.trail.caught_up()
        events = [event["data"] for event in await it.events(action="request:limit")]
        assert [(data["actor"]["subject"], data["phase"]) for data in events] == [
            ("user:admin", "rejected"),
            ("user:viewer", "rejected"),
        ]
        assert await it.events(action="request:refuse") == []
        await it.application.asgi.flush()
        summed = [event["data"] for event in await it.events(action="request:limit", phase="rejected")][2:]
        assert {data["actor"]["subject"] for data in summed} == {"user:admin"}
        assert sum(data["count"] for data in summed) == 2
        assert 'rate_limited_total{by="principal"} 4.0' in (await admin("GET", "/metrics")).body.decode()


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"failed_authentications_per_minute": 0}, "failed_authentications_per_minute: 1 to"),
        ({"requests_per_second": 0}, "limits.requests_per_second: more than 0"),
        ({"requests_per_second": -1}, "limits.requests_per_second: more than 0"),
        ({"burst": 5}, "limits.burst: 1 to 100000, beside requests_per_second"),
        ({"requests_per_second": 5, "burst": 0}, "limits.burst: 1 to"),
        ({"principals": {"ann": {"requests_per_second": 5}}}, "'ann' is not user:… or service:…"),
        ({"principals": {"user:ann": {"requests_per_second": 0}}}, "limits.principals.user:ann.requests_per_second"),
        ({"principals": {"user:ann": {"requests": 1}}}, "unknown key"),
        ({"request_per_second": 1}, "unknown key 'limits.request_per_second'"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(tmp_path, limits, says):
    from service.settings import load

    with pytest.raises(BadConfiguration) as caught:
        load(write_configuration(tmp_path, limits=limits), environ={})
    assert says in caught.value.detail
