"""Budgets in the loop's decisions: reserved with the intent, settled by the result, stopped before and never after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

import pytest
from google.protobuf import json_format

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor.budgets import longest_answer
from services.executor.decide.plan import Outcome, Plan
from services.executor.journal_view import RunView
from services.shared.run_budgets import Amounts
from tests.executor.driving import NOW, Drive, Journal, agent, kinds, last_state, results_by_call

pytestmark = pytest.mark.promise("P10")

EXCEEDED = run_pb2.RUN_STATE_BUDGET_EXCEEDED
LONGEST = 100
# 2 nanos for a token sent, 10 for one received.
MODEL = {
    "provider": "scripted",
    "script": {"turns": [{"text": "ok"}]},
    "parameters": {"max_output_tokens": LONGEST},
    "price": {"input_usd_nanos_per_million_tokens": 2_000_000, "output_usd_nanos_per_million_tokens": 10_000_000},
}


def journal_with(model: Mapping[str, object] | None = None, **limits: int) -> Journal:
    """A run with a budget, without events but its creation."""
    journal = Journal(agent(model=MODEL if model is None else model))
    journal.events[0].changes[0].run_created.budget.CopyFrom(agent_pb2.Budget(**limits))
    return journal


def says(drive: Drive, *calls: tuple[str, dict[str, object]], text: str = "", **usage: int) -> Outcome:
    """The model's answer, with what it used."""
    outcome = drive.model_says(*calls, text=text)
    outcome.change.step_finished.usage.CopyFrom(content_pb2.Usage(**usage))  # type: ignore[arg-type]
    return outcome


def reserved_of(plan: Plan) -> run_pb2.Reservation:
    [started] = [
        c.step_started for c in plan.changes if c.WhichOneof("kind") == "step_started" and c.step_started.model
    ]
    return started.model.reserved


def book_of(drive: Drive) -> tuple[Amounts, Amounts]:
    """What is used and reserved: as the planner has it, and as whoever reads the journal anew finds it (P4)."""
    view = RunView()
    view.apply_events(drive.journal.events)
    assert view.ledger is not None and drive.view.ledger is not None
    assert (view.ledger.used, view.ledger.reserved()) == (drive.view.ledger.used, drive.view.ledger.reserved())
    return view.ledger.used, view.ledger.reserved()


def test_model_call_is_reserved_by_the_event_that_begins_it() -> None:
    drive = journal_with(max_cost_usd_nanos=10**9).claim()
    plan = drive.plan()
    assert kinds(plan) == ["run_claimed", "step_started"]
    reserved = reserved_of(plan)
    assert reserved.output_tokens == LONGEST
    # More than is sent for certain, and not beyond all measure.
    assert len("help") < reserved.input_tokens < 5_000
    assert reserved.cost_usd_nanos == 2 * reserved.input_tokens + 10 * LONGEST
    assert reserved.price_source == "definition"
    assert book_of(drive)[1] == Amounts(reserved.cost_usd_nanos, reserved.input_tokens, LONGEST, model_calls=1)


def test_run_without_a_budget_reserves_nothing() -> None:
    drive = Journal(agent(model=MODEL)).claim()
    [_, started] = drive.plan().changes
    assert not started.step_started.model.HasField("reserved")
    assert drive.view.ledger is None


def test_estimate_begins_with_what_the_provider_counted() -> None:
    drive = journal_with(max_total_tokens=10**6).claim()
    first = reserved_of(drive.plan())
    drive.plan(says(drive, ("noop", {"x": 1}), input_tokens=50, output_tokens=7))
    content = "y" * 1_000
    plan = drive.plan(drive.result(2, content))
    second = reserved_of(plan)
    assert 50 + 7 + len(content) < second.input_tokens < 50 + 7 + len(content) + 100
    assert second.input_tokens < first.input_tokens + len(content)


def test_conversation_before_the_run_is_counted() -> None:
    said = [content_pb2.Message(role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text="ü" * 500)])] * 3
    journal = journal_with(max_total_tokens=10**6)
    alone = reserved_of(journal.claim().plan())
    journal = journal_with(max_total_tokens=10**6)
    behind = reserved_of(Drive(_claimed(journal), prior=said).plan())
    assert behind.input_tokens >= alone.input_tokens + 3 * 1_000


