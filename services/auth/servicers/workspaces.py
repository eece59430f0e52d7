"""WorkspaceService."""

from __future__ import annotations

from typing import Any

from holdfast.api.auth.v1 import workspace_service_pb2 as pb
from holdfast.api.auth.v1.workspace_service_pb2_grpc import WorkspaceServiceServicer
from services.auth.closing import Closing
from services.auth.data_keys import DataKeys
from services.auth.servicers.messages import from_payload_sealing, to_payload_sealing, to_timestamp
from services.auth.store import Workspace
from services.auth.workspaces import Workspaces
from services.shared.identity import current_identity, current_workspace


class WorkspaceServicer(WorkspaceServiceServicer):
    """Serves WorkspaceService."""

    def __init__(self, workspaces: Workspaces, keys: DataKeys, closing: Closing) -> None:
        self._workspaces = workspaces
        self._keys = keys
        self._closing = closing

    async def GetWorkspace(self, request: pb.GetWorkspaceRequest, context: Any) -> pb.GetWorkspaceResponse:
        """Returns the caller's workspace."""
        workspace = await self._workspaces.get(current_workspace())
        return pb.GetWorkspaceResponse(workspace=_message(workspace))

    async def SetPayloadSealing(
        self, request: pb.SetPayloadSealingRequest, context: Any
    ) -> pb.SetPayloadSealingResponse:
        """Stores whether payloads of the caller's workspace are sealed."""
        workspace = await self._keys.set_sealing(
            current_workspace(), from_payload_sealing(request.payload_sealing), actor=current_identity().name
        )
        return pb.SetPayloadSealingResponse(workspace=_message(workspace))

    async def CloseWorkspace(self, request: pb.CloseWorkspaceRequest, context: Any) -> pb.CloseWorkspaceResponse:
        """Closes a workspace."""
        workspace = await self._closing.close(request.name, actor=current_identity().name)
        return pb.CloseWorkspaceResponse(workspace=_message(workspace))

    async def DeleteWorkspace(self, request: pb.DeleteWorkspaceRequest, context: Any) -> pb.DeleteWorkspaceResponse:
        """Deletes what is stored of a closed workspace."""
        deleted = await self._closing.delete(request.name, actor=current_identity().name)
        return pb.DeleteWorkspaceResponse(
            workspace=_message(deleted.workspace), deleted_connections=deleted.connections
        )


def _message(workspace: Workspace) -> pb.Workspace:
    return pb.Workspace(
        workspace_id=workspace.workspace_id,
        name=workspace.name,
        create_time=to_timestamp(workspace.create_time),
        close_time=to_timestamp(workspace.close_time),
        delete_time=to_timestamp(workspace.delete_time),
        payload_sealing=to_payload_sealing(workspace.seals_payloads),
    )
