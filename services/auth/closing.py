"""The end of a workspace, and of what a user has in it.

A workspace is closed, so that nothing new begins; then what auth has of it is deleted for good.

Between the two its journal is erased in state, which still can read it then. Deleting goes from the outside to the key:
grants are revoked at their providers with what the workspace still has, credentials are deleted, and the key is
destroyed last but for the rows. Whatever dies in between leaves a closed workspace without `delete_time`; the
repetition finds what is left. Only a provider that cannot be told now is told later, within a day, by the sweeper of
stray secrets, whose rows are not the workspace's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from holdfast.errors import FailedPrecondition, NotFound, Reason
from services.auth.callers import ADMIN, Caller
from services.auth.connection_store import Connection, ConnectionState, ConnectionStore
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

    async def erase_user(self, workspace_id: str, user_id: str, *, actor: str, only_look: bool = False) -> int:
        """Revokes a user's connections, and removes what is stored of them; returns how many there were.

        Revoking comes first, so that whatever dies in between leaves revoked connections, which the repetition removes.
        """
        if only_look:
            return len([found async for found in self._connections_of(workspace_id, user_id, tuple(ConnectionState))])
        caller = Caller(workspace_id, actor, frozenset({ADMIN}))
        async for connection in self._connections_of(workspace_id, user_id, _STATES):
            await self._connections.revoke(caller, connection.name, user_id=user_id)
        crash_point("auth.user.after_connections")
        return await self._store.forget_user(workspace_id, user_id, actor=actor)

    async def _connections_of(
        self, workspace_id: str, user_id: str | None, states: Sequence[ConnectionState]
    ) -> AsyncIterator[Connection]:
        user_ids = None if user_id is None else (user_id,)
        for state in states:
            after: tuple[str, str] | None = None
            while page := await self._connection_store.list_connections(
                workspace_id, limit=_BATCH, after=after, user_ids=user_ids, integration_id=None, state=state
            ):
                for connection in page:
                    yield connection
                after = (page[-1].name, page[-1].user_id)

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
        async for connection in self._connections_of(workspace_id, None, _STATES):
            await self._connections.revoke(caller, connection.name, user_id=connection.user_id)
            count += 1
        crash_point("auth.workspace.after_connections")
        await self._envelopes.destroy(workspace_id)
        crash_point("auth.workspace.after_key")
        return Deleted(await self._store.forget_workspace(workspace_id, actor=actor), count)


def _not_found() -> NotFound:
    return NotFound("there is no such workspace", reason=Reason.WORKSPACE_NOT_FOUND)
