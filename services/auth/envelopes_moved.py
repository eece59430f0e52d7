"""Envelope keys after a move to Vault: new ones are Vault's, and what was wrapped before still opens."""

from __future__ import annotations

from services.auth.envelopes import DataKey, Envelopes, KeyBytes
from services.auth.envelopes_embedded import is_embedded
from services.auth.secrets import Secret


class MovedEnvelopes:
    """`Envelopes` of two keepers, told apart by the form of what they made.

    Args:
        current: Makes everything from now on.
        former: Opens what it made.
    """

    def __init__(self, current: Envelopes, former: Envelopes) -> None:
        self._current = current
        self._former = former

    def _of(self, text: str) -> Envelopes:
        return self._former if is_embedded(text) else self._current

    async def data_key(self, workspace_id: str) -> DataKey:
        """See `Envelopes.data_key`."""
        return await self._current.data_key(workspace_id)

    async def unwrap(self, workspace_id: str, wrapped: str) -> KeyBytes:
        """See `Envelopes.unwrap`."""
        return await self._of(wrapped).unwrap(workspace_id, wrapped)

    async def rewrap(self, workspace_id: str, wrapped: str) -> str:
        """See `Envelopes.rewrap`. A key stays with the keeper that wrapped it."""
        return await self._of(wrapped).rewrap(workspace_id, wrapped)

    async def rotate(self, workspace_id: str) -> None:
        """See `Envelopes.rotate`."""
        await self._current.rotate(workspace_id)

    async def destroy(self, workspace_id: str) -> None:
        """See `Envelopes.destroy`."""
        await self._current.destroy(workspace_id)
        await self._former.destroy(workspace_id)

    async def seal(self, plaintext: Secret, *, context: str) -> str:
        """See `Envelopes.seal`."""
        return await self._current.seal(plaintext, context=context)

    async def open(self, sealed: str, *, context: str) -> Secret:
        """See `Envelopes.open`."""
        return await self._of(sealed).open(sealed, context=context)
