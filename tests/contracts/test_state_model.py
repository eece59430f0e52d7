"""What state promises of its store, held against SQLite, PostgreSQL and the model in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import FailedPrecondition, HoldfastError, LeaseLost, NotFound, Reason
from holdfast.ids import new_uuid7
from tests.fakes.state_store import Answer, ModelStateStore, StateStore
from tests.state.builders import (
    BUDGET_EXCEEDED,
    CANCELLED,
    EXPIRED,
    FAILED,
    OTHER_WORKSPACE,
    PAUSED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    WAITING,
    WORKSPACE,
    answers,
    asks,
    call,
    ends,
    finishes,
    in_blob,
    late,
    model_says,
    new_run,
    starts,
    tool_result,
    transition,
    waits,
)
from tests.state.sql_store import empty, migrated, opened, sqlite

# Its fixtures: the store on either database.
pytest_plugins = ["tests.state.sql_fixtures"]

ADA, BOB = new_uuid7(), new_uuid7()
WORKER, OTHER_WORKER = "worker-1", "worker-2"
PAST = datetime.now(UTC) - timedelta(hours=1)
FUTURE = datetime.now(UTC) + timedelta(hours=1)
# Over before anything else happens.
INSTANT = 0.000_001


@pytest.fixture(params=["model", "sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the store keeps its data; nowhere for the model."""
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres_state")
        return url
    return sqlite(tmp_path) if request.param == "sqlite" else ""


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[StateStore]:
    """The model, and the store on each database."""
    if not database_url:
        yield ModelStateStore(WORKSPACE)
        return
    async with migrated(database_url) as db:
        await db.write(empty)
        async with opened(db) as opened_store:
            yield opened_store


def why(answer: Answer) -> str:
    """The reason of a refusal."""
    assert isinstance(answer, HoldfastError), answer
    return answer.reason


async def created(store: StateStore, new: journal_pb2.NewRun | None = None) -> run_pb2.Run:
    """A stored run."""
    [answer] = await store.commit(new if new is not None else new_run())
    assert isinstance(answer, run_pb2.Run), answer
    return answer


async def claimed(store: StateStore, executor: str = ADA) -> tuple[str, int]:
    """A run of its own session that an executor drives, and the lease's epoch."""
    run = await created(store)
    await store.renew(executor)
    epochs = await store.claim(executor)
    return run.run_id, epochs[run.run_id]


async def seqs(store: StateStore, run_id: str) -> list[int]:
    return [event.seq for event in await store.events(run_id)]


async def kinds(store: StateStore, run_id: str) -> list[str | None]:
    return [change.WhichOneof("kind") for event in await store.events(run_id) for change in event.changes]


# ------------------------------------------------------------------------------------------------------ new runs


async def test_new_run_is_queued_with_its_first_event(store: StateStore) -> None:
    new = new_run(text="Where is my order?")
    run = await created(store, new)
    assert (run.run_id, run.session_id, run.state, run.last_seq) == (new.run_id, new.new_session_id, QUEUED, 1)
    [event] = await store.events(run.run_id)
    assert event.changes[0].run_created.input == new.input


async def test_new_run_sent_twice_is_stored_once_and_answered_the_same(store: StateStore) -> None:
    new = new_run()
    first = await created(store, new)
    again = await created(store, new)
    assert again == first
    assert await seqs(store, new.run_id) == [1]


async def test_request_id_answers_with_the_first_run(store: StateStore) -> None:
    first = await created(store, new_run(request_id="r-1", fingerprint=b"f"))
    second = await created(store, new_run(request_id="r-1", fingerprint=b"f"))
    assert second.run_id == first.run_id


async def test_two_with_one_request_id_in_one_batch_are_one_run(store: StateStore) -> None:
    first, second = await store.commit(
        new_run(request_id="r-1", fingerprint=b"f"), new_run(request_id="r-1", fingerprint=b"f")
    )
    assert isinstance(first, run_pb2.Run) and isinstance(second, run_pb2.Run)
    assert first.run_id == second.run_id


async def test_request_id_of_another_call_is_refused(store: StateStore) -> None:
    await created(store, new_run(request_id="r-1", fingerprint=b"one"))
    [answer] = await store.commit(new_run(request_id="r-1", fingerprint=b"other"))
    assert why(answer) == Reason.REQUEST_ID_REUSED


async def test_request_id_belongs_to_its_workspace(store: StateStore) -> None:
    first = await created(store, new_run(request_id="r-1", fingerprint=b"f"))
    other = await created(store, new_run(request_id="r-1", fingerprint=b"f", workspace_id=OTHER_WORKSPACE))
    assert other.run_id != first.run_id


