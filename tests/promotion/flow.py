"""The steps that tests of promotion share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.api.test_promotion import MLMODEL, V1, alias_of, promote, register, satisfy
from tests.client import Client, Reply

__all__ = ["MLMODEL", "V1", "alias_of", "ask", "environments", "promote", "register", "satisfy", "simple", "until"]

SIMPLE = """\
environments:
  production:
    marks: [{alias: champion}]
    rules: []
"""


def environments(directory: Path, text: str = SIMPLE) -> str:
    """Write environments.yaml and name it."""
    path = directory / "environments.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def simple(directory: Path, more: str = "", rules: str = "[]") -> str:
    """Write one environment, ``production``, with these rules and further lines."""
    text = SIMPLE.replace("rules: []", f"rules: {rules}")
    return environments(directory, text + "".join(f"    {line}\n" for line in more.splitlines()))


async def ask(client: Client, verb: str, version: str | None = None, *, model: str = "iris", **fields: Any) -> Reply:
    """POST to ``promotions``, ``rollbacks``, ``retirements`` … of production."""
    body = {**({"version": version} if version else {}), **fields}
    return await client("POST", f"{V1}/{model}/environments/production/{verb}", body)


async def until(true: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Wait until *true* gives yes; return how long that took."""
    begun = time.monotonic()
    while not await true():
        assert time.monotonic() - begun < seconds
        await asyncio.sleep(0.005)
    return time.monotonic() - begun
