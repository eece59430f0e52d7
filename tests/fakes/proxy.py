"""A TCP proxy before PostgreSQL that loses answers: what was sent arrives and counts, its sender never hears of it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

# Name and text in the message that prepares a statement.
_PREPARED = re.compile(rb"P.{4}(_pg3_\d+)\x00([^\x00]*)\x00", re.DOTALL)


class LosingProxy:
    """Forwards everything, until it is told to cut at a word.

    Attributes:
        port: Where it listens.
        cuts: How many connections it has cut.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.port = 0
        self.cuts = 0
        self._words: tuple[bytes, ...] = ()
        self._left = 0
        self._has_cut = asyncio.Event()
        self._pipes: set[asyncio.Task[None]] = set()

    def lose_answer_to(self, *words: bytes, times: int = 1) -> None:
        """From now on: a connection that sends one of the words is cut once the server has answered it."""
        self._words = words
        self._left = times
        self._has_cut.clear()

    async def until_cut(self) -> None:
        """Returns when all of the cuts were made."""
        async with asyncio.timeout(30):
            await self._has_cut.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            is_losing = asyncio.Event()

            # What was prepared on this connection is executed by its name alone.
            prepared: dict[bytes, bytes] = {}

            def says_one_of_the_words(data: bytes) -> bool:
                prepared.update(_PREPARED.findall(data))
                named = (text for name, text in prepared.items() if b"\x00" + name + b"\x00" in data)
                return any(word in said for said in (data, *named) for word in self._words)

            async def forwards() -> None:
                while data := await reader.read(256 * 1024):
                    if says_one_of_the_words(data) and self._left:
                        self._left -= 1
                        is_losing.set()
                    upstream_writer.write(data)
                    await upstream_writer.drain()
                upstream_writer.close()

            async def backwards() -> None:
                while data := await upstream_reader.read(256 * 1024):
                    if is_losing.is_set():
                        # The server answers a commit when it is durable: it has happened, and nobody is told.
                        self.cuts += 1
                        if not self._left:
                            self._has_cut.set()
                        break
                    writer.write(data)
                    await writer.drain()

            sending = asyncio.create_task(forwards())
            try:
                await backwards()
            finally:
                sending.cancel()
                upstream_writer.transport.abort()
                await asyncio.gather(sending, return_exceptions=True)
        except (ConnectionError, OSError):
            pass
        finally:
            # Also of a connection that ends while the one behind it is being opened.
            writer.transport.abort()
            self._pipes.discard(task)

    async def close(self) -> None:
        """Ends every connection."""
        # A task of a connection accepted just now has not begun: cancelled, it would never close what it was given.
        await asyncio.sleep(0)
        for task in list(self._pipes):
            task.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)


@asynccontextmanager
async def losing_proxy(target_port: int) -> AsyncIterator[LosingProxy]:
    """A proxy on a free port while the block runs."""
    proxy = LosingProxy(target_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
        with suppress(asyncio.CancelledError):
            await server.wait_closed()
