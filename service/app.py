"""The composition root: wires the parts to one ASGI application, and runs them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import importlib.metadata
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog
from litestar import Litestar
from litestar.di import Provide

from service import errors as e
from service.access import Access
from service.api.exchange import Exchange
from service.api.forwarded import Proxies
from service.api.front import Authenticate, Front
from service.api.health import Health, Metrics
from service.api.limits import Limits
from service.asgi import ASGI
from service.audit import Trail
from service.authentication.credentials import Credentials
from service.authentication.signing import SigningKeys
from service.authentication.uses import Uses
from service.authorization.authorizer import Authorizer
from service.authorization.explaining import PolicyExplainer
from service.backend import Backend
from service.backends.breaker import Breaker
from service.changes import Changes
from service.delivery.deliverer import Deliverer
from service.delivery.ports import Stream
from service.dialects.endpoint import MlflowEndpoint
from service.dialects.mlflow import MlflowDialect
from service.dialects.mlflow import render_error as render_mlflow_error
from service.drift import Drift
from service.floods import SUM_SECONDS, Refusals
from service.following import Following
from service.gateway import Gateway
from service.gather import Gatherer
from service.governance import Governance
from service.guard import Guard
from service.held import still_held
from service.journal.leader import leader_of
from service.journal.store import SqlJournal
from service.keeping import Journal
from service.model import People, Principal, Scope
from service.modes import ENFORCE, Modes
from service.owners import Owners
from service.ownership import Ownership
from service.page_tokens import PageTokens
from service.parts import (
    api_keys_of,
    backend_of,
    bounds_of,
    checkpoints_of,
    environments_of,
    issuers_of,
    locks_of,
    masks_of,
    own_tokens_of,
    replicas_of,
    retention_of,
    revoked_of,
    secret_of,
    sinks_of,
)
from service.promoter import Promoter
from service.promotion.environments import Environments
from service.reconciler import Reconciler
from service.routes import build_litestar, caller_of, given, public_paths
from service.scope import covers
from service.seals import Seals
from service.searching import Searches
from service.settings import Configuration, load
from service.spelling import Spelling
from service.tally import Tally
from service.tasks import end
from service.watching import Watch

RELOAD_SECONDS = 1.0
DRAIN_SECONDS = 25.0
_OWN = ("/v1/", "/access/")
_OPEN_TELEMETRY = ("/v1/traces", "/v1/metrics")
"""MLflow's OpenTelemetry ingestion, at its server's root."""
Follow = Callable[[], Awaitable[bool]]
"""Takes the present content of a file; True if it changed."""
_log = structlog.get_logger()


class Application:
    """The parts, wired; `asgi` is what a server runs."""

    def __init__(
        self,
        configuration: Configuration,
        *,
        backends: dict[str, Backend] | None = None,
        journal: Journal | None = None,
        sinks: list[Stream] | None = None,
    ) -> None:
        """Wire the parts of *configuration*; tests may bring their own *backends*, *journal* and streams as *sinks*.

        Raises:
            BadConfiguration: a file is wrong. Nothing was started.
        """
        settings = configuration.settings
        registries = settings.registries
        self.configuration = configuration
        self.circuits = {name: Breaker() for name in registries}
        self.backends = backends or {
            name: backend_of(name, item, configuration, self.circuits[name]) for name, item in registries.items()
        }
        capabilities = {name: backend.capabilities for name, backend in self.backends.items()}
        self.environments = Environments(environments_of(configuration, capabilities))
        self.people = People(settings.authentication.same_person)
        self.journal = journal or SqlJournal(
            configuration.journal_url(), settings.journal.deadline_seconds, self.people
        )
        signing = self._take_credentials(configuration)
        self.trail = Trail(
            self.journal,
            source=settings.audit.new_source(),
            still_held=self._may_write,
            masks=masks_of(configuration),
        )
        self.replicas = replicas_of(configuration)
        self.leader = leader_of(configuration.journal_url(), settings.journal.deadline_seconds)
        self.leads = self.leader.leads
        streams, receivers = sinks_of(configuration, self._aliases_of)
        self.deliverer = Deliverer(streams if sinks is None else sinks, receivers, self.journal, self.leads)
        self.checkpoints = checkpoints_of(configuration, self.trail, leads=self.leads)
        self.refusals = Refusals(self.trail, settings.audit.refusals_per_minute)
        self.trail.floods = self.refusals
        self.owners = Owners(self.journal)
        self.trail.on_recorded = self.owners.recorded
        self.authorizer = Authorizer(
            configuration.path(settings.access.model),
            configuration.path(settings.access.rows),
            registries,
            settings.access.limits,
            owners=self.owners,
        )
        self.exchange = Exchange(
            self.trail,
            registries,
            issue=self.tokens.issue if self.tokens else None,
            issuer=self.tokens.issuer if self.tokens else "",
            max_seconds=settings.tokens.max_seconds if settings.tokens else 0,
            keys=signing.document if signing else None,
        )
        self.changes = Changes(settings.lock_seconds, locks_of(configuration), settings.journal.deadline_seconds)
        gatherer = Gatherer(self.journal, self.trail.now)
        ownership = Ownership()
        sources = {name: registry.sources for name, registry in registries.items()}
        self.modes = Modes({name: registry.mode for name, registry in registries.items()})
        access = Access(self.authorizer.decide, ownership, sources, self.trail, self.modes, self._count_denial)
        seals = Seals(ownership, self.environments, self.trail.now, self.replicas)
        watch = Watch()
        promoter = Promoter(self.environments, gatherer, self.trail, seals)
        self.gateway = Gateway(
            backends=self.backends,
            access=access,
            guard=Guard(self.environments),
            promoter=promoter,
            seals=seals,
            watch=watch,
            spelling=Spelling(),
            searches=Searches(ownership, self._scope, PageTokens(secret_of(configuration))),
            tally=Tally(self.trail, settings.audit.sum_seconds),
            trail=self.trail,
            changes=self.changes,
            join_seconds=settings.lock_seconds,
            record_reads=settings.audit.reads in (True, "on"),
        )
        self.drift = Drift(self.gateway, self.environments, settings.drift_seconds, self.leads)
        explainer = PolicyExplainer(self.authorizer, registries)
        self.governance = Governance(
            self.gateway, self.environments, gatherer, watch, self.drift, explainer, self.deliverer
        )
        self.following = Following(self.gateway, self.owners, self.replicas, self.trail.source)
        self.reconciler = Reconciler(
            self.gateway,
            self.replicas,
            self.environments,
            {name: registry.timeout_seconds for name, registry in registries.items()},
        )
        self.health = Health(self.backends, self.journal, lambda: self.authorizer.revision)
        self.health.in_force = lambda: bool(self.replicas.lease())
        self.health.circuits = {name: breaker.look for name, breaker in self.circuits.items()}
        self.health.issuers = self.issuers.states if self.issuers else dict
        self.health.sinks = lambda: self.deliverer.states
        self.health.look_at_sinks = self.deliverer.look
        self.metrics = Metrics(self.health)
        self.metrics.follow_sinks(self.health.sinks, lambda: self.deliverer.attempts)
        self.metrics.follow_policy(self.health, lambda: self.authorizer.loaded_at)
        self.litestar = self._litestar()
        self.asgi = self._front()

    def _take_credentials(self, configuration: Configuration) -> SigningKeys | None:
        """Make what tells who calls; return the keys of the gateway's own tokens, if it gives any.

        Raises:
            BadConfiguration: a file is wrong.
        """
        self.uses = Uses(self.journal)
        self.keys = api_keys_of(configuration, self.uses.note)
        revoked = revoked_of(configuration)
        self.issuers = issuers_of(configuration, revoked)
        self.tokens, signing = own_tokens_of(configuration, revoked)
        self.credentials = Credentials(self.keys, self.issuers, self.tokens)
        return signing

    def _count_denial(self, registry: str, action: str) -> None:
        self.metrics.would_deny.labels(registry, action).inc()

    def _scope(self, principal: Principal, registry: str, kind: str, action: str) -> Scope:
        """Say which names a search asks for: every one where access is not enforced and the credential not narrowed."""
        if self.modes.of(registry) != ENFORCE and covers(principal.scope, registry, action):
            return Scope(prefixes=frozenset({""}))
        return self.authorizer.scope(principal, registry, kind, action)

    def _aliases_of(self, registry: str, model: str, environment: str) -> tuple[str, ...]:
        """List the aliases that mark an environment."""
        found = self.environments.get(registry, model, environment)
        return tuple(mark.value for mark in found.marks if mark.kind == "alias") if found is not None else ()

    def _litestar(self) -> Litestar:
        return build_litestar(
            lifespan=[self._lifespan],
            dependencies={
                "caller": Provide(caller_of, sync_to_thread=False),
                "exchange": given(self.exchange),
                "gateway": given(self.gateway),
                "governance": given(self.governance),
                "health": given(self.health),
                "metrics": given(self.metrics),
                "public_url": given(self.configuration.settings.listen.public_url),
            },
        )

    def _front(self) -> Front:
        registries = self.configuration.settings.registries
        mlflow = {name: item.workspace for name, item in registries.items() if item.kind == "mlflow"}
        endpoint = MlflowEndpoint(
            MlflowDialect(),
            self.gateway,
            registries=mlflow,
            default=self.configuration.settings.default_of("mlflow"),
            version=importlib.metadata.version("mlflow"),
            file_shares={name: max(1, item.streams // 2) for name, item in registries.items()},
            dropped=self.metrics.dropped_fields.inc,
        )
        public = public_paths(self.litestar)
        return Front(
            own=self.litestar,  # type: ignore[arg-type]  # Litestar's own names for the same ASGI shapes
            own_paths=lambda path: path in public or (path.startswith(_OWN) and path not in _OPEN_TELEMETRY),
            public=public,
            dialect=endpoint,
            render_dialect_error=render_mlflow_error,
            authenticate=_with_identities(self.credentials.authenticate, self.people),
            trail=self.trail,
            access=self.gateway.access,
            metrics=self.metrics,
            noting=self.authorizer.noting,
            hosts=self.configuration.settings.listen.hosts,
            proxies=Proxies(self.configuration.settings.listen.trusted_proxies),
            limits=Limits(bounds_of(self.configuration.settings)),
            replicas=self.replicas,
            journal_seconds=self.configuration.settings.journal.deadline_seconds,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await self._open_journal(stack)
            self._begin(stack)
            yield

    async def _open_journal(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin with the record: what is closed last. A part that cannot be closed does not keep the others open."""
        stack.push_async_callback(self._close_backends)
        stack.push_async_callback(self.journal.close)
        if isinstance(self.journal, SqlJournal):
            await self.journal.start()
        stack.push_async_callback(self.following.close)
        await self.following.load()
        await self.following.start(alone=not self.configuration.shares_journal())
        stack.push_async_callback(self.leader.close)
        self.leader.start()
        stack.push_async_callback(self.changes.close)
        stack.push_async_callback(self.deliverer.close)
        await self.deliverer.start()
        stack.push_async_callback(self.trail.close)
        if self.checkpoints is not None:
            stack.push_async_callback(self.checkpoints.close)
            await self.checkpoints.start()
        if self.authorizer.snapshot.names_owner:
            await self.owners.load()

    async def _close_backends(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for backend in self.backends.values():
                stack.push_async_callback(backend.close)

    def _begin(self, stack: contextlib.AsyncExitStack) -> None:
        """Begin with what is done beside requests, and ends before the record does."""
        for name, mode in self.modes.not_enforced().items():
            _log.warning("access is not enforced", registry=name, mode=mode)
        stack.push_async_callback(self._flush_refusals)
        stack.push_async_callback(end, asyncio.create_task(self._sum_refusals()))
        stack.push_async_callback(self.owners.close)
        for part in (self.uses, self.gateway.tally, self.issuers, self.health, self.drift, self.reconciler):
            if part is not None:
                stack.push_async_callback(part.close)
                part.start()
        stack.push_async_callback(self._drain)
        stack.push_async_callback(end, asyncio.create_task(self._watch_files()))
        stack.push_async_callback(end, asyncio.create_task(self._retain()))
        stack.callback(self._say_draining)

    def _say_draining(self) -> None:
        self.health.draining = True

    async def _drain(self) -> None:
        """Let changes come to their outcome."""
        left = await self.changes.drain(DRAIN_SECONDS)
        if left:
            _log.warning("changes left to the reconciler of the next start", count=left)

    async def _flush_refusals(self) -> None:
        """Write the sums of refusals a last time."""
        await self.asgi.flush()
        await self.trail.caught_up()
        await self.refusals.flush()
        if self.refusals.waiting:
            _log.error("sums of refusals lost", count=self.refusals.waiting)

    async def _may_write(self) -> None:
        """Return if nobody else may be changing what this process is about to change.

        Raises:
            Busy, JournalUnavailable: somebody may be. Nothing may be written.
        """
        if not self.replicas.lease():
            message = "This process was cut off from the other replicas; nothing was forwarded. Try again."
            raise e.JournalUnavailable(message)
        await still_held()

    async def _sum_refusals(self) -> None:
        """Write the sums of refusals now and then, where no file that is followed waits for it."""
        while True:
            await asyncio.sleep(SUM_SECONDS)
            await self.asgi.flush()
            await self.refusals.flush()

    async def _retain(self) -> None:
        """Archive and prune once a day, where that is configured and this process does it for all."""
        retention = retention_of(self.configuration, self.trail.now, self.trail.source)
        if retention is not None:
            await retention.run_daily(self.leads)

    async def _watch_files(self) -> None:
        """Follow each file on its own, so that a long policy holds up no revocation; nothing ends it but a stop."""
        await asyncio.gather(*(self._watch(*file) for file in self._files()), self._measure())

    async def _watch(self, name: str, follow: Follow) -> None:
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            await self._look(name, follow)

    async def follow_files(self) -> None:
        """Look at each file once."""
        await asyncio.gather(*(self._look(*file) for file in self._files()))

    def _files(self) -> list[tuple[str, Follow]]:
        """List policy, keys and revocations."""
        files: list[tuple[str, Follow]] = [("policy", self.authorizer.follow)]
        files += [("api_keys", _beside(self.keys.reload))] if self.keys is not None else []
        if self.issuers is not None:
            files += [(name, _beside(reload)) for name, reload in self.issuers.files()]
        return files

    async def _look(self, name: str, follow: Follow) -> None:
        """Take a file's present content; a bad one is named in the log and in /readyz and changes nothing."""
        try:
            if await follow():
                _log.info("reloaded", file=name)
            self.health.problems.pop(name, None)
        except e.GatewayError as error:
            self._note_problem(name, error.detail)
        except Exception as error:  # noqa: BLE001  # whatever it was, what comes next is followed
            self._note_problem(name, f"unexpected: {type(error).__name__}: {error}")

    def _note_problem(self, name: str, problem: str) -> None:
        if self.health.problems.get(name) != problem:
            _log.error("not reloaded; the old content is in force", file=name, problem=problem)
        self.health.problems[name] = problem

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(RELOAD_SECONDS)
            self.metrics.events_lost.set(self.trail.lost)
            self.metrics.sums_merged.set(self.gateway.tally.merged)
            self.metrics.seal_conflicts.set(self.following.conflicts)
            self.metrics.unsettled.set(len(self.gateway.unsettled))
            self.metrics.checkpoints_failed.set(self.checkpoints.failed if self.checkpoints else 0)


def _beside(reload: Callable[[], bool]) -> Follow:
    """Run *reload* beside the loop."""
    return partial(asyncio.to_thread, reload)


def _with_identities(authenticate: Authenticate, people: People) -> Authenticate:
    """Add to each principal the other identities of the same person."""

    async def identify(authorization: str | None) -> Principal:
        principal = await authenticate(authorization)
        return dataclasses.replace(principal, also=people.everyone(principal.persons) - principal.persons)

    return identify


class _Logger(structlog.PrintLogger):
    """Prints to stderr. That may be a file on a full disk: a line that cannot be written must not fail what says it."""

    def __init__(self, *_: object) -> None:
        super().__init__(sys.stderr)

    def msg(self, message: str) -> None:
        """Print one line."""
        with contextlib.suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = fatal = failure = err = error = critical = exception = msg


def configure_logging() -> None:
    """Log JSON lines to stderr; libraries only from WARNING, so that none logs a request line."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=_Logger,
        cache_logger_on_first_use=True,
    )


def create() -> ASGI:
    """Build the application in a worker process, which dies with its parent."""
    _die_with_parent()
    configure_logging()
    asgi = Application(load()).asgi
    gc.collect()
    gc.freeze()  # what lives as long as the process is not looked through again: that would stop all for 40 ms
    return asgi


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
