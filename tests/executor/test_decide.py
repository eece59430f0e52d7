"""The loop's decisions, event by event, without any service: what a crash at each point leads to, and P7."""

from __future__ import annotations

from datetime import UTC, timedelta

import pytest

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.executor.decide.attempts import MAX_SIGN_INS
from services.executor.decide.plan import Outcome, Plan
from services.executor.journal_view import RunView, to_timestamp
from services.state.expiry import OpenEnds
from tests.executor.driving import NOW, Drive, Journal, agent, kinds, last_state, results_by_call


def test_a_new_run_begins_with_the_intent_of_a_model_step() -> None:
    drive = Journal().claim()
    plan = drive.plan()
    assert kinds(plan) == ["run_claimed", "step_started"]
    assert [call.tool for call in plan.local_calls] == [None]
    assert plan.changes[1].step_started.model.message_count == 1


def test_an_answer_without_calls_ends_the_run_in_the_same_transition() -> None:
    drive = Journal().claim()
    drive.plan()
    plan = drive.plan(drive.model_says(text="done"))
    assert kinds(plan) == ["step_finished", "run_state_changed"]
    assert last_state(plan).state == run_pb2.RUN_STATE_SUCCEEDED


def test_the_result_of_a_step_and_the_intents_of_the_next_are_one_transition() -> None:
    drive = Journal().claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("look", {}), ("pay", {})))
    assert kinds(plan) == ["step_finished", "step_started", "step_started"]
    assert [call.step.number for call in plan.local_calls] == [2, 3]
    assert kinds(drive.plan(drive.result(3))) == ["step_finished"]
    last = drive.plan(drive.result(2))
    assert kinds(last) == ["step_finished", "step_started"]


def test_results_are_shown_in_the_order_of_the_calls_whatever_order_they_came_in() -> None:
    drive = Journal().claim()
    drive.plan()
    drive.plan(drive.model_says(("look", {}), ("pay", {})))
    drive.plan(drive.result(3, "paid"))
    drive.plan(drive.result(2, "looked"))
    shown = [message.parts[0].tool_result.content for message in drive.view.conversation()[2:]]
    assert shown == ["looked", "paid"]


def test_a_model_call_that_was_lost_with_its_executor_is_made_again() -> None:
    journal = Journal()
    journal.claim().plan()
    second = journal.claim()
    plan = second.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "attempt_started"]
    assert plan.changes[1].attempt_failed.failure.reason == "EXECUTOR_LOST"
    assert [call.attempt for call in plan.local_calls] == [2]


def test_a_read_only_call_that_was_lost_is_made_again_with_the_same_key() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    started = first.plan(first.model_says(("look", {})))
    key = started.changes[1].step_started.tool.idempotency_key
    second = journal.claim()
    plan = second.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "attempt_started"]
    (call,) = plan.local_calls
    assert call.step.tool is not None
    assert call.step.tool.idempotency_key == key


def test_a_lost_call_that_may_have_had_an_effect_is_in_doubt_and_never_made_again_by_itself() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says(("pay", {})))
    second = journal.claim()
    plan = second.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "step_in_doubt", "approval_requested"]
    assert not plan.local_calls
    parked = second.planner.park()
    second.store(parked)
    assert last_state(parked).wait_reason == run_pb2.WAIT_REASON_IN_DOUBT
    third = journal.claim()
    again = third.plan()
    assert not again.changes
    assert not again.local_calls


@pytest.mark.parametrize(
    ("resolution", "expected"),
    [
        (run_pb2.IN_DOUBT_RESOLUTION_DONE, ["run_claimed", "step_finished", "step_started"]),
        (run_pb2.IN_DOUBT_RESOLUTION_NOT_DONE, ["run_claimed", "attempt_started"]),
        (run_pb2.IN_DOUBT_RESOLUTION_TELL_MODEL, ["run_claimed", "step_finished", "step_started"]),
        (run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN, ["run_claimed", "step_finished", "run_state_changed"]),
    ],
)
def test_a_person_resolves_a_call_in_doubt(resolution: run_pb2.InDoubtResolution, expected: list[str]) -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says(("pay", {})))
    second = journal.claim()
    doubt = second.plan()
    second.store(second.planner.park())
    decided = run_pb2.ApprovalDecided(
        approval_id=doubt.changes[-1].approval_requested.approval.approval_id,
        step=2,
        resolution=resolution,
        answer_json='{"refund": 7}' if resolution == run_pb2.IN_DOUBT_RESOLUTION_DONE else "",
    )
    journal.write(0, [run_pb2.Change(approval_decided=decided)])
    third = journal.claim()
    assert kinds(third.plan()) == expected


