"""What becomes of open steps, by whoever has begun them: what can be decided now, what goes on by itself and when, and
what the run waits for otherwise."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from holdfast.api.common.v1 import run_pb2
from services.executor import children
from services.executor.decide.answers import answer
from services.executor.decide.attempts import after_failure, begin_attempt, fail_attempt, lose_attempt
from services.executor.decide.dispatch import run_here_again
from services.executor.decide.draft import Draft
from services.executor.journal_view import RunView, StepView, to_datetime
from services.executor.tools.schema import canonical_json

# The database's clock wakes a run, the executor's decides what is due: they may differ by this much.
CLOCK_TOLERANCE = timedelta(milliseconds=200)

# Of several things that a run waits for, the one that is named: what people can do something about comes first.
_WAIT_REASONS = (
    run_pb2.WAIT_REASON_INPUT,
    run_pb2.WAIT_REASON_APPROVAL,
    run_pb2.WAIT_REASON_AUTH,
    run_pb2.WAIT_REASON_IN_DOUBT,
    run_pb2.WAIT_REASON_TOOL,
    run_pb2.WAIT_REASON_CHILD,
    run_pb2.WAIT_REASON_TIMER,
)
_REASON_OF_QUESTION = {
    run_pb2.APPROVAL_KIND_TOOL_CALL: run_pb2.WAIT_REASON_APPROVAL,
    run_pb2.APPROVAL_KIND_SIGN_IN: run_pb2.WAIT_REASON_AUTH,
    run_pb2.APPROVAL_KIND_IN_DOUBT: run_pb2.WAIT_REASON_IN_DOUBT,
}


def go_on(draft: Draft, step: StepView, now: datetime) -> None:
    """Takes an open step on, of which nothing is under way here, if anything can be decided about it."""
    question = step.question
    if question is not None:
        if question.decision is not None or now >= to_datetime(question.approval.expire_time):
            answer(draft, step, question, now)
    elif step.kind == run_pb2.STEP_KIND_WAIT:
        _end_sleep(draft, step, now)
    elif step.state == run_pb2.STEP_STATE_IN_DOUBT:
        return
    elif step.is_child:
        _go_on_with_child(draft, step, now)
    elif step.failure is not None:
        after_failure(draft, step, now)
    elif not step.is_worker_call:
        _go_on_with_local_call(draft, step, now)


def _end_sleep(draft: Draft, step: StepView, now: datetime) -> None:
    if step.tool is not None and step.tool.HasField("due_time"):
        due = to_datetime(step.tool.due_time)
        if due <= now + CLOCK_TOLERANCE:
            draft.succeed(step, canonical_json({"slept_until": due.isoformat()}))


def _go_on_with_local_call(draft: Draft, step: StepView, now: datetime) -> None:
    if step.dispatch_epoch == 0:
        # Parked before it was dispatched. The attempt is announced again, so that a crash from here on is seen.
        if _may_begin(step, now):
            begin_attempt(draft, step, step.attempt, None, now)
    elif step.dispatch_epoch == draft.epoch:
        # Its intent is stored under this lease and nothing of it runs: it has not been dispatched yet.
        run_here_again(draft, step)
    else:
        lose_attempt(draft, step, now)


def _go_on_with_child(draft: Draft, step: StepView, now: datetime) -> None:
    end = step.child_end
    if step.failure is not None:
        after_failure(draft, step, now)
    elif end is None:
        if not step.child_run_id and _may_begin(step, now):
            begin_attempt(draft, step, step.attempt, None, now)
    elif end.state == run_pb2.RUN_STATE_SUCCEEDED:
        draft.succeed(step, children.result_of(draft.tool_of(step), end))
    else:
        fail_attempt(draft, step, children.failure_of(draft.tool_of(step), end), now)


def _may_begin(step: StepView, now: datetime) -> bool:
    return step.not_before is None or step.not_before <= now + CLOCK_TOLERANCE


def next_due(view: RunView, but: Collection[int] = ()) -> datetime | None:
    """When the first of the open steps goes on by itself.

    Args:
        view: The run.
        but: Steps that are not looked at, because their calls are under way.
    """
    dues = [due for number, step in view.open_steps.items() if number not in but and (due := _due_of(step)) is not None]
    return min(dues, default=None)


def _due_of(step: StepView) -> datetime | None:
    if step.question is not None:
        return to_datetime(step.question.approval.expire_time)
    if step.tool is not None and step.tool.HasField("due_time"):
        return to_datetime(step.tool.due_time)
    if step.state == run_pb2.STEP_STATE_STARTED and not step.is_worker_call:
        return step.not_before
    return None


def wait_reason(view: RunView) -> run_pb2.WaitReason:
    """What the run waits for, of which only outside things are open."""
    reasons: set[run_pb2.WaitReason] = set()
    for step in view.open_steps.values():
        if step.question is not None:
            reasons.add(_REASON_OF_QUESTION.get(step.question.approval.kind, run_pb2.WAIT_REASON_INPUT))
        elif step.is_worker_call:
            reasons.add(run_pb2.WAIT_REASON_TOOL)
        elif step.child_run_id:
            reasons.add(run_pb2.WAIT_REASON_CHILD)
        else:
            reasons.add(run_pb2.WAIT_REASON_TIMER)
    return min(reasons, key=_WAIT_REASONS.index)
