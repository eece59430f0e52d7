"""PostgreSQL breaks connections while state writes: everything is answered, what is answered is stored, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.errors import from_rpc_error
from holdfast.ids import new_uuid7
from services.state.change_feed import read_feed
from tests.state.served import replica
from tests.state.support import RUNNING, SUCCEEDED, Held, Store, becomes, finished, new_run, opened, started

WORKSPACE = new_uuid7()


@asynccontextmanager
async def breaking(url: str, *, every: float) -> AsyncIterator[list[int]]:
    """Ends all connections of state again and again; counts them."""
    ended: list[int] = []
    kill = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE application_name = 'holdfast-state' AND datname = current_database()"
    )

    async def break_on() -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while True:
                row = await (await connection.execute(kill)).fetchone()
                ended.append(row[0] if row else 0)
                await asyncio.sleep(every)

    task = asyncio.create_task(break_on())
    try:
        yield ended
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def psycopg_url(url: str) -> str:
    return url.replace("postgresql+psycopg://", "postgresql://")


@pytest.mark.promise("P1")
async def test_every_operation_is_answered_and_applied_once_while_connections_break(postgres_database: str) -> None:
    async with opened(postgres_database) as store:
        runs = [await store.claimed() for _ in range(30)]
        made: list[pb.OperationResult] = []

        async def drive(run: Held) -> None:
            for step in range(1, 16):
                await store.advance(run, finished(step), started(step + 1))
            await store.advance(run, becomes(SUCCEEDED))

        async def create() -> None:
            for number in range(15):
                request = {"request_id": f"r-{number}", "request_fingerprint": b"f"}
                made.extend(await store.submit(new_run(store.workspace, **request)))

        async with breaking(psycopg_url(postgres_database), every=0.05) as ended, asyncio.timeout(60):
            async with asyncio.TaskGroup() as tasks:
                for run in runs:
                    tasks.create_task(drive(run))
                tasks.create_task(create())
        assert sum(ended) > 0, "nothing was broken"
        for run in runs:
            assert len(await store.events(run)) == 17
        assert {answer.WhichOneof("kind") for answer in made} == {"run"}
        assert len({answer.run.run_id for answer in made}) == 15
        await check_feed(store, 30 * 17 + 15)


async def check_feed(store: Store, count: int) -> None:
    found: list[tuple[str, int]] = []
    cursor = b""
    while True:
        entries, cursor, is_caught_up = await store.db.read(read_feed, store.db, cursor, 500)
        found += [(entry.event.run_id, entry.event.seq) for entry in entries]
        if is_caught_up:
            break
    assert len(found) == len(set(found)) == count


async def test_executor_finds_its_runs_again_when_connections_broke(postgres_database: str) -> None:
    async with replica(postgres_database) as state:
        client = state.executor
        executor = new_uuid7()
        working = await client.work(executor, free_slots=10)
        await client.create(WORKSPACE)
        await working.until_held(1)
        held = dict(working.held)
        async with breaking(psycopg_url(postgres_database), every=0.02) as ended, asyncio.timeout(30):
            while sum(ended) < 20:
                try:
                    await working.say(free_slots=10)
                    if await working.hear() is None:
                        raise ConnectionError
                except Exception:
                    # What the executor does: it comes back and names what it drives.
                    working = await client.work(executor, free_slots=10, held=held.values())
        async with asyncio.timeout(30):
            while True:
                try:
                    working = await client.work(executor, free_slots=10, held=held.values())
                    assert await working.hear() is not None
                    break
                except Exception as error:
                    assert from_rpc_error(error).code.name in ("UNAVAILABLE", "ABORTED")  # type: ignore[arg-type]
        lost = working.lost
        run_id, run = next(iter(held.items()))
        if run_id not in lost:
            assert (await client.run(WORKSPACE, run_id)).state == RUNNING
            assert await client.append(WORKSPACE, run_id, run.epoch, 2, started(1)) == 2
        # Claims go on as before.
        new = await client.create(WORKSPACE)
        async with asyncio.timeout(15):
            while new.run_id not in working.held:
                assert await working.hear() is not None
        working.stream.cancel()
