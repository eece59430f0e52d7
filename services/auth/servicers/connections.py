"""ConnectionService."""

from __future__ import annotations

from typing import Any

from holdfast.api.auth.v1 import connection_service_pb2 as pb
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceServicer
from services.auth.connections import Connections
from services.auth.secrets import Secret
from services.auth.servicers.messages import current_caller, to_connection
from services.shared.interceptors import current_workspace
from services.shared.paging import decode_page_token, encode_page_token, page_size


class ConnectionServicer(ConnectionServiceServicer):
    """Serves ConnectionService.

    Args:
        connections: The rules.
        page_key: Signs page tokens.
    """

    def __init__(self, connections: Connections, page_key: bytes) -> None:
        self._connections = connections
        self._page_key = page_key

    async def CreateConnection(self, request: pb.CreateConnectionRequest, context: Any) -> pb.CreateConnectionResponse:
        """Stores a key as a connection."""
        connection = await self._connections.create(
            current_caller(),
            name=request.name,
            provider=request.provider,
            api_key=Secret(request.api_key),
            base_url=request.base_url,
            replace=request.replace,
            request_id=request.request_id,
        )
        return pb.CreateConnectionResponse(connection=to_connection(connection))

    async def GetConnection(self, request: pb.GetConnectionRequest, context: Any) -> pb.GetConnectionResponse:
        """Returns one connection."""
        connection = await self._connections.get(current_workspace(), request.name)
        return pb.GetConnectionResponse(connection=to_connection(connection))

    async def ListConnections(self, request: pb.ListConnectionsRequest, context: Any) -> pb.ListConnectionsResponse:
        """Lists connections by name."""
        workspace_id = current_workspace()
        bound_to = ("ListConnections", workspace_id)
        size = page_size(request.page_size)
        position = decode_page_token(self._page_key, request.page_token, bound_to=bound_to)
        after = None if position is None else (position["name"], position["user_id"])
        found = await self._connections.page(workspace_id, limit=size + 1, after=after)
        token = ""
        if len(found) > size:
            last = found[size - 1]
            end = {"name": last.name, "user_id": last.user_id}
            token = encode_page_token(self._page_key, end, bound_to=bound_to)
        return pb.ListConnectionsResponse(
            connections=[to_connection(connection) for connection in found[:size]], next_page_token=token
        )

    async def RevokeConnection(self, request: pb.RevokeConnectionRequest, context: Any) -> pb.RevokeConnectionResponse:
        """Revokes a connection."""
        connection = await self._connections.revoke(current_caller(), request.name, request_id=request.request_id)
        return pb.RevokeConnectionResponse(connection=to_connection(connection))
