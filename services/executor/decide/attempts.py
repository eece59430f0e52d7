"""What follows a failed attempt: another one, a question, or the step's end.

Invariant: an attempt is announced (AttemptStarted) in the transition that has it made. One whose outcome nobody knows
is repeated by itself only where its tool's effect class allows that.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor import retries
from services.executor.decide import ends, questions
from services.executor.decide.dispatch import queue_call, run_here_again
from services.executor.decide.draft import Draft
from services.executor.journal_view import StepView, to_timestamp
from services.executor.tools.schema import canonical_json

# A step that lacks a sign-in again and again is not asked about for ever.
MAX_SIGN_INS = 5

EXECUTOR_LOST = "EXECUTOR_LOST"
WORKER_START_TIMEOUT = "WORKER_START_TIMEOUT"


def fail_attempt(draft: Draft, step: StepView, failure: content_pb2.Failure, now: datetime) -> None:
    """The current attempt has failed, which is not in the journal yet."""
    draft.add(attempt_failed=run_pb2.AttemptFailed(step=step.number, attempt=step.attempt, failure=failure))
    after_failure(draft, step, now)


def lose_attempt(draft: Draft, step: StepView, now: datetime) -> None:
    """The current attempt was dispatched under an earlier lease and has no result."""
    # A model call changes nothing outside; for a tool, only its effect class says what may be repeated.
    unknown = step.tool is not None
    failure = content_pb2.Failure(
        reason=EXECUTOR_LOST,
        message="The executor that made this attempt was lost before its result was stored.",
        failure_class=content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME if unknown else content_pb2.FAILURE_CLASS_RETRYABLE,
    )
    fail_attempt(draft, step, failure, now)


def after_failure(draft: Draft, step: StepView, now: datetime) -> None:
    """The current attempt has failed or was lost: again, ask, or over."""
    failure = step.failure
    assert failure is not None
    if step.sign_in is not None and step.attempt <= MAX_SIGN_INS:
        questions.ask_for_sign_in(draft, step, failure, now)
        return
    if failure.failure_class == content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME:
        if not _is_repeatable(step):
            _doubt(draft, step, failure, now)
            return
        known = content_pb2.Failure()
        known.CopyFrom(failure)
        known.failure_class = content_pb2.FAILURE_CLASS_RETRYABLE
        failure = known
    delay = None
    lost = failure.reason == EXECUTOR_LOST
    if failure.reason != WORKER_START_TIMEOUT and step.attempt < step.counted_failures + retries.MAX_LOST_ATTEMPTS:
        delay = retries.delay_before_retry(_retry_policy(draft, step), failure, step.counted_failures, lost=lost)
    if delay is not None:
        not_before = now + timedelta(seconds=delay) if delay > 0 else None
        begin_attempt(draft, step, step.attempt + 1, not_before, now)
    else:
        ends.fail_step(draft, step, failure)


def begin_attempt(draft: Draft, step: StepView, attempt: int, not_before: datetime | None, now: datetime) -> None:
    """Announces an attempt and has it made.

    Args:
        draft: The transition.
        step: An open step.
        attempt: The next one; or the current one again, which was parked before anybody made it.
        not_before: When it is made; None for at once.
        now: The time.
    """
    if step.kind == run_pb2.STEP_KIND_MODEL and attempt != step.attempt and not _has_budget_for(draft, step, now):
        return
    started = run_pb2.AttemptStarted(step=step.number, attempt=attempt)
    if not_before is not None:
        started.not_before.CopyFrom(to_timestamp(not_before))
    elif step.is_child:
        _begin_child_attempt(draft, step, started, now)
        return
    draft.add(attempt_started=started)
    if step.is_child:
        # Its run is started when it is due.
        return
    if step.is_worker_call:
        arguments_json = canonical_json(draft.arguments_of(step))
        queue_call(draft, step, draft.tool_of(step), arguments_json, now, not_before)
    else:
        run_here_again(draft, step)


def _has_budget_for(draft: Draft, step: StepView, now: datetime) -> bool:
    """Whether another attempt of a model step has room; the step is over otherwise."""
    if draft.budget is None or (short := draft.budget.shortfall_of_attempt(step.number, now)) is None:
        return True
    draft.finish(step, run_pb2.STEP_STATE_FAILED, step.failure)
    if not draft.budget.goes_on_cheaper(short):
        ends.exceed(draft, short, now)
    return False


def _begin_child_attempt(draft: Draft, step: StepView, started: run_pb2.AttemptStarted, now: datetime) -> None:
    tool, arguments = draft.tool_of(step), draft.arguments_of(step)
    child = draft.child_of(tool, arguments, step.number, started.attempt, now)
    if isinstance(child, content_pb2.Failure):
        ends.fail_step(draft, step, child)
        return
    child.put_into(started)
    draft.add(attempt_started=started)
    draft.plan.children.append(child)


def _is_repeatable(step: StepView) -> bool:
    return step.tool is None or step.tool.effect in (
        agent_pb2.EFFECT_CLASS_READ_ONLY,
        agent_pb2.EFFECT_CLASS_IDEMPOTENT,
    )


def _doubt(draft: Draft, step: StepView, failure: content_pb2.Failure, now: datetime) -> None:
    draft.add(step_in_doubt=run_pb2.StepInDoubt(step=step.number, attempt=step.attempt, failure=failure))
    policy = draft.tool_of(step).in_doubt
    if policy == agent_pb2.IN_DOUBT_POLICY_TELL_MODEL:
        draft.finish_call(step, failure, run_pb2.STEP_STATE_FAILED)
    elif policy == agent_pb2.IN_DOUBT_POLICY_FAIL_RUN:
        ends.fail_with(draft, step, failure)
    else:
        questions.ask_about_doubt(draft, step, failure, now)


def _retry_policy(draft: Draft, step: StepView) -> agent_pb2.RetryPolicy:
    if step.tool is not None:
        return draft.tool_of(step).retry
    ledger = draft.view.ledger
    is_cheaper = ledger is not None and ledger.is_cheaper(step.number)
    return draft.spec.limits.cheaper_model.retry if is_cheaper else draft.spec.model.retry
