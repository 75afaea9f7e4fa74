"""Unit tests open no sockets; asyncio's own socket pair is a Unix one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from pytest_socket import disable_socket, enable_socket

from service.authorization.snapshot import Snapshot
from tests.conftest import ROOT

hypothesis.settings.register_profile("unit", deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("unit")


@pytest.fixture(autouse=True)
def no_sockets() -> Iterator[None]:
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


@pytest.fixture
def policy_of(tmp_path: Path) -> Callable[..., Snapshot]:
    """Load rows as the policy of two registries."""

    def load(*rows: str) -> Snapshot:
        path = tmp_path / "policy.csv"
        path.write_text("".join(f"{row}\n" for row in rows))
        return Snapshot(ROOT / "policies/model.conf", path, ["main", "other"])

    return load
