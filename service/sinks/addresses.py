"""Which addresses a sink may connect to."""

from __future__ import annotations

import contextlib
import ipaddress

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


def check_host(host: str, *, private: bool, encrypted: bool) -> None:
    """Check the *host* of a URL where it is an address: no resolver is asked about it. A name is checked later.

    Raises:
        ForbiddenAddress: a sink may not connect to it.
    """
    if not host.isascii():  # clients read other digits and dots as those of ASCII, which makes an address of them
        message = f"{host} is not ASCII; write an international name as xn--…"
        raise ForbiddenAddress(message)
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        check_address(host, private=private, encrypted=encrypted)
