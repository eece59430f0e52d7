"""Several processes of state on one PostgreSQL: whoever is asked, the answer is the same, and hints cross over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import grpc.aio
import pytest
import sqlalchemy as sa

from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.errors import Reason, from_rpc_error
from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.state import lease_store
from services.state import tables as t
from tests.state.served import Replica, replica
from tests.state.support import QUEUED, RUNNING, SUCCEEDED, becomes, finished, migrated, started

WORKSPACE = new_uuid7()


@pytest.fixture
async def replicas(postgres_database: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two on one database."""
    async with AsyncExitStack() as stack:
        # Both at once: the migrations are made by one of them, and the other waits.
        first, second = await asyncio.gather(*(stack.enter_async_context(replica(postgres_database)) for _ in range(2)))
        yield first, second


async def test_run_created_through_one_is_claimed_and_watched_through_the_other(
    replicas: tuple[Replica, Replica],
) -> None:
    here, there = replicas[0].executor, replicas[1].executor
    working = await there.work(new_uuid7(), free_slots=5)
    run = await here.create(WORKSPACE)
    await working.until_held(1)
    epoch = working.held[run.run_id].epoch
    seen: list[int] = []
    may_go_on = asyncio.Event()

    async def watch() -> None:
        async for message in there.watch(WORKSPACE, run.run_id):
            if message.HasField("event"):
                seen.append(message.event.seq)
                may_go_on.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        for seq in range(2, 12):
            changes = [finished(seq), started(seq + 1)] if seq < 11 else [becomes(SUCCEEDED)]
            await here.append(WORKSPACE, run.run_id, epoch, seq, *changes)
            if seq == 5:
                # Some while the watcher lives on what is stored, some while it waits.
                await may_go_on.wait()
    assert seen == list(range(1, 12))
    working.stream.cancel()


@pytest.mark.promise("P9")
async def test_follower_of_one_hears_what_the_other_commits(replicas: tuple[Replica, Replica]) -> None:
    follower = replicas[0].trace.follow()
    made: list[str] = []
    found: list[str] = []

    async def create() -> None:
        for number in range(30):
            run = await replicas[number % 2].executor.create(WORKSPACE)
            made.append(run.run_id)

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(create())
        async for frame in follower:
            found += [entry.event.run_id for entry in frame.entries]
            if len(found) >= 30:
                break
    follower.cancel()
    assert sorted(found) == sorted(made)


async def test_driver_is_nudged_by_an_event_that_came_through_the_other(replicas: tuple[Replica, Replica]) -> None:
    here, there = replicas[0].executor, replicas[1].executor
    run = await here.create(WORKSPACE)
    working = await there.work(new_uuid7(), free_slots=1)
    await working.until_held(1)
    await here.cancel(WORKSPACE, run.run_id)
    await working.until_nudged(run.run_id)
    working.stream.cancel()


@pytest.mark.promise("P3")
async def test_executor_that_moves_to_the_other_keeps_its_runs(
    replicas: tuple[Replica, Replica], postgres_database: str
) -> None:
    here, there = replicas[0].executor, replicas[1].executor
    runs = [await here.create(WORKSPACE) for _ in range(3)]
    executor = new_uuid7()
    before = await here.work(executor, free_slots=3)
    await before.until_held(3)
    # The old connection is still open, as when its break has not been noticed.
    named = [before.held[run.run_id] for run in runs[:2]]
    after = await there.work(executor, free_slots=0, held=named)
    await after.hear()
    assert after.lost == set()
    assert [(await here.run(WORKSPACE, run.run_id)).state for run in runs] == [RUNNING, RUNNING, QUEUED]
    with pytest.raises(Exception) as refused:
        while True:
            await before.say(free_slots=3)
            await before.hear()
    assert from_rpc_error(refused.value).reason == Reason.LEASE_LOST  # type: ignore[arg-type]
    # The end of the old stream has not cost the new one its lease.
    async with migrated(postgres_database) as db:
        query = sa.text("SELECT expires_at - clock_timestamp() FROM executors")
        left = await db.read(lambda connection: connection.execute(query).scalar_one())
    assert left > lease_store.GRACE
    await after.say()
    await after.hear()
    for run in runs[:2]:
        assert await there.append(WORKSPACE, run.run_id, 1, 2, started(1)) == 2
    after.stream.cancel()


