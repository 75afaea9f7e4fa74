"""Keeps secrets out of what is recorded: userinfo of URLs, and values of sensitive tags. Pure."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

_USERINFO = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\\\s]*@")
_ENCODED_USERINFO = re.compile(r"((?:%3A|:)%2F%2F)(?:(?!%2F|%3F|%23|%5C)[^/?#\\\s])*(?:@|%40)", re.IGNORECASE)
_FACT = re.compile(r"(?:^|\.)tags(?:\.(?P<plain>\w+)|\[(?P<quote>['\"])(?P<quoted>.*)(?P=quote)\])$", re.DOTALL)
_HIDDEN = r"\g<1>***@"
_PREFIX = "hmac-sha256:"
_SAID = 4
"""A value of so many characters is also looked for in texts, such as the registry's answer."""
_BEGINNING = 12
"""So much of a long value is recognised in a text that was cut."""
_SENTENCES = frozenset({"because", "detail", "notes", "reason"})
"""What may quote a value. Names are never looked through: nobody hides what they change by a tag that is named so."""
_Secrets = Mapping[str, str]


class Masks:
    """Knows which tags are sensitive, and what stands for their values."""

    def __init__(self, patterns: Iterable[str] = (), key: bytes = b"") -> None:
        """Hide the values of tags whose key is one of *patterns* (``*``: any characters) behind HMACs under *key*."""
        parts = [".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns]
        self._sensitive = re.compile("|".join(parts), re.DOTALL | re.IGNORECASE) if parts else None
        self._key = key
        self.kid = hmac.new(key, b"registry-gateway key id", hashlib.sha256).hexdigest()[:8] if key else ""

    def tag(self, key: str, value: str) -> str:
        """Give the value of a tag as it is recorded: ``hmac-sha256:<kid>:<hex>`` where the key is sensitive."""
        if not self._hides(key) or self._stands_for_one(value):
            return value
        message = f"registry-gateway tag\0{key}\0{value}".encode("utf-8", "surrogatepass")
        return f"{_PREFIX}{self.kid}:{hmac.new(self._key, message, hashlib.sha256).hexdigest()}"

    def same_tag(self, recorded: str | None, key: str, value: str | None) -> bool | None:
        """Tell whether *value* is what was *recorded* of a tag; None where another key hid it."""
        if recorded is None or value is None:
            return recorded == value
        if recorded in (value, self.tag(key, value)):
            return True
        hidden = recorded.startswith(_PREFIX)
        return None if hidden and not (self._hides(key) and self._stands_for_one(recorded)) else False

    def same_text(self, recorded: str, text: str) -> bool:
        """Tell whether *text* is what was *recorded* without userinfo of URLs."""
        return recorded in (text, without_userinfo(text))

    def digest(self, digest: str, message: Any) -> str:
        """Give a *digest* of *message* as it is recorded: by a plain one a sensitive value could be guessed."""
        return self.keyed(digest) if self._secrets(message) else digest

    def keyed(self, digest: str) -> str:
        """Give *digest* under the key, if there is one."""
        return hmac.new(self._key, digest.encode(), hashlib.sha256).hexdigest() if self._key else digest

    def document(self, document: Any, *beside: Any) -> Any:
        """Give *document* as it is recorded; its sentences hold no value of a sensitive tag, in it or *beside* it."""
        if self._sensitive is None:
            return _plain(document)
        secrets: dict[str, str] = {}
        for item in (document, *beside):
            secrets.update(self._secrets(item))
        return self._masked(document, secrets)

    def answer(self, body: str) -> str:
        """Give the JSON *body* as it is recorded; one without a sensitive tag stays as it is."""
        if self._sensitive is None:
            return body
        try:
            document = json.loads(body)
        except ValueError:
            return body
        return json.dumps(self.document(document)) if self._secrets(document) else body

    def _hides(self, key: object) -> bool:
        """Tell whether *key* is that of a sensitive tag."""
        return self._sensitive is not None and isinstance(key, str) and self._sensitive.fullmatch(key) is not None

    def _stands_for_one(self, value: str) -> bool:
        """Tell whether *value* is a mask already: a document that is masked twice stays the same."""
        return re.fullmatch(rf"{_PREFIX}{self.kid}:[0-9a-f]{{64}}", value) is not None

    def _secrets(self, document: Any) -> dict[str, str]:
        """Map the values of sensitive tags in *document* to what stands for them."""
        if self._sensitive is None:
            return {}
        found = {value: self.tag(key, value) for key, value in _tags(document) if self._hides(key)}
        return {value: mask for value, mask in found.items() if value != mask}

    def _masked(self, value: Any, secrets: _Secrets, *, quotes: bool = False) -> Any:
        if isinstance(value, str):
            return _text(value, secrets if quotes else {})
        if isinstance(value, Mapping):
            pair = self._pair(value)
            return {
                _name(name): pair if pair is not None and name == "value" else self._item(name, item, secrets, quotes)
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._masked(item, secrets, quotes=quotes) for item in value]
        return _otherwise(value, lambda item: self._masked(item, secrets, quotes=quotes))

    def _pair(self, value: Mapping[Any, Any]) -> str | None:
        """Give the mask of ``{key, value}``, if that is a sensitive tag."""
        key, said = value.get("key"), value.get("value")
        return self.tag(key, said) if isinstance(key, str) and isinstance(said, str) and self._hides(key) else None

    def _item(self, name: Any, item: Any, secrets: _Secrets, quotes: bool) -> Any:
        if _holds_tags(name) and isinstance(item, Mapping):
            return self._of_tags(item)
        key = _key_of(name)
        if key is not None and isinstance(item, str) and self._hides(key):
            return self.tag(key, item)
        return self._masked(item, secrets, quotes=quotes or name in _SENTENCES)

    def _of_tags(self, tags: Mapping[Any, Any]) -> Any:
        return {
            _name(key): self.tag(key, item)
            if isinstance(item, str) and self._hides(key)
            else self._of_tags(item)
            if isinstance(item, Mapping)
            else self._masked(item, {})
            for key, item in tags.items()
        }


NO_MASKS = Masks()
"""Only the userinfo of URLs is hidden."""


def _plain(value: Any) -> Any:
    """Give *value* without userinfo of URLs, where no tag is sensitive: each event goes through it."""
    kind = type(value)
    if kind is str:
        return without_userinfo(value)
    if value is None or kind is bool or kind is int:
        return value
    if kind is dict:
        return {_name(name): _plain(item) for name, item in value.items()}
    if kind is list or kind is tuple:
        return [_plain(item) for item in value]
    return _otherwise(value, _plain)


def _otherwise(value: Any, mask: Callable[[Any], Any]) -> Any:
    """Give what is seldom in a document: numbers that JSON has not, and other kinds of mappings, lists and sets."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return without_userinfo(value)
    if isinstance(value, Mapping):
        return {_name(name): mask(item) for name, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(mask(item) for item in value)
    return [mask(item) for item in value] if isinstance(value, list | tuple) else value


def _name(name: Any) -> Any:
    return without_userinfo(name) if isinstance(name, str) else name


def _text(text: str, secrets: _Secrets) -> str:
    for value, mask in secrets.items():
        if len(value) >= _SAID:
            for spelt in dict.fromkeys((value, json.dumps(value)[1:-1], repr(value)[1:-1])):
                text = _replaced(text, spelt, mask)
    return without_userinfo(text)


def _replaced(text: str, value: str, mask: str) -> str:
    """Put *mask* for each *value* in *text*, also for one that was cut after its beginning."""
    beginning, at = value[:_BEGINNING], 0
    while (at := text.find(beginning, at)) >= 0:
        end = at + len(beginning)
        while end < len(text) and end - at < len(value) and text[end] == value[end - at]:
            end += 1
        text = text[:at] + mask + text[end:]
        at += len(mask)
    return text


def without_userinfo(text: str) -> str:
    """Give *text* with what stands before the @ of its URLs hidden."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    if "@" not in text and "%40" not in text:
        return text
    return _ENCODED_USERINFO.sub(_HIDDEN, _USERINFO.sub(_HIDDEN, text))


def _holds_tags(name: object) -> bool:
    return isinstance(name, str) and (name == "tags" or name.endswith((".tags", "_tags")))


def _key_of(name: object) -> str | None:
    """Return the key of the tag that the fact *name* is (``candidate.tags.x``), or None."""
    found = _FACT.search(name) if isinstance(name, str) and "tags" in name else None
    return None if found is None else found["plain"] or found["quoted"]


def _tags(document: Any) -> Iterator[tuple[str, str]]:
    """Find every tag in *document*: ``{key, value}``, entries of ``tags``, and facts that are tags."""
    if isinstance(document, Mapping):
        key, value = document.get("key"), document.get("value")
        if isinstance(key, str) and isinstance(value, str):
            yield key, value
        for name, item in document.items():
            if _holds_tags(name) and isinstance(item, Mapping):
                yield from _entries(item)
            elif isinstance(item, str) and (found := _key_of(name)) is not None:
                yield found, item
            else:
                yield from _tags(item)
    elif isinstance(document, list | tuple):
        for item in document:
            yield from _tags(item)


def _entries(tags: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    for key, item in tags.items():
        if isinstance(item, str):
            yield key, item
        elif isinstance(item, Mapping):
            yield from _entries(item)
