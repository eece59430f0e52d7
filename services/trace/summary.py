"""Folds a run's events, one after the other, into the one row that lists show. Pure: same events, same row.

The fold takes events strictly in order. What comes twice is passed over; what lies beyond a gap waits until the gap
is filled. So the row depends on the set of events that is stored, never on how they were cut into frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.common.v1.run_pb2 import (
    RUN_STATE_BUDGET_EXCEEDED,
    RUN_STATE_CANCELLED,
    RUN_STATE_EXPIRED,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RUN_STATE_RUNNING,
    RUN_STATE_SUCCEEDED,
    RUN_STATE_WAITING,
    STEP_KIND_MODEL,
    WAIT_REASON_UNSPECIFIED,
    Event,
    RunClaimed,
    RunCreated,
    RunStateChanged,
    StepFinished,
)

END_STATES: Final = frozenset(
    {RUN_STATE_SUCCEEDED, RUN_STATE_FAILED, RUN_STATE_CANCELLED, RUN_STATE_EXPIRED, RUN_STATE_BUDGET_EXCEEDED}
)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def to_datetime(stamp: Timestamp) -> datetime:
    """Returns the same moment, to the microsecond; much cheaper than protobuf's own conversion."""
    return _EPOCH + timedelta(stamp.seconds // 86_400, stamp.seconds % 86_400, stamp.nanos // 1_000)


def micros_between(start: datetime, end: datetime) -> int:
    """Returns whole microseconds, 0 when `end` is before `start`: the clocks of two databases may differ."""
    return max(0, (end - start) // _MICROSECOND)


def _wakes(event: Event) -> bool:
    # That a worker takes a call, or says something too late, gives a waiting run nothing to do.
    return any(change.WhichOneof("kind") not in _WAKES_NOBODY for change in event.changes)


_WAKES_NOBODY: Final = frozenset({"call_started", "late_result", "pause_requested", "resume_requested"})
# What makes a paused run ready; whatever else comes is stored and waits with it.
_ENDS_A_PAUSE: Final = frozenset({"resume_requested", "cancel_requested"})


@dataclass(slots=True)
class RunRecord:
    """What trace knows of a run without looking at its events. The fields are the columns of `tables.runs`."""

    run_id: str
    workspace_id: str
    session_id: str = ""
    agent: str = ""
    revision: str = ""
    user_id: str = ""
    previous_run_id: str = ""
    state: int = 0
    wait_reason: int = 0
    created_at: datetime | None = None
    ended_at: datetime | None = None
    queued_micros: int | None = None
    active_micros: int = 0
    waiting_micros: int = 0
    segment_epoch: int = 0
    segment_started_at: datetime | None = None
    segment_last_at: datetime | None = None
    waiting_since: datetime | None = None
    wake_at: datetime | None = None
    claims: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    failed_attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    reasoning_output_tokens: int = 0
    cost_usd_nanos: int = 0
    unpriced_calls: int = 0
    price_source: str = ""
    failure: bytes | None = None
    open_steps: dict[int, int] = field(default_factory=dict)
    last_seq: int = 0
    newest_seq: int = 0
    paused_micros: int = 0
    paused_since: datetime | None = None
    parent_run_id: str = ""
    parent_step: int = 0
    root_run_id: str = ""
    depth: int = 0

    @property
    def has_gap(self) -> bool:
        """Whether an event is missing before the newest one."""
        return self.newest_seq > self.last_seq

    @property
    def active_so_far_micros(self) -> int:
        """How long executors drove it, up to the newest event of the one that does."""
        if self.segment_started_at is None or self.segment_last_at is None:
            return self.active_micros
        return self.active_micros + micros_between(self.segment_started_at, self.segment_last_at)

    def advance(self, events: Mapping[int, Event]) -> None:
        """Takes from `events`, by their number, what follows without a gap."""
        if events:
            self.newest_seq = max(self.newest_seq, *events)
        while (event := events.get(self.last_seq + 1)) is not None:
            self._apply(event)
            self.last_seq += 1

    def _apply(self, event: Event) -> None:
        time = to_datetime(event.time)
        epoch = event.epoch
        if epoch and epoch == self.segment_epoch:
            self.segment_last_at = time
        elif self.state == RUN_STATE_WAITING and not epoch and _wakes(event):
            # Somebody outside did what the run waited for; state queued it in the same transaction.
            self._end_waiting(time)
            self.state = RUN_STATE_QUEUED
        elif self.state == RUN_STATE_PAUSED and any(c.WhichOneof("kind") in _ENDS_A_PAUSE for c in event.changes):
            self._end_pause(time)
            self.state = RUN_STATE_QUEUED
        for change in event.changes:
            match change.WhichOneof("kind"):
                case "step_started":
                    started = change.step_started
                    self.open_steps[started.step] = started.kind
                case "step_finished":
                    self._finish_step(change.step_finished)
                case "attempt_failed":
                    self.failed_attempts += 1
                case "run_claimed":
                    self._claim(change.run_claimed, time)
                case "run_state_changed":
                    self._change_state(change.run_state_changed, time, epoch)
                case "run_created":
                    self._create(change.run_created, time)

    def _create(self, created: RunCreated, time: datetime) -> None:
        self.session_id = created.session_id
        self.agent = created.agent
        self.revision = created.revision
        self.user_id = created.user_id
        self.previous_run_id = created.previous_run_id
        self.parent_run_id, self.parent_step = created.parent_run_id, created.parent_step
        self.root_run_id, self.depth = created.root_run_id, created.depth
        self.created_at = time
        self.state = RUN_STATE_QUEUED

    def _claim(self, claimed: RunClaimed, time: datetime) -> None:
        if self.queued_micros is None and self.created_at is not None:
            self.queued_micros = micros_between(self.created_at, time)
        self._end_waiting(time)
        self._end_pause(time)
        # A segment that is still open belongs to an executor that was lost: it lasted until its newest event.
        self.active_micros = self.active_so_far_micros
        self.segment_epoch = claimed.epoch
        self.segment_started_at = self.segment_last_at = time
        self.claims += 1
        self.state = RUN_STATE_RUNNING

    def _change_state(self, changed: RunStateChanged, time: datetime, epoch: int) -> None:
        if self.segment_started_at is not None:
            # Under the segment's own lease, or for somebody outside after its executor was lost.
            self.active_micros = self.active_so_far_micros
            self.segment_epoch = 0
            self.segment_started_at = self.segment_last_at = None
        self._end_waiting(time)
        self._end_pause(time)
        self.state = changed.state
        if changed.state == RUN_STATE_PAUSED:
            self.paused_since = time
        elif changed.state == RUN_STATE_WAITING:
            self.wait_reason = changed.wait_reason
            self.waiting_since = time
            self.wake_at = to_datetime(changed.wake_time) if changed.HasField("wake_time") else None
        elif changed.state in END_STATES:
            self.ended_at = time
            self.open_steps.clear()
        if changed.HasField("failure"):
            self.failure = changed.failure.SerializeToString()

    def _end_waiting(self, time: datetime) -> None:
        if self.waiting_since is not None:
            # A wait that ended by itself has no event of its own: it was over when it was due.
            end = time if self.wake_at is None else min(time, self.wake_at)
            self.waiting_micros += micros_between(self.waiting_since, end)
        self.wait_reason = WAIT_REASON_UNSPECIFIED
        self.waiting_since = self.wake_at = None

    def _end_pause(self, time: datetime) -> None:
        if self.paused_since is not None:
            self.paused_micros += micros_between(self.paused_since, time)
            self.paused_since = None

    def _finish_step(self, finished: StepFinished) -> None:
        kind = self.open_steps.pop(finished.step, None)
        if kind == STEP_KIND_MODEL:
            self.model_calls += 1
        elif kind is not None:
            self.tool_calls += 1
        if not finished.HasField("usage"):
            return
        usage = finished.usage
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cache_read_input_tokens += usage.cache_read_input_tokens
        self.cache_write_input_tokens += usage.cache_write_input_tokens
        self.reasoning_output_tokens += usage.reasoning_output_tokens
        if usage.HasField("cost_usd_nanos"):
            self.cost_usd_nanos += usage.cost_usd_nanos
            self.price_source = usage.price_source
        else:
            self.unpriced_calls += 1
