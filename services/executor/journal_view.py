"""Folds a run's events into what the loop decides from. Pure: same events, same view (P4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import TypeVar, overload

from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.common.v1 import content_pb2, run_pb2
from services.shared.run_budgets import Ledger, ledger_of

T = TypeVar("T")

ENDED = frozenset(
    {
        run_pb2.RUN_STATE_SUCCEEDED,
        run_pb2.RUN_STATE_FAILED,
        run_pb2.RUN_STATE_CANCELLED,
        run_pb2.RUN_STATE_EXPIRED,
        run_pb2.RUN_STATE_BUDGET_EXCEEDED,
    }
)


def to_datetime(stamp: Timestamp) -> datetime:
    """The same moment as an aware datetime."""
    return stamp.ToDatetime(tzinfo=UTC)


def to_timestamp(moment: datetime) -> Timestamp:
    """The same moment as a protobuf timestamp."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


@dataclass(slots=True)
class Question:
    """A stored question to a person and, once given, its answer."""

    approval: run_pb2.Approval
    decision: run_pb2.ApprovalDecided | None = None


@dataclass(slots=True)
class StepView:
    """One step as the journal has it."""

    number: int
    kind: run_pb2.StepKind
    tool: run_pb2.ToolIntent | None
    attempt: int
    # Invariant: 0 while nobody can have dispatched the current attempt; else the epoch that may have.
    dispatch_epoch: int
    state: run_pb2.StepState = run_pb2.STEP_STATE_STARTED
    not_before: datetime | None = None
    # The current attempt's failure; None again once another attempt has begun.
    failure: content_pb2.Failure | None = None
    # Attempts that failed on their own account; a lost executor is not the attempt's fault.
    counted_failures: int = 0
    question: Question | None = None
    # What the current attempt lacked.
    sign_in: run_pb2.SignInNeeded | None = None
    # It needs approval, and no attempt was announced since: nobody can have dispatched it.
    is_held: bool = False
    # Those that a person approved instead of the model's; empty for the model's.
    edited_arguments_json: str = ""
    # The run that the current attempt has started, and how it has ended.
    child_run_id: str = ""
    child_end: run_pb2.ChildEnded | None = None

    @property
    def is_open(self) -> bool:
        """Whether its one result is still to come."""
        return self.state in (run_pb2.STEP_STATE_STARTED, run_pb2.STEP_STATE_IN_DOUBT)

    @property
    def is_worker_call(self) -> bool:
        """Whether a user's worker executes it."""
        return self.tool is not None and self.tool.tool_kind == "worker"

    @property
    def is_child(self) -> bool:
        """Whether a run of another agent answers it."""
        return self.kind == run_pb2.STEP_KIND_CHILD


@dataclass(slots=True)
class Turn:
    """A model's answer and the results of its calls so far."""

    message: content_pb2.Message
    calls: Sequence[content_pb2.ToolCall]
    results: dict[str, content_pb2.Message] = field(default_factory=dict)

    @property
    def is_answered(self) -> bool:
        """Whether every call has its result."""
        return len(self.results) == len(self.calls)


class Joined(Sequence[T]):
    """Sequences one after the other, without a copy: what a step costs must not grow with what was said before."""

    def __init__(self, *parts: Sequence[T]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self._parts)

    def __reversed__(self) -> Iterator[T]:
        return chain.from_iterable(reversed(part) for part in reversed(self._parts))

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return list(self)[index]
        if index < 0:
            index += len(self)
        for part in self._parts:
            if 0 <= index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)


