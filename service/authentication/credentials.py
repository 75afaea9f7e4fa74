"""One Authorization header -> who sent it: by the kind of credential that it holds."""

from __future__ import annotations

import base64

from service.authentication.api_keys import ApiKeys
from service.authentication.issuers import Issuers
from service.authentication.own import OwnTokens
from service.authentication.tokens import looks_like_token, refused
from service.errors import Unauthenticated
from service.model import Principal

_NO_KEYS = "The credential is not accepted. Send a token of a configured issuer: Authorization: Bearer <token>."
_MISSING = "Send a token or an API key: Authorization: Bearer <token or key>, or Basic with the key as password."


class Credentials:
    """All ways to authenticate that the configuration names."""

    def __init__(self, keys: ApiKeys | None, issuers: Issuers | None = None, own: OwnTokens | None = None) -> None:
        """Take API keys from *keys*, tokens of *issuers*, and those the gateway issues itself."""
        self._keys = keys
        self._issuers = issuers
        self._own = own

    async def authenticate(self, authorization: str | None) -> Principal:
        """Return who sent the Authorization header *authorization* (RFC 9110, section 11.6.2).

        Raises:
            Unauthenticated: missing, malformed, unknown or expired; one sentence for all of the last three.
            IdentityUnavailable: the keys of a token's issuer cannot be had. The token is neither good nor bad.
        """
        if self._issuers is not None:
            if authorization is None:
                raise Unauthenticated(_MISSING if self._keys is not None else _NO_KEYS)
            scheme, _, value = authorization.partition(" ")
            value = value.strip()
            if scheme.lower() == "bearer" and looks_like_token(value):
                if self._own is not None and self._own.issued(value):
                    return await self._own.authenticate(value)
                return await self._issuers.authenticate(value)
            if scheme.lower() == "basic" and looks_like_token(_password(value)):
                raise refused("a token came as Basic's password; it is taken as Bearer only")
        if self._keys is None:
            raise Unauthenticated(_NO_KEYS)
        return self._keys.authenticate(authorization)


def _password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:  # not ASCII, not Base64, not UTF-8
        return ""
