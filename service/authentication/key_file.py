"""The file of API keys: what an entry may say, and whom it lets in."""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec

from service.errors import BadConfiguration
from service.files import YamlFile, yaml_items
from service.model import MAX_NAME_CHARACTERS, RESERVED, Principal
from service.scope import MAX_ITEMS, item_problem
from service.strict import has_control

MAX_KEYS = 20_000
PRINCIPAL = re.compile(r"(user|service):[^\s:][^:]*")
GROUP = re.compile(r"group:[^\s:][^:]*")
_MAX_ID = 200
_SHA256 = re.compile(r"[0-9a-f]{64}")


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One entry of the key file. The garbage collector passes over it: thousands of them would make it slow."""

    id: str
    principal: str
    sha256: str
    groups: tuple[str, ...] = ()
    acting_for: str | None = None
    """The person behind a pipeline: it counts as them where four eyes are asked, and has none of their rights."""
    scopes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """What the key is narrowed to, ``<registry>/<action>`` each; left out: all that its principal may."""
    not_before: Any = None
    expires: Any = None
    """Dates and times (ISO 8601), UTC unless they say otherwise; a date alone is its first instant."""
    revoked: bool = False

    def principal_of(self) -> Principal:
        """Say who sends this key."""
        return Principal(
            self.principal,
            frozenset(self.groups),
            acting_for=self.acting_for,
            credential=self.id,
            scope=None if self.scopes is msgspec.UNSET else frozenset(self.scopes),
        )


class Key(msgspec.Struct, frozen=True, gc=False):
    """An entry that was checked."""

    entry: KeyEntry
    begins: float | None
    ends: float | None

    def holds(self, now: float) -> bool:
        """Tell whether it lets somebody in at the time *now*."""
        begun = self.begins is None or self.begins <= now
        return begun and (self.ends is None or now < self.ends) and not self.entry.revoked

    def state(self, now: float) -> str:
        """Give ``active``, ``revoked``, ``expired`` or ``not yet``."""
        if self.entry.revoked:
            return "revoked"
        if self.ends is not None and self.ends <= now:
            return "expired"
        return "not yet" if self.begins is not None and now < self.begins else "active"


def keys_in(path: Path, text: str, registries: Collection[str] | None = None) -> Iterator[Key]:
    """Yield the keys of *text*, the content of *path*; scopes may name *registries* only, where they are given.

    Raises:
        BadConfiguration: the file is wrong; file, line and key are named. Keys before it were given.
    """
    identifiers: set[str] = set()
    digests: set[str] = set()
    for file in yaml_items(path, text):
        entry = file.convert(KeyEntry)
        found = _problem(entry, registries)
        if found:
            raise file.error(found[1], found[0])
        if entry.id in identifiers:
            raise file.error(f"the id {entry.id!r} stands twice", "id")
        if entry.sha256 in digests:
            raise file.error("the same sha256 stands twice", "sha256")
        if len(identifiers) >= MAX_KEYS:
            raise file.error(f"more than {MAX_KEYS} keys; take out those that have expired or are revoked", "id")
        identifiers.add(entry.id)
        digests.add(entry.sha256)
        yield Key(entry, _moment(entry, "not_before", file), _moment(entry, "expires", file))


def entry_problem(entry: KeyEntry, registries: Collection[str] | None = None) -> str | None:
    """Say what is wrong with *entry*, but for its times."""
    found = _problem(entry, registries)
    return found[1] if found else None


def _problem(entry: KeyEntry, registries: Collection[str] | None) -> tuple[str, str] | None:
    if not 0 < len(entry.id) <= _MAX_ID or has_control(entry.id):
        return "id", f"the id has 1 to {_MAX_ID} characters, no control or format characters among them"
    if not PRINCIPAL.fullmatch(entry.principal) or has_control(entry.principal):
        return "principal", f"the principal {entry.principal!r} is not user:… or service:…"
    if len(entry.principal) > MAX_NAME_CHARACTERS:
        return "principal", f"the principal has {len(entry.principal)} characters, over {MAX_NAME_CHARACTERS}"
    if entry.principal in RESERVED:
        return "principal", f"the principal {entry.principal!r} is the gateway's own word in events; take another"
    person = entry.acting_for
    if person is not None and (not PRINCIPAL.fullmatch(person) or has_control(person)):
        return "acting_for", f"acting_for {person!r} is not user:… or service:…"
    for group in entry.groups:
        if not GROUP.fullmatch(group) or has_control(group):
            return "groups", f"the group {group!r} is not group:…"
    if not _SHA256.fullmatch(entry.sha256):
        return "sha256", "sha256 is not 64 lower-case hexadecimal digits"
    if entry.scopes is msgspec.UNSET:
        return None
    if not 0 < len(entry.scopes) <= MAX_ITEMS:
        return "scopes", f"scopes has 1 to {MAX_ITEMS} items; left out, the key may all that its principal may"
    for item in entry.scopes:
        problem = item_problem(item)
        registry = item.partition("/")[0]
        if problem is None and registries is not None and registry not in ("*", *registries):
            problem = f"{item!r} names the registry {registry!r}; there are: {', '.join(registries)}"
        if problem:
            return "scopes", problem
    return None


def _moment(entry: KeyEntry, name: str, file: YamlFile) -> float | None:
    try:
        return moment(getattr(entry, name))
    except ValueError as error:
        raise file.error(f"{name} {error}", name) from None


def moment(value: Any) -> float | None:
    """Read a date, or a date and time, as YAML or a text gives it; UTC unless it says otherwise.

    Raises:
        ValueError: it is neither.
    """
    given = value
    message = f"{given!r} is not a date and time (ISO 8601)"
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(message) from None
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if value is None:
        return None
    if not isinstance(value, datetime.datetime):
        raise ValueError(message)  # noqa: TRY004  # of a file, as any other value that cannot be read
    return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()


def checked(path: Path, text: str, registries: Collection[str] | None = None) -> list[Key]:
    """List all keys of *text*.

    Raises:
        BadConfiguration: the file is wrong.
    """
    return list(keys_in(path, text, registries))


def problem_of(error: BadConfiguration, path: Path) -> str:
    """Give the sentence of *error* without its place in *path*."""
    return error.detail.removeprefix(f"{path}:").partition(": ")[2] or error.detail
