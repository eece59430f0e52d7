"""Connections as stored, and the contract of whatever stores them. Their secrets are elsewhere: in a `SecretStore`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from holdfast.errors import AlreadyExists, Reason
from services.auth.store import Request

SHARED = ""
"""The `user_id` of a connection that the workspace shares."""


class CredentialKind(StrEnum):
    """How a credential comes about."""

    API_KEY = "API_KEY"
    BASIC = "BASIC"
    OAUTH2 = "OAUTH2"
    CLIENT_CREDENTIALS = "CLIENT_CREDENTIALS"


RENEWED_KINDS: Final = frozenset({CredentialKind.OAUTH2, CredentialKind.CLIENT_CREDENTIALS})
"""Whose credentials end by themselves, and are renewed."""


class ConnectionState(StrEnum):
    """Where a connection stands. The first two are usable."""

    ACTIVE = "ACTIVE"
    DEGRADED = "DEGRADED"
    UNAVAILABLE = "UNAVAILABLE"
    NEEDS_REAUTH = "NEEDS_REAUTH"
    DISABLED = "DISABLED"
    REVOKED = "REVOKED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A credential of a third party, without the secret."""

    workspace_id: str
    connection_id: str
    name: str
    user_id: str = SHARED
    integration_id: str | None = None
    integration: str = ""
    """Name of the integration, read with the row."""
    provider: str
    kind: CredentialKind = CredentialKind.API_KEY
    state: ConnectionState
    state_reason: str = ""
    base_url: str = ""
    fingerprint: str = ""
    """Of the credential that is in use: first 12 hex digits of its keyed hash."""
    secret_path: str | None = None
    """Where the secret lies; None when the connection has none."""
    version: int = 1
    """From 1, one higher with each change of the row that a cache has to notice."""
    token_version: int = 0
    """Version of the secret at its path that this row describes. After a crash the secret may be ahead."""
    account_id: str = ""
    account_label: str = ""
    scopes: tuple[str, ...] = ()
    missing_scopes: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    allow_raw_token: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    """Values of the provider's variables, to be shown: those that count are sealed beside the secret."""
    expire_time: datetime | None = None
    grant_expire_time: datetime | None = None
    refresh_time: datetime | None = None
    failure_count: int = 0
    last_use_time: datetime | None = None
    create_time: datetime
    update_time: datetime

    @property
    def is_usable(self) -> bool:
        """Tells whether calls may use it now."""
        return self.state in (ConnectionState.ACTIVE, ConnectionState.DEGRADED)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewConnection:
    """A connection that is to be stored."""

    workspace_id: str
    connection_id: str
    """Used unless an existing connection is replaced, which keeps its own."""
    name: str
    user_id: str = SHARED
    integration_id: str | None = None
    provider: str
    kind: CredentialKind = CredentialKind.API_KEY
    base_url: str = ""
    fingerprint: str = ""
    secret_path: str | None = None
    """Written before, and announced with `announce_secret`."""
    token_version: int = 0
    account_id: str = ""
    account_label: str = ""
    scopes: tuple[str, ...] = ()
    missing_scopes: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    allow_raw_token: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    expire_time: datetime | None = None
    grant_expire_time: datetime | None = None
    refresh_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """A secret that is nobody's."""

    path: str
    create_time: datetime
    """Since when."""
    workspace_id: str | None = None
    integration_id: str | None = None
    """Whose provider is told that the grant has ended, before the secret is deleted; None when there is nothing to
    tell. Of a grant that was replaced nothing is told here: the new one may go on with the old refresh token."""
    failure_count: int = 0


