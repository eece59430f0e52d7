"""What the state service's store promises, on SQLite and on PostgreSQL.

Driven through the group commit and the store functions: what a stream or a unary call does, without the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as pb
from holdfast.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    HoldfastError,
    InvalidArgument,
    LeaseLost,
    NotFound,
    Reason,
)
from holdfast.ids import new_uuid7
from services.shared.seals import NO_SEALS, Seals
from services.state import (
    agent_store,
    approval_store,
    call_store,
    change_feed,
    claims,
    inline_messages,
    journal,
    lease_store,
    new_runs,
    run_store,
    session_store,
)
from services.state import tables as t
from services.state.idempotence import write_once
from services.state.servicers.change_feed import DEFAULT_ENTRIES
from tests.fakes.data_keys import MemoryKeys
from tests.state.support import (
    BUDGET_EXCEEDED,
    CANCELLED,
    EXPIRED,
    FAILED,
    FUTURE,
    PAST,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    Held,
    Store,
    asks,
    attempt_failed,
    becomes,
    blob,
    emptied,
    finished,
    message_blob,
    new_call,
    new_run,
    opened,
    started,
    text,
    tool_finished,
)

# Its fixtures: an empty database of each kind.
pytest_plugins = ["tests.state.sql_fixtures"]


@pytest.fixture(params=["sqlite", "postgresql", "sealed"])
def either_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind, and one more for sealed payloads."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    url: str = request.getfixturevalue("postgres_state")
    return url


@pytest.fixture
async def store(either_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """The store on it."""
    is_sealed = request.node.callspec.params["either_url"] == "sealed"
    async with emptied(either_url, Seals(MemoryKeys(), is_on=True) if is_sealed else NO_SEALS) as store:
        yield store


# ---------------------------------------------------------------------------------------------------------- new runs


@pytest.mark.promise("P1")
async def test_new_run_is_stored_with_its_first_event(store: Store) -> None:
    new = new_run(store.workspace, user_id="ada", traceparent="00-1-2-03")
    run = await store.commits.create_run(new)
    assert (run.run_id, run.session_id, run.state, run.last_seq) == (new.run_id, new.new_session_id, QUEUED, 1)
    (event,) = await store.events(Held(store.workspace, run.run_id, run.session_id))
    created = event.changes[0].run_created
    assert (event.epoch, created.input, created.user_id, created.traceparent) == (0, new.input, "ada", "00-1-2-03")
    assert (await store.db.read(session_store.get_session, store.workspace, run.session_id)).last_run_id == run.run_id


async def test_new_run_sent_again_is_answered_with_the_first_one(store: Store) -> None:
    by_run_id = new_run(store.workspace)
    first = await store.commits.create_run(by_run_id)
    assert await store.commits.create_run(by_run_id) == first

    by_request = new_run(store.workspace, request_id="r1", request_fingerprint=b"f")
    second = await store.commits.create_run(by_request)
    again = new_run(store.workspace, request_id="r1", request_fingerprint=b"f")
    assert again.run_id != by_request.run_id
    assert (await store.commits.create_run(again)).run_id == second.run_id
    assert len(await store.claim()) == 2


async def test_request_id_of_another_call_is_refused(store: Store) -> None:
    await store.create(request_id="r1", request_fingerprint=b"f")
    with pytest.raises(InvalidArgument) as caught:
        await store.create(request_id="r1", request_fingerprint=b"g")
    assert caught.value.reason == Reason.REQUEST_ID_REUSED
    with pytest.raises(InvalidArgument) as caught:
        await store.db.write(session_store.create_session, store.db, store.workspace, new_uuid7(), "ada", "r1", b"f")
    assert caught.value.reason == Reason.REQUEST_ID_REUSED


async def test_same_request_twice_in_one_frame_makes_one_run(store: Store) -> None:
    frame = [new_run(store.workspace, request_id="r1", request_fingerprint=b"f") for _ in range(5)]
    answers = await store.submit(*frame, new_run(store.workspace))
    assert len({answer.run.run_id for answer in answers[:5]}) == 1
    assert len(await store.claim()) == 2


async def test_same_request_from_two_replicas_makes_one_run(either_url: str, store: Store) -> None:
    async with opened(either_url) as other:
        for number in range(10):
            calls = [
                replica.commits.create_run(new_run(store.workspace, request_id=f"r{number}", request_fingerprint=b"f"))
                for replica in (store, other)
            ]
            first, second = await asyncio.gather(*calls)
            assert first.run_id == second.run_id


async def test_same_session_request_at_once_makes_one_session(store: Store) -> None:
    arguments = (store.db, store.workspace)
    made = await asyncio.gather(
        *(
            write_once(store.db, session_store.create_session, *arguments, new_uuid7(), "ada", "r1", b"f")
            for _ in range(5)
        )
    )
    assert len({session.session_id for session in made}) == 1
    with pytest.raises(AlreadyExists):
        await write_once(store.db, session_store.create_session, *arguments, made[0].session_id, "ada", "r2", b"f")


async def test_run_of_an_unknown_session_is_refused(store: Store) -> None:
    with pytest.raises(NotFound) as caught:
        await store.create(session_id=new_uuid7())
    assert caught.value.reason == Reason.SESSION_NOT_FOUND


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"run_id": "nonsense"}, "new_run.run_id"),
        ({"agent": ""}, "new_run.agent"),
        ({"blobs": [content_pb2.Blob(hash=b"x" * 32, data=b"something else")]}, "new_run.blobs[0].hash"),
    ],
)
async def test_new_run_that_cannot_be_stored_names_the_field(store: Store, fields: dict, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await store.create(**fields)
    assert caught.value.field_violations[0].field == field


# -------------------------------------------------------------------------------------------------------- transitions


@pytest.mark.promise("P1")
async def test_transition_moves_the_run_and_is_the_next_event(store: Store) -> None:
    run = await store.claimed()
    committed = await store.advance(run, started(1))
    assert committed.seq == 2
    usage = content_pb2.Usage(input_tokens=10, output_tokens=3, cache_read_input_tokens=4, cost_usd_nanos=7)
    await store.advance(run, finished(1, "hi", usage=usage), becomes(SUCCEEDED))
    found = await store.db.read(run_store.get_run, store.workspace, run.run_id)
    assert (found.state, found.step_count, found.last_seq) == (SUCCEEDED, 1, 3)
    assert found.output.parts[0].text == "hi"
    assert found.usage == content_pb2.Usage(
        input_tokens=10, output_tokens=3, cache_read_input_tokens=4, cost_usd_nanos=7
    )
    events = await store.events(run)
    assert [event.epoch for event in events] == [0, 1, 1]
    assert events[1].time.ToDatetime() == committed.at.replace(tzinfo=None)
    assert found.end_time.ToMicroseconds() >= events[1].time.ToMicroseconds()


async def test_cost_is_unknown_while_any_call_has_no_price(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, finished(1, usage=content_pb2.Usage(input_tokens=1, cost_usd_nanos=5)))
    assert (await store.db.read(run_store.get_run, store.workspace, run.run_id)).usage.cost_usd_nanos == 5
    await store.advance(run, finished(2, usage=content_pb2.Usage(input_tokens=1)))
    usage = (await store.db.read(run_store.get_run, store.workspace, run.run_id)).usage
    assert (usage.input_tokens, usage.HasField("cost_usd_nanos")) == (2, False)


@pytest.mark.promise("P3")
async def test_transition_of_a_stale_epoch_is_refused(store: Store) -> None:
    run = await store.claimed()
    stale = Held(**vars(run))
    await store.db.write(lease_store.release, store.db, run.holder, {run.run_id: run.epoch})
    assert type(await store.refusal(stale, started(1))) is LeaseLost
    await store.take(run)
    assert run.epoch == stale.epoch + 1
    assert type(await store.refusal(stale, started(1))) is LeaseLost
    assert type(await store.refusal(run, started(1), epoch=run.epoch + 1)) is LeaseLost
    await store.advance(run, started(1))
    assert await store.kinds(run) == ["run_created", "step_started"]


async def test_transition_out_of_order_is_a_conflict(store: Store) -> None:
    run = await store.claimed()
    assert type(await store.refusal(run, started(1), seq=3)) is Conflict
    await store.advance(run, started(1))
    assert type(await store.refusal(run, started(2), seq=2)) is Conflict
    await store.cancel(run)
    assert type(await store.refusal(run, finished(1))) is Conflict
    run.last_seq += 1
    await store.advance(run, finished(1))


async def test_transition_of_an_unknown_run_is_refused(store: Store) -> None:
    ghost = Held(store.workspace, new_uuid7(), new_uuid7(), epoch=1)
    refused = await store.refusal(ghost, started(1))
    assert (type(refused), refused.reason) == (NotFound, Reason.RUN_NOT_FOUND)


@pytest.mark.promise("P1")
async def test_transition_sent_again_is_applied_once_and_answered_the_same(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    first = run.transition(started(1), asks(1, question))
    (answer,) = await store.submit(first)
    assert answer.committed.seq == 2
    assert await store.submit(first) == [answer]

    run.last_seq = 2
    other = Held(**vars(run))
    await store.db.write(lease_store.release, store.db, run.holder, {run.run_id: run.epoch})
    assert await store.submit(first) == [answer], "also after the lease was lost"
    await store.take(run)
    await store.advance(run, becomes(FAILED))
    assert await store.submit(first) == [answer], "also after the run's end"
    assert type(await store.refusal(other, started(1), seq=2)) is LeaseLost, "other content is not the same"
    assert len(await store.events(run)) == 3


async def test_bad_transitions_fail_alone_in_their_batch(store: Store) -> None:
    await store.submit(*(new_run(store.workspace) for _ in range(200)))
    rows = await store.claim(limit=200)
    runs = [Held(row.workspace_id, row.run_id, row.session_id, row.epoch, row.last_seq) for row in rows]
    batch = [run.transition(started(1)) for run in runs]
    batch[10].epoch += 1
    batch[100].seq += 1
    batch[150].changes[0].run_state_changed.state = QUEUED
    answers = await store.submit(*batch)
    refused = {index: answer.refused.reason for index, answer in enumerate(answers) if answer.HasField("refused")}
    assert refused == {10: "LEASE_LOST", 100: "CONFLICT", 150: "INVALID_FIELD"}
    assert sum(answer.HasField("committed") for answer in answers) == 197
    for index in (10, 100, 150):
        assert len(await store.events(runs[index])) == 1


async def test_operation_that_the_database_refuses_fails_alone(store: Store) -> None:
    runs = [await store.claimed() for _ in range(6)]
    question = new_uuid7()
    await store.advance(runs[2], asks(1, question))
    batch = [run.transition(asks(1, question)) for run in runs]
    answers = await store.submit(*batch, new_run(store.workspace))
    assert [answer.WhichOneof("kind") for answer in answers] == [
        "committed", "committed", "refused", "committed", "committed", "committed", "run",
    ]  # fmt: skip
    assert answers[2].refused.code == 3
    assert len(await store.events(runs[2])) == 2
    await store.advance(runs[2], started(1))


async def test_operation_out_of_range_fails_alone(store: Store) -> None:
    run = await store.claimed()
    never = becomes(WAITING)
    never.run_state_changed.wake_time.seconds = 10**15
    answers = await store.submit(run.transition(never), new_run(store.workspace))
    assert [answer.WhichOneof("kind") for answer in answers] == ["refused", "run"]
    assert answers[0].refused.reason == "INVALID_FIELD"


async def test_several_transitions_of_one_run_are_applied_in_their_order(store: Store) -> None:
    run, other = await store.claimed(), await store.claimed()
    frame = [run.transition(started(n), seq=n + 1) for n in range(1, 31)]
    answers = await store.submit(*frame[:15], other.transition(started(1)), *frame[15:])
    assert all(answer.HasField("committed") for answer in answers)
    events = await store.events(run)
    assert [event.changes[0].step_started.step for event in events[1:]] == list(range(1, 31))


async def test_new_runs_transitions_and_effects_share_a_batch(store: Store) -> None:
    runs = [await store.claimed() for _ in range(4)]
    question = new_uuid7()
    stored, body = message_blob("a" * 20_000)
    session = await store.create()
    with_call = runs[1].transition(started(1), calls=[new_call(1)])
    answers = await store.submit(
        runs[0].transition(started(1), asks(1, question)),
        new_run(store.workspace),
        with_call,
        new_run(store.workspace, session_id=session.session_id),
        runs[2].transition(finished(1, message=stored), becomes(SUCCEEDED), blobs=[body]),
        runs[3].transition(started(1)),
    )
    assert [answer.WhichOneof("kind") for answer in answers] == [
        "committed", "run", "committed", "run", "committed", "committed",
    ]  # fmt: skip
    assert answers[3].run.previous_run_id == session.run_id
    assert (await store.db.read(approval_store.get_approval, store.workspace, question)).run_id == runs[0].run_id
    assert [row.state for row in await store.call_rows(runs[1])] == [journal.CALL_QUEUED]
    answered = await store.db.read(run_store.get_run, store.workspace, runs[2].run_id)
    assert answered.output.parts[0].text == "a" * 20_000


async def test_event_over_the_limit_is_refused(store: Store) -> None:
    run = await store.claimed()
    refused = await store.refusal(run, finished(1, "a" * (journal.MAX_EVENT_BYTES + 1)))
    assert refused.reason == Reason.MESSAGE_TOO_LARGE
    with pytest.raises(InvalidArgument):
        await store.create(input=text("a" * (journal.MAX_EVENT_BYTES + 1)))


async def test_body_is_stored_once_for_each_workspace(store: Store) -> None:
    body = blob(b"invoice" * 1_000)
    runs = [await store.claimed(blobs=[body]) for _ in range(2)]
    for run in runs:
        await store.advance(run, started(1), blobs=[body, body])
    await store.create(workspace=new_uuid7(), blobs=[body])

    def count(connection: sa.Connection) -> int:
        return connection.execute(sa.select(sa.func.count()).select_from(t.blobs)).scalar_one()

    assert await store.db.read(count) == 2
    assert await store.db.read(journal.read_blobs, store.workspace, [body.hash]) == {body.hash: body.data}
    foreign = await store.db.read(journal.read_blobs, new_uuid7(), [body.hash])
    assert foreign == {}


async def test_long_journal_is_read_in_pages_of_bounded_size(store: Store) -> None:
    run = await store.claimed()
    for step in range(1, 8):
        await store.advance(run, finished(step, "x" * 400_000))
    pages = []
    seen = 0
    while page := await store.db.read(journal.read_events, store.workspace, run.run_id, seen, 200):
        pages.append([event.seq for event in page])
        seen = page[-1].seq
    assert [seq for page in pages for seq in page] == list(range(1, 9))
    assert 3 <= len(pages) <= 4
    assert await store.db.read(journal.read_events, new_uuid7(), run.run_id, 0, 200) == []


async def test_inline_messages_are_bounded_by_the_frame(store: Store) -> None:
    run = await store.claimed()
    stored = [message_blob(letter * 900_000) for letter in "abcdefgh"]
    await store.advance(
        run, *(finished(n, message=ref) for n, (ref, _) in enumerate(stored, 1)), blobs=[body for _, body in stored]
    )
    await store.advance(run, finished(9, message=stored[0][0]))

    def read(connection: sa.Connection) -> list[run_pb2.Event]:
        events = journal.read_events(connection, store.workspace, run.run_id, 1, 200)
        return inline_messages.put_messages_inline(
            connection, store.workspace, events, limit=inline_messages.INLINE_BLOB_LIMIT
        )

    (event,) = await store.db.read(read)
    bodies = [change.step_finished.message.WhichOneof("body") for change in event.changes]
    assert bodies == ["message"] * 4 + ["blob"] * 4
    assert event.ByteSize() <= inline_messages.FRAME_BYTES


# --------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, CANCELLED, EXPIRED, BUDGET_EXCEEDED])
async def test_end_gives_the_lease_back_and_closes_what_is_open(store: Store, state: run_pb2.RunState) -> None:
    run = await store.claimed()
    other = await store.claimed()
    next_run = await store.create(session_id=run.session_id)
    question, decided = new_uuid7(), new_uuid7()
    await store.advance(run, asks(1, question), asks(2, decided), calls=[new_call(3), new_call(4)])
    await store.advance(other, asks(1, new_uuid7()), calls=[new_call(3)])
    await store.db.write(
        approval_store.decide_approval, store.db, store.workspace, run_pb2.ApprovalDecided(approval_id=decided)
    )
    run.last_seq += 1
    assert await store.claim() == []
    failure = content_pb2.Failure(reason="MAX_STEPS") if state == FAILED else None
    await store.advance(run, becomes(state, failure=failure))
    row = await store.row(run)
    assert (row.state, row.holder, row.blocked) == (state, None, False)
    assert row.ended_at is not None
    found = await store.db.read(run_store.get_run, store.workspace, run.run_id)
    assert found.failure.reason == ("MAX_STEPS" if state == FAILED else "")
    states = [await store.db.read(approval_store.get_approval, store.workspace, asked) for asked in (question, decided)]
    assert [asked.state for asked in states] == [run_pb2.APPROVAL_STATE_CANCELLED, run_pb2.APPROVAL_STATE_DECIDED]
    assert [row.state for row in await store.call_rows(run)] == [journal.CALL_OVER] * 2
    assert [row.state for row in await store.call_rows(other)] == [journal.CALL_QUEUED]
    (successor,) = await store.claim()
    assert successor.run_id == next_run.run_id
    assert type(await store.refusal(run, started(9))) is LeaseLost


async def test_finished_step_closes_its_question_and_its_call(store: Store) -> None:
    run = await store.claimed()
    first, second = new_uuid7(), new_uuid7()
    await store.advance(run, asks(1, first), asks(2, second), calls=[new_call(1), new_call(2), new_call(3)])
    await store.advance(run, tool_finished(1), attempt_failed(3))
    assert [row.state for row in await store.call_rows(run)] == [
        journal.CALL_OVER, journal.CALL_QUEUED, journal.CALL_OVER,
    ]  # fmt: skip
    states = [
        (await store.db.read(approval_store.get_approval, store.workspace, asked)).state for asked in (first, second)
    ]
    assert states == [run_pb2.APPROVAL_STATE_CANCELLED, run_pb2.APPROVAL_STATE_PENDING]
    expired = run_pb2.ApprovalClosed(approval_id=second, state=run_pb2.APPROVAL_STATE_EXPIRED)
    await store.advance(run, run_pb2.Change(approval_closed=expired), tool_finished(2))
    asked = await store.db.read(approval_store.get_approval, store.workspace, second)
    assert asked.state == run_pb2.APPROVAL_STATE_EXPIRED


async def test_model_answer_closes_no_question(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, asks(1, question), calls=[new_call(1)])
    await store.advance(run, finished(1))
    assert [row.state for row in await store.call_rows(run)] == [journal.CALL_QUEUED]


# ------------------------------------------------------------------------------------------------------------- claims


async def test_claims_follow_the_order_in_which_runs_became_ready(store: Store) -> None:
    runs = [await store.create() for _ in range(5)]
    first = await store.claim(limit=2)
    assert [row.run_id for row in first] == [run.run_id for run in runs[:2]]
    assert [(row.state, row.epoch) for row in first] == [(RUNNING, 1)] * 2
    await store.db.write(lease_store.release, store.db, first[0].holder, {first[0].run_id: 1})
    rest = await store.claim()
    # What is given back keeps its place.
    assert [row.run_id for row in rest] == [run.run_id for run in (runs[0], *runs[2:])]
    assert rest[0].epoch == 2


@pytest.mark.promise("P3")
async def test_concurrent_claimers_never_share_a_run(store: Store) -> None:
    await store.submit(*(new_run(store.workspace) for _ in range(120)))
    executors = [await store.executor() for _ in range(6)]
    claimed: list[str] = []

    async def take_all(executor_id: str) -> None:
        while rows := await store.claim(executor_id, limit=5):
            assert len(rows) <= 5
            assert {row.holder for row in rows} == {executor_id}
            claimed.extend(row.run_id for row in rows)

    async with asyncio.TaskGroup() as tasks:
        for executor_id in executors:
            tasks.create_task(take_all(executor_id))
    # One that found all rows locked by others may leave early: what is left is nobody's.
    claimed.extend(row.run_id for row in await store.claim(limit=200))
    assert len(claimed) == len(set(claimed)) == 120


async def test_stream_that_does_not_speak_for_its_executor_claims_and_renews_nothing(store: Store) -> None:
    await store.create()
    executor = await store.executor()
    old = store.streams[executor]
    await store.executor(executor)
    assert await store.db.write(claims.claim, store.db, executor, old, 1) is None
    assert await store.db.write(lease_store.renew, store.db, executor, old) is None
    assert await store.db.write(lease_store.renew, store.db, executor, store.streams[executor]) is not None
    (row,) = await store.claim(executor)
    assert await store.db.write(lease_store.close_stream, store.db, executor, old, in_order=True) == 0
    assert (await store.row(Held(store.workspace, row.run_id, ""))).state == RUNNING


async def test_executor_that_comes_back_keeps_what_it_names_and_returns_the_rest(store: Store) -> None:
    named, unnamed, outdated = [await store.create() for _ in range(3)]
    executor = await store.executor()
    for row, run in zip(await store.claim(executor), (named, unnamed, outdated), strict=True):
        run.epoch = row.epoch
    outdated.epoch += 1
    ghost = Held(store.workspace, "nonsense", "", epoch=1)
    held = {run.run_id: run.epoch for run in (named, outdated, ghost)}
    kept, freed = await store.db.write(lease_store.open_stream, store.db, executor, new_uuid7(), held)
    assert (kept, freed) == ({named.run_id}, 2)
    assert [(await store.row(run)).state for run in (named, unnamed, outdated)] == [RUNNING, QUEUED, QUEUED]


async def test_stream_that_ends_in_order_returns_its_runs_at_once(store: Store) -> None:
    run = await store.claimed()
    stream = store.streams[run.holder]
    assert await store.db.write(lease_store.close_stream, store.db, run.holder, stream, in_order=True) == 1
    assert (await store.row(run)).state == QUEUED
    assert await store.db.write(claims.claim, store.db, run.holder, stream, 1) is None


async def test_runs_of_an_executor_that_is_gone_are_returned_by_the_sweep(store: Store) -> None:
    run, alive = await store.claimed(), await store.claimed()
    await expire(store, run.holder)
    assert (await store.sweep()).ready_runs == 1
    assert [(await store.row(one)).state for one in (run, alive)] == [QUEUED, RUNNING]
    assert type(await store.refusal(run, started(1))) is LeaseLost
    await store.advance(alive, started(1))


async def expire(store: Store, executor_id: str) -> None:
    def write(connection: sa.Connection) -> None:
        connection.execute(
            sa.update(t.executors).where(t.executors.c.executor_id == executor_id).values(expires_at=PAST)
        )

    await store.db.write(write)


async def test_repair_makes_stranded_runs_ready(store: Store) -> None:
    held_by_nobody, ended = await store.claimed(), await store.claimed()
    behind_nobody = await store.create(session_id=ended.session_id)
    await store.advance(ended, becomes(SUCCEEDED))
    assert await store.db.write(lease_store.repair, store.db) == 0

    def strand(connection: sa.Connection) -> None:
        connection.execute(sa.delete(t.executors).where(t.executors.c.executor_id == held_by_nobody.holder))
        connection.execute(sa.update(t.runs).where(t.runs.c.run_id == behind_nobody.run_id).values(blocked=True))

    await store.db.write(strand)
    assert await store.db.write(lease_store.repair, store.db) == 2
    assert {row.run_id for row in await store.claim()} == {held_by_nobody.run_id, behind_nobody.run_id}


async def test_short_journals_come_with_the_claims(store: Store) -> None:
    short, long = await store.claimed(), await store.claimed()
    await store.advance(short, started(1))
    await store.advance(long, finished(1, "x" * 70_000))
    found = await store.db.read(claims.short_journals, [short.run_id, long.run_id], 64 * 1024)
    assert {run_id: [event.seq for event in events] for run_id, events in found.items()} == {short.run_id: [1, 2]}


# ------------------------------------------------------------------------------------------------- waiting, and waking


@pytest.mark.promise("P6")
async def test_waiting_run_is_woken_by_its_time(store: Store) -> None:
    due, later, endless = [await store.claimed() for _ in range(3)]
    reason = run_pb2.WAIT_REASON_TIMER
    await store.advance(due, becomes(WAITING, wake=PAST, wait_reason=reason))
    await store.advance(later, becomes(WAITING, wake=FUTURE, wait_reason=reason))
    await store.advance(endless, becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_INPUT))
    row = await store.row(later)
    assert (row.state, row.wait_reason, row.holder, row.wake_at) == (WAITING, reason, None, FUTURE)
    assert (await store.db.read(lease_store.glance, store.db)).has_due
    assert (await store.sweep()).ready_runs == 1
    assert not (await store.db.read(lease_store.glance, store.db)).has_due
    (claimed,) = await store.claim()
    assert (claimed.run_id, claimed.wait_reason, claimed.wake_at, claimed.epoch) == (due.run_id, 0, None, 2)


@pytest.mark.promise("P6")
async def test_outside_event_wakes_a_waiting_run_in_its_own_transaction(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, asks(1, question), becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_INPUT))
    decision = run_pb2.ApprovalDecided(approval_id=question, answer_json='"red"', decided_by="key-1")
    approval, written = await store.db.write(approval_store.decide_approval, store.db, store.workspace, decision)
    assert written.outside is not None
    assert (written.outside.seq, written.outside.holder, written.outside.became_ready) == (3, None, True)
    assert (approval.state, approval.decision.answer_json) == (run_pb2.APPROVAL_STATE_DECIDED, '"red"')
    row = await store.row(run)
    assert (row.state, row.wait_reason, row.last_seq) == (QUEUED, 0, 3)
    assert [event.epoch for event in await store.events(run)] == [0, 1, 0]


async def test_outside_event_of_a_driven_run_names_whom_to_nudge(store: Store) -> None:
    run = await store.claimed()
    # It is claimed with all there is of it.
    assert await store.db.write(lease_store.renew, store.db, run.holder, store.streams[run.holder]) == []
    _, written = await store.db.write(
        run_store.request_cancel, store.db, store.workspace, run.run_id, "key-1", "enough"
    )
    assert written.outside is not None
    assert (written.outside.holder, written.outside.became_ready) == (run.holder, False)
    row = await store.row(run)
    assert (row.state, row.cancel_requested) == (RUNNING, True)
    nudged = await store.db.write(lease_store.renew, store.db, run.holder, store.streams[run.holder])
    # On PostgreSQL the event may have come through another replica; on SQLite there is none.
    assert nudged == ([run.run_id] if store.db.dialect == "postgresql" else [])


async def test_events_from_outside_and_from_the_driver_stay_dense(store: Store) -> None:
    run = await store.claimed()
    questions = [new_uuid7() for _ in range(10)]
    await store.advance(run, *(asks(n, question) for n, question in enumerate(questions, 1)))

    async def decide(question: str) -> None:
        decision = run_pb2.ApprovalDecided(approval_id=question, answer_json="1")
        await store.db.write(approval_store.decide_approval, store.db, store.workspace, decision)

    async def drive() -> None:
        steps = 0
        while steps < 10:
            try:
                await store.advance(run, started(steps + 1))
                steps += 1
            except Conflict:
                run.last_seq = (await store.row(run)).last_seq

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(drive())
        for question in questions:
            tasks.create_task(decide(question))
    assert len(await store.events(run)) == 22


# ---------------------------------------------------------------------------------------------------------- questions


async def test_first_decision_counts_and_the_same_again_is_answered_the_same(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, asks(4, question))
    asked = await store.db.read(approval_store.get_approval, store.workspace, question)
    assert (asked.state, asked.step, asked.prompt) == (run_pb2.APPROVAL_STATE_PENDING, 4, "Which colour?")

    def decision(answer: str) -> run_pb2.ApprovalDecided:
        return run_pb2.ApprovalDecided(approval_id=question, answer_json=answer, decided_by="key-1")

    first, _ = await store.db.write(approval_store.decide_approval, store.db, store.workspace, decision('"red"'))
    again, written = await store.db.write(approval_store.decide_approval, store.db, store.workspace, decision('"red"'))
    assert (again, written.outside) == (first, None)
    assert first.decision.step == 4
    with pytest.raises(FailedPrecondition) as caught:
        await store.db.write(approval_store.decide_approval, store.db, store.workspace, decision('"blue"'))
    assert caught.value.reason == Reason.APPROVAL_ALREADY_DECIDED
    assert await store.kinds(run) == ["run_created", "approval_requested", "approval_decided"]


async def test_one_of_two_decisions_at_once_counts(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, asks(1, question))

    async def decide(answer: str) -> str:
        decision = run_pb2.ApprovalDecided(approval_id=question, answer_json=answer)
        try:
            approval, _ = await store.db.write(approval_store.decide_approval, store.db, store.workspace, decision)
        except FailedPrecondition:
            return ""
        return approval.decision.answer_json

    outcomes = await asyncio.gather(*(decide(str(number)) for number in range(6)))
    assert len([outcome for outcome in outcomes if outcome]) == 1
    assert (await store.kinds(run)).count("approval_decided") == 1


@pytest.mark.parametrize("how", ["closed", "expired by time", "its run ended"])
async def test_void_question_takes_no_decision(store: Store, how: str) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, asks(1, question, expires=PAST if how == "expired by time" else FUTURE))
    if how == "closed":
        closed = run_pb2.ApprovalClosed(approval_id=question, state=run_pb2.APPROVAL_STATE_EXPIRED)
        await store.advance(run, run_pb2.Change(approval_closed=closed))
    elif how == "its run ended":
        await store.advance(run, becomes(CANCELLED))
    events = len(await store.events(run))
    with pytest.raises(FailedPrecondition) as caught:
        await store.db.write(
            approval_store.decide_approval, store.db, store.workspace, run_pb2.ApprovalDecided(approval_id=question)
        )
    assert caught.value.reason == Reason.APPROVAL_ALREADY_DECIDED
    assert len(await store.events(run)) == events


# -------------------------------------------------------------------------------------------------- the call's life


async def queued_call(store: Store, *, waiting: bool = True, **fields: object) -> Held:
    """A run whose first step is a worker's call."""
    run = await store.claimed()
    changes = [started(1, run_pb2.STEP_KIND_TOOL)]
    if waiting:
        changes.append(becomes(WAITING, wait_reason=run_pb2.WAIT_REASON_TOOL))
    await store.advance(run, *changes, calls=[new_call(1, **fields)])  # type: ignore[arg-type]
    return run


