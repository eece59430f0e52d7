"""Journals of runs as state writes them, built by hand: each method is one event."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.state.v1.change_feed_service_pb2 import FeedEntry
from holdfast.ids import new_uuid7

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
WORKSPACE = "0198c0de-0000-7000-8000-00000000aaaa"
OTHER_WORKSPACE = "0198c0de-0000-7000-8000-00000000bbbb"
REVISION = "ab" * 32

MODEL, TOOL, WAIT = run_pb2.STEP_KIND_MODEL, run_pb2.STEP_KIND_TOOL, run_pb2.STEP_KIND_WAIT
SUCCEEDED, FAILED, CANCELLED = (
    run_pb2.STEP_STATE_SUCCEEDED,
    run_pb2.STEP_STATE_FAILED,
    run_pb2.STEP_STATE_CANCELLED,
)


def at(seconds: float) -> datetime:
    """The moment so many seconds after the beginning of all journals."""
    return START + timedelta(seconds=seconds)


def stamp(seconds: float) -> Timestamp:
    """The same as a protobuf timestamp."""
    value = Timestamp()
    value.FromDatetime(at(seconds))
    return value


def text(role: content_pb2.Role, words: str) -> content_pb2.Message:
    """A message of one text."""
    return content_pb2.Message(role=role, parts=[content_pb2.Part(text=words)])


def user(words: str) -> content_pb2.Message:
    """What a person says."""
    return text(content_pb2.ROLE_USER, words)


def answer(words: str) -> content_pb2.Message:
    """What a model says."""
    return text(content_pb2.ROLE_ASSISTANT, words)


def asks(*calls: tuple[str, str, Any]) -> content_pb2.Message:
    """A model's message that asks for tools: (call id, tool, arguments) each."""
    return content_pb2.Message(
        role=content_pb2.ROLE_ASSISTANT,
        parts=[
            content_pb2.Part(
                tool_call=content_pb2.ToolCall(call_id=call_id, tool=tool, arguments_json=json.dumps(arguments))
            )
            for call_id, tool, arguments in calls
        ],
    )


def result(call_id: str, tool: str, content: str, *, is_error: bool = False) -> content_pb2.Message:
    """The one result of a call."""
    return content_pb2.Message(
        role=content_pb2.ROLE_TOOL,
        parts=[
            content_pb2.Part(
                tool_result=content_pb2.ToolResult(call_id=call_id, tool=tool, content=content, is_error=is_error)
            )
        ],
    )


def failure(reason: str) -> content_pb2.Failure:
    """Why something failed."""
    return content_pb2.Failure(
        reason=reason, message=f"it was {reason}", failure_class=content_pb2.FAILURE_CLASS_RETRYABLE
    )


class Blobs:
    """Bodies under their hashes, as state keeps them."""

    def __init__(self) -> None:
        self.bodies: dict[bytes, bytes] = {}

    def put(self, body: bytes) -> content_pb2.BlobRef:
        """Keeps a body."""
        blob_hash = hashlib.sha256(body).digest()
        self.bodies[blob_hash] = body
        return content_pb2.BlobRef(hash=blob_hash, size=len(body))

    def message(self, message: content_pb2.Message) -> content_pb2.StoredMessage:
        """Keeps a message apart from its event."""
        return content_pb2.StoredMessage(blob=self.put(message.SerializeToString()))


def stored(message: content_pb2.Message | content_pb2.StoredMessage) -> content_pb2.StoredMessage:
    """A message inside its event, unless it is kept apart already."""
    if isinstance(message, content_pb2.StoredMessage):
        return message
    return content_pb2.StoredMessage(message=message)


