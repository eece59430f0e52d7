"""What is due happens when it is due: timers, lost executors and thousands at once, however seldom the pulse beats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from holdfast.api.common.v1 import run_pb2
from holdfast.ids import new_uuid7
from services.shared.clock import SystemClock
from services.shared.database import Database
from services.state import lease_store
from services.state import tables as t
from services.state.pulse import Pulse
from tests.state.lease_rows import insert_runs
from tests.state.support import QUEUED, RUNNING, WAITING, Store, becomes

# Far longer than any test waits: what happens earlier does so because it was known to be due.
SELDOM = 3_600.0


@asynccontextmanager
async def pulse(store: Store) -> AsyncIterator[None]:
    """A pulse that would not look again while the test lasts."""
    async with asyncio.TaskGroup() as tasks:
        beating = tasks.create_task(Pulse(store.db, store.hub, SystemClock(), interval_seconds=SELDOM).run())
        yield
        beating.cancel()


async def now(db: Database) -> datetime:
    return await db.read(db.now)


async def in_state(store: Store, run_ids: list[str], state: run_pb2.RunState) -> list[sa.Row[tuple[datetime]]]:
    r = t.runs.c
    query = sa.select(r.ready_at).where(r.run_id.in_(run_ids), r.state == state)
    return await store.db.read(lambda connection: list(connection.execute(query).all()))


async def until_ready(store: Store, run_ids: list[str]) -> list[datetime]:
    """When each of the runs became ready."""
    async with asyncio.timeout(30):
        while len(ready := await in_state(store, run_ids, QUEUED)) < len(run_ids):
            await asyncio.sleep(0.02)
    return [row.ready_at for row in ready]


async def test_timer_that_is_known_fires_at_its_time(store: Store) -> None:
    due = await now(store.db) + timedelta(seconds=1)
    run_ids = await store.db.write(insert_runs, store.workspace, 1, state=WAITING, wake_at=due)
    async with pulse(store):
        (ready_at,) = await until_ready(store, run_ids)
    assert ready_at >= due


async def test_timer_that_is_set_while_the_pulse_rests_fires_at_its_time(store: Store) -> None:
    later = await now(store.db) + timedelta(hours=1)
    await store.db.write(insert_runs, store.workspace, 1, state=WAITING, wake_at=later)
    async with pulse(store):
        for seconds in (0.6, 0.3):
            run = await store.claimed()
            due = await now(store.db) + timedelta(seconds=seconds)
            await store.advance(run, becomes(WAITING, wake=due, wait_reason=run_pb2.WAIT_REASON_TIMER))
            (ready_at,) = await until_ready(store, [run.run_id])
            assert ready_at >= due
            await store.take(run)


async def test_thousands_of_timers_of_one_moment_fire_one_batch_after_the_other(store: Store) -> None:
    due = await now(store.db) + timedelta(seconds=1)
    count = 2 * lease_store.SWEEP_LIMIT + 500
    run_ids = await store.db.write(insert_runs, store.workspace, count, state=WAITING, wake_at=due)
    hints = store.hub.ready_hints
    async with pulse(store):
        moments = await until_ready(store, run_ids)
        assert len(set(moments)) == 3
        assert store.hub.ready_hints - hints >= 3
        # In between, others could write.
        assert (await store.create()).last_seq == 1


async def test_runs_of_many_lost_executors_are_returned_in_batches(store: Store) -> None:
    def fill(connection: sa.Connection) -> list[str]:
        found = []
        for _ in range(2 * lease_store.SWEEP_EXECUTORS + 1):
            executor = new_uuid7()
            connection.execute(
                sa.insert(t.executors).values(executor_id=executor, stream_id=new_uuid7(), expires_at=silent_since)
            )
            found += insert_runs(connection, store.workspace, 3, state=RUNNING, holder=executor)
        return found

    silent_since = datetime(2026, 1, 1, tzinfo=UTC)
    run_ids = await store.db.write(fill)
    sweeps = [await store.db.write(lease_store.sweep, store.db) for _ in range(4)]
    assert [sweep.ready_runs for sweep in sweeps] == [30, 30, 3, 0]
    assert [sweep.is_full for sweep in sweeps] == [True, True, False, False]
    assert sweeps[-1].is_empty
    assert len(await in_state(store, run_ids, QUEUED)) == len(run_ids)


async def test_end_of_a_grace_is_noticed_when_it_is_over(store: Store) -> None:
    run = await store.claimed()
    stream = store.streams[run.holder]
    await store.db.write(lease_store.close_stream, store.db, run.holder, stream, in_order=False)

    def shorten(connection: sa.Connection) -> None:
        connection.execute(sa.update(t.executors).values(expires_at=due))

    async with pulse(store):
        # The first beat gives everybody a whole lease, as state was away: this is over before the next one.
        async with asyncio.timeout(10):
            while (await expires_of(store)) < await now(store.db) + lease_store.GRACE:
                await asyncio.sleep(0.01)
        due = await now(store.db) + timedelta(seconds=0.3)
        await store.db.write(shorten)
        store.hub.wakes_at(due)
        await until_ready(store, [run.run_id])


async def expires_of(store: Store) -> datetime:
    query = sa.select(t.executors.c.expires_at)
    return await store.db.read(lambda connection: connection.execute(query).scalar_one())


@pytest.mark.parametrize("wakes_in", [0.0, -5.0])
async def test_timer_of_the_past_fires_at_once(store: Store, wakes_in: float) -> None:
    async with pulse(store):
        run = await store.claimed()
        due = await now(store.db) + timedelta(seconds=wakes_in)
        await store.advance(run, becomes(WAITING, wake=due, wait_reason=run_pb2.WAIT_REASON_TIMER))
        await until_ready(store, [run.run_id])
