"""WorkspaceService."""

from __future__ import annotations

from typing import Any

from holdfast.api.auth.v1 import workspace_service_pb2 as pb
from holdfast.api.auth.v1.workspace_service_pb2_grpc import WorkspaceServiceServicer
from services.auth.servicers.messages import to_timestamp
from services.auth.workspaces import Workspaces
from services.shared.interceptors import current_workspace


class WorkspaceServicer(WorkspaceServiceServicer):
    """Serves WorkspaceService."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    async def GetWorkspace(self, request: pb.GetWorkspaceRequest, context: Any) -> pb.GetWorkspaceResponse:
        """Returns the caller's workspace."""
        workspace = await self._workspaces.get(current_workspace())
        return pb.GetWorkspaceResponse(
            workspace=pb.Workspace(
                workspace_id=workspace.workspace_id,
                name=workspace.name,
                create_time=to_timestamp(workspace.create_time),
            )
        )