@pytest.mark.parametrize(("tool", "ends"), [("pay_or_tell", False), ("pay_or_fail", True)])
def test_the_policy_of_a_tool_resolves_a_doubt_without_a_person(tool: str, ends: bool) -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says((tool, {})))
    plan = journal.claim().plan()
    assert ("run_state_changed" in kinds(plan)) is ends
    assert "approval_requested" not in kinds(plan)


def test_arguments_that_do_not_fit_go_back_to_the_model_and_never_to_the_tool() -> None:
    drive = Journal().claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("pack", {"crate": 1}), ("nosuch", {})))
    assert kinds(plan) == ["step_finished", *["step_started", "step_finished"] * 2, "step_started"]
    assert not plan.calls
    results = results_by_call(drive.view)
    assert "box" in results["c1_0"].content
    assert "nosuch" in results["c1_1"].content
    assert all(result.is_error for result in results.values())


def test_a_worker_call_is_queued_in_the_transition_of_its_intent_and_the_run_can_wait_as_rows() -> None:
    drive = Journal().claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("pack", {"box": 1})))
    assert [(call.step, call.tool, call.arguments_json) for call in plan.calls] == [(2, "pack", '{"box":1}')]
    parked = drive.planner.park()
    assert last_state(parked).wait_reason == run_pb2.WAIT_REASON_TOOL
    assert not last_state(parked).HasField("wake_time")


def test_a_workers_failed_attempt_is_tried_again_after_a_delay_that_the_journal_holds() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says(("pack", {"box": 1})))
    first.store(first.planner.park())
    journal.write(0, [first.failed(2, content_pb2.FAILURE_CLASS_RETRYABLE, 30_000).change])
    second = journal.claim()
    plan = second.plan()
    assert kinds(plan) == ["run_claimed", "attempt_started"]
    assert plan.calls[0].attempt == 2
    assert plan.calls[0].not_before.ToDatetime(tzinfo=UTC) >= NOW + timedelta(seconds=30)


def test_attempts_end_and_the_model_is_told() -> None:
    spec = agent()
    spec.tools[0].retry.max_attempts = 2
    drive = Journal(spec).claim()
    drive.plan()
    drive.plan(drive.model_says(("look", {})))
    assert kinds(drive.plan(drive.failed(2, content_pb2.FAILURE_CLASS_RETRYABLE))) == [
        "attempt_failed",
        "attempt_started",
    ]
    assert kinds(drive.plan(drive.failed(2, content_pb2.FAILURE_CLASS_RETRYABLE))) == [
        "attempt_failed",
        "step_finished",
        "step_started",
    ]
    assert results_by_call(drive.view)["c1_0"].is_error


def test_a_model_that_fails_for_good_fails_the_run() -> None:
    drive = Journal().claim()
    drive.plan()
    plan = drive.plan(drive.failed(1, content_pb2.FAILURE_CLASS_PERMANENT))
    assert kinds(plan) == ["attempt_failed", "step_finished", "run_state_changed"]
    assert last_state(plan).failure.message == "it broke"


def test_a_question_parks_the_run_and_its_answer_is_the_calls_result() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    asked = first.plan(first.model_says(("ask_user", {"question": "which colour?"})))
    assert kinds(asked) == ["step_finished", "step_started", "approval_requested"]
    question = asked.changes[-1].approval_requested.approval
    assert question.prompt == "which colour?"
    parked = first.planner.park()
    first.store(parked)
    assert last_state(parked).wait_reason == run_pb2.WAIT_REASON_INPUT
    answer = run_pb2.ApprovalDecided(approval_id=question.approval_id, step=2, answer_json='"blue"')
    journal.write(0, [run_pb2.Change(approval_decided=answer)])
    second = journal.claim()
    assert kinds(second.plan()) == ["run_claimed", "step_finished", "step_started"]
    assert results_by_call(second.view)["c1_0"].content == "blue"