class Journal:
    """One run's journal. Every event comes a second after the one before it, unless `pause` says otherwise."""

    def __init__(
        self,
        words: str = "where is my order?",
        *,
        workspace_id: str = WORKSPACE,
        session_id: str | None = None,
        agent: str = "support",
        user_id: str = "ada",
        previous: Journal | None = None,
        begin: float = 0.0,
        traceparent: str = "",
    ) -> None:
        self.workspace_id = workspace_id
        self.run_id = new_uuid7()
        self.session_id: str = session_id or (previous.session_id if previous is not None else new_uuid7())
        self.events: list[run_pb2.Event] = []
        self.epoch = 0
        self._seconds = begin - 1
        self._executors = itertools.count(1)
        self._write(
            0,
            run_pb2.Change(
                run_created=run_pb2.RunCreated(
                    session_id=self.session_id,
                    agent=agent,
                    revision=REVISION,
                    user_id=user_id,
                    input=stored(user(words)),
                    previous_run_id=previous.run_id if previous is not None else "",
                    traceparent=traceparent,
                )
            ),
        )

    @property
    def entries(self) -> list[FeedEntry]:
        """The events as the feed gives them."""
        return [FeedEntry(workspace_id=self.workspace_id, event=event) for event in self.events]

    @property
    def now(self) -> float:
        """When the newest event was written, in seconds after the beginning."""
        return self._seconds

    def _write(self, epoch: int, *changes: run_pb2.Change) -> Journal:
        self._seconds += 1
        self.events.append(
            run_pb2.Event(
                run_id=self.run_id,
                seq=len(self.events) + 1,
                time=stamp(self._seconds),
                epoch=epoch,
                changes=changes,
            )
        )
        return self

    def pause(self, seconds: float) -> Journal:
        """Lets time pass."""
        self._seconds += seconds
        return self

    def claim(self, executor_id: str = "") -> Journal:
        """An executor takes the run over."""
        self.epoch += 1
        name = executor_id or f"executor-{next(self._executors)}"
        claimed = run_pb2.RunClaimed(executor_id=name, epoch=self.epoch)
        return self._write(self.epoch, run_pb2.Change(run_claimed=claimed))

    def drive(self, *changes: run_pb2.Change) -> Journal:
        """The driver writes a transition."""
        return self._write(self.epoch, *changes)

    def outside(self, *changes: run_pb2.Change) -> Journal:
        """State writes for somebody outside."""
        return self._write(0, *changes)


def start_model(step: int, message_count: int, *, model: str = "gpt-5-mini") -> run_pb2.Change:
    """A model call is about to be made."""
    intent = run_pb2.ModelIntent(provider="openai", model=model, message_count=message_count)
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=MODEL, model=intent))


def start_tool(
    step: int, call_id: str, tool: str, *, tool_kind: str = "worker", kind: run_pb2.StepKind = TOOL
) -> run_pb2.Change:
    """A tool call is about to be made."""
    intent = run_pb2.ToolIntent(
        tool=tool,
        call_id=call_id,
        effect=agent_pb2.EFFECT_CLASS_IDEMPOTENT,
        idempotency_key=f"key-{call_id}",
        tool_kind=tool_kind,
    )
    return run_pb2.Change(step_started=run_pb2.StepStarted(step=step, kind=kind, tool=intent))


def finish_model(
    step: int,
    message: content_pb2.Message | content_pb2.StoredMessage | None,
    *,
    attempt: int = 1,
    state: run_pb2.StepState = SUCCEEDED,
    cost: int | None = 1_000,
    why: content_pb2.Failure | None = None,
) -> run_pb2.Change:
    """A model call is over."""
    finished = run_pb2.StepFinished(step=step, attempt=attempt, state=state, failure=why)
    if message is not None:
        finished.message.CopyFrom(stored(message))
        finished.finish_reason = "stop"
        finished.response_id = f"response-{step}"
        finished.response_model = "gpt-5-mini-2026"
        finished.usage.input_tokens = 100
        finished.usage.output_tokens = 10
        finished.usage.cache_read_input_tokens = 40
        finished.time_to_first_token.FromMilliseconds(250)
        if cost is not None:
            finished.usage.cost_usd_nanos = cost
            finished.usage.price_source = "genai-prices 0.2.3"
    return run_pb2.Change(step_finished=finished)


def finish_tool(
    step: int,
    message: content_pb2.Message | content_pb2.StoredMessage,
    *,
    attempt: int = 1,
    state: run_pb2.StepState = SUCCEEDED,
    why: content_pb2.Failure | None = None,
    output: content_pb2.BlobRef | None = None,
) -> run_pb2.Change:
    """A tool call is over."""
    return run_pb2.Change(
        step_finished=run_pb2.StepFinished(
            step=step, attempt=attempt, state=state, message=stored(message), failure=why, output=output
        )
    )


