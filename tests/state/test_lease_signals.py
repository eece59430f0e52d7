"""Hints between replicas, and that nobody claims without a reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from holdfast.ids import new_uuid7
from services.shared.database import Database
from services.state import lease_store
from services.state.claiming import MAX_CLAIMS_BESIDE_OTHERS, Claiming
from services.state.hub import Hub
from services.state.signals import CHANNEL, Signals
from tests.state.lease_rows import insert_runs, put_workspace
from tests.state.support import Store, migrated


@dataclass
class Process:
    """What a replica has of it."""

    db: Database
    hub: Hub
    claiming: Claiming
    signals: Signals


@asynccontextmanager
async def replica(url: str) -> AsyncIterator[Process]:
    """A process of state without a pulse: it learns of others by hints only."""
    async with migrated(url) as db:
        hub = Hub()
        claiming = Claiming(db, hub)
        signals = Signals(db, hub, claiming)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(signals.run())
            yield Process(db, hub, claiming, signals)
            running.cancel()


@asynccontextmanager
async def overhearing(db: Database) -> AsyncIterator[list[str]]:
    """What is said on the channel, as it comes."""
    said: list[str] = []
    connection: psycopg.AsyncConnection[Any] | None = await db.listen(CHANNEL)
    assert connection is not None

    async def listen() -> None:
        async for notification in connection.notifies():
            said.append(notification.payload.partition(" ")[2])  # noqa: PERF401 - read while it grows

    async with connection, asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(listen())
        yield said
        listening.cancel()


async def acquainted(*processes: Process) -> None:
    async with asyncio.timeout(15):
        while not all(process.signals.has_others for process in processes):
            await asyncio.sleep(0.01)


async def test_replica_hears_of_runs_that_nobody_takes_where_they_became_ready(postgres_database: str) -> None:
    async with replica(postgres_database) as here, replica(postgres_database) as there:
        await acquainted(here, there)
        hints = there.hub.ready_hints
        here.hub.runs_ready()
        async with asyncio.timeout(10):
            while there.hub.ready_hints == hints:
                await asyncio.sleep(0.005)
        # It is not said again by who has heard it.
        assert not there.hub.ready_here.is_set()


async def test_replica_that_is_alone_says_only_that_it_is_there(postgres_database: str) -> None:
    async with migrated(postgres_database) as db, overhearing(db) as said:
        async with replica(postgres_database) as alone:
            async with asyncio.timeout(10):
                while not said:
                    await asyncio.sleep(0.01)
            for _ in range(20):
                alone.hub.runs_ready()
                await asyncio.sleep(0.01)
            assert set(said) == {"present"}


async def test_thousands_of_ready_runs_are_a_few_notifications(postgres_database: str) -> None:
    async with (
        migrated(postgres_database) as db,
        replica(postgres_database) as here,
        replica(postgres_database) as other,
    ):
        await acquainted(here, other)
        async with overhearing(db) as said:
            for _ in range(100):
                for _ in range(100):
                    here.hub.runs_ready()
                await asyncio.sleep(0.005)
            async with asyncio.timeout(10):
                while "ready" not in said:
                    await asyncio.sleep(0.01)
            assert said.count("ready") <= 10


async def test_listening_goes_on_after_the_connection_was_cut(postgres_database: str) -> None:
    async with replica(postgres_database) as here, replica(postgres_database) as there:
        await acquainted(here, there)
        with psycopg.connect(postgres_database.replace("+psycopg", ""), autocommit=True) as admin:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            assert len(admin.execute(cut).fetchall()) == 2
        hints = there.hub.ready_hints
        async with asyncio.timeout(15):
            while there.hub.ready_hints == hints:
                here.hub.runs_ready()
                await asyncio.sleep(0.05)


# ---------------------------------------------------------------------------------------------------------- claiming


async def open_stream(store: Store, claiming: Claiming, free_slots: int) -> tuple[str, str]:
    executor = await store.executor()
    claiming.set_free_slots(store.streams[executor], free_slots)
    return executor, store.streams[executor]


async def rows(claiming: Claiming, stream: tuple[str, str]) -> int:
    claimed = await claiming.claim(*stream)
    assert claimed is not None
    return len(claimed.rows)


async def test_after_a_claim_that_left_nothing_nobody_claims_until_something_becomes_ready(store: Store) -> None:
    claiming = Claiming(store.db, store.hub)
    first, second = [await open_stream(store, claiming, 5) for _ in range(2)]
    assert await rows(claiming, first) == 0
    assert claiming.is_exhausted
    # Unknown to the hub: another replica's, which the pulse will see.
    await store.db.write(insert_runs, store.workspace, 1)
    assert await rows(claiming, second) == 0
    store.hub.runs_seen_ready()
    assert await rows(claiming, second) == 1


async def test_run_that_becomes_ready_during_a_claim_is_not_forgotten(store: Store) -> None:
    claiming = Claiming(store.db, store.hub)
    stream = await open_stream(store, claiming, 5)
    claim = asyncio.create_task(rows(claiming, stream))
    await asyncio.sleep(0)
    store.hub.runs_ready()
    await claim
    assert not claiming.is_exhausted


async def test_executors_with_free_slots_share_what_is_ready(store: Store) -> None:
    claiming = Claiming(store.db, store.hub)
    streams = [await open_stream(store, claiming, 50) for _ in range(3)]
    await store.db.write(insert_runs, store.workspace, 60)
    store.hub.runs_seen_ready()
    assert [await rows(claiming, stream) for stream in streams] == [MAX_CLAIMS_BESIDE_OTHERS] * 3


async def test_no_more_is_claimed_than_there_are_free_slots(store: Store) -> None:
    claiming = Claiming(store.db, store.hub)
    stream = await open_stream(store, claiming, 3)
    await store.db.write(insert_runs, store.workspace, 10)
    assert await rows(claiming, stream) == 3
    assert await rows(claiming, stream) == 0
    claiming.set_free_slots(stream[1], 2)
    assert await rows(claiming, stream) == 2


async def test_slot_that_is_free_again_may_be_room_below_a_limit(store: Store) -> None:
    claiming = Claiming(store.db, store.hub)
    await store.db.write(put_workspace, store.workspace, max_running=1)
    await store.db.write(insert_runs, store.workspace, 2)
    stream = await open_stream(store, claiming, 5)
    assert await rows(claiming, stream) == 1
    assert claiming.is_exhausted
    await store.db.write(lease_store.close_stream, store.db, *stream, in_order=True)
    again = await open_stream(store, claiming, 5)
    assert await rows(claiming, again) == 1


async def test_stream_that_speaks_for_nobody_claims_nothing(store: Store) -> None:
    claiming = Claiming(store.db, store.hub)
    stream = new_uuid7()
    claiming.set_free_slots(stream, 1)
    assert await claiming.claim(new_uuid7(), stream) is None


@pytest.mark.parametrize("free_slots", [0, -1])
async def test_executor_without_free_slots_claims_nothing(store: Store, free_slots: int) -> None:
    claiming = Claiming(store.db, store.hub)
    stream = await open_stream(store, claiming, free_slots)
    await store.db.write(insert_runs, store.workspace, 1)
    assert await rows(claiming, stream) == 0
    assert not claiming.is_exhausted
