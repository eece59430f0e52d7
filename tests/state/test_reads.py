"""What an idle process reads again and again does not grow with the journal."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from holdfast.ids import new_uuid7
from services.state import change_feed, feed_origin, lease_store
from tests.state.support import migrated

EVENTS = 3_000
# Entries of the feed that a follower asks for.
FRAME = 5

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


def _fill(connection: sa.Connection) -> None:
    connection.execute(_FILL, {"workspace_id": new_uuid7(), "events": EVENTS})


def _rows_read(connection: sa.Connection, read: Callable[[sa.Connection], object]) -> int:
    before = connection.execute(_READ).scalar_one()
    read(connection)
    after: int = connection.execute(_READ).scalar_one()
    return after - before
