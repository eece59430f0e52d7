"""What comes next once nothing is open: the calls of the model's answer, the next call of the model, or the end.

Invariant: the calls of an answer are begun in one transition, each with its step; what cannot be made ends there.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor import call_approvals, children
from services.executor.child_budgets import Shares
from services.executor.decide import ends, questions
from services.executor.decide.dispatch import queue_call, run_here, start_model_step
from services.executor.decide.draft import Draft
from services.executor.journal_view import to_timestamp
from services.executor.tools.builtin import due_time_of, question_of
from services.executor.tools.schema import ArgumentsRefused, canonical_json, check_arguments
from services.shared.run_budgets import Shortfall


def advance(draft: Draft, now: datetime) -> None:
    """Goes on with the run as far as nothing has to be waited for."""
    view = draft.view
    turn = view.turn
    if turn is not None and not view.open_steps:
        missing = [call for call in turn.calls if not view.has_step_for(call.call_id)]
        if missing:
            _begin_calls(draft, missing, now)
            if view.has_ended():
                return
        if ends.succeed_if_answered(draft):
            return
    if not view.open_steps and (turn is None or turn.is_answered) and not view.has_ended():
        _begin_model_step(draft, now)


def _begin_model_step(draft: Draft, now: datetime) -> None:
    if not draft.has_room_for(1):
        ends.fail(draft, _max_steps_failure(draft.max_steps))
        return
    if draft.budget is None:
        start_model_step(draft, None)
        return
    call = draft.budget.next_call(draft.view, now)
    if isinstance(call, content_pb2.Failure):
        ends.fail(draft, call)
    elif isinstance(call, Shortfall):
        ends.exceed(draft, call, now)
    else:
        start_model_step(draft, call)


def _begin_calls(draft: Draft, calls: list[content_pb2.ToolCall], now: datetime) -> None:
    if not draft.has_room_for(len(calls)):
        failure = _max_steps_failure(draft.max_steps)
        for call in calls:
            draft.refuse(call, failure, run_pb2.STEP_STATE_CANCELLED)
        ends.fail(draft, failure)
        return
    if draft.budget is not None and (short := draft.budget.shortfall_of_tool_calls(len(calls))) is not None:
        ends.exceed(draft, short, now)
        return
    if draft.view.ledger is not None and draft.view.ledger.final_step:
        ends.refuse_tools_after_last_call(draft)
        return
    shares = _shares_of(draft, calls) if draft.budget is not None else None
    for index, call in enumerate(calls):
        tool = draft.tools.get(call.tool)
        if tool is None:
            draft.refuse(call, _unknown_tool_failure(call.tool, draft.tools), run_pb2.STEP_STATE_FAILED)
            continue
        if shares is not None:
            shares.calls = len(calls) - index
        try:
            _begin_call(draft, call, tool, check_arguments(tool, call.arguments_json), now, shares)
        except ArgumentsRefused as refused:
            draft.refuse(call, refused.failure, run_pb2.STEP_STATE_FAILED)


def _shares_of(draft: Draft, calls: list[content_pb2.ToolCall]) -> Shares:
    agents = sum(children.is_agent(draft.tools[call.tool]) for call in calls if call.tool in draft.tools)
    return Shares(agents, len(calls))


def _begin_call(
    draft: Draft,
    call: content_pb2.ToolCall,
    tool: agent_pb2.ToolSpec,
    arguments: dict[str, object],
    now: datetime,
    shares: Shares | None,
) -> None:
    number = draft.view.step_count + 1
    tool_kind = tool.WhichOneof("kind")
    builtin = tool.builtin.name if tool_kind == "builtin" else ""
    kind = run_pb2.STEP_KIND_WAIT if builtin in ("ask_user", "sleep_until") else run_pb2.STEP_KIND_TOOL
    child: children.ChildCall | None = None
    if tool_kind == "agent":
        planned = draft.child_of(tool, arguments, number, 1, now, shares)
        if isinstance(planned, content_pb2.Failure):
            draft.refuse(call, planned, run_pb2.STEP_STATE_FAILED)
            return
        kind, child = run_pb2.STEP_KIND_CHILD, planned
    arguments_json = canonical_json(arguments)
    change = draft.start_of(call, tool, number, kind, arguments_json)
    intent = change.step_started.tool
    if tool.HasField("approval"):
        gate = call_approvals.gate_of(
            tool,
            arguments,
            run_approvals=draft.view.run_approvals,
            session_approvals=draft.session_approvals,
        )
        if gate is not None and not gate.approval_id:
            draft.append(change)
            questions.ask_approval(draft, number, tool, arguments_json, gate.prompt, now)
            return
        intent.approval_id = gate.approval_id if gate is not None else ""
    if child is not None:
        child.put_into(intent)
        draft.append(change)
        draft.plan.children.append(child)
    elif builtin == "sleep_until":
        intent.due_time.CopyFrom(to_timestamp(due_time_of(arguments, now)))
        draft.append(change)
    elif builtin == "ask_user":
        prompt, answer_schema = question_of(arguments)
        draft.append(change)
        questions.ask_user(draft, number, prompt, answer_schema, now)
    else:
        draft.append(change)
        step = draft.view.steps[number]
        if tool_kind == "worker":
            queue_call(draft, step, tool, arguments_json, now, None)
        else:
            run_here(draft, step, tool, arguments)


def _max_steps_failure(max_steps: int) -> content_pb2.Failure:
    return content_pb2.Failure(
        reason="MAX_STEPS_EXCEEDED",
        message=f"The run would need more than its {max_steps} steps (limits.max_steps).",
        failure_class=content_pb2.FAILURE_CLASS_PERMANENT,
    )


def _unknown_tool_failure(name: str, tools: Collection[str]) -> content_pb2.Failure:
    known = ", ".join(sorted(tools)) or "none"
    return content_pb2.Failure(
        reason="TOOL_UNKNOWN",
        message=f"There is no tool {name!r}. The tools are: {known}.",
        failure_class=content_pb2.FAILURE_CLASS_INVALID_ARGUMENTS,
    )
