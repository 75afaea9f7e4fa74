"""Says whether a compact JWT (RFC 7515, 7519) is good: who signed it, for whom, and when. Not what it is worth here."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from service.authentication.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS, MAX_LEEWAY_SECONDS
from service.authentication.keysets import MAX_KID_CHARACTERS, Keys
from service.errors import InvalidRequest, Unauthenticated
from service.strict import parse_json

MAX_TOKEN_BYTES = 16 << 10
REFUSED = "The token is not accepted; the gateway's audit log says why. Ask for a new one, or use an API key."
"""All that a caller is told."""
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")
_MAX_SHOWN = 200
_MAX_ID_CHARACTERS = 1024


def refused(reason: str) -> Unauthenticated:
    """Build the one answer to all bad tokens; *reason* is for the log and the event only."""
    return Unauthenticated(REFUSED, reason=reason)


def shown(value: object) -> str:
    """Quote what a token says, cut, with control characters escaped."""
    return ascii(value)[:_MAX_SHOWN]


def looks_like_token(text: str) -> bool:
    """Tell whether *text* has the shape of a compact JWS: three parts of Base64url."""
    return _SHAPE.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token that was taken apart. Nothing in it is true yet."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Token:
    """A token that its issuer signed, for us, for now."""

    issuer: str
    claims: Mapping[str, Any]
    id: str
    """sha256 (hex) of issuer and ``jti``; of what was signed where there is no ``jti``."""
    jti: str | None
    issued: float | None
    """Unix seconds."""
    expires: float


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token of one issuer must be."""

    issuer: str
    """Compared character by character with ``iss``."""
    audience: str
    algorithms: frozenset[str] = DEFAULT_ALGORITHMS
    leeway_seconds: float = 30.0
    max_lifetime_seconds: float = 86_400.0
    type: str | None = None
    """What ``typ`` must say, in any case and with or without ``application/``; None: it is not looked at."""


def parse(text: str) -> Unverified:
    """Take the compact token *text* apart, strictly. It is not verified.

    Raises:
        Unauthenticated: over 16 KiB, not three parts of Base64url, not JSON objects, a key twice, or ``crit``.
    """
    if len(text) > MAX_TOKEN_BYTES:
        raise refused(f"the token is over {MAX_TOKEN_BYTES} bytes")
    match = _COMPACT.fullmatch(text)
    if match is None:
        raise refused("the token is not three parts of Base64url")
    header = _object(match[1], "header")
    if "crit" in header:
        raise refused("the header has crit, and no extension is understood")
    claims = _object(match[2], "payload")
    return Unverified(header, claims, text[: match.end(2)].encode(), _decode(match[3], "signature"))


def _object(part: str, what: str) -> dict[str, Any]:
    try:
        document = parse_json(_decode(part, what))
    except InvalidRequest as error:
        raise refused(f"the {what} is not strict JSON: {shown(error.detail)}") from None
    if not isinstance(document, dict):
        raise refused(f"the {what} is not a JSON object")
    return document


def _decode(part: str, what: str) -> bytes:
    try:
        raw = base64.b64decode(part + "=" * (-len(part) % 4), b"-_", validate=True)
    except ValueError:
        raise refused(f"the {what} is not Base64url") from None
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != part.encode():  # one spelling: a token has one identity
        raise refused(f"the {what} is not Base64url in its only spelling")
    return raw


