"""Pools of connections to third parties: addresses are checked, and nothing is repeated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import httpcore

from services.shared.egress.addresses import CheckedBackend, Resolver, TargetPolicy, resolve

# For each request a pool looks at all of its connections several times over, and asks each idle one whether it is still
# open: with a hundred in one pool that cost 10 ms of CPU a call, with sixteen more than a new connection would on one
# machine. Many small ones hold as many.
_POOLS: Final = 128
_MAX_CONNECTIONS: Final = 4
_IDLE_SECONDS: Final = 5.0


class ConnectionPools:
    """Sends requests. No redirect is followed, no proxy or cookie is used.

    Args:
        allow: Networks, addresses and host names that may be called beyond the public internet.
        resolver: Where addresses of hosts come from.
    """

    def __init__(self, allow: Iterable[str] = (), *, resolver: Resolver = resolve) -> None:
        backend = CheckedBackend(TargetPolicy(allow), resolver)
        self._pools = [
            httpcore.AsyncConnectionPool(
                max_connections=_MAX_CONNECTIONS,
                # All of them: httpcore counts busy ones too, and would close each connection as soon as it is free.
                max_keepalive_connections=_MAX_CONNECTIONS,
                keepalive_expiry=_IDLE_SECONDS,
                # The runtime alone decides what is repeated.
                retries=0,
                network_backend=backend,
            )
            for _ in range(_POOLS)
        ]
        # Requests in each of the pools.
        self._loads = [0] * _POOLS

    async def close(self) -> None:
        """Closes the connections. No request may be under way."""
        for pool in self._pools:
            await pool.aclose()

    @asynccontextmanager
    async def sending(self, request: httpcore.Request) -> AsyncIterator[httpcore.Response]:
        """Sends a request; its answer may be read while the context is open.

        Raises:
            TargetRefused: The address may not be called.
        """
        # The first with room, so that few calls share few connections; when there is none, the one with least to do.
        with_room = (index for index, load in enumerate(self._loads) if load < _MAX_CONNECTIONS)
        index = next(with_room, self._loads.index(min(self._loads)))
        self._loads[index] += 1
        try:
            response = await self._pools[index].handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()
        finally:
            self._loads[index] -= 1
