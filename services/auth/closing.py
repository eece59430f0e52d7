"""The end of a workspace: it is closed, so that nothing new begins; then what auth has of it is deleted for good.

Between the two its journal is erased in state, which still can read it then. Deleting goes from the outside to the key:
grants are revoked at their providers with what the workspace still has, credentials are deleted, and the key is
destroyed last but for the rows. Whatever dies in between leaves a closed workspace without `delete_time`; the
repetition finds what is left. Only a provider that cannot be told now is told later, within a day, by the sweeper of
stray secrets, whose rows are not the workspace's.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import FailedPrecondition, NotFound, Reason
from services.auth.callers import ADMIN, Caller
from services.auth.connection_store import ConnectionState, ConnectionStore
from services.auth.connections import Connections
from services.auth.envelopes import Envelopes
from services.auth.integrations import Integrations
from services.auth.requests import is_name
from services.auth.store import AuthStore, Workspace
from services.shared.crash_points import crash_point

_BATCH = 100
_STATES = tuple(state for state in ConnectionState if state is not ConnectionState.REVOKED)


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion did."""

    workspace: Workspace
    connections: int


class Closing:
    """Closes and deletes workspaces.

    Args:
        store: Keeps the workspaces.
        connection_store: Keeps the connections.
        connections: Revokes them.
        integrations: Deletes the workspace's applications.
        envelopes: Has the workspace's key.
    """

    def __init__(
        self,
        store: AuthStore,
        connection_store: ConnectionStore,
        connections: Connections,
        integrations: Integrations,
        envelopes: Envelopes,
    ) -> None:
        self._store = store
        self._connection_store = connection_store
        self._connections = connections
        self._integrations = integrations
        self._envelopes = envelopes

    async def close(self, name: str, *, actor: str) -> Workspace:
        """Closes a workspace for good. May be repeated.

        Raises:
            NotFound: There is none of the name.
        """
        found = await self._store.close_workspace(name, actor=actor) if is_name(name) else None
        if found is None:
            raise _not_found()
        return found

    async def delete(self, name: str, *, actor: str) -> Deleted:
        """Deletes what is stored of a closed workspace. May be repeated.

        Raises:
            NotFound: There is none of the name.
            FailedPrecondition: It is not closed.
            Unavailable: The secret store, or the keeper of the keys, is away: to be repeated.
        """
        workspace = await self._store.find_workspace(name) if is_name(name) else None
        if workspace is None:
            raise _not_found()
        if workspace.close_time is None:
            raise FailedPrecondition("the workspace is open: close it first", reason=Reason.WORKSPACE_NOT_CLOSED)
        if workspace.delete_time is not None:
            return Deleted(workspace, 0)
        workspace_id = workspace.workspace_id
        caller = Caller(workspace_id, actor, frozenset({ADMIN}))
        count = 0
        while integrations := await self._integrations.page(workspace_id, limit=_BATCH, after=None):
            for integration in integrations:
                count += await self._integrations.delete(caller, integration.name)
        crash_point("auth.workspace.after_integrations")
        for state in _STATES:
            while connections := await self._connection_store.list_connections(
                workspace_id, limit=_BATCH, after=None, user_ids=None, integration_id=None, state=state
            ):
                for connection in connections:
                    await self._connections.revoke(caller, connection.name, user_id=connection.user_id)
                    count += 1
        crash_point("auth.workspace.after_connections")
        await self._envelopes.destroy(workspace_id)
        crash_point("auth.workspace.after_key")
        return Deleted(await self._store.forget_workspace(workspace_id, actor=actor), count)


def _not_found() -> NotFound:
    return NotFound("there is no such workspace", reason=Reason.WORKSPACE_NOT_FOUND)
