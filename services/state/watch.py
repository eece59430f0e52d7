"""A run's events for a reader who stays: what is stored, then what follows, without gap or repetition (P12)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from services.shared.database import Database
from services.shared.stored_messages import stored_message_of
from services.state import journal
from services.state.hub import Hub, wait_for
from services.state.inline_messages import INLINE_BLOB_LIMIT, put_messages_inline
from services.state.transitions import ENDED

BEAT_SECONDS = 15.0
# The hub and the pulse tell of events; this is for a hint that was lost.
LOOK_SECONDS = 5.0
PAGE = 200


class Watching:
    """Reads journals for those who watch.

    Args:
        db: Where the journals are.
        hub: Tells of what is committed.
        beat_seconds: A watcher that is told nothing for so long gets a sign of life.
    """

    def __init__(self, db: Database, hub: Hub, *, beat_seconds: float = BEAT_SECONDS) -> None:
        self._db = db
        self._hub = hub
        self._beat_seconds = beat_seconds
        self.draining = asyncio.Event()

    async def watch(
        self, workspace_id: str, run_id: str, after_seq: int, *, events_only: bool
    ) -> AsyncGenerator[journal_pb2.WatchJournalResponse, None]:
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
            watcher.known_seq = seen
            has_ended = False
            while not (has_ended or self.draining.is_set()):
                if watcher.must_read:
                    watcher.must_read = False
                    # The reader may have the event of the end already, and now asks only for what is after it.
                    has_ended = run.state in ENDED
                    while events := await self._db.read(self._page, workspace_id, run_id, seen):
                        for event in events:
                            yield journal_pb2.WatchJournalResponse(event=event)
                            seen = event.seq
                            has_ended |= _ends(event)
                        watcher.known_seq = max(watcher.known_seq, seen)
                        last_sent = loop.time()
                while watcher.news and not watcher.must_read:
                    news = watcher.news.popleft()
                    if isinstance(news, run_pb2.Delta):
                        if not events_only:
                            yield journal_pb2.WatchJournalResponse(delta=news)
                    elif news.seq == seen + 1 and not _has_message_in_blob(news):
                        yield journal_pb2.WatchJournalResponse(event=news)
                        seen = news.seq
                        has_ended |= _ends(news)
                    elif news.seq > seen:
                        watcher.must_read = True
                    last_sent = loop.time()
                if has_ended or watcher.must_read:
                    continue
                if loop.time() - last_sent >= self._beat_seconds:
                    yield journal_pb2.WatchJournalResponse(beat_last_seq=seen)
                    last_sent = loop.time()
                if await wait_for(watcher.changed, min(LOOK_SECONDS, self._beat_seconds)):
                    watcher.changed.clear()
                else:
                    watcher.must_read = True

    @staticmethod
    def _page(connection: sa.Connection, workspace_id: str, run_id: str, after_seq: int) -> list[run_pb2.Event]:
        events = journal.read_events(connection, workspace_id, run_id, after_seq, PAGE)
        return put_messages_inline(connection, workspace_id, events, limit=INLINE_BLOB_LIMIT)


def _ends(event: run_pb2.Event) -> bool:
    last = event.changes[-1]
    return last.WhichOneof("kind") == "run_state_changed" and last.run_state_changed.state in ENDED


def _has_message_in_blob(event: run_pb2.Event) -> bool:
    return any(
        (stored := stored_message_of(change)) is not None and stored.WhichOneof("body") == "blob"
        for change in event.changes
    )
