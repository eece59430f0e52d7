"""What the planner and its driver hand each other: outcomes of calls, and the plan that is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from services.executor.children import ChildCall
from services.executor.journal_view import StepView


class LocalCall(NamedTuple):
    """An attempt that this executor makes itself, once its intent is stored."""

    step: StepView
    attempt: int
    tool: agent_pb2.ToolSpec | None
    arguments: dict[str, object] | None
    # Of the last call of a run that has used up its budget: what the model is told; it is offered no tools.
    final_note: str = ""
    # Made with the cheaper model of the agent's limits.
    is_cheaper: bool = False


class Outcome(NamedTuple):
    """What a local call brought: a StepFinished or AttemptFailed, and the bodies it refers to."""

    change: run_pb2.Change
    blobs: tuple[content_pb2.Blob, ...] = ()


@dataclass(slots=True)
class Plan:
    """What to store in one transition, and what to do once it is stored."""

    changes: list[run_pb2.Change] = field(default_factory=list)
    blobs: list[content_pb2.Blob] = field(default_factory=list)
    calls: list[journal_pb2.NewCall] = field(default_factory=list)
    children: list[ChildCall] = field(default_factory=list)
    local_calls: list[LocalCall] = field(default_factory=list)
