"""Liveness, readiness, metrics: public, each says so itself."""

from __future__ import annotations

import asyncio
import re
from collections import Counter as Counted
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any

import structlog
from litestar import Response, get
from litestar.di import NamedDependency
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from service.backend import Backend
from service.delivery.deliverer import State
from service.errors import GatewayError
from service.keeping import Journal
from service.tasks import end

PUBLIC = {"public": True, "action": "none"}
_PACE_SECONDS = 2.0
_PLACE = re.compile(r"^(?:[^:\n]*/)?([^/:\n]+:[0-9]+(?::[0-9]+)?): ", re.MULTILINE)
_MAX_PLACES = 10
_log = structlog.get_logger()


class Health:
    """What works now. A registry that is down makes *degraded*; what every request needs makes *unready*."""

    def __init__(self, backends: Mapping[str, Backend], journal: Journal, revision: Callable[[], str]) -> None:
        """Watch *backends* and *journal*; *revision* names the policy in force."""
        self._backends = backends
        self._journal = journal
        self.revision = revision
        self._task: asyncio.Task[None] | None = None
        self.registries = dict.fromkeys(backends, "unknown")
        self.circuits: Mapping[str, Callable[[], str]] = {}
        """Whether each registry is asked at all: ``closed`` is yes."""
        self.issuers: Callable[[], Mapping[str, str]] = dict
        """Whether the keys of each issuer can be had: ``up``, ``stale``, ``down``, ``unknown``."""
        self.in_force: Callable[[], bool] = lambda: True
        """Whether other replicas wait for this process: it knows what they judge."""
        self.sinks: Callable[[], Mapping[str, State]] = dict
        """How each sink does, as the journal last told."""
        self.look_at_sinks: Callable[[], Awaitable[None]] | None = None
        self.journal = "unknown"
        self.emergencies: Counted[str] = Counted()
        """Emergencies that nobody has reviewed yet, by registry, when the journal last answered."""
        self.unproven = 0
        """Operations that ended without a proof, when the journal last answered."""
        self.problems: dict[str, str] = {}
        """Files whose new content was refused; the old content is in force."""
        self.draining = False

    def start(self) -> None:
        """Look every two seconds."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop looking."""
        await end(self._task)

    async def look(self) -> None:
        """Look once."""
        await asyncio.gather(self._look_at_journal(), *(self._look_at(name) for name in self._backends))

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(_PACE_SECONDS)

    async def _look_at_journal(self) -> None:
        try:
            await self._journal.ping()
            debts = [debt for _, debt in await self._journal.debts()]
            self.emergencies = Counted(debt.registry for debt in debts)
            self.unproven = await self._journal.unproven()
            if self.look_at_sinks is not None:
                await self.look_at_sinks()
            self.journal = "up"
        except GatewayError:
            self.journal = "down"

    async def _look_at(self, name: str) -> None:
        try:
            async with asyncio.timeout(5):
                await self._backends[name].ping()
            state = "up"
        except Exception:  # noqa: BLE001  # whatever it answers, it does not answer as a registry
            state = "down"
        if state != self.registries[name]:
            _log.info("registry", name=name, state=state)
        self.registries[name] = state

    def is_up(self, name: str) -> float:
        """Give 1 if the registry answered when it was last looked at."""
        return float(self.registries[name] == "up")

    def emergencies_of(self, name: str) -> float:
        """Give how many emergencies of a registry wait for their review."""
        return float(self.emergencies[name])

    def has_keys_of(self, issuer: str) -> float:
        """Return 1 if the keys of *issuer* were fetched when they were last tried."""
        return float(self.issuers()[issuer] == "up")

    def document(self) -> dict[str, Any]:
        """Give the answer of ``/readyz``."""
        troubled = (
            self.problems or "down" in self.registries.values() or {"down", "stale"} & set(self.issuers().values())
        )
        if self.draining or self.journal == "down" or not self.in_force():
            status = "unready"
        elif troubled or any(sink.state == "failing" for sink in self.sinks().values()):
            status = "degraded"
        else:
            status = "ready"
        return {
            "status": status,
            "journal": self.journal,
            "replicas": "known" if self.in_force() else "unknown",
            "policy": self.revision(),
            "registries": self.registries,
            "circuits": {name: look() for name, look in self.circuits.items()},
            "issuers": self.issuers(),
            "sinks": {
                _public(name): {"state": sink.state, "pending": sink.pending, "parked": sink.parked}
                for name, sink in self.sinks().items()
            },
            "problems": {name: _told(problem) for name, problem in self.problems.items()},
            "draining": self.draining,
        }