async def test_call_is_offered_started_and_completed_once(store: Store) -> None:
    run = await queued_call(store)
    (call,) = await store.offers()
    assert (call.run_id, call.step, call.attempt, call.tool, call.idempotency_key) == (run.run_id, 1, 1, "refund", "k")
    assert await store.offers("worker-2") == []
    event = await store.start(call.lease)
    assert event is not None
    assert not event.outside.became_ready, "nothing can be decided from a start"
    assert await store.start(call.lease) is None, "a start may be repeated"
    assert (await store.row(run)).state == WAITING
    done = await store.complete(call.lease, tool_finished(1))
    assert done.event is not None
    assert (done.is_late, done.event.outside.became_ready) == (False, True)
    assert await store.complete(call.lease, tool_finished(1)) == call_store.Completion(None, done.seq, is_late=False)
    assert await store.kinds(run) == [
        "run_created", "step_started", "run_state_changed", "call_started", "step_finished",
    ]  # fmt: skip
    assert (await store.row(run)).state == QUEUED
    assert await store.db.write(call_store.renew_calls, store.db, store.workspace, "worker-1", {call.lease: ""}) == (
        [call.lease],
        [],
    )


async def test_same_report_is_answered_the_same_after_the_run_went_on(store: Store) -> None:
    run = await queued_call(store, waiting=False)
    lease = await store.offer()
    await store.start(lease)
    done = await store.complete(lease, attempt_failed(1))
    run.last_seq = done.seq
    again = run_pb2.Change(attempt_started=run_pb2.AttemptStarted(step=1, attempt=2))
    await store.advance(run, again, calls=[new_call(1, attempt=2)])
    assert await store.complete(lease, attempt_failed(1)) == call_store.Completion(None, done.seq, is_late=False)
    await store.advance(run, becomes(FAILED))
    assert await store.complete(lease, attempt_failed(1)) == call_store.Completion(None, done.seq, is_late=False)
    assert len(await store.events(run)) == 6


