"""What the gateway shows a registry of itself, and what it trusts: secrets in files, certificates."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable
from pathlib import Path

import structlog

from service.errors import BadConfiguration
from service.files import read_text

_log = structlog.get_logger()


class Secret:
    """A secret in a file, read again when the file changes; one that cannot be used leaves the old one in force."""

    def __init__(self, setting: str, path: Path, check: Callable[[str], None] = lambda _: None) -> None:
        """Read *path*; *setting* names it in errors. *check* raises ValueError for what must not be used.

        Raises:
            BadConfiguration: it cannot be read, is empty, holds more than one printable line, or must not be used.
        """
        self._check = check
        self._setting = setting
        self._path = path
        self._seen = self._stamp()
        self._text = self._read()

    def __call__(self) -> str:
        """Give the secret as the file holds it now."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp  # a broken file is named once
            try:
                self._text = self._read()
                _log.info("secret read again", setting=self._setting)
            except BadConfiguration as error:
                _log.error("the old secret stays in force", problem=error.detail)
        return self._text

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> str:
        try:
            text = read_text(self._path).strip()
        except BadConfiguration as error:
            message = f"{self._setting}: {error.detail}"
            raise BadConfiguration(message) from None
        if not text or not text.isprintable():  # it becomes a header
            message = f"{self._setting}: {self._path} must hold one line of printable text"
            raise BadConfiguration(message)
        try:
            self._check(text)
        except ValueError as error:
            message = f"{self._setting}: {error}"
            raise BadConfiguration(message) from None
        return text


def bearer(secret: Callable[[], str]) -> Callable[[], str]:
    """Give the Authorization header of a token."""
    return lambda: f"Bearer {secret()}"


def basic(username: str, secret: Callable[[], str]) -> Callable[[], str]:
    """Give the Authorization header of a user name and a password."""
    return lambda: "Basic " + base64.b64encode(f"{username}:{secret()}".encode()).decode()


def tls_context(setting: str, ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Build what an https registry is checked with; the server's name is always verified.

    With *ca* only its certificates are trusted, else the system's. *certificate* and *key* are shown to the server.

    Raises:
        BadConfiguration: a file cannot be used; the message begins with *setting* and the key at fault.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        message = f"{setting}.ca_file: {ca}: {_reason(error, 'no certificates in PEM form')}"
        raise BadConfiguration(message) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None and key is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except OSError as error:
            message = (
                f"{setting}.client_certificate_file, client_key_file: {certificate}, {key}: "
                f"{_reason(error, 'not a certificate and its unencrypted key in PEM form')}"
            )
            raise BadConfiguration(message) from None
        except ValueError:
            message = f"{setting}.client_key_file: {key}: an encrypted key cannot be used"
            raise BadConfiguration(message) from None
    return context


def _no_password() -> bytes:
    """Refuse an encrypted key; OpenSSL would ask on the terminal."""
    raise ValueError


def _reason(error: OSError, otherwise: str) -> str:
    return otherwise if isinstance(error, ssl.SSLError) else str(error.strerror or otherwise)
