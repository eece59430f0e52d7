"""Messages as executors and clients send them to state; what a test does not care about has a default."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.ids import new_uuid7

WORKSPACE: Final = "0198c0de-0000-7000-8000-00000000aaaa"
OTHER_WORKSPACE: Final = "0198c0de-0000-7000-8000-00000000bbbb"

QUEUED: Final = run_pb2.RUN_STATE_QUEUED
RUNNING: Final = run_pb2.RUN_STATE_RUNNING
WAITING: Final = run_pb2.RUN_STATE_WAITING
SUCCEEDED: Final = run_pb2.RUN_STATE_SUCCEEDED
FAILED: Final = run_pb2.RUN_STATE_FAILED
CANCELLED: Final = run_pb2.RUN_STATE_CANCELLED
PAUSED: Final = run_pb2.RUN_STATE_PAUSED
EXPIRED: Final = run_pb2.RUN_STATE_EXPIRED
BUDGET_EXCEEDED: Final = run_pb2.RUN_STATE_BUDGET_EXCEEDED


def timestamp(moment: datetime) -> Timestamp:
    """A moment as a protobuf timestamp."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def duration(seconds: float) -> Duration:
    """A length of time as a protobuf duration."""
    result = Duration()
    result.FromNanoseconds(int(seconds * 1e9))
    return result


def user_says(text: str) -> content_pb2.StoredMessage:
    """A message of a person."""
    message = content_pb2.Message(role=content_pb2.ROLE_USER, parts=[content_pb2.Part(text=text)])
    return content_pb2.StoredMessage(message=message)


def model_says(text: str) -> content_pb2.StoredMessage:
    """A message of the model."""
    message = content_pb2.Message(role=content_pb2.ROLE_ASSISTANT, parts=[content_pb2.Part(text=text)])
    return content_pb2.StoredMessage(message=message)


def in_blob(stored: content_pb2.StoredMessage) -> tuple[content_pb2.StoredMessage, content_pb2.Blob]:
    """The same message stored under its hash."""
    data = stored.message.SerializeToString()
    blob = content_pb2.Blob(hash=hashlib.sha256(data).digest(), data=data)
    return content_pb2.StoredMessage(blob=content_pb2.BlobRef(hash=blob.hash, size=len(data))), blob


def new_run(
    *,
    session_id: str = "",
    request_id: str = "",
    fingerprint: bytes = b"",
    text: str = "hello",
    workspace_id: str = WORKSPACE,
    user_id: str = "ada",
    reject_when_busy: bool = False,
    run_id: str = "",
    ttl_seconds: float = 0,
) -> journal_pb2.NewRun:
    """A run to store; without a session it begins one of its own."""
    return journal_pb2.NewRun(
        workspace_id=workspace_id,
        run_id=run_id or new_uuid7(),
        session_id=session_id,
        new_session_id="" if session_id else new_uuid7(),
        agent="support",
        revision="ab" * 32,
        user_id=user_id,
        input=user_says(text),
        reject_when_busy=reject_when_busy,
        request_id=request_id,
        request_fingerprint=fingerprint,
        ttl=duration(ttl_seconds) if ttl_seconds else None,
    )


def transition(
    run_id: str,
    epoch: int,
    seq: int,
    *changes: run_pb2.Change,
    calls: Iterable[journal_pb2.NewCall] = (),
    blobs: Iterable[content_pb2.Blob] = (),
    workspace_id: str = WORKSPACE,
) -> journal_pb2.Transition:
    """One event of a driver; without changes it begins the step whose number is the event's."""
    return journal_pb2.Transition(
        workspace_id=workspace_id,
        run_id=run_id,
        epoch=epoch,
        seq=seq,
        changes=changes or [starts(seq)],
        calls=calls,
        blobs=blobs,
    )


def starts(step: int, *, tool: str = "") -> run_pb2.Change:
    """The intent of a step: of the model's, or of a tool's."""
    if tool:
        intent = run_pb2.ToolIntent(tool=tool, call_id=f"c{step}", idempotency_key=f"k{step}", tool_kind="worker")
        return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_TOOL, tool=intent))
    model = run_pb2.ModelIntent(provider="scripted", model="m", message_count=1)
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=run_pb2.STEP_KIND_MODEL, model=model))


def finishes(
    step: int, text: str = "done", *, usage: content_pb2.Usage | None = None, attempt: int = 1
) -> run_pb2.Change:
    """A step of the model that succeeded."""
    finished = run_pb2.StepFinished(
        step=step, attempt=attempt, state=run_pb2.STEP_STATE_SUCCEEDED, message=model_says(text), usage=usage
    )
    return run_pb2.Change(step_finished=finished)


def tool_result(step: int, content: str = "ok", *, attempt: int = 1) -> run_pb2.Change:
    """A tool's step that succeeded."""
    result = content_pb2.ToolResult(call_id=f"c{step}", tool="refund", content=content)
    message = content_pb2.Message(role=content_pb2.ROLE_TOOL, parts=[content_pb2.Part(tool_result=result)])
    finished = run_pb2.StepFinished(
        step=step,
        attempt=attempt,
        state=run_pb2.STEP_STATE_SUCCEEDED,
        message=content_pb2.StoredMessage(message=message),
    )
    return run_pb2.Change(step_finished=finished)


def ends(state: run_pb2.RunState = SUCCEEDED) -> run_pb2.Change:
    """The end of a run."""
    failure = content_pb2.Failure(reason="MAX_STEPS_EXCEEDED", message="Too many steps.") if state == FAILED else None
    return run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=state, failure=failure))


def waits(reason: run_pb2.WaitReason = run_pb2.WAIT_REASON_INPUT, *, wake_at: datetime | None = None) -> run_pb2.Change:
    """A run that waits for something outside."""
    changed = run_pb2.RunStateChanged(state=WAITING, wait_reason=reason)
    if wake_at is not None:
        changed.wake_time.FromDatetime(wake_at)
    return run_pb2.Change(run_state_changed=changed)


def becomes_paused() -> run_pb2.Change:
    """A run that rests until it is resumed."""
    return run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=PAUSED))


def asks(approval_id: str, step: int = 1) -> run_pb2.Change:
    """A question to a person."""
    approval = run_pb2.Approval(approval_id=approval_id, step=step, kind=run_pb2.APPROVAL_KIND_QUESTION, prompt="Sure?")
    return run_pb2.Change(approval_requested=run_pb2.ApprovalRequested(approval=approval))


def answers(approval_id: str, answer_json: str = '"yes"') -> run_pb2.ApprovalDecided:
    """A person's answer."""
    return run_pb2.ApprovalDecided(approval_id=approval_id, answer_json=answer_json, decided_by="key-1")


def call(
    step: int = 1,
    *,
    start_deadline: datetime,
    attempt: int = 1,
    tool: str = "refund",
    timeout: float = 600,
    heartbeat_timeout: float = 600,
) -> journal_pb2.NewCall:
    """A worker's call."""
    return journal_pb2.NewCall(
        step=step,
        attempt=attempt,
        tool=tool,
        arguments_json='{"order": 7}',
        idempotency_key=f"k{step}",
        start_deadline=timestamp(start_deadline),
        timeout=duration(timeout),
        heartbeat_timeout=duration(heartbeat_timeout),
        agent="support",
        user_id="ada",
        revision="ab" * 32,
        call_id=f"c{step}",
    )


def late(content: str = "too late") -> run_pb2.LateResult:
    """What is kept of a report that comes too late."""
    return run_pb2.LateResult(content=content)
