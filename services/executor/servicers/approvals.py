"""`ApprovalService`: questions to people, and their answers."""

from __future__ import annotations

from typing import Any, Final

from holdfast.api.auth.v1 import connect_service_pb2 as connect_pb2
from holdfast.api.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from holdfast.api.common.v1 import run_pb2
from holdfast.api.executor.v1 import approval_service_pb2 as api
from holdfast.api.executor.v1.approval_service_pb2_grpc import ApprovalServiceServicer
from holdfast.api.state.v1 import run_store_service_pb2 as store
from holdfast.errors import FailedPrecondition, InvalidArgument, NotFound, Reason
from services.executor.approvals import decision_of
from services.executor.revisions import RevisionCache
from services.executor.servicers.fields import comment_field, optional_uuid_field, request_id_field, uuid_field
from services.executor.state_client import StateReader
from services.executor.state_stubs import StateStubs
from services.shared.channels import calling
from services.shared.identity import current_identity, current_workspace
from services.shared.interceptors import WORKSPACE_KEY
from services.shared.paging import decode_page_token, encode_page_token, page_size

MAX_WHOLE_ARGUMENTS_BYTES: Final = 2 * 1024 * 1024
"""Longer arguments stay shortened: an answer has to fit into a message."""


class ApprovalServicer(ApprovalServiceServicer):
    """Translates between clients and state.

    Args:
        state: The state service.
        revisions: Definitions, for the schema of a result that a person gives.
        connect: Auth's sign-ins, for the code that confirms one.
        page_key: Signs page tokens.
    """

    def __init__(
        self, state: StateStubs, revisions: RevisionCache, connect: ConnectServiceStub, *, page_key: bytes
    ) -> None:
        self._runs = state.runs
        self._reader = StateReader(state)
        self._revisions = revisions
        self._connect = connect
        self._page_key = page_key

    async def GetApproval(self, request: api.GetApprovalRequest, context: Any) -> api.GetApprovalResponse:
        """One question."""
        approval = await self._approval(request.approval_id)
        await self._put_arguments(approval)
        return api.GetApprovalResponse(approval=approval)

    async def ListApprovals(self, request: api.ListApprovalsRequest, context: Any) -> api.ListApprovalsResponse:
        """Questions, newest first."""
        workspace_id = current_workspace()
        run_id = optional_uuid_field("run_id", request.run_id, Reason.RUN_NOT_FOUND)
        root_run_id = optional_uuid_field("root_run_id", request.root_run_id, Reason.RUN_NOT_FOUND)
        if request.state not in run_pb2.ApprovalState.values():
            raise InvalidArgument("expected a state of a question", field="state")
        bound_to = ("ListApprovals", workspace_id, run_id, str(int(request.state)), root_run_id)
        after = decode_page_token(self._page_key, request.page_token, bound_to=bound_to) or {"before": ""}
        with calling("state"):
            page = await self._runs.ListApprovals(
                store.ListApprovalsRequest(
                    workspace_id=workspace_id,
                    page_size=page_size(request.page_size),
                    before_approval_id=after["before"],
                    run_id=run_id,
                    state=request.state,
                    root_run_id=root_run_id,
                )
            )
        response = api.ListApprovalsResponse(approvals=page.approvals)
        if page.has_more and page.approvals:
            position = {"before": page.approvals[-1].approval_id}
            response.next_page_token = encode_page_token(self._page_key, position, bound_to=bound_to)
        return response

    async def DecideApproval(self, request: api.DecideApprovalRequest, context: Any) -> api.DecideApprovalResponse:
        """Decides a question."""
        # The first decision counts and the same one is answered the same, so that state needs no request id.
        request_id_field(request.request_id)
        comment = comment_field("comment", request.comment)
        comment_field("reason", request.reason)
        approval = await self._approval(request.approval_id)
        if approval.kind == run_pb2.APPROVAL_KIND_SIGN_IN and not request.resolution:
            await self._confirm_sign_in(approval, request.answer_json)
        decision = await decision_of(approval, request, current_workspace(), self._runs, self._revisions)
        decision.comment = comment
        decision.decided_by = current_identity().key_id or ""
        with calling("state"):
            decided = await self._runs.DecideApproval(
                store.DecideApprovalRequest(workspace_id=current_workspace(), decision=decision)
            )
        return api.DecideApprovalResponse(approval=decided.approval)

    async def _confirm_sign_in(self, approval: run_pb2.Approval, answer: str) -> None:
        """Confirms the sign-in behind a question with the code that the completing browser was shown."""
        if approval.state != run_pb2.APPROVAL_STATE_PENDING:
            return
        session_id = approval.sign_in.connect_session_id
        if not session_id:
            raise FailedPrecondition(
                "the question is answered by itself once the connection is there",
                reason=Reason.CONNECT_SESSION_NOT_CONFIRMABLE,
            )
        with calling("auth"):
            await self._connect.ConfirmConnect(
                connect_pb2.ConfirmConnectRequest(session_id=session_id, confirm_code=answer.strip().strip('"')),
                metadata=((WORKSPACE_KEY, current_workspace()),),
            )

    async def _put_arguments(self, approval: run_pb2.Approval) -> None:
        """Makes the arguments of a call whole that are stored as a body of their own."""
        if not approval.arguments_shortened:
            return
        try:
            body = await self._reader.read_blob(current_workspace(), bytes.fromhex(approval.arguments_sha256))
        except NotFound:
            # Its run was removed meanwhile.
            return
        if len(body) <= MAX_WHOLE_ARGUMENTS_BYTES:
            approval.arguments_json = body.decode()
            approval.arguments_shortened = False

    async def _approval(self, approval_id: str) -> run_pb2.Approval:
        approval_id = uuid_field("approval_id", approval_id, Reason.APPROVAL_NOT_FOUND)
        with calling("state"):
            found = await self._runs.GetApproval(
                store.GetApprovalRequest(workspace_id=current_workspace(), approval_id=approval_id)
            )
        return found.approval
