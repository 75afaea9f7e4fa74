"""The gateway's own signing keys: Ed25519, from files that nobody else may read; the public halves as a key set."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from service.authentication.keysets import KeySet, signing_key
from service.ed25519 import read_private

ALGORITHM = "EdDSA"


class SigningKeys:
    """Signs with one key; verifies with all, so that tokens outlive a change of keys."""

    def __init__(self, files: Sequence[tuple[str, Path]], signing: str) -> None:
        """Read *files* (``kid`` and path); sign with the key *signing*.

        Raises:
            BadConfiguration: a file is missing, may be read by others, or is no Ed25519 key in PEM (PKCS #8).
        """
        private = {kid: read_private(f"tokens.keys: {kid}: {path}", path) for kid, path in files}
        self._kid, self._key = signing, private[signing]
        self.document = {"keys": [_public(kid, key) for kid, key in private.items()]}
        """The key set (RFC 7517) that others verify with."""
        self.keys = KeySet(tuple(key for key in map(signing_key, self.document["keys"]) if key is not None))

    def sign(self, claims: Mapping[str, Any], kind: str) -> str:
        """Give *claims* as a compact JWT (RFC 7519) whose ``typ`` is *kind*."""
        header = {"alg": ALGORITHM, "kid": self._kid, "typ": kind}
        signed = f"{_segment(header)}.{_segment(claims)}"
        return f"{signed}.{_text(self._key.sign(signed.encode()))}"


def _public(kid: str, key: Ed25519PrivateKey) -> dict[str, str]:
    """Write the public half as RFC 8037 has it."""
    public = _text(key.public_key().public_bytes_raw())
    return {"kty": "OKP", "crv": "Ed25519", "x": public, "kid": kid, "use": "sig", "alg": ALGORITHM}


def _segment(document: Mapping[str, Any]) -> str:
    return _text(json.dumps(document, separators=(",", ":")).encode())


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