async def test_offer_that_is_not_started_is_void_after_its_time(store: Store) -> None:
    await queued_call(store)
    lease = await store.offer(seconds=-1)
    with pytest.raises(LeaseLost) as caught:
        await store.start(lease)
    assert caught.value.reason == Reason.CALL_LEASE_LOST
    assert (await store.sweep()).calls_queued == {(store.workspace, "refund")}
    with pytest.raises(LeaseLost):
        await store.start(lease)
    assert await store.offer("worker-2") != lease


async def test_offer_that_is_given_back_goes_to_another_worker(store: Store) -> None:
    run = await queued_call(store)
    lease = await store.offer()
    assert await store.give_back("worker-2", lease) == set(), "only its worker gives an offer back"
    assert await store.give_back("worker-1", lease) == {(store.workspace, "refund")}
    again = await store.offer("worker-2")
    await store.start(again, "worker-2")
    assert await store.give_back("worker-2", again) == set()
    assert [row.state for row in await store.call_rows(run)] == [journal.CALL_STARTED]


async def test_call_is_started_only_by_the_worker_it_was_offered_to(store: Store) -> None:
    run = await queued_call(store)
    lease = await store.offer()
    for workspace, worker, named in (
        (store.workspace, "worker-2", lease),
        (new_uuid7(), "worker-1", lease),
        (store.workspace, "worker-1", "guessed"),
    ):
        with pytest.raises(LeaseLost):
            await store.db.write(call_store.start_call, store.db, workspace, worker, named)
    await store.cancel(run)
    with pytest.raises(LeaseLost):
        await store.start(lease)


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("fields", "starts", "reason", "failure_class"),
    [
        ({"heartbeat_timeout": timedelta(microseconds=1)}, True, "WORKER_LOST", "UNKNOWN_OUTCOME"),
        ({"timeout": timedelta(microseconds=1)}, True, "CALL_TIMEOUT", "UNKNOWN_OUTCOME"),
        ({"start_deadline": PAST}, False, "WORKER_START_TIMEOUT", "RETRYABLE"),
    ],
)
async def test_call_whose_time_is_over_is_taken_from_its_worker(
    store: Store, fields: dict, starts: bool, reason: str, failure_class: str
) -> None:
    run = await queued_call(store, **fields)
    lease = ""
    if starts:
        lease = await store.offer()
        await store.start(lease)
    assert (await store.db.read(lease_store.glance, store.db)).has_due
    await store.sweep()
    await store.sweep()
    (failed,) = [
        change.attempt_failed
        for event in await store.events(run)
        for change in event.changes
        if change.WhichOneof("kind") == "attempt_failed"
    ]
    assert (failed.step, failed.attempt, failed.failure.reason) == (1, 1, reason)
    assert failed.failure.failure_class == content_pb2.FailureClass.Value(f"FAILURE_CLASS_{failure_class}")
    assert (await store.row(run)).state == QUEUED
    if starts:
        late = await store.complete(lease, tool_finished(1))
        assert late.is_late
        assert (await store.kinds(run))[-1] == "late_result"


