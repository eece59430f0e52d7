"""What must be true of everything that state keeps, looked at range by range: `holdfast doctor` and the crash campaign.

Each range is one read-only transaction, so that what is compared belongs to one moment; nothing is locked or written,
and no statement looks at more than a range. A write in progress is never taken for a violation, because whatever
belongs together is committed together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final

import sqlalchemy as sa

from holdfast.api.state.v1 import change_feed_service_pb2 as feed_pb2
from services.shared.database import Database
from services.state import tables as t
from services.state.change_feed import read_feed
from services.state.invariant_journals import chunks, look_at_journals, sizes_of_journals
from services.state.invariant_list import FEED_ENTRIES, Findings
from services.state.invariant_rows import (
    FIRST,
    LAST,
    MOST,
    is_tombstone,
    look_at_bodies,
    look_at_runs,
    look_at_sessions,
    look_at_what_is_due,
)

DEFAULT_JOURNALS: Final = 10_000
PAGE: Final = 500
CHUNK_BYTES: Final = 2 * 1024 * 1024


class Inspection:
    """One look at everything.

    Args:
        db: The database.
        max_journals: How many runs' journals are read, the newest first; None reads all.
        page: Of how many runs, sessions or bodies one transaction looks at the rows.
        chunk_bytes: How many bytes of events one statement reads; a longer journal is read on its own, page by page.

    Attributes:
        findings: What was found so far.
        runs: Runs whose rows were looked at.
        journals: Journals that were read.
    """

    def __init__(
        self,
        db: Database,
        *,
        max_journals: int | None = DEFAULT_JOURNALS,
        page: int = PAGE,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._db = db
        self._page = page
        self._chunk_bytes = chunk_bytes
        self._max_journals = max_journals
        self.findings = Findings()
        self.runs = 0
        self.journals = 0

    async def run(self) -> AsyncIterator[None]:
        """Looks at everything and comes back to the caller after each range."""
        async for _ in self._rows():
            yield
        async for _ in self._journals():
            yield
        async for _ in self._bodies():
            yield
        async for _ in self._feed():
            yield

    async def _rows(self) -> AsyncIterator[None]:
        self.findings.add(await self._db.read(look_at_what_is_due, self._db))
        after = FIRST
        while after != LAST:
            found, count, after = await self._db.read(look_at_runs, after, self._page)
            self.findings.add(found)
            self.runs += count
            yield
        place: tuple[str, str] | None = (FIRST, FIRST)
        while place is not None:
            found, place = await self._db.read(look_at_sessions, place, self._page)
            self.findings.add(found)
            yield

    async def _journals(self) -> AsyncIterator[None]:
        before = ""
        while self._max_journals is None or self.journals < self._max_journals:
            limit = self._page if self._max_journals is None else min(self._page, self._max_journals - self.journals)
            sizes = await self._db.read(sizes_of_journals, before, limit)
            if not sizes:
                return
            for chunk in chunks(sizes, self._chunk_bytes):
                self.findings.add(await self._db.read(look_at_journals, chunk))
                self.journals += len(chunk)
                yield
            before = sizes[-1][0]
        if self.journals < self.runs:
            # A limit that was reached; runs that came meanwhile do not count.
            note = f"only the newest {self.journals:,} journals were read; --all reads all"
            for name in _OF_JOURNALS:
                self.findings.of[name].incomplete_because = note

    async def _bodies(self) -> AsyncIterator[None]:
        place: tuple[str, bytes] | None = (FIRST, b"")
        while place is not None:
            found, place = await self._db.read(look_at_bodies, self._db, place, self._page)
            self.findings.add(found)
            yield

    async def _feed(self) -> AsyncIterator[None]:
        check = FeedCheck()
        cursor = b""
        while check.count < FEED_ENTRIES:
            entries, cursor, is_caught_up = await self._db.read(read_feed, self._db, cursor, 2_000)
            check.take(entries)
            yield
            if is_caught_up:
                break
        self.findings.looked_at("feed_in_order", check.count)
        # Of a run that is removed the feed loses the events one batch after the other.
        for run_id in await self._db.read(_still_there, list(check.broken)):
            self.findings.broken("feed_in_order", check.broken[run_id])
        self.findings.add(await self._db.read(_look_at_the_feeds_end, self._db))


_OF_JOURNALS: Final = (
    "one_result_per_call",
    "attempts_in_order",
    "lease_epochs",
    "nothing_after_the_end",
    "totals_add_up",
    "bodies_are_there",
)


class FeedCheck:
    """Takes the feed from its beginning.

    Attributes:
        count: Entries so far.
        broken: What is wrong with them, by run.
    """

    def __init__(self) -> None:
        self.count = 0
        self.broken: dict[str, str] = {}
        self._last: dict[str, int] = {}

    def take(self, entries: Iterable[feed_pb2.FeedEntry]) -> None:
        """Takes the next entries."""
        for entry in entries:
            self.count += 1
            event = entry.event
            last = self._last.get(event.run_id, 0)
            # Of an erased run nothing else is left.
            if event.seq != last + 1 and not is_tombstone([event]):
                self.broken.setdefault(event.run_id, f"run {event.run_id}: event {event.seq} comes after {last}")
            self._last[event.run_id] = event.seq


def _still_there(connection: sa.Connection, run_ids: list[str]) -> list[str]:
    r = t.runs.c
    return list(connection.execute(sa.select(r.run_id).where(r.run_id.in_(run_ids[:MOST]))).scalars())


# The feed's positions are transaction ids with its base added; none is of a transaction that is still to come.
_TO_COME = sa.text(
    "SELECT run_id, seq FROM journal WHERE txid >= CAST(CAST(CAST(CAST(pg_snapshot_xmax("
    "pg_current_snapshot()) AS text) AS bigint) + COALESCE((SELECT base FROM feed), 0) AS text) AS xid8) LIMIT :limit"
)


def _look_at_the_feeds_end(connection: sa.Connection, db: Database) -> Findings:
    found = Findings()
    found.looked_at("feed_goes_on")
    if db.dialect == "postgresql":
        for run_id, seq in connection.execute(_TO_COME, {"limit": MOST}):
            found.broken("feed_goes_on", f"run {run_id}: event {seq}")
    return found
