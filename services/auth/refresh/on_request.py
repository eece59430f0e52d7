"""A refresh that a person asks for: whatever the token's age, and with an answer about the connection itself."""

from __future__ import annotations

from holdfast.errors import FailedPrecondition, Reason
from services.auth.callers import Caller
from services.auth.connection_store import SHARED, Connection, ConnectionState
from services.auth.connections import Connections, connection_not_found, require_user
from services.auth.refresh.access_tokens import AccessTokens


class RefreshOnRequest:
    """Renews connections for callers of the API.

    Args:
        connections: Finds them, for those who may see them.
        access_tokens: Renews.
    """

    def __init__(self, connections: Connections, access_tokens: AccessTokens) -> None:
        self._connections = connections
        self._access_tokens = access_tokens

    async def refresh(self, caller: Caller, name: str, *, user_id: str = SHARED) -> Connection:
        """Renews a connection's token and returns the connection as it stands afterwards.

        Raises:
            PermissionDenied: The caller is a person, and it is somebody else's.
            NotFound: There is no connection of the name that is not revoked.
            FailedPrecondition: It has nothing that can be renewed, or is switched off (CONNECTION_NOT_REFRESHABLE).
            Unavailable: The provider or the store is away.
        """
        require_user(caller, user_id)
        connection = await self._connections.get(caller, name, user_id=user_id)
        if connection.state is ConnectionState.REVOKED:
            raise connection_not_found()
        try:
            await self._access_tokens.refresh_now(connection)
        except FailedPrecondition as error:
            # A proof that the grant is gone is the answer, and no failure of the call.
            if error.reason != Reason.CONNECTION_NEEDS_REAUTH:
                raise
        return await self._connections.get(caller, name, user_id=user_id)