async def test_heartbeat_keeps_a_call_and_its_details_reach_the_next_attempt(store: Store) -> None:
    run = await queued_call(store, waiting=False, heartbeat_timeout=timedelta(microseconds=1))
    lease = await store.offer()
    await store.start(lease)
    assert await store.beat("worker-1", **{lease: "page 7", "unknown": ""}) == (["unknown"], [])
    assert await store.beat("worker-1", **{lease: ""}) == ([], []), "a beat without details keeps the last"
    assert await store.beat("worker-2", **{lease: "stolen"}) == ([lease], [])
    await store.cancel(run)
    assert await store.beat("worker-1", **{lease: ""}) == ([], [lease])
    await store.sweep()
    run.last_seq = (await store.row(run)).last_seq
    again = run_pb2.Change(attempt_started=run_pb2.AttemptStarted(step=1, attempt=2))
    await store.advance(run, again, calls=[new_call(1, attempt=2)])
    (call,) = await store.db.write(
        call_store.lease_calls, store.db, store.workspace, "worker-2", ["refund"], 1, timedelta(seconds=60)
    )
    assert (call.attempt, call.last_heartbeat_details) == (2, "page 7")


async def test_late_result_is_kept_as_evidence_and_refused(store: Store) -> None:
    run = await queued_call(store, waiting=False, heartbeat_timeout=timedelta(microseconds=1))
    lease = await store.offer()
    await store.start(lease)
    await store.sweep()
    run.last_seq = (await store.row(run)).last_seq
    again = run_pb2.Change(attempt_started=run_pb2.AttemptStarted(step=1, attempt=2))
    await store.advance(run, again, calls=[new_call(1, attempt=2)])
    second = await store.offer("worker-2")
    await store.start(second, "worker-2")

    late = await store.complete(lease, tool_finished(1, "old"))
    assert late.is_late
    assert await store.complete(lease, tool_finished(1, "old")) == call_store.Completion(None, late.seq, is_late=True)
    result = (await store.events(run))[-1].changes[0].late_result
    assert (result.step, result.attempt, result.worker_id, result.content) == (1, 1, "worker-1", "late")

    done = await store.complete(second, tool_finished(1, "new", attempt=2), "worker-2")
    assert not done.is_late
    assert (await store.complete(second, tool_finished(1, "other", attempt=2), "worker-2")).is_late
    run.last_seq = (await store.row(run)).last_seq
    await store.advance(run, becomes(SUCCEEDED))
    other_worker = await store.complete(second, tool_finished(1, "third", attempt=2), "worker-3")
    assert other_worker.is_late
    assert (await store.row(run)).state == SUCCEEDED, "a late result changes nothing but the journal"
    assert (await store.kinds(run)).count("late_result") == 3


