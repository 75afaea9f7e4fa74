"""A thin client of a running gateway, for the command line: requests that are safe to repeat, and their answers."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from service.errors import BadConfiguration
from service.settings import TOKEN

DEFAULT_URL = "http://127.0.0.1:8080"
_TIMEOUT_SECONDS = 120.0
_TRIES = 5
_MAX_PAUSE_SECONDS = 30.0
_RETRIED = frozenset({408, 425, 429, 502, 503})
"""Nothing was done, or the Idempotency-Key sees to it that nothing is done twice."""


class Unreachable(Exception):
    """The gateway did not answer, or not in a way that can be understood."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the gateway answered."""

    status: int
    headers: Message
    body: bytes

    def document(self) -> dict[str, Any]:
        """Parse the body as a JSON object.

        Raises:
            Unreachable: it is none; something else than a gateway answers there.
        """
        try:
            parsed = json.loads(self.body)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            message = f"status {self.status}, and no JSON: is this a gateway?"
            raise Unreachable(message)
        return parsed

    def expect(self, **kinds: type) -> dict[str, Any]:
        """Parse the body as a JSON object with these fields of these types.

        Raises:
            Unreachable: it is none; something else than a gateway answers there.
        """
        document = self.document()
        lacking = [name for name, kind in kinds.items() if not isinstance(document.get(name), kind)]
        if lacking:
            message = f"status {self.status}, and no {lacking[0]!r} in its JSON: is this a gateway?"
            raise Unreachable(message)
        return document


class Client:
    """Talks to one gateway as one principal."""

    def __init__(self, url: str, token: str, ca_file: Path | None = None) -> None:
        """Talk to *url* with *token*; https is checked against *ca_file*, or what the system trusts.

        Raises:
            BadConfiguration: the URL or the file cannot be used.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            message = f"--url {url!r}: not an http or https URL"
            raise BadConfiguration(message)
        self._url = url.rstrip("/")
        self._token = token
        try:
            context = ssl.create_default_context(cafile=str(ca_file)) if ca_file else ssl.create_default_context()
        except (OSError, ssl.SSLError) as error:
            message = f"--ca-file {ca_file}: {error}"
            raise BadConfiguration(message) from None
        handlers = [urllib.request.HTTPSHandler(context=context), _NoRedirects()]
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str, accept: str = "application/json") -> Reply:
        """GET *path*. Raises Unreachable."""
        return self._send("GET", path, None, {"Accept": accept})

    def post(
        self, path: str, body: Mapping[str, Any], *, accept: str = "application/json", headers: Mapping[str, str] = {}
    ) -> Reply:
        """POST *body*; repeated safely under one Idempotency-Key. Raises Unreachable."""
        key = {"Idempotency-Key": str(uuid.uuid4()), "Content-Type": "application/json", "Accept": accept}
        return self._send("POST", path, json.dumps(body).encode(), {**key, **headers})

    def delete(self, path: str) -> Reply:
        """DELETE *path*, which is the same once or twice. Raises Unreachable."""
        return self._send("DELETE", path, None, {"Accept": "application/json"})

    def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        problem = ""
        for attempt in range(_TRIES):
            request = urllib.request.Request(self._url + path, body, dict(headers), method=method)  # noqa: S310  # http(s) only
            request.add_header("Authorization", f"Bearer {self._token}")
            try:
                with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as response:
                    return Reply(response.status, response.headers, response.read())
            except urllib.error.HTTPError as error:
                reply = Reply(error.code, error.headers, error.read())
                again = error.code in _RETRIED or (error.code == 409 and "Retry-After" in error.headers)
                if not again or attempt == _TRIES - 1:
                    return reply
                pause = _seconds(error.headers.get("Retry-After"), attempt)
            except (OSError, ValueError) as error:
                problem = str(getattr(error, "reason", error))
                if attempt == _TRIES - 1:
                    break
                pause = _seconds(None, attempt)
            time.sleep(pause)
        message = f"{self._url} cannot be reached: {problem}"
        raise Unreachable(message)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token goes to the configured gateway only."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow nothing."""


def _seconds(given: str | None, attempt: int) -> float:
    if given is not None and given.isdigit():
        return min(float(given), _MAX_PAUSE_SECONDS)
    return min(0.5 * float(2**attempt), _MAX_PAUSE_SECONDS)


def token_of(file: Path | None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the key: from *file*, else from the environment; never from the command line, which others can see.

    Raises:
        BadConfiguration: there is none, or the file cannot be read.
    """
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:  # the name is not repeated: it may be a key
            message = f"--token-file: {getattr(error, 'strerror', 'not UTF-8')}; name a file that holds the key"
            raise BadConfiguration(message) from None
        if not token:
            message = f"--token-file {file}: the file is empty; write the key into it"
            raise BadConfiguration(message)
        return token
    if not environ.get(TOKEN):
        message = f"set ${TOKEN}, or name a file with --token-file"
        raise BadConfiguration(message)
    return environ[TOKEN]


def model_path(registry: str, model: str, *parts: str) -> str:
    """Give the path below ``/v1`` of a model, each part encoded where it must be."""
    encoded = "/".join(quote(part, safe="-_.~@!$&'()*+,:=") for part in (registry, "models", model, *parts))
    return f"/v1/registries/{encoded}"
