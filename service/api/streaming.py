"""An answer that is written part by part, and given up when its reader leaves."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar.response import Stream
from litestar.response.streaming import ASGIStreamingResponse
from litestar.types import Receive, Send


class Parts(Stream):
    """A stream that ends with its last part; Litestar's own waits for the server to say that the reader left."""

    def to_asgi_response(self, app: Any, request: Any, **given: Any) -> ASGIStreamingResponse:  # noqa: ARG002  # Litestar's signature
        """Give the ASGI response."""
        headers = {**(given.get("headers") or {}), **self.headers}
        return _Writing(
            iterator=self.iterator,  # type: ignore[arg-type]  # it is one, and no function that makes one
            headers=headers,
            media_type=str(self.media_type),
            status_code=given.get("status_code") or 200,
            is_head_response=given.get("is_head_response", False),
        )


class _Writing(ASGIStreamingResponse):
    async def send_body(self, send: Send, receive: Receive) -> None:
        """Write the parts; what fails in the middle fails the answer."""
        writing = asyncio.ensure_future(self._stream(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait([writing, gone], return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                await writing
        finally:
            for task in (writing, gone):
                task.cancel()
            await asyncio.gather(writing, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
