"""Page tokens of searches: opaque, bound to who asked what, and tamper-evident.

A token shows the registry's own token (for MLflow a base64 offset) and how far its page was read. It is signed,
not encrypted: who holds it learns how many rows the registry passed over, and can change nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from typing import Any

from service.errors import InvalidRequest
from service.model import Call

_MAC_BYTES = 16
_OF_THE_PAGE = frozenset({"page_token", "max_results"})


class PageTokens:
    """Writes and reads tokens under one secret."""

    def __init__(self, secret: bytes) -> None:
        """Sign with *secret*, at least 32 bytes; replicas that answer the same clients share it."""
        self._secret = secret

    def write(self, call: Call, state: list[Any]) -> str:
        """Give the token of *state*, for the same principal and the same query only."""
        body = json.dumps(state, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._mac(call, body) + body).decode()

    def read(self, call: Call, token: str) -> list[Any]:
        """Return the state of a token.

        Raises:
            InvalidRequest: it was not given to this principal for this query, or was changed.
        """
        try:
            raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raw = b""
        mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
        same = hmac.compare_digest(mac, self._mac(call, body))
        if not same or base64.urlsafe_b64encode(raw).decode() != token:  # the last character has spellings
            message = (
                "The page token was not given by this gateway for this caller and this query, or is older than its "
                "secret. Begin the search again without page_token."
            )
            raise InvalidRequest(message)
        state = json.loads(body)
        assert isinstance(state, list)  # only `write` can have signed it
        return state

    def _mac(self, call: Call, body: bytes) -> bytes:
        message = call.request.message if call.request else {}
        query = {key: value for key, value in message.items() if key not in _OF_THE_PAGE}
        bound = json.dumps([call.principal.subject, call.registry, call.name, query], sort_keys=True).encode()
        return hmac.digest(self._secret, hashlib.sha256(bound).digest() + body, "sha256")[:_MAC_BYTES]