class Verifier:
    """Verifies the tokens of one issuer for one audience."""

    def __init__(self, rules: TokenRules, keys: Keys, now: Callable[[], float] = time.time) -> None:
        """Verify by *rules* with *keys*.

        Raises:
            ValueError: an algorithm is none of `ALGORITHMS`, or the leeway is over 60 seconds.
        """
        if not rules.algorithms or not rules.algorithms <= ALGORITHMS.keys():
            message = f"algorithms are of: {', '.join(ALGORITHMS)}"
            raise ValueError(message)
        if not 0 <= rules.leeway_seconds <= MAX_LEEWAY_SECONDS:
            message = f"leeway_seconds is 0 to {MAX_LEEWAY_SECONDS}"
            raise ValueError(message)
        self.rules = rules
        self._keys = keys
        self._now = now

    async def verify(self, token: Unverified) -> Token:
        """Return *token* as one to be believed.

        Raises:
            Unauthenticated: it is not this issuer's, not for us, not signed by one of its keys, or not for now.
            IdentityUnavailable: the issuer's keys cannot be had. The token is neither good nor bad.
        """
        rules, claims = self.rules, token.claims
        if claims.get("iss") != rules.issuer:
            raise refused(f"the issuer {shown(claims.get('iss'))} is not {rules.issuer!r}")
        if rules.audience not in audiences(claims):
            raise refused(f"the audience {shown(claims.get('aud'))} does not hold {rules.audience!r}")
        self._check_type(token.header)
        await self._check_signature(token)
        issued, expires = self._check_times(claims)
        jti = claims.get("jti")
        if jti is not None and (not isinstance(jti, str) or not 0 < len(jti) <= _MAX_ID_CHARACTERS):
            raise refused("jti is not a text of 1 to 1024 characters")
        named = credential_id(rules.issuer, jti) if jti is not None else hashlib.sha256(token.signed).hexdigest()
        return Token(rules.issuer, claims, named, jti, issued, expires)

    def _check_type(self, header: Mapping[str, Any]) -> None:
        if self.rules.type is None:
            return
        found = header.get("typ")
        if not isinstance(found, str) or _media_type(found) != _media_type(self.rules.type):
            raise refused(f"typ is {shown(found)}, not {self.rules.type!r}")

    async def _check_signature(self, token: Unverified) -> None:
        algorithm, kid = token.header.get("alg"), token.header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self.rules.algorithms:
            raise refused(f"alg {shown(algorithm)} is not one of {', '.join(sorted(self.rules.algorithms))}")
        if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID_CHARACTERS):
            raise refused(f"kid is not a text of 1 to {MAX_KID_CHARACTERS} characters")
        # the key comes from the issuer's set: jku, x5u, x5c and jwk are never read
        key = await self._keys.find(kid, algorithm)
        if key is None:
            named = "without kid, and the issuer has not exactly one key" if kid is None else f"by kid {shown(kid)}"
            raise refused(f"there is no one key {named} for {algorithm}")
        if not key.verifies(algorithm, token.signed, token.signature):
            raise refused("the signature is wrong")

    def _check_times(self, claims: Mapping[str, Any]) -> tuple[float | None, float]:
        now, leeway = self._now(), self.rules.leeway_seconds
        expires, begins, issued = (_instant(claims, name) for name in ("exp", "nbf", "iat"))
        if expires is None:
            raise refused("exp is missing")
        if expires + leeway <= now:
            raise refused(f"it expired {now - expires:.0f} s ago")
        if begins is not None and begins - leeway > now:
            raise refused(f"it is not valid before {begins - now:.0f} s from now (nbf)")
        if issued is not None and issued - leeway > now:
            raise refused(f"it was issued {issued - now:.0f} s from now (iat)")
        lifetime = expires - (now if issued is None else issued)
        if lifetime > self.rules.max_lifetime_seconds:
            raise refused(f"it lives {lifetime:.0f} s, over max_lifetime_seconds {self.rules.max_lifetime_seconds:.0f}")
        return issued, expires


def credential_id(issuer: str, jti: str) -> str:
    """Name a token as events do: sha256 (hex) of *issuer* and *jti*."""
    return hashlib.sha256(f"{issuer}\0{jti}".encode()).hexdigest()


def audiences(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return who the token says it is for: a text, or a list of texts and nothing else."""
    found = claims.get("aud")
    several = [found] if isinstance(found, str) else found
    if not isinstance(several, list) or not all(isinstance(item, str) for item in several):
        raise refused(f"the audience {shown(found)} is not a text or a list of texts")
    return frozenset(several)


def _media_type(text: str) -> str:
    return text.lower().removeprefix("application/")


def _instant(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    found = claims[name]
    try:
        seconds = float(found) if isinstance(found, int | float) and not isinstance(found, bool) else math.nan
    except OverflowError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise refused(f"{name} is not a number of seconds")
    return seconds
