"""Data keys for services that keep payloads sealed: made and unwrapped for workspaces that are there."""

from __future__ import annotations

from holdfast.errors import InvalidArgument, NotFound, Reason
from services.auth.envelopes import DataKey, Envelopes, KeyBytes
from services.auth.secrets import SecretDamagedError
from services.auth.store import AuthStore

MAX_WRAPPED_CHARACTERS = 512


class DataKeys:
    """Makes and unwraps them.

    Args:
        store: Knows the workspaces.
        envelopes: Has their keys.
    """

    def __init__(self, store: AuthStore, envelopes: Envelopes) -> None:
        self._store = store
        self._envelopes = envelopes

    async def create(self, workspace_id: str) -> DataKey:
        """Returns a new data key.

        Raises:
            NotFound: There is no such workspace, or its key is to be destroyed: it is closed (WORKSPACE_NOT_FOUND).
            Unavailable: The keeper of the keys is away.
        """
        workspace = await self._store.get_workspace(workspace_id)
        if workspace is None or workspace.close_time is not None:
            raise NotFound("there is no such workspace", reason=Reason.WORKSPACE_NOT_FOUND)
        return await self._envelopes.data_key(workspace_id)

    async def unwrap(self, workspace_id: str, wrapped: str) -> KeyBytes:
        """Returns a data key, also of a closed workspace until its key is destroyed.

        Raises:
            NotFound: It was destroyed (CONTENT_REMOVED).
            InvalidArgument: It is not what was wrapped for the workspace.
            Unavailable: The keeper of the keys is away.
        """
        workspace = await self._store.get_workspace(workspace_id)
        if workspace is not None and workspace.delete_time is not None:
            raise NotFound("the workspace's key was destroyed", reason=Reason.CONTENT_REMOVED)
        wrong = None
        if 0 < len(wrapped) <= MAX_WRAPPED_CHARACTERS and workspace is not None:
            try:
                return await self._envelopes.unwrap(workspace_id, wrapped)
            except SecretDamagedError as error:
                wrong = error
        raise InvalidArgument("wrapped is not a data key of the workspace", field="wrapped") from wrong