def attempt_failed(step: int, attempt: int, reason: str) -> run_pb2.Change:
    """An attempt failed or was lost."""
    return run_pb2.Change(attempt_failed=run_pb2.AttemptFailed(step=step, attempt=attempt, failure=failure(reason)))


def attempt_started(step: int, attempt: int, *, not_before: float | None = None) -> run_pb2.Change:
    """Another attempt is about to be made."""
    started = run_pb2.AttemptStarted(step=step, attempt=attempt)
    if not_before is not None:
        started.not_before.CopyFrom(stamp(not_before))
    return run_pb2.Change(attempt_started=started)


def waits(reason: run_pb2.WaitReason, *, wake: float | None = None) -> run_pb2.Change:
    """The run waits."""
    changed = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_WAITING, wait_reason=reason)
    if wake is not None:
        changed.wake_time.CopyFrom(stamp(wake))
    return run_pb2.Change(run_state_changed=changed)


def ends(state: run_pb2.RunState, why: content_pb2.Failure | None = None) -> run_pb2.Change:
    """The run is over."""
    return run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=state, failure=why))


def call_started(step: int, attempt: int, worker_id: str) -> run_pb2.Change:
    """A worker accepted a call."""
    return run_pb2.Change(call_started=run_pb2.CallStarted(step=step, attempt=attempt, worker_id=worker_id))


def question(step: int, approval_id: str, prompt: str = "which one?") -> run_pb2.Change:
    """A question to a person was stored."""
    approval = run_pb2.Approval(approval_id=approval_id, step=step, kind=run_pb2.APPROVAL_KIND_QUESTION, prompt=prompt)
    return run_pb2.Change(approval_requested=run_pb2.ApprovalRequested(approval=approval))


def decision(step: int, approval_id: str, answer_json: str = '"the red one"') -> run_pb2.Change:
    """A person answered."""
    decided = run_pb2.ApprovalDecided(
        approval_id=approval_id, step=step, answer_json=answer_json, decided_by="key-of-ada"
    )
    return run_pb2.Change(approval_decided=decided)


def cancel_request(by: str = "key-of-ada") -> run_pb2.Change:
    """Somebody asked to cancel the run."""
    return run_pb2.Change(cancel_requested=run_pb2.CancelRequested(requested_by=by, reason="changed my mind"))


def pause_request(by: str = "key-of-ada") -> run_pb2.Change:
    """Somebody asks to pause the run."""
    return run_pb2.Change(pause_requested=run_pb2.PauseRequested(requested_by=by, reason="lunch"))


def resume_request(by: str = "key-of-ada") -> run_pb2.Change:
    """Somebody asks to go on with it."""
    return run_pb2.Change(resume_requested=run_pb2.ResumeRequested(requested_by=by))


def paused_run(**options: Any) -> Journal:
    """Paused by its driver for 100 s, then while it waits, then expired."""
    journal = Journal(**options).claim().drive(start_model(1, 1))
    journal.outside(pause_request())
    journal.drive(finish_model(1, asks(("a", "ask_user", {}))), ends(run_pb2.RUN_STATE_PAUSED))
    journal.pause(99).outside(resume_request())
    journal.claim().drive(start_tool(2, "a", "ask_user", kind=WAIT), question(2, "q1"))
    journal.drive(waits(run_pb2.WAIT_REASON_INPUT))
    journal.pause(9).outside(pause_request("key-of-bob"), ends(run_pb2.RUN_STATE_PAUSED))
    journal.pause(4).outside(decision(2, "q1"))
    expired = run_pb2.Change(expiry_reached=run_pb2.ExpiryReached())
    finished = finish_tool(2, result("a", "ask_user", "too late", is_error=True), state=CANCELLED)
    return journal.pause(4).outside(expired, finished, ends(run_pb2.RUN_STATE_EXPIRED))


def simple_run(**options: Any) -> Journal:
    """Claimed, one model call, done."""
    journal = Journal(**options)
    journal.claim()
    journal.drive(start_model(1, 1))
    journal.drive(finish_model(1, answer("it is on its way")), ends(run_pb2.RUN_STATE_SUCCEEDED))
    return journal


