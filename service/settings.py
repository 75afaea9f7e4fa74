"""The configuration: read once, frozen; an unknown key is refused by name and line."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec
import yaml

from service.authentication.issuer import Issuer, check_issuers
from service.authorization import rows as policy_rows
from service.errors import BadConfiguration
from service.files import YamlFile, convert, read_text
from service.modes import ENFORCE, MODES
from service.recording import Audit, Journal, check_audit, check_journal

PREFIX = "REGISTRY_GATEWAY_"
CONFIG = PREFIX + "CONFIG"
DATA_DIR = PREFIX + "DATA_DIR"
URL, TOKEN = PREFIX + "URL", PREFIX + "TOKEN"
"""Where the commands of pipelines find a running gateway, and as whom; a server has no use for them."""
_NO_SETTINGS = frozenset({CONFIG, DATA_DIR, URL, TOKEN})
_MIN_IDENTITIES = 2
_MAX_DRIFT_SECONDS = 86_400
_MAX_SECONDS = 600.0
_MAX_CONNECTIONS = 1000
_MAX_RATE = 100_000
_MIN_TOKEN_SECONDS, _MAX_TOKEN_SECONDS = 60, 21_600
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9._-]{0,252}[a-z0-9_])?|\[[0-9a-f:.]{2,45}\]")
_PUBLIC_URL = re.compile(r"(https://[A-Za-z0-9._-]+|http://(localhost|127\.0\.0\.1|\[::1\]))(:[0-9]{1,5})?")
_LATER_KINDS = frozenset({"unity_catalog", "databricks"})


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    port: int = 8080
    hosts: tuple[str, ...] = ()
    """Names (without port) that a Host header may say; empty: any well-formed one."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-For or Forwarded is believed, for the address in events only."""
    public_url: str | None = None
    """Where callers reach the gateway, ``https://host[:port]``; without it, what the Host header says over http."""


class Registry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One upstream registry."""

    kind: str
    url: str
    """``http(s)://host[:port][/prefix]``, or ``unix:/path/of/a/socket``."""
    token_file: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    """Certificates of the authorities that the registry's own must come from; without it the system's."""
    client_certificate_file: str | None = None
    client_key_file: str | None = None
    workspace: str | None = None
    mode: str = ENFORCE
    """Access to the registry's own API: ``enforce``; in ``warn`` and ``observe`` a denial is recorded, no more."""
    sources: tuple[str, ...] = ()
    """Prefixes of version sources outside the registry that callers may register, e.g. ``s3://models/``."""
    timeout_seconds: float = 30.0
    """Budget of one upstream call with its retries; artifact transfers are bounded between bytes instead."""
    connections: int = 100
    """Calls that pass to the registry at once."""
    streams: int = 32
    """Files that pass at once, to or from the registry."""


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the access policy is."""

    model: str
    rows: str
    max_rows: int = 100_000
    max_bytes: int = 16 << 20
    """Of the rows; a larger policy is refused before it is read."""

    @property
    def limits(self) -> policy_rows.Limits:
        """How much a policy may be."""
        return policy_rows.Limits(self.max_rows, self.max_bytes)


class Authentication(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How callers prove who they are."""

    api_keys: str | None = None
    """Needed unless there are issuers."""
    issuers: tuple[Issuer, ...] = ()
    """OpenID issuers whose tokens are believed."""
    revoked: str | None = None
    """The file of tokens that are refused although their issuer signed them."""
    same_person: tuple[tuple[str, ...], ...] = ()
    """Identities that are one person where four eyes are asked."""


class Rate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much one principal may ask."""

    requests_per_second: float | None = None
    """None: as much as it likes."""
    burst: int | None = None


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who sends too much. Counted in each process."""

    failed_authentications_per_minute: int = 60
    requests_per_second: float | None = None
    """Of each principal; None: as many as it likes."""
    burst: int | None = None
    """So many at once after a pause; left out: of two seconds."""
    principals: dict[str, Rate] = {}
    """Those with a rate of their own."""


class TokenKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key that the gateway signs its own tokens with."""

    kid: str
    file: str
    """Ed25519, PEM (PKCS #8), for its owner only."""
    sign: bool = False
    """One key signs; the others only verify."""


class Tokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tokens that the gateway issues in exchange for those of issuers."""

    issuer: str
    """How the gateway names itself in them: its own URL."""
    keys: tuple[TokenKey, ...]
    max_seconds: int = 21_600


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole configuration."""

    registries: dict[str, Registry]
    access: Access
    authentication: Authentication
    environments: str | None = None
    """Left out: nothing is gated."""
    journal: Journal = Journal("sqlite:///journal.db")
    listen: Listen = Listen()
    default_registry: str | dict[str, str] | None = None
    audit: Audit = Audit()
    limits: Limits = Limits()
    tokens: Tokens | None = None
    """Left out: no tokens are exchanged."""
    secret_file: str | None = None
    """At least 32 random bytes that all replicas share; page tokens are signed with them."""
    lock_seconds: float = 10.0
    drift_seconds: float = 60.0
    """How long a promotion waits for another one of the same model before it is answered 503."""

    def default_of(self, kind: str) -> str | None:
        """Return the registry of *kind* that answers at the root paths, if there is one."""
        named = self.default_registry
        if isinstance(named, dict):
            named = named.get(kind)
        if named is not None:
            return named if self.registries[named].kind == kind else None
        of_kind = [name for name, registry in self.registries.items() if registry.kind == kind]
        return of_kind[0] if len(of_kind) == 1 else None


class Configuration(msgspec.Struct, frozen=True):
    """The settings and where they came from."""

    settings: Settings
    base: Path
    """Relative paths in the settings are relative to this directory."""
    file: Path | None
    """The configuration file, or None for the embedded default."""

    def path(self, relative: str) -> Path:
        """Resolve a path of the settings."""
        return (self.base / relative).absolute()

    def shares_journal(self) -> bool:
        """Tell whether other processes can use the journal: a SQLite file has one writer."""
        return self.settings.journal.url.startswith("postgresql:")

    def journal_url(self) -> str:
        """Return the journal's URL with a relative SQLite path made absolute, and a password from its file.

        Raises:
            BadConfiguration: the file cannot be read.
        """
        url, secret = self.settings.journal.url, self.settings.journal.password_file
        if secret is not None:
            password = quote(read_text(self.path(secret)).strip(), safe="")
            parts = urlsplit(url)
            user, at, host = parts.netloc.rpartition("@")
            return urlunsplit(parts._replace(netloc=f"{user}:{password}{at}{host}"))
        prefix = "sqlite:///"
        if url.startswith(prefix) and not url.startswith(prefix + "/"):
            return prefix + str(self.path(url.removeprefix(prefix)))
        return url


def data_dir(environ: Mapping[str, str]) -> Path:
    """Return the directory of the embedded default, ``.gateway`` unless REGISTRY_GATEWAY_DATA_DIR says otherwise."""
    return Path(environ.get(DATA_DIR) or ".gateway").absolute()


def embedded_document(data: Path) -> dict[str, Any]:
    """Return the embedded default: one MLflow server as a child, on SQLite, everything under *data*."""
    policies = Path("policies")
    if not policies.is_dir():
        policies = Path(__file__).parent.parent / "policies"
    policies = policies.absolute()
    return {
        "registries": {"main": {"kind": "mlflow", "url": f"unix:{data / 'mlflow' / 'mlflow.sock'}"}},
        "access": {"model": str(policies / "model.conf"), "rows": str(policies / "policy.csv")},
        "environments": str(policies / "environments.yaml"),
        "authentication": {"api_keys": str(data / "api-keys.yaml")},
        "journal": {"url": f"sqlite:///{data / 'journal.db'}"},
        "secret_file": str(data / "secret"),
    }


def load(config: Path | None = None, environ: Mapping[str, str] | None = None) -> Configuration:
    """Read the configuration: *config*, else REGISTRY_GATEWAY_CONFIG, else the embedded default.

    Every key can be set in the environment: ``REGISTRY_GATEWAY_LISTEN__PORT=9000``.

    Raises:
        BadConfiguration: something is unknown, missing or wrong; the message names file, line and key.
    """
    environ = os.environ if environ is None else environ
    if config is None and environ.get(CONFIG):
        config = Path(environ[CONFIG])
    if config is not None:
        file = YamlFile(config.absolute())
        document, base = file.data, file.path.parent
        if not isinstance(document, dict):
            message = f"{config}:1: the configuration must be a mapping"
            raise BadConfiguration(message)
    else:
        data = data_dir(environ)
        document, base = embedded_document(data), Path.cwd()
        file = YamlFile(Path("(embedded default)"), "{}")
    variables = _override(document, environ)
    try:
        settings = convert(document, Settings, file)
        _validate(settings, file)
    except BadConfiguration as error:
        raise _of_variable(error, file, variables) from None
    return Configuration(settings, base, config.absolute() if config else None)


def _of_variable(error: BadConfiguration, file: YamlFile, variables: Mapping[str, str]) -> BadConfiguration:
    """Name the variable, rather than a line of the file, where what is wrong came from one."""
    said = re.match(rf"{re.escape(str(file.path))}:\d+: ((?:unknown key ')?([\w.-]+).*)", error.detail, re.DOTALL)
    if said is None:
        return error
    named = (name for key, name in variables.items() if f"{said[2]}.".startswith(f"{key}."))
    name = next(named, None)
    return BadConfiguration(f"{name}: {said[1]}") if name else error


def _override(document: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Set in *document* what *environ* says; return the names of the variables by key."""
    variables = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in _NO_SETTINGS:
            continue
        keys = name.removeprefix(PREFIX).lower().split("__")
        if keys[0] not in Settings.__struct_fields__:
            known = ", ".join(Settings.__struct_fields__)
            message = f"{name}: unknown setting {'.'.join(keys)!r}; the settings are: {known}"
            raise BadConfiguration(message)
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            value = text
        target = document
        for key in keys[:-1]:
            child = target.setdefault(key, {})
            if not isinstance(child, dict):
                message = f"{name}: {key!r} is not a group of settings"
                raise BadConfiguration(message)
            target = child
        target[keys[-1]] = value
        variables[".".join(keys)] = name
    return variables


def _validate(settings: Settings, file: YamlFile) -> None:
    if not settings.registries:
        raise file.error("registries: at least one registry is needed", "registries")
    for name, registry in settings.registries.items():
        _validate_registry(name, registry, file)
    named = settings.default_registry
    if isinstance(named, dict) and not set(named) <= {"mlflow", *_LATER_KINDS}:
        raise file.error(
            "default_registry: by kind, the keys are mlflow, unity_catalog, databricks", "default_registry"
        )
    for default in named.values() if isinstance(named, dict) else [named]:
        if default is not None and default not in settings.registries:
            there = ", ".join(settings.registries)
            raise file.error(
                f"default_registry: no registry is named {default!r}; there are: {there}", "default_registry"
            )
    if not 0 <= settings.listen.port <= 65535:  # TCP's range
        raise file.error("listen.port: must be 0 to 65535", "listen", "port")
    for network in settings.listen.trusted_proxies:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise file.error(f"listen.trusted_proxies: {error}", "listen", "trusted_proxies") from None
    if settings.listen.public_url is not None and not _PUBLIC_URL.fullmatch(settings.listen.public_url):
        problem = "listen.public_url: it is https://host or https://host:port (http to a loopback host), and no more"
        raise file.error(problem, "listen", "public_url")
    for host in settings.listen.hosts:
        if not HOST_NAME.fullmatch(host):
            raise file.error(f"listen.hosts: {host!r} is no host name in lower case, without a port", "listen", "hosts")
    for seconds, key in ((settings.lock_seconds, ("lock_seconds",)),):
        if not 0 < seconds <= _MAX_SECONDS:
            raise file.error(f"{'.'.join(key)}: more than 0, at most 600", *key)
    for bound, value in (("max_rows", settings.access.max_rows), ("max_bytes", settings.access.max_bytes)):
        if value < 1:
            raise file.error(f"access.{bound}: at least 1", "access", bound)
    if not 0 <= settings.drift_seconds <= _MAX_DRIFT_SECONDS:
        raise file.error("drift_seconds: 0 (never) to 86400", "drift_seconds")
    check_issuers(
        settings.authentication.issuers,
        lambda problem, index, key: file.error(
            f"authentication.issuers.{index}.{problem}", "authentication", "issuers", index, key
        ),
    )
    if settings.authentication.api_keys is None and not settings.authentication.issuers:
        raise file.error("authentication.api_keys: no way to authenticate is configured", "authentication")
    if settings.authentication.revoked is not None and not settings.authentication.issuers:
        raise file.error(
            "authentication.revoked: it lists tokens, and there are no issuers", "authentication", "revoked"
        )
    known: set[str] = set()
    for index, people in enumerate(settings.authentication.same_person):
        at = ("authentication", "same_person", index)
        if len(people) < _MIN_IDENTITIES:
            raise file.error("same_person: name at least two identities", *at)
        for identity in people:
            if not identity.startswith(("user:", "service:")):
                raise file.error(f"same_person: {identity!r} is not user:… or service:…", *at)
            if identity in known:
                raise file.error(f"same_person: {identity!r} stands twice", *at)
            known.add(identity)
    check_journal(settings.journal, file)
    check_audit(settings.audit, file)
    if settings.journal.url.startswith("postgresql:") and settings.secret_file is None:
        problem = "secret_file: a journal on PostgreSQL needs it: page tokens outlive the process that gave them"
        raise file.error(problem, "journal")
    _validate_limits(settings.limits, file)
    if settings.tokens is not None:
        _validate_tokens(settings.tokens, settings.authentication.issuers, file)


def _validate_tokens(tokens: Tokens, issuers: tuple[Issuer, ...], file: YamlFile) -> None:
    url = urlsplit(tokens.issuer)
    loopback = url.scheme == "http" and url.hostname in ("127.0.0.1", "::1", "localhost")
    if not url.hostname or not (url.scheme == "https" or loopback) or url.query or url.fragment or url.username:
        raise file.error("tokens.issuer: the gateway's own https:// URL", "tokens", "issuer")
    if not issuers:
        raise file.error("tokens: there are no authentication.issuers whose tokens could be exchanged", "tokens")
    if tokens.issuer in {one.issuer for one in issuers}:
        raise file.error("tokens.issuer: it is one of authentication.issuers too", "tokens", "issuer")
    if not _MIN_TOKEN_SECONDS <= tokens.max_seconds <= _MAX_TOKEN_SECONDS:
        raise file.error(f"tokens.max_seconds: {_MIN_TOKEN_SECONDS} to {_MAX_TOKEN_SECONDS}", "tokens", "max_seconds")
    known: set[str] = set()
    for index, key in enumerate(tokens.keys):
        if not _KID.fullmatch(key.kid) or key.kid in known:
            problem = f"tokens.keys.{index}.kid: 1 to 64 of A-Z a-z 0-9 . _ -, each once"
            raise file.error(problem, "tokens", "keys", index, "kid")
        known.add(key.kid)
    if sum(key.sign for key in tokens.keys) != 1:
        raise file.error("tokens.keys: exactly one has sign: true", "tokens", "keys")


def _validate_limits(limits: Limits, file: YamlFile) -> None:
    if not 1 <= limits.failed_authentications_per_minute <= _MAX_RATE:
        problem = f"limits.failed_authentications_per_minute: 1 to {_MAX_RATE}"
        raise file.error(problem, "limits", "failed_authentications_per_minute")
    rates: list[tuple[tuple[str, ...], Limits | Rate]] = [(("limits",), limits)]
    for name, rate in limits.principals.items():
        if not name.startswith(("user:", "service:")):
            raise file.error(f"limits.principals: {name!r} is not user:… or service:…", "limits", "principals", name)
        rates.append((("limits", "principals", name), rate))
    for at, found in rates:
        if found.requests_per_second is not None and not 0 < found.requests_per_second <= _MAX_RATE:
            problem = f"{'.'.join(at)}.requests_per_second: more than 0, at most {_MAX_RATE}"
            raise file.error(problem, *at, "requests_per_second")
        if found.burst is not None and (found.requests_per_second is None or not 1 <= found.burst <= _MAX_RATE):
            problem = f"{'.'.join(at)}.burst: 1 to {_MAX_RATE}, beside requests_per_second"
            raise file.error(problem, *at, "burst")


def _validate_registry(name: str, registry: Registry, file: YamlFile) -> None:
    at = ("registries", name)
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise file.error(f"registries.{name}: a name is of A-Z a-z 0-9 - _", *at)
    if registry.kind in _LATER_KINDS:
        raise file.error(f"registries.{name}.kind: {registry.kind} is not supported by this version", *at, "kind")
    if registry.kind != "mlflow":
        raise file.error(f"registries.{name}.kind: unknown kind {registry.kind!r}; there is: mlflow", *at, "kind")
    if registry.mode not in MODES:
        raise file.error(f"registries.{name}.mode: {registry.mode!r} is none of {', '.join(MODES)}", *at, "mode")
    for source in registry.sources:
        if not source.endswith("/") or ":" not in source:
            raise file.error(
                f"registries.{name}.sources: {source!r} must be a URI prefix that ends in /", *at, "sources"
            )
    try:
        url = urlsplit(registry.url)
        _ = url.port
    except ValueError as error:
        raise file.error(f"registries.{name}.url: {error}", *at, "url") from None
    if not 0 < registry.timeout_seconds <= _MAX_SECONDS:
        raise file.error(f"registries.{name}.timeout_seconds: more than 0, at most 600", *at, "timeout_seconds")
    if url.scheme == "unix":
        if not url.path.startswith("/"):
            raise file.error(f"registries.{name}.url: unix: needs an absolute path", *at, "url")
    elif url.scheme not in ("http", "https") or not url.hostname:
        raise file.error(f"registries.{name}.url: must be http://, https:// or unix:/path", *at, "url")
    if url.username or url.password or url.query or url.fragment:
        raise file.error(
            f"registries.{name}.url: no credentials, query or fragment; use token_file or password_file", *at, "url"
        )
    if registry.token_file and registry.password_file:
        raise file.error(f"registries.{name}: token_file or password_file, not both", *at)
    if (registry.username is None) != (registry.password_file is None):
        raise file.error(f"registries.{name}: username and password_file go together", *at)
    if (registry.client_certificate_file is None) != (registry.client_key_file is None):
        raise file.error(f"registries.{name}: client_certificate_file and client_key_file go together", *at)
    for key in ("ca_file", "client_certificate_file"):
        if getattr(registry, key) is not None and url.scheme != "https":
            raise file.error(f"registries.{name}.{key}: only for an https:// url", *at, key)
    for key in ("connections", "streams"):
        if not 1 <= getattr(registry, key) <= _MAX_CONNECTIONS:
            raise file.error(f"registries.{name}.{key}: 1 to {_MAX_CONNECTIONS}", *at, key)
