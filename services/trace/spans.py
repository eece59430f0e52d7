"""Spans of a run, made from its timeline. Pure, with ids computed from what they stand for.

The same step has the same span id whenever and wherever it is computed, so a reader that comes twice meets no doubles.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

from holdfast.api.common.v1.agent_pb2 import EffectClass
from holdfast.api.common.v1.content_pb2 import Failure
from holdfast.api.common.v1.run_pb2 import (
    APPROVAL_STATE_DECIDED,
    APPROVAL_STATE_EXPIRED,
    STEP_KIND_MODEL,
    STEP_KIND_WAIT,
    ApprovalScope,
    ApprovalState,
    ApprovalVerdict,
)
from services.trace import semconv
from services.trace.summary import RunRecord
from services.trace.timeline import (
    Attempt,
    Outcome,
    Question,
    Segment,
    SegmentEnd,
    Step,
    Timeline,
    lost_executor_failure,
)

AttributeValue = str | int | float | bool | list[str]


class SpanKind(IntEnum):
    """What a span stands for; the numbers are those of the contract."""

    RUN = 1
    SEGMENT = 2
    MODEL = 3
    TOOL = 4
    WAIT = 5
    ATTEMPT = 6
    APPROVAL = 7


# Part of every span id: never changed.
_ID_KINDS: Final[dict[SpanKind, bytes]] = {
    SpanKind.RUN: b"run",
    SpanKind.SEGMENT: b"segment",
    SpanKind.MODEL: b"model",
    SpanKind.TOOL: b"tool",
    SpanKind.WAIT: b"wait",
    SpanKind.ATTEMPT: b"attempt",
    SpanKind.APPROVAL: b"approval",
}


@dataclass(slots=True)
class Span:
    """One span; open while it has no end."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: SpanKind
    started_at: datetime
    ended_at: datetime | None
    outcome: Outcome
    step: int = 0
    attempt: int = 0
    failure: Failure | None = None
    attributes: dict[str, AttributeValue] = field(default_factory=dict)


def trace_id_of(run_id: str) -> str:
    """Returns the trace of a run: its id without the dashes."""
    return run_id.replace("-", "")


def span_id_of(run_id: str, kind: SpanKind, path: str = "", attempt: int = 0) -> str:
    """Returns the span id as 16 hex digits: a keyed hash of what the span stands for.

    Args:
        run_id: The run.
        kind: What it stands for.
        path: The step's number; of a segment, its number; empty for the run.
        attempt: The attempt; 0 for what is not one.
    """
    message = b"\0".join((_ID_KINDS[kind], path.encode(), str(attempt).encode()))
    digest = hashlib.blake2b(message, digest_size=8, key=uuid.UUID(run_id).bytes).digest()
    # All zeros is no valid span id.
    return digest.hex() if any(digest) else "0000000000000001"


