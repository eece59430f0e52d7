"""Readers who stay: signs of life, what a slow one misses, and what is left when they have gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.api.common.v1 import run_pb2
from holdfast.api.state.v1 import change_feed_service_pb2 as feed_pb2
from services.shared.clock import SystemClock
from services.state import hub as hub_module
from services.state.pulse import Pulse
from services.state.servicers.change_feed import ChangeFeedServicer
from services.state.watch import Watching
from tests.state.support import PAST, QUEUED, SUCCEEDED, WAITING, Store, becomes, finished, opened, sqlite_url, started


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """The store on SQLite: who is woken does not depend on the database."""
    async with opened(sqlite_url(tmp_path)) as store:
        yield store


async def test_idle_watcher_gets_beats(store: Store) -> None:
    run = await store.claimed()
    watching = Watching(store.db, store.hub, beat_seconds=0.01)
    found: list[str] = []
    async with asyncio.timeout(10):
        async for message in watching.watch(store.workspace, run.run_id, 0, events_only=False):
            found.append(str(message.WhichOneof("kind")))
            if len(found) == 3:
                assert message.beat_last_seq == 1
                break
    assert found == ["event", "beat_last_seq", "beat_last_seq"]


async def test_idle_follower_gets_frames_without_entries(store: Store) -> None:
    await store.create()
    feed = ChangeFeedServicer(store.db, store.hub, beat_seconds=0.01)
    context: Any = None
    frames: list[feed_pb2.FollowResponse] = []
    async with asyncio.timeout(10):
        async for frame in feed.Follow(feed_pb2.FollowRequest(), context):
            frames.append(frame)
            if len(frames) == 3:
                break
    assert [len(frame.entries) for frame in frames] == [1, 0, 0]
    assert {frame.cursor for frame in frames} == {frames[0].cursor}
    assert all(frame.is_caught_up for frame in frames)


@pytest.mark.promise("P12")
async def test_slow_watcher_loses_pieces_of_answers_and_no_event(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_PENDING", 8)
    run = await store.claimed()
    watching = Watching(store.db, store.hub)
    stream = watching.watch(store.workspace, run.run_id, 0, events_only=False)
    assert (await anext(stream)).event.seq == 1
    # It takes nothing while all of this happens.
    for step in range(1, 6):
        for index in range(20):
            store.hub.delta(run_pb2.Delta(run_id=run.run_id, step=step, index=index, text="x"))
        await store.advance(run, finished(step), started(step + 1))
    await store.advance(run, becomes(SUCCEEDED))
    async with asyncio.timeout(10):
        messages = [message async for message in stream]
    assert [message.event.seq for message in messages if message.HasField("event")] == [2, 3, 4, 5, 6, 7]


@pytest.mark.promise("P6")
async def test_nothing_of_a_run_is_left_in_memory_when_its_readers_have_gone(store: Store) -> None:
    run = await store.claimed()
    watching = Watching(store.db, store.hub)
    stream = watching.watch(store.workspace, run.run_id, 0, events_only=False)
    await anext(stream)
    assert store.hub.watched_runs == [run.run_id]
    await stream.aclose()
    assert store.hub.watched_runs == []


async def test_pulse_does_what_time_has_made_due(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, becomes(WAITING, wake=PAST))
    pulse = asyncio.create_task(Pulse(store.db, store.hub, SystemClock()).run())
    try:
        async with asyncio.timeout(10):
            while (await store.row(run)).state != QUEUED:
                await asyncio.sleep(0)
    finally:
        pulse.cancel()
        await asyncio.gather(pulse, return_exceptions=True)