async def test_report_must_be_an_end_of_its_own_call(store: Store) -> None:
    await queued_call(store)
    lease = await store.offer()
    await store.start(lease)
    for change in (started(1), tool_finished(2), tool_finished(1, attempt=2)):
        with pytest.raises(InvalidArgument):
            await store.complete(lease, change)
    with pytest.raises(InvalidArgument):
        await store.complete(lease, tool_finished(1), blobs=[content_pb2.Blob(hash=b"x" * 32, data=b"y")])
    with pytest.raises(LeaseLost):
        await store.complete("guessed", tool_finished(1))
    with pytest.raises(LeaseLost):
        await store.db.read(call_store.get_call, new_uuid7(), lease)
    assert (await store.db.read(call_store.get_call, store.workspace, lease)).step == 1


async def test_call_counts_as_executed_between_its_start_and_its_end_by_its_worker_only(store: Store) -> None:
    async def is_executing(worker_id: str) -> bool:
        try:
            await store.db.read(call_store.get_call, store.workspace, lease, worker_id)
        except LeaseLost:
            return False
        return True

    await queued_call(store)
    lease = await store.offer()
    assert not await is_executing("worker-1")
    await store.start(lease)
    assert await is_executing("worker-1")
    assert not await is_executing("worker-2")
    await store.complete(lease, tool_finished(1))
    assert not await is_executing("worker-1")


