"""What of a budget is used, reserved and left, event by event: never less than what may have been spent."""

from __future__ import annotations

import pytest

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.shared.run_budgets import Amounts, Ledger, Shortfall

pytestmark = pytest.mark.promise("P10")

RESERVED = run_pb2.Reservation(cost_usd_nanos=500, input_tokens=40, output_tokens=10)


def ledger(**limits: int) -> Ledger:
    return Ledger(agent_pb2.Budget(**limits))


def take(book: Ledger, **kind: object) -> None:
    change = run_pb2.Change(**kind)  # type: ignore[arg-type]
    book.take(change.WhichOneof("kind") or "", change)


def begin_model(book: Ledger, step: int, reserved: run_pb2.Reservation = RESERVED) -> None:
    intent = run_pb2.ModelIntent(reserved=reserved)
    take(book, step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_MODEL, model=intent))


def finish(book: Ledger, step: int, state: run_pb2.StepState = run_pb2.STEP_STATE_SUCCEEDED, **usage: int) -> None:
    finished = run_pb2.StepFinished(step=step, state=state)
    if usage:
        finished.usage.CopyFrom(content_pb2.Usage(**usage))  # type: ignore[arg-type]
    take(book, step_finished=finished)


def fail(book: Ledger, step: int, attempt: int, reason: str, failure_class: content_pb2.FailureClass) -> None:
    failure = content_pb2.Failure(reason=reason, failure_class=failure_class)
    take(book, attempt_failed=run_pb2.AttemptFailed(step=step, attempt=attempt, failure=failure))


def test_reservation_is_held_until_the_result_says_what_was_used() -> None:
    book = ledger(max_cost_usd_nanos=1_000, max_total_tokens=100)
    begin_model(book, 1)
    assert book.reserved() == Amounts(500, 40, 10, model_calls=1)
    finish(book, 1, input_tokens=30, output_tokens=5, cost_usd_nanos=320)
    assert book.reserved() == Amounts()
    assert book.used == Amounts(320, 30, 5, model_calls=1)
    assert [(line.limit, line.max, line.used, line.left) for line in book.lines()] == [
        ("max_cost_usd_nanos", 1_000, 320, 680),
        ("max_total_tokens", 100, 35, 65),
    ]


@pytest.mark.parametrize(
    ("usage", "used"),
    [
        ({}, Amounts(500, 40, 10, model_calls=1)),
        ({"input_tokens": 30, "output_tokens": 5}, Amounts(500, 30, 5, model_calls=1)),
        ({"input_tokens": 90, "output_tokens": 80, "cost_usd_nanos": 0}, Amounts(0, 90, 80, model_calls=1)),
    ],
    ids=["nothing", "no price", "more than was reserved"],
)
def test_what_a_result_does_not_say_was_used_as_reserved(usage: dict[str, int], used: Amounts) -> None:
    book = ledger(max_cost_usd_nanos=1_000)
    begin_model(book, 1)
    finish(book, 1, **usage)  # type: ignore[arg-type]
    assert book.used == used


@pytest.mark.parametrize(
    ("reason", "failure_class", "is_spent"),
    [
        ("EXECUTOR_LOST", content_pb2.FAILURE_CLASS_RETRYABLE, True),
        ("PROVIDER_TIMEOUT", content_pb2.FAILURE_CLASS_RETRYABLE, True),
        ("PROVIDER_STREAM_BROKEN", content_pb2.FAILURE_CLASS_RETRYABLE, True),
        ("INTERNAL", content_pb2.FAILURE_CLASS_PERMANENT, True),
        ("A_NEW_ONE", content_pb2.FAILURE_CLASS_UNSPECIFIED, True),
        ("PROVIDER_RATE_LIMITED", content_pb2.FAILURE_CLASS_RATE_LIMITED, False),
        ("PROVIDER_OVERLOADED", content_pb2.FAILURE_CLASS_RETRYABLE, False),
        ("PROVIDER_AUTH", content_pb2.FAILURE_CLASS_AUTH, False),
        ("CONTEXT_TOO_LONG", content_pb2.FAILURE_CLASS_PERMANENT, False),
    ],
)
def test_attempt_that_may_have_been_billed_is_spent_and_another_one_reserves_anew(
    reason: str, failure_class: content_pb2.FailureClass, is_spent: bool
) -> None:
    book = ledger(max_cost_usd_nanos=10_000)
    begin_model(book, 1)
    fail(book, 1, 1, reason, failure_class)
    assert book.used.cost_usd_nanos == (500 if is_spent else 0)
    assert book.reserved() == Amounts()
    # Announced, and announced once more after the run was parked: one attempt, one reservation.
    take(book, attempt_started=run_pb2.AttemptStarted(step=1, attempt=2))
    take(book, attempt_started=run_pb2.AttemptStarted(step=1, attempt=2))
    assert book.reserved() == Amounts(500, 40, 10, model_calls=1)
    finish(book, 1, input_tokens=30, output_tokens=5, cost_usd_nanos=320)
    assert book.used.cost_usd_nanos == 320 + (500 if is_spent else 0)
    assert book.used.model_calls == 1 + is_spent