def _claimed(journal: Journal) -> Journal:
    journal.epoch += 1
    return journal


def test_run_stops_before_the_call_that_would_exceed_its_cost() -> None:
    drive = journal_with(max_cost_usd_nanos=20_000).claim()
    first = reserved_of(drive.plan())
    drive.plan(says(drive, ("noop", {}), input_tokens=50, output_tokens=7, cost_usd_nanos=18_900))
    plan = drive.plan(drive.result(2))
    assert kinds(plan) == ["step_finished", "run_state_changed"]
    ended = last_state(plan)
    assert (ended.state, ended.failure.reason) == (EXCEEDED, "BUDGET_EXCEEDED")
    assert "limits.budget.max_cost_usd_nanos" in ended.failure.message
    assert "$0.00002 " in ended.failure.message and "$0.0000189 " in ended.failure.message
    assert first.cost_usd_nanos < 20_000
    assert book_of(drive) == (Amounts(18_900, 50, 7, model_calls=1, tool_calls=1), Amounts())


@pytest.mark.promise("P7")
def test_tool_calls_that_do_not_all_fit_are_none_of_them_begun_and_each_has_a_result() -> None:
    drive = journal_with(max_tool_calls=2).claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("noop", {}), ("pay", {}), ("pack", {"box": 1})))
    assert last_state(plan).state == EXCEEDED
    assert "2 tool calls" in last_state(plan).failure.message and "3 more" in last_state(plan).failure.message
    assert not plan.local_calls and not plan.calls
    results = results_by_call(drive.view)
    assert len(results) == 3 and all("budget" in result.content for result in results.values())
    assert not drive.view.open_steps
    assert book_of(drive)[0].tool_calls == 0


def test_model_calls_are_counted() -> None:
    drive = journal_with(max_model_calls=1).claim()
    drive.plan()
    drive.plan(says(drive, ("noop", {}), input_tokens=1))
    assert "1 model calls" in last_state(drive.plan(drive.result(2))).failure.message


def test_lost_executor_has_spent_what_it_had_reserved_and_its_successor_decides_by_that() -> None:
    journal = journal_with(max_cost_usd_nanos=10**9)
    cost = reserved_of(journal.claim().plan()).cost_usd_nanos
    drive = journal.claim()
    plan = drive.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "attempt_started"]
    used, reserved = book_of(drive)
    assert (used.cost_usd_nanos, reserved.cost_usd_nanos) == (cost, cost)
    # The same with a budget for one and a half: nobody makes another attempt.
    journal = journal_with(max_cost_usd_nanos=cost * 3 // 2)
    journal.claim().plan()
    drive = journal.claim()
    plan = drive.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "step_finished", "run_state_changed"]
    assert last_state(plan).state == EXCEEDED
    assert not plan.local_calls
    assert book_of(drive) == (Amounts(cost, used.input_tokens, LONGEST, model_calls=1), Amounts())


def test_refused_attempt_costs_nothing_and_is_made_again() -> None:
    drive = journal_with(max_model_calls=1).claim()
    drive.plan()
    plan = drive.plan(drive.failed(1, content_pb2.FAILURE_CLASS_RATE_LIMITED))
    assert kinds(plan) == ["attempt_failed", "attempt_started"]
    assert book_of(drive) == (Amounts(), drive.view.ledger.reserved() if drive.view.ledger else Amounts())


def test_run_that_is_cancelled_in_a_model_call_has_spent_its_reservation() -> None:
    journal = journal_with(max_cost_usd_nanos=10**9)
    drive = journal.claim()
    cost = reserved_of(drive.plan()).cost_usd_nanos
    journal.write(0, [run_pb2.Change(cancel_requested=run_pb2.CancelRequested())])
    drive.view.apply_events(journal.events)
    assert last_state(drive.plan()).state == run_pb2.RUN_STATE_CANCELLED
    used, reserved = book_of(drive)
    assert (used.cost_usd_nanos, reserved) == (cost, Amounts())


def test_price_that_nobody_knows_any_more_ends_the_run_before_the_call() -> None:
    model = {**MODEL, "provider": "openai", "name": "no-such-model"}
    del model["price"]
    plan = journal_with(model, max_cost_usd_nanos=10**9).claim().plan()
    assert (last_state(plan).state, last_state(plan).failure.reason) == (run_pb2.RUN_STATE_FAILED, "PRICE_UNKNOWN")


