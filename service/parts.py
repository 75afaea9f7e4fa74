"""Makes the parts that a configuration names. Nothing is started or fetched."""

from __future__ import annotations

import math
import secrets
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service import errors as e
from service.api.limits import Bounds, Rate
from service.audit import Trail
from service.authentication.api_keys import ApiKeys
from service.authentication.issuers import Issuers
from service.authentication.own import OwnTokens
from service.authentication.revoked import Revoked
from service.authentication.signing import SigningKeys
from service.backend import Backend
from service.backends.breaker import Breaker
from service.backends.credentials import Secret, basic, bearer, tls_context
from service.backends.http import HttpTransport
from service.backends.mlflow import MlflowBackend
from service.changes import Locks
from service.checkpoints import Checkpoints
from service.delivery.ports import Receiver, Stream
from service.ed25519 import read_private
from service.journal.locks import PostgresLocks
from service.journal.replicas import PostgresReplicas
from service.journal.retention import Retention
from service.masking import Masks
from service.outlets import EndpointOutlet
from service.promotion.environments import load_environments
from service.promotion.gate import Environment
from service.records import Capabilities
from service.replicas import OneReplica, Replicas
from service.settings import Configuration, Registry, Settings
from service.sinks.cloudevents import CloudEvents
from service.sinks.file import FileSink
from service.sinks.filters import Filter
from service.sinks.mlflow_shapes import Aliases
from service.sinks.posting import Endpoint, Poster
from service.sinks.signing import check_secret
from service.sinks.stdout import StdoutSink
from service.sinks.webhook import Webhook

_MIN_SECRET_BYTES = 32
_MIN_HOOK_SECRET = 16


def backend_of(name: str, registry: Registry, configuration: Configuration, breaker: Breaker) -> Backend:
    """Return the adapter of one registry."""
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


def locks_of(configuration: Configuration) -> Locks | None:
    """Return the locks that replicas share; one process that writes SQLite shares none."""
    if not configuration.shares_journal():
        return None
    return PostgresLocks(configuration.journal_url(), configuration.settings.journal.deadline_seconds)


def replicas_of(configuration: Configuration) -> Replicas:
    """Return what this process knows of others; a SQLite file is written by one."""
    if not configuration.shares_journal():
        return OneReplica()
    return PostgresReplicas(configuration.journal_url(), configuration.settings.journal.deadline_seconds)


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


def secret_of(configuration: Configuration) -> bytes:
    """Return what page tokens are signed with.

    Raises:
        BadConfiguration: the file is missing or shorter than 32 bytes.
    """
    file = configuration.settings.secret_file
    return secrets.token_bytes(32) if file is None else _secret("secret_file", configuration.path(file))


def checkpoints_of(configuration: Configuration, trail: Trail, leads: Callable[[], bool]) -> Checkpoints | None:
    """Return what writes checkpoints, if a key is configured.

    Raises:
        BadConfiguration: the key's file cannot be used.
    """
    audit = configuration.settings.audit
    if audit.checkpoints is None:
        return None
    return Checkpoints(
        trail,
        checkpoint_key_of(configuration).sign,
        cluster=audit.cluster,
        kid=audit.checkpoints.kid,
        seconds=audit.checkpoints.seconds,
        events=audit.checkpoints.events,
        leads=leads,
    )


def checkpoint_key_of(configuration: Configuration) -> Ed25519PrivateKey:
    """Read the key that checkpoints are signed with.

    Raises:
        BadConfiguration: the key's file cannot be used.
    """
    assert configuration.settings.audit.checkpoints is not None
    path = configuration.path(configuration.settings.audit.checkpoints.key)
    return read_private(f"audit.checkpoints.key: {path}", path)


def masks_of(configuration: Configuration) -> Masks:
    """Return what hides values of sensitive tags in the record.

    Raises:
        BadConfiguration: the key's file is missing or shorter than 32 bytes.
    """
    audit = configuration.settings.audit
    if audit.hmac_key_file is None:
        return Masks()
    return Masks(audit.sensitive_tags, _secret("audit.hmac_key_file", configuration.path(audit.hmac_key_file)))


def _secret(setting: str, path: Path) -> bytes:
    try:
        secret = path.read_bytes()
    except OSError as error:
        message = f"{setting}: {path}: {error.strerror}"
        raise e.BadConfiguration(message) from None
    if len(secret) < _MIN_SECRET_BYTES:
        message = f"{setting}: {path}: {len(secret)} bytes; at least {_MIN_SECRET_BYTES} are needed"
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


def sinks_of(
    configuration: Configuration, aliases_of: Aliases = lambda _registry, _model, _environment: ()
) -> tuple[list[Stream], list[Receiver]]:
    """Build the configured sinks; nothing is opened or connected yet.

    Raises:
        BadConfiguration: a file that one of them needs cannot be used.
    """
    streams: list[Stream] = []
    receivers: list[Receiver] = []
    for index, outlet in enumerate(configuration.settings.audit.sinks):
        where = f"audit.sinks.{index}"
        if isinstance(outlet, str):
            streams.append(StdoutSink())
        elif outlet.file is not None:
            path = configuration.path(outlet.file.path)
            if not path.parent.is_dir():
                message = f"{where}.file.path: {path.parent} is no directory"
                raise e.BadConfiguration(message)
            if path.is_dir():
                message = f"{where}.file.path: {path} is a directory; name a file in it"
                raise e.BadConfiguration(message)
            streams.append(FileSink(path))
        elif outlet.webhook is not None:
            hook = outlet.webhook
            setting = f"{where}.webhook.secret_file"
            hidden = [Secret(setting, configuration.path(file), _check_hook_secret) for file in hook.secrets]
            poster = _poster_of(hook, f"{where}.webhook", configuration)
            receivers.append(Webhook(hook.id, poster, hidden, _filter_of(hook), aliases_of))
        elif outlet.cloudevents is not None:
            to = outlet.cloudevents
            file = to.token_file and configuration.path(to.token_file)
            token = Secret(f"{where}.cloudevents.token_file", file) if file else None
            poster = _poster_of(to, f"{where}.cloudevents", configuration)
            receivers.append(CloudEvents(to.id, poster, _filter_of(to), token))
    return streams, receivers


def _check_hook_secret(secret: str) -> None:
    if len(secret) < _MIN_HOOK_SECRET:
        message = f"a secret has at least {_MIN_HOOK_SECRET} characters"
        raise ValueError(message)
    check_secret(secret)


def _poster_of(outlet: EndpointOutlet, setting: str, configuration: Configuration) -> Poster:
    ca = configuration.path(outlet.ca_file) if outlet.ca_file else None
    tls = tls_context(setting, ca, None, None) if outlet.url.startswith("https:") else None
    return Poster(Endpoint(outlet.url, outlet.timeout_seconds, outlet.private, tls))


def _filter_of(outlet: EndpointOutlet) -> Filter:
    return Filter(outlet.events, outlet.models, outlet.environments)


def retention_of(configuration: Configuration, now: Callable[[], float], source: str) -> Retention | None:
    """Make what archives and prunes the journal, if that is configured; *source* names this process."""
    settings = configuration.settings.audit.retention
    if settings is None:
        return None
    return Retention(
        configuration.journal_url(),
        configuration.path(settings.archive),
        keep_days=settings.keep_days,
        now=now,
        source=source,
        max_lag_days=settings.max_lag_days,
    )