class SpanBuilder:
    """Makes the spans of one run.

    Args:
        run: Its summary.
        timeline: What happened to it.
    """

    def __init__(self, run: RunRecord, timeline: Timeline) -> None:
        self._run = run
        self._timeline = timeline
        # A run belongs to the trace of the one at the top of its tree.
        self._trace_id = trace_id_of(run.root_run_id or run.run_id)
        self._root_id = span_id_of(run.run_id, SpanKind.RUN)

    def all(self) -> list[Span]:
        """Returns every span: each parent before its children, the children of one parent by their start."""
        root = self.root()
        if root is None:
            return []
        spans = [root]
        # Sorting keeps the order of equals: a segment comes before the steps that begin in the same event.
        children: list[tuple[Span, Step | None]] = [(self.segment(item), None) for item in self._timeline.segments]
        children.extend((self.step(item), item) for _, item in sorted(self._timeline.steps.items()))
        children.sort(key=lambda child: child[0].started_at)
        for span, step in children:
            spans.append(span)
            if step is not None:
                # An approval is asked for before the first attempt, and never again.
                spans.extend(self.approvals(step))
                spans.extend(self.attempts(step))
        return spans

    def root(self) -> Span | None:
        """Returns the run's own span."""
        timeline, run = self._timeline, self._run
        if timeline.created is None or timeline.started_at is None:
            return None
        attributes: dict[str, AttributeValue] = {
            semconv.OPERATION_NAME: semconv.OPERATION_INVOKE_AGENT,
            semconv.AGENT_NAME: run.agent,
            semconv.CONVERSATION_ID: run.session_id,
            semconv.RUN_ID: run.run_id,
            semconv.WORKSPACE_ID: run.workspace_id,
            semconv.AGENT_REVISION: run.revision,
            semconv.USAGE_INPUT_TOKENS: run.input_tokens,
            semconv.USAGE_OUTPUT_TOKENS: run.output_tokens,
        }
        if run.unpriced_calls == 0:
            attributes[semconv.COST_USD_NANOS] = run.cost_usd_nanos
        _put(attributes, semconv.ENDUSER_ID, run.user_id)
        _put(attributes, semconv.RUN_PREVIOUS_ID, run.previous_run_id)
        _put(attributes, semconv.RUN_PARENT_ID, run.parent_run_id)
        _put(attributes, semconv.RUN_ROOT_ID, run.root_run_id)
        _put(attributes, semconv.RUN_DEPTH, run.depth)
        _put(attributes, semconv.CALLER_TRACEPARENT, timeline.created.traceparent)
        if timeline.cancel is not None and timeline.cancel_requested_at is not None:
            attributes[semconv.CANCEL_REQUEST_TIME] = timeline.cancel_requested_at.isoformat()
            _put(attributes, semconv.CANCEL_REQUESTED_BY, timeline.cancel.requested_by)
            _put(attributes, semconv.CANCEL_REASON, timeline.cancel.reason[:200])
        if timeline.created.HasField("ttl"):
            attributes[semconv.RUN_TTL] = timeline.created.ttl.ToNanoseconds() / 1e9
        for line in timeline.ledger.lines() if timeline.ledger is not None else ():
            attributes[semconv.BUDGET_LIMIT + line.limit] = line.max
            attributes[semconv.BUDGET_USED + line.limit] = line.used
            attributes[semconv.BUDGET_RESERVED + line.limit] = line.reserved
            attributes[semconv.BUDGET_LEFT + line.limit] = line.left
        if timeline.pause is not None:
            attributes[semconv.PAUSE_COUNT] = timeline.pauses
            _put(attributes, semconv.PAUSE_REQUESTED_BY, timeline.pause.requested_by)
            _put(attributes, semconv.PAUSE_REASON, timeline.pause.reason[:200])
        return self._span(
            f"invoke_agent {run.agent}",
            SpanKind.RUN,
            span_id=self._root_id,
            # The step that waits for it, which is a call of a tool.
            parent_span_id=(
                span_id_of(run.parent_run_id, SpanKind.TOOL, str(run.parent_step)) if run.parent_run_id else ""
            ),
            started_at=timeline.started_at,
            ended_at=timeline.ended_at,
            outcome=timeline.outcome,
            failure=timeline.failure,
            attributes=attributes,
        )

    def segment(self, segment: Segment) -> Span:
        """Returns the span of one executor's time with the run."""
        attributes: dict[str, AttributeValue] = {
            semconv.SEGMENT_NUMBER: segment.number,
            semconv.SEGMENT_REASON: segment.reason.value,
            semconv.EXECUTOR_ID: segment.executor_id,
            semconv.LEASE_EPOCH: segment.epoch,
        }
        outcome, failure = Outcome.OPEN, None
        if segment.end is not None:
            attributes[semconv.SEGMENT_END] = segment.end.value
            outcome = Outcome.OK
        if segment.end is SegmentEnd.LOST:
            outcome, failure = Outcome.ERROR, lost_executor_failure(segment)
        return self._span(
            f"holdfast.segment {segment.number}",
            SpanKind.SEGMENT,
            span_id=span_id_of(self._run.run_id, SpanKind.SEGMENT, str(segment.number)),
            started_at=segment.started_at,
            ended_at=segment.ended_at,
            outcome=outcome,
            failure=failure,
            attributes=attributes,
        )

    def step(self, step: Step) -> Span:
        """Returns the span of a step: one, however many attempts it needed."""
        attributes: dict[str, AttributeValue] = {semconv.STEP_NUMBER: step.number}
        if step.kind == STEP_KIND_MODEL:
            kind, name = SpanKind.MODEL, self._describe_model(step, attributes)
        else:
            kind = SpanKind.WAIT if step.kind == STEP_KIND_WAIT else SpanKind.TOOL
            name = self._describe_tool(step, kind, attributes)
        if step.segment:
            attributes[semconv.SEGMENT_NUMBER] = step.segment
        if step.needed_attempts:
            attributes[semconv.ATTEMPT_COUNT] = len(step.attempts)
        elif step.attempts:
            self._describe_worker(step.attempts[min(step.attempts)], attributes)
        if step.is_in_doubt:
            attributes[semconv.STEP_IN_DOUBT] = True
        if step.late_results:
            attributes[semconv.LATE_RESULTS] = step.late_results
        for question in step.questions.values():
            attributes[semconv.APPROVAL_ID] = question.approval.approval_id
            attributes[semconv.APPROVAL_STATE] = _word(ApprovalState, question.approval.state, "APPROVAL_STATE_")
            if question.decision is not None:
                _put(attributes, semconv.APPROVAL_DECIDED_BY, question.decision.decided_by)
            if question.is_about_call:
                _describe_verdict(question, attributes)
        if step.tool is not None:
            _put(attributes, semconv.APPROVAL_STANDING_ID, step.tool.approval_id)
        if step.finished is not None and step.finished.HasField("duration"):
            attributes[semconv.STEP_DURATION] = step.finished.duration.ToNanoseconds() / 1e9
        return self._span(
            name,
            kind,
            span_id=self._step_span_id(step),
            started_at=step.started_at,
            ended_at=step.ended_at,
            outcome=step.outcome,
            step=step.number,
            failure=step.failure,
            attributes=attributes,
        )

    def attempts(self, step: Step) -> Iterator[Span]:
        """Yields the spans of a step's attempts by their start; nothing for a step that succeeded at once."""
        if not step.needed_attempts:
            return
        parent = self._step_span_id(step)
        for number, attempt in sorted(step.attempts.items(), key=lambda item: (item[1].started_at, item[0])):
            attributes: dict[str, AttributeValue] = {semconv.ATTEMPT_NUMBER: number}
            if attempt.segment:
                attributes[semconv.SEGMENT_NUMBER] = attempt.segment
            if attempt.not_before is not None:
                attributes[semconv.ATTEMPT_NOT_BEFORE] = attempt.not_before.isoformat()
            if attempt.is_in_doubt:
                attributes[semconv.STEP_IN_DOUBT] = True
            self._describe_worker(attempt, attributes)
            failure = attempt.failure
            if failure is None and step.finished is not None and step.finished.attempt == number:
                failure = step.failure
            yield self._span(
                f"holdfast.attempt {number}",
                SpanKind.ATTEMPT,
                span_id=span_id_of(self._run.run_id, SpanKind.ATTEMPT, str(step.number), number),
                parent_span_id=parent,
                started_at=attempt.started_at,
                ended_at=attempt.ended_at,
                outcome=attempt.outcome,
                step=step.number,
                attempt=number,
                failure=failure,
                attributes=attributes,
            )

    def approvals(self, step: Step) -> Iterator[Span]:
        """Yields the spans of the times in which a call waited for approval, apart from what it took itself."""
        for question in step.questions.values():
            if not question.is_about_call:
                continue
            approval = question.approval
            attributes: dict[str, AttributeValue] = {
                semconv.APPROVAL_ID: approval.approval_id,
                semconv.APPROVAL_STATE: _word(ApprovalState, approval.state, "APPROVAL_STATE_"),
            }
            if question.decision is not None:
                _put(attributes, semconv.APPROVAL_DECIDED_BY, question.decision.decided_by)
            _describe_verdict(question, attributes)
            yield self._span(
                f"holdfast.approval {approval.tool}",
                SpanKind.APPROVAL,
                span_id=span_id_of(self._run.run_id, SpanKind.APPROVAL, f"{step.number}/{approval.approval_id}"),
                parent_span_id=self._step_span_id(step),
                started_at=question.asked_at,
                ended_at=question.ended_at,
                outcome=_outcome_of(question),
                step=step.number,
                attributes=attributes,
            )

    def _describe_model(self, step: Step, attributes: dict[str, AttributeValue]) -> str:
        attributes[semconv.OPERATION_NAME] = semconv.OPERATION_CHAT
        attributes[semconv.CONVERSATION_ID] = self._run.session_id
        model = ""
        if step.model is not None:
            model = step.model.model
            _put(attributes, semconv.PROVIDER_NAME, step.model.provider)
            _put(attributes, semconv.REQUEST_MODEL, model)
            attributes[semconv.MESSAGE_COUNT] = step.model.message_count
            if step.model.HasField("reserved"):
                reserved = step.model.reserved
                attributes[semconv.RESERVED_INPUT_TOKENS] = reserved.input_tokens
                attributes[semconv.RESERVED_OUTPUT_TOKENS] = reserved.output_tokens
                _put(attributes, semconv.RESERVED_COST_USD_NANOS, reserved.cost_usd_nanos)
        finished = step.finished
        if finished is not None:
            _put(attributes, semconv.RESPONSE_MODEL, finished.response_model)
            _put(attributes, semconv.RESPONSE_ID, finished.response_id)
            if finished.finish_reason:
                attributes[semconv.RESPONSE_FINISH_REASONS] = [finished.finish_reason]
            if finished.HasField("time_to_first_token"):
                seconds = finished.time_to_first_token.ToNanoseconds() / 1e9
                attributes[semconv.RESPONSE_TIME_TO_FIRST_CHUNK] = seconds
            if finished.HasField("usage"):
                usage = finished.usage
                attributes[semconv.USAGE_INPUT_TOKENS] = usage.input_tokens
                attributes[semconv.USAGE_OUTPUT_TOKENS] = usage.output_tokens
                _put(attributes, semconv.USAGE_CACHE_READ_INPUT_TOKENS, usage.cache_read_input_tokens)
                _put(attributes, semconv.USAGE_CACHE_WRITE_INPUT_TOKENS, usage.cache_write_input_tokens)
                _put(attributes, semconv.USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_output_tokens)
                if usage.HasField("cost_usd_nanos"):
                    attributes[semconv.COST_USD_NANOS] = usage.cost_usd_nanos
                    _put(attributes, semconv.PRICE_SOURCE, usage.price_source)
        # A scripted model has no name of its own.
        return f"chat {model or (step.model.provider if step.model is not None else '')}".rstrip()

    def _describe_tool(self, step: Step, kind: SpanKind, attributes: dict[str, AttributeValue]) -> str:
        attributes[semconv.OPERATION_NAME] = semconv.OPERATION_EXECUTE_TOOL
        tool = step.tool
        if tool is None:
            return "holdfast.wait" if kind is SpanKind.WAIT else "execute_tool"
        attributes[semconv.TOOL_NAME] = tool.tool
        attributes[semconv.TOOL_TYPE] = (
            semconv.TOOL_TYPE_FUNCTION if tool.tool_kind == "worker" else semconv.TOOL_TYPE_EXTENSION
        )
        _put(attributes, semconv.TOOL_CALL_ID, tool.call_id)
        _put(attributes, semconv.TOOL_KIND, tool.tool_kind)
        edited = step.approval.idempotency_key if step.approval is not None else ""
        _put(attributes, semconv.IDEMPOTENCY_KEY, edited or tool.idempotency_key)
        if tool.effect:
            attributes[semconv.TOOL_EFFECT] = _word(EffectClass, tool.effect, "EFFECT_CLASS_")
        _put(attributes, semconv.CHILD_RUN_ID, self._timeline.children.get(step.number, ""))
        if tool.HasField("due_time"):
            attributes[semconv.WAIT_DUE_TIME] = tool.due_time.ToJsonString()
        return f"holdfast.wait {tool.tool}" if kind is SpanKind.WAIT else f"execute_tool {tool.tool}"

    def _describe_worker(self, attempt: Attempt, attributes: dict[str, AttributeValue]) -> None:
        _put(attributes, semconv.WORKER_ID, attempt.worker_id)
        if attempt.accepted_at is not None:
            attributes[semconv.ATTEMPT_ACCEPT_TIME] = attempt.accepted_at.isoformat()

    def _step_span_id(self, step: Step) -> str:
        kind = {STEP_KIND_MODEL: SpanKind.MODEL, STEP_KIND_WAIT: SpanKind.WAIT}.get(step.kind, SpanKind.TOOL)
        return span_id_of(self._run.run_id, kind, str(step.number))

    def _span(
        self,
        name: str,
        kind: SpanKind,
        *,
        span_id: str,
        started_at: datetime,
        ended_at: datetime | None,
        outcome: Outcome,
        attributes: dict[str, AttributeValue],
        parent_span_id: str | None = None,
        step: int = 0,
        attempt: int = 0,
        failure: Failure | None = None,
    ) -> Span:
        if failure is not None and failure.reason:
            attributes[semconv.ERROR_TYPE] = failure.reason
        return Span(
            trace_id=self._trace_id,
            span_id=span_id,
            parent_span_id=self._root_id if parent_span_id is None else parent_span_id,
            name=name,
            kind=kind,
            started_at=started_at,
            ended_at=ended_at,
            outcome=outcome,
            step=step,
            attempt=attempt,
            failure=failure,
            attributes=attributes,
        )


