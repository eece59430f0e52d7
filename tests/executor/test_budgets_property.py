"""Whatever is asked, answered, lost or refused, and whoever drives: no run uses more than its budget, and each ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor.decide.plan import LocalCall, Outcome
from services.shared.run_budgets import LIMITS, Amounts
from services.state.journal_check import TOTALS, JournalCheck
from tests.executor.driving import Drive, Journal, results_by_call
from tests.executor.test_budgets import degrading, says

pytestmark = [pytest.mark.promise("P10"), pytest.mark.promise("P7"), pytest.mark.promise("P4")]

POLICIES = [policy for policy in agent_pb2.BudgetPolicy.values() if policy]
FAILURES = [content_pb2.FAILURE_CLASS_RETRYABLE, content_pb2.FAILURE_CLASS_RATE_LIMITED]

BUDGETS = st.fixed_dictionaries(
    {},
    optional={
        "max_cost_usd_nanos": st.integers(1, 40_000),
        "max_input_tokens": st.integers(1, 8_000),
        "max_output_tokens": st.integers(1, 800),
        "max_total_tokens": st.integers(1, 9_000),
        "max_model_calls": st.integers(1, 6),
        "max_tool_calls": st.integers(1, 6),
    },
).filter(bool)


def journal_of(policy: agent_pb2.BudgetPolicy, budget: dict[str, int]) -> Journal:
    journal = degrading(**budget)
    journal.spec.limits.on_budget_exceeded = policy
    journal.spec.limits.max_steps = 60
    return journal


@settings(max_examples=150, deadline=None)
@given(policy=st.sampled_from(POLICIES), budget=BUDGETS, data=st.data())
def test_no_run_uses_more_than_its_budget(
    policy: agent_pb2.BudgetPolicy, budget: dict[str, int], data: st.DataObject
) -> None:
    journal = journal_of(policy, budget)
    drive = journal.claim()
    plan = drive.plan()
    for _ in range(200):
        within(drive)
        if drive.view.has_ended():
            break
        waiting = [step for step in drive.view.open_steps.values() if step.question is not None]
        if waiting:
            approval = waiting[0].question.approval if waiting[0].question else run_pb2.Approval()
            answer_question(drive, approval, data)
            drive = journal.claim()
            plan = drive.plan()
        elif data.draw(st.integers(0, 4), label="dies") == 0:
            drive = journal.claim()
            plan = drive.plan()
        else:
            plan = drive.plan(*(outcome_of(drive, call, data) for call in plan.local_calls))
    assert drive.view.has_ended(), "every run ends"
    assert len(results_by_call(drive.view)) == sum(
        part.WhichOneof("kind") == "tool_call" for message in drive.view.conversation() for part in message.parts
    )
    check_as_doctor_does(journal, drive)


def within(drive: Drive) -> None:
    ledger = drive.view.ledger
    assert ledger is not None
    reserved = ledger.reserved()
    for name, limit in ledger.limits.items():
        assert ledger.used.of(name) + reserved.of(name) <= limit, name


def outcome_of(drive: Drive, call: LocalCall, data: st.DataObject) -> Outcome:
    """What a call brings: never more than was reserved for it."""
    step = call.step
    if call.tool is not None:
        if call.tool.name == "noop" or data.draw(st.booleans(), label="succeeds"):
            return drive.result(step.number, "x" * data.draw(st.integers(0, 400), label="size"))
        return drive.failed(step.number, content_pb2.FAILURE_CLASS_PERMANENT)
    if data.draw(st.integers(0, 3), label="fails") == 0:
        return drive.failed(step.number, data.draw(st.sampled_from(FAILURES), label="class"))
    assert drive.view.ledger is not None
    most = drive.view.ledger.reservation_of(step.number)
    used = {
        "input_tokens": data.draw(st.integers(0, most.input_tokens), label="sent"),
        "output_tokens": data.draw(st.integers(0, most.output_tokens), label="received"),
    }
    if most.cost_usd_nanos and data.draw(st.booleans(), label="priced"):
        used["cost_usd_nanos"] = data.draw(st.integers(0, most.cost_usd_nanos), label="cost")
    calls = data.draw(st.lists(st.sampled_from(["noop", "look", "unknown"]), max_size=3), label="calls")
    made: list[tuple[str, dict[str, object]]] = [(tool, {}) for tool in calls]
    return says(drive, *made, text="" if calls else "done", **used)


def answer_question(drive: Drive, approval: run_pb2.Approval, data: st.DataObject) -> None:
    assert approval.kind == run_pb2.APPROVAL_KIND_BUDGET
    decided = run_pb2.ApprovalDecided(approval_id=approval.approval_id, step=approval.step)
    if data.draw(st.booleans(), label="gives"):
        decided.answer_json = str(data.draw(st.integers(1, 5_000), label="more"))
    else:
        decided.resolution = run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN
    drive.journal.write(0, [run_pb2.Change(approval_decided=decided)])


def check_as_doctor_does(journal: Journal, drive: Drive) -> None:
    row = SimpleNamespace(
        epoch=journal.epoch,
        state=drive.view.state,
        last_seq=len(journal.events),
        step_count=drive.view.step_count,
        **dict.fromkeys(TOTALS, 0),
    )
    check = JournalCheck(row, lambda reference: None)
    for event in journal.events:
        check.take(event.seq, event.epoch, event)
    assert not [broken for broken in check.close() if broken.check != "totals_add_up"]
    assert drive.view.ledger is not None and drive.view.ledger.reserved() == Amounts()
    assert set(drive.view.ledger.limits) <= set(LIMITS)
