"""How much one address may fail to say who it is, and one principal may ask: token buckets, in this process."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.errors import RateLimited

_MINUTE = 60.0
_MAX_KEYS = 10_000
_MAX_KNOWN = 10_000
_IPV6_SITE = 64
"""One site has all addresses of such a prefix."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second, and so many at once after a pause."""

    a_second: float
    at_once: float


class Buckets:
    """One bucket of tokens a key, of the keys seen last; a key that was forgotten begins with a full one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with full buckets."""
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, key: str, rate: Rate) -> float:
        """Give the seconds until there is a token; 0 if there is one now."""
        return max(0.0, (1 - self._tokens(key, rate)) / rate.a_second)

    def take(self, key: str, rate: Rate) -> float:
        """Take a token; where there is none, take nothing and give the seconds until there is one."""
        tokens = self._tokens(key, rate)
        if tokens < 1:
            return (1 - tokens) / rate.a_second
        self._left[key] = tokens - 1, self._clock()
        self._left.move_to_end(key)
        if len(self._left) > _MAX_KEYS:
            self._left.popitem(last=False)
        return 0.0

    def _tokens(self, key: str, rate: Rate) -> float:
        left, at = self._left.get(key, (rate.at_once, 0.0))
        return min(rate.at_once, left + (self._clock() - at) * rate.a_second)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the configuration allows."""

    failures_a_minute: int = 60
    everybody: Rate | None = None
    principals: Mapping[str, Rate | None] = field(default_factory=dict)
    """Those with a rate of their own; None: no bound."""


class Limits:
    """Refuses who sends too much. Nothing of a refused request is looked at."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        """Refuse beyond *bounds*."""
        self._bounds = bounds
        self._failure = Rate(bounds.failures_a_minute / _MINUTE, bounds.failures_a_minute)
        self._failures = Buckets(clock)
        self._requests = Buckets(clock)
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def before(self, address: str, authorization: str | None) -> None:
        """Refuse a token that is new here, from an address over its bound: its signature is not worth a look.

        Keys are cheap to look up, and tokens that were valid before pass: who shares the address is not locked out.

        Raises:
            RateLimited: it is such a token.
        """
        if _is_token(authorization) and self._wait(address) and _digest(authorization) not in self._known:
            raise self._refusal(address)

    def succeeded(self, authorization: str | None) -> None:
        """Remember a token that was valid."""
        if _is_token(authorization):
            digest = _digest(authorization)
            self._known[digest] = None
            self._known.move_to_end(digest)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)

    def failed(self, address: str) -> None:
        """Count a failed authentication.

        Raises:
            RateLimited: *address* failed too often.
        """
        if self._failures.take(site_of(address), self._failure):
            raise self._refusal(address)

    def admit(self, subject: str) -> None:
        """Count a request of a principal.

        Raises:
            RateLimited: it sends too many.
        """
        rate = self._bounds.principals.get(subject, self._bounds.everybody)
        if rate is None:
            return
        wait = self._requests.take(subject, rate)
        if wait:
            message = f"{subject} sends more than {rate.a_second:g} requests a second."
            raise RateLimited(message, retry_after=math.ceil(wait))

    def _wait(self, address: str) -> float:
        return self._failures.wait(site_of(address), self._failure)

    def _refusal(self, address: str) -> RateLimited:
        message = (
            f"More than {self._bounds.failures_a_minute} failed authentications a minute came from this address. "
            "Check the credential."
        )
        return RateLimited(message, retry_after=max(1, math.ceil(self._wait(address))))


def _is_token(authorization: str | None) -> bool:
    """Tell whether it may be a signed token, which has dots; keys and Basic have none."""
    return authorization is not None and "." in authorization


def _digest(authorization: str | None) -> bytes:
    return hashlib.sha256((authorization or "").encode("latin-1")).digest()


def site_of(address: str) -> str:
    """Name whom an address belongs to: IPv6 gives a site 2^64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, _IPV6_SITE), strict=False))
