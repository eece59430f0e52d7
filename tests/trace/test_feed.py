"""Following the feed: nothing lost and nothing double, whatever breaks on the way (P9)."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace

import psycopg
import pytest
from prometheus_client import generate_latest

from services.shared.database import Database
from services.trace.tables import chunks, runs
from tests.trace.conftest import Following, Suite, ingest, migrated, rows, stored_cursor
from tests.trace.journals import (
    Journal,
    cancelled_run,
    in_feed_order,
    parallel_run,
    simple_run,
    timer_run,
    troubled_run,
)


def some_journals(count: int = 4) -> list[Journal]:
    kinds = (simple_run, parallel_run, troubled_run, cancelled_run, timer_run)
    return [kinds[number % len(kinds)](begin=number * 0.1) for number in range(count)]


async def check_complete(db: Database, journals: list[Journal]) -> None:
    """The rows are those of a clean ingest of the same journals."""
    found = await rows(db)
    await db.write(lambda connection: [connection.execute(table.delete()) for table in (chunks, runs)])
    await ingest(db, journals)
    assert found == await rows(db)


async def test_events_are_stored_with_the_place_where_the_feed_goes_on(suite: Suite, db: Database) -> None:
    await suite.start_peers()
    journals = some_journals()
    entries = in_feed_order(journals)
    following = Following(suite, db)
    async with following.running():
        await suite.peers.feed.add(*entries[:20])
        await suite.peers.feed.add(*entries[20:])
        for journal in journals:
            await following.wait_until_stored(journal)
    assert await stored_cursor(db) == suite.peers.feed.cursor(len(entries))
    await check_complete(db, journals)


@pytest.mark.promise("P9")
async def test_reader_goes_on_where_it_was_after_every_break(suite: Suite, db: Database) -> None:
    await suite.start_peers()
    feed = suite.peers.feed
    feed.frame_size, feed.frames_until_break, feed.redelivered = 3, 2, 5
    journals = some_journals(3)
    await feed.add(*in_feed_order(journals))
    following = Following(suite, db)
    async with following.running():
        for journal in journals:
            await following.wait_until_stored(journal)
    assert len(feed.starts) > 3, "the stream broke again and again"
    assert feed.starts[0] == b""
    await check_complete(db, journals)


@pytest.mark.promise("P9")
async def test_restarted_reader_begins_at_the_stored_cursor(suite: Suite, db: Database) -> None:
    await suite.start_peers()
    feed = suite.peers.feed
    first, second = simple_run(), parallel_run()
    await feed.add(*first.entries)
    following = Following(suite, db)
    async with following.running():
        await following.wait_until_stored(first)
    await feed.wait_for_streams(0)
    await feed.add(*second.entries)
    again = Following(suite, db)
    async with again.running():
        await again.wait_until_stored(second)
    assert feed.starts == [b"", feed.cursor(len(first.entries))]
    await check_complete(db, [first, second])


async def test_frames_that_wait_are_stored_together(suite: Suite, db: Database) -> None:
    await suite.start_peers()
    suite.peers.feed.frame_size = 1
    journals = some_journals(40)
    await suite.peers.feed.add(*in_feed_order(journals))
    following = Following(suite, db)
    async with following.running():
        for journal in journals:
            await following.wait_until_stored(journal)
    page = generate_latest(following.telemetry.registry).decode()
    transactions = next(
        float(line.split()[1])
        for line in page.splitlines()
        if line.startswith("holdfast_trace_feed_commit_seconds_count")
    )
    assert transactions < suite.peers.feed.frames_sent
    await check_complete(db, journals)


async def test_state_that_is_not_up_yet_is_waited_for(
    suite: Suite, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    suite.settings = replace(suite.settings, state_address=address)
    journal = simple_run()
    following = Following(suite, db)
    said = asyncio.Event()

    def listen(record: logging.LogRecord) -> bool:
        if record.getMessage() == "waiting for state":
            said.set()
        return True

    logger = logging.getLogger("services.trace.feed")
    logger.addFilter(listen)
    try:
        with caplog.at_level(logging.INFO):
            async with following.running():
                async with asyncio.timeout(10):
                    await said.wait()
                await suite.start_peers(listen=address)
                await suite.peers.feed.add(*journal.entries)
                await following.wait_until_stored(journal)
    finally:
        logger.removeFilter(listen)
    assert caplog.text.count("waiting for state") == 1, "said once, not at each attempt"


async def test_replaced_feed_is_read_from_its_beginning(suite: Suite, db: Database) -> None:
    await suite.start_peers()
    feed = suite.peers.feed
    before, after = simple_run(), parallel_run()
    await feed.add(*before.entries)
    following = Following(suite, db)
    async with following.running():
        await following.wait_until_stored(before)
    feed.generation = 2
    await feed.add(*after.entries)
    async with following.running():
        await following.wait_until_stored(after)
    assert feed.starts[-2:] == [b"1:4", b""]
    assert await stored_cursor(db) == feed.cursor(len(before.entries) + len(after.entries))
    await check_complete(db, [before, after])


async def test_standby_takes_over_when_the_leader_goes(postgres_suite: Suite) -> None:
    # One replica reads the feed at a time.
    await postgres_suite.start_peers()
    feed = postgres_suite.peers.feed
    first, second = simple_run(), parallel_run()
    await feed.add(*first.entries)
    async with (
        migrated(postgres_suite.settings.database_url) as one,
        migrated(postgres_suite.settings.database_url) as two,
    ):
        leader, standby = Following(postgres_suite, one), Following(postgres_suite, two)
        leading = leader.running()
        await leading.__aenter__()
        await leader.wait_until_stored(first)
        async with standby.running():
            assert feed.open_streams == 1
            await leading.__aexit__(None, None, None)
            await feed.add(*second.entries)
            await standby.wait_until_stored(second)
        assert feed.starts == [b"", feed.cursor(len(first.entries))]
        await check_complete(two, [first, second])


@pytest.mark.promise("P9")
async def test_two_processes_that_both_project_store_nothing_twice(suite: Suite, db: Database) -> None:
    # On SQLite nothing keeps a second process from trying; on PostgreSQL a leader may have lost its lock unnoticed.
    await suite.start_peers()
    suite.peers.feed.frame_size = 2
    journals = some_journals(6)
    one, two = Following(suite, db), Following(suite, db)
    two.progress = one.progress
    async with one.running(), two.running():
        await suite.peers.feed.add(*in_feed_order(journals))
        for journal in journals:
            await one.wait_until_stored(journal)
    await check_complete(db, journals)


async def test_projection_goes_on_after_the_database_was_away(postgres_suite: Suite) -> None:
    await postgres_suite.start_peers()
    first, second = simple_run(), parallel_run()
    async with migrated(postgres_suite.settings.database_url) as db:
        following = Following(postgres_suite, db)
        async with following.running():
            await postgres_suite.peers.feed.add(*first.entries)
            await following.wait_until_stored(first)
            with psycopg.connect(postgres_suite.settings.database_url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            await postgres_suite.peers.feed.add(*second.entries)
            await following.wait_until_stored(second)
        await check_complete(db, [first, second])
