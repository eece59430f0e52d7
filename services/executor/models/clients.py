"""The SDK clients of one provider: one connection pool for each address, one client for each connection."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from services.executor.models.protocol import Credential

if TYPE_CHECKING:
    import ssl

    import httpx2

SdkT = TypeVar("SdkT")

_CLIENTS_KEPT: Final = 256
_POOLS_KEPT: Final = 64
_CONNECT_TIMEOUT_SECONDS: Final = 10.0
# Below what servers commonly allow an idle connection, so that they seldom close one under a new request.
_KEEP_ALIVE_SECONDS: Final = 30.0
_KEPT_ALIVE_PER_ADDRESS: Final = 100


@dataclass(frozen=True, slots=True)
class Sdk(Generic[SdkT]):
    """What is loaded before the first call of a provider."""

    module: SdkT
    tls: ssl.SSLContext


class SdkLoader(Generic[SdkT]):
    """Imports an SDK at its first use: it takes a second and tens of megabytes that an idle executor need not spend.

    Args:
        import_sdk: Imports it and returns it; runs in a thread.
        loggers: Names of the loggers that report requests, prompts included.
    """

    def __init__(self, import_sdk: Callable[[], SdkT], *loggers: str) -> None:
        self._import_sdk = import_sdk
        self._loggers = loggers
        self._lock = asyncio.Lock()
        self._sdk: Sdk[SdkT] | None = None

    async def get(self) -> Sdk[SdkT]:
        """Returns the SDK; the first callers wait until it is there."""
        if self._sdk is None:
            async with self._lock:
                if self._sdk is None:
                    self._sdk = await asyncio.to_thread(self._load)
        return self._sdk

    def _load(self) -> Sdk[SdkT]:
        import httpx2

        module = self._import_sdk()
        for name in (*self._loggers, "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # Reading the certificates takes tens of milliseconds; every pool shares them.
        return Sdk(module, httpx2.create_ssl_context())


@dataclass(slots=True, eq=False)
class _Pool:
    http: httpx2.AsyncClient
    calls: int = 0
    is_retired: bool = False


@dataclass(frozen=True, slots=True)
class _Client:
    credential: Credential
    pool: _Pool
    client: Any


class ClientCache:
    """Lends SDK clients. What is not used any more is dropped, and its connections are closed when idle.

    Args:
        build: Makes an SDK client for a credential and an address on the given HTTP client, which it must not close.
    """

    def __init__(self, build: Callable[[Sdk[Any], Credential, str, httpx2.AsyncClient], Any]) -> None:
        self._build = build
        self._clients: OrderedDict[tuple[str, str], _Client] = OrderedDict()
        self._pools: OrderedDict[str, _Pool] = OrderedDict()

    @asynccontextmanager
    async def lend(self, sdk: Sdk[Any], credential: Credential, address: str) -> AsyncIterator[Any]:
        """Lends the client for a credential; its connections stay open at least as long as the block runs."""
        client, pool, retired = self._find(sdk, credential, address)
        pool.calls += 1
        try:
            for idle in retired:
                await idle.http.aclose()
            yield client
        finally:
            pool.calls -= 1
            if pool.is_retired and not pool.calls:
                await pool.http.aclose()

    async def close(self) -> None:
        """Closes every connection."""
        pools = list(self._pools.values())
        self._clients.clear()
        self._pools.clear()
        for pool in pools:
            await pool.http.aclose()

    def _find(self, sdk: Sdk[Any], credential: Credential, address: str) -> tuple[Any, _Pool, list[_Pool]]:
        # Invariant: nothing here awaits, so that two calls never build the same pool.
        retired: list[_Pool] = []
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = _Pool(_http_client(sdk.tls))
            if len(self._pools) > _POOLS_KEPT:
                _, oldest = self._pools.popitem(last=False)
                oldest.is_retired = True
                if not oldest.calls:
                    retired.append(oldest)
        self._pools.move_to_end(address)
        key = (credential.connection_id, address)
        known = self._clients.get(key)
        # A new version of the connection replaces the client, and with it the old secret in this process.
        if known is None or known.credential != credential or known.pool is not pool:
            known = self._clients[key] = _Client(credential, pool, self._build(sdk, credential, address, pool.http))
            if len(self._clients) > _CLIENTS_KEPT:
                self._clients.popitem(last=False)
        self._clients.move_to_end(key)
        return known.client, pool, retired


def _http_client(tls: ssl.SSLContext) -> httpx2.AsyncClient:
    import httpx2

    return httpx2.AsyncClient(
        verify=tls,
        # The environment is the operator's; a workspace's call takes neither its proxy nor its .netrc.
        trust_env=False,
        # A redirect would carry the credential to an address that nobody configured.
        follow_redirects=False,
        # Shared by all workspaces that call this address: nothing of one answer may travel with another's request.
        cookies=CookieJar(policy=DefaultCookiePolicy(allowed_domains=())),
        # The caller limits the whole attempt; only a dead address is noticed earlier.
        timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_SECONDS),
        limits=httpx2.Limits(
            max_connections=None,
            max_keepalive_connections=_KEPT_ALIVE_PER_ADDRESS,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
        ),
    )
