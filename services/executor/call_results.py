"""What workers report becomes part of the journal: checked, capped, classified, and stored once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from holdfast.api.common.v1 import agent_pb2, content_pb2, run_pb2
from holdfast.api.executor.v1 import tool_worker_service_pb2 as worker_pb2
from holdfast.api.state.v1 import call_queue_service_pb2 as queue_pb2
from holdfast.errors import HoldfastError, InvalidArgument, LeaseLost, Reason
from services.executor.call_approvals import edited_note
from services.executor.call_credentials import CallCredentials, check_call, tool_of
from services.executor.revisions import RevisionCache
from services.executor.state_stubs import StateStubs
from services.executor.tools.output import RESULT_LIMIT_BYTES, parse_result, settle_result, shorten, without_secrets
from services.executor.tools.schema import ResultRefused
from services.shared.channels import calling
from services.shared.scrubber import PROCESS

TOOL_FAILED: Final = "TOOL_FAILED"
RESULT_TOO_LARGE: Final = "RESULT_TOO_LARGE"

LATE_CONTENT_BYTES: Final = 4 * 1024
_ERROR_MESSAGE_BYTES: Final = 4 * 1024
_DEADLINE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Outcome:
    change: run_pb2.Change
    blobs: Sequence[content_pb2.Blob] = ()
    refusal: HoldfastError | None = None
    """What the worker is told although its report is stored."""


class CallResults:
    """Stores the ends of workers' calls.

    Args:
        state: The state service.
        revisions: Definitions, for the tools' schemas and caps.
        credentials: Says what a call lacks whose worker reports that it lacks a sign-in.
    """

    def __init__(self, state: StateStubs, revisions: RevisionCache, credentials: CallCredentials) -> None:
        self._state = state
        self._revisions = revisions
        self._credentials = credentials

    async def store(self, workspace_id: str, request: worker_pb2.CompleteCallRequest) -> None:
        """Stores what a worker reports about a call.

        A result that is no JSON or too large is stored as the tool's failure: the tool has run, and a call that was
        only refused here would stay open until its worker dies.

        Args:
            workspace_id: The workspace of the worker's key.
            request: The report.

        Raises:
            LeaseLost: CALL_LEASE_LOST: the call is no longer this worker's; state has kept the result as late.
            InvalidArgument: The report names no call or no outcome; or its result was too large (MESSAGE_TOO_LARGE).
        """
        _check(request)
        with calling("state"):
            response = await self._state.calls.GetCall(
                queue_pb2.GetCallRequest(workspace_id=workspace_id, lease=request.lease)
            )
        call = response.call
        if call.workspace_id != workspace_id:
            raise LeaseLost("the call is not this worker's", reason=Reason.CALL_LEASE_LOST)
        tool = await tool_of(self._revisions, workspace_id, call)
        outcome = await self._without_sign_in(call, tool, request) or _outcome_of(call, tool, request)
        with calling("state"):
            await self._state.calls.CompleteCall(
                queue_pb2.CompleteCallRequest(
                    workspace_id=workspace_id,
                    worker_id=request.worker_id,
                    lease=request.lease,
                    change=outcome.change,
                    blobs=outcome.blobs,
                    late=_late(call, request),
                ),
                timeout=_DEADLINE_SECONDS,
            )
        if outcome.refusal is not None:
            raise outcome.refusal

    async def _without_sign_in(
        self, call: queue_pb2.LeasedCall, tool: agent_pb2.ToolSpec, request: worker_pb2.CompleteCallRequest
    ) -> _Outcome | None:
        """What is stored of a call that had no effect for want of a sign-in; None for any other report."""
        error = request.error
        # A tool that cannot know whether it had its effect must not be called again for a sign-in.
        if not error.needs_sign_in or error.is_outcome_unknown or not tool.HasField("auth"):
            return None
        # Auth says what is missing, not the worker: it ends in a link that a person is asked to follow.
        missing = await self._credentials.why_missing(call, tool)
        if missing is None:
            failure = _failure_of(error)
            failure.failure_class = content_pb2.FAILURE_CLASS_RETRYABLE
            return _Outcome(_attempt_failed(call, failure))
        return _Outcome(_attempt_failed(call, missing.failure, missing.sign_in))


def _check(request: worker_pb2.CompleteCallRequest) -> None:
    check_call(request.worker_id, request.lease)
    if request.WhichOneof("outcome") is None:
        raise InvalidArgument("expected result_json or error", field="outcome")


def _outcome_of(
    call: queue_pb2.LeasedCall, tool: agent_pb2.ToolSpec, request: worker_pb2.CompleteCallRequest
) -> _Outcome:
    if request.WhichOneof("outcome") == "error":
        return _Outcome(_attempt_failed(call, _failure_of(request.error)))
    try:
        parse_result(tool, request.result_json)
    except ResultRefused as refused:
        return _refused(call, refused.failure, request)
    note = edited_note(call.arguments_json) if call.arguments_edited else ""
    settled = settle_result(tool, call.call_id, request.result_json, note=note)
    finished = run_pb2.StepFinished(
        step=call.step,
        attempt=call.attempt,
        state=run_pb2.STEP_STATE_FAILED if settled.failure is not None else run_pb2.STEP_STATE_SUCCEEDED,
        message=settled.message,
        failure=settled.failure,
        output=settled.output,
    )
    return _Outcome(run_pb2.Change(step_finished=finished), settled.blobs)


def _refused(
    call: queue_pb2.LeasedCall, failure: content_pb2.Failure, request: worker_pb2.CompleteCallRequest
) -> _Outcome:
    size = len(request.result_json.encode())
    if size <= RESULT_LIMIT_BYTES:
        return _Outcome(_attempt_failed(call, failure))
    failure.reason = RESULT_TOO_LARGE
    refusal = InvalidArgument(
        f"the result has {size} bytes; the limit is {RESULT_LIMIT_BYTES}; the call is stored as failed",
        reason=Reason.MESSAGE_TOO_LARGE,
        field="result_json",
        metadata={"limit_bytes": str(RESULT_LIMIT_BYTES), "message_bytes": str(size)},
    )
    return _Outcome(_attempt_failed(call, failure), refusal=refusal)


def _failure_of(error: worker_pb2.CallError) -> content_pb2.Failure:
    # Order matters: a tool that cannot know whether it had its effect is believed, even if it would like to try again.
    if error.is_outcome_unknown:
        failure_class = content_pb2.FAILURE_CLASS_UNKNOWN_OUTCOME
    elif error.is_retryable:
        failure_class = content_pb2.FAILURE_CLASS_RETRYABLE
    else:
        failure_class = content_pb2.FAILURE_CLASS_PERMANENT
    message = (
        shorten(PROCESS.exact(error.message, "journal"), _ERROR_MESSAGE_BYTES) or "The tool failed and did not say why."
    )
    return content_pb2.Failure(reason=TOOL_FAILED, message=message, failure_class=failure_class)


def _attempt_failed(
    call: queue_pb2.LeasedCall, failure: content_pb2.Failure, sign_in: run_pb2.SignInNeeded | None = None
) -> run_pb2.Change:
    failed = run_pb2.AttemptFailed(
        step=call.step, attempt=call.attempt, failure=without_secrets(failure), sign_in=sign_in
    )
    return run_pb2.Change(attempt_failed=failed)


def _late(call: queue_pb2.LeasedCall, request: worker_pb2.CompleteCallRequest) -> run_pb2.LateResult:
    is_error = request.WhichOneof("outcome") == "error"
    said = request.error.message if is_error else request.result_json
    return run_pb2.LateResult(
        step=call.step,
        attempt=call.attempt,
        worker_id=request.worker_id,
        content=shorten(PROCESS.exact(said, "journal"), LATE_CONTENT_BYTES),
        is_error=is_error,
    )
