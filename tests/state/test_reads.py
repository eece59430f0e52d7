"""What an idle process reads again and again does not grow with the journal."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.ids import new_uuid7
from services.state import change_feed, feed_origin, lease_store
from tests.state.support import becomes, finished, migrated, opened, started

EVENTS = 3_000
# Entries of the feed that a follower asks for.
FRAME = 5

SUCCEEDED = becomes(run_pb2.RUN_STATE_SUCCEEDED)

_FILL = sa.text(
    "INSERT INTO journal (run_id, seq, workspace_id, epoch, at, body) "
    "SELECT gen_random_uuid(), 1, CAST(:workspace_id AS uuid), 0, now(), '' FROM generate_series(1, :events)"
)
# Of this transaction alone.
_READ = sa.text("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'journal'")


async def test_the_end_of_a_long_journal_is_found_without_reading_it(postgres_database: str) -> None:
    async with migrated(postgres_database) as db:
        for _ in range(3):
            await db.write(_fill)
        glanced = await db.read(_rows_read, lambda connection: lease_store.glance(connection, db))
        # What the feed's lag, its end and its origin are told by.
        newest = await db.read(_rows_read, lambda connection: connection.execute(sa.text(feed_origin.NEWEST_SQL)).one())
        assert max(glanced, newest) <= 2


async def test_a_follower_that_is_far_behind_reads_what_it_is_sent(postgres_database: str) -> None:
    def follow(connection: sa.Connection) -> None:
        assert len(change_feed.read_frame(connection, db, b"", FRAME).entries) == FRAME

    async with migrated(postgres_database) as db:
        for _ in range(3):
            await db.write(_fill)
        # The events of one transaction have no order of their own.
        assert await db.write_by_keys(_rows_read, follow) <= EVENTS + 1


async def test_ends_among_many_awaited_runs_are_found_by_the_newest_events(postgres_database: str) -> None:
    async with opened(postgres_database) as store:
        runs = [await store.claimed() for _ in range(2)]
        for _ in range(3):
            await store.db.write(_fill)
        seen = await store.db.read(lease_store.glance, store.db)
        for run, last in zip(runs, (SUCCEEDED, started(2)), strict=True):
            await store.advance(run, started(1), finished(1), last)
        awaited = [*(run.run_id for run in runs), *(new_uuid7() for _ in range(2_000)), "no UUID"]
        found: list[str] = []

        def look(connection: sa.Connection) -> None:
            found.extend(lease_store.ended_since(connection, awaited, seen.horizon))

        assert await store.db.write_by_keys(_rows_read, look) <= 2 * len(runs)
        assert found == [runs[0].run_id]


def _fill(connection: sa.Connection) -> None:
    connection.execute(_FILL, {"workspace_id": new_uuid7(), "events": EVENTS})


def _rows_read(connection: sa.Connection, read: Callable[[sa.Connection], object]) -> int:
    before = connection.execute(_READ).scalar_one()
    read(connection)
    after: int = connection.execute(_READ).scalar_one()
    return after - before
