"""What people are asked of a run, each question in the transition that brings its step to wait for the answer.

Questions are short: those of a whole turn are one event, and events are small. The call itself has all of it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor import call_approvals
from services.executor.budgets import exceeded_failure
from services.executor.decide.draft import Draft
from services.executor.journal_view import StepView, to_timestamp
from services.executor.tools.output import shorten
from services.shared.run_budgets import Shortfall

MAX_QUESTION_ARGUMENTS_BYTES = 4_096
QUESTION_EXPIRES_AFTER = timedelta(hours=72)


def ask_user(draft: Draft, step: int, prompt: str, answer_schema: dict[str, Any] | None, now: datetime) -> None:
    """The model asks a person; the answer is the result of its call."""
    question = _question(draft, step, run_pb2.APPROVAL_KIND_QUESTION, prompt, now)
    if answer_schema is not None:
        question.answer_schema.update(answer_schema)
    _ask(draft, question)


def ask_approval(
    draft: Draft, step: int, tool: agent_pb2.ToolSpec, arguments_json: str, prompt: str, now: datetime
) -> None:
    """May the call of a step be made?"""
    expires_after = call_approvals.expires_after(tool)
    question = _question(draft, step, run_pb2.APPROVAL_KIND_TOOL_CALL, prompt, now, expires_after)
    draft.plan.blobs.extend(call_approvals.fill_question(question, tool, arguments_json))
    _ask(draft, question)


def ask_for_sign_in(draft: Draft, step: StepView, failure: content_pb2.Failure, now: datetime) -> None:
    """The attempt of a step lacked a sign-in, which somebody may make."""
    assert step.sign_in is not None
    question = _question(draft, step.number, run_pb2.APPROVAL_KIND_SIGN_IN, failure.message, now)
    question.sign_in.CopyFrom(step.sign_in)
    question.tool = step.tool.tool if step.tool is not None else ""
    _ask(draft, question)


def ask_about_doubt(draft: Draft, step: StepView, failure: content_pb2.Failure, now: datetime) -> None:
    """Nobody here knows whether the call of a step took effect."""
    assert step.tool is not None
    prompt = (
        f"The call of {step.tool.tool} was started and its result is missing ({failure.message}) Did it take effect?"
    )
    question = _question(draft, step.number, run_pb2.APPROVAL_KIND_IN_DOUBT, prompt, now)
    question.tool = step.tool.tool
    question.arguments_json = shorten(draft.view.arguments_of(step), MAX_QUESTION_ARGUMENTS_BYTES)
    _ask(draft, question)


def ask_for_budget(draft: Draft, short: Shortfall, needed: run_pb2.BudgetShortfall, now: datetime) -> None:
    """How much more may the run use? A step of its own waits for that."""
    number = draft.view.step_count + 1
    draft.add(step_started=run_pb2.StepStarted(step=number, kind=run_pb2.STEP_KIND_WAIT))
    prompt = f"{exceeded_failure(short).message} How much more may it use?"
    question = _question(draft, number, run_pb2.APPROVAL_KIND_BUDGET, prompt, now)
    question.budget.CopyFrom(needed)
    _ask(draft, question)


def close(draft: Draft, approval_id: str, state: run_pb2.ApprovalState) -> None:
    """Nobody needs to answer a question any more."""
    draft.add(approval_closed=run_pb2.ApprovalClosed(approval_id=approval_id, state=state))


def _ask(draft: Draft, question: run_pb2.Approval) -> None:
    draft.add(approval_requested=run_pb2.ApprovalRequested(approval=question))


def _question(
    draft: Draft,
    step: int,
    kind: run_pb2.ApprovalKind,
    prompt: str,
    now: datetime,
    expires_after: timedelta = QUESTION_EXPIRES_AFTER,
) -> run_pb2.Approval:
    return run_pb2.Approval(
        approval_id=draft.new_id(),
        run_id=draft.run_id,
        step=step,
        kind=kind,
        state=run_pb2.APPROVAL_STATE_PENDING,
        prompt=prompt,
        expire_time=to_timestamp(now + expires_after),
    )
