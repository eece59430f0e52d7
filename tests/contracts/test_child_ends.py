"""Ends of runs that other runs have started, many in one frame, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contracts.test_children import WAITS, sound, starts_children
from tests.state.support import (
    CANCELLED,
    FAILED,
    QUEUED,
    RUNNING,
    Held,
    Store,
    becomes,
    emptied,
    finished,
    started,
    tool_finished,
)

# Its fixtures: an empty database of each kind.
pytest_plugins = ["tests.state.sql_fixtures"]


@pytest.fixture
async def store(either_url: str) -> AsyncIterator[Store]:
    """The store on either database."""
    async with emptied(either_url) as store:
        yield store


@pytest.mark.parametrize("ends_child", [True, False])
async def test_many_ends_at_once_are_each_told_in_their_order(store: Store, ends_child: bool) -> None:
    parents = [await store.claimed() for _ in range(3)]
    children: list[Held] = []
    for parent in parents:
        children += await starts_children(store, parent, 1, 2, 3)
        await store.advance(parent, WAITS)
    rows = {row.run_id: row for row in await store.claim()}
    for child in children:
        child.epoch = rows[child.run_id].epoch
    ends = [child.transition(started(1), finished(1), becomes(FAILED), ends_child=ends_child) for child in children]
    answers = await store.submit(*ends)
    assert [answer.committed.seq for answer in answers] == [2] * 9
    again = await store.submit(*ends)
    assert [answer.committed.seq for answer in again] == [2] * 9
    for parent in parents:
        assert (await store.kinds(parent)).count("child_ended") == 3
        assert (await store.row(parent)).state == QUEUED
    await sound(store)


async def test_one_of_many_ends_that_is_refused_fails_alone(store: Store) -> None:
    parent = await store.claimed()
    children = await starts_children(store, parent, 1, 2, 3)
    rows = {row.run_id: row for row in await store.claim()}
    for child in children:
        child.epoch = rows[child.run_id].epoch
    children[1].epoch += 1
    answers = await store.submit(*[child.transition(becomes(FAILED), ends_child=True) for child in children])
    assert [answer.WhichOneof("kind") for answer in answers] == ["committed", "refused", "committed"]
    assert answers[1].refused.reason == "LEASE_LOST"
    assert (await store.kinds(parent)).count("child_ended") == 2
    await sound(store)


async def test_run_and_the_one_that_started_it_may_end_at_once(store: Store) -> None:
    parent = await store.claimed()
    (child,) = await starts_children(store, parent, 1)
    await store.take(child)
    (below,) = await starts_children(store, child, 1)
    await store.take(below)
    answers = await store.submit(
        below.transition(becomes(FAILED), ends_child=True),
        child.transition(tool_finished(1), becomes(FAILED), ends_child=True),
    )
    # Which of them is first is not said; who is second may have to read on.
    kinds = [answer.WhichOneof("kind") for answer in answers]
    assert "committed" in kinds
    if kinds[1] == "refused":
        assert answers[1].refused.reason == "CONFLICT"
        child.last_seq = (await store.row(child)).last_seq
        await store.advance(child, tool_finished(1), becomes(FAILED), ends_child=True)
    assert (await store.row(below)).state == (await store.row(child)).state == FAILED
    assert (await store.kinds(parent)).count("child_ended") == 1
    await sound(store)


async def test_hint_that_is_wrong_does_no_harm(store: Store) -> None:
    alone = await store.claimed()
    await store.advance(alone, becomes(FAILED), ends_child=True)
    parent = await store.claimed()
    (child,) = await starts_children(store, parent, 1)
    await store.take(child)
    await store.advance(parent, tool_finished(1), becomes(FAILED), ends_child=True)
    await store.sweep()
    assert (await store.row(child)).cancel_requested
    going_on = await store.claimed()
    await store.advance(going_on, started(1), ends_child=True)
    assert (await store.row(going_on)).state == RUNNING
    child.last_seq += 1
    await store.advance(child, becomes(CANCELLED))
    await sound(store)
