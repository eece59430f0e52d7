"""The address at the other end of a connection, as far as rules look at it. It proves nothing of who is there."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import unquote

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def address_of(peer: str) -> IPAddress | None:
    """Returns the address in what grpc calls a peer (`ipv4:10.0.0.1:5000`), or None for one without, such as a socket
    file. An IPv4 address that is written as an IPv6 one is the IPv4 address."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        return None
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def source_of(peer: str) -> str:
    """Returns the name under which what comes from a peer is counted: an IPv4 address, or the /64 of an IPv6 one,
    which is what one customer of a network is given."""
    address = address_of(peer)
    if address is None:
        return peer.partition(":")[0]
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


def is_within(peer: str, networks: Iterable[IPNetwork]) -> bool:
    """Tells whether a peer's address is in one of the networks."""
    address = address_of(peer)
    return address is not None and any(address in network for network in networks)
