"""``registry-gateway`` with failpoints and a clock that tests set: ``python -m tests.faults.gateway serve …``.

The product holds no failpoint, and reads no setting for one: this entry point, which no package contains, wraps named
seams of it and runs the same command. A worker process is a fork of it. To import it is to change the process.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

_CLOCK = Path(os.environ.get("TEST_CLOCK_FILE", os.devnull))
_FAILPOINT = Path(os.environ.get("TEST_FAILPOINT_FILE", os.devnull))
_real_time = time.time
_offset = 0.0
_armed = ["", 0]
"""Which failpoint kills, and the how maniest time that it is reached."""


def _follow_files() -> None:
    global _offset  # noqa: PLW0603  # one clock a process
    before = ""
    while True:
        with contextlib.suppress(OSError, ValueError):  # one is being written
            _offset = float(_CLOCK.read_text() or 0)
            text = _FAILPOINT.read_text()
            if text != before:
                before, (name, _, times) = text, text.partition(":")
                _armed[:] = [name, int(times or 0)]
        time.sleep(0.02)


time.time = lambda: _real_time() + _offset  # before anything of the product takes it as its clock


def _begin() -> None:
    threading.Thread(target=_follow_files, daemon=True).start()


_begin()
os.register_at_fork(after_in_child=_begin)  # a worker is a fork, and a fork has no threads of its parent

from service import audit  # noqa: E402
from service.backends import http  # noqa: E402
from service.journal import database  # noqa: E402
from tests.faults.failpoints import FAILPOINTS  # noqa: E402


def reach(name: str) -> None:
    """Kill the whole process group when the failpoint is reached for the nth time."""
    assert name in FAILPOINTS
    if name != _armed[0]:
        return
    _armed[1] -= 1
    if _armed[1] == 0:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _around(owner: type, method: str, before: str = "", after: str = "", *, when: Callable[..., bool] = bool) -> None:
    original = getattr(owner, method)

    @functools.wraps(original)
    async def wrapped(*args, **keywords):
        if before and when(keywords):
            reach(before)
        result = await original(*args, **keywords)
        if after and when(keywords):
            reach(after)
        return result

    setattr(owner, method, staticmethod(wrapped) if method == "_commit" else wrapped)


def always(_: dict) -> bool:
    return True


_around(audit.Trail, "intent", "before-intent", "after-intent", when=always)
_around(audit.Trail, "outcome", "", "after-outcome", when=always)
_around(http.HttpTransport, "send", "", "after-answer", when=lambda keywords: keywords.get("writes", False))
_around(database.PostgresDatabase, "_commit", "before-commit", "after-commit", when=always)
_write = database.SqliteDatabase._write


def _sqlite_write(self, work):
    def worked(connection):
        done = work(connection)
        reach("before-commit")
        return done

    done = _write(self, worked)
    reach("after-commit")
    return done


database.SqliteDatabase._write = _sqlite_write

if __name__ == "__main__":
    from service.__main__ import main

    sys.exit(main())
