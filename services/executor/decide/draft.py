"""A run's next transition while it is decided.

Invariant: whatever is written into it is folded into the view at once, so that what is decided next sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor import call_approvals, children
from services.executor.budgets import BudgetGuard
from services.executor.call_approvals import SessionApprovals
from services.executor.child_budgets import Shares
from services.executor.decide.plan import Plan
from services.executor.idempotency import idempotency_key
from services.executor.journal_view import RunView, StepView
from services.executor.tools.output import settle_failure, settle_result
from services.executor.tools.schema import check_arguments

DEFAULT_MAX_STEPS = 100


@dataclass(slots=True)
class Draft:
    """What is decided of one run under one lease, and the transition that it is written into.

    Attributes:
        view: The run.
        spec: The agent's definition.
        tools: Its tools as the model sees them, by name.
        run_id: The run's id.
        epoch: The lease.
        budget: Guards the run's budget; None in a run without one.
        prior_messages: How many messages the session's earlier runs have.
        session_approvals: What earlier runs of the session were allowed for the rest of it.
        new_id: Makes ids of questions.
        targets: Of tools that are agents: those that may be called, looked up before.
        plan: The transition; a new one for each.
    """

    view: RunView
    spec: agent_pb2.AgentSpec
    tools: Mapping[str, agent_pb2.ToolSpec]
    run_id: str
    epoch: int
    budget: BudgetGuard | None
    prior_messages: int
    session_approvals: SessionApprovals
    new_id: Callable[[], str]
    targets: children.Targets = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)

    # --- changes ----------------------------------------------------------------------------------------------

    def add(self, **kind: object) -> None:
        """Writes a change of a kind, named as in `Change`."""
        self.append(run_pb2.Change(**kind))  # type: ignore[arg-type]

    def append(self, change: run_pb2.Change, blobs: Collection[content_pb2.Blob] = ()) -> None:
        """Writes a change with the bodies that it refers to."""
        self.plan.changes.append(change)
        self.plan.blobs.extend(blobs)
        self.view.apply(_with_message_inline(change, blobs), self.epoch)

    # --- calls of tools ---------------------------------------------------------------------------------------

    def start_of(
        self,
        call: content_pb2.ToolCall,
        tool: agent_pb2.ToolSpec,
        number: int,
        kind: run_pb2.StepKind,
        arguments_json: str,
    ) -> run_pb2.Change:
        """Returns the start of a call's step, which is still to be written."""
        # Filled in place: a message that is put into another one is copied.
        change = run_pb2.Change()
        started = change.step_started
        started.step, started.kind = number, kind
        intent = started.tool
        intent.tool, intent.call_id = call.tool, call.call_id
        intent.effect = tool.effect or agent_pb2.EFFECT_CLASS_AT_MOST_ONCE
        intent.idempotency_key = idempotency_key(self.run_id, number, call.tool, arguments_json)
        intent.tool_kind = tool.WhichOneof("kind") or ""
        return change

    def refuse(self, call: content_pb2.ToolCall, failure: content_pb2.Failure, state: run_pb2.StepState) -> None:
        """Writes the step of a call that is not made: it begins and ends at once."""
        number = self.view.step_count + 1
        tool = self.tools.get(call.tool) or agent_pb2.ToolSpec(name=call.tool)
        self.append(self.start_of(call, tool, number, run_pb2.STEP_KIND_TOOL, call.arguments_json))
        self.finish_call(self.view.steps[number], failure, state)

    def tool_of(self, step: StepView) -> agent_pb2.ToolSpec:
        """The tool of a step that answers a call."""
        assert step.tool is not None
        return self.tools[step.tool.tool]

    def arguments_of(self, step: StepView) -> dict[str, object]:
        """What the tool of a step is called with."""
        return check_arguments(self.tool_of(step), self.view.arguments_of(step))

    def child_of(
        self,
        tool: agent_pb2.ToolSpec,
        arguments: dict[str, object],
        step: int,
        attempt: int,
        now: datetime,
        shares: Shares | None = None,
    ) -> children.ChildCall | content_pb2.Failure:
        """The run that an attempt of a step starts, or why there can be none."""
        return children.plan_child(
            self.view, self.spec, self.run_id, tool, arguments, self.targets, step, attempt, now, shares
        )

    # --- ends of steps ----------------------------------------------------------------------------------------

    def succeed(self, step: StepView, result_json: str) -> None:
        """A call has its result, JSON text."""
        assert step.tool is not None
        settled = settle_result(
            self.tools[step.tool.tool], step.tool.call_id, result_json, note=call_approvals.note_of(step)
        )
        finished = run_pb2.StepFinished(
            step=step.number,
            attempt=step.attempt,
            state=run_pb2.STEP_STATE_FAILED if settled.failure else run_pb2.STEP_STATE_SUCCEEDED,
            message=settled.message,
            failure=settled.failure,
            output=settled.output,
        )
        self.append(run_pb2.Change(step_finished=finished), settled.blobs)

    def finish_call(self, step: StepView, failure: content_pb2.Failure, state: run_pb2.StepState) -> None:
        """A call is over without a result: its one message says why (P7)."""
        assert step.tool is not None
        tool = self.tools.get(step.tool.tool) or agent_pb2.ToolSpec(name=step.tool.tool)
        settled = settle_failure(tool, step.tool.call_id, failure, note=call_approvals.note_of(step))
        self.plan.blobs.extend(settled.blobs)
        self.add(
            step_finished=run_pb2.StepFinished(
                step=step.number, attempt=step.attempt, state=state, message=settled.message, failure=failure
            )
        )

    def finish(self, step: StepView, state: run_pb2.StepState, failure: content_pb2.Failure | None = None) -> None:
        """A step that answers no call is over."""
        self.add(
            step_finished=run_pb2.StepFinished(step=step.number, attempt=step.attempt, state=state, failure=failure)
        )

    # --- room -------------------------------------------------------------------------------------------------

    @property
    def max_steps(self) -> int:
        """How many steps the run may have."""
        return self.spec.limits.max_steps or DEFAULT_MAX_STEPS

    def has_room_for(self, steps: int) -> bool:
        """Whether the run may have so many more steps."""
        return self.view.step_count + steps <= self.max_steps


def _with_message_inline(change: run_pb2.Change, blobs: Collection[content_pb2.Blob]) -> run_pb2.Change:
    """The change as the view reads it: a large message itself, not the reference to its body that is stored."""
    if change.WhichOneof("kind") != "step_finished" or change.step_finished.message.WhichOneof("body") != "blob":
        return change
    wanted = change.step_finished.message.blob.hash
    body = next(blob.data for blob in blobs if blob.hash == wanted)
    inline = run_pb2.Change()
    inline.CopyFrom(change)
    inline.step_finished.message.message.CopyFrom(content_pb2.Message.FromString(body))
    return inline