class RunView:
    """Everything the loop knows of a run.

    Events must come in order and whole: messages stored as blobs are put inline before (`StateClient.read_events`).
    """

    def __init__(self) -> None:
        self.last_seq = 0
        self.created: run_pb2.RunCreated | None = None
        self.state: run_pb2.RunState = run_pb2.RUN_STATE_QUEUED
        self.cancel: run_pb2.CancelRequested | None = None
        self.has_expired = False
        # Asked for and not withdrawn.
        self.pause: run_pb2.PauseRequested | None = None
        self.steps: dict[int, StepView] = {}
        self.open_steps: dict[int, StepView] = {}
        self.step_count = 0
        self.model_steps_succeeded = 0
        self.children_started = 0
        self.claimed_epoch = 0
        self.turn: Turn | None = None
        # What is left to spend; None in a run without a budget.
        self.ledger: Ledger | None = None
        self.questions: dict[str, StepView] = {}
        # Decisions that hold for all calls of a tool in this run, by tool.
        self.run_approvals: dict[str, str] = {}
        self._conversation: list[content_pb2.Message] = []
        self._steps_by_call: dict[str, int] = {}

    def has_ended(self) -> bool:
        """Whether the run is over."""
        return self.state in ENDED

    @property
    def is_pausing(self) -> bool:
        """Whether the run is to rest: nothing is begun any more. Its end goes first."""
        return self.pause is not None and not self.is_ending

    @property
    def is_ending(self) -> bool:
        """Whether the run is to end, whatever is open: it is being cancelled, or its time is over."""
        return self.cancel is not None or self.has_expired

    @property
    def input(self) -> content_pb2.Message:
        """What the run is asked to do."""
        return self._conversation[0]

    def input_text(self) -> str:
        """The text of the run's input."""
        return "\n".join(part.text for part in self.input.parts if part.WhichOneof("kind") == "text")

    def conversation(self) -> Sequence[content_pb2.Message]:
        """The run's own messages as a model is to see them.

        The results of a turn stand in the order of its calls, in whatever order they arrived.
        """
        if self.turn is None:
            return Joined(self._conversation)
        results = self.turn.results
        now = [self.turn.message, *(results[c.call_id] for c in self.turn.calls if c.call_id in results)]
        return Joined(self._conversation, now)

    @property
    def message_count(self) -> int:
        """How many messages the conversation has."""
        turn = self.turn
        if turn is None:
            return len(self._conversation)
        return len(self._conversation) + 1 + sum(call.call_id in turn.results for call in turn.calls)

    def arguments_of(self, step: StepView) -> str:
        """What a tool step of the current turn is called with: what the model wrote, unless a person edited it."""
        assert step.tool is not None
        return step.edited_arguments_json or self.call_of(step.tool.call_id).arguments_json

    def call_of(self, call_id: str) -> content_pb2.ToolCall:
        """The model's call that a step of the current turn answers."""
        assert self.turn is not None, "a tool step belongs to a turn"
        return next(call for call in self.turn.calls if call.call_id == call_id)

    def apply_events(self, events: Iterable[run_pb2.Event]) -> None:
        """Folds in the next events."""
        for event in events:
            if event.seq <= self.last_seq:
                continue
            assert event.seq == self.last_seq + 1, "events of a run are dense"
            for change in event.changes:
                self.apply(change, event.epoch)
            self.last_seq = event.seq

    def apply(self, change: run_pb2.Change, epoch: int) -> None:
        """Folds in one change, written under `epoch`."""
        kind = change.WhichOneof("kind")
        if kind == "run_created":
            self.created = change.run_created
            self._conversation.append(change.run_created.input.message)
            self.ledger = ledger_of(change.run_created)
        elif kind == "run_claimed":
            self.claimed_epoch = change.run_claimed.epoch
            self.state = run_pb2.RUN_STATE_RUNNING
        elif kind == "step_started":
            self._start_step(change.step_started, epoch)
        elif kind == "attempt_started":
            started = change.attempt_started
            step = self.steps[started.step]
            step.state = run_pb2.STEP_STATE_STARTED
            step.attempt = started.attempt
            step.dispatch_epoch = epoch
            step.failure = None
            step.sign_in = None
            # A question about the attempt before is answered by this one; it must not be answered again (P5).
            step.question = None
            step.is_held = False
            step.not_before = to_datetime(started.not_before) if started.HasField("not_before") else None
            step.child_run_id, step.child_end = started.child_run_id, None
            self.children_started += bool(started.child_run_id)
        elif kind == "attempt_failed":
            failed = change.attempt_failed
            step = self.steps[failed.step]
            if step.is_open and step.attempt == failed.attempt:
                step.failure = failed.failure
                step.sign_in = failed.sign_in if failed.HasField("sign_in") else None
                step.counted_failures += failed.failure.reason != "EXECUTOR_LOST"
        elif kind == "step_in_doubt":
            step = self.steps[change.step_in_doubt.step]
            step.state = run_pb2.STEP_STATE_IN_DOUBT
            step.failure = change.step_in_doubt.failure
        elif kind == "step_finished":
            self._finish_step(change.step_finished)
        elif kind == "child_ended":
            step = self.steps[change.child_ended.step]
            if step.is_open and step.child_run_id == change.child_ended.child_run_id:
                step.child_end = change.child_ended
        elif kind == "approval_requested":
            approval = change.approval_requested.approval
            step = self.steps[approval.step]
            step.question = Question(approval)
            self.questions[approval.approval_id] = step
            if approval.kind == run_pb2.APPROVAL_KIND_TOOL_CALL:
                step.is_held = True
                step.dispatch_epoch = 0
        elif kind == "approval_decided":
            asked = self.questions.get(change.approval_decided.approval_id)
            if asked is not None and asked.question is not None:
                asked.question.decision = change.approval_decided
                self._decide(asked, change.approval_decided)
        elif kind == "approval_closed":
            self.questions.pop(change.approval_closed.approval_id, None)
        elif kind == "cancel_requested":
            self.cancel = change.cancel_requested
        elif kind == "expiry_reached":
            self.has_expired = True
        elif kind == "pause_requested":
            self.pause = change.pause_requested
        elif kind == "resume_requested":
            self.pause = None
        elif kind == "run_state_changed":
            self.state = change.run_state_changed.state
            if self.state == run_pb2.RUN_STATE_PAUSED:
                # A driver pauses a run only when nothing of it runs there, so what it began itself was not dispatched.
                # What an earlier one had begun, that was lost, may have been: it stays as it is, and is looked into by
                # whoever goes on.
                for step in self.open_steps.values():
                    if step.dispatch_epoch == epoch:
                        step.dispatch_epoch = 0
            if self.state == run_pb2.RUN_STATE_WAITING:
                # A run is parked only when nothing of it runs in its executor, so no open attempt was dispatched by it.
                for step in self.open_steps.values():
                    step.dispatch_epoch = 0
        if self.ledger is not None:
            self.ledger.take(kind or "", change)

    def _decide(self, step: StepView, decision: run_pb2.ApprovalDecided) -> None:
        if step.tool is None or decision.verdict != run_pb2.APPROVAL_VERDICT_APPROVED:
            return
        if decision.edited_arguments_json:
            step.edited_arguments_json = decision.edited_arguments_json
            intent = run_pb2.ToolIntent()
            intent.CopyFrom(step.tool)
            intent.idempotency_key = decision.idempotency_key
            step.tool = intent
        if decision.scope in (run_pb2.APPROVAL_SCOPE_RUN, run_pb2.APPROVAL_SCOPE_SESSION):
            self.run_approvals[step.tool.tool] = decision.approval_id

    def _start_step(self, started: run_pb2.StepStarted, epoch: int) -> None:
        tool = started.tool if started.WhichOneof("intent") == "tool" else None
        step = StepView(started.step, started.kind, tool, attempt=1, dispatch_epoch=epoch)
        self.steps[step.number] = step
        self.open_steps[step.number] = step
        self.step_count = max(self.step_count, step.number)
        if tool is not None:
            self._steps_by_call[tool.call_id] = step.number
            if step.is_child:
                step.child_run_id = tool.child_run_id
                self.children_started += bool(tool.child_run_id)

    def _finish_step(self, finished: run_pb2.StepFinished) -> None:
        step = self.steps[finished.step]
        step.state = finished.state
        self.open_steps.pop(step.number, None)
        if step.kind == run_pb2.STEP_KIND_MODEL:
            if finished.state == run_pb2.STEP_STATE_SUCCEEDED:
                self.model_steps_succeeded += 1
                self._begin_turn(finished.message.message)
        elif self.turn is not None and step.tool is not None:
            self.turn.results[step.tool.call_id] = finished.message.message

    def _begin_turn(self, message: content_pb2.Message) -> None:
        if self.turn is not None:
            self._conversation.append(self.turn.message)
            self._conversation.extend(self.turn.results[call.call_id] for call in self.turn.calls)
        calls = [part.tool_call for part in message.parts if part.WhichOneof("kind") == "tool_call"]
        self.turn = Turn(message, calls)

    def has_step_for(self, call_id: str) -> bool:
        """Whether a call of the current turn has its step already."""
        return call_id in self._steps_by_call
