"""The settings of sinks: where events go besides the journal."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import msgspec

from service.event import EVENT_ACTIONS, PHASES
from service.files import YamlFile
from service.sinks.addresses import ForbiddenAddress, check_host
from service.sinks.mlflow_shapes import NAMES, NOT_TOLD

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_TIMEOUT_SECONDS = 60.0
_MAX_SECRETS = 2
_At = tuple[str | int, ...]


class FileOutlet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that events are appended to."""

    path: str


class EndpointOutlet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A URL that events are sent to."""

    id: str
    """Names it in the journal and the API: with another one it begins anew."""
    url: str
    events: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    ca_file: str | None = None
    private: bool = False
    timeout_seconds: float = 10.0


class WebhookOutlet(EndpointOutlet, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A URL that signed messages are sent to."""

    secret_file: str | None = None
    secret_files: tuple[str, ...] = ()
    """The new one and the old one, while receivers change."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The files of secrets, the newest first."""
        return self.secret_files or ((self.secret_file,) if self.secret_file else ())


class CloudEventsOutlet(EndpointOutlet, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A URL that events are sent to as they are."""

    token_file: str | None = None


class Outlet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One sink: exactly one of these."""

    file: FileOutlet | None = None
    webhook: WebhookOutlet | None = None
    cloudevents: CloudEventsOutlet | None = None


def check_outlets(outlets: tuple[str | Outlet, ...], file: YamlFile) -> None:
    """Refuse sinks that cannot be.

    Raises:
        BadConfiguration: it names file, line and key.
    """
    known: set[str] = set()
    for index, outlet in enumerate(outlets):
        at: _At = ("audit", "sinks", index)
        if isinstance(outlet, str):
            if outlet != "stdout":
                problem = f"audit.sinks: unknown sink {outlet!r}; there are: stdout, file, webhook, cloudevents"
                raise file.error(problem, *at)
            name = outlet
        else:
            name = _check(outlet, file, at)
        if name in known:
            raise file.error(f"audit.sinks: {name} stands twice", *at)
        known.add(name)


def _check(outlet: Outlet, file: YamlFile, at: _At) -> str:
    given = [kind for kind in ("file", "webhook", "cloudevents") if getattr(outlet, kind) is not None]
    if len(given) != 1:
        raise file.error("audit.sinks: a sink is stdout, or exactly one of file, webhook, cloudevents", *at)
    at = (*at, given[0])
    if outlet.file is not None:
        if not outlet.file.path:
            raise file.error("audit.sinks.file.path: it is empty", *at, "path")
        return f"file {outlet.file.path}"
    endpoint = outlet.webhook or outlet.cloudevents
    assert endpoint is not None
    _check_endpoint(endpoint, file, at)
    if outlet.webhook is not None:
        hook = outlet.webhook
        if bool(hook.secret_file) == bool(hook.secret_files):
            raise file.error("audit.sinks.webhook: secret_file or secret_files is needed, not both", *at)
        if len(hook.secret_files) > _MAX_SECRETS:
            problem = "audit.sinks.webhook.secret_files: the new one and the old one, no more"
            raise file.error(problem, *at, "secret_files")
    return f"endpoint {endpoint.id}"


def _check_endpoint(endpoint: EndpointOutlet, file: YamlFile, at: _At) -> None:
    where = f"audit.sinks.{at[-1]}"
    if not _ID.fullmatch(endpoint.id):
        raise file.error(f"{where}.id: 1 to 64 of A-Z a-z 0-9 . _ -", *at, "id")
    try:
        url = urlsplit(endpoint.url)
        _ = url.port
    except ValueError as error:
        raise file.error(f"{where}.url: {error}", *at, "url") from None
    if url.scheme not in ("https", "http") or not url.hostname:
        raise file.error(f"{where}.url: https://host[:port]/path", *at, "url")
    if url.scheme == "http" and not endpoint.private:
        problem = f"{where}.url: https is needed; http only to the own network, with private: true"
        raise file.error(problem, *at, "url")
    try:
        check_host(url.hostname, private=endpoint.private, encrypted=url.scheme == "https")
    except ForbiddenAddress as error:
        raise file.error(f"{where}.url: {error}", *at, "url") from None
    if url.username or url.password or url.fragment:
        problem = f"{where}.url: no credentials and no fragment; they are secrets for files"
        raise file.error(problem, *at, "url")
    if endpoint.ca_file is not None and url.scheme != "https":
        raise file.error(f"{where}.ca_file: only for an https:// url", *at, "ca_file")
    if not 0 < endpoint.timeout_seconds <= _MAX_TIMEOUT_SECONDS:
        raise file.error(f"{where}.timeout_seconds: more than 0, at most 60", *at, "timeout_seconds")
    for name in endpoint.events:
        problem = _problem_of_event(name, words=isinstance(endpoint, WebhookOutlet))
        if problem:
            raise file.error(f"{where}.events: {problem}", *at, "events")


def _problem_of_event(name: str, *, words: bool) -> str:
    """Say why no event is ever sent by *name*: a filter that nothing passes reads as "it did not happen"."""
    if name in NAMES:
        return "" if words else f"{name!r} is one of MLflow's names, which a webhook sends; say what ours is"
    if name in NOT_TOLD:
        return f"{name!r} is not sent by this version; of MLflow's names there are: {', '.join(sorted(NAMES))}"
    known = [f"{action.replace(':', '.')}.{phase}" for action in EVENT_ACTIONS for phase in PHASES]
    found = any(one.startswith(name[:-1]) for one in known) if name.endswith(".*") else name in known
    form = "object.verb.phase, with * as the last part for all (alias.set.outcome, environment.promote.*, alias.*)"
    return "" if found else f"{name!r} is no event; ours are {form}, MLflow's: {', '.join(sorted(NAMES))}"
