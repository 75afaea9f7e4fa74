"""Credentials -> Principal, by API keys of which only the SHA-256 is stored."""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from service.errors import BadConfiguration, Unauthenticated
from service.files import YamlFile, read_text
from service.model import Principal
from service.strict import has_control

KEY_PREFIX = "rgw_"
MAX_KEY_CHARACTERS = 512
_PRINCIPAL = re.compile(r"(user|service):[^\s:][^:]*")
_GROUP = re.compile(r"group:[^\s:][^:]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNKNOWN = "The credential is unknown or has expired. Send a key as Authorization: Bearer, or as Basic's password."


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the key file."""

    id: str
    principal: str
    sha256: str
    groups: tuple[str, ...] = ()
    acting_for: str | None = None
    """The person behind a pipeline: it counts as them where four eyes are asked, and has none of their rights."""
    expires: Any = None
    """A date and time (ISO 8601), UTC unless it says otherwise; a date alone is its first instant."""


class _Key(msgspec.Struct, frozen=True):
    principal: Principal
    expires: float | None


class ApiKeys:
    """The keys of one file; `reload` follows it."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        """Load *path*.

        Raises:
            BadConfiguration: the file is wrong; file, line and key are named.
        """
        self._path = path
        self._now = now
        self._text = read_text(path)
        self._keys = _parse(path, self._text)

    def reload(self) -> bool:
        """Take the file's keys if its content changed; True if it did. A bad file leaves the old keys in force.

        Raises:
            BadConfiguration: the new content is wrong. The old keys stay.
        """
        text = read_text(self._path)
        if text == self._text:
            return False
        keys = _parse(self._path, text)
        self._text, self._keys = text, keys
        return True

    def authenticate(self, authorization: str | None) -> Principal:
        """Return who sent the Authorization header *authorization* (RFC 9110, section 11.6.2).

        Raises:
            Unauthenticated: missing, malformed, unknown or expired; one sentence for all of the last three.
        """
        if authorization is None:
            message = "Send an API key: Authorization: Bearer <key>, or Basic with the key as password."
            raise Unauthenticated(message)
        found = self._keys.get(hashlib.sha256(_key_of(authorization).encode()).hexdigest())
        if found is None or (found.expires is not None and found.expires <= self._now()):
            raise Unauthenticated(_UNKNOWN)
        return found.principal


def _key_of(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "basic":
        try:
            value = base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # not ASCII, not Base64, not UTF-8
            raise Unauthenticated(_UNKNOWN) from None
    elif scheme.lower() != "bearer":
        raise Unauthenticated(_UNKNOWN)
    if not 0 < len(value) <= MAX_KEY_CHARACTERS:
        raise Unauthenticated(_UNKNOWN)
    return value


def _parse(path: Path, text: str) -> dict[str, _Key]:
    file = YamlFile(path, text)
    entries = file.convert(tuple[KeyEntry, ...]) if file.data else ()
    keys: dict[str, _Key] = {}
    identifiers: set[str] = set()
    for index, entry in enumerate(entries):
        if entry.id in identifiers:
            raise file.error(f"the id {entry.id!r} stands twice", index, "id")
        if not _PRINCIPAL.fullmatch(entry.principal) or has_control(entry.principal):
            raise file.error(f"the principal {entry.principal!r} is not user:… or service:…", index, "principal")
        person = entry.acting_for
        if person is not None and (not _PRINCIPAL.fullmatch(person) or has_control(person)):
            raise file.error(f"acting_for {person!r} is not user:… or service:…", index, "acting_for")
        for group in entry.groups:
            if not _GROUP.fullmatch(group) or has_control(group):
                raise file.error(f"the group {group!r} is not group:…", index, "groups")
        if not _SHA256.fullmatch(entry.sha256):
            raise file.error("sha256 is not 64 lower-case hexadecimal digits", index, "sha256")
        if entry.sha256 in keys:
            raise file.error("the same sha256 stands twice", index, "sha256")
        identifiers.add(entry.id)
        principal = Principal(entry.principal, frozenset(entry.groups), acting_for=person, credential=entry.id)
        keys[entry.sha256] = _Key(principal, _expiry(entry, file, index))
    return keys


def _expiry(entry: KeyEntry, file: YamlFile, index: int) -> float | None:
    expires = entry.expires
    try:
        if isinstance(expires, str):
            expires = datetime.datetime.fromisoformat(expires)
        if isinstance(expires, datetime.date) and not isinstance(expires, datetime.datetime):
            expires = datetime.datetime.combine(expires, datetime.time())
    except ValueError:
        raise file.error(f"expires {entry.expires!r} is not a date and time (ISO 8601)", index, "expires") from None
    if expires is None:
        return None
    if not isinstance(expires, datetime.datetime):
        raise file.error(f"expires {entry.expires!r} is not a date and time (ISO 8601)", index, "expires")
    return (expires if expires.tzinfo else expires.replace(tzinfo=datetime.UTC)).timestamp()


def new_key() -> str:
    """Make a random key of 256 bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def entry_for(
    key: str, principal: str, groups: tuple[str, ...] = (), *, identifier: str = "", acting_for: str | None = None
) -> dict[str, object]:
    """Return the line of the key file for *key*; the key itself is not in it.

    Raises:
        BadConfiguration: *principal*, *acting_for* or a group has no prefix.
    """
    for what, name in (("the principal", principal), ("--acting-for", acting_for)):
        if name is not None and not _PRINCIPAL.fullmatch(name):
            message = f"{what} {name!r} is not user:… or service:…"
            raise BadConfiguration(message)
    for group in groups:
        if not _GROUP.fullmatch(group):
            message = f"the group {group!r} is not group:…"
            raise BadConfiguration(message)
    return {
        "id": identifier or f"{principal.partition(':')[2]}-{secrets.token_hex(4)}",
        "principal": principal,
        "groups": list(groups),
        **({"acting_for": acting_for} if acting_for else {}),
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
    }