def test_cost_is_reserved_by_the_price_data_of_the_model() -> None:
    model = {**MODEL, "provider": "openai", "name": "gpt-4o"}
    del model["price"]
    reserved = reserved_of(journal_with(model, max_cost_usd_nanos=10**12).claim().plan())
    assert reserved.price_source.startswith("genai-prices ")
    assert reserved.cost_usd_nanos > 1_000 * reserved.output_tokens


@pytest.mark.parametrize("limit", ["max_cost_usd_nanos", "max_total_tokens", "max_model_calls"])
@pytest.mark.promise("P4")
def test_whoever_reads_the_journal_anew_decides_the_same(limit: str) -> None:
    """A driver dies after each event: what its successor has used, reserved and left is what the journal says, and in
    the end no more was ever used and reserved together than the limit."""
    most = {"max_cost_usd_nanos": 90_000, "max_total_tokens": 20_000, "max_model_calls": 5}[limit]
    journal = journal_with(None, **{limit: most})
    for lives in _turns():
        drive = journal.claim()
        plan = drive.plan()
        used, reserved = book_of(drive)
        assert used.of(limit) + reserved.of(limit) <= most
        if drive.view.has_ended():
            break
        [call] = plan.local_calls
        if lives and call.tool is None:
            drive.plan(says(drive, ("noop", {"n": 1}), input_tokens=300, output_tokens=90, cost_usd_nanos=1_500))
        elif call.tool is not None:
            drive.plan(drive.result(call.step.number))
        book_of(drive)
    assert last_state(plan).state == EXCEEDED


def _turns() -> Iterator[bool]:
    for number in range(1_000):
        yield number % 3 != 2


def test_longest_answer_is_known_or_not() -> None:
    def longest(**model: object) -> int | None:
        return longest_answer(json_format.ParseDict(model, agent_pb2.ModelSpec()))

    assert longest(provider="anthropic", name="m") == 4096
    assert longest(provider="anthropic", name="m", parameters={"max_output_tokens": 9}) == 9
    assert longest(provider="openai", name="m") is None
    assert longest(provider="openai", name="m", parameters={"max_output_tokens": 9}) == 9


# ------------------------------------------------------------------------------------------------------ asking a person


def asking(**limits: int) -> Journal:
    journal = journal_with(None, **limits)
    journal.spec.limits.on_budget_exceeded = agent_pb2.BUDGET_POLICY_ASK
    return journal


def asked_of(plan: Plan) -> run_pb2.Approval:
    [asked] = [change.approval_requested.approval for change in plan.changes if change.HasField("approval_requested")]
    return asked


def decide(drive: Drive, approval: run_pb2.Approval, **decision: object) -> Drive:
    """Stores a decision, and returns the next lease."""
    decided = run_pb2.ApprovalDecided(approval_id=approval.approval_id, step=approval.step, **decision)  # type: ignore[arg-type]
    drive.journal.write(0, [run_pb2.Change(approval_decided=decided)])
    return drive.journal.claim()


@pytest.mark.promise("P6")
def test_person_is_asked_for_more_and_the_run_goes_on_with_it() -> None:
    drive = asking(max_tool_calls=1).claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("noop", {}), ("noop", {"n": 2})))
    question = asked_of(plan)
    assert kinds(plan) == ["step_finished", "step_started", "approval_requested"]
    assert question.budget == run_pb2.BudgetShortfall(limit="max_tool_calls", max=1, needed=2)
    drive.store(drive.planner.park())
    assert (drive.view.state, last_state_of(drive)) == (run_pb2.RUN_STATE_WAITING, run_pb2.WAIT_REASON_INPUT)
    # Too little: asked again, by what is left then.
    drive = decide(drive, question, answer_json="0")
    drive = decide(drive, asked_of(drive.plan()), answer_json="1")
    plan = drive.plan()
    assert [call.step.tool.tool for call in plan.local_calls if call.step.tool] == ["noop", "noop"]
    assert book_of(drive)[1].tool_calls == 2
    assert [line.max for line in drive.view.ledger.lines()] == [2] if drive.view.ledger else False


def last_state_of(drive: Drive) -> run_pb2.WaitReason:
    return drive.journal.events[-1].changes[-1].run_state_changed.wait_reason