@dataclass(frozen=True, slots=True)
class SavedConnection:
    """What became of a new connection."""

    connection: Connection
    is_replay: bool = False
    """The request was answered before; nothing was changed, and the announced secret stays a stray."""
    abandoned: Stray | None = None
    """The secret that the connection had until now, and that waits to be deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionChange:
    """What an admin changes; None leaves a field as it is."""

    agents: tuple[str, ...] | None = None
    allow_raw_token: bool | None = None
    is_disabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatus:
    """What a row says of a token document that has been written to the secret store."""

    secret_path: str
    """Where the document lies."""
    token_version: int
    fingerprint: str
    scopes: tuple[str, ...]
    expire_time: datetime | None
    grant_expire_time: datetime | None
    refresh_time: datetime | None


@dataclass(frozen=True, slots=True)
class ConnectionEvent:
    """A connection became usable, or stopped to be."""

    event_id: int
    workspace_id: str
    connection_id: str
    state: ConnectionState
    create_time: datetime


def connection_exists(name: str) -> AlreadyExists:
    """Returns the error of a connection whose name is held by one that is not revoked."""
    return AlreadyExists(
        f"there is a connection {name!r} already; set `replace` to give it another key",
        reason=Reason.CONNECTION_EXISTS,
        metadata={"connection": name},
    )


class ConnectionStore(Protocol):
    """Connections and their secrets' announcements. Transactions, errors, `request` and audit are as in `AuthStore`.

    Every change of a connection's state appends a `ConnectionEvent` in its transaction.
    """

    async def find_connection(self, workspace_id: str, user_id: str, name: str) -> Connection | None:
        """Returns the user's (or, for `SHARED`, the workspace's) connection of the name in whatever state, or None."""

    async def get_connection(self, workspace_id: str, connection_id: str) -> Connection | None:
        """Returns the connection of the id in whatever state, or None."""

    async def connections_for(self, workspace_id: str, user_id: str, name: str) -> list[Connection]:
        """Returns what a run of the user may mean by `name`.

        Those are connections of that name, or of the integration of that name, that are the user's own or shared and
        not revoked. The user's own come first, then by name.
        """

    async def list_connections(
        self,
        workspace_id: str,
        *,
        limit: int,
        after: tuple[str, str] | None,
        user_ids: Collection[str] | None = None,
        integration_id: str | None = None,
        state: ConnectionState | None = None,
    ) -> list[Connection]:
        """Returns up to `limit` connections in the order of (name, user_id), after the given one.

        Args:
            workspace_id: The workspace.
            limit: How many at most.
            after: Name and user of the last one that is known.
            user_ids: Only those of these users; all when not given.
            integration_id: Only those of this integration.
            state: Only those in this state.
        """

    async def find_answered_connection(self, workspace_id: str, request: Request) -> Connection | None:
        """Returns the answer to an earlier `save_connection` with this request, or None."""

    async def announce_secret(self, path: str) -> None:
        """Notes that a secret is about to be written to `path`, so that it is deleted if no connection takes it."""

    async def save_connection(
        self, new: NewConnection, *, replace: bool, actor: str, request: Request | None
    ) -> SavedConnection:
        """Stores a connection that takes the announced secret; the one that it had before becomes a stray.

        A revoked connection does not hold its name: a new one with another id takes its place, unless `replace` is
        set, which keeps the id.

        Raises:
            NotFound: Its integration is not there any more (INTEGRATION_NOT_FOUND).
            FailedPrecondition: Its integration is disabled (INTEGRATION_DISABLED).
            AlreadyExists: There is one of the name that is not revoked, and `replace` is not set (CONNECTION_EXISTS).
            Unavailable: The announced secret was given up as a stray; it has to be written again.
        """

    async def update_connection(
        self,
        workspace_id: str,
        user_id: str,
        name: str,
        change: ConnectionChange,
        *,
        actor: str,
        request: Request | None,
    ) -> Connection | None:
        """Changes a connection and returns it; None when there is none of the name that is not revoked.

        One that is switched on again is ACTIVE, and is looked at for renewal at once: its token may have ended.
        """

    async def record_tokens(self, workspace_id: str, connection_id: str, status: TokenStatus) -> Connection | None:
        """Makes the row say what the secret store holds: ACTIVE, no failures.

        Ignored when the row has another secret by now, knows the same or a later version of it, or is REVOKED or
        DISABLED. Returns the row as it is afterwards; None when there is no such connection.
        """

    async def record_refresh_failure(
        self,
        workspace_id: str,
        connection_id: str,
        *,
        secret_path: str,
        token_version: int,
        state: ConnectionState,
        state_reason: str,
        refresh_time: datetime | None,
    ) -> Connection | None:
        """Notes that the token of `token_version` could not be renewed. Returns the row as it is afterwards.

        Ignored when the row has another secret by now, knows a later version of it, or is REVOKED or DISABLED: a loser
        never downgrades a winner.
        """

    async def connections_due(self, *, limit: int) -> list[Connection]:
        """Returns usable, UNAVAILABLE and NEEDS_REAUTH connections whose `refresh_time` has come, of all workspaces.

        Longest due first.
        """

    async def postpone_refresh(self, workspace_id: str, connection_id: str, refresh_time: datetime | None) -> None:
        """Sets when the next refresh is due, and nothing else."""

    async def revoke_connection(
        self, workspace_id: str, user_id: str, name: str, *, actor: str, request: Request | None
    ) -> SavedConnection | None:
        """Revokes a connection; its secret becomes a stray. None when there is no connection of the name."""

    async def record_connection_uses(self, uses: Sequence[tuple[str, str, datetime]]) -> None:
        """Notes when connections (workspace, id) were last used. A time before the stored one is ignored."""

    async def events_after(self, event_id: int, *, limit: int) -> list[ConnectionEvent]:
        """Returns events of all workspaces after the given one, in the order of their ids. A transaction that commits
        late may add one before those already read: they are hints."""

    async def last_event_id(self) -> int:
        """Returns the id of the newest event, 0 when there is none."""

    async def forget_events(self, *, older_than_seconds: float) -> int:
        """Forgets old events, but never the newest one, and returns how many."""

    async def condemn_strays(self, *, older_than_seconds: float, limit: int) -> list[Stray]:
        """Returns strays whose secrets may be deleted: no connection has them, and none will get them from now on.

        Those are the abandoned ones, and the announced ones that nobody has taken for `older_than_seconds`. No other
        call gets the same ones for a minute.
        """

    async def condemn_stray(self, path: str) -> bool:
        """Gives up one announced secret at once; False when a connection has it, or nobody announced it."""

    async def postpone_stray(self, path: str, *, delay_seconds: float) -> None:
        """Notes that the provider could not be told; the stray comes again after the delay."""

    async def forget_stray(self, path: str) -> None:
        """Removes the note about a secret that has been deleted."""