def _public(sink: str) -> str:
    """Name a sink for everybody: where a file is, is nobody's business."""
    kind, _, name = sink.partition(":")
    return f"file:{name.rpartition('/')[2]}" if kind == "file" else sink


def _told(problem: str) -> str:
    """Tell everybody where a file is wrong. What stands there names principals and models: the log says it."""
    places = _PLACE.findall(problem)
    more = f" and {len(places) - _MAX_PLACES} more" if len(places) > _MAX_PLACES else ""
    return f"{', '.join(places[:_MAX_PLACES]) or 'refused'}{more}: the log says what is wrong"


class Metrics:
    """Counters for Prometheus; one registry a process."""

    def __init__(self, health: Health) -> None:
        """Begin at zero; gauges of registries look at *health*."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "registry_gateway_requests",
            "Requests by operation and status.",
            ["operation", "status"],
            registry=self.registry,
        )
        self.events_lost = Gauge(
            "registry_gateway_events_lost", "Events that could not be journalled.", registry=self.registry
        )
        self.sums_merged = Gauge(
            "registry_gateway_sums_merged", "Sums of telemetry that no longer say which run.", registry=self.registry
        )
        self.unsettled = Gauge(
            "registry_gateway_unsettled", "Operations whose outcome is unknown.", registry=self.registry
        )
        unproven = Gauge(
            "registry_gateway_unproven",
            "Operations of which reading the registry back proved nothing, in the whole journal.",
            registry=self.registry,
        )
        unproven.set_function(lambda: health.unproven)
        self.checkpoints_failed = Gauge(
            "registry_gateway_checkpoints_failed",
            "Checkpoints that could not be written since the start.",
            registry=self.registry,
        )
        self.seal_conflicts = Gauge(
            "registry_gateway_seal_conflicts",
            "Writes behind sealed versions that were let through while the journal could not be asked.",
            registry=self.registry,
        )
        up = Gauge(
            "registry_gateway_registry_up", "1 while the registry answers.", ["registry"], registry=self.registry
        )
        for name in health.registries:
            up.labels(name).set_function(partial(health.is_up, name))
        owed = Gauge(
            "registry_gateway_emergencies_open",
            "Emergency promotions that nobody else has reviewed yet.",
            ["registry"],
            registry=self.registry,
        )
        for name in health.registries:
            owed.labels(name).set_function(partial(health.emergencies_of, name))
        circuit = Gauge(
            "registry_gateway_circuit_open",
            "1 while a registry that did not answer is not asked.",
            ["registry"],
            registry=self.registry,
        )
        for name, look in health.circuits.items():
            circuit.labels(name).set_function(partial(_is_open, look))
        self.would_deny = Counter(
            "registry_gateway_would_deny",
            "Denials of access that were recorded and not enforced.",
            ["registry", "action"],
            registry=self.registry,
        )
        self.evaluations = Counter(
            "registry_gateway_evaluations",
            "Questions of other services about access: permit, deny, or error for those that cannot be asked.",
            ["decision"],
            registry=self.registry,
        )
        keys = Gauge(
            "registry_gateway_issuer_keys_up",
            "1 while the keys of an issuer of tokens can be fetched.",
            ["issuer"],
            registry=self.registry,
        )
        for issuer in health.issuers():
            keys.labels(issuer).set_function(partial(health.has_keys_of, issuer))
        self.rate_limited = Counter(
            "registry_gateway_rate_limited",
            "Requests answered 429, by what sent too much: a principal, or an address whose authentications fail.",
            ["by"],
            registry=self.registry,
        )
        self.dropped_fields = Counter(
            "registry_gateway_dropped_fields", "Fields the schema lacks.", registry=self.registry
        )

    def follow_sinks(
        self, sinks: Callable[[], Mapping[str, State]], attempts: Callable[[], Mapping[tuple[str, str], int]]
    ) -> None:
        """Show how far each sink is, and what became of attempts."""
        self.registry.register(_Sinks(sinks, attempts))

    def follow_policy(self, health: Health, loaded_at: Callable[[], float]) -> None:
        """Show which policy is in force, when it was loaded, and whether the files hold a bad one."""
        self.registry.register(_Policy(health, loaded_at))


class _Sinks(Collector):
    """The sinks, as they are when somebody looks."""

    def __init__(
        self, sinks: Callable[[], Mapping[str, State]], attempts: Callable[[], Mapping[tuple[str, str], int]]
    ) -> None:
        self._sinks = sinks
        self._attempts = attempts

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        gauges = {
            "behind": "Events of the journal that a sink has not come to yet.",
            "pending": "Deliveries that are tried again, or wait behind such.",
            "parked": "Deliveries that were given up; somebody has to have them sent again.",
        }
        for what, sentence in gauges.items():
            gauge = GaugeMetricFamily(f"registry_gateway_sink_{what}", sentence, labels=["sink"])
            for name, state in self._sinks().items():
                gauge.add_metric([_public(name)], getattr(state, what))
            yield gauge
        counter = CounterMetricFamily(
            "registry_gateway_delivery_attempts", "Attempts to send an event.", labels=["sink", "result"]
        )
        for (name, result), count in self._attempts().items():
            counter.add_metric([name, result], count)
        yield counter


class _Policy(Collector):
    """The policy in force, as it is when somebody looks."""

    def __init__(self, health: Health, loaded_at: Callable[[], float]) -> None:
        self._health = health
        self._loaded_at = loaded_at

    def collect(self) -> Iterator[GaugeMetricFamily]:
        info = GaugeMetricFamily(
            "registry_gateway_policy_info", "1 for the revision of the access policy in force.", labels=["revision"]
        )
        info.add_metric([self._health.revision()], 1)
        yield info
        yield GaugeMetricFamily(
            "registry_gateway_policy_loaded_timestamp_seconds",
            "When the access policy in force was loaded.",
            self._loaded_at(),
        )
        yield GaugeMetricFamily(
            "registry_gateway_policy_bad",
            "1 while the files hold a policy that was refused; the one before is in force.",
            float("policy" in self._health.problems),
        )


def _is_open(look: Callable[[], str]) -> float:
    return float(look() == "open")


@get("/livez", operation_id="livez", opt=PUBLIC, tags=["health"])
async def livez() -> dict[str, str]:
    """Say that the process runs."""
    return {"status": "alive"}


@get("/readyz", operation_id="readyz", opt=PUBLIC, tags=["health"])
async def readyz(health: NamedDependency[Health]) -> Response[dict[str, Any]]:
    """Say whether requests can be served: 200 `ready` or `degraded` (a registry is down), 503 `unready`."""
    document = health.document()
    return Response(document, status_code=503 if document["status"] == "unready" else 200)


@get("/metrics", operation_id="metrics", opt=PUBLIC, media_type="text/plain", tags=["health"])
async def metrics(metrics: NamedDependency[Metrics]) -> Response[bytes]:
    """Give the metrics in Prometheus' text format."""
    return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")


HANDLERS = (livez, readyz, metrics)
