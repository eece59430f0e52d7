"""Runs of a tree that are written to at once, on PostgreSQL, where several replicas of state write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import Conflict
from services.shared.database import Database
from services.state import expiry, pauses, run_store
from services.state import tables as t
from services.state.change_feed import read_feed
from services.state.invariants import Inspection
from services.state.pauses import Asked
from tests.state.support import (
    EXPIRED,
    FAILED,
    PAST,
    QUEUED,
    WAITING,
    Held,
    Store,
    becomes,
    calls_agent,
    child_of,
    committing,
    emptied,
    migrated,
    tool_finished,
)
from tests.state.test_races import held_open, until_blocked

# Its fixtures: an empty database.
pytest_plugins = ["tests.state.sql_fixtures"]

WAITS = becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_CHILD)


@pytest.fixture
async def store(postgres_state: str) -> AsyncIterator[Store]:
    """A replica on an empty PostgreSQL database."""
    async with emptied(postgres_state) as store:
        yield store


async def family(store: Store, count: int = 1, **fields: Any) -> tuple[Held, list[Held]]:
    """A parent that waits for its children, all of which are driven."""
    parent = await store.claimed()
    children = [child_of(parent, step, **fields) for step in range(1, count + 1)]
    changes = [calls_agent(child.parent.step, child.run_id) for child in children]
    await store.advance(parent, *changes, children=children)
    await store.advance(parent, WAITS)
    rows = {row.run_id: row for row in await store.claim()}
    held = [Held(parent.workspace, child.run_id, parent.session_id) for child in children]
    for child in held:
        child.epoch, child.last_seq = rows[child.run_id].epoch, rows[child.run_id].last_seq
    return parent, held


async def sound(store: Store) -> None:
    """Everything is as it must be; the feed tells the events of each run in their order."""
    inspection = Inspection(store.db)
    async for _ in inspection.run():
        pass
    assert not {name: found.examples for name, found in inspection.findings.of.items() if found.examples}
    seen: dict[str, int] = {}
    entries, _, _ = await store.db.read(read_feed, store.db, b"", 10_000)
    for entry in entries:
        assert entry.event.seq == seen.get(entry.event.run_id, 0) + 1
        seen[entry.event.run_id] = entry.event.seq


def age(connection: sa.Connection, run_id: str) -> None:
    connection.execute(sa.update(t.runs).where(t.runs.c.run_id == run_id).values(expire_at=PAST))


async def test_child_that_ends_while_its_parent_is_paused_elsewhere_tells_it(store: Store, postgres_state: str) -> None:
    parent, [child] = await family(store)
    asked = Asked("key-1")
    async with held_open(postgres_state, pauses.request_pause, Database, parent.workspace, parent.run_id, asked):
        end = asyncio.create_task(store.advance(child, becomes(FAILED)))
        await until_blocked(store.db)
    await end
    assert (await store.kinds(parent))[-3:] == ["pause_requested", "run_state_changed", "child_ended"]
    await store.resume(parent)
    assert (await store.row(parent)).state == QUEUED
    await sound(store)


async def test_end_that_waits_for_its_parent_holds_up_nobody_else(store: Store, postgres_state: str) -> None:
    parent, [child] = await family(store)
    other = await store.claimed()
    asked = Asked("key-1")
    async with held_open(postgres_state, pauses.request_pause, Database, parent.workspace, parent.run_id, asked):
        end = asyncio.create_task(store.advance(child, becomes(FAILED)))
        await until_blocked(store.db)
        await store.advance(other, becomes(FAILED))
        assert not end.done()
    await end
    assert (await store.kinds(parent))[-1] == "child_ended"
    await sound(store)


async def test_one_of_many_ends_waits_alone_for_its_parent(store: Store, postgres_state: str) -> None:
    families = [await family(store) for _ in range(3)]
    held_parent, _ = families[0]
    asked = Asked("key-1")
    async with held_open(
        postgres_state, pauses.request_pause, Database, held_parent.workspace, held_parent.run_id, asked
    ):
        ends = [
            asyncio.create_task(store.commits.commit(child.transition(becomes(FAILED), ends_child=True)))
            for _, [child] in families
        ]
        await asyncio.wait(ends[1:])
        await until_blocked(store.db)
        assert not ends[0].done()
    await asyncio.gather(*ends)
    for parent, _ in families:
        assert (await store.kinds(parent))[-1] == "child_ended"
    await sound(store)


async def test_child_that_is_cancelled_elsewhere_as_it_ends_reads_on_first(store: Store, postgres_state: str) -> None:
    parent, [child] = await family(store)
    cancel = (parent.workspace, child.run_id, "key-1", "enough")
    async with held_open(postgres_state, run_store.request_cancel, Database, *cancel):
        end = asyncio.create_task(store.refusal(child, becomes(FAILED)))
        await until_blocked(store.db)
    assert isinstance(await end, Conflict)
    assert (await store.row(parent)).state == WAITING
    child.last_seq += 1
    await store.advance(child, becomes(FAILED))
    assert (await store.row(parent)).state == QUEUED
    await sound(store)


async def test_child_whose_time_is_over_as_somebody_writes_to_it_ends_afterwards(
    store: Store, postgres_state: str
) -> None:
    parent, [child] = await family(store, ttl=Duration(seconds=3_600))
    await store.advance(child, becomes(WAITING, wake=PAST, wait_reason=run_pb2.WAIT_REASON_TIMER))
    await store.db.write(age, child.run_id)
    expired = expiry.ExpiredRun(child.workspace, child.run_id)
    asked = Asked("key-1")
    async with held_open(postgres_state, pauses.request_pause, Database, child.workspace, child.run_id, asked):
        found = asyncio.create_task(store.db.write(expiry.expire_run, store.db, expired))
        await until_blocked(store.db)
    # Its transaction is older than what was written meanwhile: the next look does it.
    assert await found is None
    await store.sweep()
    assert (await store.row(child)).state == EXPIRED
    assert (await store.row(parent)).state == QUEUED
    await sound(store)


async def test_many_ends_at_once_through_two_replicas_are_each_told_once(store: Store, postgres_state: str) -> None:
    families = [await family(store, 6) for _ in range(4)]
    async with migrated(postgres_state) as db, committing(db) as other:
        other.workspace = store.workspace

        async def end(number: int, child: Held) -> None:
            replica = (store, other)[number % 2]
            if number % 3 == 0:
                await replica.cancel(child)
            while True:
                try:
                    await replica.advance(child, becomes(FAILED), ends_child=number % 5 != 0)
                    return
                except Conflict:
                    child.last_seq = (await replica.row(child)).last_seq

        async def disturb(number: int, parent: Held) -> None:
            replica = (store, other)[number % 2]
            for _ in range(5):
                await replica.pause(parent)
                await replica.resume(parent)

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for family_number, (parent, children) in enumerate(families):
                tasks.create_task(disturb(family_number, parent))
                for number, child in enumerate(children):
                    tasks.create_task(end(number + family_number, child))
        await sound(other)
    for parent, children in families:
        assert (await store.kinds(parent)).count("child_ended") == len(children)
        assert (await store.row(parent)).state == QUEUED


async def test_transaction_that_is_older_than_the_event_before_it_is_made_again(store: Store) -> None:
    """As PostgreSQL makes one that follows a row to its next version, which a younger transaction has locked."""
    run = await store.claimed()
    attempts = 0

    def resume(connection: sa.Connection) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            connection.execute(sa.text("SELECT pg_current_xact_id()"))
            sa.util.await_only(store.pause(run))
        pauses.request_resume(connection, store.db, run.workspace, run.run_id, Asked("key-2"))

    await store.db.write(resume)
    assert attempts == 2
    assert (await store.kinds(run))[-2:] == ["pause_requested", "resume_requested"]
    await sound(store)


async def test_parent_that_ends_as_its_child_does_leaves_nobody_behind(store: Store, postgres_state: str) -> None:
    parent, [first, second] = await family(store, 2)
    await store.cancel(parent)
    parent = await store.take(parent)
    async with migrated(postgres_state) as db, committing(db) as other, asyncio.TaskGroup() as tasks:
        other.workspace = store.workspace
        tasks.create_task(other.advance(first, becomes(FAILED)))

        async def end() -> None:
            while True:
                try:
                    results = tool_finished(1), tool_finished(2)
                    await store.advance(parent, *results, becomes(run_pb2.RUN_STATE_CANCELLED))
                    return
                except Conflict:
                    parent.last_seq = (await store.row(parent)).last_seq

        tasks.create_task(end())
    await store.sweep()
    assert (await store.row(second)).cancel_requested
    second.last_seq += 1
    await store.advance(second, becomes(run_pb2.RUN_STATE_CANCELLED))
    await sound(store)
