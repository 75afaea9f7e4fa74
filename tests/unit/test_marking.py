"""The marks of an environment are written one after the other, and each only while nobody else may change the model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from service.errors import OutcomeUnknown
from service.held import LockLost, holding
from service.marking import Marking, take_marks, write_marks
from service.promotion.gate import Mark
from service.records import RegisteredModel

MARKS = (Mark("alias", "champion"), Mark("alias", "live"))
MODEL = RegisteredModel("iris", {"champion": "1", "live": "1"}, {}, 1, {}, "", {})


class Registry:
    """Takes the lock away with the first write: the process stood still for so long."""

    def __init__(self) -> None:
        self.writes: list[str] = []

    async def check(self) -> None:
        if self.writes:
            message = "the connection is gone"
            raise LockLost(message)

    async def set_alias(self, _: str, alias: str, version: str) -> None:
        self.writes.append(f"{alias}={version}")

    async def delete_alias(self, _: str, alias: str) -> None:
        self.writes.append(f"{alias}=")

    async def get_model(self, _: str) -> RegisteredModel:
        return MODEL


async def write(registry: Registry) -> None:
    marking = Marking(list(MARKS), MODEL, SimpleNamespace(version="2"))
    await write_marks(registry, marking, SimpleNamespace(notes=[]))


async def take(registry: Registry) -> None:
    await take_marks(registry, MODEL, SimpleNamespace(marks=MARKS))


@pytest.mark.parametrize("change", [write, take])
async def test_who_lost_the_lock_writes_no_further_mark_and_takes_none_back(change):
    registry = Registry()
    with holding(registry), pytest.raises(OutcomeUnknown, match="lock that replicas share was lost"):
        await change(registry)
    assert len(registry.writes) == 1
