"""Tokens of OpenID issuers -> Principal: the configured issuers, and nobody whom a token itself names."""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.authentication.issuer import Issuer
from service.authentication.jwks import FileKeys, RemoteKeys
from service.authentication.revoked import Revoked
from service.authentication.templates import ClaimError, claim
from service.authentication.tokens import Token, TokenRules, Verifier, audiences, parse, refused, shown
from service.errors import Unauthenticated
from service.model import RESERVED, Principal

_MAX_VALUE_CHARACTERS = 1000
_MAX_VALUES = 100
_OVERAGE = (
    "The token leaves out groups because there are too many ({name}), so what its caller may do cannot be told. "
    "Let the issuer put only the groups assigned to the application into its tokens, or use application roles."
)


class Mapped:
    """One configured issuer: verifies its tokens and says who they are."""

    def __init__(self, settings: Issuer, keys: RemoteKeys | FileKeys, now: Callable[[], float]) -> None:
        """Take the mapping from *settings*, which were checked."""
        self.settings = settings
        self.keys = keys
        rules = TokenRules(
            settings.issuer,
            settings.audience,
            frozenset(settings.algorithms),
            settings.leeway_seconds,
            settings.lifetime_seconds,
            settings.typ,
        )
        self.verifier = Verifier(rules, keys, now)
        self._principal = settings.principal_template()
        self._groups = settings.group_templates()
        named = {name for template in self._groups for name in template.names() if not name.startswith("/")}
        left_out = (f"/_claim_names/{name}" for name in sorted(named))  # OpenID Connect Core 1.0, section 5.6.2
        self._refuse = tuple(dict.fromkeys((*settings.defaults.refuse, *left_out)))
        self._acting_for = settings.acting_for_template()
        self._claims = settings.claim_names()

    def principal(self, token: Token) -> Principal:
        """Return who sent *token*.

        Raises:
            Unauthenticated: a claim is not as required, may not become a part of a name, or groups were left out.
        """
        claims = token.claims
        for name, wanted in self.settings.require.items():
            if not _is_one_of(_value(claims, name), wanted):
                found = _value(claims, name)
                says = "missing" if found is None else shown(found)
                raise refused(f"the claim {name!r} is {says}, and {shown(wanted)} is required")
        for name in self._refuse:
            if _value(claims, name) is not None:
                raise Unauthenticated(_OVERAGE.format(name=name), reason=f"groups are left out of the token ({name})")
        try:
            subject = self._principal.fill(claims)
            if subject in RESERVED:
                raise refused(f"{subject!r} is the gateway's own word in events")
            return Principal(
                subject,
                frozenset().union(*(template.fill_each(claims) for template in self._groups)),
                self._acting_for.fill(claims) if self._acting_for else None,
                issuer=token.issuer,
                credential=token.id,
                claims={name: value for name in self._claims if (value := _told(_value(claims, name))) is not None},
            )
        except ClaimError as error:
            raise refused(str(error)) from None


class Issuers:
    """All configured issuers."""

    def __init__(
        self,
        settings: Sequence[Issuer],
        path: Callable[[str], Path],
        tls: Callable[[str, Path], ssl.SSLContext],
        revoked: Revoked | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Serve *settings*; *path* resolves their files, *tls* builds a context for a setting and its ``ca_file``.

        Raises:
            BadConfiguration: a file is wrong.
        """
        self._revoked = revoked
        self._sources: dict[tuple[object, ...], RemoteKeys | FileKeys] = {}
        self._by_issuer: dict[str, list[Mapped]] = {}
        for index, one in enumerate(settings):
            source = (one.jwks_file, one.keys_url, one.ca_file, one.jwks_refresh_seconds, one.jwks_stale_seconds)
            if source not in self._sources:
                self._sources[source] = self._keys_of(one, index, path, tls)
            self._by_issuer.setdefault(one.issuer, []).append(Mapped(one, self._sources[source], now))

    @staticmethod
    def _keys_of(
        one: Issuer, index: int, path: Callable[[str], Path], tls: Callable[[str, Path], ssl.SSLContext]
    ) -> RemoteKeys | FileKeys:
        if one.jwks_file:
            return FileKeys(path(one.jwks_file))
        context = tls(f"authentication.issuers.{index}", path(one.ca_file)) if one.ca_file else None
        return RemoteKeys(
            one.keys_url or "",
            context,
            refresh_seconds=one.jwks_refresh_seconds,
            stale_seconds=one.jwks_stale_seconds,
        )

    async def authenticate(self, text: str) -> Principal:
        """Return who sent the compact token *text*.

        Raises:
            Unauthenticated: it is not good, revoked, or names nobody; one sentence for all, and the reason apart.
            IdentityUnavailable: the keys of its issuer cannot be had. The token is neither good nor bad.
        """
        unverified = parse(text)
        issuer = unverified.claims.get("iss")
        mapped = self._by_issuer.get(issuer, ()) if isinstance(issuer, str) else ()
        if not mapped:
            raise refused(f"the issuer {shown(issuer)} is not configured")
        named = audiences(unverified.claims)
        ours = [one for one in mapped if one.settings.audience in named]
        if len(ours) != 1:
            raise refused(f"the audience {shown(sorted(named))} is {'several' if ours else 'none'} of this issuer's")
        token = await ours[0].verifier.verify(unverified)
        principal = ours[0].principal(token)
        if self._revoked is not None and self._revoked.covers(token, principal.subject):
            raise refused("the token is revoked")
        return principal

    def start(self) -> None:
        """Begin to fetch keys."""
        for keys in self._sources.values():
            if isinstance(keys, RemoteKeys):
                keys.start()

    async def close(self) -> None:
        """Stop fetching keys."""
        for keys in self._sources.values():
            if isinstance(keys, RemoteKeys):
                await keys.close()

    def states(self) -> dict[str, str]:
        """Return of each issuer whether its keys are ``up``, ``stale``, ``down`` or ``unknown`` (not tried yet)."""
        worst = ("down", "stale", "unknown", "up")
        return {
            issuer: min((one.keys.state for one in mapped), key=worst.index)
            for issuer, mapped in self._by_issuer.items()
        }

    def files(self) -> list[tuple[str, Callable[[], bool]]]:
        """List what is followed: a name for the log and what reads it again."""
        keys = [
            (f"jwks_file {source[0]}", keys.reload)
            for source, keys in self._sources.items()
            if isinstance(keys, FileKeys)
        ]
        return keys + ([("revoked", self._revoked.reload)] if self._revoked is not None else [])


def _value(claims: Mapping[str, Any], name: str) -> Any:
    try:
        return claim(claims, name)
    except KeyError:
        return None


def _is_one_of(value: Any, wanted: Any) -> bool:
    """Compare with the type: ``1``, ``"1"`` and ``true`` are three things."""
    several = wanted if isinstance(wanted, tuple) else (wanted,)
    return any(type(value) is type(one) and value == one for one in several)


def _told(value: Any) -> Any:
    """Return what rules and events are told of a claim; None for what is too big or has parts."""
    if isinstance(value, list):
        several = [_told(item) for item in value[:_MAX_VALUES] if not isinstance(item, list)]
        return [item for item in several if item is not None]
    if isinstance(value, str):
        return value[:_MAX_VALUE_CHARACTERS]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else None
    return value if isinstance(value, float) and math.isfinite(value) else None
