"""Seals what stands behind an approved or a live version: its run, its logged models, its files, its evidence.

Kept in memory, so that telemetry never waits for the journal; what other replicas record and judge is told to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from enum import Enum

from service.backend import Backend
from service.change import OfExperiment, OfLoggedModel, OfRun, TagDelete, TagSet, VersionUpdate
from service.effects import Deleted, Effect, MadeLive, Renamed, Revoked, Signed, TakenDown
from service.errors import Busy, NotFound, OutcomeUnknown
from service.held import holding
from service.model import Call
from service.ownership import Ownership
from service.promotion.environments import Environments
from service.promotion.gate import Environment, Sealing
from service.records import LivePeriod
from service.replicas import Judging, OneReplica, Replicas
from service.seal import Seal, Standing, only_ends_run, written
from service.unseen import Unseen

_RESTORES = frozenset({"restoreRun", "restoreExperiment"})
"""They ask the right to delete, and rewrite nothing."""
_Key = tuple[str, str, Enum, str]
_Place = tuple[str, str, str]


class Seals:
    """The seals of this moment."""

    def __init__(
        self,
        ownership: Ownership,
        environments: Environments,
        now: Callable[[], float],
        replicas: Replicas | None = None,
    ) -> None:
        """Find the experiments of sealed runs through *ownership*; *now* ends the seals of approvals that expire.

        *replicas* keep what is judged as it is, too.
        """
        self._replicas = replicas or OneReplica()
        self._ownership = ownership
        self._environments = environments
        self._now = now
        self._seals: dict[_Key, Seal] = {}
        """By registry, model, standing, and the environment or the approval."""
        self._index: dict[_Place, set[_Key]] = {}
        """The seals of ``("model", registry, name)``, and those that hold ``("behind", registry, identifier)``."""
        self._numbers = itertools.count()
        """One for each judging: a later one does not end the seal of one whose outcome is unknown."""
        self._writing: Counter[tuple[str, str]] = Counter()
        self._written = asyncio.Event()
        """Set and made anew when a write ends."""
        self.unseen = Unseen()
        """Writes for which no other replica waited."""
        self.generation = 0
        """Counts what was applied: who reads the journal beside it may have read what was before."""

    def apply(self, effects: Iterable[Effect]) -> None:
        """Follow what became or ceased to be approved or live."""
        self.generation += 1
        for effect in effects:
            match effect:
                case MadeLive(registry, model, period):
                    self.settle(registry, model)
                    self._add_live(registry, model, period)
                case TakenDown(registry, model, environments):
                    self.settle(registry, model)
                    self._drop(
                        key
                        for key in self._of_model(registry, model)
                        if key[2] is Standing.LIVE and (not environments or key[3] in environments)
                    )
                case Signed():
                    self._add_approved(effect)
                case Revoked(approval_id):
                    self._drop(key for key in self._seals if key[2:] == (Standing.APPROVED, approval_id))
                case Deleted(registry, model, version):
                    keys = self._of_model(registry, model)
                    self._drop(key for key in keys if version in ("", self._seals[key].version))
                case Renamed(registry, model, new_name):
                    for key in self._of_model(registry, model):
                        seal = self._take(key)
                        self._put((registry, new_name, *key[2:]), dataclasses.replace(seal, model=new_name))

    def _add_live(self, registry: str, model: str, period: LivePeriod) -> None:
        environment = self._environments.get(registry, model, period.environment)
        if environment is not None and environment.seals:
            seal = Seal(registry, model, environment, period.version, frozenset(period.behind), Standing.LIVE)
            self._put((registry, model, Standing.LIVE, environment.name), seal)

    def _add_approved(self, signed: Signed) -> None:
        approval = signed.approval
        environment = self._environments.get(signed.registry, signed.model, approval.environment)
        if environment is None or environment.sealing is not Sealing.APPROVED or approval.decision != "approve":
            return
        behind = frozenset(signed.behind)
        key = (signed.registry, signed.model, Standing.APPROVED, approval.id)
        self._put(
            key,
            Seal(
                registry=signed.registry,
                model=signed.model,
                environment=environment,
                version=signed.version,
                behind=behind,
                standing=Standing.APPROVED,
                expires=approval.expires,
            ),
        )

    @contextlib.asynccontextmanager
    async def provisional(
        self, operation: str, registry: str, model: str, environment: Environment, version: str, behind: frozenset[str]
    ) -> AsyncIterator[None]:
        """Seal what is being judged, so that what is judged is what becomes live; kept if the outcome is unknown.

        Every replica seals it. The caller holds the model's lock.

        Raises:
            Busy: something behind it is being written just now, or that cannot be told. Nothing was forwarded; try
                again.
        """
        if not environment.seals:
            yield
            return
        if self._is_written(registry, behind):
            message = "Something behind the version is being written just now; nothing was changed. Try again."
            raise Busy(message)
        key = (registry, model, Standing.JUDGED, f"{environment.name}\0{next(self._numbers)}")
        self._put(key, Seal(registry, model, environment, version, behind, Standing.JUDGED))
        try:
            judging = Judging(str(uuid.uuid4()), operation, registry, model, environment.name, version, behind)
            published = await self._replicas.publish(judging)
            settled = True
            try:
                with holding(published):
                    yield
            except OutcomeUnknown:
                settled = False
                raise
            finally:
                published.end(settled=settled)
        except OutcomeUnknown:
            raise  # it may be live: the reconciler's proof replaces the seal
        except BaseException:
            self._drop([key])
            raise
        else:
            self._drop([key])

    def _is_written(self, registry: str, behind: Iterable[str]) -> bool:
        return any(self._writing.get((registry, identifier.lower())) for identifier in behind)

    async def unwritten(self, registry: str, behind: Iterable[str], seconds: float) -> bool:
        """Wait at most *seconds* until nothing *behind* is being written by this process; tell whether it is so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._is_written(registry, behind):
                    await self._written.wait()
        return not self._is_written(registry, behind)

    def judged_elsewhere(self, judgings: Iterable[Judging]) -> None:
        """Seal what other replicas judge now, and nothing else that they judged."""
        self._drop([key for key in self._seals if key[2] is Standing.ELSEWHERE])
        for item in judgings:
            environment = self._environments.get(item.registry, item.model, item.environment)
            if environment is not None and environment.seals:
                seal = Seal(item.registry, item.model, environment, item.version, item.behind, Standing.ELSEWHERE)
                self._put((item.registry, item.model, Standing.ELSEWHERE, item.id), seal)

    def stand(
        self,
        live: Iterable[tuple[str, str, LivePeriod]],
        signed: Iterable[Signed],
        place: tuple[str, str] | None = None,
    ) -> None:
        """Have exactly what is *live* and *signed* by record, of the model at *place* or of all."""
        keys = self._seals if place is None else self._of_model(*place)
        self._drop([key for key in keys if key[2] in (Standing.LIVE, Standing.APPROVED)])
        for item in live:
            self._add_live(*item)
        for one in signed:
            self._add_approved(one)

    def standing_behind(self, registry: str, identifier: str) -> list[Seal]:
        """List what holds now and forbids to write to a run or a logged model."""
        return self._in_force(self._index.get(("behind", registry, identifier), ()))

    @contextlib.contextmanager
    def writing(self, backend: Backend, call: Call) -> Iterator[None]:
        """Count a write while it is under way, so that nothing is judged that is still changing."""
        keys = [(backend.name, identifier) for identifier in written(call)]
        for key in keys:
            self._writing[key] += 1
        lease = self._replicas.lease()
        try:
            yield
        finally:
            for key in keys:
                self._writing[key] -= 1
                if not self._writing[key]:
                    del self._writing[key]
                if not lease or lease != self._replicas.lease():
                    self.unseen.note(key, call.principal.subject, self._now())
            self._written.set()
            self._written = asyncio.Event()

    def settle(self, registry: str, model: str) -> None:
        """Drop the provisional seals of *model*: what became of them is proved."""
        self._drop(key for key in self._of_model(registry, model) if key[2] is Standing.JUDGED)

    def _of_model(self, registry: str, model: str) -> list[_Key]:
        return list(self._index.get(("model", registry, model), ()))

    def _put(self, key: _Key, seal: Seal) -> None:
        self._drop([key])
        self._seals[key] = seal
        for place in _places(key, seal):
            self._index.setdefault(place, set()).add(key)

    def _take(self, key: _Key) -> Seal:
        seal = self._seals.pop(key)
        for place in _places(key, seal):
            self._index[place].discard(key)
            if not self._index[place]:
                del self._index[place]
        return seal

    def _drop(self, keys: Iterable[_Key]) -> None:
        for key in list(keys):
            if key in self._seals:
                self._take(key)

    def _in_force(self, keys: Iterable[_Key]) -> list[Seal]:
        """List the seals that hold now; what is live is named before what is approved."""
        now = self._now()
        seals = [self._seals[key] for key in keys]
        order = list(Standing)
        return sorted(
            (seal for seal in seals if seal.expires is None or seal.expires > now),
            key=lambda seal: order.index(seal.standing),
        )

    async def check(self, backend: Backend, call: Call) -> None:
        """Refuse a write to what is sealed.

        Raises:
            Conflict: it belongs to an approved or live version, which is named. Nothing was forwarded.
            Busy: it belongs to a version that is being judged. Nothing was forwarded; try again.
            RegistryUnavailable: it cannot be told what is in an experiment. Nothing was forwarded.
        """
        if call.name in _RESTORES:
            return
        for identifier in written(call):
            for seal in self._in_force(self._index.get(("behind", backend.name, identifier), ())):
                if not only_ends_run(call, seal.environment):
                    seal.refuse("It stands behind")
        self._check_version(backend.name, call)
        for need in call.needs:
            if need.action == "experiment:delete" and isinstance(need.resource, OfExperiment):
                await self._check_experiment(backend, need.resource.experiment_id)

    def _check_version(self, registry: str, call: Call) -> None:
        """Refuse what would change the evidence that stands on the version itself."""
        change = call.change
        if not isinstance(change, TagSet | TagDelete | VersionUpdate) or not change.version:
            return
        for seal in self._in_force(self._of_model(registry, change.model)):
            if seal.version != change.version:
                continue
            if isinstance(change, VersionUpdate):
                if seal.environment.reads("description"):
                    seal.refuse("The description is evidence of")
            elif seal.environment.seals_tag(change.key):
                seal.refuse(f"The tag {change.key[:100]!r} is evidence of")

    async def _check_experiment(self, backend: Backend, experiment_id: str) -> None:
        for place in [place for place in self._index if place[:2] == ("behind", backend.name)]:
            seals = self._in_force(self._index.get(place, ()))
            if not seals:
                continue
            identifier = place[-1]
            where = OfLoggedModel(identifier) if identifier.startswith("m-") else OfRun(identifier)
            try:
                owner = await self._ownership.experiment_of(backend, where)
            except NotFound:
                continue  # gone beside the gateway
            if owner == experiment_id:
                seals[0].refuse("A run or logged model in it stands behind")


def _places(key: _Key, seal: Seal) -> list[_Place]:
    registry, model = key[:2]
    return [("model", registry, model), *(("behind", registry, identifier.lower()) for identifier in seal.behind)]
