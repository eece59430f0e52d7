"""What is stored depends on the events alone: not on frames, repetition or order (P9)."""

from __future__ import annotations

import asyncio
import itertools
import zlib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1.change_feed_service_pb2 import FeedEntry
from holdfast.errors import Conflict
from services.shared.database import Database
from services.trace.store_sql import SqlTraceStore, events_in
from services.trace.summary import RunRecord
from services.trace.tables import chunks, events, feeds, metadata, runs
from tests.trace.conftest import copies, ingest, migrated, rows, stored_cursor
from tests.trace.journals import (
    OTHER_WORKSPACE,
    WORKSPACE,
    Journal,
    approved_run,
    asks,
    call_started,
    cancelled_run,
    finish_model,
    finish_tool,
    in_feed_order,
    parallel_run,
    paused_run,
    result,
    simple_run,
    start_model,
    start_tool,
    timer_run,
    troubled_run,
    waits,
)

KINDS = (simple_run, parallel_run, troubled_run, cancelled_run, timer_run)


async def _empty(db: Database) -> None:
    def delete(connection: sa.Connection) -> None:
        for table in (chunks, runs):
            connection.execute(table.delete())
        connection.execute(feeds.update().values(cursor=b""))

    await db.write(delete)


async def _rows_after(db: Database, frames: list[list[FeedEntry]]) -> dict[str, list[tuple[Any, ...]]]:
    await _empty(db)
    async with SqlTraceStore(db).projection() as projection:
        cursor = b""
        for number, frame in enumerate(frames):
            following = f"after frame {number}".encode()
            await projection.store(copies(frame), after=cursor, cursor=following)
            cursor = following
    return await rows(db)


def _erases(journal: Journal) -> FeedEntry:
    """What is left in the feed of a run that was erased."""
    event = run_pb2.Event(run_id=journal.run_id, seq=len(journal.events) + 1)
    event.changes.add().run_erased.requested_by = "key-of-ada"
    return FeedEntry(workspace_id=WORKSPACE, event=event)


def without_content(events: Iterable[run_pb2.Event]) -> list[run_pb2.Event]:
    """The events as trace keeps them: what was said stays in state."""
    kept = [run_pb2.Event.FromString(event.SerializeToString()) for event in events]
    for event in kept:
        for change in event.changes:
            if change.HasField("run_created"):
                change.run_created.input.message.ClearField("parts")
            elif change.HasField("step_finished") and change.step_finished.HasField("message"):
                change.step_finished.message.message.ClearField("parts")
            elif change.HasField("approval_requested"):
                for field in ("prompt", "answer_schema", "arguments_json", "arguments_sha256"):
                    change.approval_requested.approval.ClearField(field)
            elif change.HasField("approval_decided"):
                for field in ("answer_json", "comment", "reason", "edited_arguments_json", "arguments_sha256"):
                    change.approval_decided.ClearField(field)
            elif change.HasField("late_result"):
                change.late_result.ClearField("content")
    return kept


async def test_what_was_said_is_not_stored(db: Database) -> None:
    journal = simple_run()
    await ingest(db, [journal])
    bodies = await db.read(lambda connection: connection.execute(sa.select(chunks.c.body)).scalars().all())
    kept = [event for body in bodies for event in events_in(body)]
    assert [event.seq for event in kept] == [event.seq for event in journal.events]
    assert "on its way" not in "".join(map(str, kept))


async def test_what_calls_that_waited_for_approval_were_about_is_not_stored(db: Database) -> None:
    journal = approved_run()
    await ingest(db, [journal])
    bodies = await db.read(lambda connection: connection.execute(sa.select(chunks.c.body)).scalars().all())
    kept = [event for body in bodies for event in events_in(body)]
    assert len(kept) == len(journal.events)
    said = "".join(map(str, kept))
    assert not [words for words in ("May refund", '{"id"', "too much", "private remark", "a" * 64) if words in said]


async def test_long_chunks_are_stored_compressed(db: Database) -> None:
    journal = troubled_run()
    await ingest(db, [journal])
    [body] = await db.read(lambda connection: connection.execute(sa.select(chunks.c.body)).scalars().all())
    plain = sum(event.ByteSize() for event in without_content(journal.events))
    assert len(body) < plain / 2
    found = list(events_in(body))
    assert len(found) == len(journal.events)
    # With zlib's own settings, as it was stored before.
    assert list(events_in(zlib.compress(zlib.decompress(body)))) == found


