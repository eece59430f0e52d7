"""Folds all events of one run into its segments, steps and attempts. Pure: same events, same timeline.

Times are those of events, never of the clock at the time of reading: what is read again tomorrow is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from holdfast.api.common.v1.content_pb2 import FAILURE_CLASS_CANCELLED, FAILURE_CLASS_RETRYABLE, Failure
from holdfast.api.common.v1.run_pb2 import (
    APPROVAL_KIND_TOOL_CALL,
    APPROVAL_STATE_DECIDED,
    APPROVAL_STATE_PENDING,
    APPROVAL_VERDICT_APPROVED,
    RUN_STATE_BUDGET_EXCEEDED,
    RUN_STATE_EXPIRED,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_SUCCEEDED,
    RUN_STATE_WAITING,
    STEP_STATE_CANCELLED,
    STEP_STATE_FAILED,
    STEP_STATE_SUCCEEDED,
    Approval,
    ApprovalClosed,
    ApprovalDecided,
    CancelRequested,
    Change,
    Event,
    ModelIntent,
    PauseRequested,
    RunClaimed,
    RunCreated,
    RunStateChanged,
    StepFinished,
    StepKind,
    StepStarted,
    StepState,
    ToolIntent,
)
from services.shared.run_budgets import Ledger, ledger_of
from services.trace.summary import END_STATES, to_datetime

EXECUTOR_LOST: Final = "EXECUTOR_LOST"
RUN_EXPIRED: Final = "RUN_EXPIRED"


class Outcome(StrEnum):
    """How something ended; OPEN while it did not."""

    OPEN = "OPEN"
    OK = "OK"
    ERROR = "ERROR"
    CANCELLED = "CANCELLED"


class SegmentReason(StrEnum):
    """Why a segment began."""

    START = "start"
    WAKE = "wake"
    TAKEOVER = "takeover"


class SegmentEnd(StrEnum):
    """Why a segment ended."""

    WAITING = "waiting"
    PAUSED = "paused"
    ENDED = "ended"
    LOST = "lost"


@dataclass(slots=True)
class Segment:
    """One executor's time with the run."""

    number: int
    reason: SegmentReason
    executor_id: str
    epoch: int
    started_at: datetime
    last_at: datetime
    ended_at: datetime | None = None
    end: SegmentEnd | None = None


@dataclass(slots=True)
class Attempt:
    """One try of a step."""

    number: int
    segment: int
    started_at: datetime
    not_before: datetime | None = None
    ended_at: datetime | None = None
    outcome: Outcome = Outcome.OPEN
    failure: Failure | None = None
    is_in_doubt: bool = False
    worker_id: str = ""
    accepted_at: datetime | None = None


@dataclass(slots=True)
class Question:
    """A question of a step, and the decision once there is one."""

    approval: Approval
    asked_at: datetime
    decision: ApprovalDecided | None = None
    # When it was decided, or became void.
    ended_at: datetime | None = None

    @property
    def is_about_call(self) -> bool:
        """Whether a call waits for it, which is not made before."""
        return self.approval.kind == APPROVAL_KIND_TOOL_CALL


@dataclass(slots=True)
class Step:
    """One step with all that happened to it."""

    number: int
    kind: StepKind
    segment: int
    started_at: datetime
    model: ModelIntent | None = None
    tool: ToolIntent | None = None
    attempts: dict[int, Attempt] = field(default_factory=dict)
    questions: dict[str, Question] = field(default_factory=dict)
    is_in_doubt: bool = False
    late_results: int = 0
    ended_at: datetime | None = None
    outcome: Outcome = Outcome.OPEN
    finished: StepFinished | None = None

    @property
    def needed_attempts(self) -> bool:
        """Whether its attempts are worth telling: several, one that was lost or failed, or one that was waited with."""
        if self.attempts and any(question.is_about_call for question in self.questions.values()):
            return True
        return len(self.attempts) > 1 or any(
            attempt.failure is not None or attempt.is_in_doubt for attempt in self.attempts.values()
        )

    @property
    def approval(self) -> ApprovalDecided | None:
        """The decision by which it was made, if it waited for one."""
        for question in self.questions.values():
            decision = question.decision
            if question.is_about_call and decision is not None and decision.verdict == APPROVAL_VERDICT_APPROVED:
                return decision
        return None

    @property
    def failure(self) -> Failure | None:
        """Why it did not succeed, or what is known of it while nobody knows."""
        if self.finished is not None:
            return self.finished.failure if self.finished.HasField("failure") else None
        if self.is_in_doubt and self.attempts:
            return self.attempts[max(self.attempts)].failure
        return None


_OUTCOMES: Final[dict[StepState, Outcome]] = {
    STEP_STATE_SUCCEEDED: Outcome.OK,
    STEP_STATE_FAILED: Outcome.ERROR,
    STEP_STATE_CANCELLED: Outcome.CANCELLED,
}

_SEGMENT_ENDS: Final = {RUN_STATE_WAITING: SegmentEnd.WAITING, RUN_STATE_PAUSED: SegmentEnd.PAUSED}