def test_a_question_that_nobody_answers_expires_with_an_outcome_of_its_own() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says(("ask_user", {"question": "?"})))
    first.store(first.planner.park())
    second = journal.claim()
    plan = second.plan(now=NOW + timedelta(hours=73))
    assert kinds(plan) == ["run_claimed", "approval_closed", "step_finished", "step_started"]
    assert plan.changes[2].step_finished.failure.reason == "APPROVAL_EXPIRED"


def test_a_sleep_is_a_row_until_it_is_due() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says(("sleep_until", {"seconds": 3600})))
    parked = first.planner.park()
    first.store(parked)
    assert last_state(parked).wait_reason == run_pb2.WAIT_REASON_TIMER
    assert last_state(parked).wake_time == to_timestamp(NOW + timedelta(hours=1))
    early = journal.claim()
    assert not early.plan(now=NOW + timedelta(minutes=59)).changes
    due = journal.claim()
    assert kinds(due.plan(now=NOW + timedelta(hours=1))) == ["run_claimed", "step_finished", "step_started"]


def test_an_attempt_that_slept_when_the_run_was_parked_is_announced_again_before_it_is_made() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.failed(1, content_pb2.FAILURE_CLASS_RATE_LIMITED, retry_after_millis=60_000))
    first.store(first.planner.park())
    second = journal.claim()
    plan = second.plan(now=NOW + timedelta(minutes=2))
    assert kinds(plan) == ["run_claimed", "attempt_started"]
    assert plan.changes[1].attempt_started.attempt == 2
    assert [call.attempt for call in plan.local_calls] == [2]


def test_cancel_gives_every_open_call_exactly_one_result() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says(("look", {}), ("pack", {"box": 1}), ("ask_user", {"question": "?"})))
    journal.write(0, [run_pb2.Change(cancel_requested=run_pb2.CancelRequested(requested_by="k"))])
    second = journal.claim()
    plan = second.plan()
    assert last_state(plan).state == run_pb2.RUN_STATE_CANCELLED
    assert set(results_by_call(second.view)) == {"c1_0", "c1_1", "c1_2"}
    assert not second.view.open_steps


def test_a_cancel_that_arrives_with_the_models_answer_leaves_no_call_without_a_result() -> None:
    journal = Journal()
    drive = journal.claim()
    drive.plan()
    drive.view.apply(run_pb2.Change(cancel_requested=run_pb2.CancelRequested(requested_by="k")), 0)
    plan = drive.plan(drive.model_says(("pay", {})))
    assert last_state(plan).state == run_pb2.RUN_STATE_CANCELLED
    assert set(results_by_call(drive.view)) == {"c1_0"}
    assert not plan.local_calls


def test_the_step_limit_ends_a_run_before_the_step_that_would_exceed_it() -> None:
    drive = Journal(agent(limits={"max_steps": 2})).claim()
    drive.plan()
    drive.plan(drive.model_says(("noop", {})))
    plan = drive.plan(drive.result(2))
    assert kinds(plan) == ["step_finished", "run_state_changed"]
    assert last_state(plan).failure.reason == "MAX_STEPS_EXCEEDED"


def test_calls_beyond_the_step_limit_are_not_made_and_still_have_a_result() -> None:
    drive = Journal(agent(limits={"max_steps": 2})).claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("pay", {}), ("pay", {})))
    assert last_state(plan).failure.reason == "MAX_STEPS_EXCEEDED"
    assert not plan.local_calls
    assert set(results_by_call(drive.view)) == {"c1_0", "c1_1"}


def test_an_executor_that_stops_stores_results_and_begins_nothing() -> None:
    journal = Journal()
    drive = journal.claim()
    drive.plan()
    plan = drive.planner.plan([drive.model_says(("pay", {}))], NOW, (), only_outcomes=True)
    assert kinds(plan) == ["step_finished"]
    drive.store(plan)
    second = journal.claim()
    assert kinds(second.plan()) == ["run_claimed", "step_started"]


@pytest.mark.promise("P5")
def test_an_answer_about_a_lost_call_is_used_once_whoever_drives_afterwards() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says(("pay", {})))
    second = journal.claim()
    doubt = second.plan()
    second.store(second.planner.park())
    decided = run_pb2.ApprovalDecided(
        approval_id=doubt.changes[-1].approval_requested.approval.approval_id,
        step=2,
        resolution=run_pb2.IN_DOUBT_RESOLUTION_NOT_DONE,
    )
    journal.write(0, [run_pb2.Change(approval_decided=decided)])
    third = journal.claim()
    assert kinds(third.plan()) == ["run_claimed", "attempt_started"]
    # The third driver dies during the attempt that was allowed: the next one asks again and makes no other.
    fourth = journal.claim()
    plan = fourth.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "step_in_doubt", "approval_requested"]
    assert not plan.local_calls


