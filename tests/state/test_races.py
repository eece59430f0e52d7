"""Two transactions that meet at the worst moment, on PostgreSQL, where several replicas of state write at once.

One of the two is held open by the test, so that the other is known to wait for its locks; nothing depends on timing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.state import new_runs, run_store, tables
from tests.state.builders import (
    CANCELLED,
    QUEUED,
    WORKSPACE,
    call,
    ends,
    new_run,
    starts,
    transition,
    waits,
)
from tests.state.sql_store import SqlStateStore, empty, migrated, opened

# Its fixtures: the store on either database.
pytest_plugins = ["tests.state.sql_fixtures"]

ADA = new_uuid7()
PAST = datetime.now(UTC) - timedelta(hours=1)


@pytest.fixture
async def store(postgres_state: str) -> AsyncIterator[SqlStateStore]:
    """The store on an empty PostgreSQL database."""
    async with migrated(postgres_state) as db:
        await db.write(empty)
        async with opened(db) as opened_store:
            yield opened_store


@asynccontextmanager
async def held_open(postgres_url: str, fn: Callable[..., Any], *args: Any) -> AsyncIterator[Any]:
    """Another replica's transaction: done at the beginning of the block, committed at its end."""
    async with Database(postgres_url, schema="state", pool_size=1) as db:
        done, may_commit = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def hold(connection: sa.Connection) -> Any:
            result = fn(connection, *[db if arg is Database else arg for arg in args])
            loop.call_soon(done.set)
            # Runs in the greenlet of the async engine: it may wait for the loop's event like any coroutine.
            sa.util.await_only(may_commit.wait())
            return result

        task = asyncio.create_task(db.write(hold))
        try:
            async with asyncio.timeout(10):
                waiter = asyncio.create_task(done.wait())
                await asyncio.wait({waiter, task}, return_when=asyncio.FIRST_COMPLETED)
                waiter.cancel()
                if task.done():
                    await task
            yield
        finally:
            may_commit.set()
            await task


async def until_blocked(db: Database, count: int = 1) -> None:
    """Returns when so many backends wait for a lock."""

    def waiting(connection: sa.Connection) -> int:
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return int(connection.execute(query).scalar_one())

    async with asyncio.timeout(10):
        # The lock is another process's: there is no event to wait for.
        while await db.read(waiting) < count:
            await asyncio.sleep(0.01)


async def created(store: SqlStateStore, session_id: str = "") -> run_pb2.Run:
    [run] = await store.commit(new_run(session_id=session_id))
    assert isinstance(run, run_pb2.Run), run
    return run


async def test_run_that_ends_while_its_successor_is_made_elsewhere_unblocks_it(
    store: SqlStateStore, postgres_state: str
) -> None:
    first = await created(store)
    epoch = (await store.claim(ADA))[first.run_id]
    successor = new_run(session_id=first.session_id)
    async with held_open(postgres_state, new_runs.insert_run, Database, successor):
        end = asyncio.create_task(store.commit(transition(first.run_id, epoch, 2, ends())))
        await until_blocked(store.db)
    assert await end == [2]
    assert set(await store.claim(ADA)) == {successor.run_id}


async def test_run_made_while_the_one_before_it_is_cancelled_still_waits_for_the_first(
    store: SqlStateStore, postgres_state: str
) -> None:
    first = await created(store)
    second = await created(store, first.session_id)
    third = new_run(session_id=first.session_id)
    async with held_open(
        postgres_state, run_store.request_cancel, Database, WORKSPACE, second.run_id, "key-1", "enough"
    ):
        creation = asyncio.create_task(store.commit(third))
        await until_blocked(store.db)
    [made] = await creation
    assert isinstance(made, run_pb2.Run)
    assert made.previous_run_id == first.run_id
    assert (await store.run(second.run_id)).state == CANCELLED
    epochs = await store.claim(ADA)
    assert set(epochs) == {first.run_id}
    await store.commit(transition(first.run_id, epochs[first.run_id], 2, ends()))
    assert set(await store.claim(ADA)) == {third.run_id}
    # The chain goes on from the newest run.
    fourth = await created(store, first.session_id)
    assert fourth.previous_run_id == third.run_id


async def test_cancel_and_end_of_the_run_before_it_leave_no_run_behind(
    store: SqlStateStore, postgres_state: str
) -> None:
    first = await created(store)
    second = await created(store, first.session_id)
    third = await created(store, first.session_id)
    epoch = (await store.claim(ADA))[first.run_id]
    async with held_open(
        postgres_state, run_store.request_cancel, Database, WORKSPACE, second.run_id, "key-1", "enough"
    ):
        end = asyncio.create_task(store.commit(transition(first.run_id, epoch, 2, ends())))
        await until_blocked(store.db)
    assert await end == [2]
    assert set(await store.claim(ADA)) == {third.run_id}


async def test_feed_has_a_runs_events_in_order_although_a_sweep_waited_for_another_run(
    store: SqlStateStore, postgres_state: str
) -> None:
    # The sweep has a transaction id before it comes to the second run; an event is written there in the meantime.
    lost, executor = await created(store), new_uuid7()
    await store.claim(executor)
    await store.lose(executor)
    runs: list[str] = []
    for _ in range(2):
        run = await created(store)
        epoch = (await store.claim(ADA))[run.run_id]
        runs.append(run.run_id)
        await store.commit(
            transition(
                run.run_id,
                epoch,
                2,
                starts(1, tool="refund"),
                waits(run_pb2.WAIT_REASON_TOOL),
                calls=[call(start_deadline=PAST)],
            )
        )
    await store.renew(ADA)

    def lock_first(connection: sa.Connection) -> None:
        connection.execute(sa.select(tables.runs).where(tables.runs.c.run_id == runs[0]).with_for_update())

    async with held_open(postgres_state, lock_first):
        sweep = asyncio.create_task(store.sweep())
        await until_blocked(store.db)
        await store.cancel(runs[1])
    await sweep
    assert (await store.run(lost.run_id)).state == QUEUED
    entries, _ = await store.feed()
    for run_id in runs:
        seen = [seq for found, seq in entries if found == run_id]
        assert seen == sorted(seen)


async def test_feed_does_not_pass_a_transaction_that_is_still_open(store: SqlStateStore, postgres_state: str) -> None:
    before, after = new_run(), new_run()
    async with held_open(postgres_state, new_runs.insert_run, Database, before):
        await store.commit(after)
        entries, cursor = await store.feed()
        assert entries == [], "an older transaction may still commit"
    entries, _ = await store.feed(cursor)
    assert set(entries) == {(before.run_id, 1), (after.run_id, 1)}
