"""What a process keeps in memory follows what another one records."""

from __future__ import annotations

import asyncio

from tests.api.test_attacks import run_of
from tests.api.test_seals import approve, log
from tests.promotion.flow import register, until


async def test_after_a_gap_everything_is_read_anew(replicas, clients):
    one, two = clients
    await register(replicas[0], one)
    await approve(one)
    following, seals = replicas[1].application.following, replicas[1].application.gateway.seals
    await following.catch_up()
    seals.stand([], [])
    await following.catch_up()  # there is nothing new
    assert (await log(two, run_of(replicas[0]))).status == 200
    following._sequence = -5  # as where the events that come next are in an archive
    await following.catch_up()
    assert (await log(two, run_of(replicas[0]))).status == 409


async def test_a_renamed_experiment_is_known_by_its_new_name_to_the_other(replicas, clients):
    one, two = clients
    memory = replicas[0].memory
    memory._updateExperiment = lambda m: memory.experiments[m["experiment_id"]].update(name=m["new_name"]) or {}
    made = (await one.rpc("POST", "experiments/create", name="old")).json["experiment_id"]
    assert (await two.rpc("POST", "runs/create", experiment_id=made)).status == 200  # its name is kept here now
    names = replicas[1].application.gateway.access.ownership._names
    assert names["main", made][1] == "old"
    assert (await one.rpc("POST", "experiments/update", experiment_id=made, new_name="new")).status == 200

    async def forgotten() -> bool:
        return ("main", made) not in names

    await until(forgotten, 1.0)


async def test_what_this_process_does_while_it_reads_is_not_lost(replicas, clients, monkeypatch):
    one, _ = clients
    await register(replicas[0], one)
    following, journal = replicas[0].application.following, replicas[0].application.journal
    signed, begun, go = journal.signed, asyncio.Event(), asyncio.Event()

    async def late(*place):
        found = await signed(*place)
        begun.set()
        await go.wait()
        return found

    monkeypatch.setattr(journal, "signed", late)
    reading = asyncio.create_task(following._read_all())
    await begun.wait()
    await approve(one)  # after it was read, before it is known
    go.set()
    await reading
    assert (await log(one, run_of(replicas[0]))).status == 409
