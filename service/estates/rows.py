"""Writes and tries policy rows: what is printed is what loads."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

from service.authorization.snapshot import Snapshot

_UNPRINTABLE = frozenset("\r\n\0\u2028\u2029\x0b\x0c\x85")


def row(*cells: str) -> str:
    """Write one row of policy.csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return (
        text.getvalue().replace(",", ", ") if not any("," in cell or '"' in cell for cell in cells) else text.getvalue()
    )


def comment(text: str) -> str:
    """Write one line that is no row, whatever *text* holds."""
    return "# " + "".join(" " if letter in _UNPRINTABLE else letter for letter in text)


def load(text: str, model: Path, registries: Iterable[str], name: str = "suggested.csv") -> Snapshot:
    """Load *text* as the gateway would.

    Raises:
        BadConfiguration: it would be refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(text, encoding="utf-8")
        return Snapshot(model, path, registries)
