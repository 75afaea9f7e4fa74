"""The composition root: settings -> ASGI application. The only module that knows every adapter."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import gc
import importlib.metadata
import json
import logging
import math
import secrets
import signal
import ssl
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import structlog
from litestar import Litestar, Request, Response, get
from litestar.di import Provide
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from service import errors as e
from service.access import Access
from service.api import access as access_routes
from service.api import authzen as authzen_routes
from service.api import environments as environment_routes
from service.api import exchange as exchange_routes
from service.api import health as health_routes
from service.api import records as record_routes
from service.api import versions as version_routes
from service.api.exchange import Exchange
from service.api.floods import SUM_SECONDS
from service.api.forwarded import Proxies
from service.api.front import Authenticate, Front
from service.api.health import PUBLIC, Health, Metrics
from service.api.limits import Bounds, Limits, Rate
from service.api.problems import render_error
from service.api.wrong import allowed_methods, sentence_of
from service.asgi import ASGI, client_address
from service.audit import Journal, Sink, Trail
from service.authentication.api_keys import ApiKeys
from service.authentication.credentials import Credentials
from service.authentication.issuers import Issuers
from service.authentication.own import OwnTokens
from service.authentication.revoked import Revoked
from service.authentication.signing import SigningKeys
from service.authentication.uses import Uses
from service.authorization.authorizer import Authorizer
from service.authorization.explaining import PolicyExplainer
from service.backend import Backend
from service.backends.breaker import Breaker
from service.backends.credentials import Secret, basic, bearer, tls_context
from service.backends.http import HttpTransport
from service.backends.mlflow import MlflowBackend
from service.changes import Changes
from service.dialects.endpoint import MlflowEndpoint
from service.dialects.mlflow import MlflowDialect
from service.dialects.mlflow import render_error as render_mlflow_error
from service.drift import Drift
from service.gateway import Gateway
from service.gather import Gatherer
from service.governance import Governance
from service.guard import Guard
from service.journal.store import SqlJournal
from service.model import Caller, People, Principal, Scope
from service.modes import ENFORCE, Modes
from service.owners import Owners
from service.ownership import Ownership
from service.page_tokens import PageTokens
from service.promoter import Promoter
from service.promotion.environments import Environments, load_environments
from service.promotion.gate import Environment
from service.reconciler import Reconciler
from service.records import Capabilities
from service.scope import covers
from service.seals import Seals
from service.searching import Searches
from service.settings import Configuration, Registry, Settings, load
from service.sinks.stdout import StdoutSink
from service.spelling import Spelling
from service.tally import Tally
from service.watching import Watch

RELOAD_SECONDS = 1.0
DRAIN_SECONDS = 25.0
_MIN_SECRET_BYTES = 32
_OWN = ("/v1/", "/access/")
_OPEN_TELEMETRY = ("/v1/traces", "/v1/metrics")
"""MLflow's OpenTelemetry ingestion, at its server's root."""
_NO_QUERY = frozenset(
    {
        *("request", "caller", "exchange", "gateway", "governance", "health", "metrics", "public_url"),
        *("data", "if_match", "if_none_match"),
    }
)
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
        sinks: list[Sink] | None = None,
    ) -> None:
        """Wire the parts of *configuration*; tests may bring their own *backends*, *journal* and *sinks*.

        Raises:
            BadConfiguration: a file is wrong. Nothing was started.
        """
        settings = configuration.settings
        registries = settings.registries
        self.configuration = configuration
        self.circuits = {name: Breaker() for name in registries}
        self.backends = backends or {
            name: _backend(name, item, configuration, self.circuits[name]) for name, item in registries.items()
        }
        capabilities = {name: backend.capabilities for name, backend in self.backends.items()}
        self.environments = Environments(environments_of(configuration, capabilities))
        self.people = People(settings.authentication.same_person)
        self.journal = journal or SqlJournal(
            configuration.journal_url(), settings.journal.deadline_seconds, self.people
        )
        self.uses = Uses(self.journal)
        self.keys = api_keys_of(configuration, self.uses.note)
        revoked = revoked_of(configuration)
        self.issuers = issuers_of(configuration, revoked)
        self.tokens, signing = own_tokens_of(configuration, revoked)
        self.credentials = Credentials(self.keys, self.issuers, self.tokens)
        self.trail = Trail(
            self.journal,
            sinks if sinks is not None else [StdoutSink() for _ in settings.audit.sinks],
            source=f"/registry-gateway/{uuid.uuid4()}",
        )
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
        self.changes = Changes(settings.lock_seconds)
        gatherer = Gatherer(self.journal, self.trail.now)
        ownership = Ownership()
        sources = {name: registry.sources for name, registry in registries.items()}
        self.modes = Modes({name: registry.mode for name, registry in registries.items()})
        access = Access(self.authorizer.decide, ownership, sources, self.trail, self.modes, self._count_denial)
        seals = Seals(ownership, self.environments, self.trail.now)
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
            searches=Searches(ownership, self._scope, PageTokens(_secret(configuration))),
            tally=Tally(self.trail, settings.audit.sum_seconds),
            trail=self.trail,
            changes=self.changes,
            join_seconds=settings.lock_seconds,
            record_reads=settings.audit.reads in (True, "on"),
        )
        self.drift = Drift(self.gateway, self.environments, settings.drift_seconds)
        explainer = PolicyExplainer(self.authorizer, registries)
        self.governance = Governance(self.gateway, self.environments, gatherer, watch, self.drift, explainer)
        self.reconciler = Reconciler(
            self.gateway,
            self.environments,
            {name: registry.timeout_seconds for name, registry in registries.items()},
        )
        self.health = Health(self.backends, self.journal, lambda: self.authorizer.revision)
        self.health.circuits = {name: breaker.look for name, breaker in self.circuits.items()}
        self.health.issuers = self.issuers.states if self.issuers else dict
        self.metrics = Metrics(self.health)
        self.metrics.follow_policy(self.health, lambda: self.authorizer.loaded_at)
        self.litestar = self._litestar()
        self.asgi = self._front()

    def _count_denial(self, registry: str, action: str) -> None:
        self.metrics.would_deny.labels(registry, action).inc()

    def _scope(self, principal: Principal, registry: str, kind: str, action: str) -> Scope:
        """Say which names a search asks for: every one where access is not enforced and the credential not narrowed."""
        narrowed = principal.scope is not None and not covers(principal.scope, registry, action)
        if self.modes.of(registry) != ENFORCE and not narrowed:
            return Scope(prefixes=frozenset({""}))
        return self.authorizer.scope(principal, registry, kind, action)

    def _litestar(self) -> Litestar:
        return build_litestar(
            lifespan=[self._lifespan],
            dependencies={
                "caller": Provide(_caller, sync_to_thread=False),
                "exchange": _given(self.exchange),
                "gateway": _given(self.gateway),
                "governance": _given(self.governance),
                "health": _given(self.health),
                "metrics": _given(self.metrics),
                "public_url": _given(self.configuration.settings.listen.public_url),
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
        )

    @asynccontextmanager
    async def _lifespan(self, _: Litestar) -> AsyncIterator[None]:
        if isinstance(self.journal, SqlJournal):
            await self.journal.start()
        self.gateway.seals.load(await self.journal.live(), await self.journal.signed())
        for name, mode in self.modes.not_enforced().items():
            _log.warning("access is not enforced", registry=name, mode=mode)
        if self.authorizer.snapshot.names_owner:
            await self.owners.load()
        self.trail.start()
        self.gateway.tally.start()
        self.reconciler.start()
        self.health.start()
        self.drift.start()
        self.uses.start()
        if self.issuers is not None:
            self.issuers.start()
        watcher = asyncio.create_task(self._watch_files())
        summing = asyncio.create_task(self._sum_refusals())
        try:
            yield
        finally:
            self.health.draining = True
            watcher.cancel()
            left = await self.changes.drain(DRAIN_SECONDS)
            if left:
                _log.warning("changes left to the reconciler of the next start", count=left)
            await self.reconciler.close()
            await self.drift.close()
            await self.health.close()
            if self.issuers is not None:
                await self.issuers.close()
            await self.owners.close()
            await self.gateway.tally.close()
            await self.uses.close()
            summing.cancel()
            await asyncio.gather(summing, return_exceptions=True)
            await self.asgi.flush()
            await self.trail.close()
            await self.journal.close()
            for backend in self.backends.values():
                await backend.close()

    async def _sum_refusals(self) -> None:
        """Write the sums of refusals now and then, where no file that is followed waits for it."""
        while True:
            await asyncio.sleep(SUM_SECONDS)
            await self.asgi.flush()

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
            self.metrics.unsettled.set(len(self.gateway.unsettled))


def _beside(reload: Callable[[], bool]) -> Follow:
    """Run *reload* beside the loop."""
    return partial(asyncio.to_thread, reload)


def environments_of(configuration: Configuration, capabilities: dict[str, Capabilities]) -> tuple[Environment, ...]:
    """Load the configured environments; none are configured where the setting is left out.

    Raises:
        BadConfiguration: the file is wrong, or names what a registry cannot hold.
    """
    path = configuration.settings.environments
    return load_environments(configuration.path(path), capabilities) if path is not None else ()


def bounds_of(settings: Settings) -> Bounds:
    """Say what the configuration lets everybody send."""
    limits = settings.limits

    def rate_of(a_second: float | None, at_once: int | None) -> Rate | None:
        if a_second is None:
            return None
        return Rate(a_second, at_once if at_once is not None else max(1, math.ceil(2 * a_second)))

    return Bounds(
        limits.failed_authentications_per_minute,
        rate_of(limits.requests_per_second, limits.burst),
        {name: rate_of(rate.requests_per_second, rate.burst) for name, rate in limits.principals.items()},
    )


def build_litestar(**keywords: Any) -> Litestar:
    """Build the application of our own routes, with its OpenAPI document at ``/openapi.json``."""

    @get("/openapi.json", operation_id="openapi", opt=PUBLIC, include_in_schema=False)
    async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
        """Give the OpenAPI document of our own routes."""
        return Response(openapi_document(request.app), media_type="application/json")

    names = ("caller", "exchange", "gateway", "governance", "health", "metrics", "public_url")
    keywords.setdefault("dependencies", {name: _given(None) for name in names})  # enough for the document
    return Litestar(
        route_handlers=[
            *version_routes.HANDLERS,
            *environment_routes.HANDLERS,
            *record_routes.HANDLERS,
            *access_routes.HANDLERS,
            *authzen_routes.HANDLERS,
            *exchange_routes.HANDLERS,
            *health_routes.HANDLERS,
            openapi,
        ],
        exception_handlers={
            e.GatewayError: _answer_error,
            HTTPException: _answer_http_error,
            Exception: _answer_unexpected,
        },
        openapi_config=OpenAPIConfig(
            title="Registry Gateway",
            version=importlib.metadata.version("registry-gateway"),
            description="Governance for model registries: promotion, evidence, approvals, audit.",
            path="/unused",
            components=Components(
                security_schemes={
                    "key": SecurityScheme(
                        type="http", scheme="bearer", description="An API key (`rgw_…`), or a token of an issuer."
                    )
                }
            ),
            security=[{"key": []}],
            create_examples=False,
            use_handler_docstrings=True,
        ),
        logging_config=None,
        before_request=_refuse_unknown_query,
        **keywords,
    )


def openapi_document(app: Litestar) -> bytes:
    """Give the OpenAPI 3.1 document: every operation with its ``x-action`` and its problems."""
    document = json.loads(json.dumps(app.openapi_schema.to_schema()))
    actions = {
        str(handler.operation_id): handler.opt
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
    }
    document["components"].setdefault("schemas", {})["Problem"] = {
        "type": "object",
        "description": "RFC 9457.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "operation": {"type": "string"},
            "decision": {
                "type": "object",
                "description": "Of a 403, for callers with `access:explain`. `row` is null where no row matches.",
                "properties": {"row": {"type": ["string", "null"]}, "revision": {"type": "string"}},
            },
            "verdict": {"$ref": "#/components/schemas/VerdictBody"},
        },
    }
    answer = {
        "description": "A problem.",
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method not in ("get", "post", "put", "patch", "delete"):
                continue
            options = actions[operation["operationId"]]
            operation["x-action"] = options["action"]
            if path == exchange_routes.PATH:
                operation["responses"].update(exchange_routes.ERRORS)
                content = operation["requestBody"]["content"]
                content["application/x-www-form-urlencoded"] = content["application/json"]
                continue
            if options.get("public"):
                operation["security"] = []
                if path == "/readyz":
                    operation["responses"]["503"] = {**operation["responses"]["200"], "description": "Unready."}
                continue
            statuses = ["400", "401", "403", "404", "409", "412", "413", "415", "422", "502", "503", "504"]
            operation["responses"].update(dict.fromkeys(statuses, answer))
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def public_paths(app: Litestar) -> frozenset[str]:
    """Return the exact paths of the routes that say themselves that they are public."""
    return frozenset(
        route.path
        for route in app.routes
        if any(handler.opt.get("public") for handler in getattr(route, "route_handlers", ())) and "{" not in route.path
    )


def _refuse_unknown_query(request: Request[Any, Any, Any]) -> None:
    """Refuse a query field that the route does not name: an answer that ignores it would mislead."""
    known = request.route_handler.parsed_fn_signature.parameters
    unknown = sorted(set(request.query_params) - set(known))
    if unknown:
        fields = ", ".join(sorted(set(known) - _NO_QUERY - set(request.path_params))) or "none"
        message = f"The query field {unknown[0]!r} is unknown here; there are: {fields}."
        raise e.InvalidRequest(message)


def _with_identities(authenticate: Authenticate, people: People) -> Authenticate:
    """Add to each principal the other identities of the same person."""

    async def identify(authorization: str | None) -> Principal:
        principal = await authenticate(authorization)
        return dataclasses.replace(principal, also=people.everyone(principal.persons) - principal.persons)

    return identify


def _caller(request: Request[Any, Any, Any]) -> Caller:
    state = request.scope["state"]
    return Caller(state["principal"], client_address(request.scope), state.get("idempotency", ""))


def _given(value: object) -> Provide:
    return Provide(lambda: value, sync_to_thread=False)


def _answer_error(_: Request[Any, Any, Any], error: e.GatewayError) -> Response[bytes]:
    status, headers, body = render_error(error)
    kind = headers.pop("content-type")
    return Response(body, status_code=status, headers=headers, media_type=kind)


def _answer_http_error(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
    """Give Litestar's own refusals the shape of ours."""
    if isinstance(error, ValidationException) or error.status_code == 400:
        ours: e.GatewayError = e.InvalidRequest(sentence_of(request, error))
    elif error.status_code == 404:
        ours = e.UnknownRoute("There is no such route; /openapi.json lists them.")
    elif error.status_code == 405:
        allowed = allowed_methods(request)
        ours = e.MethodNotAllowed(f"The path takes {', '.join(allowed)}, not {request.method}.", allowed)
    else:
        _log.error("unexpected", status=error.status_code, detail=error.detail)
        ours = e.GatewayError("Something failed inside the gateway; its log says what.")
    return _answer_error(request, ours)