async def test_call_is_not_offered_before_its_time(store: Store) -> None:
    run = await store.claimed()
    call = new_call(1)
    call.not_before.FromDatetime(FUTURE)
    await store.advance(run, calls=[call, new_call(2)], *[started(1), started(2)])  # noqa: B026
    await store.offer()
    assert [row.state for row in await store.call_rows(run)] == [journal.CALL_QUEUED, journal.CALL_OFFERED]


async def test_concurrent_workers_never_share_a_call(store: Store) -> None:
    run = await store.claimed()
    await store.advance(run, started(1), calls=[new_call(n) for n in range(1, 61)])

    async def take_all(worker: str) -> list[str]:
        leases: list[str] = []
        while calls := await store.db.write(
            call_store.lease_calls, store.db, store.workspace, worker, ["refund"], 4, timedelta(seconds=60)
        ):
            leases += [call.lease for call in calls]
        return leases

    leases = [lease for found in await asyncio.gather(*(take_all(f"w{n}") for n in range(5))) for lease in found]
    assert len(leases) == len(set(leases))
    states = [row.state for row in await store.call_rows(run)]
    assert states.count(journal.CALL_OFFERED) == len(leases)


# ------------------------------------------------------------------------------------------------- the session's chain


async def test_runs_of_a_session_run_one_after_the_other(store: Store) -> None:
    first = await store.create()
    second = await store.create(session_id=first.session_id)
    third = await store.create(session_id=first.session_id)
    for run in (first, second, third):
        assert [row.run_id for row in await store.claim()] == [run.run_id]
        row = await store.row(run)
        run.epoch, run.last_seq = row.epoch, row.last_seq
        await store.advance(run, becomes(SUCCEEDED))
    assert (await store.row(third)).previous_run_id == second.run_id
    behind = await store.create(session_id=first.session_id)
    assert not (await store.row(behind)).blocked


async def test_run_that_would_wait_is_refused_when_asked_to_be(store: Store) -> None:
    first = await store.create()
    with pytest.raises(FailedPrecondition) as caught:
        await store.create(session_id=first.session_id, reject_when_busy=True)
    assert (caught.value.reason, caught.value.metadata) == (Reason.SESSION_BUSY, {"run_id": first.run_id})
    await store.take(first)
    await store.advance(first, becomes(SUCCEEDED))
    await store.create(session_id=first.session_id, reject_when_busy=True)


@pytest.mark.parametrize("place", ["middle", "end"])
async def test_cancelled_run_leaves_its_place_in_the_chain(store: Store, place: str) -> None:
    first = await store.claimed()
    middle = await store.create(session_id=first.session_id)
    last = await store.create(session_id=first.session_id) if place == "middle" else None
    cancelled = await store.cancel(middle)
    assert (cancelled.state, cancelled.cancel_requested, cancelled.last_seq) == (CANCELLED, True, 2)
    assert await store.cancel(middle) == cancelled
    assert await store.kinds(middle) == ["run_created", "cancel_requested", "run_state_changed"]
    assert await store.claim() == []
    if last is None:
        last = await store.create(session_id=first.session_id)
    assert (await store.row(last)).previous_run_id == first.run_id
    await store.advance(first, becomes(SUCCEEDED))
    assert [row.run_id for row in await store.claim()] == [last.run_id]
    with pytest.raises(FailedPrecondition) as caught:
        await store.cancel(first)
    assert caught.value.reason == Reason.RUN_ENDED


async def test_chain_holds_when_runs_are_added_cancelled_and_ended_at_once(either_url: str, store: Store) -> None:
    first = await store.claimed()
    behind = [await store.create(session_id=first.session_id) for _ in range(8)]
    async with opened(either_url) as other:
        other.workspace = store.workspace
        async with asyncio.TaskGroup() as tasks:
            for run in behind[1::2]:
                tasks.create_task(store.cancel(run))
            tasks.create_task(store.advance(first, becomes(SUCCEEDED)))
            added = [tasks.create_task(other.create(session_id=first.session_id)) for _ in range(4)]
    left = {run.run_id for run in behind[::2]} | {task.result().run_id for task in added}
    order: list[str] = []
    while rows := await store.claim():
        (row,) = rows
        order.append(row.run_id)
        run = Held(store.workspace, row.run_id, row.session_id, row.epoch, row.last_seq)
        await store.advance(run, becomes(SUCCEEDED))
    assert set(order) == left
    assert len(order) == len(left)


async def test_messages_of_a_session_come_in_order_and_in_pages(store: Store) -> None:
    stored, body = message_blob("long " * 4_000)
    first = await store.claimed(input=text("one"))
    await store.advance(first, started(1))
    await store.advance(first, finished(1, message=stored), becomes(SUCCEEDED), blobs=[body])
    second = await store.create(session_id=first.session_id, input=text("two"))
    await store.take(second)
    await store.advance(second, finished(1, "fine"), becomes(SUCCEEDED))
    third = await store.create(session_id=first.session_id, input=text("three"))

    async def read(page_size: int, before: str = "") -> list[str]:
        words: list[str] = []
        position = ""
        while True:
            messages, position = await store.db.read(
                session_store.list_session_messages, store.workspace, first.session_id, page_size, position, before
            )
            words += [message.message.parts[0].text[:5].strip() for message in messages]
            if not position:
                return words

    assert await read(1_000) == await read(1) == await read(2) == ["one", "long", "two", "fine", "three"]
    assert await read(1_000, third.run_id) == ["one", "long", "two", "fine"]
    assert await read(2, second.run_id) == ["one", "long"]
    for position in ("1", "a.b", "1.²", "9" * 30 + ".1"):
        with pytest.raises(InvalidArgument) as caught:
            await store.db.read(
                session_store.list_session_messages, store.workspace, first.session_id, 10, position, ""
            )
        assert caught.value.reason == Reason.INVALID_PAGE_TOKEN


# --------------------------------------------------------------------------------------------------------------- lists


