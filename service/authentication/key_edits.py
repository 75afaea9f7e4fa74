"""Changes to the key file: as small as can be, so that comments stay; whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from service.authentication.key_file import Key, checked
from service.errors import BadConfiguration
from service.files import read_text

_BOM = "\ufeff"


def edit(
    path: Path, change: Callable[[str], str], registries: Collection[str] | None = None, *, make: bool = False
) -> list[Key]:
    """Replace *path* by what *change* makes of its text; return its keys then. One edit at a time.

    Mode and owner stay; a symlink stays one. A reader sees the old file or the new one. *make* a new file, mode 0600,
    where there is none.

    Raises:
        BadConfiguration: the file is wrong, before or after; it cannot be written. Nothing was changed.
    """
    try:
        real = path.resolve()
        with _alone(real.parent):
            there = real.exists() or not make
            old = read_text(real) if there else ""
            checked(path, old, registries)
            bom = old[:1] if old.startswith(_BOM) else ""
            new = bom + change(old.removeprefix(_BOM))
            keys = checked(path, new, registries)
            _replace(real, new, real.stat() if there else None)
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise BadConfiguration(message) from None
    return keys


def with_fields(text: str, identifier: str, **fields: Any) -> str:
    """Set *fields* of the entry with the id *identifier*; nothing else of *text* changes.

    Raises:
        BadConfiguration: there is no such entry.
    """
    for name, value in fields.items():
        text = _with_field(text, identifier, name, json.dumps(value))
    return text


def with_entry(text: str, entry: dict[str, Any]) -> str:
    """Add *entry* at the end of the list.

    Raises:
        BadConfiguration: the text is no list.
    """
    root = yaml.compose(text, Loader=yaml.CSafeLoader)
    if root is None or not root.value:
        kept = text if root is None else text[: _mark(root.start_mark)] + text[_mark(root.end_mark) :]
        return _lines(kept) + yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    if not isinstance(root, yaml.SequenceNode):
        message = "the key file is not a list"
        raise BadConfiguration(message)
    if root.flow_style:
        last = _mark(root.value[-1].end_mark)
        return f"{text[:last]}, {json.dumps(entry)}{text[last:]}"
    indent = " " * int(root.start_mark.column if root.start_mark else 0)
    added = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    return _lines(text) + "".join(indent + line for line in added.splitlines(keepends=True))


def _with_field(text: str, identifier: str, name: str, value: str) -> str:
    root = yaml.compose(text, Loader=yaml.CSafeLoader)
    for item in root.value if isinstance(root, yaml.SequenceNode) else ():
        pairs = {str(key.value): (key, node) for key, node in item.value}
        if pairs["id"][1].value != identifier:
            continue
        if name in pairs:
            begin, end = (_mark(mark) for mark in (pairs[name][1].start_mark, pairs[name][1].end_mark))
            return text[:begin] + (value if end > begin else f" {value}") + text[end:]  # "expires:" says nothing
        first, second = item.value[0][0], item.value[1][0]
        if item.flow_style:
            at = _mark(first.start_mark)
            return f"{text[:at]}{name}: {value}, {text[at:]}"
        at = _mark(second.start_mark)
        return f"{text[:at]}{name}: {value}\n{' ' * second.start_mark.column}{text[at:]}"
    message = f"no key has the id {identifier!r}; `registry-gateway key list` lists them"
    raise BadConfiguration(message)


def _mark(mark: Any) -> int:
    return int(mark.index)


def _lines(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock: of two commands at once, the second sees what the first wrote."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _replace(path: Path, text: str, old: os.stat_result | None) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            if old is not None:
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                os.fchmod(file.fileno(), old.st_mode & 0o7777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
