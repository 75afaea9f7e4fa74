"""Serves the MLflow dialect over ASGI: reads the request, hands a Call to the gateway, writes the answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qsl

from service.asgi import (
    IDLE_SECONDS,
    MAX_BODY_BYTES,
    ClientGone,
    Receive,
    Scope,
    Send,
    client_address,
    header,
    once,
    read_body,
    refuse_body,
    respond,
    start,
    stream_body,
)
from service.dialects.mlflow import Match, MlflowDialect, render_error, render_promotion
from service.dialects.mlflow_row import Body
from service.dialects.otlp import EXPERIMENT_HEADER, PROTOBUF, RUN_HEADER, read_export
from service.errors import GatewayError, InvalidRequest, UnknownRoute, UnsupportedMediaType
from service.model import Answer, Call, Record, Stream
from service.shares import Shares

_LARGE = 64 << 10
_LARGE_BODIES = 4
_JSON = {"content-type": "application/json"}
_SERVER_INFO = json.dumps(
    {
        "store_type": "SqlStore",
        "workspaces_enabled": False,
        "trace_archival_enabled": False,
        "multipart_uploads_enabled": False,
        "multipart_downloads_enabled": False,
        "presigned_upload_run_id_supported": False,
        "presigned_upload_model_id_supported": False,
        "features_enabled": {"gateway": False},
    }
).encode()
"""What clients may use of what the server has: what the gateway refuses is not there."""
_STATIC = ("/version", "/health", "/api/3.0/mlflow/server-info", "/ajax-api/3.0/mlflow/server-info")


class Handler(Protocol):
    """The one way down: the gateway."""

    async def handle(self, call: Call) -> Answer:
        """Take *call* to its registry, or refuse it."""


class MlflowEndpoint:
    """One ASGI application for every MLflow registry, at the root and under ``/registries/{registry}``."""

    def __init__(
        self,
        dialect: MlflowDialect,
        gateway: Handler,
        *,
        registries: Mapping[str, str | None],
        default: str | None,
        version: str,
        file_shares: Mapping[str, int],
        dropped: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Serve *registries* (name -> its MLflow workspace or None); *default* answers at the root paths.

        One principal has at most *file_shares* files of a registry under way. *version* is what ``/version`` says;
        *dropped* counts fields the schema lacks.
        """
        self._dialect = dialect
        self._gateway = gateway
        self._registries = registries
        self._default = default
        self._version = version
        self._dropped = dropped
        self._large = asyncio.Semaphore(1)
        self._bodies = Shares(_LARGE_BODIES, "large bodies")
        self._files = {name: Shares(share, "files") for name, share in file_shares.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request that the front door has authenticated."""
        try:
            await self._serve(scope, receive, send)
        except GatewayError as error:
            if error.operation:
                scope["state"]["recorded"] = True
            if getattr(send, "started", False):  # a file that broke off: its client sees it cut
                raise
            await respond(send, *render_error(error))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        registry, path = self._registry_of(scope["raw_path"].decode("ascii"))
        scope["state"]["registry"] = registry
        if path in _STATIC:
            await self._answer_static(scope, path, send)
            return
        match = self._dialect.match(scope["method"], path)
        scope["state"]["reads"] = match.row.record is Record.NONE
        scope["state"]["telemetry"] = match.row.record is Record.SUMMED
        scope["state"]["call_name"] = match.rpc.name
        self._check_workspace(scope, registry)
        subject = scope["state"]["principal"].subject
        with contextlib.ExitStack() as held:
            if match.row.streams or match.row.body is Body.BYTES:
                held.enter_context(self._files[registry].hold(subject))
            with self._bodies.hold(subject) if _is_large(scope, match) else contextlib.nullcontext():
                call, dropped = await self._read(scope, receive, match, registry)
            if dropped:
                self._dropped(len(dropped))
            answer = await self._gateway.handle(call)
            await _write(receive, send, match, answer, dropped)

    def _registry_of(self, path: str) -> tuple[str, str]:
        registry = self._default
        if path.startswith("/registries/"):
            _, _, registry, *rest = path.split("/", 3)
            path = "/" + "".join(rest)
        if registry is None or registry not in self._registries:
            message = "No MLflow registry of this name is configured." if registry else "No default MLflow registry."
            raise UnknownRoute(message)
        return registry, path

    def _check_workspace(self, scope: Scope, registry: str) -> None:
        asked = header(scope, "x-mlflow-workspace")
        configured = self._registries[registry] or "default"
        if asked is not None and asked != configured:
            message = f"The registry {registry!r} is the MLflow workspace {configured!r}, not the one the header names."
            raise InvalidRequest(message)

    async def _read(self, scope: Scope, receive: Receive, match: Match, registry: str) -> tuple[Call, list[str]]:
        body = b""
        if scope["method"] == "GET":
            refuse_body(scope)
        elif match.row.body is Body.OTLP:
            return await self._read_export(scope, receive, match, registry), []
        elif match.row.body is Body.JSON:
            body = await read_body(scope, receive, match.row.max_body_bytes)
        query = _query(scope)
        build = self._dialect.call
        arguments = (match, scope["state"]["principal"], registry, query, body)
        if len(body) > _LARGE:  # a batch of 1,000 metrics takes 17 ms to check
            async with self._large:  # what is parsed takes many times the memory of its text
                call, dropped = await asyncio.to_thread(build, *arguments)
        else:
            call, dropped = build(*arguments)
        call = _located(call, scope)
        if match.row.body is Body.BYTES and call.request is not None:
            if (header(scope, "content-encoding") or "identity").lower() != "identity":
                message = "Send the artifact without Content-Encoding."
                raise UnsupportedMediaType(message)
            headers = {
                name: value for name in ("content-type", "content-length") if (value := header(scope, name)) is not None
            }
            request = dataclasses.replace(call.request, body=stream_body(receive), headers=headers)
            call = dataclasses.replace(call, request=request)
        return call, dropped

    async def _read_export(self, scope: Scope, receive: Receive, match: Match, registry: str) -> Call:
        """Read OpenTelemetry's export; its headers say where the traces belong."""
        raw = await read_body(scope, receive, match.row.max_body_bytes, (PROTOBUF, "application/json"))
        is_json = (header(scope, "content-type") or "").startswith("application/json")
        owner = scope["state"]["principal"].subject
        async with self._large:
            body, trace_ids = await asyncio.to_thread(read_export, raw, is_json=is_json, owner=owner)
        experiment_id, run_id = header(scope, EXPERIMENT_HEADER), header(scope, RUN_HEADER)
        document = {"experiment_id": experiment_id, "run_id": run_id, "trace_ids": trace_ids}
        fields = json.dumps({key: value for key, value in document.items() if value}).encode()
        call, _ = self._dialect.call(match, scope["state"]["principal"], registry, _query(scope), fields)
        assert call.request is not None  # every RPC has one
        headers = {"content-type": PROTOBUF, EXPERIMENT_HEADER: str(experiment_id)}
        if run_id:
            headers[RUN_HEADER] = run_id
        request = dataclasses.replace(call.request, body=once(body), headers=headers, streams=True)
        return _located(dataclasses.replace(call, request=request), scope)

    async def _answer_static(self, scope: Scope, path: str, send: Send) -> None:
        if scope["method"] != "GET":
            message = f"{path} takes GET only."
            raise InvalidRequest(message)
        if path == "/version":
            await respond(send, 200, {"content-type": "text/html; charset=utf-8"}, self._version.encode())
        elif path == "/health":
            await respond(send, 200, {"content-type": "text/plain"}, b"OK")
        else:
            await respond(send, 200, _JSON, _SERVER_INFO)


def _is_large(scope: Scope, match: Match) -> bool:
    """Tell whether the body is one of the few that are allowed to be large, and is, or does not say how large."""
    announced = header(scope, "content-length") or ""
    says_small = announced.isdigit() and int(announced) <= MAX_BODY_BYTES
    return match.row.max_body_bytes > MAX_BODY_BYTES and match.row.body is not Body.BYTES and not says_small


def _located(call: Call, scope: Scope) -> Call:
    state = scope["state"]
    return dataclasses.replace(
        call, address=client_address(scope), trace=state.get("trace", ""), key=state.get("idempotency", "")
    )


def _query(scope: Scope) -> list[tuple[str, str]]:
    raw = scope.get("query_string", b"")
    if not raw:
        return []
    try:
        return parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=1000,
        )
    except ValueError:
        message = "The query is not well-formed."
        raise InvalidRequest(message) from None