async def test_refused_new_run_does_not_harm_those_beside_it(store: StateStore) -> None:
    await created(store, new_run(request_id="r-1", fingerprint=b"one"))
    good, bad, other = await store.commit(
        new_run(), new_run(request_id="r-1", fingerprint=b"other"), new_run(session_id=new_uuid7())
    )
    assert isinstance(good, run_pb2.Run)
    assert why(bad) == Reason.REQUEST_ID_REUSED
    assert why(other) == Reason.SESSION_NOT_FOUND


# ----------------------------------------------------------------------------------------------------- sessions


async def test_second_run_of_a_session_waits_for_the_first(store: StateStore) -> None:
    first = await created(store)
    second = await created(store, new_run(session_id=first.session_id))
    assert second.previous_run_id == first.run_id
    epochs = await store.claim(ADA)
    assert set(epochs) == {first.run_id}
    assert await store.commit(transition(first.run_id, epochs[first.run_id], 2, ends())) == [2]
    assert set(await store.claim(ADA)) == {second.run_id}


async def test_run_after_an_ended_one_is_ready_at_once(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    session_id = (await store.run(run_id)).session_id
    await store.commit(transition(run_id, epoch, 2, ends()))
    second = await created(store, new_run(session_id=session_id))
    assert second.previous_run_id == run_id
    assert set(await store.claim(ADA)) == {second.run_id}


async def test_two_new_runs_of_a_session_in_one_batch_form_a_chain(store: StateStore) -> None:
    first = await created(store)
    second, third = await store.commit(new_run(session_id=first.session_id), new_run(session_id=first.session_id))
    assert isinstance(second, run_pb2.Run) and isinstance(third, run_pb2.Run)
    assert (second.previous_run_id, third.previous_run_id) == (first.run_id, second.run_id)


async def test_busy_session_refuses_who_will_not_wait(store: StateStore) -> None:
    first = await created(store)
    [answer] = await store.commit(new_run(session_id=first.session_id, reject_when_busy=True))
    assert why(answer) == Reason.SESSION_BUSY
    # The refusal left nothing behind: the next one is the first one's successor.
    second = await created(store, new_run(session_id=first.session_id))
    assert second.previous_run_id == first.run_id
    epochs = await store.claim(ADA)
    await store.commit(transition(first.run_id, epochs[first.run_id], 2, ends()))
    assert set(await store.claim(ADA)) == {second.run_id}


async def test_session_of_another_workspace_is_not_found(store: StateStore) -> None:
    first = await created(store)
    [answer] = await store.commit(new_run(session_id=first.session_id, workspace_id=OTHER_WORKSPACE))
    assert why(answer) == Reason.SESSION_NOT_FOUND


@pytest.mark.parametrize("cancelled", [1, 2], ids=["in the middle", "at the end"])
async def test_cancelled_run_leaves_the_chain_of_its_session(store: StateStore, cancelled: int) -> None:
    runs = [await created(store)]
    for _ in range(2):
        runs.append(await created(store, new_run(session_id=runs[0].session_id)))
    assert (await store.cancel(runs[cancelled].run_id)).state == CANCELLED
    runs.append(await created(store, new_run(session_id=runs[0].session_id)))
    order = [run.run_id for index, run in enumerate(runs) if index != cancelled]
    driven: list[str] = []
    while epochs := await store.claim(ADA):
        # Never two of a session at once.
        [(run_id, epoch)] = epochs.items()
        driven.append(run_id)
        await store.commit(transition(run_id, epoch, 2, ends()))
    assert driven == order
    assert await kinds(store, runs[cancelled].run_id) == ["run_created", "cancel_requested", "run_state_changed"]


# -------------------------------------------------------------------------------------------------- transitions


@pytest.mark.promise("P1")
async def test_committed_transition_is_the_next_event(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    assert await store.commit(transition(run_id, epoch, 2, starts(1))) == [2]
    assert await store.commit(transition(run_id, epoch, 3, finishes(1), starts(2))) == [3]
    events = await store.events(run_id)
    assert [(event.seq, event.epoch) for event in events] == [(1, 0), (2, epoch), (3, epoch)]
    run = await store.run(run_id)
    assert (run.last_seq, run.step_count, run.state) == (3, 2, RUNNING)


async def test_transitions_of_one_run_that_arrive_together_are_applied_in_order(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    batch = [transition(run_id, epoch, seq) for seq in range(2, 30)]
    assert await store.commit(*batch) == list(range(2, 30))
    assert await seqs(store, run_id) == list(range(1, 30))


async def test_transition_sent_again_is_applied_once_and_answered_the_same(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    sent = transition(run_id, epoch, 2, starts(1))
    assert await store.commit(sent) == [2]
    assert await store.commit(sent) == [2]
    assert await store.commit(sent, sent) == [2, 2]
    assert await seqs(store, run_id) == [1, 2]


@pytest.mark.promise("P3")
async def test_transition_sent_again_after_the_lease_is_lost_is_answered_as_committed(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    sent = transition(run_id, epoch, 2, starts(1))
    await store.commit(sent)
    await store.leave(ADA)
    assert (await store.claim(BOB))[run_id] == epoch + 1
    assert await store.commit(sent) == [2]
    [answer] = await store.commit(transition(run_id, epoch, 3, finishes(1)))
    assert why(answer) == Reason.LEASE_LOST


@pytest.mark.promise("P3")
async def test_append_under_a_stale_epoch_is_refused(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.give_back(ADA, {run_id: epoch})
    [unclaimed] = await store.commit(transition(run_id, epoch, 2))
    assert why(unclaimed) == Reason.LEASE_LOST
    newer = (await store.claim(BOB))[run_id]
    [stale] = await store.commit(transition(run_id, epoch, 2))
    assert why(stale) == Reason.LEASE_LOST
    assert await store.commit(transition(run_id, newer, 2)) == [2]


async def test_epoch_that_was_never_given_is_refused(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    [answer] = await store.commit(transition(run_id, epoch + 1, 2))
    assert why(answer) == Reason.LEASE_LOST


async def test_gap_and_other_content_are_conflicts(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.commit(transition(run_id, epoch, 2, starts(1)))
    gap, other = (
        (await store.commit(transition(run_id, epoch, 4)))[0],
        (await store.commit(transition(run_id, epoch, 2, starts(2))))[0],
    )
    assert why(gap) == why(other) == Reason.CONFLICT
    assert await seqs(store, run_id) == [1, 2]


async def test_bad_transition_fails_alone_in_its_batch(store: StateStore) -> None:
    runs = [await claimed(store) for _ in range(4)]
    (first, e1), (second, e2), (third, e3), (fourth, e4) = runs
    given = await store.commit(
        transition(first, e1, 2),
        transition(second, e2 + 7, 2),
        transition(third, e3, 9),
        transition(new_uuid7(), 1, 2),
        transition(fourth, e4, 2),
        transition(first, e1, 2, workspace_id=OTHER_WORKSPACE),
    )
    assert (given[0], given[4]) == (2, 2)
    assert [why(given[index]) for index in (1, 2, 3, 5)] == [
        Reason.LEASE_LOST,
        Reason.CONFLICT,
        Reason.RUN_NOT_FOUND,
        Reason.RUN_NOT_FOUND,
    ]


async def test_malformed_transition_is_refused(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    [answer] = await store.commit(transition(run_id, epoch, 1, starts(1)))
    assert why(answer) == Reason.INVALID_FIELD


@pytest.mark.parametrize("state", [SUCCEEDED, FAILED, CANCELLED, EXPIRED, BUDGET_EXCEEDED])
async def test_nothing_is_written_after_an_end(store: StateStore, state: run_pb2.RunState) -> None:
    run_id, epoch = await claimed(store)
    assert await store.commit(transition(run_id, epoch, 2, ends(state))) == [2]
    [answer] = await store.commit(transition(run_id, epoch, 3))
    assert why(answer) == Reason.LEASE_LOST
    run = await store.run(run_id)
    assert run.state == state
    assert run.HasField("failure") == (state == FAILED)
    await store.sweep()
    assert await store.claim(BOB) == {}


@pytest.mark.parametrize("is_large", [False, True], ids=["inline", "in a blob"])
async def test_answer_of_a_run_is_its_last_message(store: StateStore, is_large: bool) -> None:
    run_id, epoch = await claimed(store)
    message = model_says("Your order is on its way.")
    stored, blob = in_blob(message)
    change = finishes(1)
    change.step_finished.message.CopyFrom(stored if is_large else message)
    await store.commit(
        transition(run_id, epoch, 2, starts(1)),
        transition(run_id, epoch, 3, change, ends(), blobs=[blob] if is_large else []),
    )
    assert (await store.run(run_id)).output == message.message


async def test_usage_adds_up_and_cost_is_unknown_once_one_price_is(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    priced = content_pb2.Usage(input_tokens=10, output_tokens=5, cost_usd_nanos=7)
    await store.commit(
        transition(run_id, epoch, 2, finishes(1, usage=priced)), transition(run_id, epoch, 3, finishes(2, usage=priced))
    )
    usage = (await store.run(run_id)).usage
    assert (usage.input_tokens, usage.output_tokens, usage.cost_usd_nanos) == (20, 10, 14)
    unpriced = content_pb2.Usage(input_tokens=1)
    await store.commit(transition(run_id, epoch, 4, finishes(3, usage=unpriced)))
    await store.commit(transition(run_id, epoch, 5, finishes(4, usage=priced)))
    usage = (await store.run(run_id)).usage
    assert usage.input_tokens == 31
    assert not usage.HasField("cost_usd_nanos")


async def test_blob_is_stored_once_for_each_workspace(store: StateStore) -> None:
    first, second = await claimed(store), await claimed(store)
    _, blob = in_blob(model_says("long"))
    assert await store.blob(blob.hash) is None
    given = await store.commit(*(transition(run_id, epoch, 2, blobs=[blob]) for run_id, epoch in (first, second)))
    assert given == [2, 2]
    assert await store.blob(blob.hash) == blob.data
    assert await store.blob(blob.hash, OTHER_WORKSPACE) is None


async def test_refused_transition_leaves_nothing_behind(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    _, blob = in_blob(model_says("never stored"))
    approval_id = new_uuid7()
    good_id, good_epoch = await claimed(store)
    refused, applied = await store.commit(
        transition(run_id, epoch + 1, 2, asks(approval_id), blobs=[blob], calls=[call(start_deadline=FUTURE)]),
        transition(good_id, good_epoch, 2, calls=[call(tool="other", start_deadline=FUTURE)]),
    )
    assert why(refused) == Reason.LEASE_LOST
    assert applied == 2
    assert await store.blob(blob.hash) is None
    assert await store.lease_calls(WORKER, ["refund"]) == []
    with pytest.raises(NotFound):
        await store.approval(approval_id)


@pytest.mark.promise("P11")
async def test_run_of_another_workspace_is_not_found(store: StateStore) -> None:
    run_id, _ = await claimed(store)
    with pytest.raises(NotFound):
        await store.run(run_id, OTHER_WORKSPACE)
    with pytest.raises(NotFound):
        await store.cancel(run_id, OTHER_WORKSPACE)


# ------------------------------------------------------------------------------------------------------- leases


@pytest.mark.promise("P3")
async def test_no_run_is_claimed_twice_by_concurrent_claimers(store: StateStore) -> None:
    runs = {run.run_id for run in await store.commit(*(new_run() for _ in range(60))) if isinstance(run, run_pb2.Run)}
    assert len(runs) == 60
    executors = [new_uuid7() for _ in range(6)]
    taken: list[str] = []
    while len(taken) < 60:
        found = await asyncio.gather(*(store.claim(executor, 4) for executor in executors))
        assert any(found), "ready runs are left and nobody gets them"
        assert all(len(epochs) <= 4 for epochs in found)
        taken += [run_id for epochs in found for run_id in epochs]
    assert sorted(taken) == sorted(runs)


async def test_oldest_ready_run_is_claimed_first(store: StateStore) -> None:
    order = [(await created(store)).run_id for _ in range(4)]
    assert [run_id for _ in order for run_id in await store.claim(ADA, 1)] == order


async def test_each_claim_has_a_higher_epoch(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    for expected in range(epoch + 1, epoch + 4):
        await store.leave(ADA)
        assert await store.claim(ADA) == {run_id: expected}


async def test_runs_of_a_lost_executor_are_ready_again(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.sweep()
    assert await store.claim(BOB) == {}
    await store.lose(ADA)
    await store.sweep()
    assert await store.claim(BOB) == {run_id: epoch + 1}


async def test_sweep_leaves_the_runs_of_living_executors(store: StateStore) -> None:
    lost, _ = await claimed(store, ADA)
    kept, _ = await claimed(store, BOB)
    await store.lose(ADA)
    await store.renew(BOB)
    await store.sweep()
    assert set(await store.claim(new_uuid7())) == {lost}
    assert (await store.run(kept)).state == RUNNING


async def test_only_the_named_lease_is_given_back(store: StateStore) -> None:
    first, first_epoch = await claimed(store)
    second, _ = await claimed(store)
    await store.give_back(ADA, {first: first_epoch, second: 99})
    assert set(await store.claim(BOB)) == {first}


# --------------------------------------------------------------------------------------- waiting, and from outside


@pytest.mark.promise("P6")
async def test_waiting_run_is_given_to_nobody_until_it_is_due(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.commit(transition(run_id, epoch, 2, waits(run_pb2.WAIT_REASON_TIMER, wake_at=FUTURE)))
    await store.sweep()
    assert await store.claim(BOB) == {}
    run = await store.run(run_id)
    assert (run.state, run.wait_reason) == (WAITING, run_pb2.WAIT_REASON_TIMER)


async def test_due_run_is_woken_by_the_sweep(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.commit(transition(run_id, epoch, 2, waits(run_pb2.WAIT_REASON_TIMER, wake_at=PAST)))
    assert await store.claim(BOB) == {}
    await store.sweep()
    run = await store.run(run_id)
    assert (run.state, run.wait_reason) == (QUEUED, run_pb2.WAIT_REASON_UNSPECIFIED)
    assert await store.claim(BOB) == {run_id: epoch + 1}


async def test_cancel_wakes_a_waiting_run_in_the_same_transaction(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.commit(transition(run_id, epoch, 2, waits()))
    run = await store.cancel(run_id)
    assert (run.state, run.cancel_requested, run.last_seq) == (QUEUED, True, 3)
    assert await store.claim(BOB) == {run_id: epoch + 1}


async def test_outside_event_makes_the_drivers_next_transition_a_conflict(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    run = await store.cancel(run_id)
    assert run.state == RUNNING
    [answer] = await store.commit(transition(run_id, epoch, 2))
    assert why(answer) == Reason.CONFLICT
    assert await store.commit(transition(run_id, epoch, 3, ends(CANCELLED))) == [3]
    assert await kinds(store, run_id) == ["run_created", "cancel_requested", "run_state_changed"]


async def test_cancel_is_written_once(store: StateStore) -> None:
    run_id, _ = await claimed(store)
    first, second = await store.cancel(run_id), await store.cancel(run_id)
    assert first == second
    assert (await kinds(store, run_id)).count("cancel_requested") == 1


async def test_ended_run_is_not_cancelled(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.commit(transition(run_id, epoch, 2, ends()))
    with pytest.raises(FailedPrecondition) as refused:
        await store.cancel(run_id)
    assert refused.value.reason == Reason.RUN_ENDED


async def asked(store: StateStore) -> tuple[str, int, str]:
    """A run that waits for the answer to a question."""
    run_id, epoch = await claimed(store)
    approval_id = new_uuid7()
    await store.commit(transition(run_id, epoch, 2, starts(1), asks(approval_id), waits()))
    return run_id, epoch, approval_id


async def test_answer_is_stored_and_wakes_the_run(store: StateStore) -> None:
    run_id, epoch, approval_id = await asked(store)
    assert (await store.approval(approval_id)).state == run_pb2.APPROVAL_STATE_PENDING
    approval = await store.decide(answers(approval_id))
    assert approval.state == run_pb2.APPROVAL_STATE_DECIDED
    assert (approval.decision.answer_json, approval.decision.step) == ('"yes"', 1)
    assert (await kinds(store, run_id))[-1] == "approval_decided"
    assert await store.claim(BOB) == {run_id: epoch + 1}


async def test_first_answer_counts(store: StateStore) -> None:
    run_id, _, approval_id = await asked(store)
    first = await store.decide(answers(approval_id, '"yes"'))
    assert await store.decide(answers(approval_id, '"yes"')) == first
    with pytest.raises(FailedPrecondition) as refused:
        await store.decide(answers(approval_id, '"no"'))
    assert refused.value.reason == Reason.APPROVAL_ALREADY_DECIDED
    assert (await kinds(store, run_id)).count("approval_decided") == 1


async def test_of_answers_at_the_same_moment_one_counts(store: StateStore) -> None:
    run_id, _, approval_id = await asked(store)
    given = await asyncio.gather(
        *(store.decide(answers(approval_id, str(number))) for number in range(5)), return_exceptions=True
    )
    assert sum(isinstance(answer, run_pb2.Approval) for answer in given) == 1
    assert (await kinds(store, run_id)).count("approval_decided") == 1


async def test_end_of_a_run_closes_its_questions(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    approval_id = new_uuid7()
    await store.commit(transition(run_id, epoch, 2, asks(approval_id)), transition(run_id, epoch, 3, ends(CANCELLED)))
    assert (await store.approval(approval_id)).state == run_pb2.APPROVAL_STATE_CANCELLED
    with pytest.raises(FailedPrecondition):
        await store.decide(answers(approval_id))


@pytest.mark.promise("P11")
async def test_question_of_another_workspace_is_not_found(store: StateStore) -> None:
    _, _, approval_id = await asked(store)
    with pytest.raises(NotFound):
        await store.approval(approval_id, OTHER_WORKSPACE)
    with pytest.raises(NotFound):
        await store.decide(answers(approval_id), OTHER_WORKSPACE)


# ------------------------------------------------------------------------------------------------ workers' calls


async def with_call(store: StateStore, new: journal_pb2.NewCall | None = None) -> tuple[str, int]:
    """A run that waits for a worker's call; the next driver's transition is event 3."""
    run_id, epoch = await claimed(store)
    given = new if new is not None else call(start_deadline=FUTURE)
    answer = await store.commit(
        transition(run_id, epoch, 2, starts(1, tool="refund"), waits(run_pb2.WAIT_REASON_TOOL), calls=[given])
    )
    assert answer == [2]
    return run_id, epoch


async def test_call_is_offered_started_and_completed(store: StateStore) -> None:
    run_id, epoch = await with_call(store)
    [leased] = await store.lease_calls(WORKER, ["refund"])
    assert (leased.run_id, leased.step, leased.attempt, leased.idempotency_key) == (run_id, 1, 1, "k1")
    await store.start_call(WORKER, leased.lease)
    assert await store.claim(BOB) == {}, "nothing can be decided from a start"
    assert await store.complete_call(WORKER, leased.lease, tool_result(1), late()) == 4
    assert (await kinds(store, run_id))[-2:] == ["call_started", "step_finished"]
    assert await store.claim(BOB) == {run_id: epoch + 1}


async def test_call_is_offered_to_one_worker(store: StateStore) -> None:
    await with_call(store)
    offered = await asyncio.gather(*(store.lease_calls(f"worker-{number}", ["refund"]) for number in range(5)))
    assert sum(len(leased) for leased in offered) == 1


async def test_worker_gets_only_what_it_serves(store: StateStore) -> None:
    await with_call(store)
    assert await store.lease_calls(WORKER, ["other"]) == []


async def test_returned_offer_goes_to_another_worker(store: StateStore) -> None:
    await with_call(store)
    [first] = await store.lease_calls(WORKER, ["refund"])
    await store.return_calls(WORKER, [first.lease])
    [second] = await store.lease_calls(OTHER_WORKER, ["refund"])
    assert second.lease != first.lease
    with pytest.raises(LeaseLost):
        await store.start_call(WORKER, first.lease)


async def test_offer_that_nobody_started_is_void(store: StateStore) -> None:
    await with_call(store)
    [first] = await store.lease_calls(WORKER, ["refund"], offer=timedelta())
    with pytest.raises(LeaseLost):
        await store.start_call(WORKER, first.lease)
    await store.sweep()
    [second] = await store.lease_calls(OTHER_WORKER, ["refund"])
    await store.start_call(OTHER_WORKER, second.lease)


async def test_start_is_written_once(store: StateStore) -> None:
    run_id, _ = await with_call(store)
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    await store.start_call(WORKER, leased.lease)
    assert (await kinds(store, run_id)).count("call_started") == 1


async def test_report_sent_twice_is_stored_once_and_answered_the_same(store: StateStore) -> None:
    run_id, _ = await with_call(store)
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    first = await store.complete_call(WORKER, leased.lease, tool_result(1), late())
    # The run has gone on in the meantime.
    newer = (await store.claim(BOB))[run_id]
    await store.commit(transition(run_id, newer, first + 1, starts(2)))
    assert await store.complete_call(WORKER, leased.lease, tool_result(1), late()) == first
    assert (await kinds(store, run_id)).count("step_finished") == 1


@pytest.mark.promise("P5")
async def test_silent_workers_call_is_lost_with_an_unknown_outcome(store: StateStore) -> None:
    run_id, epoch = await with_call(store, call(start_deadline=FUTURE, heartbeat_timeout=INSTANT))
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    await store.sweep()
    failed = (await store.events(run_id))[-1].changes[0].attempt_failed
    assert (failed.step, failed.attempt, failed.failure.reason) == (1, 1, "WORKER_LOST")
    assert failed.failure.failure_class == content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME
    assert await store.renew_calls(WORKER, {leased.lease: ""}) == ([leased.lease], [])
    assert await store.claim(BOB) == {run_id: epoch + 1}


async def test_call_that_takes_too_long_is_lost(store: StateStore) -> None:
    run_id, _ = await with_call(store, call(start_deadline=FUTURE, timeout=INSTANT))
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    await store.sweep()
    failed = (await store.events(run_id))[-1].changes[0].attempt_failed
    assert failed.failure.reason == "CALL_TIMEOUT"
    assert failed.failure.failure_class == content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME


async def test_call_that_no_worker_took_may_be_tried_again(store: StateStore) -> None:
    run_id, _ = await with_call(store, call(start_deadline=PAST))
    assert await store.lease_calls(WORKER, ["refund"]) == []
    await store.sweep()
    failed = (await store.events(run_id))[-1].changes[0].attempt_failed
    assert failed.failure.reason == "WORKER_START_TIMEOUT"
    assert failed.failure.failure_class == content_pb2.FAILURE_CLASS_RETRYABLE


async def test_lost_call_is_lost_once(store: StateStore) -> None:
    run_id, _ = await with_call(store, call(start_deadline=PAST))
    await asyncio.gather(store.sweep(), store.sweep())
    await store.sweep()
    assert (await kinds(store, run_id)).count("attempt_failed") == 1


async def test_report_after_the_loss_is_refused_and_kept_as_late(store: StateStore) -> None:
    run_id, _ = await with_call(store, call(start_deadline=FUTURE, timeout=INSTANT))
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    await store.sweep()
    with pytest.raises(LeaseLost) as refused:
        await store.complete_call(WORKER, leased.lease, tool_result(1), late("refunded"))
    assert refused.value.reason == Reason.CALL_LEASE_LOST
    assert (await store.events(run_id))[-1].changes[0].late_result.content == "refunded"
    assert "step_finished" not in await kinds(store, run_id)


async def test_late_report_of_an_ended_run_does_not_wake_it(store: StateStore) -> None:
    run_id, _ = await with_call(store)
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    await store.cancel(run_id)
    newer = (await store.claim(BOB))[run_id]
    await store.commit(transition(run_id, newer, 5, ends(CANCELLED)))
    with pytest.raises(LeaseLost):
        await store.complete_call(WORKER, leased.lease, tool_result(1), late())
    run = await store.run(run_id)
    assert run.state == CANCELLED
    assert (await kinds(store, run_id))[-1] == "late_result"


async def test_details_of_the_last_heartbeat_reach_the_next_attempt(store: StateStore) -> None:
    run_id, _ = await with_call(store, call(start_deadline=FUTURE, timeout=INSTANT))
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    assert await store.renew_calls(WORKER, {leased.lease: "page 3"}) == ([], [])
    await store.sweep()
    newer = (await store.claim(BOB))[run_id]
    again = call(start_deadline=FUTURE, attempt=2)
    started = run_pb2.Change(attempt_started=run_pb2.AttemptStarted(step=1, attempt=2))
    await store.commit(transition(run_id, newer, 5, started, calls=[again]))
    [second] = await store.lease_calls(OTHER_WORKER, ["refund"])
    assert (second.attempt, second.last_heartbeat_details) == (2, "page 3")
    assert second.lease != leased.lease


async def test_worker_of_a_cancelled_run_is_told_by_its_heartbeat(store: StateStore) -> None:
    run_id, _ = await with_call(store)
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    await store.cancel(run_id)
    assert await store.renew_calls(WORKER, {leased.lease: ""}) == ([], [leased.lease])


async def test_end_of_a_run_takes_its_calls_from_the_queue(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.commit(
        transition(run_id, epoch, 2, starts(1, tool="refund"), calls=[call(start_deadline=FUTURE)]),
        transition(run_id, epoch, 3, ends(FAILED)),
    )
    assert await store.lease_calls(WORKER, ["refund"]) == []


@pytest.mark.promise("P7")
async def test_step_that_the_driver_finished_has_no_call_any_more(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    queued, offered = call(1, start_deadline=FUTURE, tool="queued"), call(2, start_deadline=FUTURE, tool="offered")
    await store.commit(
        transition(run_id, epoch, 2, starts(1, tool="queued"), starts(2, tool="offered"), calls=[queued, offered])
    )
    [leased] = await store.lease_calls(WORKER, ["offered"])
    assert await store.commit(transition(run_id, epoch, 3, tool_result(1), tool_result(2))) == [3]
    assert await store.lease_calls(WORKER, ["queued"]) == []
    with pytest.raises(LeaseLost):
        await store.start_call(WORKER, leased.lease)
    with pytest.raises(LeaseLost):
        await store.complete_call(WORKER, leased.lease, tool_result(2), late())
    assert (await kinds(store, run_id)).count("step_finished") == 2


# -------------------------------------------------------------------------------------------------- change feed


@pytest.mark.promise("P9")
async def test_feed_has_every_event_once_and_those_of_a_run_in_order(store: StateStore) -> None:
    runs = [await claimed(store) for _ in range(5)]
    for seq in range(2, 6):
        await store.commit(*(transition(run_id, epoch, seq) for run_id, epoch in runs))
    await store.cancel(runs[0][0])
    entries, _ = await store.feed()
    assert len(entries) == len(set(entries)) == 5 * 5 + 1
    for run_id, _ in runs:
        seen = [seq for found, seq in entries if found == run_id]
        assert seen == list(range(1, len(seen) + 1))


async def test_feed_goes_on_after_a_cursor_without_gap_or_repetition(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    await store.commit(*(transition(run_id, epoch, seq) for seq in range(2, 12)))
    read: list[tuple[str, int]] = []
    cursor = b""
    while True:
        entries, cursor = await store.feed(cursor, limit=3)
        if not entries:
            break
        read += entries
    assert read == [(run_id, seq) for seq in range(1, 12)]
    await store.commit(transition(run_id, epoch, 12))
    entries, cursor = await store.feed(cursor, limit=3)
    assert entries == [(run_id, 12)]
    assert await store.feed(cursor) == ([], cursor)


@pytest.mark.parametrize("same", [True, False], ids=["the same content", "other content"])
async def test_early_report_of_a_void_offer_does_not_spoil_the_next_workers(store: StateStore, same: bool) -> None:
    run_id, _ = await with_call(store)
    [void] = await store.lease_calls(WORKER, ["refund"])
    # It reports what it never started, and gives the offer back.
    with pytest.raises(LeaseLost):
        await store.complete_call(WORKER, void.lease, tool_result(1, "refunded"), late())
    await store.return_calls(WORKER, [void.lease])
    [leased] = await store.lease_calls(OTHER_WORKER, ["refund"])
    await store.start_call(OTHER_WORKER, leased.lease)
    report = tool_result(1, "refunded" if same else "refunded twice")
    seq = await store.complete_call(OTHER_WORKER, leased.lease, report, late())
    assert (await store.events(run_id))[-1].changes[0] == report
    assert await store.complete_call(OTHER_WORKER, leased.lease, report, late()) == seq
    assert (await kinds(store, run_id)).count("step_finished") == 1


async def test_late_report_sent_twice_is_kept_once(store: StateStore) -> None:
    run_id, _ = await with_call(store, call(start_deadline=FUTURE, timeout=INSTANT))
    [leased] = await store.lease_calls(WORKER, ["refund"])
    await store.start_call(WORKER, leased.lease)
    await store.sweep()
    for _ in range(2):
        with pytest.raises(LeaseLost):
            await store.complete_call(WORKER, leased.lease, tool_result(1), late())
    assert (await kinds(store, run_id)).count("late_result") == 1


# -------------------------------------------------------------------------------------------- pauses, and a run's time


async def test_paused_run_rests_until_it_is_resumed(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    question = new_uuid7()
    await store.commit(transition(run_id, epoch, 2, starts(1), asks(question), waits(wake_at=PAST)))
    assert (await store.pause(run_id)).state == PAUSED
    await store.decide(answers(question))
    await store.sweep()
    assert await store.claim(BOB) == {}
    assert (await store.run(run_id)).pause_requested
    assert (await store.resume(run_id)).state == QUEUED
    assert (await store.claim(BOB))[run_id] == epoch + 1
    assert (await kinds(store, run_id))[-4:] == [
        "pause_requested", "run_state_changed", "approval_decided", "resume_requested",
    ]  # fmt: skip


async def test_driven_run_is_asked_to_pause_and_the_request_may_be_withdrawn(store: StateStore) -> None:
    run_id, epoch = await claimed(store)
    assert (await store.pause(run_id)).state == RUNNING
    [answer] = await store.commit(transition(run_id, epoch, 2))
    assert why(answer) == Reason.CONFLICT
    assert not (await store.resume(run_id)).pause_requested
    assert await store.commit(transition(run_id, epoch, 4, starts(1))) == [4]


async def test_run_whose_time_is_over_ends_whatever_it_does(store: StateStore) -> None:
    driven = await created(store, new_run(ttl_seconds=INSTANT))
    await store.renew(ADA)
    epoch = (await store.claim(ADA))[driven.run_id]
    paused, queued = [await created(store, new_run(ttl_seconds=INSTANT)) for _ in range(2)]
    behind = await created(store, new_run(session_id=queued.session_id))
    await store.pause(paused.run_id)
    await store.sweep()
    assert [(await store.run(run.run_id)).state for run in (driven, paused, queued)] == [RUNNING, EXPIRED, EXPIRED]
    assert set(await store.claim(BOB)) == {behind.run_id}
    assert (await kinds(store, driven.run_id))[-1] == "expiry_reached"
    assert await store.commit(transition(driven.run_id, epoch, 3, ends(EXPIRED))) == [3]
    for ended in (driven, paused, queued):
        with pytest.raises(FailedPrecondition):
            await store.pause(ended.run_id)
