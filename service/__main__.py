"""The command `registry-gateway`. Exit status: 0 good, 1 found wrong, 2 could not run."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from service import audit_commands, keys, nouns, pipeline, policy_commands
from service.arguments import Parser, say, with_config
from service.embedded import Embedded
from service.errors import BadConfiguration, JournalUnavailable
from service.modes import ENFORCE
from service.settings import CONFIG, PREFIX, Configuration, data_dir, load

DYING_SECONDS = 2.0
"""The workers of a process that was killed may live so long after it."""
GOOD, WRONG, CANNOT_RUN, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        options = _parser().parse_args(arguments)
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has enough, as `head` does; a shell gives tools this status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except BadConfiguration as error:
        print(f"registry-gateway: {error.detail}", file=sys.stderr)
        return WRONG if options.run is _check else CANNOT_RUN
    except KeyboardInterrupt:
        say("stopped")
        return INTERRUPTED
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="registry-gateway", description="Governance in front of model registries.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the gateway; without a configuration, the embedded default")
    with_config(serve)
    _with_listen(serve)
    serve.set_defaults(run=_serve)

    check = commands.add_parser("check", help="validate configuration, policy, environments and keys; start nothing")
    with_config(check)
    _with_listen(check)
    check.set_defaults(run=_check)

    policy_commands.add_commands(commands)

    audit_commands.add_commands(commands)

    keys.add_commands(commands)

    journal = commands.add_parser("journal", help="the journal's schema").add_subparsers(required=True)
    upgrade = journal.add_parser("upgrade", help="create the journal or bring its schema up to date")
    with_config(upgrade)
    upgrade.set_defaults(run=_journal_upgrade)

    schema = commands.add_parser("schema", help="shapes of the files, for editors").add_subparsers(required=True)
    environments = schema.add_parser("environments", help="print the JSON Schema of environments.yaml")
    environments.set_defaults(run=_schema_environments)

    pipeline.add_commands(commands)
    nouns.add_commands(commands)

    openapi = commands.add_parser("openapi", help="print the OpenAPI document")
    openapi.set_defaults(run=_openapi)
    return parser


def _with_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="listen here instead of listen.host")
    parser.add_argument("--port", type=int, help="listen here instead of listen.port")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes that share the port (journal on PostgreSQL; on SQLite: 1)"
    )


def _environ(options: argparse.Namespace) -> dict[str, str]:
    """Give the environment as the command line changes it: the workers read the configuration from there."""
    environ = dict(os.environ)
    if options.config is not None:
        environ[CONFIG] = str(options.config.absolute())
    for name, value in (("HOST", options.host), ("PORT", options.port)):
        if value is not None:
            environ[f"{PREFIX}LISTEN__{name}"] = str(value)
    return environ


def _check_workers(options: argparse.Namespace, configuration: Configuration) -> None:
    """Refuse more processes than the journal can have, or less than one."""
    if options.workers < 1:
        message = f"--workers {options.workers}: at least 1"
        raise BadConfiguration(message)
    if options.workers > 1 and not configuration.shares_journal():
        message = (
            f"--workers {options.workers}: a journal on SQLite is a file that one process writes; "
            "several need journal.url to name a PostgreSQL database"
        )
        raise BadConfiguration(message)


def _serve(options: argparse.Namespace) -> int:
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops

    os.environ.update(_environ(options))
    configuration = load()
    _check_workers(options, configuration)
    listen = configuration.settings.listen
    problems = problems_of(configuration)
    if problems:
        raise BadConfiguration("\n".join(problems))
    _check_port(listen.host, listen.port)
    embedded = _start_embedded() if configuration.file is None else None
    try:
        _validate(configuration)
        if embedded is not None:
            embedded.start_server(say)
        _announce(configuration)
        Granian(
            "service.app:create",
            factory=True,
            address=listen.host,
            port=listen.port,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            loop=Loops.uvloop if sys.platform != "win32" else Loops.asyncio,
            workers=options.workers,
            websockets=False,
            log_enabled=False,
            respawn_failed_workers=True,
            workers_kill_timeout=35,
        ).serve()
    finally:
        if embedded is not None:
            embedded.stop()
    say("stopped")
    return GOOD


def _start_embedded() -> Embedded:
    embedded = Embedded(data_dir(os.environ))
    os.environ[f"{PREFIX}REGISTRIES__MAIN__URL"] = f"unix:{embedded.socket}"
    tokens = embedded.write_keys()
    say(f"demo keys, shown once (also in {embedded.data / 'demo-tokens.json'}):")
    for principal, token in tokens.items():
        say(f"  {principal:<15} {token}")
    say(f"starting an MLflow server on SQLite; its log is {embedded.log}")
    return embedded


def _announce(configuration: Configuration) -> None:
    listen = configuration.settings.listen
    url = f"http://{listen.host}:{listen.port}"
    say(f"listening on {url}   (readiness: {url}/readyz, API: {url}/openapi.json)")
    if configuration.file is None:
        tokens = data_dir(os.environ) / "demo-tokens.json"
        say("paste this into another shell:")
        say(f"  export MLFLOW_TRACKING_URI={url}")
        read = f'import json; print(json.load(open("{tokens}"))["user:scientist"])'
        say(f"  export MLFLOW_TRACKING_TOKEN=$(python3 -c '{read}')")
    sys.stdout.flush()


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            other = f"--port or {PREFIX}LISTEN__PORT chooses another"
            message = f"listen.host {host}, listen.port {port}: {error.strerror}; {other}"
            raise BadConfiguration(message) from None


def _validate(configuration: Configuration) -> None:
    """Load every file the application would, so that nothing starts half; make the journal if there is none."""
    from service.app import Application
    from service.journal import schema
    from service.journal.database import shown

    url = configuration.journal_url()
    if not schema.exists(url):
        trace = schema.trace_of(url)
        if trace is not None:
            message = (
                f"journal.url: {shown(url)} is gone: {trace} says that there was one. "
                "Put it back, or make a new one: registry-gateway journal upgrade, with the same --config"
            )
            raise BadConfiguration(message)
        schema.upgrade(url)
        say(f"made a new journal: {url}")
    schema.check(url)
    _check_nobody_else(url)
    if configuration.settings.environments is None:
        say("no environments are configured: nothing is gated")
    Application(configuration)


def _check_nobody_else(url: str) -> None:
    """Refuse a journal's file that another process uses; on a server, replicas see to it themselves."""
    from service.journal.database import SQLITE
    from service.journal.files import JournalFiles

    if not url.startswith(SQLITE):
        return
    files = JournalFiles(Path(url.removeprefix(SQLITE)))
    deadline = time.monotonic() + DYING_SECONDS
    while True:
        try:
            files.claim()
            break
        except JournalUnavailable as error:
            if time.monotonic() >= deadline:
                raise BadConfiguration(error.detail) from None
        time.sleep(0.02)
    files.release()


