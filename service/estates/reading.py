"""Asks a registry's own API for JSON, one GET after the other, for the commands that import."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from service.errors import BadConfiguration, GatewayError

T = TypeVar("T")
_MAX_BYTES = 64 << 20
_MAX_PAGES = 10_000
Document = Mapping[str, Any]
Ask = Callable[..., Awaitable[Document | None]]
"""(path, field=value, …) -> the answer; None if the server has no such thing."""


class Transport(Protocol):
    """What reaches a registry."""

    async def get(self, path: str, query: list[tuple[str, str]], limit: int) -> bytes | None:
        """GET a document; None if it is not there."""

    async def close(self) -> None:
        """Close the connections."""


def ask_all(transport: Transport, work: Callable[[Ask], Awaitable[T]]) -> T:
    """Run *work* with what asks the registry, and close it.

    Raises:
        BadConfiguration: the registry refuses, cannot be reached, or does not answer JSON.
    """

    async def ask(path: str, **fields: str) -> Document | None:
        raw = await transport.get(path, list(fields.items()), _MAX_BYTES)
        if raw is None:
            return None
        try:
            found = json.loads(raw)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            message = f"{path}: the registry does not answer a JSON object"
            raise BadConfiguration(message)
        return found

    async def run() -> T:
        try:
            return await work(ask)
        except BadConfiguration:
            raise
        except GatewayError as error:
            message = f"the registry cannot be asked: {error.detail}; its credential has to be an administrator's"
            raise BadConfiguration(message) from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            message = f"the registry answered in another shape than this version reads ({type(error).__name__})"
            raise BadConfiguration(message) from None
        finally:
            await transport.close()

    return asyncio.run(run())


async def pages(ask: Ask, path: str, items: str, **fields: str) -> Sequence[Document]:
    """List all *items* of all pages; a page may be empty and not the last."""
    found: list[Document] = []
    token = ""
    for _ in range(_MAX_PAGES):
        page = await ask(path, **fields, **({"page_token": token} if token else {})) or {}
        found += page.get(items) or ()
        token = page.get("next_page_token") or ""
        if not token:
            return found
    message = f"{path}: more than {_MAX_PAGES} pages"
    raise BadConfiguration(message)
