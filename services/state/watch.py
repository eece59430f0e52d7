"""A run's events for a reader who stays: what is stored, then what follows, without gap or repetition (P12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from services.shared.database import Database
from services.state import journal
from services.state.hub import Hub, Watcher
from services.state.run_store import INLINE_BLOB_LIMIT, put_messages_inline
from services.state.transitions import ENDED

BEAT_SECONDS = 15.0
# How often a reader looks by itself: what another replica committed.
POLL_SECONDS = 0.25
PAGE = 200


class Watching:
    """Reads journals for those who watch."""

    def __init__(self, db: Database, hub: Hub) -> None:
        self._db = db
        self._hub = hub
        self.draining = asyncio.Event()

    async def watch(
        self, workspace_id: str, run_id: str, after_seq: int, *, events_only: bool
    ) -> AsyncIterator[journal_pb2.WatchJournalResponse]:
        """The events after `after_seq` and then those that follow; ends after the run's end.

        Raises:
            NotFound: RUN_NOT_FOUND.
        """
        loop = asyncio.get_running_loop()
        seen = after_seq
        last_sent = loop.time()
        # Order matters: first the watcher, then the reading, so that nothing is committed unseen between the two.
        with self._hub.watching(run_id) as watcher:
            run = await self._db.read(journal.find_run, workspace_id, run_id)
            while not self.draining.is_set():
                watcher.changed.clear()
                deltas = [] if events_only else self._take(watcher)
                while events := await self._db.read(self._page, workspace_id, run_id, seen):
                    for event in events:
                        # Pieces of an answer come before the event that holds the whole of it.
                        for delta in deltas:
                            yield journal_pb2.WatchJournalResponse(delta=delta)
                        deltas = []
                        yield journal_pb2.WatchJournalResponse(event=event)
                        seen = event.seq
                    last_sent = loop.time()
                for delta in deltas:
                    yield journal_pb2.WatchJournalResponse(delta=delta)
                    last_sent = loop.time()
                run = await self._db.read(journal.find_run, workspace_id, run_id)
                if run.state in ENDED and seen >= run.last_seq:
                    return
                if run.last_seq > seen:
                    continue
                if loop.time() - last_sent >= BEAT_SECONDS:
                    yield journal_pb2.WatchJournalResponse(beat_last_seq=run.last_seq)
                    last_sent = loop.time()
                await self._wait(watcher)

    async def _wait(self, watcher: Watcher) -> None:
        timeout = POLL_SECONDS if self._db.dialect == "postgresql" else BEAT_SECONDS / 3
        try:
            async with asyncio.timeout(timeout):
                await watcher.changed.wait()
        except TimeoutError:
            return

    @staticmethod
    def _take(watcher: Watcher) -> list[run_pb2.Delta]:
        deltas = list(watcher.deltas)
        watcher.deltas.clear()
        return deltas

    @staticmethod
    def _page(connection: sa.Connection, workspace_id: str, run_id: str, after_seq: int) -> list[run_pb2.Event]:
        events = journal.read_events(connection, workspace_id, run_id, after_seq, PAGE)
        put_messages_inline(connection, workspace_id, events, limit=INLINE_BLOB_LIMIT)
        return events
