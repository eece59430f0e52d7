"""What state promises of runs whose time is over, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.errors import Conflict, FailedPrecondition, InvalidArgument, Reason
from holdfast.ids import new_uuid7
from services.shared.clock import SystemClock
from services.state import approval_store, expiry, journal, lease_store, run_store
from services.state import tables as t
from services.state.invariants import Inspection
from services.state.pulse import Pulse
from tests.state.support import (
    EXPIRED,
    FUTURE,
    PAST,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    Held,
    Store,
    asks,
    becomes,
    blob,
    emptied,
    finished,
    new_call,
    new_run,
    started,
    tool_finished,
)

# Its fixtures: an empty database of each kind.
pytest_plugins = ["tests.state.sql_fixtures"]

HOUR = Duration(seconds=3_600)


@pytest.fixture
async def store(either_url: str) -> AsyncIterator[Store]:
    """The store on either database."""
    async with emptied(either_url) as store:
        yield store


async def time_passes(store: Store, *runs: Held) -> None:
    """The time of the runs is over."""

    def age(connection: sa.Connection) -> None:
        ids = [run.run_id for run in runs]
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id.in_(ids)).values(expire_at=PAST))

    await store.db.write(age)


def calls_tools(*names: str, step: int = 1) -> run_pb2.Change:
    """A model's answer that calls tools; the ids are `c1`, `c2`, …"""
    message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT)
    for number, name in enumerate(names, start=1):
        message.parts.add(tool_call=content_pb2.ToolCall(call_id=f"c{number}", tool=name, arguments_json="{}"))
    return finished(step, message=content_pb2.StoredMessage(message=message))


def begins(step: int, call_id: str, kind: str = "http", tool: str = "refund") -> run_pb2.Change:
    intent = run_pb2.ToolIntent(tool=tool, call_id=call_id, tool_kind=kind, idempotency_key="k")
    started_step = run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_TOOL, tool=intent)
    return run_pb2.Change(step_started=started_step)


async def ended(store: Store, run: Held) -> list[run_pb2.Change]:
    """The changes of the run's last event, which ended it; all that must be true of what is stored is."""
    row = await store.row(run)
    assert (row.state, row.holder, row.wake_at, row.blocked, row.wait_reason) == (EXPIRED, None, None, False, 0)
    assert row.ended_at is not None
    assert not (await store.db.read(lease_store.glance, store.db)).has_expired
    inspection = Inspection(store.db)
    async for _ in inspection.run():
        pass
    broken = {name: found.examples for name, found in inspection.findings.of.items() if found.examples}
    assert not broken
    last = (await store.events(run))[-1]
    assert last.epoch == 0
    assert last.changes[-1].run_state_changed.state == EXPIRED
    return list(last.changes)


def kinds(changes: list[run_pb2.Change]) -> list[str | None]:
    return [change.WhichOneof("kind") for change in changes]


def results(changes: list[run_pb2.Change]) -> dict[str, str]:
    """What the model is told, by call."""
    found: dict[str, str] = {}
    for change in changes:
        for part in change.step_finished.message.message.parts:
            assert part.tool_result.call_id not in found and part.tool_result.is_error
            found[part.tool_result.call_id] = part.tool_result.content
    return found


async def test_run_has_the_time_that_it_was_given(store: Store) -> None:
    alone = await store.create(ttl=HOUR)
    behind = await store.create(session_id=alone.session_id, ttl=HOUR)
    endless = await store.create()
    for run in (alone, behind):
        found = await store.db.read(run_store.get_run, store.workspace, run.run_id)
        assert found.expire_time.ToDatetime() - found.create_time.ToDatetime() == timedelta(hours=1)
        assert (await store.events(run))[0].changes[0].run_created.ttl == HOUR
    assert not (await store.db.read(run_store.get_run, store.workspace, endless.run_id)).HasField("expire_time")
    seen = await store.db.read(lease_store.glance, store.db)
    assert seen.next_due == (await store.row(alone)).expire_at and not seen.has_expired
    assert await store.db.read(expiry.expired_runs, store.db) == []


