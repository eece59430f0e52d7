"""Calls of other agents, as the loop decides about them: each is a run of its own, which its step waits for (pure).

A child's id follows from its run, step and attempt, and its intent and the child itself are one transaction: whoever
decides the same again names the same run, and what was stored is never started twice.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from services.executor.child_budgets import Shares, part_of
from services.executor.journal_view import RunView, StepView
from services.executor.tools.builtin import AGENT_ARGUMENTS
from services.executor.tools.schema import canonical_json, struct_to_dict

DEFAULT_MAX_DEPTH: Final = 5
DEFAULT_MAX_CHILDREN: Final = 50

MAX_DEPTH_EXCEEDED: Final = "MAX_DEPTH_EXCEEDED"
MAX_CHILDREN_EXCEEDED: Final = "MAX_CHILDREN_EXCEEDED"
CHILD_FAILED: Final = "CHILD_FAILED"
CHILD_CANCELLED: Final = "CHILD_CANCELLED"
CHILD_EXPIRED: Final = "CHILD_EXPIRED"


class Target(NamedTuple):
    """What a tool's agent stands for at the moment at which it is called."""

    agent: str
    revision: str
    spec: agent_pb2.AgentSpec


Targets = Mapping[str, Target | content_pb2.Failure]
"""By the tool's name; a failure where there is no such agent or revision."""


@dataclass(frozen=True, slots=True)
class ChildCall:
    """A run that a step starts, in the transition that says so.

    Attributes:
        run_id: The child's id.
        step: The step that waits for it.
        attempt: Of the step.
        tool: The tool that was called.
        arguments: With what.
        target: The agent's revision.
        depth: How many runs stand above the child.
        depth_limit: The greatest depth in its tree.
        budget: The part of the caller's budget that it is given; None where that has none.
    """

    run_id: str
    step: int
    attempt: int
    tool: agent_pb2.ToolSpec
    arguments: Mapping[str, Any]
    target: Target
    depth: int
    depth_limit: int
    budget: agent_pb2.Budget | None = None

    def put_into(self, started: run_pb2.ToolIntent | run_pb2.AttemptStarted) -> None:
        """Names the run in the intent of the attempt that starts it."""
        started.child_run_id = self.run_id
        if self.budget is not None:
            started.child_budget.CopyFrom(self.budget)

    @property
    def input_text(self) -> str:
        """What the child is asked."""
        if struct_to_dict(self.tool.input_schema) == AGENT_ARGUMENTS:
            return str(self.arguments["input"])
        return canonical_json(self.arguments)


def is_agent(tool: agent_pb2.ToolSpec) -> bool:
    """Whether another agent answers the tool's calls."""
    return bool(tool.WhichOneof("kind") == "agent")


def child_run_id(run_id: str, step: int, attempt: int) -> str:
    """Returns the id of the run that an attempt of a step starts: of the parent's time, as a UUIDv7 has one."""
    digest = int.from_bytes(hashlib.sha256(f"holdfast child v1 {run_id} {step} {attempt}".encode()).digest()[:10])
    value = (uuid.UUID(run_id).int >> 80) << 80 | digest
    value &= ~(0xF << 76) & ~(0b11 << 62)
    return str(uuid.UUID(int=value | 0x7 << 76 | 0b10 << 62))


def depth_limit_of(view: RunView, spec: agent_pb2.AgentSpec) -> int:
    """The greatest depth that a run below this one may have."""
    assert view.created is not None
    mine = view.created.depth + (spec.limits.max_depth or DEFAULT_MAX_DEPTH)
    return min(mine, view.created.depth_limit) if view.created.depth_limit else mine


