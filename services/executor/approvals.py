"""What a person's decision has to be to fit its question."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from holdfast.api.common.v1 import agent_pb2, run_pb2
from holdfast.api.executor.v1 import approval_service_pb2 as approval_pb2
from holdfast.api.state.v1 import run_store_service_pb2 as store
from holdfast.api.state.v1.run_store_service_pb2_grpc import RunStoreServiceStub
from holdfast.errors import FailedPrecondition, InvalidArgument, Reason
from services.executor.budget_rules import LARGEST_LIMIT
from services.executor.call_approvals import MAX_EDITED_ARGUMENTS_BYTES, sha256_of
from services.executor.idempotency import idempotency_key
from services.executor.revisions import RevisionCache
from services.executor.tools.builtin import effective_tool
from services.executor.tools.schema import (
    ArgumentsRefused,
    ResultRefused,
    canonical_json,
    check_arguments,
    check_result,
    describe_json_error,
    misfit,
    parse_json,
)
from services.shared.channels import calling

MAX_ANSWER_BYTES: Final = 1024 * 1024

_DOLLARS: Final = re.compile(r"\$(\d{1,8}(?:\.\d{1,9})?)")

_RESOLUTIONS: Final = (
    run_pb2.IN_DOUBT_RESOLUTION_DONE,
    run_pb2.IN_DOUBT_RESOLUTION_NOT_DONE,
    run_pb2.IN_DOUBT_RESOLUTION_TELL_MODEL,
    run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN,
)


_WITHOUT_SIGN_IN: Final = (
    run_pb2.IN_DOUBT_RESOLUTION_UNSPECIFIED,
    run_pb2.IN_DOUBT_RESOLUTION_TELL_MODEL,
    run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN,
)


async def decision_of(
    approval: run_pb2.Approval,
    request: approval_pb2.DecideApprovalRequest,
    workspace_id: str,
    runs: RunStoreServiceStub,
    revisions: RevisionCache,
) -> run_pb2.ApprovalDecided:
    """Returns the decision in the form in which it is stored: its answer is JSON that fits.

    Args:
        approval: The question.
        request: What the person says.
        workspace_id: The workspace of both.
        runs: Where the question's run is.
        revisions: Where the definition of the question's tool is.

    Raises:
        InvalidArgument: The decision does not fit the question.
        FailedPrecondition: APPROVAL_HASH_MISMATCH: it is about other arguments than those of the call.
    """
    if approval.kind == run_pb2.APPROVAL_KIND_TOOL_CALL:
        return await _verdict_on(approval, request, workspace_id, runs, revisions)
    if request.verdict or request.edited_arguments_json or request.scope or request.reason or request.arguments_sha256:
        raise InvalidArgument("only a call that waits for approval is approved or rejected", field="verdict")
    size = len(request.answer_json.encode())
    if size > MAX_ANSWER_BYTES:
        raise InvalidArgument(
            f"the answer has {size} bytes; the limit is {MAX_ANSWER_BYTES}",
            reason=Reason.MESSAGE_TOO_LARGE,
            field="answer_json",
            metadata={"limit_bytes": str(MAX_ANSWER_BYTES), "message_bytes": str(size)},
        )
    decision = run_pb2.ApprovalDecided(approval_id=approval.approval_id, resolution=request.resolution)
    if approval.kind == run_pb2.APPROVAL_KIND_SIGN_IN:
        if request.resolution not in _WITHOUT_SIGN_IN:
            raise InvalidArgument("expected TELL_MODEL or FAIL_RUN, or the confirm code", field="resolution")
        # A confirm code is used before this decision is stored, and is of no use to anybody afterwards.
        decision.answer_json = "null"
        return decision
    if approval.kind == run_pb2.APPROVAL_KIND_BUDGET:
        decision.answer_json = _more_of(approval.budget.limit, request)
        return decision
    if approval.kind != run_pb2.APPROVAL_KIND_IN_DOUBT:
        if request.resolution != run_pb2.IN_DOUBT_RESOLUTION_UNSPECIFIED:
            raise InvalidArgument("the question wants an answer, not a resolution", field="resolution")
        decision.answer_json = _answer_to(approval, request.answer_json)
        return decision
    if request.resolution not in _RESOLUTIONS:
        raise InvalidArgument("expected DONE, NOT_DONE, TELL_MODEL or FAIL_RUN", field="resolution")
    if request.resolution == run_pb2.IN_DOUBT_RESOLUTION_DONE:
        tool = await _tool_of(approval, workspace_id, runs, revisions)
        decision.answer_json = _result_of(tool, request.answer_json)
    elif request.answer_json:
        raise InvalidArgument("only a call that is DONE has a result", field="answer_json")
    return decision


async def _verdict_on(
    approval: run_pb2.Approval,
    request: approval_pb2.DecideApprovalRequest,
    workspace_id: str,
    runs: RunStoreServiceStub,
    revisions: RevisionCache,
) -> run_pb2.ApprovalDecided:
    if request.answer_json or request.resolution:
        field = "answer_json" if request.answer_json else "resolution"
        raise InvalidArgument("the call wants a verdict: APPROVED or REJECTED", field=field)
    if request.verdict not in (run_pb2.APPROVAL_VERDICT_APPROVED, run_pb2.APPROVAL_VERDICT_REJECTED):
        raise InvalidArgument("expected APPROVED or REJECTED", field="verdict")
    if request.scope not in run_pb2.ApprovalScope.values():
        raise InvalidArgument("expected ONCE, RUN or SESSION", field="scope")
    if request.arguments_sha256 and request.arguments_sha256.lower() != approval.arguments_sha256:
        raise FailedPrecondition(
            "the arguments of the call are not those that were seen; read the question again",
            reason=Reason.APPROVAL_HASH_MISMATCH,
            metadata={"arguments_sha256": approval.arguments_sha256},
        )
    decision = run_pb2.ApprovalDecided(
        approval_id=approval.approval_id, verdict=request.verdict, arguments_sha256=approval.arguments_sha256
    )
    if request.verdict == run_pb2.APPROVAL_VERDICT_REJECTED:
        if request.scope or request.edited_arguments_json:
            field = "scope" if request.scope else "edited_arguments_json"
            raise InvalidArgument("only a call that is APPROVED has one", field=field)
        decision.reason = request.reason
        return decision
    if request.reason:
        raise InvalidArgument("only a call that is REJECTED has one; use comment", field="reason")
    decision.scope = request.scope or run_pb2.APPROVAL_SCOPE_ONCE
    if request.edited_arguments_json:
        tool = effective_tool(await _tool_of(approval, workspace_id, runs, revisions))
        edited = _edited_arguments(tool, request.edited_arguments_json)
        edited_sha256 = sha256_of(edited)
        # The same arguments in another form are no edit.
        if edited_sha256 != approval.arguments_sha256:
            if decision.scope != run_pb2.APPROVAL_SCOPE_ONCE:
                raise InvalidArgument("edited arguments are approved once", field="scope")
            decision.edited_arguments_json, decision.arguments_sha256 = edited, edited_sha256
            decision.idempotency_key = idempotency_key(approval.run_id, approval.step, approval.tool, edited)
    return decision


def _edited_arguments(tool: agent_pb2.ToolSpec, arguments_json: str) -> str:
    size = len(arguments_json.encode())
    if size > MAX_EDITED_ARGUMENTS_BYTES:
        raise InvalidArgument(
            f"the arguments have {size} bytes; the limit is {MAX_EDITED_ARGUMENTS_BYTES}",
            reason=Reason.MESSAGE_TOO_LARGE,
            field="edited_arguments_json",
            metadata={"limit_bytes": str(MAX_EDITED_ARGUMENTS_BYTES), "message_bytes": str(size)},
        )
    try:
        return canonical_json(check_arguments(tool, arguments_json))
    except ArgumentsRefused as refused:
        raise InvalidArgument(
            f"the edited arguments do not fit the tool\n{refused.failure.message}",
            field="edited_arguments_json",
            description=refused.failure.message,
        ) from refused


def _more_of(limit: str, request: approval_pb2.DecideApprovalRequest) -> str:
    """How much is added to a limit, as JSON text; `null` where a run is to stop."""
    if request.resolution == run_pb2.IN_DOUBT_RESOLUTION_FAIL_RUN and not request.answer_json:
        return "null"
    if request.resolution != run_pb2.IN_DOUBT_RESOLUTION_UNSPECIFIED:
        raise InvalidArgument("expected how much is added as answer_json, or FAIL_RUN", field="resolution")
    given = _json_or(request.answer_json, request.answer_json)
    dollars = _DOLLARS.fullmatch(given.strip()) if isinstance(given, str) else None
    if dollars is not None and limit == "max_cost_usd_nanos":
        given = int(Decimal(dollars[1]) * 1_000_000_000)
    elif isinstance(given, str) and given.strip().isdecimal():
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or not 0 < given <= LARGEST_LIMIT:
        example = ' or "$0.25"' if limit == "max_cost_usd_nanos" else ""
        raise InvalidArgument(
            f"expected how much is added to {limit}: a whole number above 0{example}", field="answer_json"
        )
    return str(given)


def _answer_to(approval: run_pb2.Approval, answer: str) -> str:
    if not approval.HasField("answer_schema"):
        # Any text is an answer. One that is a JSON string already is that string, so that programs which always send
        # JSON and people who never do are understood alike.
        value = _json_or(answer, answer)
        return canonical_json(value if isinstance(value, str) else answer)
    try:
        value = parse_json(answer)
    except ValueError as error:
        if not misfit(approval.answer_schema, answer):
            return canonical_json(answer)
        raise InvalidArgument(
            "the answer is not valid JSON", field="answer_json", description=describe_json_error(error)
        ) from error
    problems = misfit(approval.answer_schema, value)
    if not problems:
        return canonical_json(value)
    # `12` may be the text of an option.
    if not isinstance(value, str) and not misfit(approval.answer_schema, answer):
        return canonical_json(answer)
    raise InvalidArgument(
        f"the answer does not fit the question's schema\n{problems}", field="answer_json", description=problems
    )


def _result_of(tool: agent_pb2.ToolSpec, result: str) -> str:
    try:
        value = parse_json(result) if result.strip() else None
        check_result(tool, value)
    except ResultRefused as refused:
        raise InvalidArgument(
            "the result does not fit the tool's output schema",
            field="answer_json",
            description=refused.failure.message.partition("\n")[2],
        ) from refused
    except ValueError as error:
        raise InvalidArgument(
            "the result is not valid JSON", field="answer_json", description=describe_json_error(error)
        ) from error
    return canonical_json(value)


async def _tool_of(
    approval: run_pb2.Approval, workspace_id: str, runs: RunStoreServiceStub, revisions: RevisionCache
) -> agent_pb2.ToolSpec:
    with calling("state"):
        found = await runs.GetRun(store.GetRunRequest(workspace_id=workspace_id, run_id=approval.run_id))
    spec = await revisions.get(workspace_id, found.run.agent, found.run.revision)
    return next((tool for tool in spec.tools if tool.name == approval.tool), agent_pb2.ToolSpec(name=approval.tool))


def _json_or(text: str, otherwise: object) -> object:
    try:
        return parse_json(text)
    except ValueError:
        return otherwise
