"""Who asks for something: the part of a caller's identity that the rules need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ADMIN: Final = "admin"
"""The scope that holds all others of its workspace."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who acts in one workspace."""

    workspace_id: str
    actor: str
    """For the audit: `key:<id>`, or the name of an administrative command."""
    scopes: frozenset[str]

    def may_grant(self, scope: str) -> bool:
        """Tells whether the caller has what it wants to give to a key."""
        return scope in self.scopes or ADMIN in self.scopes
