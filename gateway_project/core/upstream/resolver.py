"""aiohttp's way to vetted addresses, apart from `destinations`: most processes never dial."""

from __future__ import annotations

import socket
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from gateway_project.core.upstream import destinations, names


class GuardedResolver(AbstractResolver):
    """aiohttp's way to addresses: only vetted ones, and those are what it then connects to.

    `is_plain`: for http and odd ports, so that the connector reaches allowed networks alone.
    aiohttp asks no resolver for a host that is an address: `destinations.read` has vetted that.
    """

    def __init__(self, *, is_plain: bool) -> None:
        self._is_plain = is_plain

    async def resolve(
        self, host: str, port: int = 0, family: Any = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises `destinations.Refused`, or what `names.look_up` does."""
        addresses = await names.look_up(host, family)
        for address in addresses:
            destinations.vet(address, is_plain=self._is_plain)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing to do: the process asks names as long as it lives."""