async def _write(receive: Receive, send: Send, match: Match, answer: Answer, dropped: list[str]) -> None:
    headers = {**({"content-type": answer.content_type} if answer.content_type else {}), **answer.headers}
    if answer.operation:
        headers["registry-gateway-operation"] = answer.operation
    if dropped:
        names = ", ".join(dropped[:20])
        headers["warning"] = f'299 registry-gateway "dropped fields the schema lacks: {names}"'[:1000]
    if answer.promotion is not None:
        document: dict[str, Any] = render_promotion(match, answer.promotion)
        await respond(send, 200, {**headers, **_JSON}, json.dumps(document).encode())
    elif answer.stream is None:
        await respond(send, answer.status, headers, answer.body)
    else:
        async with contextlib.aclosing(answer.stream):  # closes the connection to the registry
            await start(send, answer.status, headers)
            await _pass_on(receive, send, answer.stream)


async def _pass_on(receive: Receive, send: Send, stream: Stream) -> None:
    """Send a file part by part, as long as the client takes it."""
    left = asyncio.create_task(_left(receive))  # the server takes parts for a client that is gone, and says nothing
    try:
        async for part in stream:
            if left.done():
                raise ClientGone
            async with asyncio.timeout(IDLE_SECONDS):
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        raise ClientGone from None  # it takes nothing, and holds a connection that others wait for
    finally:
        left.cancel()


async def _left(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
