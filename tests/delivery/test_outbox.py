"""What the journal keeps of its sinks, on both kinds of database."""

from __future__ import annotations

import asyncio
import dataclasses

import asyncpg
import pytest

from service.delivery.dispatch import delivery_of
from service.effects import Follows, Reached, Redelivered
from service.event import build_event
from service.journal import schema
from service.journal.bell import CHANNEL
from service.journal.outbox import KEPT_SECONDS
from service.journal.store import SqlJournal
from tests.contract.conftest import journal, url
from tests.delivery.events import event_about

__all__ = ["journal", "url"]
NOW = 1000.0


async def pending(journal, *models: str, sink: str = "webhook:a", due: float = NOW):
    """Store an event about each of *models* and a delivery of it that is to be tried again."""
    events = await journal.append([event_about(model) for model in models])
    made = [
        dataclasses.replace(delivery_of(sink, event["data"]["sequence"], event, NOW), attempts=1, due=due)
        for event in events
    ]
    await journal.append([], [Reached(sink, events[-1]["data"]["sequence"], NOW, tuple(made))])
    return made


async def test_a_new_sink_begins_with_what_comes_and_an_old_one_where_it_was(journal):
    await journal.append([event_about("iris"), event_about("iris")])
    assert await journal.backlog("stdout") is None
    await journal.append([], [Follows("stdout", NOW)])
    first = await journal.backlog("stdout")
    await journal.append([event_about("iris")])
    await journal.append([], [Follows("stdout", NOW)])
    again = await journal.backlog("stdout")
    assert (first.sequence, first.behind, again.sequence, again.behind) == (2, 0, 2, 1)


async def test_a_sink_never_goes_back(journal):
    await journal.append([event_about(name) for name in "abc"])
    await journal.append([], [Reached("stdout", 1, NOW)])
    assert await journal.backlog("stdout") is None  # who never began is not made by that
    await journal.append([], [Follows("stdout", NOW)])
    await journal.append([], [Reached("stdout", 1, NOW)])
    assert (await journal.backlog("stdout")).sequence == 3


async def test_only_the_first_of_each_place_is_next(journal):
    await journal.append([], [Follows("webhook:a", NOW)])
    one, two, other = await pending(journal, "iris", "iris", "wine")
    await pending(journal, "iris", sink="webhook:b")
    assert {item.id for item in await journal.next_pending("webhook:a", 10)} == {one.id, other.id}
    assert [item.id for item in await journal.pending_in("webhook:a", "main/iris", 10)] == [one.id, two.id]
    backlog = await journal.backlog("webhook:a")
    assert (backlog.pending, backlog.parked, backlog.places) == (3, 0, {"main/iris", "main/wine"})
    done = dataclasses.replace(one, state="delivered", attempts=2, status=204, ended_at=NOW + 1)
    await journal.append([], [Reached("webhook:a", 3, NOW, (done,))])
    assert {item.id for item in await journal.next_pending("webhook:a", 10)} == {two.id, other.id}
    assert await journal.delivery(one.id) == done


async def test_what_is_stored_twice_is_one_delivery(journal):
    (made,) = await pending(journal, "iris")
    parked = dataclasses.replace(made, state="parked", problem="it answered 500", status=500, attempts=9, ended_at=NOW)
    for _ in range(2):
        await journal.append([], [Reached("webhook:a", 1, NOW, (parked,))])
    assert await journal.deliveries("webhook:a", None, None, 10) == [parked]
    await journal.append([], [Redelivered(made.id, NOW + 50)])
    again = await journal.delivery(made.id)
    assert (again.state, again.attempts, again.due, again.at) == ("pending", 0, NOW + 50, NOW + 50)


async def test_the_log_is_paged_by_the_event_newest_first_and_forgets_what_was_delivered(journal):
    made = await pending(journal, *"abcd")
    done = tuple(dataclasses.replace(item, state="delivered", ended_at=NOW) for item in made[:2])
    await journal.append([], [Reached("webhook:a", 4, NOW, done)])
    listed = await journal.deliveries("webhook:a", None, None, 3)
    assert [item.sequence for item in listed] == [4, 3, 2]
    assert [item.sequence for item in await journal.deliveries("webhook:a", None, 2, 3)] == [1]
    assert [item.sequence for item in await journal.deliveries("webhook:a", "pending", None, 9)] == [4, 3]
    late = dataclasses.replace(made[2], attempts=2)
    await journal.append([], [Reached("webhook:a", 4, NOW + KEPT_SECONDS + 1, (late,))])
    assert [item.sequence for item in await journal.deliveries("webhook:a", None, None, 9)] == [4, 3]


async def test_nothing_of_a_sink_wakes_who_follows_in_this_process(tmp_path):
    schema.upgrade(f"sqlite:///{tmp_path / 'journal.db'}")
    journal = SqlJournal(f"sqlite:///{tmp_path / 'journal.db'}")
    await journal.start()
    await journal.append([], [Follows("stdout", NOW), Reached("stdout", 1, NOW)])
    assert journal.rings == 0
    await journal.append([event_about("iris")])
    assert journal.rings == 1
    await journal.close()


async def test_nothing_of_a_sink_wakes_other_replicas(postgres):
    url = await postgres.database()
    await asyncio.to_thread(schema.upgrade, url)
    journal, connection = SqlJournal(url), await asyncpg.connect(url)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await connection.add_listener(CHANNEL, lambda *arguments: heard.put_nowait(arguments[3]))
    await journal.start()
    await journal.append([], [Follows("stdout", NOW), Reached("stdout", 1, NOW)])
    await journal.append([event_about("iris")])
    await connection.execute(f"NOTIFY {CHANNEL}, 'last'")
    async with asyncio.timeout(30):
        assert [await heard.get(), await heard.get()] == ["", "last"]
    await journal.close()
    await connection.close()


@pytest.mark.parametrize("model", [None, "iris"])
def test_a_delivery_is_of_one_place_and_has_one_identifier(model):
    data = {"phase": "outcome", "operation": "o", "registry": "main", "resource": "experiments/e", "model": model}
    event = build_event("alias:set", "outcome", data, "s", 0.0, "x")
    one, two = (delivery_of("webhook:a", 5, event, now) for now in (1.0, 2.0))
    assert one.id == two.id != delivery_of("webhook:b", 5, event, 1.0).id
    assert one.place == ("main/iris" if model else "main/experiments/e")
