"""RunStoreService."""

from __future__ import annotations

from datetime import UTC
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc.aio

from holdfast.api.state.v1 import run_store_service_pb2 as pb
from holdfast.api.state.v1.run_store_service_pb2_grpc import RunStoreServiceServicer
from holdfast.errors import InvalidArgument
from services.shared.crash_points import crash_point
from services.shared.database import Database, StoreFunction
from services.state import approval_store, pauses, run_store, session_store
from services.state.hub import Hub
from services.state.idempotence import write_once
from services.state.servicers.pages import page_of, page_size

MAX_MESSAGES = 1_000

Context = grpc.aio.ServicerContext[Any, Any]
P = ParamSpec("P")
T = TypeVar("T")


class RunStoreServicer(RunStoreServiceServicer):
    """Serves runs, sessions and questions."""

    def __init__(self, db: Database, hub: Hub) -> None:
        self._db = db
        self._hub = hub

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        return pb.GetRunResponse(run=await self._db.read(run_store.get_run, request.workspace_id, request.run_id))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        try:
            created_after = request.created_after.ToDatetime(tzinfo=UTC) if request.HasField("created_after") else None
        except (ValueError, OverflowError) as error:
            raise InvalidArgument("is out of range", field="created_after") from error
        only = run_store.RunFilter(
            agent=request.agent,
            session_id=request.session_id,
            user_id=request.user_id,
            states=list(request.states),
            created_after=created_after,
            parent_run_id=request.parent_run_id,
            root_run_id=request.root_run_id,
            include_children=request.include_children,
        )
        found = await self._db.read(
            run_store.list_runs, request.workspace_id, page_size(request) + 1, request.before_run_id, only
        )
        runs, has_more = page_of(found, request)
        return pb.ListRunsResponse(runs=runs, has_more=has_more)

    async def RequestCancel(self, request: pb.RequestCancelRequest, context: Context) -> pb.RequestCancelResponse:
        return pb.RequestCancelResponse(
            run=await self._write(
                run_store.request_cancel, request.workspace_id, request.run_id, request.requested_by, request.reason
            )
        )

    async def RequestPause(self, request: pb.RequestPauseRequest, context: Context) -> pb.RequestPauseResponse:
        return pb.RequestPauseResponse(
            run=await self._write(pauses.request_pause, request.workspace_id, request.run_id, _asked(request))
        )

    async def RequestResume(self, request: pb.RequestResumeRequest, context: Context) -> pb.RequestResumeResponse:
        return pb.RequestResumeResponse(
            run=await self._write(pauses.request_resume, request.workspace_id, request.run_id, _asked(request))
        )

    async def CreateSession(self, request: pb.CreateSessionRequest, context: Context) -> pb.CreateSessionResponse:
        session = await write_once(
            self._db,
            session_store.create_session,
            self._db,
            request.workspace_id,
            request.session_id,
            request.user_id,
            request.request_id,
            request.request_fingerprint,
        )
        return pb.CreateSessionResponse(session=session)

    async def GetSession(self, request: pb.GetSessionRequest, context: Context) -> pb.GetSessionResponse:
        session = await self._db.read(session_store.get_session, request.workspace_id, request.session_id)
        return pb.GetSessionResponse(session=session)

    async def ListSessions(self, request: pb.ListSessionsRequest, context: Context) -> pb.ListSessionsResponse:
        found = await self._db.read(
            session_store.list_sessions,
            request.workspace_id,
            page_size(request) + 1,
            request.before_session_id,
            request.user_id,
        )
        sessions, has_more = page_of(found, request)
        return pb.ListSessionsResponse(sessions=sessions, has_more=has_more)

    async def ListSessionMessages(
        self, request: pb.ListSessionMessagesRequest, context: Context
    ) -> pb.ListSessionMessagesResponse:
        messages, position = await self._db.read(
            session_store.list_session_messages,
            request.workspace_id,
            request.session_id,
            page_size(request, MAX_MESSAGES),
            request.position,
            request.before_run_id,
        )
        return pb.ListSessionMessagesResponse(messages=messages, next_position=position)

    async def GetApproval(self, request: pb.GetApprovalRequest, context: Context) -> pb.GetApprovalResponse:
        approval = await self._db.read(approval_store.get_approval, request.workspace_id, request.approval_id)
        return pb.GetApprovalResponse(approval=approval)

    async def ListApprovals(self, request: pb.ListApprovalsRequest, context: Context) -> pb.ListApprovalsResponse:
        found = await self._db.read(
            approval_store.list_approvals,
            request.workspace_id,
            page_size(request) + 1,
            request.before_approval_id,
            request.run_id,
            request.state,
            request.root_run_id,
        )
        approvals, has_more = page_of(found, request)
        return pb.ListApprovalsResponse(approvals=approvals, has_more=has_more)

    async def GetRunGrant(self, request: pb.GetRunGrantRequest, context: Context) -> pb.GetRunGrantResponse:
        grant = await self._db.read(run_store.get_run_grant, request.workspace_id, request.run_id)
        return pb.GetRunGrantResponse(run_grant=grant)

    async def ListSessionApprovals(
        self, request: pb.ListSessionApprovalsRequest, context: Context
    ) -> pb.ListSessionApprovalsResponse:
        approvals = await self._db.read(approval_store.list_session_approvals, request.workspace_id, request.session_id)
        return pb.ListSessionApprovalsResponse(approvals=approvals)

    async def ListSignIns(self, request: pb.ListSignInsRequest, context: Context) -> pb.ListSignInsResponse:
        size = page_size(request)
        after = (request.after_workspace_id, request.after_approval_id) if request.after_approval_id else None
        found = await self._db.read(approval_store.list_sign_ins, request.workspace_id, size + 1, after)
        sign_ins = [pb.StoredSignIn(workspace_id=workspace, approval=approval) for workspace, approval in found[:size]]
        return pb.ListSignInsResponse(sign_ins=sign_ins, has_more=len(found) > size)

    async def DecideApproval(self, request: pb.DecideApprovalRequest, context: Context) -> pb.DecideApprovalResponse:
        return pb.DecideApprovalResponse(
            approval=await self._write(approval_store.decide_approval, request.workspace_id, request.decision)
        )

    async def _write(
        self,
        fn: StoreFunction[Concatenate[Database, P], tuple[T, run_store.Written]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Writes an event for somebody outside, and tells whom it concerns once it is committed."""
        found, written = await write_once(self._db, fn, self._db, *args, **kwargs)
        crash_point("state.outside.after_commit")
        if written.outside is not None:
            self._hub.outside_event(written.run_id, written.outside)
        if written.leases:
            self._hub.calls_cancelled(list(written.leases))
        return found


def _asked(request: pb.RequestPauseRequest | pb.RequestResumeRequest) -> pauses.Asked:
    return pauses.Asked(request.requested_by, request.reason, request.request_id, request.request_fingerprint)
