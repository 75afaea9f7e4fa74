"""The sink that prints each event as one line of JSON."""

from __future__ import annotations

import asyncio
import sys
from typing import TextIO

from service.event import Event, canonical_json


class StdoutSink:
    """Writes events to standard output, off the event loop: a reader that hangs delays no request."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to *stream*, by default standard output."""
        self._stream = stream

    async def write(self, event: Event) -> None:
        """Return when the line is flushed."""
        await asyncio.to_thread(self._write, canonical_json(event).decode())

    def _write(self, line: str) -> None:
        stream = self._stream or sys.stdout
        stream.write(line + "\n")
        stream.flush()

    async def close(self) -> None:
        """Nothing is buffered."""
