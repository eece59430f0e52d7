"""`ToolWorkerService`: users' processes serve tools over one stream each, and report results."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from holdfast.api.executor.v1 import tool_worker_service_pb2 as api
from holdfast.api.executor.v1.tool_worker_service_pb2_grpc import ToolWorkerServiceServicer
from holdfast.errors import LeaseLost
from services.executor.call_credentials import CallCredentials
from services.executor.call_results import CallResults
from services.executor.worker_hub import WorkerHub
from services.shared.identity import current_workspace


class ToolWorkerServicer(ToolWorkerServiceServicer):
    """Passes workers' messages on.

    Args:
        hub: The connected workers.
        results: Where the ends of calls go.
        credentials: What running calls are handed.
    """

    def __init__(self, hub: WorkerHub, results: CallResults, credentials: CallCredentials) -> None:
        self._hub = hub
        self._results = results
        self._credentials = credentials

    async def Work(
        self, request_iterator: AsyncIterator[api.WorkRequest], context: Any
    ) -> AsyncIterator[api.WorkResponse]:
        """One stream for each worker process."""
        responses = self._hub.serve(current_workspace(), request_iterator)
        try:
            async for response in responses:
                yield response
        finally:
            # In this task: the hub's clean-up begins before the call ends, not when the generator is collected.
            await responses.aclose()

    async def CompleteCall(self, request: api.CompleteCallRequest, context: Any) -> api.CompleteCallResponse:
        """Reports the end of a call."""
        workspace_id = current_workspace()
        try:
            await self._results.store(workspace_id, request)
        except LeaseLost:
            self._hub.call_completed(workspace_id, request.worker_id, request.lease)
            raise
        self._hub.call_completed(workspace_id, request.worker_id, request.lease)
        return api.CompleteCallResponse()

    async def GetCallCredential(
        self, request: api.GetCallCredentialRequest, context: Any
    ) -> api.GetCallCredentialResponse:
        """Hands the secret of a call's connection to the worker that executes it."""
        return await self._credentials.hand_out(current_workspace(), request)
