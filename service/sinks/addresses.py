"""Where a sink may connect to: addresses are resolved once, checked, and the one that was checked is used."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable

from aiohttp.abc import AbstractResolver, ResolveResult

from service.sinks.threads import Beside

Lookup = Callable[[str, int, socket.AddressFamily], Awaitable[list[str]]]
"""Resolves a host name and a port to addresses."""
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_EMBEDDING = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")))
"""IPv6 networks whose addresses stand for IPv4 ones."""
_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1", "fc00::/7")
)


class ForbiddenAddress(OSError):
    """An address that this sink may not connect to."""


def is_public(address: _Address) -> bool:
    """Tell whether *address* is somewhere on the public Internet, and nowhere else in disguise."""
    if isinstance(address, ipaddress.IPv6Address) and (
        address.ipv4_mapped is not None or address.scope_id or any(address in network for network in _EMBEDDING)
    ):
        return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_private or address.is_link_local
    )


def is_private(address: _Address) -> bool:
    """Tell whether *address* is of the own host or network; the addresses of cloud metadata are not among them."""
    scoped = isinstance(address, ipaddress.IPv6Address) and address.scope_id
    return not scoped and any(address in network for network in _PRIVATE)


def check_address(address: str, *, private: bool, encrypted: bool) -> None:
    """Return if a sink may connect to *address*.

    Raises:
        ForbiddenAddress: it is not public, and *private* ones are not asked for; or it is public and not *encrypted*.
    """
    parsed = ipaddress.ip_address(address)
    if is_public(parsed):
        if not encrypted:
            message = f"{address} is a public address, which needs https"
            raise ForbiddenAddress(message)
        return
    if not is_private(parsed):
        message = f"{address} is no address that events are sent to"
        raise ForbiddenAddress(message)
    if not private:
        message = f"{address} is not a public address; private: true allows those of the own network"
        raise ForbiddenAddress(message)


class CheckedResolver(AbstractResolver):
    """Resolves a name at each connection and gives only addresses that were checked, so nothing can be rebound."""

    def __init__(self, lookup: Lookup, *, private: bool, encrypted: bool) -> None:
        """Ask *lookup*."""
        self._lookup = lookup
        self._private = private
        self._encrypted = encrypted

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of *host*.

        Raises:
            ForbiddenAddress: one of them may not be connected to. OSError: there is none.
        """
        found = await self._lookup(host, port, family)
        for address in found:
            check_address(address, private=self._private, encrypted=self._encrypted)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in found
        ]

    async def close(self) -> None:
        """Nothing is held."""


class SystemLookup:
    """Asks the system, in a thread that no request waits for."""

    def __init__(self) -> None:
        """Make no thread yet."""
        self._beside = Beside("sink-dns")

    async def __call__(self, host: str, port: int, family: socket.AddressFamily) -> list[str]:
        """Return the addresses of *host*.

        Raises:
            OSError: there is none.
        """
        found = await self._beside.run(lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
        return list(dict.fromkeys(str(item[4][0]) for item in found))
