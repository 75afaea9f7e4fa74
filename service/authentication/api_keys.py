"""Credentials -> Principal, by API keys of which only the SHA-256 is stored."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Collection
from pathlib import Path

from service.authentication.key_file import GROUP, PRINCIPAL, Key, keys_in
from service.errors import BadConfiguration, Unauthenticated
from service.files import read_text
from service.model import Principal

KEY_PREFIX = "rgw_"
MAX_KEY_CHARACTERS = 512
_FREED_AT_A_TIME = 200
_UNKNOWN = "The credential is unknown or has expired. Send a key as Authorization: Bearer, or as Basic's password."


class ApiKeys:
    """The keys of one file; `reload` follows it."""

    def __init__(
        self,
        path: Path,
        now: Callable[[], float] = time.time,
        *,
        registries: Collection[str] | None = None,
        used: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Load *path*; scopes may name *registries* only. *used* is told the id of each key that let somebody in.

        Raises:
            BadConfiguration: the file is wrong; file, line and key are named.
        """
        self._path = path
        self._now = now
        self._registries = registries
        self._used = used
        self._text = read_text(path)
        self._keys = self._parse(self._text)
        self._refused: tuple[str, BadConfiguration] | None = None

    def reload(self) -> bool:
        """Take the file's keys if its content changed; True if it did. A bad file leaves the old keys in force.

        Raises:
            BadConfiguration: the new content is wrong. The old keys stay.
        """
        text = read_text(self._path)
        if text == self._text:
            self._refused = None
            return False
        if self._refused is not None and text == self._refused[0]:  # it is as wrong as it was
            raise self._refused[1]
        try:
            keys = self._parse(text)
        except BadConfiguration as error:
            self._refused = text, error
            raise
        old = self._keys
        self._text, self._keys, self._refused = text, keys, None
        while old:  # piece by piece, so that nobody waits for it
            old.popitem()
            if len(old) % _FREED_AT_A_TIME == 0:
                time.sleep(0)
        return True

    def authenticate(self, authorization: str | None) -> Principal:
        """Return who sent the Authorization header *authorization* (RFC 9110, section 11.6.2).

        Raises:
            Unauthenticated: missing, malformed, unknown, revoked, expired or not yet valid; one sentence for all but
                the first.
        """
        if authorization is None:
            message = "Send an API key: Authorization: Bearer <key>, or Basic with the key as password."
            raise Unauthenticated(message)
        found = self._keys.get(hashlib.sha256(_key_of(authorization).encode()).hexdigest())
        if found is None or not found.holds(self._now()):
            raise Unauthenticated(_UNKNOWN)
        self._used(found.entry.id)
        return found.entry.principal_of()

    def _parse(self, text: str) -> dict[str, Key]:
        return {key.entry.sha256: key for key in keys_in(self._path, text, self._registries)}


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


def new_key() -> str:
    """Make a random key of 256 bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def entry_for(
    key: str, principal: str, groups: tuple[str, ...] = (), *, identifier: str = "", acting_for: str | None = None
) -> dict[str, object]:
    """Return the entry of the key file for *key*; the key itself is not in it.

    Raises:
        BadConfiguration: *principal*, *acting_for* or a group has no prefix.
    """
    for what, name in (("the principal", principal), ("--acting-for", acting_for)):
        if name is not None and not PRINCIPAL.fullmatch(name):
            message = f"{what} {name!r} is not user:… or service:…"
            raise BadConfiguration(message)
    for group in groups:
        if not GROUP.fullmatch(group):
            message = f"the group {group!r} is not group:…"
            raise BadConfiguration(message)
    return {
        "id": identifier or f"{principal.partition(':')[2]}-{secrets.token_hex(4)}",
        "principal": principal,
        "groups": list(groups),
        **({"acting_for": acting_for} if acting_for else {}),
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
    }