def _answer_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    _log.error("unexpected", exc_info=error)
    return _answer_error(request, e.GatewayError("Something failed inside the gateway; its log says what."))


def _backend(name: str, registry: Registry, configuration: Configuration, breaker: Breaker) -> Backend:
    transport = HttpTransport(
        name,
        registry.url,
        timeout_seconds=registry.timeout_seconds,
        authorization=authorization_of(name, registry, configuration),
        workspace=registry.workspace,
        connections=registry.connections,
        streams=registry.streams,
        tls=tls_of(name, registry, configuration),
        breaker=breaker,
    )
    return MlflowBackend(name, transport)


def api_keys_of(configuration: Configuration, used: Callable[[str], None] = lambda _: None) -> ApiKeys | None:
    """Load the configured API keys; *used* is told the id of each that let somebody in.

    Raises:
        BadConfiguration: the file is wrong.
    """
    file = configuration.settings.authentication.api_keys
    if file is None:
        return None
    return ApiKeys(configuration.path(file), registries=configuration.settings.registries, used=used)


def revoked_of(configuration: Configuration) -> Revoked | None:
    """Read the configured revocation list.

    Raises:
        BadConfiguration: the file is wrong.
    """
    settings = configuration.settings
    if settings.authentication.revoked is None:
        return None
    issuers = {one.issuer for one in settings.authentication.issuers}
    issuers |= {settings.tokens.issuer} if settings.tokens else set()
    return Revoked(configuration.path(settings.authentication.revoked), issuers=issuers)