@pytest.mark.parametrize("ttl", [Duration(), Duration(seconds=-1), Duration(seconds=401 * 86_400)])
async def test_time_that_cannot_be_given_is_refused(store: Store, ttl: Duration) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await store.commits.create_run(new_run(store.workspace, ttl=ttl))
    assert [wrong.field for wrong in caught.value.field_violations] == ["new_run.ttl"]


async def test_queued_run_ends_and_its_session_goes_on(store: Store) -> None:
    run = await store.create(ttl=HOUR)
    successor = await store.create(session_id=run.session_id)
    await time_passes(store, run)
    await store.sweep()
    assert kinds(await ended(store, run)) == ["expiry_reached", "run_state_changed"]
    assert [row.run_id for row in await store.claim()] == [successor.run_id]
    before = len(await store.events(run))
    await store.sweep()
    assert len(await store.events(run)) == before
    with pytest.raises(FailedPrecondition) as caught:
        await store.cancel(run)
    assert caught.value.reason == Reason.RUN_ENDED


async def test_run_that_never_began_leaves_the_chain_of_its_session(store: Store) -> None:
    first = await store.claimed()
    second = await store.create(session_id=first.session_id, ttl=HOUR)
    third = await store.create(session_id=first.session_id)
    await time_passes(store, second)
    await store.sweep()
    await ended(store, second)
    assert await store.claim() == [], "the first is driven"
    await store.advance(first, becomes(SUCCEEDED))
    assert [row.run_id for row in await store.claim()] == [third.run_id]


@pytest.mark.promise("P7")
@pytest.mark.parametrize("is_paused", [False, True], ids=["waiting", "paused"])
async def test_run_that_rests_ends_with_one_result_for_each_call(store: Store, is_paused: bool) -> None:
    run = await store.claimed(ttl=HOUR)
    successor = await store.create(session_id=run.session_id)
    question = new_uuid7()
    await store.advance(run, started(1))
    await store.advance(
        run,
        calls_tools("refund", "ask_user", "look", "pay"),
        begins(2, "c1", "worker"),
        begins(3, "c2", "builtin", "ask_user"),
        asks(3, question),
        begins(4, "c3"),
        calls=[new_call(2)],
    )
    look = content_pb2.ToolResult(call_id="c3", tool="look", content="seen")
    seen = content_pb2.Message(role=content_pb2.ROLE_TOOL, parts=[content_pb2.Part(tool_result=look)])
    # The fourth call has no step yet.
    await store.advance(
        run,
        finished(4, message=content_pb2.StoredMessage(message=seen)),
        becomes(WAITING, wake=FUTURE, wait_reason=run_pb2.WAIT_REASON_INPUT),
    )
    lease = await store.offer()
    await store.start(lease)
    if is_paused:
        await store.pause(run)
    await time_passes(store, run)
    (found,) = await store.db.read(expiry.expired_runs, store.db)
    written = await store.db.write(expiry.expire_run, store.db, found)
    assert written is not None and written.outside is not None
    assert (written.leases, written.outside.became_ready) == ((lease,), True)
    assert await store.db.write(expiry.expire_run, store.db, found) is None
    changes = await ended(store, run)
    assert kinds(changes) == [
        "expiry_reached", "approval_closed", "step_finished", "step_finished", "step_started", "step_finished",
        "run_state_changed",
    ]  # fmt: skip
    told = results(changes)
    assert set(told) == {"c1", "c2", "c4"}
    assert "may have taken effect" in told["c1"]
    assert "may have taken effect" not in told["c2"] + told["c4"]
    assert {change.step_finished.failure.reason for change in changes if change.HasField("step_finished")} == {
        "RUN_EXPIRED"
    }
    approval = await store.db.read(approval_store.get_approval, store.workspace, question)
    assert approval.state == run_pb2.APPROVAL_STATE_EXPIRED
    assert [row.state for row in await store.call_rows(run)] == [journal.CALL_OVER]
    assert (await store.row(run)).step_count == 5
    assert (await store.complete(lease, tool_finished(2))).is_late
    assert [row.run_id for row in await store.claim()] == [successor.run_id]


