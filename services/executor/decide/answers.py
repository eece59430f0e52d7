"""What follows from the answer to a question, or from nobody giving one in time."""

from __future__ import annotations

from datetime import datetime

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.executor import call_approvals
from services.executor.decide import ends, questions
from services.executor.decide.attempts import begin_attempt
from services.executor.decide.draft import Draft
from services.executor.journal_view import Question, StepView
from services.executor.tools.schema import canonical_json


def answer(draft: Draft, step: StepView, question: Question, now: datetime) -> None:
    """The question that a step waits for is decided, or has expired."""
    decision = question.decision
    kind = question.approval.kind
    if decision is None:
        questions.close(draft, question.approval.approval_id, run_pb2.APPROVAL_STATE_EXPIRED)
    if kind == run_pb2.APPROVAL_KIND_BUDGET:
        # What a person has given is in the ledger already; what comes next is decided anew by that.
        draft.finish(step, run_pb2.STEP_STATE_FAILED if decision is None else run_pb2.STEP_STATE_SUCCEEDED)
        return
    if decision is None:
        ends.fail_step(draft, step, _expired_failure(step))
        return
    step.question = None
    if kind == run_pb2.APPROVAL_KIND_TOOL_CALL:
        _after_approval(draft, step, decision, now)
    elif kind == run_pb2.APPROVAL_KIND_SIGN_IN:
        _after_sign_in(draft, step, decision, now)
    elif kind == run_pb2.APPROVAL_KIND_QUESTION:
        draft.succeed(step, decision.answer_json)
    else:
        _after_doubt(draft, step, decision, now)


def _expired_failure(step: StepView) -> content_pb2.Failure:
    if step.failure is not None:
        # Of a call in doubt, or one that lacks a sign-in: what the model has to know is that.
        return step.failure
    if step.is_held:
        return call_approvals.expired_failure()
    return content_pb2.Failure(
        reason=call_approvals.APPROVAL_EXPIRED,
        message="Nobody answered in time. The call was not carried out further; ask again if still needed.",
        failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
    )


def _after_approval(draft: Draft, step: StepView, decision: run_pb2.ApprovalDecided, now: datetime) -> None:
    refusal = call_approvals.refusal_of(decision, canonical_json(draft.arguments_of(step)))
    if refusal is not None:
        ends.fail_step(draft, step, refusal)
    else:
        begin_attempt(draft, step, step.attempt, None, now)


def _after_sign_in(draft: Draft, step: StepView, decision: run_pb2.ApprovalDecided, now: datetime) -> None:
    failure = step.failure
    assert failure is not None
    if decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN and step.tool is not None:
        ends.fail_with(draft, step, failure)
    elif decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_UNSPECIFIED:
        begin_attempt(draft, step, step.attempt + 1, None, now)
    else:
        ends.fail_step(draft, step, failure)


def _after_doubt(draft: Draft, step: StepView, decision: run_pb2.ApprovalDecided, now: datetime) -> None:
    doubt = step.failure or content_pb2.Failure(reason="UNKNOWN_OUTCOME", message="The outcome is unknown.")
    if decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_DONE:
        draft.succeed(step, decision.answer_json or "null")
    elif decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_NOT_DONE:
        begin_attempt(draft, step, step.attempt + 1, None, now)
    elif decision.resolution == run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN:
        ends.fail_with(draft, step, doubt)
    else:
        draft.finish_call(step, doubt, run_pb2.STEP_STATE_FAILED)