def parallel_run(**options: Any) -> Journal:
    """Two turns with calls in parallel, whose results arrive in the other order. 8 messages in all."""
    journal = Journal(**options)
    journal.claim()
    journal.drive(start_model(1, 1))
    journal.drive(
        finish_model(1, asks(("a", "find_order", {"id": 7}), ("b", "find_user", {"name": "ada"}))),
        start_tool(2, "a", "find_order"),
        start_tool(3, "b", "find_user"),
    )
    journal.outside(call_started(3, 1, "worker-1"))
    journal.outside(call_started(2, 1, "worker-2"))
    journal.outside(finish_tool(3, result("b", "find_user", "ada")))
    journal.outside(finish_tool(2, result("a", "find_order", "order 7")))
    journal.drive(start_model(4, 4))
    journal.drive(
        finish_model(4, asks(("c", "send_mail", {}), ("d", "log", {}))),
        start_tool(5, "c", "send_mail", tool_kind="http"),
        start_tool(6, "d", "log", tool_kind="builtin"),
    )
    journal.drive(finish_tool(6, result("d", "log", "logged")))
    journal.drive(finish_tool(5, result("c", "send_mail", "sent")), start_model(7, 7))
    journal.drive(finish_model(7, answer("done")), ends(run_pb2.RUN_STATE_SUCCEEDED))
    return journal


def troubled_run(**options: Any) -> Journal:
    """A lost executor, a retry with a delay, a call in doubt, a question, and a failure at the end."""
    journal = Journal(**options)
    journal.claim("executor-1").drive(start_model(1, 1))
    journal.pause(5).claim("executor-2")
    journal.drive(attempt_failed(1, 1, "EXECUTOR_LOST"), attempt_started(1, 2))
    journal.drive(attempt_failed(1, 2, "MODEL_OVERLOADED"))
    journal.drive(attempt_started(1, 3, not_before=journal.now + 3))
    journal.pause(4)
    journal.drive(finish_model(1, asks(("a", "refund", {"id": 7})), attempt=3), start_tool(2, "a", "refund"))
    journal.outside(call_started(2, 1, "worker-1"))
    journal.outside(attempt_failed(2, 1, "WORKER_LOST"))
    doubt = run_pb2.StepInDoubt(step=2, attempt=1, failure=failure("WORKER_LOST"))
    approval_id = new_uuid7()
    journal.drive(run_pb2.Change(step_in_doubt=doubt), question(2, approval_id, "did it happen?"))
    journal.drive(waits(run_pb2.WAIT_REASON_IN_DOUBT))
    journal.pause(60).outside(decision(2, approval_id))
    journal.claim("executor-2")
    journal.drive(attempt_started(2, 2))
    journal.outside(call_started(2, 2, "worker-2"))
    journal.outside(
        finish_tool(2, result("a", "refund", "no", is_error=True), attempt=2, state=FAILED, why=failure("TOOL_FAILED"))
    )
    journal.drive(start_model(3, 3))
    journal.drive(
        finish_model(3, None, state=FAILED, why=failure("MODEL_REFUSED")),
        ends(run_pb2.RUN_STATE_FAILED, failure("MODEL_REFUSED")),
    )
    late = run_pb2.LateResult(step=2, attempt=1, worker_id="worker-1", content="done after all")
    journal.outside(run_pb2.Change(late_result=late))
    return journal


def call_question(step: int, approval_id: str, tool: str = "refund") -> run_pb2.Change:
    """A call waits for approval."""
    approval = run_pb2.Approval(
        approval_id=approval_id,
        step=step,
        kind=run_pb2.APPROVAL_KIND_TOOL_CALL,
        prompt="May refund be called?",
        tool=tool,
        arguments_json='{"id":7}',
        arguments_sha256="a" * 64,
    )
    return run_pb2.Change(approval_requested=run_pb2.ApprovalRequested(approval=approval))


def verdict(step: int, approval_id: str, *, approved: bool = True, **fields: Any) -> run_pb2.Change:
    """A person approved or rejected a call."""
    decided = run_pb2.ApprovalDecided(
        approval_id=approval_id,
        step=step,
        verdict=run_pb2.APPROVAL_VERDICT_APPROVED if approved else run_pb2.APPROVAL_VERDICT_REJECTED,
        decided_by="key-of-ada",
        arguments_sha256="a" * 64,
        comment="a private remark",
        **fields,
    )
    return run_pb2.Change(approval_decided=decided)


