"""Text for terminals and Markdown tables, whatever the names in it hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(text: str) -> str:
    """Write control and format characters as escapes."""
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) in _UNPRINTABLE else letter
        for letter in text
    )


def code(text: str) -> str:
    """Write *text* as code in a Markdown table's cell."""
    plain = printable(text).replace("|", "\\|")
    return f"`{plain}`" if "`" not in plain else f"`` {plain} ``"


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names), *(f"| {' | '.join(cells)} |" for cells in rows)]
    return "\n".join(lines) + "\n"
