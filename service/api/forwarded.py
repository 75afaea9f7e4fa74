"""Finds the address of a client behind proxies that the operator named. It is used in events, and to count failures."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from service.asgi import Scope, client_address

_FOR = re.compile(r"""(?:^|;)\s*for=(?:"([^"]*)"|([^;\s]*))""", re.IGNORECASE)
_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::[0-9]{1,5})?")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Proxies:
    """The networks that `listen.trusted_proxies` names."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Trust peers in *networks* (CIDR)."""
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)

    def client_of(self, scope: Scope) -> str:
        """Return the rightmost address that no trusted proxy has, or the peer's where nobody trusted says more.

        A proxy writes X-Forwarded-For or Forwarded. Where both stand, one came from the client, so neither is believed.
        """
        peer = client_address(scope)
        if not self._networks or not self._trusts(_address(peer)):
            return peer
        found = {
            name: ",".join(value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name)
            for name in (b"x-forwarded-for", b"forwarded")
        }
        listed = [hops for hops in found.values() if hops]
        if len(listed) != 1:
            return peer
        for hop in reversed(listed[0].split(",")):
            address = _address(_for(hop) if found[b"forwarded"] else hop)
            if address is None:
                break
            peer = str(address)
            if not self._trusts(address):
                break
        return peer

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _for(element: str) -> str:
    """Return the ``for`` of one element of Forwarded (RFC 7239)."""
    match = _FOR.search(element)
    return (match[1] or match[2] or "") if match else ""


def _address(text: str) -> Address | None:
    text = text.strip()
    match = _PORT.fullmatch(text)
    try:
        address = ipaddress.ip_address(match[1] or match[2] if match else text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