@pytest.mark.promise("P7")
@pytest.mark.parametrize("is_declined", [True, False], ids=["declined", "nobody answered"])
def test_run_stops_when_nothing_is_given(is_declined: bool) -> None:
    drive = asking(max_tool_calls=1).claim()
    drive.plan()
    question = asked_of(drive.plan(drive.model_says(("noop", {}), ("pay", {}))))
    if is_declined:
        drive = decide(drive, question, answer_json="null", resolution=run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN)
        plan = drive.plan()
    else:
        plan = drive.plan(now=NOW + timedelta(hours=73))
        assert plan.changes[0].approval_closed.state == run_pb2.APPROVAL_STATE_EXPIRED
    assert last_state(plan).state == EXCEEDED
    assert len(results_by_call(drive.view)) == 2
    assert not drive.view.open_steps


def test_person_is_asked_before_an_attempt_after_one_that_was_lost() -> None:
    journal = asking(max_model_calls=1)
    journal.claim().plan()
    drive = journal.claim()
    plan = drive.plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "step_finished", "step_started", "approval_requested"]
    drive = decide(drive, asked_of(plan), answer_json="1")
    plan = drive.plan()
    assert [call.tool for call in plan.local_calls] == [None]
    assert (book_of(drive)[0].model_calls, book_of(drive)[1].model_calls) == (1, 1)


def test_cancelling_closes_the_question() -> None:
    drive = asking(max_model_calls=1).claim()
    drive.plan()
    drive.plan(says(drive, ("noop", {}), input_tokens=1))
    drive.plan(drive.result(2))
    drive.journal.write(0, [run_pb2.Change(cancel_requested=run_pb2.CancelRequested())])
    plan = drive.journal.claim().plan()
    assert kinds(plan) == ["run_claimed", "approval_closed", "step_finished", "run_state_changed"]
    assert last_state(plan).state == run_pb2.RUN_STATE_CANCELLED


# ------------------------------------------------------------------------------------------------------ one last answer


def finalising(**limits: int) -> Journal:
    journal = journal_with(None, **limits)
    journal.spec.limits.on_budget_exceeded = agent_pb2.BUDGET_POLICY_FINALISE
    return journal


@pytest.mark.promise("P7")
def test_model_answers_with_what_it_has_without_tools_and_is_told_why() -> None:
    journal = finalising(max_tool_calls=1)
    drive = journal.claim()
    drive.plan()
    plan = drive.plan(drive.model_says(("noop", {}), ("pay", {})))
    assert kinds(plan) == ["step_finished", *["step_started", "step_finished"] * 2, "step_started"]
    [call] = plan.local_calls
    assert call.tool is None and "limits.budget.max_tool_calls" in call.final_note
    assert plan.changes[-1].step_started.model.final_note == call.final_note
    assert all("budget" in result.content for result in results_by_call(drive.view).values())
    # Whoever takes over makes the same call, and no other one.
    drive = journal.claim()
    [again] = drive.plan().local_calls
    assert (again.final_note, again.attempt) == (call.final_note, 2)
    plan = drive.plan(drive.model_says(text="That is what I know."))
    assert last_state(plan).state == run_pb2.RUN_STATE_SUCCEEDED
    assert book_of(drive)[1] == Amounts()


def test_enough_is_kept_back_for_the_last_answer() -> None:
    first = reserved_of(finalising(max_total_tokens=10**6).claim().plan())
    one = first.input_tokens + first.output_tokens
    # For one call, and not for another one that is sent all of it: the first call is the last one.
    [call] = finalising(max_total_tokens=2 * one).claim().plan().local_calls
    assert call.final_note
    drive = finalising(max_total_tokens=4 * one).claim()
    [call] = drive.plan().local_calls
    assert not call.final_note
    used = 3 * one - 100
    plan = drive.plan(says(drive, ("noop", {}), input_tokens=used - 50, output_tokens=50))
    [call] = plan.local_calls
    plan = drive.plan(drive.result(call.step.number))
    # The conversation became longer than was foreseen: not even the last call fits.
    assert last_state(plan).state == EXCEEDED


