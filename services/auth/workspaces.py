"""The tenants.

A workspace and the first record of its audit are one transaction: a crash leaves both or neither. Making it again, by
whoever repeats it or at the same moment, finds it: a name is one workspace for ever.
"""

from __future__ import annotations

from holdfast.errors import FailedPrecondition, NotFound, Reason
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
            FailedPrecondition: It is closed.
        """
        found = await self._store.ensure_workspace(
            require_name(name, "workspace"), workspace_id=new_uuid7(), actor=actor
        )
        if found.close_time is not None:
            raise FailedPrecondition(f"the workspace {name} is closed", reason=Reason.WORKSPACE_CLOSED)
        return found

    async def find(self, name: str) -> Workspace | None:
        """Returns the workspace of the name if there is one and it is open, or None."""
        found = await self._store.find_workspace(name)
        return None if found is None or found.close_time is not None else found

    async def get(self, workspace_id: str) -> Workspace:
        """Returns a workspace.

        Raises:
            NotFound: There is none of the id.
        """
        found = await self._store.get_workspace(workspace_id)
        if found is None:
            raise NotFound("there is no such workspace", reason=Reason.WORKSPACE_NOT_FOUND)
        return found
