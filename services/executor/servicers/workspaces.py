"""`WorkspaceService`: how long a workspace keeps what has ended, its data as a whole, and how much it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from holdfast.api.auth.v1 import connection_service_pb2
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceStub
from holdfast.api.common.v1 import workspace_pb2
from holdfast.api.executor.v1 import workspace_service_pb2 as api
from holdfast.api.executor.v1.workspace_service_pb2_grpc import WorkspaceServiceServicer
from holdfast.api.state.v1 import housekeeping_service_pb2 as store
from holdfast.errors import InvalidArgument, Reason
from services.executor.servicers.fields import fingerprint, plain_field, request_id_field, user_field, uuid_field
from services.executor.state_stubs import StateStubs
from services.shared.channels import calling
from services.shared.identity import current_identity, current_workspace

_MAX_ETAG_CHARACTERS: Final = 64
# A workspace with millions of runs is counted row by row.
_COUNTING_SECONDS: Final = 60.0
# Each of a user's grants is revoked at its provider.
_REVOKING_SECONDS: Final = 120.0


class WorkspaceServicer(WorkspaceServiceServicer):
    """Translates between clients and state.

    Args:
        state: The state service.
        connections: Auth's, for what it has of users.
    """

    def __init__(self, state: StateStubs, connections: ConnectionServiceStub) -> None:
        self._housekeeping = state.housekeeping
        self._connections = connections

    async def GetWorkspaceSettings(
        self, request: api.GetWorkspaceSettingsRequest, context: Any
    ) -> api.GetWorkspaceSettingsResponse:
        """The settings of the caller's workspace."""
        with calling("state"):
            found = await self._housekeeping.GetWorkspaceSettings(
                store.GetWorkspaceSettingsRequest(workspace_id=current_workspace())
            )
        return api.GetWorkspaceSettingsResponse(settings=found.settings)

    async def UpdateWorkspaceSettings(
        self, request: api.UpdateWorkspaceSettingsRequest, context: Any
    ) -> api.UpdateWorkspaceSettingsResponse:
        """Changes how long the workspace keeps what has ended."""
        with calling("state"):
            stored = await self._housekeeping.UpdateWorkspaceSettings(
                store.UpdateWorkspaceSettingsRequest(
                    workspace_id=current_workspace(),
                    settings=request.settings,
                    update_mask=request.update_mask,
                    etag=plain_field("etag", request.etag, _MAX_ETAG_CHARACTERS),
                    request_id=request_id_field(request.request_id),
                    request_fingerprint=fingerprint(request),
                )
            )
        return api.UpdateWorkspaceSettingsResponse(settings=stored.settings)

    async def ExportWorkspaceData(
        self, request: api.ExportWorkspaceDataRequest, context: Any
    ) -> AsyncIterator[api.ExportWorkspaceDataResponse]:
        """The workspace's data, or a part of it."""
        scope = request.scope if request.HasField("scope") else workspace_pb2.DataScope(everything=True)
        asked = store.ExportDataRequest(
            workspace_id=current_workspace(), scope=_scope_field(scope), cursor=request.cursor
        )
        with calling("state"):
            async for frame in self._housekeeping.ExportData(asked):
                yield api.ExportWorkspaceDataResponse(records=frame.records, cursor=frame.cursor)

    async def EraseWorkspaceData(
        self, request: api.EraseWorkspaceDataRequest, context: Any
    ) -> AsyncIterator[api.EraseWorkspaceDataResponse]:
        """Removes data for good."""
        asked = store.EraseDataRequest(
            workspace_id=current_workspace(),
            scope=_scope_field(request.scope),
            cancel_first=request.cancel_first,
            validate_only=request.validate_only,
            requested_by=current_identity().key_id or "",
            request_id=request_id_field(request.request_id),
        )
        connections = 0
        if asked.scope.user_id:
            # First: what acts on the user's behalf ends before the account of it does.
            with calling("auth"):
                answer = await self._connections.EraseUserConnections(
                    connection_service_pb2.EraseUserConnectionsRequest(
                        workspace_id=asked.workspace_id,
                        user_id=asked.scope.user_id,
                        requested_by=asked.requested_by,
                        validate_only=asked.validate_only,
                    ),
                    timeout=_REVOKING_SECONDS,
                )
            connections = answer.connections
        with calling("state"):
            async for frame in self._housekeeping.EraseData(asked):
                frame.erased.connections = connections
                yield api.EraseWorkspaceDataResponse(erased=frame.erased, is_done=frame.is_done)

    async def GetWorkspaceStorage(
        self, request: api.GetWorkspaceStorageRequest, context: Any
    ) -> api.GetWorkspaceStorageResponse:
        """How much the workspace keeps."""
        with calling("state"):
            found = await self._housekeeping.GetWorkspaceStorage(
                store.GetWorkspaceStorageRequest(workspace_id=current_workspace()), timeout=_COUNTING_SECONDS
            )
        return api.GetWorkspaceStorageResponse(storage=found.storage)


def _scope_field(scope: workspace_pb2.DataScope) -> workspace_pb2.DataScope:
    """Returns a scope whose values may exist.

    Raises:
        InvalidArgument: It says nothing, or something that cannot be.
        NotFound: SESSION_NOT_FOUND.
    """
    match scope.WhichOneof("part"):
        case "session_id":
            uuid_field("session_id", scope.session_id, Reason.SESSION_NOT_FOUND)
        case "user_id":
            if not user_field(scope.user_id):
                raise InvalidArgument("may not be empty", field="scope.user_id")
        case "everything" if scope.everything:
            pass
        case _:
            raise InvalidArgument("expected everything, a session or a user", field="scope")
    return scope