def test_last_call_fits_into_what_was_kept_back() -> None:
    drive = finalising(max_output_tokens=3 * LONGEST).claim()
    drive.plan()
    drive.plan(says(drive, ("noop", {}), input_tokens=500, output_tokens=LONGEST))
    [call] = drive.plan(drive.result(2)).local_calls
    assert not call.final_note
    drive.plan(says(drive, ("noop", {}), input_tokens=500, output_tokens=LONGEST))
    plan = drive.plan(drive.result(4))
    [call] = plan.local_calls
    assert call.final_note and call.tool is None
    used, reserved = book_of(drive)
    assert used.output_tokens + reserved.output_tokens == 3 * LONGEST


@pytest.mark.promise("P7")
def test_calls_in_the_last_answer_are_refused_and_the_run_stops() -> None:
    drive = finalising(max_tool_calls=1).claim()
    drive.plan()
    drive.plan(drive.model_says(("noop", {}), ("noop", {"n": 2})))
    plan = drive.plan(drive.model_says(("noop", {"n": 3})))
    assert last_state(plan).state == EXCEEDED
    assert "asked for its answer" in last_state(plan).failure.message
    assert len(results_by_call(drive.view)) == 3 and not drive.view.open_steps


def test_last_attempt_that_does_not_fit_again_ends_the_run() -> None:
    journal = finalising(max_model_calls=1)
    [call] = journal.claim().plan().local_calls
    assert call.final_note
    plan = journal.claim().plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "step_finished", "run_state_changed"]
    assert last_state(plan).state == EXCEEDED


# ----------------------------------------------------------------------------------------------------- a cheaper model


def degrading(**limits: int) -> Journal:
    """A tenth of the price, and half the longest answer."""
    journal = journal_with(None, **limits)
    journal.spec.limits.on_budget_exceeded = agent_pb2.BUDGET_POLICY_DEGRADE
    cheaper = journal.spec.limits.cheaper_model
    cheaper.CopyFrom(journal.spec.model)
    cheaper.name = "small"
    cheaper.price.input_usd_nanos_per_million_tokens //= 10
    cheaper.price.output_usd_nanos_per_million_tokens //= 10
    cheaper.parameters.max_output_tokens = LONGEST // 2
    return journal


def test_run_goes_on_with_the_cheaper_model_and_stays_with_it() -> None:
    journal = degrading(max_cost_usd_nanos=20_000)
    drive = journal.claim()
    [call] = drive.plan().local_calls
    assert not call.is_cheaper
    drive.plan(says(drive, ("noop", {}), input_tokens=50, output_tokens=7, cost_usd_nanos=18_900))
    plan = drive.plan(drive.result(2))
    [call] = plan.local_calls
    intent = plan.changes[-1].step_started.model
    assert (call.is_cheaper, intent.is_cheaper, intent.model) == (True, True, "small")
    # The other model's count is nothing to go by.
    assert intent.reserved.input_tokens > 300 and intent.reserved.output_tokens == LONGEST // 2
    assert 18_900 + intent.reserved.cost_usd_nanos <= 20_000
    # Its executor is lost: the same model again.
    drive = journal.claim()
    [call] = drive.plan().local_calls
    assert (call.is_cheaper, call.attempt) == (True, 2)
    used, _ = book_of(drive)
    assert used.cost_usd_nanos == 18_900 + intent.reserved.cost_usd_nanos
    drive.plan(says(drive, ("noop", {}), input_tokens=60, output_tokens=7, cost_usd_nanos=20))
    [call] = drive.plan(drive.result(4)).local_calls
    assert call.is_cheaper
    plan = drive.plan(says(drive, ("noop", {}), input_tokens=60, output_tokens=7, cost_usd_nanos=600))
    assert last_state(drive.plan(drive.result(6))).state == EXCEEDED


def test_attempt_without_room_is_made_with_the_cheaper_model() -> None:
    journal = degrading(max_output_tokens=LONGEST * 3 // 2)
    journal.claim().plan()
    plan = journal.claim().plan()
    assert kinds(plan) == ["run_claimed", "attempt_failed", "step_finished", "step_started"]
    [call] = plan.local_calls
    assert (call.is_cheaper, call.step.number) == (True, 2)


def test_cheaper_model_helps_against_no_limit_of_tools() -> None:
    drive = degrading(max_tool_calls=1).claim()
    drive.plan()
    assert last_state(drive.plan(drive.model_says(("noop", {}), ("noop", {"n": 2})))).state == EXCEEDED