def without_sign_in(drive: Drive, step: int) -> Outcome:
    """An attempt that lacked a connection."""
    outcome = drive.failed(step, content_pb2.FAILURE_CLASS_AUTH)
    outcome.change.attempt_failed.sign_in.connection = "github"
    outcome.change.attempt_failed.sign_in.connect_url = "https://example.com/connect/1"
    return outcome


def decided(
    plan: Plan, resolution: run_pb2.InDoubtResolution = run_pb2.IN_DOUBT_RESOLUTION_UNSPECIFIED
) -> run_pb2.Change:
    """A decision on the question that the plan ends with."""
    approval = plan.changes[-1].approval_requested.approval
    decision = run_pb2.ApprovalDecided(approval_id=approval.approval_id, step=approval.step, resolution=resolution)
    return run_pb2.Change(approval_decided=decision)


@pytest.mark.promise("P6")
def test_a_call_that_lacks_a_sign_in_parks_the_run_and_is_made_once_it_is_done() -> None:
    journal = Journal()
    first = journal.claim()
    first.plan()
    first.plan(first.model_says(("pay", {})))
    asked = first.plan(without_sign_in(first, 2))
    assert kinds(asked) == ["attempt_failed", "approval_requested"]
    approval = asked.changes[-1].approval_requested.approval
    assert approval.kind == run_pb2.APPROVAL_KIND_SIGN_IN
    assert (approval.sign_in.connection, approval.tool) == ("github", "pay")
    # Nothing more is decided about it, whatever else happens, and the run is rows.
    assert not first.plan().changes
    parked = first.planner.park()
    assert last_state(parked).wait_reason == run_pb2.WAIT_REASON_AUTH
    first.store(parked)
    journal.write(0, [decided(asked)])
    second = journal.claim()
    again = second.plan()
    assert kinds(again) == ["run_claimed", "attempt_started"]
    assert [call.attempt for call in again.local_calls] == [2]


def test_a_model_call_that_lacks_a_sign_in_asks_too() -> None:
    drive = Journal().claim()
    drive.plan()
    asked = drive.plan(without_sign_in(drive, 1))
    assert kinds(asked) == ["attempt_failed", "approval_requested"]
    expired = drive.plan(now=NOW + timedelta(hours=73))
    assert kinds(expired) == ["approval_closed", "step_finished", "run_state_changed"]
    assert last_state(expired).failure.reason == "X"


@pytest.mark.parametrize(
    ("resolution", "changes"),
    [
        (run_pb2.IN_DOUBT_RESOLUTION_TELL_MODEL, ["step_finished", "step_started"]),
        (run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN, ["step_finished", "run_state_changed"]),
    ],
)
def test_a_person_may_let_the_run_go_on_without_the_sign_in(
    resolution: run_pb2.InDoubtResolution, changes: list[str]
) -> None:
    journal = Journal()
    drive = journal.claim()
    drive.plan()
    drive.plan(drive.model_says(("pay", {})))
    asked = drive.plan(without_sign_in(drive, 2))
    drive.store(drive.planner.park())
    journal.write(0, [decided(asked, resolution)])
    plan = journal.claim().plan()
    assert kinds(plan) == ["run_claimed", *changes]


def test_a_sign_in_that_never_helps_is_not_asked_for_for_ever() -> None:
    journal = Journal()
    drive = journal.claim()
    drive.plan()
    drive.plan(drive.model_says(("pay", {})))
    asked = 0
    while "approval_requested" in kinds(plan := drive.plan(without_sign_in(drive, 2))):
        asked += 1
        drive.store(drive.planner.park())
        journal.write(0, [decided(plan)])
        drive = journal.claim()
        drive.plan()
    assert asked == MAX_SIGN_INS
    assert kinds(plan) == ["attempt_failed", "step_finished", "step_started"]


# ------------------------------------------------------------------------------------------------------------ pauses


def pause_asked() -> run_pb2.Change:
    return run_pb2.Change(pause_requested=run_pb2.PauseRequested(requested_by="ada", reason="lunch"))


