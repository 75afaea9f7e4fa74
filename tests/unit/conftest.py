"""Unit tests open no sockets; asyncio's own socket pair is a Unix one."""

from __future__ import annotations

from collections.abc import Iterator

import hypothesis
import pytest
from pytest_socket import disable_socket, enable_socket

hypothesis.settings.register_profile("unit", deadline=None, database=None, max_examples=60)
hypothesis.settings.load_profile("unit")


@pytest.fixture(autouse=True)
def no_sockets() -> Iterator[None]:
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
