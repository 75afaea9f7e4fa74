"""A client that calls an ASGI application as a server would, raw path and all."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any
from urllib.parse import unquote_to_bytes

from tests.conftest import TOKENS


@dataclasses.dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Calls *app* as one principal."""

    def __init__(self, app: Any, principal: str | None = "user:admin") -> None:
        self.app = app
        self.principal = principal

    def be(self, principal: str | None) -> Client:
        return Client(self.app, principal)

    async def __call__(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        headers: list[tuple[str, str]] | None = None,
    ) -> Reply:
        path, _, query = target.partition("?")
        pairs = [("host", "gateway")]
        if self.principal is not None:
            pairs.append(("authorization", f"Bearer {TOKENS[self.principal]}"))
        if body is not None:
            raw = json.dumps(body).encode()
        if raw is not None:
            pairs += [("content-type", "application/json"), ("content-length", str(len(raw)))]
        if headers:
            replaced = {name for name, _ in headers}
            pairs = [pair for pair in pairs if pair[0] not in replaced] + headers
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote_to_bytes(path).decode("utf-8", "replace"),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in pairs],
            "client": ("192.0.2.1", 1234),
            "server": ("gateway", 80),
            "state": {},
        }
        sent: list[dict[str, Any]] = []
        incoming = iter([{"type": "http.request", "body": raw or b"", "more_body": False}])

        async def receive() -> dict[str, Any]:
            for event in incoming:
                return event
            return await asyncio.Future()  # a client that waits for its answer

        async def send(event: dict[str, Any]) -> None:
            sent.append(event)

        await self.app(scope, receive, send)
        head = sent[0]
        return Reply(
            head["status"],
            {name.decode(): value.decode("latin-1") for name, value in head["headers"]},
            b"".join(event.get("body", b"") for event in sent[1:]),
        )

    async def rpc(self, method: str, path: str, **message: Any) -> Reply:
        """Call an MLflow RPC the way its client does."""
        target = f"/api/2.0/mlflow/{path}"
        if method == "GET":
            from urllib.parse import urlencode

            return await self(method, f"{target}?{urlencode(message, doseq=True)}" if message else target)
        return await self(method, target, message)


V1 = "/v1/registries/main/models"