def own_tokens_of(
    configuration: Configuration, revoked: Revoked | None = None
) -> tuple[OwnTokens | None, SigningKeys | None]:
    """Read the keys that the gateway signs its own tokens with.

    Raises:
        BadConfiguration: a key's file cannot be used.
    """
    tokens = configuration.settings.tokens
    if tokens is None:
        return None, None
    files = [(key.kid, configuration.path(key.file)) for key in tokens.keys]
    keys = SigningKeys(files, next(key.kid for key in tokens.keys if key.sign))
    issuers = {one.issuer for one in configuration.settings.authentication.issuers}
    return OwnTokens(tokens.issuer, keys, issuers, revoked), keys


def issuers_of(configuration: Configuration, revoked: Revoked | None = None) -> Issuers | None:
    """Build the configured issuers; nothing is fetched.

    Raises:
        BadConfiguration: a file is wrong.
    """
    settings = configuration.settings.authentication
    if not settings.issuers:
        return None
    return Issuers(
        settings.issuers,
        configuration.path,
        lambda setting, ca: tls_context(setting, ca, None, None),
        revoked,
    )


def _secret(configuration: Configuration) -> bytes:
    """Return what page tokens are signed with.

    Raises:
        BadConfiguration: the file is missing or shorter than 32 bytes.
    """
    file = configuration.settings.secret_file
    if file is None:
        return secrets.token_bytes(32)
    path = configuration.path(file)
    try:
        secret = path.read_bytes()
    except OSError as error:
        message = f"secret_file: {path}: {error.strerror}"
        raise e.BadConfiguration(message) from None
    if len(secret) < _MIN_SECRET_BYTES:
        message = f"secret_file: {path}: {len(secret)} bytes; at least {_MIN_SECRET_BYTES} are needed"
        raise e.BadConfiguration(message)
    return secret


def authorization_of(name: str, registry: Registry, configuration: Configuration) -> Callable[[], str | None]:
    """Return the registry's own credential; the caller's never goes upstream.

    Raises:
        BadConfiguration: its file cannot be used.
    """
    where = f"registries.{name}"
    if registry.token_file:
        return bearer(Secret(f"{where}.token_file", configuration.path(registry.token_file)))
    if registry.password_file:
        password = Secret(f"{where}.password_file", configuration.path(registry.password_file))
        return basic(registry.username or "", password)
    return lambda: None


def tls_of(name: str, registry: Registry, configuration: Configuration) -> ssl.SSLContext | None:
    """Return what an https registry is checked with.

    Raises:
        BadConfiguration: a file cannot be used.
    """
    if not registry.url.startswith("https:"):
        return None
    files = (registry.ca_file, registry.client_certificate_file, registry.client_key_file)
    return tls_context(f"registries.{name}", *(file and configuration.path(file) for file in files))  # type: ignore[arg-type]


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
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
