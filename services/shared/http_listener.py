"""A listener for HTTP in a service's own process: bound before anything is served, and ended after its last answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from services.shared.server import address_error
from services.shared.settings import split_address

MAX_CONNECTIONS: Final = 512
_KEEP_ALIVE_SECONDS: Final = 5


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its own handling of signals: the process has one already."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Captures none."""
        yield


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that is bound already, so that it is known before anything is served."""

    socket: socket.socket
    address: str


@contextlib.contextmanager
def listen(address: str, setting: str) -> Generator[Listener, None, None]:
    """Binds an address.

    Args:
        address: As `host:port`; port 0 is a free one.
        setting: Where the address was given, for the message.

    Raises:
        StartupError: It cannot be listened on.
    """
    host, port = split_address(address)
    try:
        family, kind, protocol, _, to = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(to)
            bound.listen(128)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise address_error(setting, address, error) from error
    with bound:
        shown = f"[{host}]" if ":" in host else host
        yield Listener(bound, f"{shown}:{bound.getsockname()[1]}")


@asynccontextmanager
async def serving(
    app: ASGIApp, listener: Listener, *, drain_seconds: float, max_head_bytes: int
) -> AsyncIterator[None]:
    """Serves while the context is open; at its end requests in flight get their time.

    Args:
        app: What is served.
        listener: Where.
        drain_seconds: The time of what is in flight at the end.
        max_head_bytes: How much of a request's head is read before it is complete.
    """
    config = uvicorn.Config(
        app,
        loop="none",
        http="h11",
        ws="none",
        lifespan="off",
        # Its own lines would hold addresses, and with them codes and leases.
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        # While a head is not complete; a complete one is the application's to look at.
        h11_max_incomplete_event_size=max_head_bytes,
    )
    server = _Uvicorn(config)
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve(sockets=[listener.socket]))
        try:
            yield
        finally:
            server.should_exit = True
