"""Who asks for something: the part of a caller's identity that the rules need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.shared.identity import IMPERSONATE_SCOPE

ADMIN: Final = "admin"
"""The scope that holds all others of its workspace."""

IMPERSONATE: Final = IMPERSONATE_SCOPE
"""The scope with which a person may act for others, and for the workspace."""

_PERSON: Final = "user:"


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who acts in one workspace."""

    workspace_id: str
    actor: str
    """For the audit: `key:<id>`, `user:<id>`, or the name of an administrative command."""
    scopes: frozenset[str]

    @property
    def user_id(self) -> str | None:
        """Who it is, if it is a person; None for keys and commands."""
        return self.actor.removeprefix(_PERSON) if self.actor.startswith(_PERSON) else None

    def may_grant(self, scope: str) -> bool:
        """Tells whether the caller has what it wants to give to a key."""
        return scope in self.scopes or ADMIN in self.scopes

    def may_act_for(self, user_id: str) -> bool:
        """Tells whether the caller may act for a user, or (empty) the workspace: keys may, a person for themself."""
        return self.user_id in (None, user_id) or self.may_grant(IMPERSONATE)
