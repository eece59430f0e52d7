"""The access token for one call: from memory for a while, renewed when needed, and for ten minutes without a store.

Refresh tokens are never kept here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from weakref import WeakValueDictionary

from holdfast.errors import FailedPrecondition, NotFound, Reason, Unavailable
from services.auth.connection_store import Connection, ConnectionState, CredentialKind
from services.auth.refresh.coordinator import RefreshCoordinator
from services.auth.refresh.documents import CurrentToken
from services.auth.refresh.goal import Goal
from services.auth.refresh.renewal import Renewal
from services.auth.refresh.rows import ConnectionRows, needs_reauth_error, unavailable_error
from services.shared.clock import Clock
from services.shared.telemetry import get_logger

MIN_VALID: Final = timedelta(seconds=30)
"""How long a token is good for when nobody says otherwise."""

CACHE_SECONDS: Final = 60.0
"""How long a token is served from memory. A row with a later version, or a rejection, ends that at once."""

STALE_IF_ERROR_SECONDS: Final = 600.0
"""How long after the last look at the store its tokens are served while it is away."""

REJECTION_COOLDOWN_SECONDS: Final = 30.0
"""A token that was renewed because its predecessor was rejected is not renewed for the same reason so soon."""

_STALE_LEFT_SECONDS: Final = 30.0
_MAX_REMEMBERED: Final = 8192
_REFRESHABLE: Final = (CredentialKind.OAUTH2, CredentialKind.CLIENT_CREDENTIALS)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Remembered:
    token: CurrentToken
    secret_path: str | None
    read_at: float


class AccessTokens:
    """Hands out access tokens of connections whose use was allowed already.

    Args:
        renewal: Reads documents.
        coordinator: Renews them.
        rows: Are brought up to date where they lag.
        clock: Where time comes from.
        stale_seconds: How long tokens are served while the store is away.
    """

    def __init__(
        self,
        renewal: Renewal,
        coordinator: RefreshCoordinator,
        rows: ConnectionRows,
        clock: Clock,
        *,
        stale_seconds: float = STALE_IF_ERROR_SECONDS,
    ) -> None:
        self._renewal = renewal
        self._coordinator = coordinator
        self._rows = rows
        self._clock = clock
        self._stale_seconds = stale_seconds
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        # The fingerprints that renewals after a rejection brought, and when.
        self._replacements: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def get(
        self, connection: Connection, *, min_valid_for: timedelta = MIN_VALID, rejected_fingerprint: str | None = None
    ) -> CurrentToken:
        """Returns a token that works for `min_valid_for`, or at least still works if it cannot be renewed now.

        Args:
            connection: As it stands, of kind OAUTH2 or CLIENT_CREDENTIALS.
            min_valid_for: How long it is needed.
            rejected_fingerprint: The provider has refused this token: it is renewed, unless that has happened. The same
                token comes back when it was renewed for that reason a moment ago, or cannot be: then renewing does
                not help.

        Raises:
            NotFound: The connection is revoked or switched off, or has changed meanwhile.
            FailedPrecondition: Its user has to connect again (CONNECTION_NEEDS_REAUTH).
            Unavailable: There is no token that works, and none can be got at the moment.
        """
        now = self._clock.now()
        goal = Goal(min_valid_seconds=min_valid_for.total_seconds(), rejected_fingerprint=rejected_fingerprint or "")
        remembered = self._fresh(connection)
        if remembered is not None and connection.is_usable and goal.is_met(remembered, now):
            return remembered
        if connection.state in (ConnectionState.REVOKED, ConnectionState.DISABLED):
            raise NotFound("there is no such connection", reason=Reason.CONNECTION_NOT_FOUND)
        token = await self._read(connection, goal)
        if goal.is_met(token, now):
            return token
        if connection.state is ConnectionState.NEEDS_REAUTH and token.version <= connection.token_version:
            raise needs_reauth_error(connection, connection.state_reason)
        works = token.works_at(now) and token.fingerprint != goal.rejected_fingerprint
        wait = self._resting(connection, token)
        if wait is not None:
            if works:
                return token
            raise unavailable_error(connection, retry_delay_seconds=wait)
        if goal.rejected_fingerprint and self._is_replacement(connection, goal.rejected_fingerprint):
            return token
        try:
            stored = await self._coordinator.refresh(connection, goal)
        except Unavailable:
            if works and token.works_at(self._clock.now()):
                return token
            raise
        if goal.rejected_fingerprint and not works:
            self._replacements[connection.connection_id] = (stored.fingerprint, self._clock.monotonic())
            self._replacements.move_to_end(connection.connection_id)
            if len(self._replacements) > _MAX_REMEMBERED:
                self._replacements.popitem(last=False)
        return self._remember(connection, stored.current)

    async def refresh_now(self, connection: Connection) -> None:
        """Renews a connection's token whatever its age.

        Raises:
            NotFound: The connection has changed meanwhile.
            FailedPrecondition: It has nothing that could be renewed or is switched off (CONNECTION_NOT_REFRESHABLE), or
                its user has to connect again (CONNECTION_NEEDS_REAUTH).
            Unavailable: The provider or the store is away.
        """
        is_off = connection.state is ConnectionState.DISABLED
        if is_off or connection.kind not in _REFRESHABLE or connection.secret_path is None:
            raise _not_refreshable(connection)
        stored = await self._renewal.read(connection)
        if connection.kind is CredentialKind.OAUTH2 and stored.tokens.refresh_token is None:
            raise _not_refreshable(connection)
        renewed = await self._coordinator.refresh(connection, Goal(newer_than=stored.version))
        self._remember(connection, renewed.current)

    def forget(self, connection_id: str) -> None:
        """Drops what is remembered of a connection; called when it has changed."""
        self._remembered.pop(connection_id, None)

    def notice(self, row: Connection) -> None:
        """Drops what is remembered of a connection, unless it is what the row describes."""
        remembered = self._remembered.get(row.connection_id)
        if remembered is None:
            return
        if remembered.secret_path != row.secret_path or remembered.token.version < row.token_version:
            del self._remembered[row.connection_id]

    def _fresh(self, connection: Connection) -> CurrentToken | None:
        found = self._remembered.get(connection.connection_id)
        if found is None or found.secret_path != connection.secret_path:
            return None
        if found.token.version < connection.token_version or found.read_at + CACHE_SECONDS <= self._clock.monotonic():
            return None
        return found.token

    async def _read(self, connection: Connection, goal: Goal) -> CurrentToken:
        # Many calls need the same connection at the same moment: one of them reads it.
        turn = self._turns.get(connection.connection_id)
        if turn is None:
            turn = self._turns[connection.connection_id] = asyncio.Lock()
        async with turn:
            fresh = self._fresh(connection)
            if fresh is not None and goal.is_met(fresh, self._clock.now()):
                return fresh
            try:
                stored = await self._renewal.read(connection)
            except Unavailable:
                stale = self._stale(connection, goal)
                if stale is None:
                    raise
                return stale
            await self._rows.catch_up(connection, stored)
            return self._remember(connection, stored.current)

    def _stale(self, connection: Connection, goal: Goal) -> CurrentToken | None:
        """Returns what is remembered, if it may be served while the store is away."""
        found = self._remembered.get(connection.connection_id)
        if found is None or found.secret_path != connection.secret_path:
            return None
        if found.read_at + self._stale_seconds <= self._clock.monotonic():
            return None
        token = found.token
        if token.version < connection.token_version or token.fingerprint == goal.rejected_fingerprint:
            return None
        left = token.seconds_left(self._clock.now())
        return token if left is None or left > _STALE_LEFT_SECONDS else None

    def _remember(self, connection: Connection, token: CurrentToken) -> CurrentToken:
        self._remembered[connection.connection_id] = _Remembered(token, connection.secret_path, self._clock.monotonic())
        self._remembered.move_to_end(connection.connection_id)
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return token

    def _resting(self, connection: Connection, token: CurrentToken) -> float | None:
        """Returns how long a connection that could not be renewed is left alone; None when it is not."""
        if connection.failure_count == 0 or connection.refresh_time is None or token.version > connection.token_version:
            return None
        wait = (connection.refresh_time - self._clock.now()).total_seconds()
        return wait if wait > 0 else None

    def _is_replacement(self, connection: Connection, fingerprint: str) -> bool:
        """Tells whether a token has just come because its predecessor was rejected: another one would not help."""
        found = self._replacements.get(connection.connection_id)
        if found is None or found[0] != fingerprint:
            return False
        return self._clock.monotonic() - found[1] < REJECTION_COOLDOWN_SECONDS


def _not_refreshable(connection: Connection) -> FailedPrecondition:
    return FailedPrecondition(
        f"the connection {connection.name!r} has nothing that could be renewed",
        reason=Reason.CONNECTION_NOT_REFRESHABLE,
        metadata={"connection": connection.name, "connection_id": connection.connection_id},
    )