def test_call_that_was_given_up_while_it_was_under_way_is_spent() -> None:
    book = ledger(max_cost_usd_nanos=10_000)
    begin_model(book, 1)
    finish(book, 1, run_pb2.STEP_STATE_CANCELLED)
    begin_model(book, 2)
    fail(book, 2, 1, "PROVIDER_REFUSED", content_pb2.FAILURE_CLASS_PERMANENT)
    finish(book, 2, run_pb2.STEP_STATE_FAILED)
    assert (book.used.cost_usd_nanos, book.reserved()) == (500, Amounts())


def test_tool_calls_are_reserved_while_they_are_open_and_not_used_when_they_were_given_up() -> None:
    book = ledger(max_tool_calls=3)
    for step in (1, 2, 3):
        intent = run_pb2.ToolIntent(tool="pay", call_id=f"c{step}")
        take(book, step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_TOOL, tool=intent))
    assert book.shortfall(Amounts(tool_calls=1)) == Shortfall("max_tool_calls", 3, 0, 3, 1)
    finish(book, 1)
    finish(book, 2, run_pb2.STEP_STATE_FAILED)
    finish(book, 3, run_pb2.STEP_STATE_CANCELLED)
    assert (book.used.tool_calls, book.reserved().tool_calls) == (2, 0)
    assert book.shortfall(Amounts(tool_calls=1)) is None


def test_first_limit_without_room_is_named_and_what_is_not_needed_is_not_looked_at() -> None:
    book = ledger(max_output_tokens=15, max_model_calls=5)
    begin_model(book, 1)
    finish(book, 1, input_tokens=1, output_tokens=20)
    # A server that gave more than it was asked for: no call fits any more, and tools are not limited by that.
    assert book.lines()[0].left == -5
    assert book.shortfall(Amounts(output_tokens=1, model_calls=1)) == Shortfall("max_output_tokens", 15, 20, 0, 1)
    assert book.shortfall(Amounts(tool_calls=7)) is None


# ---------------------------------------------------------------------------------------------------------- the tree


def lend(book: Ledger, step: int, **given: int) -> None:
    intent = run_pb2.ToolIntent(
        tool="ask", call_id=f"c{step}", child_run_id="r", child_budget=agent_pb2.Budget(**given)
    )
    take(book, step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_CHILD, tool=intent))


def child_ended(book: Ledger, step: int, used: Amounts | None) -> None:
    message = used.message() if used is not None else None
    take(book, child_ended=run_pb2.ChildEnded(step=step, child_run_id="r", used=message))


def test_part_that_a_run_below_is_given_is_held_whole_until_it_ends_and_then_what_it_used() -> None:
    book = ledger(max_cost_usd_nanos=1_000, max_total_tokens=100, max_tool_calls=9)
    lend(book, 1, max_cost_usd_nanos=400, max_total_tokens=60, max_tool_calls=-1, max_model_calls=3)
    assert [(line.limit, line.reserved) for line in book.lines()] == [
        ("max_cost_usd_nanos", 400),
        ("max_total_tokens", 60),
        ("max_tool_calls", 1),
    ]
    child_ended(book, 1, Amounts(250, 20, 10, model_calls=2))
    finish(book, 1)
    assert book.used == Amounts(250, 20, 10, model_calls=2, tool_calls=1)
    assert book.reserved() == Amounts()


def test_run_below_that_does_not_say_what_it_used_has_used_its_part() -> None:
    book = ledger(max_total_tokens=100, max_input_tokens=80)
    lend(book, 1, max_total_tokens=60, max_input_tokens=50)
    child_ended(book, 1, None)
    assert [line.used for line in book.lines()] == [50, 60]
    # And one that is given up while it goes on.
    lend(book, 2, max_total_tokens=10, max_input_tokens=10)
    finish(book, 2, run_pb2.STEP_STATE_CANCELLED)
    assert [(line.used, line.reserved) for line in book.lines()] == [(60, 0), (70, 0)]


def test_another_attempt_is_another_run_with_a_part_of_its_own() -> None:
    book = ledger(max_model_calls=10)
    lend(book, 1, max_model_calls=4)
    child_ended(book, 1, Amounts(model_calls=4))
    again = run_pb2.AttemptStarted(
        step=1, attempt=2, child_run_id="s", child_budget=agent_pb2.Budget(max_model_calls=3)
    )
    take(book, attempt_started=again)
    assert (book.used.model_calls, book.reserved().model_calls) == (4, 3)


def test_part_of_nothing_is_no_limit_that_is_left_out() -> None:
    book = ledger(max_tool_calls=-1, max_model_calls=2)
    assert book.shortfall(Amounts(tool_calls=1)) == Shortfall("max_tool_calls", 0, 0, 0, 1)
    assert book.shortfall(Amounts(model_calls=1)) is None