def plan_child(
    view: RunView,
    spec: agent_pb2.AgentSpec,
    run_id: str,
    tool: agent_pb2.ToolSpec,
    arguments: Mapping[str, Any],
    targets: Targets,
    step: int,
    attempt: int,
    now: datetime,
    shares: Shares | None,
) -> ChildCall | content_pb2.Failure:
    """Returns the run that an attempt of a step starts, or why there can be none: the model is told.

    Args:
        view: The run that calls.
        spec: Its agent's definition.
        run_id: Its id.
        tool: The tool that is called.
        arguments: With what.
        targets: What tools that are agents stand for; that of this tool is there.
        step: The step that is to wait for the run.
        attempt: Of the step.
        now: For prices.
        shares: How what is left of a budget is divided; None for a call that is begun alone.
    """
    assert view.created is not None
    target = targets[tool.name]
    if isinstance(target, content_pb2.Failure):
        return target
    depth, limit = view.created.depth + 1, depth_limit_of(view, spec)
    if depth > limit:
        return _permanent(
            MAX_DEPTH_EXCEEDED,
            f"The agent {target.agent} was not called: no more than {limit} levels of agents may stand below the first "
            "one (limits.max_depth).",
        )
    most = spec.limits.max_children or DEFAULT_MAX_CHILDREN
    if view.children_started >= most:
        return _permanent(
            MAX_CHILDREN_EXCEEDED,
            f"The agent {target.agent} was not called: this run has started {view.children_started} runs of other "
            f"agents, and may start {most} (limits.max_children).",
        )
    budget: agent_pb2.Budget | None = None
    if view.ledger is not None:
        parts, calls_to_begin = (shares.take(), shares.calls) if shares is not None else (1, 0)
        given = part_of(view.ledger, target.spec, now, parts=parts, calls_to_begin=calls_to_begin)
        if isinstance(given, content_pb2.Failure):
            return given
        budget = given
    return ChildCall(child_run_id(run_id, step, attempt), step, attempt, tool, arguments, target, depth, limit, budget)


def tools_to_begin(view: RunView, outcomes: Iterable[tuple[run_pb2.Change, Collection[content_pb2.Blob]]]) -> set[str]:
    """The names of the tools that the next transition may call: agents among them are looked up before."""
    names = {step.tool.tool for step in view.open_steps.values() if step.is_child and _may_begin(step) and step.tool}
    turns = [] if view.turn is None else [call for call in view.turn.calls if not view.has_step_for(call.call_id)]
    names.update(call.tool for call in turns)
    for change, blobs in outcomes:
        stored = change.step_finished.message
        message = stored.message
        if stored.WhichOneof("body") == "blob":
            data = next((blob.data for blob in blobs if blob.hash == stored.blob.hash), b"")
            message = content_pb2.Message.FromString(data)
        names.update(part.tool_call.tool for part in message.parts if part.WhichOneof("kind") == "tool_call")
    return names


def _may_begin(step: StepView) -> bool:
    end = step.child_end
    return not step.child_run_id if end is None else end.state != run_pb2.RUN_STATE_SUCCEEDED


def withdraw(changes: Iterable[run_pb2.Change]) -> None:
    """Takes back what a transition starts whose run ends by it after all."""
    for change in changes:
        match change.WhichOneof("kind"):
            case "step_started" if change.step_started.kind == run_pb2.STEP_KIND_CHILD:
                change.step_started.tool.child_run_id = ""
                change.step_started.tool.ClearField("child_budget")
            case "attempt_started":
                change.attempt_started.child_run_id = ""
                change.attempt_started.ClearField("child_budget")


def result_of(tool: agent_pb2.ToolSpec, end: run_pb2.ChildEnded) -> str:
    """Returns the result of a call as JSON text: the answer of its run, which is JSON where a schema asks for it."""
    parts = end.output.message.parts
    text = "".join(part.text for part in parts if part.WhichOneof("kind") == "text")
    return text if tool.HasField("output_schema") else canonical_json(text)


def failure_of(tool: agent_pb2.ToolSpec, end: run_pb2.ChildEnded) -> content_pb2.Failure:
    """Returns why a call has no result. It is repeated only where the tool says how, and never after a cancel."""
    agent = tool.agent.agent
    if end.state == run_pb2.RUN_STATE_CANCELLED:
        return _permanent(CHILD_CANCELLED, f"The run of the agent {agent} was cancelled.")
    if end.state == run_pb2.RUN_STATE_EXPIRED:
        failure = _permanent(CHILD_EXPIRED, f"The time of the run of the agent {agent} was over.")
    else:
        why = f"{end.failure.message} ({end.failure.reason})" if end.failure.reason else "It did not say why."
        failure = _permanent(CHILD_FAILED, f"The run of the agent {agent} failed: {why}")
    if tool.HasField("retry"):
        failure.failure_class = content_pb2.FAILURE_CLASS_RETRYABLE
    return failure


def _permanent(reason: str, message: str) -> content_pb2.Failure:
    return content_pb2.Failure(reason=reason, message=message, failure_class=content_pb2.FAILURE_CLASS_PERMANENT)
