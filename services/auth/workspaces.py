"""The tenants."""

from __future__ import annotations

from holdfast.errors import NotFound, Reason
from holdfast.ids import new_uuid7
from services.auth.requests import require_name
from services.auth.store import AuthStore, Workspace


class Workspaces:
    """Makes and finds workspaces."""

    def __init__(self, store: AuthStore) -> None:
        self._store = store

    async def ensure(self, name: str, *, actor: str) -> Workspace:
        """Returns the workspace of the name, and makes it when there is none.

        Raises:
            InvalidArgument: The name is not valid.
        """
        return await self._store.ensure_workspace(
            require_name(name, "workspace"), workspace_id=new_uuid7(), actor=actor
        )

    async def find(self, name: str) -> Workspace | None:
        """Returns the workspace of the name, or None."""
        return await self._store.find_workspace(name)

    async def get(self, workspace_id: str) -> Workspace:
        """Returns a workspace.

        Raises:
            NotFound: There is none of the id.
        """
        found = await self._store.get_workspace(workspace_id)
        if found is None:
            raise NotFound("there is no such workspace", reason=Reason.WORKSPACE_NOT_FOUND)
        return found