async def test_lists_page_newest_first(store: Store) -> None:
    runs = [await store.create(agent="a" if n % 2 else "b", user_id=f"u{n % 3}") for n in range(7)]
    ids = [run.run_id for run in reversed(runs)]
    await store.create(workspace=new_uuid7())

    async def listed(limit: int, before: str = "", **only: object) -> list[str]:
        chosen = run_store.RunFilter(**only)  # type: ignore[arg-type]
        found = await store.db.read(run_store.list_runs, store.workspace, limit, before, chosen)
        return [run.run_id for run in found]

    assert await listed(10) == ids
    assert await listed(3) == ids[:3]
    assert await listed(3, ids[2]) == ids[3:6]
    assert await listed(10, agent="a") == [run.run_id for run in reversed(runs[1::2])]
    assert await listed(10, user_id="u1", agent="a") == [runs[1].run_id]
    assert await listed(10, session_id=runs[2].session_id) == [runs[2].run_id]
    assert await listed(10, session_id="nonsense") == []
    assert await listed(10, states=[RUNNING]) == []
    assert await listed(10, created_after=FUTURE) == []
    with pytest.raises(InvalidArgument):
        await listed(10, "nonsense")
    sessions = await store.db.read(session_store.list_sessions, store.workspace, 2, "", "")
    assert [session.session_id for session in sessions] == [run.session_id for run in runs[:-3:-1]]
    older = await store.db.read(session_store.list_sessions, store.workspace, 10, sessions[-1].session_id, "u0")
    assert [session.session_id for session in older] == [runs[3].session_id, runs[0].session_id]


async def test_agents_are_stored_once_by_revision_and_found_by_label(store: Store) -> None:
    async def put(revision: str, request: str = "", fingerprint: bytes = b"") -> bool:
        spec = agent_pb2.AgentSpec(name="support", description=revision)
        _, created = await store.db.write(
            agent_store.put_revision, store.db, store.workspace, revision, spec, request, fingerprint
        )
        return created

    async def get(name: str) -> str:
        return (await store.db.read(agent_store.get_revision, store.workspace, "support", name)).revision

    first, second = "aaaaaa111111", "aaaaaa222222"
    assert await put(first, "r1", b"1")
    assert await put(second)
    assert not await put(first)
    assert await put(first, "r1", b"1"), "the same request is answered the same"
    assert await get("") == first
    agent = await store.db.write(
        agent_store.put_label, store.db, store.workspace, "support", "prod", second[:8], "", b""
    )
    assert dict(agent.labels) == {"latest": first, "prod": second}
    assert await get("prod") == second
    for name, reason in (("aaaaaa", Reason.REVISION_NOT_FOUND), ("staging", Reason.LABEL_NOT_FOUND)):
        with pytest.raises(NotFound) as caught:
            await get(name)
        assert caught.value.reason == reason
    page, position = await store.db.read(agent_store.list_revisions, store.workspace, "support", 1, "")
    rest, end = await store.db.read(agent_store.list_revisions, store.workspace, "support", 1, position)
    assert ([item.revision for item in (*page, *rest)], end) == ([second, first], "")
    for position in ("=", "x", "²"):
        with pytest.raises(InvalidArgument):
            await store.db.read(agent_store.list_revisions, store.workspace, "support", 1, position)
    with pytest.raises(NotFound):
        await store.db.read(agent_store.get_agent, new_uuid7(), "support")


@pytest.mark.promise("P11")
async def test_nothing_of_a_foreign_workspace_is_found(store: Store) -> None:
    run = await store.claimed()
    question = new_uuid7()
    await store.advance(run, asks(1, question), calls=[new_call(1)])
    foreign = new_uuid7()
    for reading in (
        (run_store.get_run, foreign, run.run_id),
        (session_store.get_session, foreign, run.session_id),
        (approval_store.get_approval, foreign, question),
        (session_store.list_session_messages, foreign, run.session_id, 10, "", ""),
        (run_store.get_run, foreign, "nonsense"),
        (run_store.get_run, "nonsense", run.run_id),
    ):
        with pytest.raises(NotFound):
            await store.db.read(*reading)
    assert await store.db.read(run_store.list_runs, foreign, 10, "", run_store.RunFilter()) == []
    assert await store.db.read(approval_store.list_approvals, foreign, 10, "", run.run_id, 0) == []
    for writing in (
        (run_store.request_cancel, store.db, foreign, run.run_id, "key-9", ""),
        (approval_store.decide_approval, store.db, foreign, run_pb2.ApprovalDecided(approval_id=question)),
    ):
        with pytest.raises(NotFound):
            await store.db.write(*writing)
    stolen = Held(**{**vars(run), "workspace": foreign})
    assert (await store.refusal(stolen, started(1))).reason == Reason.RUN_NOT_FOUND
    assert (await store.db.write(
        call_store.lease_calls, store.db, foreign, "worker-1", ["refund"], 10, timedelta(seconds=60)
    )) == []  # fmt: skip
    with pytest.raises(NotFound):
        await store.create(workspace=foreign, session_id=run.session_id)
    assert len(await store.events(run)) == 2


# --------------------------------------------------------------------------------------------------------- change feed


async def follow(
    store: Store, cursor: bytes = b"", limit: int = DEFAULT_ENTRIES
) -> tuple[list[tuple[str, int]], bytes]:
    """The feed from a cursor to its end for now, and the cursor there."""
    found: list[tuple[str, int]] = []
    while True:
        entries, cursor, is_caught_up = await store.db.read(change_feed.read_feed, store.db, cursor, limit)
        found += [(entry.event.run_id, entry.event.seq) for entry in entries]
        if is_caught_up:
            return found, cursor


@pytest.mark.promise("P9")
async def test_feed_has_every_event_once_from_any_cursor(store: Store) -> None:
    runs = [await store.claimed() for _ in range(5)]
    for step in range(1, 5):
        await store.submit(*(run.transition(started(step), seq=step + 1) for run in runs))
    await store.cancel(runs[0])
    whole, end = await follow(store)
    assert len(whole) == len(set(whole)) == 26
    for run in runs:
        assert [seq for run_id, seq in whole if run_id == run.run_id] == list(
            range(1, (await store.row(run)).last_seq + 1)
        )
    assert (await follow(store, limit=3))[0] == whole
    cursor = b""
    for read in range(1, 27):
        _, cursor, _ = await store.db.read(change_feed.read_feed, store.db, cursor, 1)
        assert (await follow(store, cursor))[0] == whole[read:]
    assert await follow(store, end) == ([], end)
    await store.advance(runs[1], started(9), seq=6)
    assert (await follow(store, end))[0] == [(runs[1].run_id, 6)]


async def test_feed_frames_are_bounded_in_size(store: Store) -> None:
    run = await store.claimed()
    for step in range(1, 6):
        await store.advance(run, finished(step, "x" * 900_000))
    entries, cursor, is_caught_up = await store.db.read(change_feed.read_feed, store.db, b"", 500)
    assert (len(entries), is_caught_up) == (3, False)
    assert len((await follow(store, cursor))[0]) == 3


async def test_foreign_cursor_is_refused(store: Store) -> None:
    await store.create()
    await store.create()
    _, cursor = await follow(store)
    await store.db.read(change_feed.check_cursor, store.db, cursor)
    tag, mark, position, run_id, seq = change_feed._CURSOR.unpack(cursor)
    pack = change_feed._CURSOR.pack
    later = pack(tag, mark, position + 1_000_000, run_id, seq)
    other = pack(3 - tag, mark, position, run_id, seq)
    run = pack(tag, mark, position, b"\xff" * 36, seq)
    far = pack(tag, mark, 2**64 - 1, run_id, seq)
    # Made elsewhere: where it stands is an event that is not here, or has another place.
    lost = pack(tag, mark + 1, position, new_uuid7().encode(), seq)
    moved = pack(tag, mark + 1, position - 1, run_id, seq)
    await store.db.read(change_feed.check_cursor, store.db, pack(tag, mark + 1, position, run_id, seq))
    for bad in (b"x", cursor + b"x", later, other, run, far, lost, moved):
        with pytest.raises(InvalidArgument) as caught:
            await store.db.read(change_feed.check_cursor, store.db, bad)
        assert caught.value.reason == Reason.INVALID_PAGE_TOKEN