def _said(connection: sa.Connection) -> list[str]:
    """All texts of each chunk."""
    bodies = connection.execute(sa.select(chunks.c.body)).scalars()
    return ["".join(str(event) for event in events_in(body)) for body in bodies]


async def test_texts_of_failures_are_stored_unless_they_lie_sealed_in_state(db: Database) -> None:
    journal = troubled_run()
    failures = {
        text
        for event in journal.events
        for change in event.changes
        for text in (change.attempt_failed.failure.message, change.step_finished.failure.message)
        if text
    }
    assert failures
    sealed, plain = copies(journal.entries), copies(troubled_run().entries)
    for entry in sealed:
        entry.is_sealed = True
    async with SqlTraceStore(db).projection() as projection:
        await projection.store(sealed, after=b"", cursor=b"1")
        [kept] = await db.read(_said)
        await projection.store(plain, after=b"1", cursor=b"2")
    assert kept and not any(text in kept for text in failures)
    said = "".join(await db.read(_said))
    assert all(text in said for text in failures)
    history = await SqlTraceStore(db).find_history(WORKSPACE, journal.run_id)
    assert history is not None and history.run.failed_attempts > 0


async def test_events_of_an_older_release_are_read_with_the_newer_ones(db: Database) -> None:
    journal = troubled_run()
    older, newer = journal.entries[:4], journal.entries[4:]

    def store_as_before(connection: sa.Connection) -> None:
        connection.execute(chunks.delete())
        kept = without_content([entry.event for entry in older])
        for event in kept:
            event.ClearField("run_id")
        values = [{"run_id": journal.run_id, "seq": event.seq, "body": event.SerializeToString()} for event in kept]
        connection.execute(events.insert(), values)

    async with SqlTraceStore(db).projection() as projection:
        await projection.store(copies(older), after=b"", cursor=b"1")
        await db.write(store_as_before)
        await projection.store(copies(newer), after=b"1", cursor=b"2")
        history = await SqlTraceStore(db).find_history(WORKSPACE, journal.run_id)
        assert history is not None
        assert list(history.events) == without_content(journal.events)
        await projection.store([_erases(journal)], after=b"2", cursor=b"3")
    assert await db.read(lambda connection: connection.execute(sa.select(events)).all()) == []
    assert await rows(db) == {"events": [], "runs": []}


async def test_an_erased_run_is_forgotten(db: Database) -> None:
    erased, kept = troubled_run(), simple_run()
    others = await _rows_after(db, [in_feed_order([kept])])
    entries = in_feed_order([erased, kept])
    everything = [*entries, _erases(erased)]
    # In one frame with its events, in one after them, and where nothing else of it is left.
    for frames in ([everything], [entries, [_erases(erased)]], [[*in_feed_order([kept]), _erases(erased)]]):
        assert await _rows_after(db, frames) == others


async def test_a_run_is_not_erased_from_another_workspace(db: Database) -> None:
    journal = simple_run()
    before = await _rows_after(db, [in_feed_order([journal])])
    foreign = _erases(journal)
    foreign.workspace_id = OTHER_WORKSPACE
    assert await _rows_after(db, [in_feed_order([journal]), [foreign]]) == before


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[FeedEntry], list[list[FeedEntry]]]:
    """A feed, and a way to deliver it: cut anywhere, any part of what came before given again."""
    entries = in_feed_order([kind() for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))])
    cuts = sorted(draw(st.sets(st.integers(1, len(entries)), max_size=8)) | {0, len(entries)})
    frames = []
    for start, end in itertools.pairwise(cuts):
        again_from = draw(st.integers(0, start))
        frames.append(entries[again_from:start] + entries[start:end])
    return entries, frames


@st.composite
def shuffles(draw: st.DrawFn) -> tuple[list[FeedEntry], list[list[FeedEntry]]]:
    """A feed in any order whatever, in frames of two."""
    entries = in_feed_order([kind() for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=2))])
    mixed = draw(st.permutations(entries))
    return entries, [mixed[start : start + 2] for start in range(0, len(mixed), 2)]