def approved_run(**options: Any) -> Journal:
    """Three calls that waited for approval: one approved with other arguments, one rejected, one that nobody decided
    about; then one that needed no approval any more."""
    journal = Journal(**options)
    approval_ids = [new_uuid7() for _ in range(3)]
    journal.claim().drive(start_model(1, 1))
    calls = [(call_id, "refund", {"id": 7}) for call_id in "abc"]
    asked: list[run_pb2.Change] = []
    for step, (call_id, approval_id) in enumerate(zip("abc", approval_ids, strict=True), 2):
        asked += [start_tool(step, call_id, "refund"), call_question(step, approval_id)]
    journal.drive(finish_model(1, asks(*calls)), *asked)
    journal.drive(waits(run_pb2.WAIT_REASON_APPROVAL))
    edited: dict[str, Any] = {"edited_arguments_json": '{"id":8}', "idempotency_key": "another key"}
    journal.pause(3_600).outside(verdict(2, approval_ids[0], scope=run_pb2.APPROVAL_SCOPE_ONCE, **edited))
    journal.claim().drive(attempt_started(2, 1))
    journal.pause(5).outside(finish_tool(2, result("a", "refund", "done")))
    journal.outside(verdict(3, approval_ids[1], approved=False, reason="too much"))
    journal.drive(
        finish_tool(3, result("b", "refund", "no", is_error=True), state=FAILED, why=failure("APPROVAL_REJECTED"))
    )
    journal.pause(60)
    closed = run_pb2.ApprovalClosed(approval_id=approval_ids[2], state=run_pb2.APPROVAL_STATE_EXPIRED)
    journal.drive(
        run_pb2.Change(approval_closed=closed),
        finish_tool(4, result("c", "refund", "no", is_error=True), state=FAILED, why=failure("APPROVAL_EXPIRED")),
        start_model(5, 5),
    )
    begun = start_tool(6, "d", "refund")
    begun.step_started.tool.approval_id = approval_ids[0]
    journal.drive(finish_model(5, asks(("d", "refund", {"id": 9}))), begun)
    journal.outside(finish_tool(6, result("d", "refund", "done")))
    journal.drive(start_model(7, 7))
    journal.drive(finish_model(7, answer("done")), ends(run_pb2.RUN_STATE_SUCCEEDED))
    return journal


def cancelled_run(**options: Any) -> Journal:
    """Cancelled while a timer and a worker's call were open."""
    journal = Journal(**options)
    journal.claim()
    journal.drive(start_model(1, 1))
    journal.drive(
        finish_model(1, asks(("a", "sleep_until", {}), ("b", "fetch", {}))),
        start_tool(2, "a", "sleep_until", tool_kind="builtin", kind=WAIT),
        start_tool(3, "b", "fetch"),
        waits(run_pb2.WAIT_REASON_TOOL, wake=1_000),
    )
    journal.pause(10).outside(cancel_request())
    journal.claim()
    journal.drive(
        finish_tool(2, result("a", "sleep_until", "cancelled", is_error=True), state=CANCELLED),
        finish_tool(3, result("b", "fetch", "cancelled", is_error=True), state=CANCELLED),
        ends(run_pb2.RUN_STATE_CANCELLED),
    )
    return journal


def timer_run(**options: Any) -> Journal:
    """Waits for a timer, is claimed late, and is still at work."""
    journal = Journal(**options)
    journal.claim()
    journal.drive(start_model(1, 1))
    journal.drive(
        finish_model(1, asks(("a", "sleep_until", {})), cost=None),
        start_tool(2, "a", "sleep_until", tool_kind="builtin", kind=WAIT),
        waits(run_pb2.WAIT_REASON_TIMER, wake=journal.now + 11),
    )
    journal.pause(13).claim()
    journal.drive(finish_tool(2, result("a", "sleep_until", "slept")), start_model(3, 3))
    return journal


def in_feed_order(journals: Sequence[Journal]) -> list[FeedEntry]:
    """All events by their time, as the feed would give them; each run's in their order."""
    return sorted(
        (entry for journal in journals for entry in journal.entries),
        key=lambda entry: (entry.event.time.ToNanoseconds(), entry.event.run_id, entry.event.seq),
    )