async def test_calls_of_a_message_that_is_stored_as_a_body_get_their_results(store: Store) -> None:
    run = await store.claimed(ttl=HOUR)
    change = calls_tools("refund", "refund")
    body = blob(change.step_finished.message.message.SerializeToString())
    change.step_finished.message.blob.CopyFrom(content_pb2.BlobRef(hash=body.hash, size=len(body.data)))
    await store.advance(run, started(1))
    await store.advance(run, change, blobs=[body])
    await store.db.write(lease_store.release, store.db, run.holder, {run.run_id: run.epoch})
    assert (await store.row(run)).state == QUEUED
    await time_passes(store, run)
    await store.sweep()
    assert set(results(await ended(store, run))) == {"c1", "c2"}


async def test_driven_run_is_told_once_and_ends_by_its_driver(store: Store) -> None:
    run = await store.claimed(ttl=HOUR)
    await store.advance(run, begins(1, "c1", "worker"), calls=[new_call(1)])
    lease = await store.offer()
    await time_passes(store, run)
    (found,) = await store.db.read(expiry.expired_runs, store.db)
    written = await store.db.write(expiry.expire_run, store.db, found)
    assert written is not None and written.outside is not None
    assert (written.outside.holder, written.outside.became_ready, written.leases) == (run.holder, False, (lease,))
    row = await store.row(run)
    assert (row.state, row.expiring) == (RUNNING, True)
    assert not (await store.db.read(lease_store.glance, store.db)).has_expired
    # Its workers stop, and begin nothing more.
    assert (await store.beat("worker-1", **{lease: ""}))[1] == [lease]
    assert type(await store.refusal(run, started(2))) is Conflict
    run.last_seq += 1
    await store.advance(run, becomes(EXPIRED))
    assert (await store.kinds(run))[-2:] == ["expiry_reached", "run_state_changed"]
    assert (await store.row(run)).state == EXPIRED


async def test_run_whose_driver_was_told_and_lost_ends_without_another_one(store: Store) -> None:
    run = await store.claimed(ttl=HOUR)
    await store.advance(run, started(1))
    await time_passes(store, run)
    await store.sweep()
    assert (await store.row(run)).expiring
    await store.db.write(lease_store.close_stream, store.db, run.holder, store.streams[run.holder], in_order=True)
    await store.sweep()
    assert kinds(await ended(store, run)) == ["step_finished", "run_state_changed"]
    assert (await store.kinds(run)).count("expiry_reached") == 1


async def test_pulse_ends_what_is_over_and_tells_who_drives_and_who_waits(store: Store) -> None:
    driven, waiting = await store.claimed(ttl=HOUR), await store.claimed(ttl=HOUR)
    await store.advance(waiting, becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_INPUT))
    told: list[str] = []
    store.hub.await_end(waiting.run_id, lambda _: told.append("ended"))
    await time_passes(store, driven, waiting)
    seen, pause = await Pulse(store.db, store.hub, SystemClock()).beat()
    assert seen.has_expired and pause < 0.1
    assert ((await store.row(driven)).expiring, (await store.row(waiting)).state) == (True, EXPIRED)
    assert told


async def test_time_outlives_everything_else_that_happens_to_a_run(store: Store) -> None:
    run = await store.claimed(ttl=HOUR)
    before = (await store.row(run)).expire_at
    await store.advance(run, started(1), becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_INPUT))
    await store.pause(run)
    await store.resume(run)
    await store.take(run)
    assert (await store.row(run)).expire_at == before
    # Also of a run that is being cancelled, and was asked to pause.
    await store.cancel(run)
    await store.db.write(lease_store.close_stream, store.db, run.holder, store.streams[run.holder], in_order=True)
    await time_passes(store, run)
    await store.sweep()
    await ended(store, run)


async def test_batch_of_new_runs_has_times_of_its_own(store: Store) -> None:
    lengths = [None, Duration(seconds=1, nanos=500_000_000), HOUR, Duration(seconds=400 * 86_400)]
    sent = [new_run(store.workspace, ttl=ttl) for ttl in lengths]
    answers = await store.submit(*sent)
    assert all(answer.HasField("run") for answer in answers), answers
    for new, ttl, answer in zip(sent, lengths, answers, strict=True):
        found = await store.db.read(run_store.get_run, store.workspace, new.run_id)
        assert found.HasField("expire_time") == (ttl is not None)
        assert found.expire_time == answer.run.expire_time
        if ttl is not None:
            assert found.expire_time.ToDatetime() - found.create_time.ToDatetime() == ttl.ToTimedelta()
