"""Data keys of workspaces in memory: what auth and the table of wrapped keys do together."""

from __future__ import annotations

import os
from collections.abc import Sequence

from holdfast.errors import HoldfastError
from services.shared.seals import PayloadDamagedError


class MemoryKeys:
    """A `KeySource` whose keys can be destroyed, lost, and out of reach."""

    def __init__(self) -> None:
        self.keys: dict[str, dict[bytes, bytes]] = {}
        self.destroyed: set[str] = set()
        self.trouble: HoldfastError | None = None
        """Raised by every call to auth."""
        self.chosen: dict[str, bool] = {}
        self.asked = 0

    async def current(self, workspace_id: str) -> tuple[bytes, bytes]:
        """See `KeySource.current`."""
        self._check()
        keys = self.keys.setdefault(workspace_id, {})
        if not keys:
            keys[os.urandom(16)] = os.urandom(32)
        return next(iter(keys.items()))

    async def find(self, workspace_id: str, key_id: bytes) -> bytes | None:
        """See `KeySource.find`."""
        self._check()
        if workspace_id in self.destroyed:
            return None
        value = self.keys.get(workspace_id, {}).get(key_id)
        if value is None:
            raise PayloadDamagedError("the key is lost")
        return value

    async def choices(self, workspace_ids: Sequence[str]) -> list[bool | None]:
        """See `ChoiceSource.choices`."""
        self._check()
        return [self.chosen.get(workspace_id) for workspace_id in workspace_ids]

    async def has_key(self, workspace_id: str) -> bool:
        """See `ChoiceSource.has_key`: that is in state's own database."""
        return bool(self.keys.get(workspace_id))

    def _check(self) -> None:
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
