"""Two replicas on one PostgreSQL journal: what one does, the other knows."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

from service import reconciler
from tests.api.test_attacks import run_of, upload
from tests.api.test_seals import APPROVE, Slow, approve, log, revoke
from tests.postgres import execute
from tests.promotion.flow import V1, alias_of, ask, register, until

RACES = int(os.environ.get("RACES", "30"))
AT_ONCE = 4
LIVE = f"{V1}/iris/environments/production"
KEY = [("idempotency-key", "one")]
CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'registry-gateway replica'"
LOCKS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'registry-gateway locks'"


async def test_each_race_of_two_replicas_has_one_winner(replicas, clients):
    one, two = clients
    versions = [await register(replicas[0], one) for _ in range(AT_ONCE + 1)]
    assert (await ask(one, "promotions", versions[-1])).status == 200
    live, losers = versions[-1], Counter()
    for _ in range(RACES):
        while (seen := await two("GET", LIVE)).json["version"] != live:  # a look is shared for a moment
            await asyncio.sleep(0.05)
        etag = seen.headers["etag"]
        challengers = [version for version in versions if version != live]
        answers = await asyncio.gather(
            *(
                client("POST", f"{LIVE}/promotions", {"version": version}, headers=[("if-match", etag)])
                for client, version in zip((one, two, one, two), challengers, strict=True)
            )
        )
        statuses = Counter(answer.status for answer in answers)
        losers += statuses
        assert statuses == {200: 1, 412: AT_ONCE - 1}
        live = next(answer.json["after"] for answer in answers if answer.status == 200)
        assert alias_of(replicas[1]) == live
    print(f"races {RACES} answers {dict(losers)}")


async def test_what_one_judges_nobody_writes_to_by_the_other_from_then_on(replicas, clients):
    one, two = clients
    await register(replicas[0], one)
    run = run_of(replicas[0])
    assert (await log(two, run)).status == 200
    slow = Slow(replicas[0], "listArtifacts")  # the digest is being taken
    signing = asyncio.create_task(approve(one))
    await slow.reached.wait()
    waits = await log(two, run)
    assert (waits.status, waits.headers["retry-after"]) == (503, "1")
    assert "being judged by another replica" in waits.json["message"]
    assert (await upload(two, run, b"EVIL")).status == 503
    slow.go.set()
    statuses = Counter()
    while not signing.done() or statuses[409] < 50:
        statuses[(await log(two, run)).status] += 1
        await asyncio.sleep(0)
    assert set(statuses) <= {503, 409}, statuses  # at no moment between judged and approved
    print(f"writes on the other replica while and after it was signed: {dict(statuses)}")


async def test_what_is_written_by_one_the_other_does_not_judge(replicas, clients):
    one, two = clients
    await register(replicas[0], one)
    slow = Slow(replicas[1], "uploadArtifact")
    writing = asyncio.create_task(upload(two, run_of(replicas[0]), b"half"))
    await slow.reached.wait()
    answer = await one.be("user:lead")("POST", f"{V1}/iris/versions/1/approvals", APPROVE)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert "in another replica" in answer.json["detail"]
    slow.go.set()
    assert (await writing).status == 200
    await approve(one)


async def test_a_write_that_ends_soon_is_waited_for(replicas, clients):
    one, two = clients
    await register(replicas[0], one)
    slow = Slow(replicas[1], "uploadArtifact")
    writing = asyncio.create_task(upload(two, run_of(replicas[0]), b"half"))
    await slow.reached.wait()
    signing = asyncio.create_task(approve(one))
    while (await log(two, run_of(replicas[0]))).status != 503:
        await asyncio.sleep(0)
    slow.go.set()
    await signing
    assert (await writing).status == 200


async def test_seals_of_one_hold_and_end_at_the_other_within_a_second(replicas, clients):
    one, two = clients
    await register(replicas[0], one)
    run, took = run_of(replicas[0]), []
    for _ in range(5):
        approval = await approve(one)
        assert (await log(two, run)).status in (409, 503)

        async def sealed() -> bool:
            return (await log(two, run)).status == 409

        async def opened() -> bool:
            return (await log(two, run)).status == 200

        took.append(await until(sealed, 1.0))
        await revoke(one, approval)
        took.append(await until(opened, 1.0))
    print(f"seals known to the other replica after at most {max(took) * 1000:.0f} ms of {len(took)}")


async def test_who_waits_for_what_is_live_at_the_other_is_told_at_once(replicas, clients):
    one, two = clients
    first, second = await register(replicas[0], one), await register(replicas[0], one)
    assert (await ask(one, "promotions", first)).status == 200
    etag = (await two("GET", LIVE)).headers["etag"]
    waiting = asyncio.create_task(two("GET", f"{LIVE}?wait=30", headers=[("if-none-match", etag)]))
    await asyncio.sleep(0)
    assert (await ask(one, "promotions", second)).status == 200
    begun = time.monotonic()
    assert (await waiting).json["version"] == second
    print(f"a long poll at the other replica ends after {(time.monotonic() - begun) * 1000:.0f} ms")
    assert time.monotonic() - begun < 0.7  # sooner than the next look of its own


async def test_of_one_key_sent_to_both_one_is_under_way(replicas, clients):
    one, two = clients
    version = await register(replicas[0], one)
    body = {"version": version}
    slow = Slow(replicas[0], "setRegisteredModelAlias")
    first = asyncio.create_task(one("POST", f"{LIVE}/promotions", body, headers=KEY))
    await slow.reached.wait()
    again = await two("POST", f"{LIVE}/promotions", body, headers=KEY)
    other = await two("POST", f"{LIVE}/promotions", {"version": "7"}, headers=KEY)
    assert (again.status, again.json["type"].rpartition("/")[2]) == (409, "operation-pending")
    assert (other.status, other.json["type"].rpartition("/")[2]) == (422, "idempotency-key-reused")
    slow.go.set()
    assert (await first).status == 200
    repeated = await two("POST", f"{LIVE}/promotions", body, headers=KEY)
    assert (repeated.status, repeated.body) == (200, (await first).body)
    assert repeated.headers["idempotent-replayed"] == "true"


async def test_an_equal_call_at_the_other_gets_the_outcome(replicas, clients, monkeypatch):
    one, two = clients
    monkeypatch.setattr(reconciler, "_PACE_SECONDS", 3600)
    await one.rpc("POST", "registered-models/create", name="iris")
    replicas[0].memory.rpc = "setRegisteredModelTag"
    message = {"name": "iris", "key": "k", "value": "v"}
    assert (await one.rpc("POST", "registered-models/set-tag", **message)).status == 424
    equal = asyncio.create_task(two.rpc("POST", "registered-models/set-tag", **message))
    while not len(replicas[1].application.gateway.unsettled):
        await asyncio.sleep(0.01)
    await replicas[1].application.reconciler.sweep()  # the operation of a living replica is left to it
    assert not equal.done()
    await replicas[0].application.reconciler.sweep()
    assert (await equal).status == 200
    phases = Counter(event["data"]["phase"] for event in await replicas[0].events(action="tag:set"))
    assert phases == {"intent": 1, "outcome": 2, "reconciled": 1}


async def test_what_a_dead_replica_left_the_other_ends(replicas, clients, monkeypatch):
    one, two = clients
    monkeypatch.setattr(reconciler, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("service.app.DRAIN_SECONDS", 0.0)
    await register(replicas[0], one)
    run = run_of(replicas[0])
    dead = replicas[0].application
    await dead.reconciler.close()
    slow = Slow(replicas[0], "setRegisteredModelAlias")
    promoting = asyncio.create_task(ask(one, "promotions", "1"))
    await slow.reached.wait()
    await asyncio.sleep(0)
    dead.replicas._started.cancel()  # it is not heard of any more, as if it was killed
    url = dead.configuration.journal_url()
    await execute(url, LOCKS)
    await execute(url, CUT)
    assert (await log(two, run)).status == 503  # until it is known what became of it

    async def settled() -> bool:
        return [event["data"]["outcome"] for event in await replicas[1].events(phase="reconciled")] == ["failed"]

    took = await until(settled, 30.0)

    async def opened() -> bool:
        return (await log(two, run)).status == 200

    await until(opened, 3.0)
    print(f"an operation of a dead replica is settled after {took:.1f} s")
    promoting.cancel()


async def test_cut_off_it_lets_telemetry_through_and_tells_later_what_was_sealed(replicas, clients, monkeypatch):
    one, two = clients
    await register(replicas[0], one)
    run, cut = run_of(replicas[0]), replicas[1].application

    async def nothing() -> None:
        raise OSError

    connect = cut.replicas._session.connect
    monkeypatch.setattr(cut.replicas._session, "connect", nothing)
    catch_up = cut.following.catch_up
    monkeypatch.setattr(cut.following, "catch_up", nothing)
    cut.replicas._session.lose()
    assert (await log(two, run)).status == 200
    assert (await two("GET", "/readyz")).status == 503
    refused = await two.rpc("POST", "registered-models/create", name="lily")
    assert (refused.status, "lily" in replicas[1].memory.models) == (503, False)
    await approve(one)  # it does not wait for who has no lease
    assert (await log(two, run)).status == 200
    monkeypatch.setattr(cut.following, "catch_up", catch_up)
    monkeypatch.setattr(cut.replicas._session, "connect", connect)

    async def told() -> bool:
        return bool(await replicas[0].events(action="environment:conflict"))

    await until(told, 5.0)
    (event,) = await replicas[0].events(action="environment:conflict")
    assert (event["data"]["model"], event["data"]["version"]) == ("iris", "1")
    assert (event["data"]["after"]["identifier"], event["data"]["after"]["count"]) == (run.lower(), 2)
    assert cut.following.conflicts == 2
    assert (await log(two, run)).status == 409
    assert (await two("GET", "/readyz")).status == 200


async def test_a_lost_connection_stops_no_work(replicas, clients):
    one, two = clients
    version = await register(replicas[0], one)
    url = replicas[0].application.configuration.journal_url()
    await execute(url, CUT)

    async def done() -> bool:
        return (await ask(two, "promotions", version)).status == 200

    print(f"after a lost connection it goes on in {await until(done, 5.0):.1f} s")


async def test_a_lapse_in_the_middle_stops_the_write(replicas, clients):
    one, _ = clients
    await register(replicas[0], one)
    slow = Slow(replicas[0], "listArtifacts")
    signing = asyncio.create_task(one.be("user:lead")("POST", f"{V1}/iris/versions/1/approvals", APPROVE))
    await slow.reached.wait()
    before = replicas[0].application.replicas.joined
    await execute(replicas[0].application.configuration.journal_url(), CUT)

    async def joined() -> bool:
        return replicas[0].application.replicas.joined > before

    await until(joined, 5.0)
    slow.go.set()
    assert (await signing).status == 503
    assert await replicas[0].application.journal.signed() == []


async def test_an_unknown_outcome_keeps_the_seal_everywhere_until_it_is_known(replicas, clients):
    one, two = clients
    await register(replicas[0], one)
    run = run_of(replicas[0])
    await replicas[0].application.reconciler.close()
    replicas[0].memory.rpc = "setRegisteredModelAlias"
    assert (await ask(one, "promotions", "1")).status == 504
    for _ in range(20):
        assert (await log(two, run)).status == 503
        await asyncio.sleep(0.1)
    await replicas[0].application.reconciler.sweep()
    statuses = Counter()
    while statuses[409] < 50:
        statuses[(await log(two, run)).status] += 1
        await asyncio.sleep(0.01)
    assert set(statuses) <= {503, 409}