def _describe_verdict(question: Question, attributes: dict[str, AttributeValue]) -> None:
    decision = question.decision
    if question.ended_at is not None:
        attributes[semconv.APPROVAL_WAIT] = (question.ended_at - question.asked_at).total_seconds()
    if decision is None:
        return
    attributes[semconv.APPROVAL_VERDICT] = _word(ApprovalVerdict, decision.verdict, "APPROVAL_VERDICT_")
    if decision.scope:
        attributes[semconv.APPROVAL_SCOPE] = _word(ApprovalScope, decision.scope, "APPROVAL_SCOPE_")
    if decision.idempotency_key:
        attributes[semconv.APPROVAL_EDITED] = True


def _outcome_of(question: Question) -> Outcome:
    if question.approval.state == APPROVAL_STATE_DECIDED:
        return Outcome.OK
    if question.approval.state == APPROVAL_STATE_EXPIRED:
        return Outcome.ERROR
    # Still open, or void with its run.
    return Outcome.OPEN if question.ended_at is None else Outcome.CANCELLED


def _put(attributes: dict[str, AttributeValue], name: str, value: AttributeValue) -> None:
    if value:
        attributes[name] = value


def _word(enum: Any, value: int, prefix: str) -> str:
    # A state service of a newer release may know more words than this one.
    name: str = enum.Name(value) if value in enum.values() else str(value)
    return name.removeprefix(prefix).lower()
