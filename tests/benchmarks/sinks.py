"""Measures what a hung receiver costs writes, and how fast events go out: ``python -m tests.benchmarks.sinks``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from service.app import Application
from service.backends.memory import MemoryTransport
from service.backends.mlflow import MlflowBackend
from service.delivery.deliverer import Deliverer
from service.delivery.ports import Receiver, Stream
from service.journal.store import SqlJournal
from service.settings import load
from service.sinks.cloudevents import CloudEvents
from service.sinks.file import FileSink
from service.sinks.filters import Filter
from service.sinks.posting import Endpoint, Poster
from service.sinks.webhook import Webhook
from tests.client import Client
from tests.conftest import new_journal, write_configuration
from tests.delivery.events import event_about
from tests.delivery.receiver import receiving

WRITES, BLOCKS, AT_ONCE = 120, 8, 4
EVENTS = 3000


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def hung(folder: Path) -> dict[bool, list[float]]:
    """Time writes in blocks: with a receiver that hangs, and with nothing delivered at all."""
    (folder / "secret").write_text("a secret of sixteen or more")
    times: dict[bool, list[float]] = {True: [], False: []}
    async with receiving(hangs=lambda _: True) as receiver:
        hook = {"id": "hung", "url": receiver.url, "secret_file": "secret", "private": True, "timeout_seconds": 1.0}
        configuration = load(write_configuration(folder, audit={"sinks": [{"webhook": hook}]}), environ={})
        new_journal(configuration.journal_url())
        application = Application(configuration, backends={"main": MlflowBackend("main", MemoryTransport())})
        leading = False
        for one in application.deliverer._dispatchers:
            one._leads = lambda: leading
        client = Client(application.asgi)
        async with application._lifespan(application.litestar):
            for block in range(2 * BLOCKS):
                leading = block % 2 == 1
                await asyncio.sleep(1.3)  # it is looked each second who leads

                async def writer(worker: int, block: int = block, *, kind: bool = leading) -> None:
                    for number in range(WRITES // AT_ONCE):
                        begun = time.perf_counter()
                        name = f"m{block}-{worker}-{number}"
                        assert (await client.rpc("POST", "registered-models/create", name=name)).status == 200
                        times[kind].append((time.perf_counter() - begun) * 1000)

                await asyncio.gather(*map(writer, range(AT_ONCE)))
            print(f"attempts that hung: {len(receiver.got)}", file=sys.stderr)
    return times


async def throughput(folder: Path, make: Callable[[str], tuple[list[Stream], list[Receiver]]]) -> float:
    """Deliver a journal of many events of 50 models, and return how many a second."""
    url = f"sqlite:///{folder / 'journal.db'}"
    new_journal(url)
    journal = SqlJournal(url)
    await journal.start()
    async with receiving() as receiver:
        streams, receivers = make(receiver.url)
        deliverer = Deliverer(streams, receivers, journal)
        for one in (*deliverer._streams, *deliverer._dispatchers):
            await one.begin()
        for number in range(EVENTS // 100):
            await journal.append([event_about(f"m{(number * 100 + more) % 50}") for more in range(100)])
        begun = time.perf_counter()
        await deliverer.start()
        (name,) = deliverer.states
        follower = (*deliverer._streams, *deliverer._dispatchers)[0]
        while follower._reached() < EVENTS:
            await asyncio.sleep(0.005)
        seconds = time.perf_counter() - begun
        await deliverer.close()
        assert (await journal.backlog(name)).behind == 0
    await journal.close()
    return EVENTS / seconds


async def main() -> None:
    with contextlib.ExitStack() as stack:

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))

        times = await hung(folder())
        for kind, name in ((False, "nothing_delivered"), (True, "receiver_hung")):
            for share in (0.5, 0.99):
                print(f"write_{name}_p{int(share * 100)} {percentile(times[kind], share):.2f} ms")
        more = percentile(times[True], 0.99) - percentile(times[False], 0.99)
        print(f"hung_receiver_p99_more {more:.2f} ms <=5 {'held' if more <= 5 else 'missed'}")
        where = folder()
        kinds: dict[str, Callable[[str], tuple[list[Stream], list[Receiver]]]] = {
            "file": lambda _: ([FileSink(where / "events.jsonl")], []),
            "cloudevents": lambda url: (
                [],
                [CloudEvents("a", Poster(Endpoint(url, 10.0, private=True)), Filter())],
            ),
            "webhook": lambda url: (
                [],
                [Webhook("a", Poster(Endpoint(url, 10.0, private=True)), [lambda: "s" * 32], Filter(), lambda *_: ())],
            ),
        }
        for name, make in kinds.items():
            print(f"delivered_{name} {await throughput(folder(), make):.0f} events/s")


if __name__ == "__main__":
    asyncio.run(main())
