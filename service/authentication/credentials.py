"""One Authorization header -> who sent it: by the kind of credential that it holds."""

from __future__ import annotations

from service.authentication.api_keys import ApiKeys
from service.model import Principal


class Credentials:
    """All ways to authenticate that the configuration names."""

    def __init__(self, keys: ApiKeys) -> None:
        """Take API keys from *keys*."""
        self._keys = keys

    async def authenticate(self, authorization: str | None) -> Principal:
        """Return who sent the Authorization header *authorization* (RFC 9110, section 11.6.2).

        Raises:
            Unauthenticated: missing, malformed, unknown or expired; one sentence for all of the last three.
        """
        return self._keys.authenticate(authorization)
