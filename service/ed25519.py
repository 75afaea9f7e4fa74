"""Reads Ed25519 keys: private ones from files that nobody else may read, public ones from anywhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from service.errors import BadConfiguration

_MAX_BYTES = 16 << 10
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_private(where: str, path: Path) -> Ed25519PrivateKey:
    """Read a private key; *where* names it in errors.

    Raises:
        BadConfiguration: the file is missing, may be read by others, or is no Ed25519 key in PEM (PKCS #8).
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(_MAX_BYTES)
    except OSError as error:
        message = f"{where}: {error.strerror}"
        raise BadConfiguration(message) from None
    if mode & _OTHERS:
        message = f"{where}: others may read it (mode {mode:04o}); run: chmod 600 {path}"
        raise BadConfiguration(message)
    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        message = (
            f"{where}: not an Ed25519 key in PEM (PKCS #8) without password; "
            "make one: openssl genpkey -algorithm ed25519 -out FILE"
        )
        raise BadConfiguration(message)
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        BadConfiguration: the file is missing, or is no Ed25519 public key in PEM.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES)
    except OSError as error:
        message = f"{path}: {error.strerror}"
        raise BadConfiguration(message) from None
    try:
        key = load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        message = f"{path}: not an Ed25519 public key in PEM; make it: openssl pkey -in KEY -pubout -out FILE"
        raise BadConfiguration(message)
    return key
