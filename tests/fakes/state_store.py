"""What state keeps and promises, as a protocol, and the simplest thing that keeps it: a model in memory.

The contract suite runs on the model and on the real store of each database, so that what tests assume of the model is
what the databases do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from holdfast.api.common.v1 import content_pb2, run_pb2
from holdfast.api.state.v1 import call_queue_service_pb2 as calls_pb2
from holdfast.api.state.v1 import journal_service_pb2 as journal_pb2
from holdfast.errors import Conflict, FailedPrecondition, HoldfastError, InvalidArgument, LeaseLost, NotFound, Reason

QUEUED, RUNNING, WAITING = run_pb2.RUN_STATE_QUEUED, run_pb2.RUN_STATE_RUNNING, run_pb2.RUN_STATE_WAITING
PAUSED = run_pb2.RUN_STATE_PAUSED
EXPIRED = run_pb2.RUN_STATE_EXPIRED
ENDS = (
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_CANCELLED,
    EXPIRED,
    run_pb2.RUN_STATE_BUDGET_EXCEEDED,
)

Operation = journal_pb2.Transition | journal_pb2.NewRun
Answer = int | run_pb2.Run | HoldfastError
"""The committed event's number, the new run, or why not."""


class StateStore(Protocol):
    """What is stored, whichever way."""

    async def commit(self, *operations: Operation) -> list[Answer]:
        """Commits operations that arrive together. Each is answered for itself; a bad one fails alone."""

    async def run(self, run_id: str, workspace_id: str = ...) -> run_pb2.Run:
        """One run with its output. Raises NotFound."""

    async def events(self, run_id: str, after_seq: int = 0) -> list[run_pb2.Event]:
        """A run's events after a number, in order."""

    async def feed(self, cursor: bytes = b"", limit: int = ...) -> tuple[list[tuple[str, int]], bytes]:
        """(run, seq) of all events after a cursor in commit-safe order, and the cursor after them."""

    async def blob(self, blob_hash: bytes, workspace_id: str = ...) -> bytes | None:
        """A stored body, if it is in the workspace."""

    async def renew(self, executor_id: str) -> None:
        """The executor is alive."""

    async def lose(self, executor_id: str) -> None:
        """The executor was last heard of longer ago than a lease lasts."""

    async def leave(self, executor_id: str) -> None:
        """The executor gives everything back."""

    async def give_back(self, executor_id: str, runs: Mapping[str, int]) -> None:
        """The executor gives these runs back, each under its epoch."""

    async def claim(self, executor_id: str, limit: int = ...) -> dict[str, int]:
        """Takes ready runs, oldest first, each under a new epoch: run to epoch."""

    async def sweep(self) -> None:
        """Does what time makes due."""

    async def cancel(self, run_id: str, workspace_id: str = ...) -> run_pb2.Run:
        """Asks to cancel. Raises NotFound, FailedPrecondition (RUN_ENDED)."""

    async def pause(self, run_id: str, workspace_id: str = ...) -> run_pb2.Run:
        """Asks to pause; at once where nobody drives it. Raises NotFound, FailedPrecondition (RUN_ENDED)."""

    async def resume(self, run_id: str, workspace_id: str = ...) -> run_pb2.Run:
        """Goes on with it, or forgets that it was to be paused. Raises NotFound, FailedPrecondition (RUN_ENDED)."""

    async def decide(self, decision: run_pb2.ApprovalDecided, workspace_id: str = ...) -> run_pb2.Approval:
        """The first decision counts. Raises NotFound, FailedPrecondition (APPROVAL_ALREADY_DECIDED)."""

    async def approval(self, approval_id: str, workspace_id: str = ...) -> run_pb2.Approval:
        """One question. Raises NotFound."""

    async def lease_calls(
        self, worker_id: str, tools: Sequence[str], limit: int = ..., offer: timedelta = ...
    ) -> list[calls_pb2.LeasedCall]:
        """Offers queued calls to a worker."""

    async def start_call(self, worker_id: str, lease: str) -> None:
        """The worker is about to execute. Raises LeaseLost (CALL_LEASE_LOST)."""

    async def renew_calls(self, worker_id: str, running: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """Signs of life; lost leases, and leases of runs that are being cancelled."""

    async def return_calls(self, worker_id: str, leases: Sequence[str]) -> None:
        """Gives offers back."""

    async def complete_call(self, worker_id: str, lease: str, change: run_pb2.Change, late: run_pb2.LateResult) -> int:
        """Stores the end of an attempt. Raises LeaseLost (CALL_LEASE_LOST), after `late` was stored."""


@dataclass
class _Run:
    run: run_pb2.Run
    workspace_id: str
    epoch: int = 0
    holder: str = ""
    behind: str = ""
    ready_order: int = 0
    wake_at: datetime | None = None
    expire_at: datetime | None = None
    is_expiring: bool = False
    unpriced: int = 0
    events: list[run_pb2.Event] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        return self.run.state in ENDS


@dataclass
class _Call:
    run: _Run
    new: journal_pb2.NewCall
    state: str = "QUEUED"
    lease: str = ""
    previous_lease: str = ""
    worker_id: str = ""
    offer_ends: datetime | None = None
    silent_at: datetime | None = None
    ends_at: datetime | None = None
    details: str = ""
    # The report that counts, or the first that did not: what, its event, and whether it came too late.
    reported: tuple[str, int, bool] | None = None


@dataclass
class _Question:
    approval: run_pb2.Approval
    run: _Run


class ModelStateStore:
    """The contract in memory, one operation after the other."""

    def __init__(self, workspace_id: str) -> None:
        self._workspace_id = workspace_id
        self._runs: dict[str, _Run] = {}
        self._sessions: dict[tuple[str, str], list[str]] = {}
        self._requests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self._blobs: dict[tuple[str, bytes], bytes] = {}
        self._calls: dict[tuple[str, int], _Call] = {}
        self._questions: dict[str, _Question] = {}
        self._executors: dict[str, bool] = {}
        self._feed: list[tuple[str, int]] = []
        self._counter = 0

    # --- writing ------------------------------------------------------------------------------------------------

    async def commit(self, *operations: Operation) -> list[Answer]:
        answers: list[Answer] = []
        for operation in operations:
            try:
                is_new = isinstance(operation, journal_pb2.NewRun)
                answers.append(self._create(operation) if is_new else self._apply(operation))  # type: ignore[arg-type]
            except HoldfastError as error:
                answers.append(error)
        return answers

    def _create(self, new: journal_pb2.NewRun) -> run_pb2.Run:
        key = (new.workspace_id, new.request_id)
        if new.request_id and key in self._requests:
            fingerprint, run_id = self._requests[key]
            if fingerprint != new.request_fingerprint:
                raise InvalidArgument("reused", reason=Reason.REQUEST_ID_REUSED)
            return self._copy(self._runs[run_id])
        if new.run_id in self._runs:
            return self._copy(self._runs[new.run_id])
        chain: list[str] = []
        if new.session_id:
            if (new.workspace_id, new.session_id) not in self._sessions:
                raise NotFound("no such session", reason=Reason.SESSION_NOT_FOUND)
            chain = self._sessions[new.workspace_id, new.session_id]
        previous = chain[-1] if chain else ""
        behind = previous if previous and not self._runs[previous].has_ended else ""
        if behind and new.reject_when_busy:
            raise FailedPrecondition("busy", reason=Reason.SESSION_BUSY)
        session_id = new.session_id or new.new_session_id
        run = run_pb2.Run(
            run_id=new.run_id,
            session_id=session_id,
            agent=new.agent,
            revision=new.revision,
            user_id=new.user_id,
            state=QUEUED,
            previous_run_id=previous,
        )
        run.usage.cost_usd_nanos = 0
        stored = _Run(run, new.workspace_id, behind=behind)
        if new.HasField("ttl"):
            stored.expire_at = datetime.now(UTC) + new.ttl.ToTimedelta()
        self._runs[new.run_id] = stored
        self._sessions.setdefault((new.workspace_id, session_id), []).append(new.run_id)
        self._make_ready(stored)
        self._store_blobs(new.workspace_id, new.blobs)
        created = run_pb2.RunCreated(
            session_id=session_id,
            agent=new.agent,
            revision=new.revision,
            user_id=new.user_id,
            input=new.input,
            previous_run_id=previous,
            ttl=new.ttl if new.HasField("ttl") else None,
        )
        self._write(stored, 0, [run_pb2.Change(run_created=created)])
        if new.request_id:
            self._requests[key] = (new.request_fingerprint, new.run_id)
        return self._copy(stored)

    def _apply(self, transition: journal_pb2.Transition) -> int:
        if transition.seq < 2 or transition.epoch < 1 or not transition.changes:
            raise InvalidArgument("malformed", reason=Reason.INVALID_FIELD)
        stored = self._find(transition.run_id, transition.workspace_id)
        if transition.seq <= len(stored.events):
            event = stored.events[transition.seq - 1]
            if event.epoch == transition.epoch and list(event.changes) == list(transition.changes):
                return transition.seq
        if stored.epoch != transition.epoch or stored.run.state != RUNNING:
            raise LeaseLost("lost")
        if transition.seq != len(stored.events) + 1:
            raise Conflict("conflict")
        self._store_blobs(transition.workspace_id, transition.blobs)
        self._write(stored, transition.epoch, transition.changes)
        for change in transition.changes:
            self._take_effect(stored, change)
        for new in transition.calls:
            key = (stored.run.run_id, new.step)
            before = self._calls.get(key)
            self._calls[key] = _Call(stored, new)
            if before is not None:
                self._calls[key].details = before.details
                self._calls[key].previous_lease = before.lease
        return transition.seq

    def _take_effect(self, stored: _Run, change: run_pb2.Change) -> None:
        match change.WhichOneof("kind"):
            case "step_started":
                stored.run.step_count = max(stored.run.step_count, change.step_started.step)
            case "step_finished":
                self._close_step(stored, change.step_finished.step)
                if change.step_finished.HasField("usage"):
                    self._add_usage(stored, change.step_finished.usage)
            case "attempt_failed":
                self._close_step(stored, change.attempt_failed.step)
            case "step_in_doubt":
                self._close_step(stored, change.step_in_doubt.step)
            case "approval_requested":
                approval = run_pb2.Approval()
                approval.CopyFrom(change.approval_requested.approval)
                approval.run_id = stored.run.run_id
                approval.state = run_pb2.APPROVAL_STATE_PENDING
                self._questions[approval.approval_id] = _Question(approval, stored)
            case "approval_closed":
                self._questions[change.approval_closed.approval_id].approval.state = change.approval_closed.state
            case "run_state_changed":
                changed = change.run_state_changed
                stored.run.state = changed.state
                stored.run.wait_reason = changed.wait_reason
                stored.holder = ""
                stored.wake_at = changed.wake_time.ToDatetime(tzinfo=UTC) if changed.HasField("wake_time") else None
                if changed.HasField("failure"):
                    stored.run.failure.CopyFrom(changed.failure)
                if stored.has_ended:
                    self._after_end(stored)

    def _add_usage(self, stored: _Run, usage: content_pb2.Usage) -> None:
        total = stored.run.usage
        total.input_tokens += usage.input_tokens
        total.output_tokens += usage.output_tokens
        stored.unpriced += not usage.HasField("cost_usd_nanos")
        cost = total.cost_usd_nanos + usage.cost_usd_nanos
        if stored.unpriced:
            total.ClearField("cost_usd_nanos")
        else:
            total.cost_usd_nanos = cost

    def _close_step(self, stored: _Run, step: int) -> None:
        call = self._calls.get((stored.run.run_id, step))
        if call is not None and call.state != "OVER":
            call.state = "OVER"

    def _after_end(self, stored: _Run) -> None:
        for question in self._questions.values():
            if question.run is stored and question.approval.state == run_pb2.APPROVAL_STATE_PENDING:
                question.approval.state = run_pb2.APPROVAL_STATE_CANCELLED
        for call in self._calls.values():
            if call.run is stored:
                call.state = "OVER"
        for other in self._runs.values():
            if other.behind == stored.run.run_id:
                other.behind = ""
                if other.run.state != PAUSED:
                    self._make_ready(other)

    def _write(self, stored: _Run, epoch: int, changes: Sequence[run_pb2.Change]) -> int:
        seq = len(stored.events) + 1
        stored.events.append(run_pb2.Event(run_id=stored.run.run_id, seq=seq, epoch=epoch, changes=changes))
        stored.run.last_seq = seq
        self._feed.append((stored.run.run_id, seq))
        return seq

    def _write_outside(self, stored: _Run, change: run_pb2.Change, *, wake: bool = True) -> int:
        seq = self._write(stored, 0, [change])
        if wake and stored.run.state == WAITING:
            self._make_ready(stored)
        return seq

    def _make_ready(self, stored: _Run) -> None:
        self._counter += 1
        stored.ready_order = self._counter
        stored.run.state = QUEUED
        stored.run.wait_reason = run_pb2.WAIT_REASON_UNSPECIFIED
        stored.holder = ""
        stored.wake_at = None

    def _store_blobs(self, workspace_id: str, blobs: Sequence[content_pb2.Blob]) -> None:
        for blob in blobs:
            self._blobs.setdefault((workspace_id, blob.hash), blob.data)

    # --- reading ------------------------------------------------------------------------------------------------

    def _find(self, run_id: str, workspace_id: str = "") -> _Run:
        stored = self._runs.get(run_id)
        if stored is None or stored.workspace_id != (workspace_id or self._workspace_id):
            raise NotFound("no such run", reason=Reason.RUN_NOT_FOUND)
        return stored

    @staticmethod
    def _copy(stored: _Run) -> run_pb2.Run:
        copy = run_pb2.Run()
        copy.CopyFrom(stored.run)
        return copy

    async def run(self, run_id: str, workspace_id: str = "") -> run_pb2.Run:
        stored = self._find(run_id, workspace_id)
        run = self._copy(stored)
        if run.state == run_pb2.RUN_STATE_SUCCEEDED:
            for event in stored.events:
                for change in event.changes:
                    if change.WhichOneof("kind") == "step_finished":
                        body = change.step_finished.message
                        if body.WhichOneof("body") == "blob":
                            data = self._blobs[stored.workspace_id, body.blob.hash]
                            run.output.ParseFromString(data)
                        else:
                            run.output.CopyFrom(body.message)
        return run

    async def events(self, run_id: str, after_seq: int = 0) -> list[run_pb2.Event]:
        return self._runs[run_id].events[after_seq:]

    async def feed(self, cursor: bytes = b"", limit: int = 500) -> tuple[list[tuple[str, int]], bytes]:
        begin = int(cursor or b"0")
        entries = self._feed[begin : begin + limit]
        return entries, str(begin + len(entries)).encode()

    async def blob(self, blob_hash: bytes, workspace_id: str = "") -> bytes | None:
        return self._blobs.get((workspace_id or self._workspace_id, blob_hash))

    # --- leases -------------------------------------------------------------------------------------------------

    async def renew(self, executor_id: str) -> None:
        self._executors[executor_id] = True

    async def lose(self, executor_id: str) -> None:
        self._executors[executor_id] = False

    async def leave(self, executor_id: str) -> None:
        self._return_runs(executor_id)
        self._executors.pop(executor_id, None)

    async def give_back(self, executor_id: str, runs: Mapping[str, int]) -> None:
        self._return_runs(executor_id, runs)

    def _return_runs(self, executor_id: str, only: Mapping[str, int] | None = None) -> None:
        for run_id, stored in self._runs.items():
            if stored.run.state == RUNNING and stored.holder == executor_id:
                if only is None or only.get(run_id) == stored.epoch:
                    self._make_ready(stored)

    async def claim(self, executor_id: str, limit: int = 100) -> dict[str, int]:
        ready = [stored for stored in self._runs.values() if stored.run.state == QUEUED and not stored.behind]
        claimed = {}
        for stored in sorted(ready, key=lambda item: item.ready_order)[:limit]:
            stored.run.state = RUNNING
            stored.holder = executor_id
            stored.epoch += 1
            claimed[stored.run.run_id] = stored.epoch
        return claimed

    async def sweep(self) -> None:
        now = datetime.now(UTC)
        for executor_id in [name for name, is_alive in self._executors.items() if not is_alive]:
            await self.leave(executor_id)
        for stored in self._runs.values():
            if stored.run.state == WAITING and stored.wake_at is not None and stored.wake_at <= now:
                self._make_ready(stored)
        for call in self._calls.values():
            self._sweep_call(call, now)
        for stored in sorted(self._runs.values(), key=lambda one: one.expire_at or now):
            if stored.expire_at is not None and stored.expire_at <= now and not stored.has_ended:
                self._expire(stored)

    def _expire(self, stored: _Run) -> None:
        # What follows from the journal (the ends of steps and calls) is the store's own; here it has no content.
        reached = run_pb2.Change(expiry_reached=run_pb2.ExpiryReached())
        ended = run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=EXPIRED))
        if stored.run.state == RUNNING:
            if not stored.is_expiring:
                stored.is_expiring = True
                self._write(stored, 0, [reached])
            return
        self._write(stored, 0, [ended] if stored.is_expiring else [reached, ended])
        stored.run.state, stored.run.wait_reason = EXPIRED, run_pb2.WAIT_REASON_UNSPECIFIED
        if stored.behind:
            self._leave_chain(stored)
            return
        for question in self._questions.values():
            if question.run is stored and question.approval.state == run_pb2.APPROVAL_STATE_PENDING:
                question.approval.state = run_pb2.APPROVAL_STATE_EXPIRED
        self._after_end(stored)

    def _sweep_call(self, call: _Call, now: datetime) -> None:
        if call.state == "OFFERED" and call.offer_ends is not None and call.offer_ends <= now:
            call.state, call.lease, call.worker_id = "QUEUED", "", ""
        failure: content_pb2.Failure | None = None
        if call.state == "QUEUED" and call.new.start_deadline.ToDatetime(tzinfo=UTC) <= now:
            failure = content_pb2.Failure(
                reason="WORKER_START_TIMEOUT", failure_class=content_pb2.FAILURE_CLASS_RETRYABLE
            )
        elif call.state == "STARTED" and call.ends_at is not None and call.ends_at <= now:
            failure = content_pb2.Failure(
                reason="CALL_TIMEOUT", failure_class=content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME
            )
        elif call.state == "STARTED" and call.silent_at is not None and call.silent_at <= now:
            failure = content_pb2.Failure(reason="WORKER_LOST", failure_class=content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME)
        if failure is not None:
            call.state = "OVER"
            failed = run_pb2.AttemptFailed(step=call.new.step, attempt=call.new.attempt, failure=failure)
            self._write_outside(call.run, run_pb2.Change(attempt_failed=failed))

    # --- from outside -------------------------------------------------------------------------------------------

    async def cancel(self, run_id: str, workspace_id: str = "") -> run_pb2.Run:
        stored = self._find(run_id, workspace_id)
        is_asked = stored.run.cancel_requested and not stored.has_ended and stored.run.state != PAUSED
        if stored.run.state == run_pb2.RUN_STATE_CANCELLED or is_asked:
            return self._copy(stored)
        if stored.has_ended:
            raise FailedPrecondition("ended", reason=Reason.RUN_ENDED)
        stored.run.cancel_requested = True
        asked = run_pb2.Change(cancel_requested=run_pb2.CancelRequested(requested_by="key-1", reason="enough"))
        if not stored.behind:
            self._write_outside(stored, asked)
            if stored.run.state == PAUSED:
                self._make_ready(stored)
            return self._copy(stored)
        ended = run_pb2.RunStateChanged(state=run_pb2.RUN_STATE_CANCELLED)
        self._write(stored, 0, [asked, run_pb2.Change(run_state_changed=ended)])
        stored.run.state = run_pb2.RUN_STATE_CANCELLED
        self._leave_chain(stored)
        return self._copy(stored)

    def _leave_chain(self, stored: _Run) -> None:
        run_id = stored.run.run_id
        chain = self._sessions[stored.workspace_id, stored.run.session_id]
        chain.remove(run_id)
        for other in self._runs.values():
            if other.behind == run_id:
                other.behind = stored.behind
                other.run.previous_run_id = stored.run.previous_run_id
        stored.behind = ""

    async def pause(self, run_id: str, workspace_id: str = "") -> run_pb2.Run:
        stored = self._find(run_id, workspace_id)
        run = stored.run
        if stored.has_ended:
            raise FailedPrecondition("ended", reason=Reason.RUN_ENDED)
        is_driven = run.state == RUNNING
        if run.state == PAUSED or run.cancel_requested or (is_driven and run.pause_requested):
            return self._copy(stored)
        asked = run_pb2.Change(pause_requested=run_pb2.PauseRequested(requested_by="key-1", reason="lunch"))
        changes = [] if run.pause_requested else [asked]
        run.pause_requested = True
        if not is_driven:
            changes.append(run_pb2.Change(run_state_changed=run_pb2.RunStateChanged(state=PAUSED)))
            run.state, run.wait_reason, stored.wake_at = PAUSED, run_pb2.WAIT_REASON_UNSPECIFIED, None
        self._write(stored, 0, changes)
        return self._copy(stored)

    async def resume(self, run_id: str, workspace_id: str = "") -> run_pb2.Run:
        stored = self._find(run_id, workspace_id)
        if stored.has_ended:
            raise FailedPrecondition("ended", reason=Reason.RUN_ENDED)
        if stored.run.pause_requested or stored.run.state == PAUSED:
            stored.run.pause_requested = False
            asked = run_pb2.ResumeRequested(requested_by="key-1", reason="back")
            self._write(stored, 0, [run_pb2.Change(resume_requested=asked)])
            if stored.run.state == PAUSED:
                self._make_ready(stored)
        return self._copy(stored)

    async def decide(self, decision: run_pb2.ApprovalDecided, workspace_id: str = "") -> run_pb2.Approval:
        approval = await self.approval(decision.approval_id, workspace_id)
        question = self._questions[decision.approval_id]
        if approval.state == run_pb2.APPROVAL_STATE_DECIDED:
            earlier = approval.decision
            if (earlier.answer_json, earlier.resolution) == (decision.answer_json, decision.resolution):
                return approval
        if approval.state != run_pb2.APPROVAL_STATE_PENDING:
            raise FailedPrecondition("decided", reason=Reason.APPROVAL_ALREADY_DECIDED)
        question.approval.state = run_pb2.APPROVAL_STATE_DECIDED
        question.approval.decision.CopyFrom(decision)
        question.approval.decision.step = approval.step
        decided = run_pb2.Change(approval_decided=question.approval.decision)
        self._write_outside(question.run, decided)
        return await self.approval(decision.approval_id, workspace_id)

    async def approval(self, approval_id: str, workspace_id: str = "") -> run_pb2.Approval:
        question = self._questions.get(approval_id)
        if question is None or question.run.workspace_id != (workspace_id or self._workspace_id):
            raise NotFound("no such question", reason=Reason.APPROVAL_NOT_FOUND)
        copy = run_pb2.Approval()
        copy.CopyFrom(question.approval)
        return copy

    # --- workers' calls -----------------------------------------------------------------------------------------

    async def lease_calls(
        self, worker_id: str, tools: Sequence[str], limit: int = 10, offer: timedelta = timedelta(seconds=60)
    ) -> list[calls_pb2.LeasedCall]:
        now = datetime.now(UTC)
        leased: list[calls_pb2.LeasedCall] = []
        for call in self._calls.values():
            if len(leased) < limit and call.state == "QUEUED" and call.new.tool in tools:
                if call.new.start_deadline.ToDatetime(tzinfo=UTC) <= now:
                    continue
                self._counter += 1
                call.state, call.worker_id = "OFFERED", worker_id
                call.lease = hashlib.sha256(str(self._counter).encode()).hexdigest()
                call.offer_ends = now + offer
                leased.append(
                    calls_pb2.LeasedCall(
                        lease=call.lease,
                        workspace_id=call.run.workspace_id,
                        run_id=call.run.run.run_id,
                        step=call.new.step,
                        attempt=call.new.attempt,
                        tool=call.new.tool,
                        arguments_json=call.new.arguments_json,
                        idempotency_key=call.new.idempotency_key,
                        last_heartbeat_details=call.details,
                        call_id=call.new.call_id,
                    )
                )
        return leased

    def _call_of(self, lease: str) -> _Call | None:
        return next((call for call in self._calls.values() if lease in (call.lease, call.previous_lease)), None)

    async def start_call(self, worker_id: str, lease: str) -> None:
        call = self._call_of(lease)
        if call is None or call.lease != lease or call.worker_id != worker_id:
            raise LeaseLost("lost", reason=Reason.CALL_LEASE_LOST)
        if call.state == "STARTED":
            return
        now = datetime.now(UTC)
        is_void = call.offer_ends is not None and call.offer_ends <= now
        if call.state != "OFFERED" or call.run.run.cancel_requested or is_void:
            raise LeaseLost("lost", reason=Reason.CALL_LEASE_LOST)
        call.state = "STARTED"
        call.silent_at = now + call.new.heartbeat_timeout.ToTimedelta()
        call.ends_at = now + call.new.timeout.ToTimedelta()
        started = run_pb2.CallStarted(step=call.new.step, attempt=call.new.attempt, worker_id=worker_id)
        self._write_outside(call.run, run_pb2.Change(call_started=started), wake=False)

    async def renew_calls(self, worker_id: str, running: Mapping[str, str]) -> tuple[list[str], list[str]]:
        lost, cancelled = [], []
        for lease, details in running.items():
            call = self._call_of(lease)
            if call is None or call.lease != lease or call.worker_id != worker_id or call.state == "OVER":
                lost.append(lease)
                continue
            if call.run.run.cancel_requested:
                cancelled.append(lease)
            if call.state == "STARTED":
                call.silent_at = datetime.now(UTC) + call.new.heartbeat_timeout.ToTimedelta()
                call.details = details or call.details
        return lost, cancelled

    async def return_calls(self, worker_id: str, leases: Sequence[str]) -> None:
        for call in self._calls.values():
            if call.state == "OFFERED" and call.lease in leases and call.worker_id == worker_id:
                call.state, call.lease, call.worker_id = "QUEUED", "", ""

    async def complete_call(self, worker_id: str, lease: str, change: run_pb2.Change, late: run_pb2.LateResult) -> int:
        call = self._call_of(lease)
        if call is None:
            raise LeaseLost("lost", reason=Reason.CALL_LEASE_LOST)
        report = change.SerializeToString(deterministic=True).hex()
        counts = call.lease == lease and call.state == "STARTED" and call.worker_id == worker_id
        if not counts and call.reported is not None and call.reported[0] == report:
            if call.reported[2]:
                raise LeaseLost("lost", reason=Reason.CALL_LEASE_LOST)
            return call.reported[1]
        if counts:
            call.state = "OVER"
            seq = self._write_outside(call.run, change)
            call.reported = (report, seq, False)
            return seq
        kept = run_pb2.LateResult()
        kept.CopyFrom(late)
        kept.step, kept.worker_id = call.new.step, worker_id
        kept.attempt = call.new.attempt - (call.lease != lease)
        seq = self._write_outside(call.run, run_pb2.Change(late_result=kept), wake=False)
        call.reported = call.reported or (report, seq, True)
        raise LeaseLost("lost", reason=Reason.CALL_LEASE_LOST)
