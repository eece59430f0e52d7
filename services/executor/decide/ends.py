"""How a run ends: every open step and every call gets its one end in the transition that ends the run (P7)."""

from __future__ import annotations

from datetime import datetime

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.executor import children
from services.executor.budgets import exceeded_failure, tools_after_last_call_failure
from services.executor.decide import questions
from services.executor.decide.dispatch import start_model_step
from services.executor.decide.draft import Draft
from services.executor.journal_view import RunView, StepView
from services.shared.run_budgets import Shortfall
from services.shared.run_ends import BUDGET, CANCEL, EXPIRY, Ending, failure_of_open_call


def succeed_if_answered(draft: Draft) -> bool:
    """The model's answer ends the run, in the transition that holds it; nothing is begun by that."""
    turn = draft.view.turn
    if turn is None or turn.calls or draft.view.open_steps:
        return False
    _end(draft, run_pb2.RUN_STATE_SUCCEEDED)
    return True


def cancel(draft: Draft) -> None:
    """The run is to end, whatever is open."""
    _refuse_calls_without_steps(draft)
    # Also where somebody had asked to cancel it: that came to nothing in time.
    _end(draft, run_pb2.RUN_STATE_EXPIRED if draft.view.has_expired else run_pb2.RUN_STATE_CANCELLED)


def give_up(draft: Draft, failure: content_pb2.Failure) -> None:
    """The run cannot go on, wherever it stands."""
    _refuse_calls_without_steps(draft)
    fail(draft, failure)


def fail(draft: Draft, failure: content_pb2.Failure) -> None:
    """The run has failed; every call has its step already."""
    _end(draft, run_pb2.RUN_STATE_FAILED, failure)


def fail_with(draft: Draft, step: StepView, failure: content_pb2.Failure) -> None:
    """The run fails with the call of a step."""
    draft.finish_call(step, failure, run_pb2.STEP_STATE_FAILED)
    fail(draft, failure)


def fail_step(draft: Draft, step: StepView, failure: content_pb2.Failure) -> None:
    """A step is over without a result: the model is told, unless it was the model that failed."""
    if step.kind == run_pb2.STEP_KIND_MODEL:
        draft.finish(step, run_pb2.STEP_STATE_FAILED, failure)
        fail(draft, failure)
    else:
        draft.finish_call(step, failure, run_pb2.STEP_STATE_FAILED)


def exceed(draft: Draft, short: Shortfall, now: datetime) -> None:
    """There is no room for what comes next: the run stops before it, or what its agent says happens instead."""
    assert draft.budget is not None
    needed = draft.budget.question_about(short)
    if needed is not None and draft.has_room_for(1):
        questions.ask_for_budget(draft, short, needed, now)
        return
    _refuse_calls_without_steps(draft, BUDGET)
    # Order matters: what the calls came to is part of what a last call is sent.
    if draft.has_room_for(1) and (intent := draft.budget.last_call(draft.view, short, now)) is not None:
        start_model_step(draft, intent)
        return
    _end(draft, run_pb2.RUN_STATE_BUDGET_EXCEEDED, exceeded_failure(short), BUDGET)


def refuse_tools_after_last_call(draft: Draft) -> None:
    """The model was offered no tools any more and calls some: the run is over all the same."""
    _refuse_calls_without_steps(draft, BUDGET)
    _end(draft, run_pb2.RUN_STATE_BUDGET_EXCEEDED, tools_after_last_call_failure(), BUDGET)


def _refuse_calls_without_steps(draft: Draft, ending: Ending | None = None) -> None:
    view = draft.view
    for call in view.turn.calls if view.turn is not None else ():
        if not view.has_step_for(call.call_id):
            failure = failure_of_open_call(ending or _ending_of(view), may_have_happened=False)
            draft.refuse(call, failure, run_pb2.STEP_STATE_CANCELLED)


def _end(
    draft: Draft, state: run_pb2.RunState, failure: content_pb2.Failure | None = None, ending: Ending | None = None
) -> None:
    view, plan = draft.view, draft.plan
    for step in list(view.open_steps.values()):
        _end_step(draft, step, ending or _ending_of(view))
    changed = run_pb2.RunStateChanged(state=state)
    if failure is not None:
        changed.failure.CopyFrom(failure)
    if view.ledger is not None and view.created is not None and view.created.parent_run_id:
        # Of the budget that it was given, the rest is its parent's again.
        changed.used.CopyFrom(view.ledger.used.message())
    plan.local_calls.clear()
    plan.calls.clear()
    if plan.children:
        children.withdraw(plan.changes)
        plan.children.clear()
    draft.add(run_state_changed=changed)


def _end_step(draft: Draft, step: StepView, ending: Ending) -> None:
    if step.question is not None and step.question.decision is None:
        questions.close(draft, step.question.approval.approval_id, ending.question_state)
    failure = failure_of_open_call(ending, may_have_happened=_may_have_happened(step))
    if step.tool is None:
        draft.finish(step, run_pb2.STEP_STATE_CANCELLED, failure)
    else:
        draft.finish_call(step, failure, run_pb2.STEP_STATE_CANCELLED)


def _may_have_happened(step: StepView) -> bool:
    if step.tool is None or step.is_held:
        return False
    is_dispatched = step.tool.tool_kind != "builtin" and step.failure is None
    return step.state == run_pb2.STEP_STATE_IN_DOUBT or is_dispatched


def _ending_of(view: RunView) -> Ending:
    return EXPIRY if view.has_expired else CANCEL