@pytest.mark.parametrize(("strategy", "examples"), [(deliveries(), 40), (shuffles(), 15)], ids=["cut", "shuffled"])
@pytest.mark.promise("P9")
def test_any_delivery_of_a_feed_gives_the_same_rows(strategy: Any, examples: int, database_url: str) -> None:
    with asyncio.Runner() as runner:

        async def opened() -> tuple[Any, Database]:
            context = migrated(database_url)
            return context, await context.__aenter__()

        context, db = runner.run(opened())

        @settings(max_examples=examples)
        @given(strategy)
        def check(delivery: tuple[list[FeedEntry], list[list[FeedEntry]]]) -> None:
            entries, frames = delivery
            at_once = runner.run(_rows_after(db, [entries]))
            assert runner.run(_rows_after(db, frames)) == at_once
            assert len(at_once["events"]) == len(entries)

        try:
            check()
        finally:
            runner.run(context.__aexit__(None, None, None))


async def test_summary_tells_what_happened_to_a_run(db: Database) -> None:
    journal = troubled_run()
    await ingest(db, [journal])
    run = await SqlTraceStore(db).find_run(WORKSPACE, journal.run_id)
    assert run is not None
    assert run.state == run_pb2.RUN_STATE_FAILED
    assert run.last_seq == run.newest_seq == len(journal.events)
    assert (run.claims, run.model_calls, run.tool_calls, run.failed_attempts) == (3, 2, 1, 3)
    assert run.queued_micros == 1_000_000
    # From WAITING to the decision, a minute and a second later.
    assert run.waiting_micros == 61_000_000
    assert (run.input_tokens, run.output_tokens, run.cost_usd_nanos, run.unpriced_calls) == (100, 10, 1_000, 0)
    assert run.open_steps == {}


async def test_segment_of_a_lost_executor_counts_up_to_its_last_event(db: Database) -> None:
    journal = Journal()
    journal.claim()
    journal.pause(2).drive()
    journal.pause(100).claim()
    journal.pause(4).drive()
    await ingest(db, [journal])
    run = await SqlTraceStore(db).find_run(WORKSPACE, journal.run_id)
    assert run is not None
    assert run.active_so_far_micros == (3 + 5) * 1_000_000


async def test_wait_for_a_timer_ends_when_it_is_due_and_not_when_it_is_claimed(db: Database) -> None:
    journal = timer_run()
    await ingest(db, [journal])
    run = await SqlTraceStore(db).find_run(WORKSPACE, journal.run_id)
    assert run is not None
    assert run.state == run_pb2.RUN_STATE_RUNNING
    assert run.waiting_micros == 10_000_000
    assert run.unpriced_calls == 1


async def test_paused_time_is_neither_active_nor_waiting(db: Database) -> None:
    journal = paused_run()
    await ingest(db, [journal])
    run = await SqlTraceStore(db).find_run(WORKSPACE, journal.run_id)
    assert run is not None
    assert (run.state, run.paused_since, run.segment_started_at) == (run_pb2.RUN_STATE_EXPIRED, None, None)
    # 100 s by its driver, 10 s from its second pause to its end, with an answer between that woke nobody.
    assert run.paused_micros == 110_000_000
    assert run.waiting_micros == 10_000_000
    assert run.active_micros == 5_000_000
    assert run.ended_at is not None


async def test_worker_that_takes_a_call_does_not_end_the_wait_for_its_result(db: Database) -> None:
    journal = Journal().claim().drive(start_model(1, 1))
    journal.drive(finish_model(1, asks(("a", "fetch", {}))), start_tool(2, "a", "fetch"))
    journal.drive(waits(run_pb2.WAIT_REASON_TOOL))
    journal.outside(call_started(2, 1, "worker-1"))
    still = list(journal.events)
    journal.pause(8).outside(finish_tool(2, result("a", "fetch", "ok")))
    store = SqlTraceStore(db)
    async with store.projection() as projection:
        await projection.store(copies(journal.entries[: len(still)]), after=b"", cursor=b"1")
        run = await store.find_run(WORKSPACE, journal.run_id)
        assert run is not None
        assert (run.state, run.wait_reason) == (run_pb2.RUN_STATE_WAITING, run_pb2.WAIT_REASON_TOOL)
        await projection.store(copies(journal.entries), after=b"1", cursor=b"2")
        run = await store.find_run(WORKSPACE, journal.run_id)
        assert run is not None
        assert (run.state, run.waiting_micros) == (run_pb2.RUN_STATE_QUEUED, 10_000_000)


