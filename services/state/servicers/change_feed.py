"""ChangeFeedService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from holdfast.api.state.v1 import change_feed_service_pb2 as pb
from holdfast.api.state.v1.change_feed_service_pb2_grpc import ChangeFeedServiceServicer
from services.shared.database import Database
from services.state.change_feed import MAX_ENTRIES, read_feed
from services.state.hub import Hub

DEFAULT_ENTRIES = 500
BEAT_SECONDS = 15.0
POLL_SECONDS = 0.25
GATHER_SECONDS = 0.03

Context = grpc.aio.ServicerContext[Any, Any]


class ChangeFeedServicer(ChangeFeedServiceServicer):
    """Serves followers of all events."""

    def __init__(self, db: Database, hub: Hub) -> None:
        self._db = db
        self._hub = hub
        self.draining = asyncio.Event()

    async def Follow(self, request: pb.FollowRequest, context: Context) -> AsyncIterator[pb.FollowResponse]:
        limit = min(request.max_entries or DEFAULT_ENTRIES, MAX_ENTRIES)
        cursor = request.cursor
        loop = asyncio.get_running_loop()
        last_sent = loop.time()
        says_caught_up = True
        while not self.draining.is_set():
            change = self._hub.next_feed_change()
            entries, cursor = await self._db.read(read_feed, self._db, cursor, limit)
            is_caught_up = len(entries) < limit
            # The first frame says where the follower stands, also when there is nothing to send.
            if entries or says_caught_up or loop.time() - last_sent >= BEAT_SECONDS:
                yield pb.FollowResponse(entries=entries, cursor=cursor, is_caught_up=is_caught_up)
                last_sent = loop.time()
                says_caught_up = False
            if is_caught_up:
                # What commits within a moment goes into one frame: followers are behind by that much, and state reads
                # its journal so many times a second, however many transactions there are.
                await asyncio.sleep(GATHER_SECONDS)
                await self._hub.wait_for_feed(change, POLL_SECONDS if self._db.dialect == "postgresql" else 1.0)
