"""What state promises of pausing and resuming, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from holdfast.api.common.v1 import run_pb2
from holdfast.errors import Conflict, FailedPrecondition, InvalidArgument, NotFound, Reason
from holdfast.ids import new_uuid7
from services.state import approval_store, lease_store, pauses, run_store
from tests.state.support import (
    CANCELLED,
    FUTURE,
    PAST,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    Held,
    Store,
    asks,
    becomes,
    emptied,
    finished,
    new_call,
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


async def rests(store: Store, run: Held) -> None:
    """The run is paused: only rows, that nothing wakes and nobody claims."""
    row = await store.row(run)
    assert (row.state, row.pause_requested, row.holder, row.wake_at, row.wait_reason) == (PAUSED, True, None, None, 0)
    await store.sweep()
    await store.db.write(lease_store.repair, store.db)
    assert run.run_id not in [claimed.run_id for claimed in await store.claim()]
    assert (await store.row(run)).state == PAUSED


async def test_queued_run_is_paused_at_once_and_ready_when_it_is_resumed(store: Store) -> None:
    run = await store.create()
    paused = await store.pause(run)
    assert (paused.state, paused.pause_requested, paused.last_seq) == (PAUSED, True, 2)
    await rests(store, run)
    assert await store.pause(run) == await store.db.read(run_store.get_run, store.workspace, run.run_id) == paused
    resumed = await store.resume(run)
    assert (resumed.state, resumed.pause_requested, resumed.last_seq) == (QUEUED, False, 3)
    assert await store.resume(run) == resumed
    await store.take(run)
    assert await store.kinds(run) == ["run_created", "pause_requested", "run_state_changed", "resume_requested"]
    asked = [event.changes[0] for event in (await store.events(run))[1:]]
    assert (asked[0].pause_requested.requested_by, asked[0].pause_requested.reason) == ("key-1", "lunch")
    assert (asked[1].resume_requested.requested_by, asked[1].resume_requested.reason) == ("key-2", "back")


async def test_no_time_wakes_a_paused_run(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, becomes(WAITING, wake=PAST, wait_reason=run_pb2.WAIT_REASON_TIMER))
    await store.pause(run)
    assert not (await store.db.read(lease_store.glance, store.db)).has_due
    await rests(store, run)
    await store.resume(run)
    await store.take(run)


async def test_answer_to_a_paused_run_is_stored_and_wakes_it_no_sooner_than_it_is_resumed(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, asks(1, question), becomes(WAITING, wake=FUTURE, wait_reason=run_pb2.WAIT_REASON_INPUT))
    await store.pause(run)
    decision = run_pb2.ApprovalDecided(approval_id=question, answer_json='"red"')
    approval, written = await store.db.write(approval_store.decide_approval, store.db, store.workspace, decision)
    assert approval.state == run_pb2.APPROVAL_STATE_DECIDED
    assert written.outside is not None and not written.outside.became_ready
    await rests(store, run)
    await store.resume(run)
    await store.take(run)


async def test_worker_finishes_the_call_of_a_paused_run(store: Store) -> None:
    run = await store.claimed()
    await store.advance(
        run,
        started(1, run_pb2.STEP_KIND_TOOL),
        becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_TOOL),
        calls=[new_call(1)],
    )
    lease = await store.offer()
    await store.start(lease)
    await store.pause(run)
    assert await store.beat("worker-1", **{lease: ""}) == ([], [])
    done = await store.complete(lease, tool_finished(1))
    assert not done.is_late
    await rests(store, run)
    await store.resume(run)
    await store.take(run)


async def test_driven_run_is_asked_and_its_driver_has_to_read_that_first(store: Store) -> None:
    run = await store.claimed()
    asked = await store.pause(run)
    assert (asked.state, asked.pause_requested, asked.last_seq) == (RUNNING, True, 2)
    assert await store.pause(run) == asked, "asked once"
    assert type(await store.refusal(run, started(1))) is Conflict
    run.last_seq += 1
    await store.advance(run, becomes(PAUSED))
    await rests(store, run)
    assert await store.pause(run) == await store.db.read(run_store.get_run, store.workspace, run.run_id)
    await store.resume(run)
    await store.take(run)


async def test_request_that_is_withdrawn_meets_the_driver_that_would_pause(store: Store) -> None:
    run = await store.claimed()
    await store.pause(run)
    run.last_seq += 1
    resumed = await store.resume(run)
    assert (resumed.state, resumed.pause_requested) == (RUNNING, False)
    assert type(await store.refusal(run, becomes(PAUSED))) is Conflict
    run.last_seq += 1
    await store.advance(run, started(1))


async def test_request_outlives_the_executor_that_it_was_made_to(store: Store) -> None:
    run = await store.claimed()
    await store.pause(run)
    await store.db.write(lease_store.close_stream, store.db, run.holder, store.streams[run.holder], in_order=True)
    row = await store.row(run)
    assert (row.state, row.pause_requested) == (QUEUED, True)
    # Nobody drives it any more: asking again pauses it here, and it is not asked for twice.
    await store.pause(run)
    await rests(store, run)
    assert await store.kinds(run) == ["run_created", "pause_requested", "run_state_changed"]


async def test_paused_run_keeps_its_successor_behind_it(store: Store) -> None:
    first = await store.create()
    second = await store.create(session_id=first.session_id)
    await store.pause(first)
    assert await store.claim() == []
    third = await store.create(session_id=first.session_id)
    with pytest.raises(FailedPrecondition):
        await store.create(session_id=first.session_id, reject_when_busy=True)
    await store.resume(first)
    await store.take(first)
    # The end of one unblocks the next also while that is paused; it goes on when it is resumed.
    await store.pause(second)
    await store.advance(first, becomes(SUCCEEDED))
    row = await store.row(second)
    assert (row.state, row.blocked) == (PAUSED, False)
    await rests(store, second)
    await store.resume(second)
    await store.take(second)
    assert (await store.row(third)).blocked


async def test_cancel_of_a_paused_run_makes_it_ready_for_its_end(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, asks(1, question), becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_INPUT))
    await store.pause(run)
    cancelled = await store.cancel(run)
    assert (cancelled.state, cancelled.cancel_requested) == (QUEUED, True)
    assert await store.pause(run) == cancelled, "what is being cancelled is not paused"
    await store.take(run)
    await store.advance(run, becomes(CANCELLED))
    for again in (store.pause, store.resume):
        with pytest.raises(FailedPrecondition) as caught:
            await again(run)
        assert caught.value.reason == Reason.RUN_ENDED


async def test_paused_run_behind_another_is_cancelled_at_once(store: Store) -> None:
    first = await store.claimed()
    second = await store.create(session_id=first.session_id)
    third = await store.create(session_id=first.session_id)
    await store.pause(second)
    assert (await store.cancel(second)).state == CANCELLED
    await store.advance(first, finished(1), becomes(SUCCEEDED))
    assert [row.run_id for row in await store.claim()] == [third.run_id]


async def test_request_that_comes_late_undoes_nothing(store: Store) -> None:
    run = await store.create()
    await store.pause(run, "pause-1")
    await store.resume(run, "resume-1")
    assert (await store.pause(run, "pause-1")).state == QUEUED
    await store.pause(run, "pause-2")
    assert (await store.resume(run, "resume-1")).state == PAUSED
    await store.resume(run, "resume-2")
    await store.take(run)
    await store.advance(run, finished(1), becomes(SUCCEEDED))
    # It was paused: that the run has ended since is no refusal.
    assert (await store.pause(run, "pause-2")).state == SUCCEEDED
    kinds = await store.kinds(run)
    assert (kinds.count("pause_requested"), kinds.count("resume_requested")) == (2, 2)


async def test_request_that_changed_nothing_changes_nothing_later(store: Store) -> None:
    run = await store.create()
    await store.pause(run)
    await store.pause(run, "again")
    await store.resume(run)
    assert (await store.pause(run, "again")).state == QUEUED


async def test_id_of_another_request_is_refused(store: Store) -> None:
    run, other = await store.create(), await store.create()
    await store.pause(run, "one")
    for act in (store.pause(other, "one"), store.resume(run, "one")):
        with pytest.raises(InvalidArgument) as caught:
            await act
        assert caught.value.reason == Reason.REQUEST_ID_REUSED
    assert await store.kinds(other) == ["run_created"]


async def test_run_of_another_workspace_is_not_found(store: Store) -> None:
    run = await store.create()
    for act in (pauses.request_pause, pauses.request_resume):
        for workspace, run_id in ((new_uuid7(), run.run_id), (store.workspace, new_uuid7()), (store.workspace, "run")):
            with pytest.raises(NotFound) as caught:
                await store.db.write(act, store.db, workspace, run_id, pauses.Asked())
            assert caught.value.reason == Reason.RUN_NOT_FOUND
    assert await store.kinds(run) == ["run_created"]