def resume_asked() -> run_pb2.Change:
    return run_pb2.Change(resume_requested=run_pb2.ResumeRequested(requested_by="ada"))


def written(drive: Drive, *changes: run_pb2.Change) -> None:
    """Somebody outside writes, and the driver reads on."""
    drive.journal.write(0, changes)
    drive.view.apply_events(drive.journal.events)


def test_a_run_is_paused_when_what_is_under_way_is_stored() -> None:
    drive = Journal().claim()
    drive.plan()
    drive.plan(drive.model_says(("look", {}), ("pay", {"amount": 5})))
    written(drive, pause_asked())
    assert drive.plan().changes == [], "two calls are under way: nothing is interrupted, nothing begun"
    assert kinds(drive.plan(drive.result(2))) == ["step_finished"]
    plan = drive.plan(drive.result(3))
    assert kinds(plan) == ["step_finished", "run_state_changed"]
    assert last_state(plan).state == run_pb2.RUN_STATE_PAUSED
    assert not plan.local_calls


def test_a_resumed_run_goes_on_where_it_was() -> None:
    journal = Journal()
    drive = journal.claim()
    drive.plan()
    written(drive, pause_asked())
    # The calls of the answer have no steps yet: the run was paused before.
    assert last_state(drive.plan(drive.model_says(("look", {})))).state == run_pb2.RUN_STATE_PAUSED
    journal.write(0, [resume_asked()])
    plan = journal.claim().plan()
    assert kinds(plan) == ["run_claimed", "step_started"]
    assert plan.local_calls[0].step.number == 2


def test_an_answer_ends_a_run_that_is_to_be_paused() -> None:
    drive = Journal().claim()
    drive.plan()
    written(drive, pause_asked())
    plan = drive.plan(drive.model_says(text="done"))
    assert kinds(plan) == ["step_finished", "run_state_changed"]
    assert last_state(plan).state == run_pb2.RUN_STATE_SUCCEEDED


def test_an_answer_that_comes_while_its_executor_stops_ends_the_run_in_its_own_event() -> None:
    drive = Journal().claim()
    drive.plan()
    plan = drive.planner.plan([drive.model_says(text="done")], NOW, set(), only_outcomes=True)
    assert kinds(plan) == ["step_finished", "run_state_changed"]
    assert last_state(plan).state == run_pb2.RUN_STATE_SUCCEEDED


def test_a_pause_that_is_withdrawn_in_time_changes_nothing() -> None:
    drive = Journal().claim()
    drive.plan()
    drive.plan(drive.model_says(("look", {}), ("noop", {})))
    written(drive, pause_asked())
    assert drive.plan(drive.result(3)).changes
    written(drive, resume_asked())
    assert kinds(drive.plan(drive.result(2))) == ["step_finished", "step_started"]


def test_cancelling_goes_before_pausing() -> None:
    drive = Journal().claim()
    drive.plan()
    written(drive, pause_asked(), run_pb2.Change(cancel_requested=run_pb2.CancelRequested()))
    drive.running.clear()
    assert last_state(drive.plan()).state == run_pb2.RUN_STATE_CANCELLED


@pytest.mark.parametrize("paused_by", ["driver", "state"])
def test_a_call_that_was_lost_before_a_pause_is_in_doubt_after_it(paused_by: str) -> None:
    journal = Journal()
    lost = journal.claim()
    lost.plan()
    lost.plan(lost.model_says(("pay", {"amount": 5})))
    # Its executor dies here. Whoever pauses the run has not made the call and knows nothing of it.
    if paused_by == "state":
        paused = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_PAUSED)
        journal.write(0, [pause_asked(), run_pb2.Change(run_state_changed=paused)])
    else:
        journal.write(0, [pause_asked()])
        assert kinds(journal.claim().plan()) == ["run_claimed", "run_state_changed"]
    journal.write(0, [resume_asked()])
    plan = journal.claim().plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "step_in_doubt", "approval_requested"]
    assert not plan.local_calls, "it may have been made"


