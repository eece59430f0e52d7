"""Data keys for services that keep payloads sealed, and which workspaces have chosen that they are.

Invariant: a workspace's choice is turned on only when a data key of it could be made in that moment, so that no typing
error in the keeper's policies stops a workspace that works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from holdfast.errors import InvalidArgument, NotFound, Reason
from services.auth.envelopes import DataKey, Envelopes, KeyBytes
from services.auth.secrets import SecretDamagedError
from services.auth.store import AuthStore, Workspace

MAX_WRAPPED_CHARACTERS: Final = 512

MAX_CHECKED: Final = 500


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

    async def set_sealing(self, workspace_id: str, seals_payloads: bool | None, *, actor: str) -> Workspace:
        """Stores whether a workspace's payloads are sealed; None leaves it to the installation. May be repeated.

        Raises:
            NotFound: There is no such workspace (any more).
            FailedPrecondition: It is closed (WORKSPACE_CLOSED).
            Unavailable: The keeper of the keys is away, and it was to be turned on.
        """
        workspace = await self._store.get_workspace(workspace_id)
        if seals_payloads and workspace is not None and workspace.close_time is None:
            await self._envelopes.data_key(workspace_id)
        return await self._store.set_sealing(workspace_id, seals_payloads, actor=actor)

    async def sealing_of(self, workspace_ids: Sequence[str]) -> list[bool | None]:
        """Returns what workspaces have chosen, in their order; None for one that is not known.

        Raises:
            InvalidArgument: There are too many.
        """
        if len(workspace_ids) > MAX_CHECKED:
            raise InvalidArgument(
                "there are too many workspaces", field="workspace_ids", description=f"expected at most {MAX_CHECKED}"
            )
        found = await self._store.get_sealing(workspace_ids)
        return [found.get(workspace_id) for workspace_id in workspace_ids]

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
