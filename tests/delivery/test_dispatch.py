"""Sinks on a real journal: each gets all, in order for each place, whatever the others do, across restarts."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import defaultdict
from collections.abc import Callable
from contextlib import asynccontextmanager

import pytest

from service.delivery import following
from service.delivery.deliverer import Deliverer
from service.delivery.dispatch import Dispatcher
from service.delivery.ports import Patience, Sent, SinkFailed
from service.effects import Redelivered
from service.errors import JournalUnavailable
from service.event import Event
from service.journal.store import SqlJournal
from tests.conftest import new_journal
from tests.delivery.events import event_about

SOON = Patience(first_seconds=0.01, most_seconds=0.02)


class Recorder:
    """A receiver in memory that can fail or hang."""

    def __init__(self, name: str = "webhook:a") -> None:
        self.name = name
        self.took: list[Event] = []
        self.tried: list[Event] = []
        self.answer: Callable[[Event], Sent] = lambda _: Sent(204)
        self.hold: dict[str, asyncio.Event] = {}
        """By model: what an attempt waits for."""
        self.came = asyncio.Event()

    def wants(self, event: Event) -> bool:
        return event["data"]["alias"] != "unwanted" if "alias" in event["data"] else True

    async def send(self, event: Event) -> Sent:
        self.tried.append(event)
        self.came.set()
        if event["data"]["model"] in self.hold:
            await self.hold[event["data"]["model"]].wait()
        sent = self.answer(event)
        if not sent.problem:
            self.took.append(event)
        return sent

    async def close(self) -> None: ...

    def of(self, model: str) -> list[int]:
        return [event["data"]["sequence"] for event in self.took if event["data"]["model"] == model]


class Lines:
    """A stream in memory that can fail."""

    def __init__(self, name: str = "stdout") -> None:
        self.name = name
        self.lines: list[Event] = []
        self.fails = 0
        self.closed = False

    async def write(self, events):
        if self.fails:
            self.fails -= 1
            raise SinkFailed("the disk is full")
        self.lines += events

    async def close(self):
        self.closed = True


@pytest.fixture
async def journal(tmp_path):
    made = await opened(tmp_path)
    yield made
    await made.close()


async def opened(folder) -> SqlJournal:
    url = f"sqlite:///{folder / 'journal.db'}"
    await asyncio.to_thread(new_journal, url)
    made = SqlJournal(url)
    await made.start()
    return made


@asynccontextmanager
async def delivering(journal, *receivers, streams=(), patience=SOON, leads=lambda: True):
    deliverer = Deliverer(streams, receivers, journal, leads, patience)
    await deliverer.start()
    try:
        yield deliverer
    finally:
        await deliverer.close()


async def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


async def states(journal, sink="webhook:a") -> dict[str, int]:
    found: dict[str, int] = defaultdict(int)
    for item in await journal.deliveries(sink, None, None, 1000):
        found[item.state] += 1
    return dict(found)


async def test_each_sink_gets_everything_in_order(journal):
    one, two, lines = Recorder(), Recorder("webhook:b"), Lines()
    async with delivering(journal, one, two, streams=[lines]):
        for number in range(120):
            await journal.append([event_about(f"m{number % 7}")])
        await until(lambda: len(one.took) == len(two.took) == len(lines.lines) == 120)
    assert [event["data"]["sequence"] for event in lines.lines] == list(range(1, 121))
    for number in range(7):
        assert one.of(f"m{number}") == two.of(f"m{number}") == [n for n in range(1, 121) if (n - 1) % 7 == number]
    assert lines.closed
    assert (await journal.backlog("webhook:a")).behind == (await journal.backlog("stdout")).behind == 0
    assert await states(journal) == {"delivered": 120}


async def test_what_hangs_or_fails_delays_no_other_sink_and_no_other_place(journal):
    good, bad, lines, full = Recorder("webhook:good"), Recorder("webhook:bad"), Lines(), Lines("file:x")
    bad.hold["iris"] = asyncio.Event()
    full.fails = 10**9
    async with delivering(journal, bad, good, streams=[full, lines]) as deliverer:
        await journal.append([event_about("iris"), event_about("iris"), event_about("wine"), event_about("iris")])
        await until(lambda: len(good.took) == len(lines.lines) == 4 and bad.of("wine") == [3])
        assert bad.took == [bad.took[0]]
        await journal.append([event_about("wine")])
        await until(lambda: bad.of("wine") == [3, 5])
        await deliverer.look()
        assert deliverer.states["webhook:good"].state == "up"
        assert deliverer.states["file:x"].state == "failing"
        bad.hold["iris"].set()
        await until(lambda: bad.of("iris") == [1, 2, 4])


async def test_an_event_that_cannot_be_understood_holds_up_its_place_only(journal):
    receiver = Recorder()
    wants = receiver.wants

    def puzzled(event):
        if event["data"]["model"] == "iris":
            raise KeyError("kind")
        return wants(event)

    receiver.wants = puzzled
    receiver.answer = lambda event: Sent(problem="no words" if event["data"]["model"] == "iris" else "")
    patience = Patience(first_seconds=0.01, most_seconds=0.02, give_up_seconds=0.05)
    async with delivering(journal, receiver, patience=patience):
        await journal.append([event_about("iris"), event_about("wine")])
        await until(lambda: receiver.of("wine") == [2])
        async with asyncio.timeout(10):
            while await states(journal) != {"parked": 1, "delivered": 1}:
                await asyncio.sleep(0.01)


async def test_what_the_filter_leaves_out_by_now_is_not_sent(journal):
    receiver = Recorder()
    receiver.answer = lambda event: Sent(500, "down" if event["data"]["model"] == "iris" else "")
    async with delivering(journal, receiver):
        await journal.append([event_about("iris"), event_about("wine"), event_about("iris")])
        await until(lambda: receiver.of("wine") == [2])
    narrower = Recorder()
    narrower.wants = lambda event: event["data"]["model"] != "iris"
    async with delivering(journal, narrower):
        async with asyncio.timeout(10):
            while await states(journal) != {"parked": 2, "delivered": 1}:
                await asyncio.sleep(0.01)
    assert narrower.tried == []
    (parked, _) = await journal.deliveries("webhook:a", "parked", None, 10)
    assert parked.problem == "The endpoint's filter leaves it out by now."


async def test_what_fails_holds_up_its_place_until_it_is_taken(journal):
    receiver = Recorder()
    refused = 3

    def answer(event):
        nonlocal refused
        if event["data"]["model"] == "iris" and refused:
            refused -= 1
            return Sent(500, "it answered 500")
        return Sent(204)

    receiver.answer = answer
    async with delivering(journal, receiver) as deliverer:
        await journal.append([event_about("iris"), event_about("wine"), event_about("iris"), event_about("iris")])
        await until(lambda: receiver.of("wine") == [2])
        await until(lambda: receiver.of("iris") == [1, 3, 4])
        assert [event["data"]["sequence"] for event in receiver.tried if event["data"]["model"] == "iris"] == [
            *([1] * 4),
            3,
            4,
        ]
        await until(lambda: deliverer._dispatchers[0]._places == {})
        await journal.append([event_about("iris")])
        await until(lambda: receiver.of("iris") == [1, 3, 4, 5])
    assert await states(journal) == {"delivered": 5}
    tried = await journal.deliveries("webhook:a", None, 2, 1)
    assert (tried[0].attempts, tried[0].status, tried[0].problem) == (4, None if tried[0].status is None else 204, "")


async def test_random_failures_keep_the_order_of_each_place(journal):
    receiver, chance = Recorder(), random.Random(3)
    receiver.answer = lambda _: Sent(204) if chance.random() < 0.6 else Sent(503, "it answered 503")
    async with delivering(journal, receiver):
        for number in range(150):
            await journal.append([event_about(f"m{number % 5}")])
        await until(lambda: len(receiver.took) >= 150, 30)
    for number in range(5):
        assert receiver.of(f"m{number}") == [n for n in range(1, 151) if (n - 1) % 5 == number]


async def test_given_up_it_is_parked_and_the_next_one_goes(journal):
    receiver = Recorder()
    receiver.answer = lambda event: Sent(204) if event["data"]["sequence"] != 1 else Sent(500, "it answered 500")
    patience = Patience(first_seconds=0.01, most_seconds=0.02, give_up_seconds=0.1)
    async with delivering(journal, receiver, patience=patience) as deliverer:
        await journal.append([event_about("iris"), event_about("iris")])
        await until(lambda: receiver.of("iris") == [2])
        await deliverer._dispatchers[0]._flush()
        await deliverer.look()
        assert deliverer.states["webhook:a"].parked == 1
        (parked,) = await journal.deliveries("webhook:a", "parked", None, 10)
        assert (parked.sequence, parked.status, parked.problem) == (1, 500, "it answered 500")
        assert parked.attempts > 1
        receiver.answer = lambda _: Sent(204)
        await journal.append([], [Redelivered(parked.id, following.time.time())])
        await until(lambda: receiver.of("iris") == [2, 1])
    assert await states(journal) == {"delivered": 2}


async def test_a_receiver_that_is_gone_is_not_tried_again(journal):
    receiver = Recorder()
    receiver.answer = lambda _: Sent(410, "it answered 410", gone=True)
    async with delivering(journal, receiver):
        await journal.append([event_about("iris"), event_about("iris")])
        await until(lambda: len(receiver.tried) == 2)
    assert await states(journal) == {"parked": 2}


async def test_a_restart_goes_on_where_it_was(tmp_path):
    first, second = Recorder(), Recorder()
    lines = Lines()
    journal = await opened(tmp_path)
    first.answer = lambda event: Sent(204) if event["data"]["model"] != "iris" else Sent(500, "it answered 500")
    async with delivering(journal, first, streams=[lines]):
        await journal.append([event_about("iris"), event_about("wine"), event_about("iris")])
        await until(lambda: first.of("wine") == [2] and len(lines.lines) == 3)
    await journal.append([event_about("iris")])  # while nobody delivers
    await journal.close()
    journal = await opened(tmp_path)
    async with delivering(journal, second, streams=[lines]):
        await until(lambda: second.of("iris") == [1, 3, 4] and len(lines.lines) == 4)
    assert second.of("wine") == []
    await journal.close()


async def test_after_a_kill_the_last_second_comes_again_and_nothing_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "FLUSH_SECONDS", 3600.0)
    receiver, lines = Recorder(), Lines()
    journal = await opened(tmp_path)
    deliverer = Deliverer([lines], [receiver], journal)
    await deliverer.start()
    await journal.append([event_about("iris"), event_about("iris")])
    await until(lambda: len(receiver.took) == len(lines.lines) == 2)
    for one in (*deliverer._streams, *deliverer._dispatchers):  # a kill writes nothing down
        one._task.cancel()
        await asyncio.gather(one._task, return_exceptions=True)
    await journal.close()
    journal = await opened(tmp_path)
    await journal.append([event_about("iris")])
    async with delivering(journal, receiver, streams=[lines]):
        await until(lambda: len(receiver.took) == len(lines.lines) == 5)
    assert receiver.of("iris") == [1, 2, 1, 2, 3]
    identities = {(event["source"], event["id"]) for event in receiver.took}
    assert len(identities) == len({(event["source"], event["id"]) for event in lines.lines}) == 3
    await journal.close()


async def test_only_who_leads_delivers_and_who_takes_over_goes_on(journal):
    leading = {"one": True, "two": False}
    one, two = Recorder(), Recorder()
    async with (
        delivering(journal, one, leads=lambda: leading["one"]),
        delivering(journal, two, leads=lambda: leading["two"]),
    ):
        await journal.append([event_about("iris")])
        await until(lambda: one.of("iris") == [1])
        leading["one"] = False
        await asyncio.sleep(1.2)  # it looks each second whether it still leads, and writes down how far it is
        leading["two"] = True
        await journal.append([event_about("iris")])
        await until(lambda: two.of("iris") == [2])
    assert one.of("iris") == [1]


async def test_who_leads_no_more_does_not_write_what_failed_before(journal):
    leading, lines = True, Lines()
    lines.fails = 10**9
    async with delivering(journal, streams=[lines], leads=lambda: leading) as deliverer:
        await journal.append([event_about("iris")])
        await until(lambda: deliverer._streams[0].problem == "the disk is full")
        leading, lines.fails = False, 0
        await asyncio.sleep(1.0)  # more than a pause between two attempts
        assert lines.lines == []
        await until(lambda: not deliverer._streams[0].problem)  # the leader says how it does
        await deliverer.look()
        assert deliverer.states["stdout"].state == "up"
        leading = True
        await until(lambda: len(lines.lines) == 1)


async def test_a_journal_that_is_down_is_waited_for(journal, monkeypatch):
    receiver, lines = Recorder(), Lines()
    async with delivering(journal, receiver, streams=[lines]) as deliverer:
        both = (*deliverer._streams, *deliverer._dispatchers)
        await journal.append([event_about("iris")])
        await until(lambda: len(receiver.took) == len(lines.lines) == 1)
        with monkeypatch.context() as patch:

            async def down(*_):
                raise JournalUnavailable("The journal cannot be read.")

            patch.setattr(SqlJournal, "events", down)
            await until(lambda: all(one.problem == "The journal cannot be read." for one in both))
            await journal.append([event_about("iris")])
            assert len(receiver.took) == len(lines.lines) == 1
        await until(lambda: not any(one.problem for one in both))
        await until(lambda: set(receiver.of("iris")) == {1, 2} and len(lines.lines) >= 2)


async def test_how_far_it_is_costs_no_commit_for_each_event(journal, monkeypatch):
    receiver, lines, written = Recorder(), Lines(), []
    append = SqlJournal.append

    async def counting(self, events, effects=(), **more):
        written.extend(effects)
        return await append(self, events, effects, **more)

    async with delivering(journal, receiver, streams=[lines]):
        await until(lambda: True)
        monkeypatch.setattr(SqlJournal, "append", counting)
        for _ in range(200):
            await journal.append([event_about("iris")])
        await until(lambda: len(receiver.took) == len(lines.lines) == 200)
    assert len(written) <= 12
    assert (await journal.backlog("stdout")).behind == 0


async def test_with_very_many_pending_new_events_stay_in_the_journal(journal, monkeypatch):
    monkeypatch.setattr("service.delivery.dispatch.MAX_PENDING", 3)
    receiver = Recorder()
    receiver.answer = lambda _: Sent(500, "it answered 500")
    patience = Patience(first_seconds=0.01, most_seconds=0.02, give_up_seconds=3600)
    async with delivering(journal, receiver, patience=patience):
        await journal.append([event_about("iris") for _ in range(5)])
        await until(lambda: len(receiver.tried) > 20)
        await journal.append([event_about("wine")])
        await asyncio.sleep(0.2)
        assert not any(event["data"]["model"] == "wine" for event in receiver.tried)
        receiver.answer = lambda _: Sent(204)
        await until(lambda: receiver.of("iris") == [1, 2, 3, 4, 5] and receiver.of("wine") == [6])


async def test_a_stop_waits_for_no_sink_that_hangs(journal):
    class Hanging(Lines):
        async def write(self, events):
            await asyncio.Event().wait()

        async def close(self):
            await asyncio.Event().wait()

    receiver = Recorder()
    receiver.hold["iris"] = asyncio.Event()
    deliverer = Deliverer([Hanging()], [receiver], journal, patience=SOON)
    await deliverer.start()
    await journal.append([event_about("iris")])
    await until(lambda: receiver.tried)
    async with asyncio.timeout(8):
        await deliverer.close()
    assert (await journal.backlog("stdout")).sequence == (await journal.backlog("webhook:a")).sequence == 0


async def test_replicas_on_postgresql_deliver_what_another_one_recorded(postgres):
    url = await postgres.database()
    await asyncio.to_thread(new_journal, url)
    one, two = SqlJournal(url), SqlJournal(url)
    await one.start()
    await two.start()
    leader, other, lines = Recorder(), Recorder(), Lines()
    flaky = random.Random(5)
    leader.answer = lambda _: Sent(204) if flaky.random() < 0.7 else Sent(500, "it answered 500")
    async with (
        delivering(one, leader, streams=[lines]),
        delivering(two, other, streams=[Lines()], leads=lambda: False),
    ):
        for number in range(40):
            await (one, two)[number % 2].append([event_about(f"m{number % 3}")])
        await until(lambda: len(leader.took) == len(lines.lines) == 40, 30)
    for number in range(3):
        assert leader.of(f"m{number}") == [n for n in range(1, 41) if (n - 1) % 3 == number]
    assert other.tried == []
    assert await states(two) == {"delivered": 40}
    await one.close()
    await two.close()


def test_it_waits_twice_as_long_each_time_and_never_all_at_once():
    patience = Patience()
    pauses = [[patience.pause(attempts) for _ in range(50)] for attempts in range(1, 15)]
    for attempts, found in enumerate(pauses, 1):
        whole = min(3600.0, 5.0 * 2 ** (attempts - 1))
        assert whole / 2 <= min(found) <= max(found) <= whole
        assert len(set(found)) > 40
    assert patience.pause(1, 100) == 100
    assert patience.pause(1, 10**6) == 3600
    assert dataclasses.replace(patience, most_seconds=1).pause(5000) <= 1


def test_a_dispatcher_names_its_receiver():
    assert Dispatcher(Recorder("webhook:z"), None, lambda: True).name == "webhook:z"  # type: ignore[arg-type]