async def test_executor_whose_leases_ran_out_is_told_so_and_may_come_back(
    replicas: tuple[Replica, Replica], postgres_database: str
) -> None:
    here = replicas[0].executor
    run = await here.create(WORKSPACE)
    executor = new_uuid7()
    working = await here.work(executor, free_slots=1)
    await working.until_held(1)
    async with migrated(postgres_database) as db:
        await db.write(lease_store.close_stream, db, executor, await stream_of(db, executor), in_order=True)
    with pytest.raises(Exception) as refused:
        async with asyncio.timeout(15):
            while True:
                await working.say()
                await working.hear()
                await asyncio.sleep(0.1)
    assert from_rpc_error(refused.value).reason == Reason.LEASE_LOST  # type: ignore[arg-type]
    again = await here.work(executor, free_slots=0, held=working.held.values())
    await again.hear()
    assert again.lost == {run.run_id}
    again.stream.cancel()


async def stream_of(db: Database, executor: str) -> str:
    query = sa.select(t.executors.c.stream_id).where(t.executors.c.executor_id == executor)
    return await db.read(lambda connection: connection.execute(query).scalar_one())


async def test_draining_replica_ends_its_streams_and_leaves_the_leases(postgres_database: str) -> None:
    executor = new_uuid7()
    async with replica(postgres_database) as stays:
        async with replica(postgres_database) as leaves:
            client = leaves.executor
            run = await client.create(WORKSPACE)
            working = await client.work(executor, free_slots=1)
            await working.until_held(1)
            watcher, follower = client.watch(WORKSPACE, run.run_id), leaves.trace.follow()
            assert (await watcher.read()).event.seq == 1
            await follower.read()
            # An answer on each, so that all of them have arrived when the drain begins.
            checkpoint = client.journal.Checkpoint()
            asked = pb.Operation(id=1, await_end=pb.AwaitEnd(workspace_id=WORKSPACE, run_id=new_uuid7()))
            await checkpoint.write(pb.CheckpointRequest(operations=[asked]))
            answer = await checkpoint.read()
            assert isinstance(answer, pb.CheckpointResponse)
            assert answer.results[0].id == 1
            began = asyncio.get_running_loop().time()
            draining = asyncio.create_task(leaves.server.drain())
            async with asyncio.timeout(10):
                while await working.hear() is not None:
                    pass
                assert await watcher.read() is grpc.aio.EOF
                while await follower.read() is not grpc.aio.EOF:
                    pass
                await draining
            # Nobody had to wait for a poll or for the end of the grace.
            assert asyncio.get_running_loop().time() - began < leaves.server._settings.drain_seconds
            for stream in (watcher, follower, checkpoint):
                stream.cancel()
        assert (await stays.executor.run(WORKSPACE, run.run_id)).state == RUNNING
        again = await stays.executor.work(executor, free_slots=0, held=working.held.values())
        await again.hear()
        assert again.lost == set()
        assert await stays.executor.append(WORKSPACE, run.run_id, 1, 2, becomes(SUCCEEDED)) == 2
        again.stream.cancel()


@pytest.mark.promise("P3")
async def test_executors_on_both_replicas_share_the_runs(replicas: tuple[Replica, Replica]) -> None:
    executors = [await replicas[number % 2].executor.work(new_uuid7(), free_slots=10) for number in range(4)]
    runs = await asyncio.gather(*(replicas[n % 2].executor.create(WORKSPACE) for n in range(40)))
    async with asyncio.timeout(20):
        while sum(len(working.held) for working in executors) < 40:
            for working in executors:
                await working.say(free_slots=10 - len(working.held))
                await working.hear()
    held = [run_id for working in executors for run_id in working.held]
    assert sorted(held) == sorted(run.run_id for run in runs)
    for working in executors:
        working.stream.cancel()
