"""CallQueueService."""

from __future__ import annotations

from typing import Any

import grpc.aio

from holdfast.api.state.v1 import call_queue_service_pb2 as pb
from holdfast.api.state.v1.call_queue_service_pb2_grpc import CallQueueServiceServicer
from holdfast.errors import InvalidArgument
from services.shared.database import Database
from services.state import call_store
from services.state.hub import Hub

MAX_OFFER_SECONDS = 3_600

Context = grpc.aio.ServicerContext[Any, Any]


class CallQueueServicer(CallQueueServiceServicer):
    """Serves the queue of workers' calls."""

    def __init__(self, db: Database, hub: Hub) -> None:
        self._db = db
        self._hub = hub

    async def LeaseCalls(self, request: pb.LeaseCallsRequest, context: Context) -> pb.LeaseCallsResponse:
        offer = call_store.DEFAULT_OFFER
        if request.HasField("offer_duration"):
            if not 0 < request.offer_duration.seconds <= MAX_OFFER_SECONDS:
                raise InvalidArgument(f"expected 1 s to {MAX_OFFER_SECONDS} s", field="offer_duration")
            offer = request.offer_duration.ToTimedelta()
        calls = await self._db.write(
            call_store.lease_calls,
            self._db,
            request.workspace_id,
            request.worker_id,
            list(request.tools),
            max(0, request.max_calls),
            offer,
        )
        return pb.LeaseCallsResponse(calls=calls)

    async def StartCall(self, request: pb.StartCallRequest, context: Context) -> pb.StartCallResponse:
        event = await self._db.write(
            call_store.start_call, self._db, request.workspace_id, request.worker_id, request.lease
        )
        self._tell(event)
        return pb.StartCallResponse()

    async def RenewCalls(self, request: pb.RenewCallsRequest, context: Context) -> pb.RenewCallsResponse:
        lost, cancelled = await self._db.write(
            call_store.renew_calls, self._db, request.workspace_id, request.worker_id, dict(request.running)
        )
        return pb.RenewCallsResponse(lost_leases=lost, cancelled_leases=cancelled)

    async def ReturnCalls(self, request: pb.ReturnCallsRequest, context: Context) -> pb.ReturnCallsResponse:
        queued = await self._db.write(
            call_store.return_calls, request.workspace_id, request.worker_id, list(request.leases)
        )
        for workspace_id, tool in queued:
            self._hub.calls_queued(workspace_id, tool)
        return pb.ReturnCallsResponse()

    async def CompleteCall(self, request: pb.CompleteCallRequest, context: Context) -> pb.CompleteCallResponse:
        done = await self._db.write(
            call_store.complete_call,
            self._db,
            request.workspace_id,
            request.worker_id,
            request.lease,
            request.change,
            list(request.blobs),
            request.late,
        )
        self._tell(done.event)
        if done.is_late:
            raise call_store.lost()
        return pb.CompleteCallResponse(seq=done.seq)

    async def GetCall(self, request: pb.GetCallRequest, context: Context) -> pb.GetCallResponse:
        call = await self._db.read(
            call_store.get_call, request.workspace_id, request.lease, request.executing_worker_id
        )
        return pb.GetCallResponse(call=call)

    def _tell(self, event: call_store.CallEvent | None) -> None:
        if event is not None:
            self._hub.outside_event(event.run_id, event.outside)
