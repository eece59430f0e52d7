"""What a caller may be given: scopes, and roles as names for sets of them. The one table; docs/security.md shows it.

Only scopes are stored and checked. A role is a shorthand for whoever makes a key or maps a person's claim, so that a
change of a role changes what is given from then on, and no key that exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from holdfast.errors import InvalidArgument
from services.auth.callers import ADMIN
from services.shared.identity import IMPERSONATE_SCOPE

SCOPES: Final[Mapping[str, str]] = {
    ADMIN: "everything in the workspace, its settings and its data included",
    "agents:read": "read agents and their revisions",
    "agents:write": "define agents and set their labels",
    "runs:read": "read runs and conversations",
    "runs:write": "start and cancel runs",
    "approvals:read": "read approvals and questions",
    "approvals:write": "decide them",
    "workers": "host tools, as a tool worker",
    "integrations:read": "read integrations, without their secrets",
    "integrations:write": "set up integrations, their client secrets included",
    "connections:read": "read connections, without their secrets",
    "connections:write": "connect, replace and revoke connections",
    IMPERSONATE_SCOPE: "name a user other than the caller's own",
    "keys:write": "make, list and revoke API keys, within the caller's own scopes",
    "audit:read": "read and export the audit",
    "trace:read": "read traces and usage",
}
"""All that a key may be given, and what it is for; `CreateApiKey`'s reference lists the same."""

ROLES: Final[Mapping[str, frozenset[str]]] = {
    "admin": frozenset({ADMIN}),
    # Builds agents and looks after their runs; neither secrets of the workspace's apps nor keys.
    "developer": frozenset(
        {
            "agents:read",
            "agents:write",
            "runs:read",
            "runs:write",
            "approvals:read",
            "approvals:write",
            "workers",
            "integrations:read",
            "connections:read",
            "connections:write",
            "trace:read",
        }
    ),
    # A program that starts runs and follows them.
    "runner": frozenset({"agents:read", "runs:read", "runs:write", "approvals:read", "trace:read"}),
    "viewer": frozenset(
        {"agents:read", "runs:read", "approvals:read", "integrations:read", "connections:read", "trace:read"}
    ),
    "worker": frozenset({"workers"}),
}
"""Roles, and the scopes that each stands for."""


def checked_scopes(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the scopes that scopes and roles stand for, in order, each once.

    Raises:
        InvalidArgument: There is none, or one is unknown.
    """
    wanted: set[str] = set()
    expected = f"expected roles ({', '.join(ROLES)}) or scopes ({', '.join(sorted(SCOPES))})"
    for name in names:
        if name in ROLES:
            wanted |= ROLES[name]
        elif name in SCOPES:
            wanted.add(name)
        else:
            raise InvalidArgument("a scope is unknown", field="scopes", description=expected)
    if not wanted:
        raise InvalidArgument("a key needs at least one scope", field="scopes", description=expected)
    return tuple(sorted(wanted))