def _check(options: argparse.Namespace) -> int:
    file = options.config or os.environ.get(CONFIG)
    if file and not Path(file).is_file():
        print(f"registry-gateway: {file}: there is no such file; --config names another", file=sys.stderr)
        return CANNOT_RUN
    configuration = load(environ=_environ(options))
    _check_workers(options, configuration)
    problems = problems_of(configuration)
    for line in problems or [f"{doubt} (a warning)" for doubt in doubts_of(configuration)]:
        print(line, file=sys.stderr)
    if problems:
        return WRONG
    if configuration.settings.environments is None:
        say("no environments are configured: nothing is gated; `environments` in the configuration names their file")
    if configuration.settings.audit.checkpoints is None:
        say("no checkpoints are written: a cut-off end of the record shows only beside a copy; see audit.checkpoints")
    say("configuration, policy, environments and keys are good")
    return GOOD


def doubts_of(configuration: Configuration) -> list[str]:
    """List what is allowed in good files, and is probably not what was meant, each with file and line."""
    from service.authorization.doubts import doubts
    from service.backends.mlflow import MlflowBackend
    from service.parts import environments_of
    from service.policy_tests import snapshot_of

    settings = configuration.settings
    snapshot = snapshot_of(configuration)
    modes = [
        f"{configuration.file or 'registries'}: registries.{name}.mode is {item.mode}: access to it is not enforced"
        for name, item in settings.registries.items()
        if item.mode != ENFORCE
    ]
    environments = environments_of(configuration, dict.fromkeys(settings.registries, MlflowBackend.capabilities))
    return modes + doubts(snapshot, configuration.path(settings.access.rows), tuple(item.name for item in environments))


def problems_of(configuration: Configuration) -> list[str]:
    """List what is wrong in the files a configuration names, each with file and line; start nothing."""
    from service.backends.mlflow import MlflowBackend
    from service.parts import (
        api_keys_of,
        authorization_of,
        checkpoint_key_of,
        environments_of,
        issuers_of,
        masks_of,
        own_tokens_of,
        revoked_of,
        sinks_of,
        tls_of,
    )
    from service.policy_tests import snapshot_of

    settings = configuration.settings
    parts: list[Callable[[], object]] = [
        lambda: snapshot_of(configuration),
        lambda: environments_of(configuration, dict.fromkeys(settings.registries, MlflowBackend.capabilities)),
    ]
    if configuration.file is not None:  # the embedded default writes its own keys
        parts += [lambda: api_keys_of(configuration), lambda: issuers_of(configuration, revoked_of(configuration))]
        parts += [lambda: own_tokens_of(configuration), lambda: sinks_of(configuration)]
        parts += [lambda: masks_of(configuration)]
        if settings.audit.checkpoints is not None:
            parts.append(lambda: checkpoint_key_of(configuration))
    for name, registry in settings.registries.items():
        parts += [partial(part, name, registry, configuration) for part in (authorization_of, tls_of)]
    problems = []
    for part in parts:
        try:
            part()
        except BadConfiguration as error:
            problems.append(error.detail)
    return problems


def _journal_upgrade(options: argparse.Namespace) -> int:
    from service.journal import schema
    from service.journal.database import shown

    url = load(options.config).journal_url()
    schema.upgrade(url)
    say(f"{shown(url)}: the journal has schema {schema.revision(url)}")
    return GOOD


def _openapi(_: argparse.Namespace) -> int:
    from service.routes import build_litestar, openapi_document

    sys.stdout.write(openapi_document(build_litestar()).decode())
    return GOOD


def _schema_environments(_: argparse.Namespace) -> int:
    from service.promotion.schema import json_schema

    sys.stdout.write(json_schema().decode())
    return GOOD


if __name__ == "__main__":
    sys.exit(main())