async def test_run_with_a_missing_event_is_shown_up_to_the_gap(db: Database) -> None:
    journal = simple_run()
    entries = journal.entries
    store = SqlTraceStore(db)
    async with store.projection() as projection:
        stored = await projection.store(copies([entries[0], entries[2], entries[3]]), after=b"", cursor=b"1")
        assert stored.runs_with_gap == [journal.run_id]
        history = await store.find_history(WORKSPACE, journal.run_id)
        assert history is not None
        assert (history.run.last_seq, history.run.newest_seq, len(history.events)) == (1, 4, 1)
        stored = await projection.store(copies([entries[1]]), after=b"1", cursor=b"2")
        assert (stored.new_events, stored.advanced, stored.runs_with_gap) == (1, [journal.run_id], [])
    history = await store.find_history(WORKSPACE, journal.run_id)
    assert history is not None
    assert list(history.events) == without_content(journal.events)


async def test_run_whose_first_event_is_missing_is_not_shown(db: Database) -> None:
    journal = simple_run()
    store = SqlTraceStore(db)
    async with store.projection() as projection:
        await projection.store(copies(journal.entries[1:]), after=b"", cursor=b"1")
    assert await store.find_run(WORKSPACE, journal.run_id) is None


async def test_frame_after_another_cursor_is_refused_whole(db: Database) -> None:
    journal = simple_run()
    async with SqlTraceStore(db).projection() as projection:
        await projection.store([], after=b"", cursor=b"1")
        with pytest.raises(Conflict):
            await projection.store(copies(journal.entries), after=b"", cursor=b"2")
    assert await stored_cursor(db) == b"1"
    assert await rows(db) == {"events": [], "runs": []}


@pytest.mark.promise("P11")
async def test_event_of_a_run_in_another_workspace_is_not_stored(db: Database) -> None:
    journal = simple_run()
    foreign = [FeedEntry(workspace_id=OTHER_WORKSPACE, event=event) for event in journal.events]
    async with SqlTraceStore(db).projection() as projection:
        await projection.store(copies(journal.entries[:2]), after=b"", cursor=b"1")
        await projection.store(copies(foreign), after=b"1", cursor=b"2")
    found = await rows(db)
    assert len(found["events"]) == 2


async def test_only_one_process_leads_on_postgresql(postgres_database: str) -> None:
    async with migrated(postgres_database) as one, migrated(postgres_database) as two:
        async with SqlTraceStore(two).projection() as second:
            async with SqlTraceStore(one).projection() as first:
                assert await first.try_to_lead()
                assert await first.try_to_lead()
                assert not await second.try_to_lead()
            assert await second.try_to_lead()


async def test_huge_frame_is_stored_in_one_transaction(db: Database) -> None:
    journals = [parallel_run() for _ in range(1_200)]
    await ingest(db, journals)
    found = await rows(db)
    assert len(found["runs"]) == 1_200
    assert len(found["events"]) == sum(len(journal.events) for journal in journals)


async def test_migrations_build_what_the_tables_say(db: Database) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))

    assert await db.read(differences) == []


def test_columns_of_a_run_are_the_fields_of_its_record() -> None:
    # Rows and records are turned into each other by position.
    assert [column.name for column in runs.columns] == [field.name for field in fields(RunRecord)]


async def test_history_survives_closing_the_database(tmp_path: Path) -> None:
    journal = simple_run()
    url = f"sqlite:///{tmp_path}/trace.db"
    async with migrated(url) as first:
        await ingest(first, [journal])
    async with migrated(url) as second:
        history = await SqlTraceStore(second).find_history(WORKSPACE, journal.run_id)
    assert history is not None
    assert list(history.events) == without_content(journal.events)
