"""Sees to it that a name is judged in the spelling that the registry stores.

A registry on a database that compares without regard to case, accents or trailing space (MySQL's and SQL Server's
default) answers to names it does not store: a policy row for ``fraud`` would say nothing about ``FRAUD``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from urllib.parse import unquote

from service.backend import Backend
from service.change import TagDelete, TagSet
from service.errors import InvalidRequest, NotFound
from service.model import Call, Record
from service.strict import folded

SEEN_SECONDS = 30.0
_NEW = frozenset({"model:create", "model:rename"})
"""Their names may not exist yet; a clash is the registry's to refuse."""


class Spelling:
    """Knows of each registry whether it tells spellings apart, found out once by asking it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Know nothing yet; *clock* ages what reads have seen."""
        self._clock = clock
        self._exact: dict[str, bool] = {}
        self._seen: dict[tuple[str, str], float] = {}

    async def check(self, backend: Backend, call: Call) -> None:
        """Refuse a call that names something in another spelling than the registry stores.

        Raises:
            InvalidRequest: it does; the message gives the stored one. Nothing was forwarded.
        """
        checked: set[str] = set()
        for need in call.needs:
            if not isinstance(need.resource, str) or need.action in _NEW or need.resource in checked:
                continue
            checked.add(need.resource)
            kind, _, rest = need.resource.partition("/")
            names = [unquote(part) for part in rest.split("/")]
            if kind == "models" and not await self._is_exact(backend, names[0]):
                await self._check_model(backend, call, names)
            elif kind == "experiments" and need.action == "experiment:read" and not self._exact.get(backend.name):
                await self._check_experiment(backend, names[0])

    async def _is_exact(self, backend: Backend, name: str) -> bool:
        """Tell whether the registry distinguishes other spellings of *name*; asked until a model shows it."""
        known = self._exact.get(backend.name)
        if known is not None:
            return known
        variants = _variants(name)
        if not variants or not await _exists(backend, name):
            return False  # it cannot show anything: look each time
        self._exact[backend.name] = exact = all([await _distinguishes(backend, variant) for variant in variants])
        return exact

    async def _check_model(self, backend: Backend, call: Call, names: list[str]) -> None:
        name, *inside = names
        key = (backend.name, name)
        plain = call.record is Record.NONE and (not inside or inside[0] != "aliases")
        if plain and self._seen.get(key, 0.0) > self._clock():
            return
        try:
            model = await backend.get_model(name)  # refuses another spelling than the stored one
        except NotFound:
            return  # the registry says so itself
        if len(self._seen) > 10_000:  # names of callers: bounded
            self._seen.clear()
        self._seen[key] = self._clock() + SEEN_SECONDS
        if inside[:1] == ["aliases"]:
            _refuse_variant(inside[1], model.aliases)
        elif isinstance(call.change, TagSet | TagDelete) and inside[-2:-1] == ["tags"]:
            change = call.change
            tags = (await backend.get_version(name, change.version)).tags if change.version else model.tags
            _refuse_variant(inside[-1], tags)

    @staticmethod
    async def _check_experiment(backend: Backend, name: str) -> None:
        try:
            await backend.experiment_named(name)
        except NotFound:
            return


def _variants(name: str) -> tuple[str, ...]:
    """Spell *name* otherwise: in case, accents and trailing space; nothing if it has no ASCII letter.

    Only ASCII letters change: collations fold these or none, whereas a letter that a caller chose to be strange could
    be told apart by one that folds all others.
    """
    swapped = "".join(character.swapcase() if character.isascii() else character for character in name)
    if swapped == name:
        return ()
    at = next(index for index, character in enumerate(name) if character.isascii() and character.isalpha())
    return swapped, f"{name} ", f"{name[: at + 1]}\u0301{name[at + 1 :]}"


async def _exists(backend: Backend, name: str) -> bool:
    try:
        await backend.get_model(name)
    except NotFound:
        return False
    return True


async def _distinguishes(backend: Backend, variant: str) -> bool:
    try:
        await backend.get_model(variant)
    except NotFound:
        return True
    except InvalidRequest:
        return False
    return True  # both spellings are stored


def _refuse_variant(key: str, stored: Iterable[str]) -> None:
    for other in stored:
        if other != key and folded(other) == folded(key):
            message = f"The registry stores {key[:100]!r} as {other[:100]!r}; name it so."
            raise InvalidRequest(message)
