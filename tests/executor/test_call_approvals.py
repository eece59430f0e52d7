"""Calls that a person has to approve, event by event: nothing is made before its approval is stored, whoever drives."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor import call_approvals
from services.executor.call_approvals import SessionApprovals, sha256_of
from services.executor.idempotency import idempotency_key
from services.executor.journal_view import RunView
from services.executor.tools.schema import canonical_json
from services.state.expiry import OpenEnds
from tests.executor.driving import NOW, RUN_ID, Drive, Journal, agent, kinds, last_state, results_by_call


def gated(**policy: object) -> agent_pb2.AgentSpec:
    """An agent whose `pay` and `ship` need approval, and whose `look` does not."""
    approval = policy or {"always": True}
    return agent(
        tools=[
            {"name": "pay", "http": {"url": "https://example.com/pay"}, "approval": approval},
            {"name": "ship", "worker": {}, "approval": approval, "effect": "EFFECT_CLASS_IDEMPOTENT"},
            {"name": "look", "http": {"url": "https://example.com/look"}, "effect": "EFFECT_CLASS_READ_ONLY"},
        ]
    )


def asked(drive: Drive) -> list[run_pb2.Approval]:
    return [
        change.approval_requested.approval
        for event in drive.journal.events
        for change in event.changes
        if change.WhichOneof("kind") == "approval_requested"
    ]


def approve(approval: run_pb2.Approval, **fields: object) -> run_pb2.Change:
    decided = run_pb2.ApprovalDecided(
        approval_id=approval.approval_id,
        step=approval.step,
        verdict=run_pb2.APPROVAL_VERDICT_APPROVED,
        arguments_sha256=approval.arguments_sha256,
        decided_by="key-1",
        scope=run_pb2.APPROVAL_SCOPE_ONCE,
    )
    decided.MergeFrom(run_pb2.ApprovalDecided(**fields))  # type: ignore[arg-type]
    return run_pb2.Change(approval_decided=decided)


def approve_edited(approval: run_pb2.Approval, arguments: str) -> run_pb2.Change:
    key = idempotency_key(RUN_ID, approval.step, approval.tool, arguments)
    return approve(
        approval, edited_arguments_json=arguments, arguments_sha256=sha256_of(arguments), idempotency_key=key
    )


def reject(approval: run_pb2.Approval, reason: str) -> run_pb2.Change:
    decided = run_pb2.ApprovalDecided(
        approval_id=approval.approval_id,
        step=approval.step,
        verdict=run_pb2.APPROVAL_VERDICT_REJECTED,
        arguments_sha256=approval.arguments_sha256,
        reason=reason,
    )
    return run_pb2.Change(approval_decided=decided)


def waiting(journal: Journal, *calls: tuple[str, dict[str, object]]) -> Drive:
    """A run whose model made calls that need approval, parked."""
    drive = journal.claim()
    drive.plan()
    plan = drive.plan(drive.model_says(*calls))
    for call in plan.local_calls:
        drive.plan(drive.result(call.step.number))
    drive.store(drive.planner.park())
    return drive


def test_a_call_that_needs_approval_is_begun_and_asked_about_in_one_event_and_not_made() -> None:
    journal = Journal(gated())
    drive = journal.claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("pay", {"b": 1, "a": "x"}), ("ship", {"box": 1})))
    assert kinds(plan)[1:] == ["step_started", "approval_requested"] * 2
    assert not plan.local_calls
    assert not plan.calls
    question = plan.changes[2].approval_requested.approval
    assert question.kind == run_pb2.APPROVAL_KIND_TOOL_CALL
    assert (question.tool, question.arguments_json) == ("pay", '{"a":"x","b":1}')
    assert question.arguments_sha256 == sha256_of('{"a":"x","b":1}')
    assert question.expire_time.ToDatetime(tzinfo=NOW.tzinfo) == NOW + timedelta(hours=72)
    parked = drive.planner.park()
    assert last_state(parked).wait_reason == run_pb2.WAIT_REASON_APPROVAL


def test_calls_that_need_no_approval_are_made_meanwhile() -> None:
    drive = Journal(gated()).claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("pay", {}), ("look", {})))
    assert [call.step.number for call in plan.local_calls] == [3]
    assert not drive.plan(drive.result(3)).local_calls
    assert set(drive.view.open_steps) == {2}


@pytest.mark.promise("P2")
@pytest.mark.parametrize("drivers", [1, 2, 3])
def test_nothing_is_made_while_nobody_has_decided_whoever_drives(drivers: int) -> None:
    journal = Journal(gated())
    waiting(journal, ("pay", {}), ("ship", {}))
    for _ in range(drivers):
        plan = journal.claim().plan()
        assert not plan.local_calls
        assert not plan.calls
        assert not plan.changes


@pytest.mark.promise("P5")
def test_an_approved_call_is_announced_and_then_made_once() -> None:
    journal = Journal(gated())
    first = waiting(journal, ("pay", {"amount": 5}))
    journal.write(0, [approve(asked(first)[0])])
    second = journal.claim()
    plan = second.plan()
    assert kinds(plan) == ["run_claimed", "attempt_started"]
    assert plan.changes[1].attempt_started.attempt == 1
    (call,) = plan.local_calls
    assert (call.attempt, call.arguments) == (1, {"amount": 5})
    # From here on it may have been dispatched: lost, it is in doubt and not made again.
    third = journal.claim()
    assert kinds(third.plan()) == ["run_claimed", "attempt_failed", "step_in_doubt", "approval_requested"]
    assert asked(third)[-1].kind == run_pb2.APPROVAL_KIND_IN_DOUBT


def test_calls_of_a_turn_are_decided_in_any_order() -> None:
    journal = Journal(gated())
    first = waiting(journal, ("pay", {"n": 1}), ("pay", {"n": 2}), ("ship", {"n": 3}))
    one, two, three = asked(first)
    journal.write(0, [approve(three)])
    second = journal.claim()
    plan = second.plan()
    assert [(call.step, call.attempt) for call in plan.calls] == [(4, 1)]
    assert not plan.local_calls
    second.store(second.planner.park())
    journal.write(0, [reject(two, "too much")])
    journal.write(0, [approve(one)])
    third = journal.claim()
    plan = third.plan()
    assert [call.arguments for call in plan.local_calls] == [{"n": 1}]
    assert results_by_call(third.view)["c1_1"].is_error
    third.plan(third.result(2))
    assert set(third.view.open_steps) == {4}


@pytest.mark.promise("P7")
def test_a_rejection_is_told_to_the_model_as_the_one_result() -> None:
    journal = Journal(gated())
    first = waiting(journal, ("pay", {}))
    journal.write(0, [reject(asked(first)[0], "Ask the customer first.")])
    second = journal.claim()
    plan = second.plan()
    assert kinds(plan) == ["run_claimed", "step_finished", "step_started"]
    finished = plan.changes[1].step_finished
    assert finished.failure.reason == call_approvals.APPROVAL_REJECTED
    (result,) = results_by_call(second.view).values()
    assert "Ask the customer first." in result.content
    assert [call.tool for call in plan.local_calls] == [None]


def test_edited_arguments_are_what_is_called_with_a_key_of_their_own_and_the_model_is_told() -> None:
    journal = Journal(gated())
    first = waiting(journal, ("ship", {"box": 9}))
    question = asked(first)[0]
    before = first.view.steps[2].tool
    journal.write(0, [approve_edited(question, '{"box":2}')])
    second = journal.claim()
    (call,) = second.plan().calls
    assert call.arguments_json == '{"box":2}'
    assert call.arguments_edited
    assert before is not None
    assert call.idempotency_key not in ("", before.idempotency_key)
    # Another attempt has the same arguments and the same key.
    second.store(second.planner.park())
    failure = content_pb2.Failure(reason="X", message="x", failure_class=content_pb2.FAILURE_CLASS_RETRYABLE)
    journal.write(0, [run_pb2.Change(attempt_failed=run_pb2.AttemptFailed(step=2, attempt=1, failure=failure))])
    (again,) = journal.claim().plan().calls
    assert (again.attempt, again.arguments_json, again.idempotency_key) == (2, '{"box":2}', call.idempotency_key)
    for _ in range(4):
        failed = run_pb2.AttemptFailed(step=2, attempt=journal_attempt(journal), failure=failure)
        journal.write(0, [run_pb2.Change(attempt_failed=failed)])
        last = journal.claim()
        last.plan()
    (result,) = results_by_call(last.view).values()
    assert '{"box":2}' in result.content
    assert "A person approved this call with other arguments" in result.content


def journal_attempt(journal: Journal) -> int:
    view = RunView()
    view.apply_events(journal.events)
    return view.steps[2].attempt


def test_an_approval_of_other_arguments_is_none() -> None:
    journal = Journal(gated())
    first = waiting(journal, ("pay", {"amount": 5}))
    journal.write(0, [approve(asked(first)[0], arguments_sha256=sha256_of('{"amount":4}'))])
    second = journal.claim()
    plan = second.plan()
    assert not [call for call in plan.local_calls if call.tool is not None]
    assert second.view.steps[2].state == run_pb2.STEP_STATE_FAILED
    assert plan.changes[1].step_finished.failure.reason == call_approvals.APPROVAL_VOID


def test_an_approval_that_nobody_gives_expires_with_an_outcome_of_its_own() -> None:
    journal = Journal(gated(always=True, expire_after="3600s"))
    first = waiting(journal, ("pay", {}))
    assert journal.events[-1].changes[-1].run_state_changed.wake_time.ToDatetime(tzinfo=NOW.tzinfo) == NOW + timedelta(
        hours=1
    )
    second = journal.claim()
    plan = second.plan(now=NOW + timedelta(hours=2))
    assert kinds(plan) == ["run_claimed", "approval_closed", "step_finished", "step_started"]
    assert plan.changes[1].approval_closed.approval_id == asked(first)[0].approval_id
    finished = plan.changes[2].step_finished
    assert finished.failure.reason == call_approvals.APPROVAL_EXPIRED
    (result,) = results_by_call(second.view).values()
    assert "Nobody rejected it" in result.content


def test_a_condition_says_which_calls_need_approval_and_what_cannot_be_said_does() -> None:
    journal = Journal(gated(condition="args.amount > 100"))
    drive = journal.claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("pay", {"amount": 100}), ("pay", {"amount": 101}), ("pay", {"amount": "1"})))
    assert [call.step.number for call in plan.local_calls] == [2]
    assert [question.step for question in asked(drive)] == [3, 4]
    assert "could not be evaluated" in asked(drive)[1].prompt


def test_large_arguments_are_stored_whole_under_the_hash_that_is_asked_about() -> None:
    drive = Journal(gated()).claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("pay", {"note": "n" * 10_000})))
    (question,) = asked(drive)
    (blob,) = plan.blobs
    assert question.arguments_shortened
    assert len(question.arguments_json.encode()) <= call_approvals.MAX_SHOWN_ARGUMENTS_BYTES
    assert blob.hash.hex() == question.arguments_sha256
    assert json.loads(blob.data) == {"note": "n" * 10_000}


def test_an_approval_for_the_run_lets_later_calls_of_the_tool_through_and_they_name_it() -> None:
    journal = Journal(gated())
    first = waiting(journal, ("pay", {"amount": 5}))
    question = asked(first)[0]
    journal.write(0, [approve(question, scope=run_pb2.APPROVAL_SCOPE_RUN)])
    second = journal.claim()
    second.plan()
    second.plan(second.result(2))
    plan = second.plan(second.model_says(("pay", {"amount": 6}), ("ship", {})))
    assert [call.arguments for call in plan.local_calls] == [{"amount": 6}]
    assert plan.changes[1].step_started.tool.approval_id == question.approval_id
    # Of another tool nobody has said anything.
    assert asked(second)[-1].tool == "ship"


@pytest.mark.parametrize("is_same_definition", [True, False])
def test_an_approval_for_the_session_holds_in_its_next_runs_while_the_tool_stays_the_same(
    is_same_definition: bool,
) -> None:
    spec = gated()
    known = run_pb2.SessionApproval(
        approval_id="earlier",
        tool="pay",
        tool_sha256=call_approvals.tool_sha256(spec.tools[0]) if is_same_definition else "another",
    )
    journal = Journal(spec)
    drive = journal.claim(session_approvals=SessionApprovals([known]))
    drive.plan()
    plan = drive.plan(drive.model_says(("pay", {"amount": 6})))
    assert bool(plan.local_calls) == is_same_definition
    assert bool(asked(drive)) != is_same_definition
    assert plan.changes[1].step_started.tool.approval_id == ("earlier" if is_same_definition else "")


def test_a_paused_run_keeps_its_questions_and_makes_what_was_approved_when_it_goes_on() -> None:
    journal = Journal(gated())
    first = waiting(journal, ("pay", {}))
    journal.write(0, [run_pb2.Change(pause_requested=run_pb2.PauseRequested())])
    journal.write(0, [approve(asked(first)[0])])
    second = journal.claim()
    plan = second.plan()
    assert not plan.local_calls
    assert last_state(plan).state == run_pb2.RUN_STATE_PAUSED
    journal.write(0, [run_pb2.Change(resume_requested=run_pb2.ResumeRequested())])
    third = journal.claim()
    assert [call.step.number for call in third.plan().local_calls] == [2]


@pytest.mark.parametrize("is_decided", [False, True])
def test_a_cancelled_run_closes_its_questions_and_says_that_the_call_was_not_made(is_decided: bool) -> None:
    journal = Journal(gated())
    first = waiting(journal, ("pay", {}), ("ship", {}))
    if is_decided:
        # Approved, and not announced before the end: it was not made.
        journal.write(0, [approve(question) for question in asked(first)])
    journal.write(0, [run_pb2.Change(cancel_requested=run_pb2.CancelRequested())])
    second = journal.claim()
    plan = second.plan()
    assert kinds(plan).count("approval_closed") == (0 if is_decided else 2)
    assert not plan.local_calls
    for result in results_by_call(second.view).values():
        assert result.is_error
        assert "may have taken effect" not in result.content
    assert last_state(plan).state == run_pb2.RUN_STATE_CANCELLED


def test_state_ends_an_expired_run_that_waits_for_approval_as_its_driver_would() -> None:
    journal = Journal(gated())
    waiting(journal, ("pay", {}), ("ship", {}))
    journal.write(0, [run_pb2.Change(expiry_reached=run_pb2.ExpiryReached())])
    left = OpenEnds()
    for event in journal.events:
        left.take(event)
    by_state = RunView()
    by_state.apply_events(journal.events)
    for change in left.changes():
        by_state.apply(change, 0)
    by_driver = journal.claim()
    by_driver.plan()
    said = {call: result.content for call, result in results_by_call(by_driver.view).items()}
    assert {call: result.content for call, result in results_by_call(by_state).items()} == said
    assert all("may have taken effect" not in content for content in said.values())


CALLS: list[tuple[str, dict[str, object]]] = [("pay", {"n": 0}), ("ship", {"n": 1}), ("pay", {"n": 2})]
VERDICTS = st.sampled_from(["approve", "edit", "reject"])
STEPS = st.integers(0, len(CALLS) - 1)


@pytest.mark.promise("P5")
@pytest.mark.promise("P7")
@settings(max_examples=200, deadline=None)
@given(
    story=st.lists(
        st.one_of(
            st.tuples(VERDICTS, STEPS),
            # A driver that takes the run on, and tells what its calls brought or is lost before that.
            st.tuples(st.sampled_from(["drive", "lose"]), st.just(0)),
            st.tuples(st.sampled_from(["pause", "resume"]), st.just(0)),
        ),
        max_size=12,
    )
)
def test_whatever_is_decided_when_and_whoever_is_lost_each_call_is_made_once_as_approved(
    story: list[tuple[str, int]],
) -> None:
    journal = Journal(gated())
    questions = asked(waiting(journal, *CALLS))
    allowed: dict[int, str] = {}
    made: dict[int, list[str]] = {}
    decided: set[int] = set()
    for what, number in story:
        question = questions[number]
        if what in ("approve", "edit", "reject") and number not in decided:
            decided.add(number)
            if what == "reject":
                journal.write(0, [reject(question, "no")])
            elif what == "edit":
                allowed[question.step] = f'{{"n":{number + 10}}}'
                journal.write(0, [approve_edited(question, allowed[question.step])])
            else:
                allowed[question.step] = question.arguments_json
                journal.write(0, [approve(question)])
        elif what == "pause":
            journal.write(0, [run_pb2.Change(pause_requested=run_pb2.PauseRequested())])
        elif what == "resume":
            journal.write(0, [run_pb2.Change(resume_requested=run_pb2.ResumeRequested())])
        elif what in ("drive", "lose"):
            drive = journal.claim()
            plan = drive.plan()
            for call in plan.calls:
                made.setdefault(call.step, []).append(call.arguments_json)
            for local in plan.local_calls:
                if local.tool is not None:
                    made.setdefault(local.step.number, []).append(canonical_json(local.arguments))
            if what == "drive":
                for local in plan.local_calls:
                    if local.tool is not None:
                        drive.plan(drive.result(local.step.number))
    for step, arguments in made.items():
        assert arguments == [allowed[step]], "once, and as it was approved"
    journal.write(0, [run_pb2.Change(cancel_requested=run_pb2.CancelRequested())])
    last = journal.claim()
    assert not last.plan().local_calls
    results = results_by_call(last.view)
    assert len(results) == len(CALLS)
    for question in questions:
        told = results[f"c1_{question.step - 2}"].content
        assert question.step in made or "may have taken effect" not in told
