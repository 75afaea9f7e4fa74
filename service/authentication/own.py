"""Tokens that the gateway signs itself, in exchange for an issuer's: the same principal, for some hours."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Collection
from typing import Any

import msgspec

from service.authentication.keysets import FixedKeys
from service.authentication.revoked import Revoked
from service.authentication.signing import ALGORITHM, SigningKeys
from service.authentication.tokens import TokenRules, Verifier, credential_id, parse, refused, shown
from service.errors import InvalidRequest
from service.model import Principal
from service.scope import item_problem

TYPE = "rgw+jwt"
"""The ``typ`` of no other token, so that none can be taken for one of these."""
MAX_SECONDS = 21_600
MAX_TOKEN_BYTES = 8 << 10
"""A request's headers have to hold it."""


class _Claims(msgspec.Struct, frozen=True):
    """What such a token says besides who signed it, and when."""

    sub: str
    orig_iss: str
    orig_id: str
    groups: tuple[str, ...] = ()
    acting_for: str | None = None
    orig: dict[str, Any] = {}
    scope: str | None = None


class OwnTokens:
    """Issues them and believes them."""

    def __init__(
        self,
        issuer: str,
        keys: SigningKeys,
        issuers: Collection[str],
        revoked: Revoked | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Sign as *issuer* with *keys*; *issuers* are those whose tokens can be exchanged."""
        self.issuer = issuer
        self._keys = keys
        self._issuers = frozenset(issuers)
        self._revoked = revoked
        self._now = now
        rules = TokenRules(issuer, issuer, frozenset({ALGORITHM}), max_lifetime_seconds=MAX_SECONDS, type=TYPE)
        self._verifier = Verifier(rules, FixedKeys(keys.keys), now)

    def issue(self, principal: Principal, scope: frozenset[str] | None, seconds: int) -> tuple[str, str]:
        """Return a token of *principal*, narrowed to *scope*, and the identifier that events show of it.

        It is not checked here that *scope* is narrower. Nothing is stored.

        Raises:
            InvalidRequest: the principal has so many groups and claims that no request could carry the token.
        """
        now = int(self._now())
        jti = secrets.token_urlsafe(16)
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": self.issuer,
            "sub": principal.subject,
            "groups": sorted(principal.groups),
            "jti": jti,
            "iat": now,
            "nbf": now,
            "exp": now + min(seconds, MAX_SECONDS),
            "orig_iss": principal.issuer,
            "orig_id": principal.credential,
            "orig": dict(principal.claims),
        }
        if principal.acting_for is not None:
            claims["acting_for"] = principal.acting_for
        if scope is not None:
            claims["scope"] = " ".join(sorted(scope))
        token = self._keys.sign(claims, TYPE)
        if len(token) > MAX_TOKEN_BYTES:
            message = (
                f"The token would have {len(token)} bytes, over {MAX_TOKEN_BYTES}: {len(principal.groups)} groups and "
                f"{len(json.dumps(claims['orig']))} bytes of claims. Have the issuer's mapping take fewer of them."
            )
            raise InvalidRequest(message)
        return token, credential_id(self.issuer, jti)

    def issued(self, text: str) -> bool:
        """Tell whether *text* says that it is one of these; nothing is verified.

        Raises:
            Unauthenticated: it is no token.
        """
        return parse(text).claims.get("iss") == self.issuer

    async def authenticate(self, text: str) -> Principal:
        """Return whose token *text* is.

        Raises:
            Unauthenticated: it is not good, or revoked, or its first issuer is not configured any more.
        """
        token = await self._verifier.verify(parse(text))
        try:
            claims = msgspec.convert(dict(token.claims), _Claims)
        except msgspec.ValidationError as error:
            raise refused(f"the token is not of this version: {shown(str(error))}") from None
        if claims.orig_iss not in self._issuers:
            raise refused(f"the issuer {shown(claims.orig_iss)} of the exchanged token is not configured")
        if token.jti is None:
            raise refused("jti is missing")
        first = dataclasses.replace(token, issuer=claims.orig_iss, id=claims.orig_id, jti=None)
        if self._revoked is not None and any(self._revoked.covers(one, claims.sub) for one in (token, first)):
            raise refused("the token, or the one it was exchanged for, is revoked")
        return Principal(
            claims.sub,
            frozenset(claims.groups),
            claims.acting_for,
            issuer=claims.orig_iss,
            credential=token.id,
            claims=claims.orig,
            scope=None if claims.scope is None else _scope(claims.scope),
            exchanged=True,
        )


def _scope(text: str) -> frozenset[str]:
    items = frozenset(text.split())
    if any(item_problem(item) for item in items):  # an action that this version does not know
        raise refused(f"the scope {shown(text)} is not of this version")
    return items
