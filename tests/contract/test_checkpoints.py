"""Checkpoints: when they are written, what they cover, and what their signature says."""

from __future__ import annotations

import asyncio
import base64
import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service.audit import Operation, Trail
from service.chain import GENESIS, digest_of, signed_bytes
from service.checkpoints import Checkpoints
from service.errors import BadConfiguration, JournalUnavailable
from service.event import canonical_json
from service.journal import schema
from service.journal.store import SqlJournal
from service.model import Call, Need, Principal
from service.parts import checkpoint_key_of
from service.settings import load
from tests.conftest import write_configuration

KEY = Ed25519PrivateKey.from_private_bytes(b"7" * 32)


def pem(key: Ed25519PrivateKey = KEY) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture(params=["sqlite", "postgresql"])
async def journal(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'journal.db'}"
    else:
        url = await request.getfixturevalue("postgres").database()
    await asyncio.to_thread(schema.upgrade, url)
    made = SqlJournal(url, deadline_seconds=2.0)
    await made.start()
    yield made
    await made.close()


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def checkpoints(journal, **more) -> Checkpoints:
    settings = {"cluster": "blue", "kid": "k1", "seconds": 60.0, "events": 5, "clock": Clock(), **more}
    return Checkpoints(Trail(journal, "/test"), KEY.sign, **settings)


async def record(made: Checkpoints, count: int = 1) -> None:
    need = Need("alias:set", "models/iris/aliases/blue")
    call = Call(principal=Principal("user:u"), registry="main", name="x", needs=(need,))
    for _ in range(count):
        await made._trail.refused(Operation.opened(call, 0.0), "denied")


async def phases(journal) -> list[str]:
    return [event["data"]["phase"] for _, event in await journal.events({}, 0, 100)]


async def test_one_that_cannot_be_written_is_counted(journal, monkeypatch):
    made = checkpoints(journal)

    async def refuse(*_, **__):
        raise JournalUnavailable("It is down.")

    with monkeypatch.context() as down:
        down.setattr(journal, "append", refuse)
        await made.start()
    assert made.failed == 1
    await made.close()
    assert made.failed == 1
    assert (await phases(journal))[-1] == "checkpoint"


async def test_a_checkpoint_covers_the_event_before_it_and_is_signed(journal):
    made = checkpoints(journal)
    await made.write("start")
    await record(made, 2)
    await made.write("stop")
    events = [event for _, event in await journal.events({}, 0, 100)]
    assert [event["data"]["phase"] for event in events] == ["checkpoint", "denied", "denied", "checkpoint"]
    for place, before in ((0, (0, GENESIS)), (3, (3, digest_of(canonical_json(events[2]))))):
        event = events[place]
        said = event["data"]["checkpoint"]
        assert (said["sequence"], said["hash"]) == before == (event["data"]["sequence"] - 1, event["data"]["previous"])
        assert (said["cluster"], said["kid"]) == ("blue", "k1")
        message = signed_bytes("blue", *before, event["time"])
        KEY.public_key().verify(base64.b64decode(said["signature"]), message)
        for other in (signed_bytes("green", *before, event["time"]), signed_bytes("blue", *before, "2020")):
            with pytest.raises(InvalidSignature):
                KEY.public_key().verify(base64.b64decode(said["signature"]), other)
    assert events[3]["type"] == "registry-gateway.audit.checkpoint.checkpoint"
    assert (events[3]["data"]["reason"], events[3]["data"]["actor"]["subject"]) == ("stop", "service:registry-gateway")


async def test_one_is_written_after_so_many_events_or_seconds_if_anything_was_recorded(journal):
    made = checkpoints(journal)
    await made.write("start")
    clock = made._clock
    clock.seconds += 1000
    assert await made.look() is None, "nothing was recorded since"
    clock.seconds = 100.0
    await record(made, 4)
    assert await made.look() is None
    await record(made)
    assert await made.look() == "events"
    assert await made.look() is None
    await record(made)
    clock.seconds += 59
    assert await made.look() is None
    clock.seconds += 1
    assert await made.look() == "time"


async def test_only_the_leader_writes_and_others_know_of_its(journal):
    leader, other = checkpoints(journal), checkpoints(journal, leads=lambda: False)
    await leader.write("start")
    await other.write("start")
    await record(leader, 9)
    assert await other.look() is None
    assert await leader.look() == "events"
    other._leads = lambda: True
    assert await other.look() is None, "the leader's covers them"
    assert (await phases(journal)).count("checkpoint") == 3


async def test_it_follows_the_journal_and_writes_at_start_and_stop(journal):
    made = checkpoints(journal, seconds=0.05, events=1000)
    made._clock = asyncio.get_running_loop().time
    await made.start()
    assert await phases(journal) == ["checkpoint"]
    await record(made)
    async with asyncio.timeout(10):
        while await phases(journal) != ["checkpoint", "denied", "checkpoint"]:
            await journal.more(journal.rings, 0.1)
    await made.close()
    assert (await phases(journal))[-2:] == ["checkpoint", "checkpoint"]


async def test_a_journal_that_was_down_at_the_start_gets_its_checkpoint_later(journal, monkeypatch):
    made = checkpoints(journal)

    async def down(*_, **__):
        raise JournalUnavailable("down")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", down)
        await made._try("start")
    assert await phases(journal) == []
    assert await made.look() == "start"
    assert await phases(journal) == ["checkpoint"]


async def test_an_application_writes_them_and_a_key_that_others_may_read_is_refused(tmp_path, running):
    key = tmp_path / "checkpoints.pem"
    key.write_bytes(pem())
    key.chmod(0o600)
    audit = {"sinks": [], "cluster": "blue", "checkpoints": {"key": "checkpoints.pem", "kid": "k1"}}
    async with running(audit=audit) as it:
        (event,) = await it.events()
        assert event["data"]["reason"] == "start"
        assert event["source"].startswith(f"/registry-gateway/blue/{os.uname().nodename}/")
    async with running(audit=audit) as it:
        assert [event["data"]["reason"] for event in await it.events()] == ["start", "stop", "start"]
    key.chmod(0o640)
    with pytest.raises(BadConfiguration, match=r"audit.checkpoints.key: .*others may read it \(mode 0640\)"):
        checkpoint_key_of(load(write_configuration(tmp_path, audit=audit), environ={}))
