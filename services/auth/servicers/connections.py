"""ConnectionService."""

from __future__ import annotations

from typing import Any

from holdfast.api.auth.v1 import connection_service_pb2 as pb
from holdfast.api.auth.v1.connection_service_pb2_grpc import ConnectionServiceServicer
from holdfast.errors import InvalidArgument
from services.auth.closing import Closing
from services.auth.connection_store import ConnectionChange, ConnectionState
from services.auth.connections import Connections
from services.auth.refresh.on_request import RefreshOnRequest
from services.auth.secrets import Secret
from services.auth.servicers.messages import CONNECTION_STATES, current_caller, to_connection
from services.shared.paging import decode_page_token, encode_page_token, page_size


class ConnectionServicer(ConnectionServiceServicer):
    """Serves ConnectionService.

    Args:
        connections: The rules.
        refresh: Renews tokens when somebody asks for it.
        closing: Erases what a user has.
        page_key: Signs page tokens.
    """

    def __init__(self, connections: Connections, refresh: RefreshOnRequest, closing: Closing, page_key: bytes) -> None:
        self._connections = connections
        self._closing = closing
        self._refresh = refresh
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
            user_id=request.user_id,
            integration=request.integration,
            username=request.username,
            agents=request.agents,
            allow_raw_token=request.allow_raw_token,
            variables=dict(request.variables),
        )
        return pb.CreateConnectionResponse(connection=to_connection(connection))

    async def GetConnection(self, request: pb.GetConnectionRequest, context: Any) -> pb.GetConnectionResponse:
        """Returns one connection."""
        connection = await self._connections.get(current_caller(), request.name, user_id=request.user_id)
        return pb.GetConnectionResponse(connection=to_connection(connection))

    async def ListConnections(self, request: pb.ListConnectionsRequest, context: Any) -> pb.ListConnectionsResponse:
        """Lists connections by name."""
        caller = current_caller()
        # With all that decides what is listed: a token is good for the same list only.
        filters = (request.user_id, request.integration, str(request.state), caller.user_id or "")
        bound_to = ("ListConnections", caller.workspace_id, *filters)
        size = page_size(request.page_size)
        position = decode_page_token(self._page_key, request.page_token, bound_to=bound_to)
        after = None if position is None else (position["name"], position["user_id"])
        found = await self._connections.page(
            caller,
            limit=size + 1,
            after=after,
            user_id=request.user_id,
            integration=request.integration,
            state=_state(request.state),
        )
        token = ""
        if len(found) > size:
            last = found[size - 1]
            end = {"name": last.name, "user_id": last.user_id}
            token = encode_page_token(self._page_key, end, bound_to=bound_to)
        return pb.ListConnectionsResponse(
            connections=[to_connection(connection) for connection in found[:size]], next_page_token=token
        )

    async def UpdateConnection(self, request: pb.UpdateConnectionRequest, context: Any) -> pb.UpdateConnectionResponse:
        """Changes a connection."""
        connection = await self._connections.update(
            current_caller(),
            request.name,
            _change(request),
            user_id=request.user_id,
            request_id=request.request_id,
        )
        return pb.UpdateConnectionResponse(connection=to_connection(connection))

    async def RevokeConnection(self, request: pb.RevokeConnectionRequest, context: Any) -> pb.RevokeConnectionResponse:
        """Revokes a connection."""
        connection = await self._connections.revoke(
            current_caller(), request.name, user_id=request.user_id, request_id=request.request_id
        )
        return pb.RevokeConnectionResponse(connection=to_connection(connection))

    async def RefreshConnection(
        self, request: pb.RefreshConnectionRequest, context: Any
    ) -> pb.RefreshConnectionResponse:
        """Renews a connection's token."""
        connection = await self._refresh.refresh(current_caller(), request.name, user_id=request.user_id)
        return pb.RefreshConnectionResponse(connection=to_connection(connection))

    async def EraseUserConnections(
        self, request: pb.EraseUserConnectionsRequest, context: Any
    ) -> pb.EraseUserConnectionsResponse:
        """Erases what auth has of a user."""
        if not request.user_id:
            raise InvalidArgument("user_id is required", field="user_id")
        count = await self._closing.erase_user(
            request.workspace_id,
            request.user_id,
            actor=request.requested_by,
            only_look=request.validate_only,
        )
        return pb.EraseUserConnectionsResponse(connections=count)


def _state(state: pb.ConnectionState) -> ConnectionState | None:
    if state == pb.CONNECTION_STATE_UNSPECIFIED:
        return None
    for known, value in CONNECTION_STATES.items():
        if value == state:
            return known
    raise InvalidArgument("state is not known", field="state", description="expected a state of this release")


def _change(request: pb.UpdateConnectionRequest) -> ConnectionChange:
    new, paths = request.connection, set(request.update_mask.paths)
    unknown = sorted(paths - {"agents", "allow_raw_token", "state"})
    if unknown:
        raise InvalidArgument(
            f"the field {unknown[0]!r} cannot be changed",
            field="update_mask",
            description="expected some of agents, allow_raw_token, state",
        )
    if "state" in paths and new.state not in (pb.CONNECTION_STATE_ACTIVE, pb.CONNECTION_STATE_DISABLED):
        raise InvalidArgument("state is not valid", field="connection.state", description="ACTIVE or DISABLED")
    return ConnectionChange(
        agents=tuple(new.agents) if "agents" in paths else None,
        allow_raw_token=new.allow_raw_token if "allow_raw_token" in paths else None,
        is_disabled=new.state == pb.CONNECTION_STATE_DISABLED if "state" in paths else None,
    )