# ------------------------------------------------------------------------------------------------- only on PostgreSQL


@pytest.fixture
async def postgres_store(postgres_state: str) -> AsyncIterator[Store]:
    """The store on PostgreSQL."""
    async with emptied(postgres_state) as store:
        yield store


@pytest.mark.promise("P9")
async def test_feed_passes_no_transaction_that_is_still_open(postgres_store: Store) -> None:
    store = postgres_store
    early, late = await store.create(), await store.create()
    _, start = await follow(store)
    has_begun, may_commit = asyncio.Event(), asyncio.Event()
    open_transaction = asyncio.create_task(commit_when_told(store, early, has_begun, may_commit))
    await has_begun.wait()
    await store.cancel(late)
    # The later transaction has committed, the earlier one has not: a reader that went on would never see it.
    assert (await follow(store, start))[0] == []
    may_commit.set()
    await open_transaction
    assert (await follow(store, start))[0] == [(early.run_id, 2), (late.run_id, 2)]


async def commit_when_told(store: Store, run: Held, has_begun: asyncio.Event, may_commit: asyncio.Event) -> None:
    url = store.db.url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(url, options="-c search_path=state") as connection:
        await connection.execute("UPDATE runs SET last_seq = 2 WHERE run_id = %s", (run.run_id,))
        body = run_pb2.Event(changes=[run_pb2.Change(cancel_requested=run_pb2.CancelRequested())]).SerializeToString()
        await connection.execute(
            "INSERT INTO journal (run_id, seq, workspace_id, epoch, at, body) VALUES (%s, 2, %s, 0, now(), %s)",
            (run.run_id, run.workspace, body),
        )
        has_begun.set()
        await may_commit.wait()
        await connection.commit()


@pytest.mark.promise("P9")
async def test_feed_misses_nothing_while_many_write(postgres_store: Store) -> None:
    store = postgres_store
    runs = [await store.claimed() for _ in range(20)]
    seen: list[tuple[str, int]] = []
    is_over = asyncio.Event()

    async def read_on() -> None:
        cursor = b""
        while True:
            last = is_over.is_set()
            found, cursor = await follow(store, cursor, limit=7)
            seen.extend(found)
            if last:
                return

    async def drive(run: Held) -> None:
        for step in range(1, 11):
            await store.advance(run, started(step))

    async def cancel(run: Held) -> None:
        await store.db.write(run_store.request_cancel, store.db, run.workspace, run.run_id, "key", "")

    async with asyncio.TaskGroup() as tasks:
        reader = tasks.create_task(read_on())
        writers = [tasks.create_task(drive(run)) for run in runs[:10]]
        writers += [tasks.create_task(cancel(run)) for run in runs[10:]]
        await asyncio.gather(*writers)
        is_over.set()
        await reader
    for run in runs:
        assert [seq for run_id, seq in seen if run_id == run.run_id] == list(
            range(1, (await store.row(run)).last_seq + 1)
        )


async def test_feed_keeps_a_runs_order_when_its_writers_waited_for_each_other(postgres_store: Store) -> None:
    store = postgres_store
    run = await store.claimed()
    await store.advance(run, *(asks(n, new_uuid7()) for n in range(1, 3)))
    approvals = await store.db.read(approval_store.list_approvals, store.workspace, 10, "", run.run_id, 0)
    url = store.db.url.set(drivername="postgresql").render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(url, options="-c search_path=state") as connection:
        await connection.execute("SELECT 1 FROM runs WHERE run_id = %s FOR UPDATE", (run.run_id,))
        waiting = [
            asyncio.create_task(
                store.db.write(
                    approval_store.decide_approval,
                    store.db,
                    store.workspace,
                    run_pb2.ApprovalDecided(approval_id=approval.approval_id),
                )
            )
            for approval in approvals
        ]
        async with asyncio.timeout(10):
            while True:
                found = await connection.execute(
                    "SELECT count(*), count(backend_xid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                )
                count, with_xid = await found.fetchone() or (0, 0)
                if count == 2:
                    break
                await connection.execute("SELECT pg_stat_clear_snapshot()")
        # The feed's order rests on this: whoever waits for a run's row has not taken its place in the order yet.
        assert with_xid == 0
        await connection.rollback()
        await asyncio.gather(*waiting)
    assert [seq for run_id, seq in (await follow(store))[0] if run_id == run.run_id] == [1, 2, 3, 4]


async def test_run_stored_while_its_predecessor_ends_is_not_left_blocked(postgres_store: Store) -> None:
    """The end waits for the row that a new run of the session has just changed, and must see the run all the same."""
    store = postgres_store
    first = await store.claimed()
    url = store.db.url.set(drivername="postgresql").render_as_string(hide_password=False)
    engine = sa.create_engine(store.db.url, connect_args={"options": "-c search_path=state"})
    new = new_run(store.workspace, session_id=first.session_id)
    with engine.connect() as adding:
        new_runs.insert_run(adding, store.db, new)
        ending = asyncio.create_task(store.advance(first, becomes(SUCCEEDED)))
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as watching, asyncio.timeout(10):
            while True:
                found = await watching.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
                if (await found.fetchone() or (0,))[0] == 1:
                    break
        adding.commit()
        await ending
    engine.dispose()
    assert [row.run_id for row in await store.claim()] == [new.run_id]


# ----------------------------------------------------------------------------------------------- what a shape may be


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (run_pb2.Change(), "changes[0]"),
        (run_pb2.Change(cancel_requested=run_pb2.CancelRequested()), "changes[0]"),
        (becomes(QUEUED), "changes[0].run_state_changed.state"),
        (asks(1, "nonsense"), "changes[0].approval_requested.approval.approval_id"),
        (
            run_pb2.Change(approval_closed=run_pb2.ApprovalClosed(approval_id=new_uuid7())),
            "changes[0].approval_closed.state",
        ),
    ],
)
async def test_change_that_no_driver_writes_is_refused(store: Store, change: run_pb2.Change, field: str) -> None:
    run = await store.claimed()
    refused = await store.refusal(run, change)
    assert type(refused) is InvalidArgument
    assert refused.field_violations[0].field == f"transition.{field}"


async def test_transition_of_a_wrong_shape_is_refused(store: Store) -> None:
    run = await store.claimed()
    wrong: list[tuple[pb.Transition, str]] = [
        (run.transition(), "changes"),
        (run.transition(started(1), seq=1), "seq"),
        (run.transition(started(1), epoch=0), "seq"),
        (pb.Transition(workspace_id=store.workspace, run_id="x"), "run_id"),
        (run.transition(becomes(WAITING), started(1)), "changes[0]"),
        (run.transition(becomes(FAILED), calls=[new_call(1)]), "calls"),
        (run.transition(started(1), calls=[new_call(1, tool="")]), "calls[0]"),
        (run.transition(started(1), calls=[new_call(1, timeout=timedelta(0))]), "calls[0].timeout"),
        (run.transition(started(1), blobs=[content_pb2.Blob(hash=b"1", data=b"2")]), "blobs[0].hash"),
    ]
    for transition, field in wrong:
        with pytest.raises(HoldfastError) as caught:
            await store.commits.commit(transition)
        assert caught.value.field_violations[0].field == f"transition.{field}"
    assert len(await store.events(run)) == 1
