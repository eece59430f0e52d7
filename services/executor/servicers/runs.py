"""`RunService`: start, look, follow, pause, resume, cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from holdfast.api.common.v1 import run_pb2
from holdfast.api.executor.v1 import run_service_pb2 as api
from holdfast.api.executor.v1.run_service_pb2_grpc import RunServiceServicer
from holdfast.api.state.v1 import journal_service_pb2 as journal
from holdfast.api.state.v1 import run_store_service_pb2 as store
from holdfast.errors import InvalidArgument, Reason
from services.executor.budget_report import read_budget
from services.executor.new_runs import credential_of, traceparent_of
from services.executor.run_stream import EndSource, RunStream, until_drained
from services.executor.servicers.fields import (
    comment_field,
    fingerprint,
    optional_uuid_field,
    plain_field,
    request_id_field,
    user_field,
    uuid_field,
)
from services.executor.starts import RunStarter, Starting
from services.executor.state_stubs import StateStubs
from services.executor.watch import RunWatcher
from services.shared.channels import calling
from services.shared.identity import current_identity, current_workspace
from services.shared.paging import decode_page_token, encode_page_token, page_size

_HASH_BYTES: Final = 32
_BLOB_DEADLINE_SECONDS: Final = 300.0


class RunServicer(RunServiceServicer):
    """Translates between clients and state.

    Args:
        state: The state service.
        starter: Accepts runs.
        ends: Tells of the ends of runs.
        watcher: Follows runs.
        page_key: Signs page tokens.
    """

    def __init__(
        self,
        state: StateStubs,
        starter: RunStarter,
        ends: EndSource,
        watcher: RunWatcher,
        *,
        page_key: bytes,
    ) -> None:
        self._state = state
        self._starter = starter
        self._ends = ends
        self._watcher = watcher
        self._page_key = page_key

    async def StartRun(self, request: api.StartRunRequest, context: Any) -> api.StartRunResponse:
        """Accepts a run."""
        return api.StartRunResponse(run=await self._starter.start(_starting(context), request))

    async def StartRuns(
        self, request_iterator: AsyncIterator[api.StartRunsRequest], context: Any
    ) -> AsyncIterator[api.StartRunsResponse]:
        """Accepts many runs."""
        stream = RunStream(self._starter, self._ends, _starting(context), self._watcher.draining)
        async with aclosing(stream.serve(request_iterator)) as responses:
            async for response in responses:
                yield response

    async def WaitRun(self, request: api.WaitRunRequest, context: Any) -> api.WaitRunResponse:
        """The run once it has ended."""
        run_id = uuid_field("run_id", request.run_id, Reason.RUN_NOT_FOUND)
        run = await until_drained(self._ends.await_end(current_workspace(), run_id), self._watcher.draining)
        return api.WaitRunResponse(run=run)

    async def GetRun(self, request: api.GetRunRequest, context: Any) -> api.GetRunResponse:
        """One run with its output."""
        run_id = uuid_field("run_id", request.run_id, Reason.RUN_NOT_FOUND)
        with calling("state"):
            found = await self._state.runs.GetRun(store.GetRunRequest(workspace_id=current_workspace(), run_id=run_id))
        return api.GetRunResponse(run=found.run)

    async def GetRunBudget(self, request: api.GetRunBudgetRequest, context: Any) -> api.GetRunBudgetResponse:
        """What of a run's budget is left."""
        run_id = uuid_field("run_id", request.run_id, Reason.RUN_NOT_FOUND)
        return api.GetRunBudgetResponse(lines=await read_budget(self._state.journal, current_workspace(), run_id))

    async def ListRuns(self, request: api.ListRunsRequest, context: Any) -> api.ListRunsResponse:
        """Runs, newest first."""
        workspace_id = current_workspace()
        session_id = optional_uuid_field("session_id", request.session_id, Reason.SESSION_NOT_FOUND)
        parent_run_id = optional_uuid_field("parent_run_id", request.parent_run_id, Reason.RUN_NOT_FOUND)
        root_run_id = optional_uuid_field("root_run_id", request.root_run_id, Reason.RUN_NOT_FOUND)
        agent, user_id = plain_field("agent", request.agent), user_field(request.user_id)
        for index, state in enumerate(request.states):
            if state not in run_pb2.RunState.values() or state == run_pb2.RUN_STATE_UNSPECIFIED:
                raise InvalidArgument("expected a state of a run", field=f"states[{index}]")
        states = sorted(set(request.states))
        created_after = request.created_after if request.HasField("created_after") else None
        since = created_after.ToJsonString() if created_after is not None else ""
        tree = (parent_run_id, root_run_id, str(request.include_children))
        bound_to = ("ListRuns", workspace_id, agent, session_id, user_id, repr(states), since, *tree)
        after = decode_page_token(self._page_key, request.page_token, bound_to=bound_to) or {"before": ""}
        with calling("state"):
            page = await self._state.runs.ListRuns(
                store.ListRunsRequest(
                    workspace_id=workspace_id,
                    page_size=page_size(request.page_size),
                    before_run_id=after["before"],
                    agent=agent,
                    session_id=session_id,
                    user_id=user_id,
                    states=states,
                    created_after=created_after,
                    parent_run_id=parent_run_id,
                    root_run_id=root_run_id,
                    include_children=request.include_children,
                )
            )
        response = api.ListRunsResponse(runs=page.runs)
        if page.has_more and page.runs:
            position = {"before": page.runs[-1].run_id}
            response.next_page_token = encode_page_token(self._page_key, position, bound_to=bound_to)
        return response

    async def WatchRun(self, request: api.WatchRunRequest, context: Any) -> AsyncIterator[api.WatchRunResponse]:
        """The events of a run, stored and to come."""
        run_id = uuid_field("run_id", request.run_id, Reason.RUN_NOT_FOUND)
        if request.after_seq < 0:
            raise InvalidArgument("expected 0 or more", field="after_seq")
        responses = self._watcher.watch(current_workspace(), run_id, request.after_seq, events_only=request.events_only)
        try:
            async for response in responses:
                yield response
        finally:
            await responses.aclose()

    async def CancelRun(self, request: api.CancelRunRequest, context: Any) -> api.CancelRunResponse:
        """Asks to stop a run."""
        # Cancelling a cancelled run changes nothing, so that state needs no request id.
        request_id_field(request.request_id)
        run_id = uuid_field("run_id", request.run_id, Reason.RUN_NOT_FOUND)
        with calling("state"):
            cancelled = await self._state.runs.RequestCancel(
                store.RequestCancelRequest(
                    workspace_id=current_workspace(),
                    run_id=run_id,
                    requested_by=current_identity().key_id or "",
                    reason=comment_field("reason", request.reason),
                )
            )
        return api.CancelRunResponse(run=cancelled.run)

    async def PauseRun(self, request: api.PauseRunRequest, context: Any) -> api.PauseRunResponse:
        """Lets a run rest."""
        request_id = request_id_field(request.request_id)
        run_id = uuid_field("run_id", request.run_id, Reason.RUN_NOT_FOUND)
        with calling("state"):
            paused = await self._state.runs.RequestPause(
                store.RequestPauseRequest(
                    workspace_id=current_workspace(),
                    run_id=run_id,
                    requested_by=current_identity().key_id or "",
                    reason=comment_field("reason", request.reason),
                    request_id=request_id,
                    request_fingerprint=fingerprint(request),
                )
            )
        return api.PauseRunResponse(run=paused.run)

    async def ResumeRun(self, request: api.ResumeRunRequest, context: Any) -> api.ResumeRunResponse:
        """Goes on with a paused run."""
        request_id = request_id_field(request.request_id)
        run_id = uuid_field("run_id", request.run_id, Reason.RUN_NOT_FOUND)
        with calling("state"):
            resumed = await self._state.runs.RequestResume(
                store.RequestResumeRequest(
                    workspace_id=current_workspace(),
                    run_id=run_id,
                    requested_by=current_identity().key_id or "",
                    reason=comment_field("reason", request.reason),
                    request_id=request_id,
                    request_fingerprint=fingerprint(request),
                )
            )
        return api.ResumeRunResponse(run=resumed.run)

    async def GetBlob(self, request: api.GetBlobRequest, context: Any) -> AsyncIterator[api.GetBlobResponse]:
        """A large body in pieces."""
        if len(request.hash) != _HASH_BYTES:
            raise InvalidArgument("expected 32 bytes", field="hash")
        if request.offset < 0:
            raise InvalidArgument("expected 0 or more", field="offset")
        read = journal.ReadBlobRequest(workspace_id=current_workspace(), hash=request.hash, offset=request.offset)
        with calling("state"):
            async for piece in self._state.journal.ReadBlob(read, timeout=_BLOB_DEADLINE_SECONDS):
                yield api.GetBlobResponse(data=piece.data, size=piece.size)


def _starting(context: Any) -> Starting:
    metadata = context.invocation_metadata()
    return Starting(current_workspace(), credential_of(metadata), traceparent_of(metadata))
