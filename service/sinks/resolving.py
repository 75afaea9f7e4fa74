"""Resolves the host of a receiver: each address is checked, and the one that was checked is connected to."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from aiohttp.abc import AbstractResolver, ResolveResult

from service.sinks.addresses import check_address
from service.sinks.threads import Beside

Lookup = Callable[[str, int, socket.AddressFamily], Awaitable[list[str]]]
"""Resolves a host name and a port to addresses."""


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
