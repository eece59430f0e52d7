"""From an announced attempt to who makes it: this executor itself, or a user's worker, by way of state's queue."""

from __future__ import annotations

from datetime import datetime, timedelta

from google.protobuf.duration_pb2 import Duration

from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from services.executor.decide.draft import Draft
from services.executor.decide.plan import LocalCall
from services.executor.journal_view import StepView, to_timestamp

DEFAULT_TOOL_TIMEOUT = timedelta(seconds=60)
DEFAULT_START_TIMEOUT = timedelta(hours=24)
DEFAULT_HEARTBEAT_TIMEOUT = timedelta(seconds=30)


def start_model_step(draft: Draft, budgeted: run_pb2.ModelIntent | None) -> None:
    """Begins a call of the model.

    Args:
        draft: The transition.
        budgeted: What is reserved for it, and whatever else the budget says of it; None in a run without one.
    """
    view, model = draft.view, draft.spec.model
    number = view.step_count + 1
    change = run_pb2.Change()
    started = change.step_started
    started.step, started.kind = number, run_pb2.STEP_KIND_MODEL
    intent = started.model
    intent.provider, intent.model = model.provider, model.name
    intent.message_count = draft.prior_messages + view.message_count
    if budgeted is not None:
        # Invariant: what it may use is set aside by the event that lets the call be made (P10).
        intent.MergeFrom(budgeted)
    draft.append(change)
    run_here(draft, view.steps[number], None, None)


def run_here(
    draft: Draft, step: StepView, tool: agent_pb2.ToolSpec | None, arguments: dict[str, object] | None
) -> None:
    """Has the driver make the current attempt of a step once the transition is stored."""
    ledger = draft.view.ledger
    note = ledger.final_note if ledger is not None and ledger.final_step == step.number else ""
    is_cheaper = ledger is not None and ledger.is_cheaper(step.number)
    draft.plan.local_calls.append(LocalCall(step, step.attempt, tool, arguments, note, is_cheaper))


def run_here_again(draft: Draft, step: StepView) -> None:
    """The same for a step that was begun in an earlier transition."""
    if step.tool is None:
        run_here(draft, step, None, None)
    else:
        run_here(draft, step, draft.tool_of(step), draft.arguments_of(step))


def queue_call(
    draft: Draft,
    step: StepView,
    tool: agent_pb2.ToolSpec,
    arguments_json: str,
    now: datetime,
    not_before: datetime | None,
) -> None:
    """Offers the current attempt of a step to the workers of its tool.

    Args:
        draft: The transition.
        step: The step.
        tool: Its tool.
        arguments_json: In canonical form.
        now: The time.
        not_before: When it is offered; None for at once.
    """
    created = draft.view.created
    assert step.tool is not None and created is not None
    start_timeout = tool.start_timeout.ToTimedelta() if tool.HasField("start_timeout") else DEFAULT_START_TIMEOUT
    new_call = journal_pb2.NewCall(
        step=step.number,
        attempt=step.attempt,
        tool=step.tool.tool,
        call_id=step.tool.call_id,
        arguments_json=arguments_json,
        arguments_edited=bool(step.edited_arguments_json),
        idempotency_key=step.tool.idempotency_key,
        start_deadline=to_timestamp((not_before or now) + start_timeout),
        timeout=_duration(tool, "timeout", DEFAULT_TOOL_TIMEOUT),
        heartbeat_timeout=_duration(tool, "heartbeat_timeout", DEFAULT_HEARTBEAT_TIMEOUT),
        agent=created.agent,
        user_id=created.user_id,
        revision=created.revision,
        root_run_id=created.root_run_id,
    )
    if not_before is not None:
        new_call.not_before.CopyFrom(to_timestamp(not_before))
    draft.plan.calls.append(new_call)


def _duration(tool: agent_pb2.ToolSpec, name: str, default: timedelta) -> Duration:
    if tool.HasField(name):
        return getattr(tool, name)  # type: ignore[no-any-return]
    duration = Duration()
    duration.FromTimedelta(default)
    return duration