class Timeline:
    """Everything that happened to one run, as far as its events tell.

    Args:
        events: The run's events in order, from the first one.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self.created: RunCreated | None = None
        self.started_at: datetime | None = None
        self.ended_at: datetime | None = None
        self.outcome = Outcome.OPEN
        self.failure: Failure | None = None
        self.cancel: CancelRequested | None = None
        self.cancel_requested_at: datetime | None = None
        # The newest request, and how often the run was paused.
        self.pause: PauseRequested | None = None
        self.pauses = 0
        self.segments: list[Segment] = []
        self.steps: dict[int, Step] = {}
        # Of a run with a budget.
        self.ledger: Ledger | None = None
        # The runs that steps have started, the newest of each step.
        self.children: dict[int, str] = {}
        self._step_of_question: dict[str, int] = {}
        for event in events:
            self._apply(event)

    @property
    def _open_segment(self) -> Segment | None:
        return self.segments[-1] if self.segments and self.segments[-1].end is None else None

    def _apply(self, event: Event) -> None:
        time = to_datetime(event.time)
        segment = self._open_segment
        if segment is not None and segment.epoch == event.epoch:
            segment.last_at = time
        for change in event.changes:
            self._apply_change(change, time, event.epoch)

    def _apply_change(self, change: Change, time: datetime, epoch: int) -> None:
        kind = change.WhichOneof("kind")
        if self.ledger is not None:
            self.ledger.take(kind or "", change)
        match kind:
            case "run_created":
                self.created = change.run_created
                self.ledger = ledger_of(change.run_created)
                self.started_at = time
            case "run_claimed":
                self._claim(change.run_claimed, time)
            case "step_started":
                self._start_step(change.step_started, time)
                if change.step_started.tool.child_run_id:
                    self.children[change.step_started.step] = change.step_started.tool.child_run_id
            case "attempt_started":
                started = change.attempt_started
                if started.child_run_id:
                    self.children[started.step] = started.child_run_id
                for step in self._step(started.step):
                    attempt = self._attempt(step, started.attempt, time)
                    step.is_in_doubt = False
                    if started.HasField("not_before"):
                        attempt.not_before = to_datetime(started.not_before)
                        # The delay before it is not part of it.
                        attempt.started_at = max(time, attempt.not_before)
            case "attempt_failed":
                failed = change.attempt_failed
                for step in self._step(failed.step):
                    self._end_attempt(self._attempt(step, failed.attempt, time), time, Outcome.ERROR, failed.failure)
            case "step_in_doubt":
                doubt = change.step_in_doubt
                for step in self._step(doubt.step):
                    step.is_in_doubt = True
                    attempt = self._attempt(step, doubt.attempt, time)
                    attempt.is_in_doubt = True
                    self._end_attempt(attempt, time, Outcome.ERROR, doubt.failure)
            case "step_finished":
                self._finish_step(change.step_finished, time)
            case "call_started":
                call = change.call_started
                for step in self._step(call.step):
                    attempt = self._attempt(step, call.attempt, time)
                    attempt.worker_id = call.worker_id
                    attempt.accepted_at = time
            case "late_result":
                for step in self._step(change.late_result.step):
                    step.late_results += 1
            case "approval_requested":
                self._ask(change.approval_requested.approval, time)
            case "approval_decided":
                self._decide(change.approval_decided, time)
            case "approval_closed":
                self._close_question(change.approval_closed, time)
            case "cancel_requested":
                if self.cancel is None:
                    self.cancel = change.cancel_requested
                    self.cancel_requested_at = time
            case "pause_requested":
                self.pause = change.pause_requested
            case "run_state_changed":
                self._change_state(change.run_state_changed, time, epoch)

    # ------------------------------------------------------------------------------------------------- segments

    def _claim(self, claimed: RunClaimed, time: datetime) -> None:
        reason = SegmentReason.WAKE if self.segments else SegmentReason.START
        lost = self._open_segment
        if lost is not None:
            # Its executor said nothing more: the newest event is the last sign of it.
            lost.ended_at, lost.end = lost.last_at, SegmentEnd.LOST
            reason = SegmentReason.TAKEOVER
        self.segments.append(
            Segment(
                number=len(self.segments) + 1,
                reason=reason,
                executor_id=claimed.executor_id,
                epoch=claimed.epoch,
                started_at=time,
                last_at=time,
            )
        )

    def _change_state(self, changed: RunStateChanged, time: datetime, epoch: int) -> None:
        segment = self._open_segment
        if segment is not None and segment.epoch != epoch:
            # Done for somebody outside, to a run that nobody drove any more.
            segment.ended_at, segment.end = segment.last_at, SegmentEnd.LOST
        elif segment is not None:
            segment.ended_at = time
            segment.end = _SEGMENT_ENDS.get(changed.state, SegmentEnd.ENDED)
        self.pauses += changed.state == RUN_STATE_PAUSED
        if changed.state not in END_STATES:
            return
        self.ended_at = time
        if changed.state == RUN_STATE_SUCCEEDED:
            self.outcome = Outcome.OK
        elif changed.state in (RUN_STATE_FAILED, RUN_STATE_BUDGET_EXCEEDED):
            self.outcome = Outcome.ERROR
            self.failure = changed.failure if changed.HasField("failure") else None
        elif changed.state == RUN_STATE_EXPIRED:
            self.outcome = Outcome.ERROR
            self.failure = _expired_failure()
        else:
            self.outcome = Outcome.CANCELLED
        # A run that is over has nothing open.
        for step in self.steps.values():
            if step.outcome is Outcome.OPEN:
                self._end_step(step, time, Outcome.CANCELLED if changed.state == RUN_STATE_EXPIRED else self.outcome)

    # ---------------------------------------------------------------------------------------------------- steps

    def _start_step(self, started: StepStarted, time: datetime) -> None:
        step = Step(number=started.step, kind=started.kind, segment=self._segment_number(), started_at=time)
        match started.WhichOneof("intent"):
            case "model":
                step.model = started.model
            case "tool":
                step.tool = started.tool
        self.steps[step.number] = step
        self._attempt(step, 1, time)

    def _finish_step(self, finished: StepFinished, time: datetime) -> None:
        for step in self._step(finished.step):
            step.finished = finished
            outcome = _OUTCOMES.get(finished.state, Outcome.ERROR)
            deciding = step.attempts.get(finished.attempt)
            if deciding is not None and deciding.outcome is Outcome.OPEN:
                self._end_attempt(deciding, time, outcome, None)
            self._end_step(step, time, outcome)

    def _end_step(self, step: Step, time: datetime, outcome: Outcome) -> None:
        step.ended_at = time
        step.outcome = outcome
        step.is_in_doubt = False
        for question in step.questions.values():
            question.ended_at = question.ended_at or time
        for attempt in step.attempts.values():
            if attempt.outcome is Outcome.OPEN:
                # Overtaken: another attempt decided the step, or nothing did before the run was over.
                self._end_attempt(attempt, time, Outcome.CANCELLED, None)

    def _step(self, number: int) -> Iterator[Step]:
        # Nothing but LateResult follows a step's end, and every change follows its StepStarted.
        step = self.steps.get(number)
        if step is not None:
            yield step

    def _attempt(self, step: Step, number: int, time: datetime) -> Attempt:
        attempt = step.attempts.get(number)
        if attempt is None:
            attempt = step.attempts[number] = Attempt(number, self._segment_number(), time)
        return attempt

    def _end_attempt(self, attempt: Attempt, time: datetime, outcome: Outcome, failure: Failure | None) -> None:
        if attempt.outcome is not Outcome.OPEN:
            # Failed first and declared in doubt afterwards: one end, at the first.
            attempt.failure = attempt.failure or failure
            return
        attempt.ended_at = time
        # An attempt that was called off during its delay never began.
        attempt.started_at = min(attempt.started_at, time)
        attempt.outcome = outcome
        attempt.failure = failure

    def _segment_number(self) -> int:
        return self.segments[-1].number if self.segments else 0

    # ------------------------------------------------------------------------------------------------ questions

    def _ask(self, asked: Approval, time: datetime) -> None:
        approval = Approval()
        approval.CopyFrom(asked)
        # The journal leaves to its reader what the event itself says.
        approval.state = APPROVAL_STATE_PENDING
        if not approval.HasField("create_time"):
            approval.create_time.FromDatetime(time)
        self._step_of_question[approval.approval_id] = approval.step
        for step in self._step(approval.step):
            question = step.questions[approval.approval_id] = Question(approval, asked_at=time)
            if question.is_about_call:
                # It was begun and is not made: no attempt before one is announced.
                step.attempts.clear()

    def _decide(self, decided: ApprovalDecided, time: datetime) -> None:
        for question in self._question(decided.approval_id):
            question.decision = decided
            question.ended_at = time
            question.approval.state = APPROVAL_STATE_DECIDED
            question.approval.decide_time.FromDatetime(time)
            question.approval.decision.CopyFrom(decided)

    def _close_question(self, closed: ApprovalClosed, time: datetime) -> None:
        for question in self._question(closed.approval_id):
            question.ended_at = time
            question.approval.state = closed.state

    def _question(self, approval_id: str) -> Iterator[Question]:
        for step in self._step(self._step_of_question.get(approval_id, 0)):
            if approval_id in step.questions:
                yield step.questions[approval_id]


def _expired_failure() -> Failure:
    return Failure(
        reason=RUN_EXPIRED,
        message="the run did not end in its time",
        failure_class=FAILURE_CLASS_CANCELLED,
    )


def lost_executor_failure(segment: Segment) -> Failure:
    """Returns why a segment that nobody ended has an end."""
    return Failure(
        reason=EXECUTOR_LOST,
        message=f"the executor {segment.executor_id} was lost or gave the run back; another one took it over",
        failure_class=FAILURE_CLASS_RETRYABLE,
    )
