"""Brings what a process keeps in memory up to date with what other replicas record and judge."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Collection
from typing import Any

import structlog

from service.audit import Operation
from service.errors import GatewayError
from service.event import Event
from service.gateway import Gateway
from service.model import ITSELF, Call, Need, Principal, Record, resource
from service.owners import Owners
from service.replicas import Judging, Replicas
from service.seal import Seal, Standing
from service.tasks import end
from service.unseen import Write
from service.unsettled import Outcome

SELF = Principal(ITSELF, issuer="registry-gateway")
_POLL_SECONDS = 1.0
_GATHER_SECONDS = 0.02
"""So long events are gathered after a ring: the answer to who made them goes first."""
_WRITES_END_SECONDS = 1.0
"""So long a judging of another replica waits for writes that are under way here."""
_PAGE = 500
_MOST_MODELS = 20
"""Of more models in one page, all are read anew."""
_MOST_FOLLOWED = 5_000
"""Who is further behind does not look at each event: all is read anew."""
_HARMLESS = frozenset({"ModelCreate", "ModelUpdate", "VersionCreate", "VersionUpdate", "TagSet", "TagDelete"})
"""Changes after which nothing else is live or approved."""
_Place = tuple[str, str]
_log = structlog.get_logger()


class Following:
    """Follows the journal by sequence, and what other replicas judge."""

    def __init__(self, gateway: Gateway, owners: Owners, replicas: Replicas, source: str) -> None:
        """Keep *gateway* and *owners* up to date; *source* names this process in events."""
        self._gateway = gateway
        self._journal = gateway.trail.journal
        self._owners = owners
        self._replicas = replicas
        self._source = source
        self._sequence = 0
        self._turn = asyncio.Lock()
        self._judgings: dict[str, Judging] = {}
        self._task: asyncio.Task[None] | None = None
        self._answers: set[asyncio.Task[None]] = set()
        self.conflicts = 0
        """Writes that were let through, unseen by the others, to what was sealed meanwhile."""

    async def load(self) -> None:
        """Begin with what is on record now.

        Raises:
            JournalUnavailable: it cannot be read.
        """
        self._sequence = await self._journal.last()
        await self._read_all()

    async def start(self, *, alone: bool) -> None:
        """Join the other replicas and follow what they do; who is *alone* has nobody to follow.

        Raises:
            JournalUnavailable: it cannot be told who they are.
        """
        await self._replicas.start(self._source, self.judged)
        if not alone:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop following, and leave the others."""
        await end(*self._answers, self._task)
        await self._replicas.close()

    async def _run(self) -> None:
        while True:
            rings = self._journal.rings
            try:
                await self.catch_up()
                await self._compare()
            except GatewayError as error:
                _log.warning("what other replicas do is not known", problem=error.detail)
            except Exception as error:  # noqa: BLE001  # it must never end
                _log.error("what other replicas do is not known", problem=f"{type(error).__name__}: {error}")
            await self._journal.more(rings, _POLL_SECONDS)
            await asyncio.sleep(_GATHER_SECONDS)

    async def catch_up(self) -> None:
        """Follow the journal to its end.

        Raises:
            JournalUnavailable: it cannot be read; what is known stays.
        """
        async with self._turn:
            while True:
                found = await self._journal.events({}, self._sequence, _PAGE)
                if not found:
                    return
                gap = found[0][0] != self._sequence + 1
                if not gap and found[0][0] + _MOST_FOLLOWED < (last := await self._journal.last()):
                    gap, found = True, [(last, {})]
                await self._follow([event for _, event in found if event and event["source"] != self._source], gap)
                self._sequence = found[-1][0]

    async def _follow(self, events: list[Event], gap: bool) -> None:
        places: dict[_Place, None] = {}
        for event in events:
            data = event["data"]
            self._tell_who_waits(data)
            if data.get("call") == "updateExperiment":
                self._gateway.access.ownership.forget_names(data["registry"])
            if data.get("outcome") == "succeeded":
                places |= dict.fromkeys(_places(data))
            await self._owners.recorded(event)
        if gap or len(places) > _MOST_MODELS:
            await self._read_all()
            self._gateway.wake(None)
            return
        for place in places:
            await self._read(place)
            self._gateway.wake(place)

    def _tell_who_waits(self, data: dict[str, Any]) -> None:
        """End an unknown operation that another replica has settled: equal calls wait for it here."""
        terminal = data["phase"] == "reconciled" or (data["phase"] == "outcome" and data["outcome"] != "unknown")
        if terminal:
            self._gateway.unsettled.ended(
                data["operation"], Outcome(data["outcome"] or "unknown", data.get("version") or "")
            )

    async def _read_all(self) -> None:
        seals = self._gateway.seals
        while True:  # what this process does meanwhile is not in what was read
            generation = seals.generation
            live, signed = await self._journal.live(), await self._journal.signed()
            if generation == seals.generation:
                seals.stand(live, signed)
                return

    async def _read(self, place: _Place) -> None:
        seals = self._gateway.seals
        while True:
            generation = seals.generation
            live, signed = await self._journal.live(place), await self._journal.signed(place)
            if generation == seals.generation:
                seals.stand(live, signed, place)
                return

    async def judged(self, judgings: Collection[Judging], joining: bool) -> None:
        """Seal what others judge, and tell them; unseal what they do not judge any more once its outcome is known.

        Raises:
            JournalUnavailable: it cannot be told what became of a judging, so it stays sealed.
        """
        now = {item.id: item for item in judgings}
        new = [item for name, item in now.items() if joining or name not in self._judgings]
        self._gateway.seals.judged_elsewhere([*self._judgings.values(), *now.values()])
        if joining:
            await self.catch_up()
        for item in new:
            self._begin(self._answer(item))
        if self._judgings.keys() - now.keys():
            self._judgings |= now
            await self.catch_up()
        self._judgings = now
        self._gateway.seals.judged_elsewhere(now.values())

    async def _answer(self, judging: Judging) -> None:
        seals = self._gateway.seals
        quiet = await seals.unwritten(judging.registry, judging.behind, _WRITES_END_SECONDS)
        await self._replicas.answer(judging, busy=not quiet)

    async def _compare(self) -> None:
        """Compare what was let through on its own account with all that is sealed now that the others wait again."""
        if not self._replicas.lease():
            return
        for write in self._gateway.seals.unseen.take():
            for seal in self._gateway.seals.standing_behind(write.registry, write.identifier):
                if seal.standing is not Standing.JUDGED:
                    await self._record(write, seal)
                    break

    async def _record(self, write: Write, seal: Seal) -> None:
        """Record that something behind a sealed version was written to while nobody waited for this process."""
        self.conflicts += write.count
        where = resource("models", seal.model, "environments", seal.environment.name)
        call = Call(
            principal=SELF,
            registry=write.registry,
            name="sealConflict",
            needs=(Need("environment:conflict", where),),
            record=Record.EACH,
        )
        trail = self._gateway.trail
        operation = Operation.opened(call, trail.now())
        operation.environment, operation.model, operation.version = seal.environment.name, seal.model, seal.version
        operation.detail = (
            "Something behind this version was written to while this replica was cut off from the journal."
        )
        operation.after = dataclasses.asdict(write)
        await trail.noted(operation)
        _log.error("written beside the seals", operation=operation.id, model=seal.model, **dataclasses.asdict(write))

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)


def _places(data: dict[str, Any]) -> list[_Place]:
    """Name the models in which something else may be live or approved after an event."""
    change = data.get("change") or {}
    if change.get("kind") in _HARMLESS:
        return []
    names = {data.get("model"), change.get("new_name"), change.get("model")}
    return [(data["registry"], name) for name in sorted(filter(None, names))]
