"""The sink that prints each event as one line of JSON."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from typing import TextIO

from service.delivery.ports import SinkFailed
from service.event import Event, canonical_json
from service.sinks.threads import Beside


class StdoutSink:
    """Writes events to standard output, off the event loop: a reader that hangs delays no request."""

    name = "stdout"

    def __init__(self, stream: TextIO | None = None) -> None:
        """Write to *stream*, by default standard output."""
        self._stream = stream
        self._beside = Beside("sink-stdout")
        self._torn = False

    async def write(self, events: Sequence[Event]) -> None:
        """Return when the lines are written.

        Raises:
            SinkFailed: nobody reads them any more.
        """
        lines = b"".join(canonical_json(event) + b"\n" for event in events)
        try:
            await self._beside.run(lambda: self._write(lines))
        except (OSError, ValueError) as error:
            message = f"standard output: {error}"
            raise SinkFailed(message) from None

    def _write(self, lines: bytes) -> None:
        if self._stream is not None:
            self._stream.write(lines.decode())
            self._stream.flush()
            return
        sys.stdout.flush()
        left = memoryview(b"\n" + lines if self._torn else lines)
        while left:  # past Python's buffer: a hanging write must not hold its lock when the process ends
            try:
                left = left[os.write(1, left) :]
            except BlockingIOError:  # somebody who shares the pipe set it so
                select.select((), (1,), ())
            self._torn = bool(left)  # of a line that breaks off on a full disk nothing is glued to what follows

    async def close(self) -> None:
        """Nothing is buffered."""
