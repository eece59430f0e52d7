"""A TCP proxy before the processes of state, which finds one that is alive, cuts connections and loses answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

_CONNECT_SECONDS = 1.0


class _Connection:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        # While it is set, what the server says is thrown away: its caller never hears of it.
        self.loses_answers = False

    def cut(self) -> None:
        self.writer.transport.abort()


class StateProxy:
    """Leads each connection to the next process of state that takes it.

    Args:
        backends: Where the processes of state listen, as host:port.

    Attributes:
        address: Where it listens.
        cuts: How many connections were cut.
    """

    def __init__(self, backends: Callable[[], Sequence[str]]) -> None:
        self._backends = backends
        self._turn = 0
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.address = ""
        self.cuts = 0

    def cut(self) -> None:
        """Cuts all connections, in the middle of whatever they carry."""
        for connection in list(self._connections):
            self.cuts += 1
            connection.cut()

    async def lose_answers(self, seconds: float) -> None:
        """What is sent on the open connections arrives and counts, and is not answered; then they are cut."""
        losing = list(self._connections)
        for connection in losing:
            connection.loses_answers = True
        await asyncio.sleep(seconds)
        for connection in losing:
            self.cuts += 1
            connection.cut()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = _Connection(writer)
        try:
            upstream = await self._connect()
            if upstream is None:
                return
            self._connections.add(connection)
            from_state, to_state = upstream

            async def forward() -> None:
                with suppress(ConnectionError):
                    while data := await reader.read(256 * 1024):
                        to_state.write(data)
                        await to_state.drain()
                to_state.close()

            sending = asyncio.create_task(forward())
            try:
                while data := await from_state.read(256 * 1024):
                    if not connection.loses_answers:
                        writer.write(data)
                        await writer.drain()
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                to_state.transport.abort()
        except ConnectionError:
            # One of the two sides is gone, which is what this is for.
            pass
        finally:
            connection.cut()
            self._connections.discard(connection)
            self._tasks.discard(task)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        backends = list(self._backends())
        self._turn += 1
        for offset in range(len(backends)):
            host, _, port = backends[(self._turn + offset) % len(backends)].rpartition(":")
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(host, int(port))
        return None

    async def close(self) -> None:
        """Ends every connection."""
        # A task of a connection accepted just now has not begun: cancelled, it would never close what it was given.
        await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def state_proxy(backends: Callable[[], Sequence[str]]) -> AsyncIterator[StateProxy]:
    """A proxy on a free port while the block runs."""
    proxy = StateProxy(backends)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
