"""ChangeFeedService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from holdfast.api.state.v1 import change_feed_service_pb2 as pb
from holdfast.api.state.v1.change_feed_service_pb2_grpc import ChangeFeedServiceServicer
from holdfast.errors import InvalidArgument
from services.shared.database import Database
from services.state.change_feed import MAX_ENTRIES, check_cursor, read_frame
from services.state.hub import Hub, wait_for

DEFAULT_ENTRIES = 500
BEAT_SECONDS = 15.0
# The hub and the pulse tell of commits; this is for a hint that was lost.
LOOK_SECONDS = 5.0
# What commits within a moment goes into one frame: followers are behind by that much, and state reads its journal so
# many times a second, however many transactions there are. The moment is longer where much happens: what a follower
# stores of a run at once costs it little more than one event.
GATHER_SECONDS = 0.2
LONGEST_GATHER_SECONDS = 1.0
ENTRIES_A_SECOND = 1_000

Context = grpc.aio.ServicerContext[Any, Any]


class ChangeFeedServicer(ChangeFeedServiceServicer):
    """Serves followers of all events.

    Args:
        db: Where the events are.
        hub: Tells of what is committed.
        beat_seconds: A follower that is told nothing for so long gets a frame without entries.
    """

    def __init__(self, db: Database, hub: Hub, *, beat_seconds: float = BEAT_SECONDS) -> None:
        self._db = db
        self._hub = hub
        self._beat_seconds = beat_seconds
        self.draining = asyncio.Event()

    async def Follow(self, request: pb.FollowRequest, context: Context) -> AsyncIterator[pb.FollowResponse]:
        if request.max_entries < 0:
            raise InvalidArgument("max_entries must not be negative", field="max_entries")
        limit = min(request.max_entries or DEFAULT_ENTRIES, MAX_ENTRIES)
        cursor = request.cursor
        if cursor:
            await self._db.read(check_cursor, self._db, cursor)
        loop = asyncio.get_running_loop()
        last_sent = loop.time()
        # The first frame says where the follower stands, also when there is nothing to send.
        must_send = True
        gathered = 0
        while not self.draining.is_set():
            # Order matters: taken before the reading, so that nothing is committed unseen between the two.
            next_commit = self._hub.next_commit
            frame = await self._db.read_once(read_frame, self._db, cursor, limit)
            cursor, is_caught_up = frame.cursor, frame.is_caught_up
            gathered += len(frame.entries)
            if frame.entries or must_send or loop.time() - last_sent >= self._beat_seconds:
                yield frame
                last_sent = loop.time()
                must_send = False
            if is_caught_up:
                await asyncio.sleep(min(max(GATHER_SECONDS, gathered / ENTRIES_A_SECOND), LONGEST_GATHER_SECONDS))
                gathered = 0
                await wait_for(next_commit, min(LOOK_SECONDS, self._beat_seconds))
