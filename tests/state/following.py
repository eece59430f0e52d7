"""What a follower of the change feed does, and where its events come from."""

from __future__ import annotations

import asyncio

from holdfast.errors import from_rpc_error
from holdfast.ids import new_uuid7
from tests.state.served import Client

WORKSPACE = new_uuid7()


async def create(client: Client, count: int) -> list[str]:
    """Makes runs: each is one event."""
    return [(await client.create(WORKSPACE)).run_id for _ in range(count)]


async def follow(client: Client, cursor: bytes = b"") -> tuple[list[str], bytes]:
    """Reads the feed to its end for now."""
    told: list[str] = []
    call = client.follow(cursor)
    async with asyncio.timeout(15):
        async for frame in call:
            told += [entry.event.run_id for entry in frame.entries]
            cursor = frame.cursor
            if frame.is_caught_up:
                break
    call.cancel()
    return told, cursor


async def refusal(client: Client, cursor: bytes) -> Exception:
    """Why a cursor is not taken."""
    try:
        await follow(client, cursor)
    except Exception as error:
        return from_rpc_error(error)  # type: ignore[arg-type]
    raise AssertionError("the cursor was taken")
