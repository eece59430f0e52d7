"""An HTTP endpoint for tools that takes 50 ms a call and notes each by its idempotency key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.peers.executions import BODY_SECONDS, ExecutionLog


@asynccontextmanager
async def counting_server(log: ExecutionLog, expected: int) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """Serves on a free port of loopback; yields its URL, and what is set when so many calls as expected have begun."""
    begun = 0
    reached = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun
        try:
            while True:
                key = await _request(reader)
                # The key is the runtime's name for the call: a call that is made again has the same.
                log.note("call", key)
                begun += 1
                if begun == expected:
                    reached.set()
                await asyncio.sleep(BODY_SECONDS)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            # The executor closed it, or was killed.
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", reached
    finally:
        server.close()


async def _request(reader: asyncio.StreamReader) -> str:
    """Reads one request and returns its idempotency key."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    await reader.readexactly(int(fields.get("content-length", "0")))
    return fields["idempotency-key"].strip('"')
