"""Which addresses may be connected to: the public internet and what the operator allows, never metadata services.

The address is checked after the name is resolved, and the connection goes to the address that was checked, so that a
name that resolves differently a moment later leads nowhere else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import httpcore

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host."""

# Services of clouds that hand out credentials to whoever reaches them.
_METADATA: Final = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",  # AWS, Azure, Google, DigitalOcean, Oracle, OpenStack
        "169.254.170.2",  # AWS tasks
        "169.254.170.23",  # AWS pods
        "169.254.169.253",  # AWS resolver
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "168.63.129.16",  # Azure's host
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",  # Google
    )
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# What Python 3.11 takes for public and is not: site-local, 6to4 relays, documentation, segment routing.
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(text) for text in ("fec0::/10", "192.88.99.0/24", "3fff::/20", "5f00::/16")
)


class TargetRefused(Exception):
    """The target is not one that may be called. The text is for the operator and the model."""


class TargetPolicy:
    """Which addresses may be called.

    Args:
        allowed: Beyond the public internet: networks (`10.0.0.0/8`), addresses, and host names (`crm.internal`).
        setting: The setting in which the operator lists them, named in a refusal.

    Raises:
        ValueError: One of them is none of these.
    """

    def __init__(self, allowed: Iterable[str] = (), *, setting: str = "HOLDFAST_HTTP_TOOLS_ALLOW") -> None:
        self._setting = setting
        self._networks: list[IPNetwork] = []
        self._hosts: set[str] = set()
        for entry in allowed:
            text = entry.strip().lower().strip("[]")
            try:
                self._networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                if "/" in text or ":" in text or not text.replace("-", "").replace(".", "").replace("_", "").isalnum():
                    raise ValueError(f"a host, an address or a network such as 10.0.0.0/8, not {entry!r}") from None
                self._hosts.add(text.rstrip("."))

    def check(self, host: str, addresses: Iterable[str]) -> list[str]:
        """Returns the addresses of a host, all of which may be called.

        Raises:
            TargetRefused: One of them may not. One is enough: which of them a name means today is not its owner's
                only choice tomorrow.
        """
        checked = []
        for text in addresses:
            address = ipaddress.ip_address(text.partition("%")[0])
            if any(form in _METADATA for form in _forms(address)):
                raise TargetRefused(f"{host} leads to {address}, a metadata service; those are never called")
            if not self._allows(host, address):
                raise TargetRefused(
                    f"{host} leads to {address}, which is not on the public internet; an operator can allow it with "
                    f"{self._setting}"
                )
            checked.append(str(address))
        return checked

    def _allows(self, host: str, address: IPAddress) -> bool:
        if host.lower().rstrip(".") in self._hosts:
            return True
        forms = _forms(address)
        if any(form in network for form in forms for network in self._networks if form.version == network.version):
            return True
        return all(_is_public(form) for form in forms)


def parse_allowed_targets(text: str) -> tuple[str, ...]:
    """Parses the comma list of a setting.

    Raises:
        ValueError: An entry is no host, address or network.
    """
    entries = tuple(item.strip() for item in text.split(",") if item.strip())
    TargetPolicy(entries)
    return entries


def _is_public(address: IPAddress) -> bool:
    if any(address in network for network in _NOT_PUBLIC if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _forms(address: IPAddress) -> list[IPAddress]:
    """Returns the address and the IPv4 addresses that are packed into it, which is where a packet may end up."""
    forms = [address]
    if isinstance(address, ipaddress.IPv6Address):
        packed: list[IPAddress | None] = [address.ipv4_mapped, address.sixtofour]
        if address.teredo is not None:
            packed.append(address.teredo[1])
        if address in _NAT64:
            packed.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        inner = [item for item in packed if item is not None]
        # A mapped address is the IPv4 address, whose own properties count.
        forms = inner if address.ipv4_mapped is not None else [address, *inner]
    return forms


async def resolve(host: str, port: int) -> Sequence[str]:
    """Asks the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections for `httpcore`: resolves, checks, and connects to an address that was checked.

    Args:
        policy: What may be called.
        resolver: Where addresses come from.
    """

    def __init__(self, policy: TargetPolicy, resolver: Resolver = resolve) -> None:
        self._policy = policy
        self._resolver = resolver
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connects to the first address that answers.

        Raises:
            TargetRefused: An address of the host may not be called.
            httpcore.ConnectError: None of them answers, or there are none.
            httpcore.ConnectTimeout: That took too long.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._connect(host, port, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no connection to {host} within {timeout:g} s") from error

    async def _connect(
        self, host: str, port: int, local_address: str | None, socket_options: Iterable[Any] | None
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = [str(ipaddress.ip_address(host))]
        except ValueError:
            try:
                addresses = list(await self._resolver(host, port))
            except OSError as error:
                raise httpcore.ConnectError(f"the host name {host} cannot be resolved") from error
        failure: Exception = httpcore.ConnectError(f"the host name {host} has no address")
        for address in self._policy.check(host, addresses):
            try:
                return await self._backend.connect_tcp(
                    address, port, local_address=local_address, socket_options=socket_options
                )
            except httpcore.ConnectError as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        """Sleeps between attempts, of which there is one."""
        await asyncio.sleep(seconds)
