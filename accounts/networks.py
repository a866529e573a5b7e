"""The networks that a key may be used from."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network
MAPPED_BITS = 96
"""Of IPv6 before an IPv4 address that is written in its form (RFC 4291, §2.5.5.2)."""


def network_of(text: str, *, strict: bool = True) -> Network:
    """One that callers can be in: of IPv4 addresses in the form of IPv6 it is that of IPv4, as
    those addresses are read. `strict`: nothing stands after the prefix.

    Raises ValueError, also for one with the zone of a host (`fe80::%eth0`).
    """
    network = ip_network(text, strict=strict)
    if isinstance(network, IPv4Network):
        return network
    first = network.network_address
    if first.scope_id is not None:
        raise ValueError("a zone is known to its host alone")
    if first.ipv4_mapped is not None and network.prefixlen >= MAPPED_BITS:
        return IPv4Network((first.ipv4_mapped, network.prefixlen - MAPPED_BITS))
    return network


def kept_network_of(text: str) -> Network:
    """One of a key that is older than `network_of`: what has a zone lets nobody in, as before."""
    try:
        return network_of(text)
    except ValueError:
        return ip_network(text)


def is_inside(address: str, networks: tuple[Network, ...]) -> bool:
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in networks)
