"""What `/readyz`, which needs no key, tells of a file that was refused."""

from __future__ import annotations

import pytest

from service.api.health import _told


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        ("/etc/gw/keys.yaml:29: the principal 'ann@corp' is not user:…", "keys.yaml:29"),
        ("p.csv:1:18: 2 fields: user:ann\np.csv:2:1: models/secret:3: unknown", "p.csv:1:18, p.csv:2:1"),
        ("\n".join(f"p.csv:{n}:1: x" for n in range(12)), f"{', '.join(f'p.csv:{n}:1' for n in range(10))} and 2 more"),
        ("/etc/gw/keys.yaml: No such file or directory", "refused"),
        ("rows name owner, and user:ann", "refused"),
    ],
)  # fmt: skip
def test_it_says_where_and_not_what(problem: str, told: str) -> None:
    assert _told(problem) == f"{told}: the log says what is wrong"
