"""The revocation list: tokens that are refused although their issuer signed them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from service.authentication.key_file import moment
from service.authentication.tokens import Token, credential_id
from service.files import YamlFile, read_text

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the list. It names a token (``jti`` or ``credential``), or a principal."""

    jti: str | None = None
    issuer: str | None = None
    """With ``jti``: only of this issuer."""
    credential: str | None = None
    """The hash that events show of a token."""
    subject: str | None = None
    """A principal: ``user:…`` or ``service:…``."""
    before: Any = None
    """With ``subject``: only tokens issued before this time; those that do not say when count as such."""
    until: Any = None
    """The line counts until this time."""
    because: str = ""


@dataclass(frozen=True, slots=True)
class _Line:
    entry: Entry
    before: float | None
    until: float | None


class Revoked:
    """The list in one file; `reload` follows it."""

    def __init__(
        self, path: Path, now: Callable[[], float] = time.time, *, issuers: Collection[str] | None = None
    ) -> None:
        """Read *path*. An empty file revokes nothing. Lines may name *issuers* only, where they are given.

        Raises:
            BadConfiguration: the file is missing or wrong; file, line and key are named.
        """
        self._path = path
        self._now = now
        self._issuers = issuers
        self._text = read_text(path)
        self._lines = _parse(path, self._text, issuers)
        self._jtis: dict[str, dict[str, str]] = {}

    def reload(self) -> bool:
        """Take the file's lines if its content changed; True if it did.

        Raises:
            BadConfiguration: the new content is wrong. What was revoked stays so.
        """
        text = read_text(self._path)
        if text == self._text:
            return False
        lines = _parse(self._path, text, self._issuers)
        self._text, self._lines, self._jtis = text, lines, {}
        return True

    def covers(self, token: Token, subject: str) -> bool:
        """Tell whether *token*, which is of the principal *subject*, is revoked.

        One whose ``jti`` is not known is found by its id: what was exchanged for a token keeps no more of it.
        """
        found = [*self._lines.get(("credential", token.id), ()), *self._lines.get(("subject", subject), ())]
        jti = self._jtis_of(token.issuer).get(token.id) if token.jti is None else token.jti
        if jti is not None:
            found += self._lines.get(("jti", jti), ())
        return any(self._counts(line, token) for line in found)

    def _jtis_of(self, issuer: str) -> dict[str, str]:
        """Return each ``jti`` of the list by the id that a token of *issuer* with it has."""
        found = self._jtis.get(issuer)
        if found is None:
            named = [value for key, value in self._lines if key == "jti"]
            found = self._jtis[issuer] = {credential_id(issuer, jti): jti for jti in named}
        return found

    def _counts(self, line: _Line, token: Token) -> bool:
        if line.until is not None and line.until <= self._now():
            return False
        if line.entry.issuer is not None and line.entry.issuer != token.issuer:
            return False
        return line.before is None or token.issued is None or token.issued < line.before


def _parse(path: Path, text: str, issuers: Collection[str] | None) -> dict[tuple[str, str], list[_Line]]:
    file = YamlFile(path, text)
    lines: dict[tuple[str, str], list[_Line]] = {}
    for index, entry in enumerate(file.convert(tuple[Entry, ...]) if file.data else ()):
        named = [(key, value) for key in ("jti", "credential", "subject") if (value := getattr(entry, key)) is not None]
        if len(named) != 1:
            raise file.error("a line names one of: jti, credential, subject", index)
        key, value = named[0]
        if key == "credential" and not _SHA256.fullmatch(value):
            raise file.error("credential is not 64 lower-case hexadecimal digits", index, key)
        if key == "subject" and not value.startswith(("user:", "service:")):
            raise file.error(f"the subject {value!r} is not user:… or service:…", index, key)
        if entry.issuer is not None and key != "jti":
            raise file.error("issuer goes with jti", index, "issuer")
        if entry.issuer is not None and issuers is not None and entry.issuer not in issuers:
            problem = f"no issuer {entry.issuer!r} is configured, so the line would end nothing"
            raise file.error(f"{problem}; there are: {', '.join(sorted(issuers))}", index, "issuer")
        if entry.before is not None and key != "subject":
            raise file.error("before goes with subject", index, "before")
        before, until = (_instant(getattr(entry, name), file, index, name) for name in ("before", "until"))
        lines.setdefault((key, value), []).append(_Line(entry, before, until))
    return lines


def _instant(value: Any, file: YamlFile, index: int, key: str) -> float | None:
    try:
        return moment(value)
    except ValueError as error:
        raise file.error(str(error), index, key) from None
