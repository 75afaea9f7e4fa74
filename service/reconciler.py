"""Ends what was left open: reads the registry back and records what it shows.

Conservative: what it cannot prove stays ``unknown`` and is listed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import structlog

from service.backend import Backend
from service.consequences import consequences, debt_of, fulfilled
from service.effects import Effect, MadeLive, Registered
from service.errors import Busy, GatewayError, NotFound
from service.gateway import Gateway
from service.guard import live_version, marked_versions
from service.keeping import OpenOperation
from service.marking import ended_elsewhere, made_live, missing_marks, write_mark
from service.promotion.environments import Environments
from service.records import Creation, LivePeriod
from service.replicas import Replicas
from service.tasks import end
from service.unsettled import Outcome

SETTLE_SECONDS = 10.0
"""How long after the registry's deadline, or after its process died, a write that is not there was not done."""
UNPROVEN_SECONDS = 60.0
"""After this an operation that cannot be proved ends as ``unknown``."""
_PACE_SECONDS = 2.0
_CLOCK_SKEW_MS = 2_000
_log = structlog.get_logger()
Proof = tuple[bool | None, str, list[Effect]]
"""Whether it was done (None: cannot be proved), what was seen, and what follows."""


class Reconciler:
    """Settles operations that a crash, a lost answer or a failing journal left without an outcome."""

    def __init__(
        self, gateway: Gateway, replicas: Replicas, environments: Environments, deadlines: Mapping[str, float]
    ) -> None:
        """Read through *gateway*'s backends and write to its trail; *deadlines* are each registry's, in seconds.

        Operations of other *replicas* are left to them as long as they live.
        """
        self._gateway = gateway
        self._masks = gateway.trail.masks
        self._replicas = replicas
        self._dead: dict[str, float] = {}
        """Since when it is known of a process that it does not live, where it left operations."""
        self._deadlines = deadlines
        self._first_seen: dict[str, float] = {}
        """When each open operation was first seen here, by a clock that is never set."""
        self._environments = environments
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, and go on every two seconds."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop."""
        await end(self._task)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except GatewayError as error:
                _log.warning("reconciling is waiting", problem=error.detail)
            except Exception as error:  # noqa: BLE001  # it must never end
                _log.error("reconciling failed", problem=f"{type(error).__name__}: {error}")
            await asyncio.sleep(_PACE_SECONDS)

    async def sweep(self) -> int:
        """Try to settle every open operation once; return how many are left."""
        by_registry: dict[str, list[OpenOperation]] = {}
        waited_for = self._gateway.unsettled.items()
        still_open = await self._gateway.trail.journal.unsettled()
        self._note({found.operation for found in still_open})
        await self._tell_ended(waited_for, {found.operation for found in still_open})
        living = await self._replicas.living()
        now = time.monotonic()
        self._dead = {
            found.source: self._dead.get(found.source, now) for found in still_open if found.source not in living
        }
        for found in still_open:
            if found.operation not in self._gateway.active:
                ours = found.source == self._gateway.trail.source or found.source in self._dead
                if ours or found.state == "unknown":  # what is open in a living replica is under way
                    self._gateway.unsettled.add(found.digest, found.operation)
                if ours:
                    by_registry.setdefault(found.registry, []).append(found)
        # a registry that hangs delays its own operations only
        return sum(await asyncio.gather(*(self._sweep_one(items) for items in by_registry.values())))

    async def _tell_ended(self, waited_for: list[tuple[str, str]], still_open: Collection[str]) -> None:
        """Tell those who wait for operations that another replica has ended."""
        for digest, operation in waited_for:
            if operation in still_open or operation in self._gateway.active:
                continue
            events = await self._gateway.trail.journal.operation_events(operation)
            last = events[-1]["data"] if events else {"outcome": "failed"}  # without an intent nothing was forwarded
            outcome = Outcome(last["outcome"] or "unknown", last.get("version") or "")
            self._gateway.unsettled.settle(digest, operation, outcome)

    async def _sweep_one(self, items: list[OpenOperation]) -> int:
        left = 0
        for found in items:
            try:
                settled = await self._settle(found)
            except Busy:  # the model is being changed: the next sweep looks again
                settled = False
            except Exception as error:  # noqa: BLE001  # one odd operation must not keep the others open
                _log.warning("cannot settle yet", operation=found.operation, problem=f"{type(error).__name__}: {error}")
                settled = False
            if settled:  # one that ended by itself meanwhile: who waits is not told how
                self._gateway.unsettled.settle(found.digest, found.operation, Outcome())
            left += not settled
        return left

    async def _settle(self, found: OpenOperation) -> bool:
        """Read back under the model's lock; True if the operation has its terminal outcome now."""
        backend = self._gateway.backends.get(found.registry)
        if backend is None:
            return False
        change = found.change or {}
        names = tuple(name for name in (change.get("model"), change.get("new_name")) if name)
        # who holds the lock is carrying it out, in whatever replica: it is not waited for
        async with self._gateway.lock(found.registry, names or (f"\0{found.digest}",), seconds=0.0):
            if not await self._gateway.trail.journal.unsettled(found.operation):
                return True  # it ended while this one waited for its turn
            try:
                done, seen, effects = await self._prove(backend, found)
            except NotFound as error:  # what it was about is gone
                gone = change.get("kind", "").endswith("Delete")
                done, seen, effects = None if change.get("debt") else gone, f"read back: {error.detail}", []
            if done is None:
                outcome = "unknown" if self._age(found) >= UNPROVEN_SECONDS else None
            elif done:
                outcome = "succeeded"
            else:
                outcome = "failed" if self._is_late(found) else None
            if outcome is None:
                return False
            unproven = debt_of(change) if outcome == "unknown" else []  # an emergency that may have been done
            effects = [*effects, *_follow(found)] if done else unproven
            if not await self._gateway.trail.reconciled(found, outcome, seen or "it cannot be proved", effects):
                return True  # its own outcome came at the last moment
            self._gateway.follow(effects)
            if names:
                self._gateway.seals.settle(found.registry, names[0])
            version = next((item.creation.version for item in effects if isinstance(item, Registered)), "")
            self._gateway.unsettled.settle(found.digest, found.operation, Outcome(outcome, version))
        return True

    def _note(self, still_open: AbstractSet[str]) -> None:
        now = time.monotonic()
        self._first_seen = {operation: self._first_seen.get(operation, now) for operation in still_open}

    def _seen_for(self, found: OpenOperation) -> float:
        return time.monotonic() - self._first_seen.get(found.operation, time.monotonic())

    def _age(self, found: OpenOperation) -> float:
        return max(self._gateway.trail.now() - found.at, self._seen_for(found))

    def _is_late(self, found: OpenOperation) -> bool:
        """Tell whether the registry would have done it by now: it may act until long after a lost answer."""
        if found.state == "open" and found.source in self._dead:
            return time.monotonic() - self._dead[found.source] >= SETTLE_SECONDS
        return self._seen_for(found) >= self._deadlines.get(found.registry, 0.0) + SETTLE_SECONDS

    async def _prove(self, backend: Backend, found: OpenOperation) -> Proof:
        change = found.change
        if change is None:
            return None, "", []
        environment = found.intent["data"]["environment"]
        after = found.intent["data"]["after"]
        if change["kind"] == "Retirement":
            return await self._prove_retirement(backend, change, environment)
        if environment and after and not change.get("observed"):
            return await self._prove_promotion(backend, found, change, environment)
        if change["kind"] in ("ModelCreate", "ModelUpdate", "ModelRename", "ModelDelete"):
            return await self._prove_model(backend, change)
        if change["kind"] in ("VersionCreate", "VersionUpdate", "VersionDelete", "StageSet"):
            return await self._prove_version(backend, found, change)
        return await self._prove_mark(backend, change)

    async def _prove_promotion(
        self, backend: Backend, found: OpenOperation, change: Mapping[str, Any], name: str
    ) -> Proof:
        environment = self._environments.get(backend.name, change["model"], name)
        if environment is None:
            return None, "the environment is not configured any more", []
        model = await backend.get_model(change["model"])
        live = live_version(model, environment)
        periods = await self._gateway.trail.journal.periods(backend.name, change["model"])
        here = [item for item in periods if item.environment == name]
        later = any(item.since > found.at for item in here)
        ended = any(item.until is not None and item.until > found.at for item in here)
        if live is None or live != change["version"]:  # it may have been live until something later came
            return None if later or ended else False, f"read back: {live or 'nothing'} is live in {name}", []
        seen = f"read back: version {live} is live in {name}"
        version = await backend.get_version(change["model"], live)
        records = await self._gateway.trail.journal.version(backend.name, version.model, version.binding)
        marks = missing_marks(self._environments, backend.name, model, version, environment)
        if marks and records.quarantine is not None:
            seen, marks = f"{seen}; it was put in quarantine meanwhile, and no other mark is written", []
        for mark in marks:
            await write_mark(backend, change["model"], mark, live)  # the gate was open: the promotion is completed
            seen += f"; the {mark.kind} {mark.value} was missing and is written"
        data = found.intent["data"]
        by = data["actor"]["subject"]
        done = fulfilled(change, found.operation, self._gateway.trail.now(), by)
        if later:
            return True, f"{seen}, by a later promotion", done
        effect = await made_live(
            backend,
            environment,
            version,
            since=found.at,
            by=by,
            operation=found.operation,
            reason=data["reason"],
            kind=change.get("purpose", "promotion"),
            passed=change.get("passed", _passed(data["verdict"])),  # a revert is judged by nothing
            artifact_digest=change.get("artifact_digest", (data["verdict"] or {}).get("artifact_digest")),
        )
        elsewhere = ended_elsewhere(self._environments, backend.name, model, change.get("ends", ()), found.at)
        return True, seen, [effect, *elsewhere, *done]

    async def _prove_retirement(self, backend: Backend, change: Mapping[str, Any], name: str) -> Proof:
        environment = self._environments.get(backend.name, change["model"], name)
        if environment is None:
            return None, "the environment is not configured any more", []
        model = await backend.get_model(change["model"])
        left = [mark.value for mark in environment.marks if marked_versions(model, mark)]
        live = live_version(model, environment)
        return live is None, f"read back: {', '.join(left) or 'no mark'} is left", []

    @staticmethod
    async def _prove_model(backend: Backend, change: Mapping[str, Any]) -> Proof:
        kind, name = change["kind"], change["model"]
        if kind == "ModelRename":
            old, new = await _exists(backend, name), await _exists(backend, change["new_name"])
            if old == new:
                return None, "both names or neither exist", []
            return new, f"read back: the model is named {change['new_name'] if new else name}", []
        exists = await _exists(backend, name)
        if kind == "ModelDelete":
            return not exists, f"read back: the model {'exists' if exists else 'is gone'}", []
        if kind == "ModelCreate" or not exists:
            return exists, f"read back: the model {'exists' if exists else 'does not exist'}", []
        same = (await backend.get_model(name)).description == change["description"]
        return same, f"read back: the description is {'the new' if same else 'another'} one", []

    async def _prove_version(self, backend: Backend, found: OpenOperation, change: Mapping[str, Any]) -> Proof:
        kind = change["kind"]
        if kind == "VersionCreate":
            return await self._prove_creation(backend, found, change)
        try:
            version = await backend.get_version(change["model"], change["version"])
        except NotFound:
            return kind == "VersionDelete", "read back: the version does not exist", []
        if kind == "VersionDelete":
            return False, "read back: the version exists", []
        if kind == "StageSet":
            return version.stage == change["stage"], f"read back: the stage is {version.stage}", []
        return version.description == change["description"], "read back: the description", []

    async def _prove_creation(self, backend: Backend, found: OpenOperation, change: Mapping[str, Any]) -> Proof:
        if "'" in change["model"] and '"' in change["model"]:
            return None, "the registry cannot list the versions of a model with both quotation marks", []
        since = found.at * 1000 - _CLOCK_SKEW_MS
        made, older = [], 0
        for version in await backend.list_versions(change["model"]):
            if self._masks.same_text(change["source"], version.source) and version.run_id == change["run_id"]:
                journal = self._gateway.trail.journal
                if (await journal.version(backend.name, version.model, version.binding)).creation is not None:
                    continue
                if version.created_ms >= since:
                    made.append(version)
                else:
                    older += 1
        if older and not made:  # our clock may have been ahead of the registry's
            return None, f"read back: {older} versions from the same source are older, by the registry's clock", []
        if not made:
            return False, "read back: no such version was made", []
        if len(made) > 1:
            return None, f"read back: {len(made)} versions could be it", []
        actor = found.intent["data"]["actor"]
        persons = tuple(sorted({actor["subject"], actor["acting_for"]} - {None}))
        creation = Creation(made[0].model, made[0].version, made[0].binding, actor["subject"], persons, found.at)
        return True, f"read back: version {made[0].version} was made", [Registered(backend.name, creation)]

    async def _prove_mark(self, backend: Backend, change: Mapping[str, Any]) -> Proof:
        kind = change["kind"]
        if kind in ("AliasSet", "AliasDelete"):
            found = (await backend.get_model(change["model"])).aliases.get(change["alias"])
            wanted = change.get("version") if kind == "AliasSet" else None
            return found == wanted, f"read back: the alias is on {found or 'nothing'}", []
        if change["version"]:
            tags = (await backend.get_version(change["model"], change["version"])).tags
        else:
            tags = (await backend.get_model(change["model"])).tags
        wanted = change.get("value") if kind == "TagSet" else None
        same = self._masks.same_tag(wanted, change["key"], tags.get(change["key"]))
        return same, "read back: the tag" + (", whose value another key hides" if same is None else ""), []


def _passed(verdict: Mapping[str, Any] | None) -> bool:
    """Tell of a recorded verdict whether every rule passed, none of them by an emergency."""
    return bool(verdict and verdict["allowed"]) and not any(item["waived"] for item in (verdict or {})["findings"])


def _follow(found: OpenOperation) -> list[Effect]:
    """Say what follows from an operation that was done, as its intent recorded it."""
    change = found.change or {}
    effects = consequences(change, found.registry, tuple(change.get("ended", ())), found.at)
    for item in change.get("carried", ()):
        period = {**item["period"], "behind": tuple(item["period"]["behind"])}
        effects.append(MadeLive(item["registry"], item["model"], LivePeriod(**period)))
    return effects


async def _exists(backend: Backend, model: str) -> bool:
    try:
        await backend.get_model(model)
    except NotFound:
        return False
    return True