def test_an_attempt_that_slept_when_its_run_was_paused_is_made_once_it_goes_on() -> None:
    journal = Journal()
    drive = journal.claim()
    drive.plan()
    drive.plan(drive.model_says(("look", {})))
    plan = drive.plan(drive.failed(2, content_pb2.FAILURE_CLASS_RATE_LIMITED, retry_after_millis=4_000))
    assert kinds(plan) == ["attempt_failed", "attempt_started"]
    written(drive, pause_asked())
    # The driver stops what sleeps.
    drive.running.clear()
    assert last_state(drive.plan()).state == run_pb2.RUN_STATE_PAUSED
    journal.write(0, [resume_asked()])
    resumed = journal.claim()
    assert not resumed.plan().local_calls, "it is not due"
    plan = resumed.plan(now=NOW + timedelta(minutes=5))
    assert kinds(plan) == ["run_claimed", "attempt_started"]
    assert [call.attempt for call in plan.local_calls] == [2]


def test_a_resumed_run_waits_again_for_what_has_not_come() -> None:
    journal = Journal()
    drive = journal.claim()
    drive.plan()
    drive.plan(drive.model_says(("ask_user", {"question": "Sure?"})))
    drive.store(drive.planner.park())
    paused = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_PAUSED)
    journal.write(0, [pause_asked(), run_pb2.Change(run_state_changed=paused)])
    journal.write(0, [resume_asked()])
    resumed = journal.claim()
    assert not resumed.plan().changes
    parked = last_state(resumed.planner.park())
    assert (parked.state, parked.wait_reason) == (run_pb2.RUN_STATE_WAITING, run_pb2.WAIT_REASON_INPUT)
    # Answered while it was paused: its driver finds that in the journal.
    approval_id = next(iter(resumed.view.questions))
    again = Journal()
    again.events = journal.events[:4]
    again.epoch = 1
    again.write(
        0, [run_pb2.Change(approval_decided=run_pb2.ApprovalDecided(approval_id=approval_id, answer_json='"y"'))]
    )
    again.write(0, [resume_asked()])
    assert kinds(again.claim().plan()) == ["run_claimed", "step_finished", "step_started"]


# ------------------------------------------------------------------------------------------------------------- expiry


def time_is_over() -> run_pb2.Change:
    return run_pb2.Change(expiry_reached=run_pb2.ExpiryReached(expire_time=to_timestamp(NOW)))


def open_everywhere() -> Journal:
    """A run with something open of every kind."""
    journal = Journal()
    drive = journal.claim()
    drive.plan()
    calls: list[tuple[str, dict[str, object]]] = [
        ("look", {}), ("pay", {"amount": 5}), ("pack", {"box": 1}), ("ask_user", {"question": "Sure?"}),
        ("sleep_until", {"seconds": 60}), ("pay", {"amount": 6}),
    ]  # fmt: skip
    drive.plan(drive.model_says(*calls))
    drive.plan(drive.result(2))
    drive.plan(drive.failed(3, content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME))
    return journal


@pytest.mark.promise("P7")
def test_a_run_whose_time_is_over_ends_like_a_cancelled_one() -> None:
    journal = open_everywhere()
    journal.write(0, [pause_asked(), time_is_over()])
    drive = journal.claim()
    plan = drive.plan()
    assert last_state(plan).state == run_pb2.RUN_STATE_EXPIRED
    assert len(results_by_call(drive.view)) == 6
    closed = [change.approval_closed.state for change in plan.changes if change.HasField("approval_closed")]
    assert closed == [run_pb2.APPROVAL_STATE_EXPIRED] * 2
    assert not plan.local_calls and not plan.calls


@pytest.mark.parametrize("is_unanswered", [False, True], ids=["with steps", "without steps"])
@pytest.mark.promise("P7")
def test_state_ends_an_expired_run_as_its_driver_would(is_unanswered: bool) -> None:
    journal = open_everywhere()
    if is_unanswered:
        journal = Journal()
        drive = journal.claim()
        drive.plan()
        said = drive.model_says(("look", {}), ("pay", {"amount": 5}))
        drive.store(drive.planner.plan([said], NOW, set(), only_outcomes=True))
    left = OpenEnds()
    for event in journal.events:
        left.take(event)
    by_state = RunView()
    by_state.apply_events(journal.events)
    for change in left.changes():
        by_state.apply(change, 0)
    journal.write(0, [time_is_over()])
    by_driver = journal.claim()
    by_driver.plan()
    assert results_by_call(by_state) == results_by_call(by_driver.view)
    assert by_state.open_steps == by_driver.view.open_steps == {}
    assert {number: step.state for number, step in by_state.steps.items()} == {
        number: step.state for number, step in by_driver.view.steps.items()
    }
    assert left.last_step == by_driver.view.step_count
