"""Page tokens of searches: sealed, bound to who asked what, and tamper-evident.

A token holds the registry's own token (for MLflow a base64 offset) and how far its page was read. It is encrypted: an
offset counts the rows that the registry passed over, and with a filter of one's own that tells what hidden rows hold.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.errors import InvalidRequest
from service.model import Call

_NONCE_BYTES = 12
"""NIST SP 800-38D, section 8.2.2; drawn at random for each token."""
_STEP_BYTES = 256
"""Tokens have lengths in steps, so that a length tells nothing of an offset."""
_OF_THE_PAGE = frozenset({"page_token", "max_results"})


class PageTokens:
    """Writes and reads tokens under one secret."""

    def __init__(self, secret: bytes) -> None:
        """Seal with *secret*, at least 32 bytes; replicas that answer the same clients share it."""
        key = HKDF(SHA256(), length=32, salt=None, info=b"registry-gateway page tokens").derive(secret)
        self._cipher = AESGCM(key)

    def write(self, call: Call, state: list[Any]) -> str:
        """Give the token of *state*, for the same principal and the same query only."""
        body = json.dumps(state, separators=(",", ":")).encode()
        body += b" " * (-len(body) % _STEP_BYTES)
        nonce = os.urandom(_NONCE_BYTES)
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, body, _bound(call))).decode()

    def read(self, call: Call, token: str) -> list[Any]:
        """Return the state of a token.

        Raises:
            InvalidRequest: it was not given to this principal for this query, or was changed.
        """
        try:
            raw = _decoded(token)
            body = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound(call))
        except (ValueError, binascii.Error, InvalidTag):
            message = (
                "The page token was not given by this gateway for this caller and this query, or is older than its "
                "secret. Begin the search again without page_token."
            )
            raise InvalidRequest(message) from None
        state = json.loads(body)
        assert isinstance(state, list)  # only `write` can have sealed it
        return state


def _decoded(token: str) -> bytes:
    raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
    if base64.urlsafe_b64encode(raw).decode() != token:
        message = "the last character has several spellings"
        raise ValueError(message)
    return raw


def _bound(call: Call) -> bytes:
    message = call.request.message if call.request else {}
    query = {key: value for key, value in message.items() if key not in _OF_THE_PAGE}
    bound = json.dumps([call.principal.subject, call.registry, call.name, query], sort_keys=True).encode()
    return hashlib.sha256(bound).digest()
